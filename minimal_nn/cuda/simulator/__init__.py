"""The device on the CPU: the same kernels, on NumPy arrays.

memory        poison, errors, and what names mean to a simulated kernel
engine        one greenlet for each thread, in any order
lockstep      a block at a time, ten times sooner; text: the kernel rewritten for that
device        the device as the launch layer sees it
"""
