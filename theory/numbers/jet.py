r"""Jets: numbers that carry their derivative along one direction.

A `Jet` is x + t x' with t^2 = 0: every operation passes on value and derivative, for example
(x + t x')(y + t y') = x y + t (x y' + x' y).  The reference wing's lines run on jets unchanged, so
a backward pass on jets gives the gradient g and its directional derivative H d, without a step, in
whatever arithmetic value and derivative are made of: floats, `Bounded` floats (H d with its
rounding error), balls (an enclosure of H d) or symbols.

Source: forward accumulation, Griewank & Walther, Evaluating Derivatives (2008), chapter 3.
"""

import numpy as np


class Jet(np.lib.mixins.NDArrayOperatorsMixin):
    """An array with its derivative along a direction.

    value: an array (NumPy's, of floats or objects, or a `Bounded`).  tangent: the derivative, in
    the same shape and arithmetic; None for a constant.

    >>> x = Jet(np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    >>> (x * x).tangent.tolist(), np.sqrt(x).tangent.tolist()
    ([2.0, 0.0], [0.5, 0.0])
    """

    def __init__(self, value, tangent=None):
        self.value = value
        self.tangent = tangent

    # What the reference wing asks of an array

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    flat = property(lambda self: self.value.flat)
    real = property(lambda self: self.value)  # what comparisons and shifts are made of
    T = property(lambda self: self._each(lambda array: array.T))

    def _each(self, function):
        return Jet(function(self.value), None if self.tangent is None else function(self.tangent))

    def __len__(self):
        return len(self.value)

    def __getitem__(self, index):
        return self._each(lambda array: array[index])

    def __setitem__(self, index, new):
        new = new if isinstance(new, Jet) else Jet(new)
        self.value[index] = new.value
        if self.tangent is None and new.tangent is not None:
            self.tangent = 0 * self.value
        if self.tangent is not None:
            self.tangent[index] = 0 if new.tangent is None else new.tangent

    def reshape(self, *shape):
        return self._each(lambda array: array.reshape(*shape))

    def transpose(self, *axes):
        return self._each(lambda array: array.transpose(*axes))

    def sum(self, axis=None, keepdims=False):
        return self._each(lambda array: array.sum(axis=axis, keepdims=keepdims))

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__" or kwargs or ufunc not in (*_RULES, *_OF_VALUES):
            return NotImplemented
        jets = [x if isinstance(x, Jet) else Jet(x) for x in inputs]
        value = ufunc(*(x.value for x in jets))
        if ufunc in _OF_VALUES:
            return value
        parts = [
            part(x.tangent, value, *(y.value for y in jets))
            for x, part in zip(jets, _RULES[ufunc], strict=True)
            if x.tangent is not None
        ]
        return Jet(value, sum(parts[1:], parts[0]) if parts else None)

    def __array_function__(self, function, types, args, kwargs):
        if function is np.zeros_like and args[0] is self:
            return Jet(function(self.value, **kwargs))
        if function is np.where and len(args) == 3 and not kwargs:
            mask, x, y = args[0], *(a if isinstance(a, Jet) else Jet(a) for a in args[1:])
            if x.tangent is None and y.tangent is None:
                return Jet(np.where(mask, x.value, y.value))
            tangents = [0 if jet.tangent is None else jet.tangent for jet in (x, y)]
            return Jet(np.where(mask, x.value, y.value), np.where(mask, *tangents))
        return NotImplemented


def _spread(t, y):
    """Return t in the shape of y, which a sum has broadcast it to."""
    return t if getattr(t, "shape", ()) == getattr(y, "shape", ()) else t + 0 * y


# For each argument: what its derivative t contributes; y is the function's value.
_RULES = {
    np.add: (lambda t, y, a, b: _spread(t, y), lambda t, y, a, b: _spread(t, y)),
    np.subtract: (lambda t, y, a, b: _spread(t, y), lambda t, y, a, b: _spread(-t, y)),
    np.multiply: (lambda t, y, a, b: t * b, lambda t, y, a, b: a * t),
    np.true_divide: (lambda t, y, a, b: t / b, lambda t, y, a, b: -(y * t) / b),
    np.matmul: (lambda t, y, a, b: t @ b, lambda t, y, a, b: a @ t),
    np.negative: (lambda t, y, a: -t,),
    np.sqrt: (lambda t, y, a: t / (2 * y),),
    np.exp: (lambda t, y, a: t * y,),
    np.log: (lambda t, y, a: t / a,),
    np.tanh: (lambda t, y, a: t * (1 - y * y),),
    np.cosh: (lambda t, y, a: t * (y * np.tanh(a)),),
}
_OF_VALUES = (np.greater, np.less_equal, np.equal, np.isfinite, np.isnan)
