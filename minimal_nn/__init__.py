"""minimal_nn: a hand-written network, no autodiff; forward and backward passes that can be read."""
