r"""Checking a backward pass: is the gradient the derivative of the forward pass?

With this module one can

- differentiate without subtraction                     complex_step(f, x, direction)
- differentiate by differences, with an error bound     finite_difference(f, x, direction)
- check a forward pass against its backward pass        check(forward, backward, arguments, rng)
- the same as an assertion with a full account          assert_gradient(...)

Four rules are built in, because tests of gradients are blind without them.

The cotangent dy is random.  A normalized layer is invariant to shifts and rescalings, so that the
gradient of a symmetric loss (the sum of the outputs, the sum of their squares) is 0, whatever the
backward pass does to it: 0 is compared with 0.

The tolerance follows the gradient.  The gradient of a scale-invariant loss is proportional to
1/|w|; against a fixed absolute tolerance a backward pass that returns 0 passes as soon as |w| is
large.  Here every bound is proportional to the quantities that are compared.

The direction follows the gradient, entry by entry in sign.  Along a random direction the terms of
<J^T dy, d> cancel, so that their sum grows as sqrt(n), and beyond some 1e5 entries of float32
rounding hides a factor of 2; along d_i = |d_i| sign g_i it grows as n, as the bound does.

What cannot be told is not called right: where the bound reaches what is compared, where two
forward passes at one x differ, and where complex steps are not derivatives, since the forward pass
is not analytic, the check says so.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from minimal_nn.comparison import Comparison, Result, Sensitivity
from minimal_nn.derivatives import (
    FiniteDifference,
    complex_step,
    finite_difference,
    float_array,
    gamma,
    unit_roundoff,
)
from minimal_nn.typing import Seed

__all__ = [
    "Comparison",
    "FiniteDifference",
    "Result",
    "Sensitivity",
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

# Groups of entries are made so small that an error of this part of the mean entry is above their
# bound, as far as there may be so many groups.
VISIBLE = 0.1

DIRECTION = "<dy, J d> = <J^T dy, d>"


def check(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    arguments: Sequence[Any],
    rng: Seed,
    names: Sequence[str] | None = None,
    complex_forward: Callable[..., Any] | None = None,
    method: str = "complex_step",
    entries: int = 64,
    groups: int = 256,
    probes: int = 4,
) -> Result:
    """Check that `backward` applies the transposed derivative of `forward`; return a `Result`.

    forward(*arguments) -> y, cache and backward(dy, cache) -> the gradients, one for each argument
    (a lone gradient need not be in a tuple; None is not checked): the functions of a wing.

    With J the derivative of y, a random cotangent dy and a direction d,

        <dy, J d> = <J^T dy, d>,

    where J d comes from `method` and g = J^T dy from `backward`.  For each argument that is checked
    along d_i = |d_i| sign g_i with random |d_i|; for up to `entries` entries one by one (random
    ones of an argument that has more); and for all entries in groups, each along the part of d that
    belongs to it.  There are as many groups, up to `groups`, as make an error of a tenth of the
    mean entry visible in one; `sensitivities` says what is.

    The bound of the error is (u + gamma_n) scale + 6 sqrt(n) noise, and for differences their own.
    u is the unit round-off of the gradient's dtype: the gradient itself is rounded;
    n = the number of entries of y and of the argument, about as many as the roundings in a result;
    gamma_n = n u' / (1 - n u') for the two inner products, added up in at least float64 (u');
    scale = sum |dy (J d)| + sum |(J^T dy) d|: what the two inner products add up;
    noise = the largest change of the backward value, over `probes` perturbations of every number by
    up to one ulp: how much one rounding can matter (an estimate, from random draws).  n of them add
    up to 6 sqrt(n) at most, but for a chance of 2 exp(-6^2/2) = 3e-8 (Higham & Mary, A new approach
    to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019, theorem 2.4).
    A bound that reaches the scale, and |<dy, y>| for an argument of the size of x, tells nothing.

    Where a comparison fails, a difference along its direction tells whether complex steps are
    derivatives at all.  They are not if the forward pass is not analytic; then differences judge.

    arguments: arrays of float32 or float64 (or float16, longdouble).
    rng: numpy.random.Generator, or a seed; the cotangent, the directions and the perturbations come
    from it.
    names: the arguments' names for messages.
    complex_forward: the same function for complex arguments, where `forward` takes only real ones.
    method: "complex_step", or "finite_differences" for a forward pass that takes only real numbers
    (along d only, no entries and groups; a difference needs a smooth neighbourhood, no kinks).
    entries, groups: see above; each costs a forward pass.
    Raises ValueError and TypeError for arguments that do not fit, and for a forward pass that gives
    two outputs for one x, as dropout does that draws at each call.

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
    rng = np.random.default_rng(rng)
    arguments = [float_array(name, x) for name, x in zip(names, arguments, strict=True)]
    for name, x in zip(names, arguments, strict=True):
        if x.size == 0:
            raise ValueError(f"{name}: got shape {x.shape}, expected at least one entry")
    y, cache = forward(*arguments)
    _check_repeatable(y, forward(*arguments)[0])
    dy = np.asarray(rng.standard_normal(y.shape)).astype(y.dtype)
    gradients = _as_tuple(backward(dy, cache))
    if len(gradients) != len(arguments):
        raise ValueError(
            f"backward: got {len(gradients)} gradients, expected one for each of {names}"
        )
    perturbed = [
        _as_tuple(backward(_perturb(dy, rng), forward(*[_perturb(x, rng) for x in arguments])[1]))
        for _ in range(probes)
    ]
    comparisons: list[Comparison] = []
    sensitivities: list[Sensitivity] = []
    not_analytic: list[str] = []
    for k, (name, x, gradient) in enumerate(zip(names, arguments, gradients, strict=True)):
        if gradient is None:
            continue
        if gradient.shape != x.shape:
            raise ValueError(f"d{name}: got shape {gradient.shape}, expected {name}'s, {x.shape}")
        changes = [np.abs(_wide(other[k]) - _wide(gradient)) for other in perturbed]
        function = _function_of(complex_forward or forward, arguments, k)
        real_function = _function_of(forward, arguments, k)
        argument = _Argument(name, x, gradient, changes, dy, y, function, real_function, rng)
        if method == "finite_differences":
            own = [argument.difference()]
        else:
            try:
                own, failed = argument.compare(entries, groups)
            except TypeError as error:
                raise TypeError(
                    f"forward: does not take complex numbers for {name} ({error}); give the same "
                    "function for them as complex_forward=, or method='finite_differences'"
                ) from error
            if failed is not None and not argument.analytic(failed):
                not_analytic.append(name)
                own = [argument.difference()]
        comparisons.extend(own)
        sensitivities.append(argument.sensitivity(own))
    return Result(tuple(comparisons), tuple(sensitivities), tuple(not_analytic))


def assert_gradient(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    arguments: Sequence[Any],
    rng: Seed,
    **options: Any,
) -> None:
    """Raise AssertionError with the errors, their bounds and scales where `check` disagrees."""
    result = check(forward, backward, arguments, rng, **options)
    if not result.ok:
        raise AssertionError(result.message)


class _Argument:
    """One argument with its gradient: what is compared of it, and how far it can be trusted.

    What is compared is a span (a, b) of the entries in their order: all of them, a group, or one.
    changes: of the gradient, an array for each perturbation.  function: x -> y by complex steps;
    real_function: the same of real numbers.
    """

    def __init__(self, name, x, gradient, changes, dy, y, function, real_function, rng):
        self.name, self.x, self.gradient = name, x, _wide(gradient)
        self.flat_gradient, self.dy = self.gradient.reshape(-1), _wide(dy)
        self.changes = [change.reshape(-1) for change in changes]
        self.largest_change = max(np.max(change) for change in changes)
        self.function, self.real_function, self.rng = function, real_function, rng
        self.n, self.u = y.size + x.size, unit_roundoff(gradient.dtype)
        accurate = unit_roundoff(np.result_type(gradient.dtype, np.float64))
        self.rounding = self.u + gamma(self.n, accurate)
        self.spread = CONFIDENCE * np.sqrt(self.n)
        signs = np.sign(np.where(np.isfinite(self.gradient), self.gradient, 0))
        signs = np.where(signs == 0, rng.choice((-1, 1), x.shape), signs)
        self.direction = (signs * rng.uniform(0.5, 1, x.shape)).astype(x.dtype)
        # <dy, y> over the size of x: the derivative of a function that varies as x does.
        largest = np.max(np.abs(_wide(x)))
        self.natural = np.sum(np.abs(self.dy * _wide(y))) / (largest if largest > 0 else 1)

    def compare(self, entries, groups):
        """Return the comparisons by complex steps, and the span of the worst one that fails."""
        size = self.x.size
        whole = (0, size)
        found = {whole: self._along(whole, DIRECTION)}
        if size > entries:
            count = self._group_count(found[whole], groups)
            edges = np.linspace(0, size, count + 1).astype(int).tolist()
            parts = list(pairwise(edges)) if count > 1 else []
            found.update((span, self._along(span, self._range_name(*span))) for span in parts)
            chosen = np.sort(self.rng.choice(size, entries, replace=False)).tolist()
        else:
            chosen = range(size)
        looked_at = {(i, i + 1): self._entry(i) for i in chosen}
        wrong = [span for span, c in found.items() if not c.agrees]
        if wrong and all(c.agrees for c in looked_at.values()):
            index = self._worst_entry(*max(wrong, key=lambda s: (s != whole, found[s].severity)))
            looked_at[index, index + 1] = self._entry(index)
        # What an entry's bound is held against is the largest entry.
        largest = max((c.scale for c in looked_at.values()), default=0)
        both = [*found.items(), *looked_at.items()]
        comparisons = [c if c.tells else c._replace(tells=c.bound < largest) for _, c in both]
        failed = [(c.severity, span) for span, c in both if not c.agrees]
        return comparisons, max(failed)[1] if failed else None

    def _group_count(self, whole, most):
        """Return how many groups make an error of VISIBLE of the mean entry larger than a bound."""
        total = np.sum(np.abs(self.gradient * _wide(self.direction)))
        wanted = whole.bound * self.x.size / (VISIBLE * total) if total > 0 else 1
        return max(1, int(min(most, self.x.size // 2, np.ceil(wanted)))) if wanted > 0 else 1

    def _span_direction(self, span):
        a, b = span
        flat = np.zeros(self.x.size, self.x.dtype)
        flat[a:b] = self.direction.reshape(-1)[a:b] if b - a > 1 else 1
        return flat.reshape(self.x.shape)

    def _along(self, span, kind, noise=None):
        """Compare along the part of the direction that belongs to a span."""
        direction = self._span_direction(span)
        terms = self.dy * complex_step(self.function, self.x, direction)
        d = _wide(direction).reshape(-1)[slice(*span)]
        products = self.flat_gradient[slice(*span)] * d
        scale = np.sum(np.abs(terms)) + np.sum(np.abs(products))
        if noise is None:
            noise = max(np.sum(change[slice(*span)] * np.abs(d)) for change in self.changes)
        bound = self.rounding * scale + self.spread * noise
        derivation = (
            f"(u + gamma_n) scale + 6 sqrt(n) noise, n = {self.n}, u = {self.u:.3g}, "
            f"noise = {float(noise):.3g}"
        )
        numbers = (float(v) for v in (np.sum(terms), np.sum(products), scale, bound))
        tells = bool(bound < max(scale, self.natural) or scale == 0)
        return Comparison(self.name, kind, *numbers, derivation, tells)

    def _entry(self, index):
        return self._along((index, index + 1), f"entry {self._index(index)}", self.largest_change)

    def _index(self, flat):
        return tuple(int(i) for i in np.unravel_index(flat, self.x.shape))

    def _range_name(self, a, b):
        return f"entries {self._index(a)} to {self._index(b - 1)}"

    def _error(self, span):
        direction = self._span_direction(span)
        numeric = np.sum(self.dy * complex_step(self.function, self.x, direction))
        return abs(numeric - np.sum(self.gradient * _wide(direction)))

    def _worst_entry(self, a, b):
        """Return an entry that is wrong, by halving the span whose error is the larger."""
        while b - a > 1:
            middle = (a + b) // 2
            left, right = self._error((a, middle)), self._error((middle, b))
            a, b = (a, middle) if left >= right or np.isnan(left) else (middle, b)
        return a

    def analytic(self, span):
        """Return whether a difference along a span leaves it possible that complex steps are right.

        In at least float64, which the complex steps are computed in.
        """
        direction = self._span_direction(span)
        step = np.sum(self.dy * complex_step(self.function, self.x, direction))
        difference = self._difference(direction)
        return abs(difference.derivative - step) <= difference.noise + difference.truncation

    def difference(self):
        """Compare with a finite difference of t -> <dy, f(x + t d)>."""
        result = self._difference(self.direction)
        products = self.gradient * _wide(self.direction)
        absolute, d = np.sum(np.abs(products)), np.abs(_wide(self.direction)).reshape(-1)
        noise = max(np.sum(change * d) for change in self.changes)
        bound = self.rounding * absolute + self.spread * noise + result.noise + result.truncation
        derivation = (
            f"(u + gamma_n) scale + 6 sqrt(n) noise + 3 loss_noise/h + truncation, n = {self.n}, "
            f"u = {self.u:.3g}, noise = {float(noise):.3g}, 3 loss_noise/h = {result.noise:.3g}, "
            f"truncation = {result.truncation:.3g}"
        )
        numbers = (float(v) for v in (result.derivative, np.sum(products), absolute, bound))
        tells = bool(bound < max(absolute, self.natural) or bound == 0)
        return Comparison(self.name, f"{DIRECTION} by differences", *numbers, derivation, tells)

    def _difference(self, direction):
        """Return the `FiniteDifference` along a direction, in float64 if f takes it."""
        x = _wide(self.x)
        try:
            y = self.real_function(x)
            narrower = unit_roundoff(y.dtype) > unit_roundoff(x.dtype)
        except TypeError:
            narrower = True
        if narrower:
            x = self.x
            y = self.real_function(x)

        def loss(x):
            return float(np.sum(self.dy * _wide(self.real_function(x))))

        terms = np.sum(np.abs(self.dy * _wide(y)))
        wobble = max(abs(loss(_perturb(x, self.rng)) - loss(x)) for _ in self.changes)
        rounding = unit_roundoff(y.dtype) + gamma(self.n, unit_roundoff(np.float64))
        noise = rounding * terms + self.spread * wobble
        return finite_difference(loss, x, direction.astype(x.dtype), noise)

    def sensitivity(self, comparisons):
        """Return what the comparisons would have seen."""
        whole = comparisons[0]
        mean = np.mean(np.abs(self.gradient))
        d = np.abs(_wide(self.direction))
        entries = [c for c in comparisons if c.kind.startswith("entry")]
        groups = [c for c in comparisons if c.kind.startswith("entries")] or [whole]
        if len(entries) == self.x.size:
            smallest = max(c.bound for c in entries)
        else:
            smallest = max(c.bound for c in groups) / np.min(d)
        total = np.sum(np.abs(self.gradient) * d)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = (float(np.divide(a, b)) for a, b in ((whole.bound, total), (smallest, mean)))
            return Sensitivity(self.name, *ratios)


def _check_repeatable(one, other):
    """Refuse a forward pass whose two outputs for the same arguments differ."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape:
        raise ValueError(
            f"forward: gave outputs of shapes {one.shape} and {other.shape} for the same arguments,"
            " expected one output"
        )
    different = (one != other) & ~(np.isnan(one) & np.isnan(other))
    if np.any(different):
        raise ValueError(
            f"forward: gave two outputs for the same arguments, which differ in "
            f"{np.count_nonzero(different)} of {one.size} numbers; expected the same bits: draw "
            "random numbers outside of it (dropout's mask), or from a generator that each call "
            "makes anew from one seed"
        )


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
