"""The cpu wing beside PyTorch and JAX."""
