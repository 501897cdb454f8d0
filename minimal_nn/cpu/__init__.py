"""The cpu wing: the reference wing's functions as compiled kernels, and whole training loops.

The mathematics stands in this folder, an operation a file, under the names of the reference wing:
affine, convolution (with winograd in its folder), batchnorm, layernorm, rmsnorm, groupnorm,
weightnorm, activation, pooling, averagepooling, loss and update.  Each holds kernels (compiled) and
the contract's pure functions (plain Python around a program of kernels).  What they stand on lies
behind two doors:

    plan/      a network's training loop, composed of the operations' kernels as one program

    machine/   no mathematics of networks
        processor.py    the target: features, width of vectors, number of registers, instructions
        vectors.py      vectors and pointers inside compiled code; elementary.py: exp, log, tanh
        norms.py        norms whose squares stay in range
        microkernel.py  the register tile that all products and convolutions are made of
        workspace.py    the layouts: panels of columns, aligned and padded with zeros
        compiler.py     compiles kernels on first use; the cache on disk
        program.py      lists of kernel calls, run by one compiled loop on any number of threads
        prepared.py     programs of small arrays, kept for the next call of their form
        footprints.py   what kernels declare that they read and write; spans.py, operands.py
        checks.py       what makes a program right, checked when it is built
        threads.py      how many threads, and why results do not depend on it
        arguments.py    which arrays the pure functions accept

An operation imports from machine and from operations that it is made of; plan imports both; machine
imports neither.  No other library is called from compiled code, BLAS included: products are the
wing's own.

Everything that the wing computes, a pure function's result or ten thousand training steps, is a
`Program` of the same kernels, so a layer-by-layer evaluation and a compiled training loop give the
same bits, on any number of threads.  Another width of vectors, or a processor without fused
multiply-add, gives other bits.  Importing this package compiles nothing.

Tested on x86, with AVX-512, AVX2 and SSE2.  64-bit Arm: compiled and emulated, not run.
"""
