"""The reference wing: the mathematics, in NumPy, for any arithmetic.

Its formulas use only NumPy's ufuncs and array arithmetic, and choose a branch by comparing numbers
in three places alone: `activation.passes`, `pooling.forward` and the ratios of norms in update.py.
extremes.py compares too, to scale by powers of two and to refuse what does not fit a dtype.  The
same lines therefore run in float16 to longdouble, in complex numbers (complex-step derivatives),
and on object arrays: rigorous balls and symbols.
"""
