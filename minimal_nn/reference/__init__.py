"""The reference wing: the mathematics, in NumPy, for any arithmetic.

Its formulas use only NumPy's ufuncs and array arithmetic, and compare numbers in two places alone:
`activation.passes` and `pooling.forward`.  The same lines therefore run in float16 to longdouble,
in complex numbers (complex-step derivatives), and on object arrays: rigorous balls and symbols.
"""
