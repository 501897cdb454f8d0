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

from itertools import pairwise
from typing import NamedTuple

import numpy as np

METHODS = ("complex_step", "finite_differences")

# Small enough that step^2 vanishes beside 1 in any precision, large enough that step^2 itself,
# which a complex product forms, is not subnormal.
STEP = 1e-100

# Of the largest step of a difference: from eps_mach^(1/5) down to about 1e-8 in float64.
HALVINGS = 16

# n roundings of either sign add up to more than CONFIDENCE sqrt(n) of them with probability
# 2 exp(-CONFIDENCE^2 / 2), about 3e-8.
CONFIDENCE = 6


class FiniteDifference(NamedTuple):
    derivative: float
    truncation: float  # estimated from two step sizes
    noise: float  # of the rounding errors in f, divided by the step


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


def unit_roundoff(dtype):
    """Return u, the largest relative error of one rounding in `dtype`: half its machine epsilon.

    >>> unit_roundoff(np.float64) == 2.0**-53
    True
    """
    return float(np.finfo(dtype).eps) / 2


def gamma(n, u):
    """Return n u / (1 - n u), a bound of the relative effect of n roundings (Higham, lemma 3.1)."""
    if n * u >= 1:
        raise ValueError(f"n: {n} roundings of {u:.3g} leave no digit; expected n u < 1")
    return n * u / (1 - n * u)


def complex_step(f, x, direction=None, step=STEP):
    """Return the derivative of f at x along `direction`, as Im f(x + i step direction) / step.

    There is no subtraction, so the result is exact to the rounding errors of f.  f must be analytic
    and be written in operations that accept complex numbers (no abs, no conj, comparisons of the
    real part), as the reference wing is.

    x: an array of floats, computed in complex128, or in clongdouble where it is longdouble.
    direction: in the shape of x; without it all partial derivatives are returned, in the shape of
    f(x) followed by the shape of x, for one evaluation of f each.

    Source: W. Squire & G. Trapp, Using complex variables to estimate derivatives of real functions,
    SIAM Review 40 (1998).

    >>> x = np.array([1.0, 2.0])
    >>> complex_step(lambda x: (x * x * x).sum(), x).tolist()
    [3.0, 12.0]
    >>> float(complex_step(np.exp, np.array(0.0), direction=np.array(1.0)))
    1.0
    """
    x = _float_array("x", x)
    point = x.astype(np.result_type(x.dtype, np.complex128))
    if direction is not None:
        direction = np.asarray(direction)
        if direction.shape != x.shape:
            raise ValueError(f"direction: got shape {direction.shape}, expected x's, {x.shape}")
        with np.errstate(under="ignore"):
            return (
                np.asarray(f(point + 1j * (step * direction.astype(point.real.dtype)))).imag / step
            )
    columns = []
    with np.errstate(under="ignore"):
        for index in np.ndindex(x.shape):
            moved = point.copy()
            moved[index] += point.dtype.type(1j) * step
            columns.append(np.asarray(f(moved)).imag / step)
    if not columns:
        raise ValueError(f"x: got shape {x.shape}, which has no entries; expected at least one")
    return np.stack(columns, axis=-1).reshape(columns[0].shape + x.shape)


def finite_difference(f, x, direction, noise=None):
    """Return the derivative of f at x along `direction` by differences, and bounds of its error.

    D(h) = (f(x + h d) - f(x - h d)) / (2 h) = f' + c h^2 + ..., so that (4 D(h/2) - D(h)) / 3 loses
    the h^2 term.  Its error has two parts: truncation, estimated as |D(h/2) - D(h)| / 3 (the error
    of D(h/2), larger than what is left), and noise: errors of size `noise` in the values of f enter
    as (4/3) (2/h) noise + (1/3) (1/h) noise = 3 noise / h.

    The step starts at h |d| = eps_mach^(1/5) |x| (largest entries), where truncation h^4 and noise
    eps_mach / h meet for a function that varies as x does, so it works equally at any scale of x;
    it is halved `HALVINGS` times, and the step with the smallest sum of both bounds is taken, the
    truncation being the largest of three estimates from that step downwards, and of all those below
    that noise does not explain.  (A function that varies within some hundred ulps of x is beyond
    differences; the estimates can then be wrong.)

    f: array -> number.  noise: a bound of the rounding error of f; eps_mach |f(x)| when not given.

    >>> result = finite_difference(lambda x: (x * x).sum(), np.array([3.0]), np.array([1.0]))
    >>> abs(result.derivative - 6) <= result.truncation + result.noise
    True
    """
    x = _float_array("x", x)
    direction = np.asarray(direction, dtype=x.dtype)
    if direction.shape != x.shape:
        raise ValueError(f"direction: got shape {direction.shape}, expected x's, {x.shape}")
    length = np.max(np.abs(direction))
    if length == 0:
        raise ValueError("direction: got all zeros, expected a direction to move in")
    eps = float(np.finfo(x.dtype).eps)
    size = np.max(np.abs(x))
    if noise is None:
        noise = eps * abs(float(f(x)))

    def central(h):
        forward, back = x + x.dtype.type(h) * direction, x - x.dtype.type(h) * direction
        return (float(f(forward)) - float(f(back))) / (2 * h)

    largest = float(x.dtype.type(eps**0.2 * float(size if size > 0 else 1) / float(length)))
    steps = [largest / 2**k for k in range(HALVINGS + 1)]
    values = [central(h) for h in steps]
    estimates = [abs(fine - coarse) / 3 for coarse, fine in pairwise(values)]
    noises = [3 * float(noise) / h for h in steps]
    # What changes at smaller steps, and is more than noise, was truncation at the larger ones.
    unexplained = [max(e - n, 0) for e, n in zip(estimates, noises, strict=False)]
    candidates = [
        FiniteDifference(
            derivative=(4 * values[k + 1] - values[k]) / 3,
            truncation=max(*estimates[k : k + 3], *unexplained[k:]),
            noise=noises[k],
        )
        for k in range(HALVINGS - 2)
    ]
    return min(candidates, key=lambda result: result.truncation + result.noise)


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
    arguments = [_float_array(name, x) for name, x in zip(names, arguments, strict=True)]
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


def _float_array(name, x):
    x = np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(
            f"{name}: got dtype {x.dtype}, expected real floating-point numbers: bind other "
            "arguments with a lambda"
        )
    return x


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
