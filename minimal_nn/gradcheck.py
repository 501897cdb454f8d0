r"""Checking a backward pass: is the gradient the derivative of the forward pass?

With this module one can

- differentiate without subtraction                     complex_step(f, x, direction)
- differentiate by differences, with an error bound     finite_difference(f, x, direction)
- check a forward pass against its backward pass        check(forward, backward, arguments, rng)
- the same as an assertion with a full account          assert_gradient(...)

Two rules are built in, because tests of normalization layers are blind without them.

The cotangent dy is random.  A normalized layer is invariant to shifts and rescalings, so that the
gradient of a symmetric loss (the sum of the outputs, the sum of their squares) is 0, whatever the
backward pass does to it: 0 is compared with 0.

The tolerance follows the gradient.  The gradient of a scale-invariant loss is proportional to
1/|w|; against a fixed absolute tolerance a backward pass that returns 0 passes as soon as |w| is
large.  Here every bound is proportional to the quantities that are compared.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.derivatives import (
    FiniteDifference,
    complex_step,
    finite_difference,
    float_array,
    gamma,
    unit_roundoff,
)

__all__ = [
    "Comparison",
    "FiniteDifference",
    "Result",
    "assert_gradient",
    "check",
    "complex_step",
    "finite_difference",
    "gamma",
    "unit_roundoff",
]

METHODS = ("complex_step", "finite_differences")

# n roundings of either sign add up to more than CONFIDENCE sqrt(n) of them with probability
# 2 exp(-CONFIDENCE^2 / 2), about 3e-8.
CONFIDENCE = 6


class Comparison(NamedTuple):
    """One number that was compared: |numeric - backward| against a bound."""

    name: str
    kind: str
    numeric: float
    backward: float
    scale: float
    bound: float
    derivation: str

    @property
    def error(self):
        return abs(self.numeric - self.backward)

    @property
    def ok(self):
        return bool(self.error <= self.bound)  # False for NaN

    def __str__(self):
        verdict = "agree" if self.ok else "DISAGREE"
        return (
            f"d/d{self.name}, {self.kind}: {verdict}\n"
            f"    numeric {self.numeric:.17g}, backward {self.backward:.17g}\n"
            f"    error {self.error:.3g}, bound {self.bound:.3g}, scale {self.scale:.3g}\n"
            f"    bound = {self.derivation}"
        )


class Result(NamedTuple):
    """The comparisons of one check; the worst one (largest error / bound) speaks for all."""

    comparisons: tuple

    @property
    def ok(self):
        return all(comparison.ok for comparison in self.comparisons)

    @property
    def worst(self):
        def severity(comparison):
            if np.isnan(comparison.error):
                return np.inf
            if comparison.error == 0:
                return 0.0
            return comparison.error / comparison.bound if comparison.bound > 0 else np.inf

        return max(self.comparisons, key=severity)

    @property
    def error(self):
        return self.worst.error

    @property
    def bound(self):
        return self.worst.bound

    @property
    def message(self):
        failed = [str(comparison) for comparison in self.comparisons if not comparison.ok]
        if failed:
            return "the backward pass is not the derivative:\n" + "\n".join(failed)
        return f"the backward pass is the derivative; closest call:\n{self.worst}"


def check(
    forward,
    backward,
    arguments,
    rng,
    names=None,
    complex_forward=None,
    method="complex_step",
    entries=64,
    probes=4,
):
    """Check that `backward` applies the transposed derivative of `forward`; return a `Result`.

    forward(*arguments) -> y, cache and backward(dy, cache) -> the gradients, one for each argument
    (a lone gradient need not be in a tuple; None is not checked): the functions of a wing.

    With J the derivative of y, a random cotangent dy and a random direction d,

        <dy, J d> = <J^T dy, d>,

    where J d comes from `method` and J^T dy from `backward`.  That is checked for each argument,
    and for an argument of at most `entries` entries every entry of the gradient is checked too.

    The bound of the error is (u + gamma_n) scale + 6 sqrt(n) noise, and for differences their own.
    u is the unit round-off of the gradient's dtype: the gradient itself is rounded;
    n = the number of entries of y and of the argument, about as many as the roundings in a result;
    gamma_n = n u' / (1 - n u') for the two inner products, added up in at least float64 (u');
    scale = sum |dy (J d)| + sum |(J^T dy) d|: what the two inner products add up;
    noise = the largest change of the backward value, over `probes` perturbations of every number by
    up to one ulp: how much one rounding can matter (an estimate, from random draws).  n of them add
    up to 6 sqrt(n) at most, but for a chance of 2 exp(-6^2/2) = 3e-8 (Higham & Mary, A new approach
    to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019, theorem 2.4).

    arguments: arrays of float32 or float64 (or float16, longdouble).
    rng: numpy.random.Generator; the cotangent, the directions and the perturbations come from it.
    names: the arguments' names for messages.
    complex_forward: the same function for complex arguments, where `forward` takes only real ones.
    method: "complex_step", or "finite_differences" for a forward pass that takes only real numbers
    (directions only, not entries; a difference needs a smooth neighbourhood, so no kinks nearby).

    >>> rng = np.random.default_rng(0)
    >>> def forward(x):
    ...     return np.tanh(x), x
    >>> def backward(dy, x):
    ...     return (1 - np.tanh(x) ** 2) * dy
    >>> check(forward, backward, [rng.standard_normal(5)], rng).ok
    True
    >>> check(forward, lambda dy, x: 1.0005 * backward(dy, x), [rng.standard_normal(5)], rng).ok
    False
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    names = names or tuple(f"argument{k}" for k in range(len(arguments)))
    if len(names) != len(arguments):
        raise ValueError(
            f"names: got {len(names)}, expected one for each of {len(arguments)} arguments"
        )
    arguments = [float_array(name, x) for name, x in zip(names, arguments, strict=True)]
    y, cache = forward(*arguments)
    dy = rng.standard_normal(y.shape).astype(y.dtype)
    gradients = _as_tuple(backward(dy, cache))
    if len(gradients) != len(arguments):
        raise ValueError(
            f"backward: got {len(gradients)} gradients, expected one for each of {names}"
        )
    perturbed = [
        _as_tuple(backward(_perturb(dy, rng), forward(*[_perturb(x, rng) for x in arguments])[1]))
        for _ in range(probes)
    ]
    comparisons = []
    for k, (name, x, gradient) in enumerate(zip(names, arguments, gradients, strict=True)):
        if gradient is None:
            continue
        if gradient.shape != x.shape:
            raise ValueError(f"d{name}: got shape {gradient.shape}, expected {name}'s, {x.shape}")
        function = _function_of(complex_forward or forward, arguments, k)
        changes = [np.abs(_wide(other[k]) - _wide(gradient)) for other in perturbed]
        compare = _Comparer(name, y.size + x.size, gradient.dtype)
        direction = rng.standard_normal(x.shape).astype(x.dtype)
        value = np.sum(_wide(gradient) * _wide(direction))
        noise = max(np.sum(change * np.abs(_wide(direction))) for change in changes)
        absolute = np.sum(np.abs(_wide(gradient) * _wide(direction)))
        if method == "finite_differences":
            comparisons.append(
                compare.difference(function, x, direction, dy, value, absolute, noise, probes, rng)
            )
            continue
        terms = _wide(dy) * complex_step(function, x, direction)
        scale = np.sum(np.abs(terms)) + absolute
        comparisons.append(compare("<dy, J d> = <J^T dy, d>", np.sum(terms), value, scale, noise))
        if x.size <= entries:
            comparisons.extend(
                compare(
                    f"entry {index}",
                    np.sum(terms := _wide(dy) * column),
                    _wide(gradient)[index],
                    np.sum(np.abs(terms)) + abs(_wide(gradient)[index]),
                    max(np.max(change) for change in changes),
                )
                for index, column in _columns(function, x)
            )
    return Result(tuple(comparisons))


def assert_gradient(forward, backward, arguments, rng, **options):
    """Raise AssertionError with the errors, their bounds and scales where `check` disagrees."""
    result = check(forward, backward, arguments, rng, **options)
    if not result.ok:
        raise AssertionError(result.message)


class _Comparer:
    """Makes the comparisons for one argument: it knows n and u."""

    def __init__(self, name, n, dtype):
        self.name, self.n, self.u = name, n, unit_roundoff(dtype)
        self.rounding = self.u + gamma(n, unit_roundoff(np.result_type(dtype, np.float64)))
        self.spread = CONFIDENCE * np.sqrt(n)

    def __call__(self, kind, numeric, value, scale, noise):
        bound = self.rounding * scale + self.spread * noise
        derivation = (
            f"(u + gamma_n) scale + 6 sqrt(n) noise, n = {self.n}, u = {self.u:.3g}, "
            f"noise = {float(noise):.3g}"
        )
        numbers = (float(v) for v in (numeric, value, scale, bound))
        return Comparison(self.name, kind, *numbers, derivation)

    def difference(self, function, x, direction, dy, value, absolute, noise, probes, rng):
        """Compare with a finite difference of t -> <dy, f(x + t d)>."""

        def loss(x):
            return float(np.sum(_wide(dy) * _wide(function(x))))

        terms = np.sum(np.abs(_wide(dy) * _wide(function(x))))
        centre = loss(x)
        wobble = max(abs(loss(_perturb(x, rng)) - centre) for _ in range(probes))
        loss_noise = self.rounding * terms + self.spread * wobble
        result = finite_difference(loss, x, direction, loss_noise)
        bound = self.rounding * absolute + self.spread * noise + result.noise + result.truncation
        derivation = (
            f"(u + gamma_n) scale + 6 sqrt(n) noise + 3 loss_noise/h + truncation, n = {self.n}, "
            f"u = {self.u:.3g}, noise = {float(noise):.3g}, 3 loss_noise/h = {result.noise:.3g}, "
            f"truncation = {result.truncation:.3g}"
        )
        kind = "<dy, J d> = <J^T dy, d> by differences"
        numbers = (float(v) for v in (result.derivative, value, absolute, bound))
        return Comparison(self.name, kind, *numbers, derivation)


def _as_tuple(gradients):
    return gradients if isinstance(gradients, tuple) else (gradients,)


def _wide(x):
    """Return x in at least float64, so that the comparison adds no rounding of its own."""
    return x.astype(np.result_type(x.dtype, np.float64))


def _perturb(x, rng):
    """Return x with every entry changed by up to one ulp."""
    wide = _wide(x)
    return (wide + wide * (2 * unit_roundoff(x.dtype)) * rng.uniform(-1, 1, x.shape)).astype(
        x.dtype
    )


def _function_of(forward, arguments, k):
    """Return x -> y with the k-th argument moving and the others held, in a dtype that fits x."""

    def function(x):
        held = [a.astype(np.result_type(a.dtype, x.dtype)) for a in arguments]
        held[k] = x
        return forward(*held)[0]

    return function


def _columns(function, x):
    """Yield (index, dy/dx_index), one complex step each."""
    for index in np.ndindex(x.shape):
        direction = np.zeros(x.shape)
        direction[index] = 1
        yield index, complex_step(function, x, direction)
