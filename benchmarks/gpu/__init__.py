"""The cuda wing measured on a device: `python -m benchmarks.gpu`."""
