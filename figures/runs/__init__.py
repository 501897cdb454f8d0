"""What a configuration of a figure runs: training, scaling, precision."""
