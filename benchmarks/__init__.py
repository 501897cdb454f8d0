"""Benchmarks: this project against PyTorch and JAX on the same work (`python -m benchmarks`)."""
