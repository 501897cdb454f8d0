"""What kernels are composed of: vectors, reductions, elementwise passes, unrolling."""
