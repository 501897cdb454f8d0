"""Kernels on the CPU: one greenlet a thread (engine), or a block in lockstep (lockstep)."""
