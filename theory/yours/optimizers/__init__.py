"""The symmetry of any optimizer, measured on whole runs.

problems    losses that do not feel the scale of their weights, on which optimizers are run
stepping    PyTorch's, optax', minimal_nn's optimizers and functions, driven in one way
runs        runs from w_0 and 2^k w_0 side by side, bit by bit, up to where they part
powers      the search for the power of a that each hyper-parameter takes
habits      how decay enters, and whether parameters are updated independently
reasons     why a symmetry fails, from what else is measured
checking    check_optimizer and its report
table       the optimizers of three libraries: `python -m theory.yours.optimizers`
"""
