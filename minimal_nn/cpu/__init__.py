"""The cpu wing: the reference wing's functions as compiled kernels, and whole training loops.

For a reader of the mathematics: the formulas are in affine.py, batchnorm.py, layernorm.py,
weightnorm.py, activation.py, loss.py, update.py, convolution.py and pooling.py, each with kernels
(compiled) and the contract's pure functions (plain Python around one or two kernels).

The machinery, which a reader of the mathematics never meets:

    vectors.py      vectors and pointers inside compiled code; elementary.py: exp, log, tanh
    processor.py    the target: its features and vector width; atomics, flushing to zero
    microkernel.py  the register tile that all products and convolutions are made of
    workspace.py    the layouts: panels of columns, aligned and padded with zeros
    compiler.py     compiles kernels on first use; the cache on disk
    program.py      lists of kernel calls, run by one compiled loop on any number of threads
    threads.py      how many threads, and why results do not depend on it
    plan.py         a network's training loop as one program

Everything that the wing computes, a pure function's result or ten thousand training steps, is a
`Program` of the same kernels, so a layer-by-layer evaluation and a compiled training loop give the
same bits.  Importing this package compiles nothing.
"""
