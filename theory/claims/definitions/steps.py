r"""Every optimizer's steps by definition: sums over all past gradients, in exact rationals."""

import dataclasses
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np

import minimal_nn as nn
from minimal_nn import backend as backends
from theory.claim import WORST_CASE, claim
from theory.measures.closest import Closest
from theory.measures.identity import Identity
from theory.numbers.balls import Balls
from theory.numbers.bounded import Bounded
from theory.subjects.networks import dtype_name

_SHAPE, _STEPS, _BITS = (3, 2), 4, 200  # _BITS: of a rational's root
# Dyadic, with few digits: exact in every dtype, and so are 1 - beta^t.  Rates that tell a factor.
_HYPER = {
    "learning_rate": 0.125,
    "momentum": 0.75,
    "decay": 0.875,
    "beta1": 0.75,
    "beta2": 0.9375,
    "eps": 2.0**-7,
    "eps_inside_root": 2.0**-9,
    "eps_numerator": 2.0**-8,
    "eps_denominator": 2.0**-7,
    "decoupled_weight_decay": 0.5,
}
_L2 = 0.125
# What the authors recommend, and this package takes where nothing is said.
_BETAS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
RECOMMENDED = {"Adam": _BETAS, "AdamW": _BETAS, "Adadelta": {"decay": 0.95}}


def _weighted(gradients, base):
    """Return sum_k base^(t - k) g_k over the gradients g_1 ... g_t."""
    return sum(base ** (len(gradients) - 1 - k) * g for k, g in enumerate(gradients))


def _averaged(gradients, base):
    """Return the mean of g_1 ... g_t with the weights base^(t - k)."""
    return _weighted(gradients, base) / sum(base**k for k in range(len(gradients)))


def _squares(gradients):
    return [g * g for g in gradients]


def _length(array, root):
    """Return |.| of each unit."""
    return root((array * array).sum(axis=0))


def _adadelta(gradients, h, root):
    moved = []
    for t in range(1, len(gradients) + 1):
        past = (1 - h.decay) * (_weighted(_squares(moved), h.decay) if moved else 0)
        square = (1 - h.decay) * _weighted(_squares(gradients[:t]), h.decay)
        above = root(past + h.eps_numerator + 0 * square)
        moved.append(above * gradients[t - 1] / root(square + h.eps_denominator))
    return moved[-1]


def _adam(gradients, h, root):
    second = _averaged(_squares(gradients), h.beta2) + h.eps_inside_root
    return _averaged(gradients, h.beta1) / (root(second) + h.eps)


def _rmsprop(gradients, h, root):
    second = (1 - h.decay) * _weighted(_squares(gradients), h.decay) + h.eps_inside_root
    return gradients[-1] / (root(second) + h.eps)


# The step, per learning rate, after the gradients g_1 ... g_t at w_1 ... w_t: (g, w, h, root)
DEFINITIONS = {
    "SGD": lambda g, w, h, root: g[-1],
    "Momentum": lambda g, w, h, root: _weighted(g, h.momentum),
    "Nesterov": lambda g, w, h, root: g[-1] + h.momentum * _weighted(g, h.momentum),
    "RMSprop": lambda g, w, h, root: _rmsprop(g, h, root),
    "Adagrad": lambda g, w, h, root: g[-1] / (root(sum(_squares(g)) + h.eps_inside_root) + h.eps),
    "Adadelta": lambda g, w, h, root: _adadelta(g, h, root),
    "Adam": lambda g, w, h, root: _adam(g, h, root),
    "AdamW": lambda g, w, h, root: _adam(g, h, root) + h.decoupled_weight_decay * w,
    "SignSGD": lambda g, w, h, root: g[-1] / root(g[-1] * g[-1]),
    "NormalizedSGD": lambda g, w, h, root: g[-1] / _length(g[-1], root),
    "LARS": lambda g, w, h, root: g[-1] * _length(w, root) / _length(g[-1], root),
}
# By whose definition the control goes; that of a variant by its optimizer's.
_OTHER = dict(zip(DEFINITIONS, [*list(DEFINITIONS)[1:], "SGD"], strict=True))
FIXED_NORM = "SGD, |w| = 1"
_INSIDE = ", eps in root"
VARIANTS = (FIXED_NORM, *(f"{kind}{_INSIDE}" for kind in ("RMSprop", "Adagrad", "Adam", "AdamW")))


def _kind(name):
    """Return the optimizer of a variant."""
    return name.partition(",")[0]


def defined_run(name, start, gradients, numbers, root):
    """Return w after each step by the definitions, arrays of exact numbers.

    name: an optimizer of `DEFINITIONS`, or of `VARIANTS`.  start, gradients: w_1, and the loss's
    gradients at each step, arrays of exact numbers.  numbers: a float -> an exact number.  root:
    the root of each entry.  The penalty is l2 |w|^2, AdamW's decay decoupled.
    """
    h = SimpleNamespace(**{key: numbers(value) for key, value in _HYPER.items()})
    if not name.endswith(_INSIDE):
        h.eps_inside_root = numbers(0.0)
    w, past, run = start, [], []
    kind = _kind(name)
    for g in gradients:
        past.append(g if kind == "AdamW" else g + 2 * numbers(_L2) * w)
        w = w - h.learning_rate * DEFINITIONS[kind](past, w, h, root)
        if name == FIXED_NORM:
            w = w / _length(w, root)
        run.append(w)
    return run


def _optimizer(name):
    kind = getattr(nn, _kind(name))
    hyper = {key: _HYPER[key] for key in kind.defaults}
    if kind is not nn.AdamW:
        hyper["l2"] = _L2
    if name == FIXED_NORM:
        hyper["fixed_norm"] = 1.0
    if name.endswith(_INSIDE):
        hyper["eps_inside_root"] = _HYPER["eps_inside_root"]
    return kind(**hyper)


def optimizer_run(name, start, gradients, wing):
    """Return w after each step of minimal_nn's optimizer, in the arrays of a wing."""
    optimizer, run = _optimizer(name), []
    model = SimpleNamespace(parameters={"w": start}, backend=wing)
    for g in gradients:
        optimizer.step(model, {"w": g})
        run.append(model.parameters["w"])
    return run


@dataclasses.dataclass(frozen=True)
class RunSubject:
    """An optimizer on random gradients: in a dtype, or in balls."""

    optimizer: str
    dtype: str = "float64"
    backend: str = "reference"
    seed: int = 0
    numbers: object = None

    name = property(lambda self: self.optimizer.lower())
    exact = property(lambda self: self.numbers is not None)

    @property
    def arithmetic(self):
        return f"ball {self.numbers.bits}" if self.exact else dtype_name(np.dtype(self.dtype))

    def drawn(self):
        """Return w_1 and the gradients (steps, *shape)."""
        rng = np.random.default_rng([self.seed, 7])
        values = rng.standard_normal((_STEPS + 1, *_SHAPE)).astype(self.dtype)
        return values[0], values[1:]


def run_subjects(options):
    """Return every optimizer in every dtype, or in balls."""
    names = [*DEFINITIONS, *VARIANTS]
    if options.arithmetic == "ball":
        balls = Balls(options.bits)
        return [RunSubject(name, seed=options.seed, numbers=balls) for name in names]
    return [
        RunSubject(name, dtype, options.backend, options.seed)
        for name in names
        for dtype in options.dtypes
    ]


def _rational_root(x):
    """Return the root of a rational, too small by at most 2^-_BITS of it."""
    shift = max(_BITS + x.denominator.bit_length() - x.numerator.bit_length(), 0)
    return Fraction(math.isqrt((x.numerator << 2 * shift) // x.denominator), 1 << shift)


def _rationals(values):
    """Return numbers that are float64's, of whatever dtype, as rationals."""
    return np.frompyfunc(Fraction, 1, 1)(values.astype(float))


def _in_rationals(name, subject):
    start, gradients = subject.drawn()
    root = np.frompyfunc(_rational_root, 1, 1)
    return defined_run(name, _rationals(start), map(_rationals, gradients), Fraction, root)


def _defaults_are_recommended(name):
    """Return whether an optimizer's defaults are those that its authors recommend."""
    recommended, defaults = RECOMMENDED.get(name, {}), getattr(nn, _kind(name)).defaults
    return all(defaults[key] == value for key, value in recommended.items())


def _distance(array, exact):
    """Return |array - exact| in rationals, as floats."""
    values = array.astype(np.longdouble)
    high = values.astype(float)
    rationals = _rationals(high) + _rationals(values - high)
    return np.abs(rationals - exact).astype(float)


@claim(
    id="step-by-definition",
    statement=r"w_{t+1} = w_t - \eta \, p_t, \quad p_t = \sum_k \rho^{t-k} g_k, \; g_t + \rho "
    r"\sum_k \rho^{t-k} g_k, \; \frac{\overline{g}_{\beta_1}}{\sqrt{\overline{g^2}_{\beta_2}} + "
    r"\varepsilon}, \; \ldots, \quad g_k = \nabla L(w_k) + 2 \lambda w_k",
    source="the optimizers' papers, written out as sums over all past gradients",
    cite="defined",
    assumptions=("random gradients", "the penalty is lambda |w|^2 (AdamW's is decoupled)"),
    control="the definition of another optimizer; with eps in the root, that without",
    derivation=r"""
Symmetries hold for twice a step as well, and exponents for any factor: here every step is compared
in length and direction, from whatever state the steps before have left. The recursions of the
optimizers' buffers are solved, so that the two derivations share nothing: momentum is $\sum_k
\rho^{t-k} g_k$; Adam's corrected moments are the means of $g_k$ and $g_k^2$ with the weights
$\beta^{t-k}$, $\overline{g}_\beta = \sum_k \beta^{t-k} g_k/\sum_k \beta^{t-k}$; RMSprop's is $(1 -
\delta) \sum_k \delta^{t-k} g_k^2$, Adagrad's $\sum_k g_k^2$, Adadelta's the same sums of its
gradients and of its own steps. An eps in the root is added to the sum of squares. AdamW adds
$\lambda_{dec} w_t$ to $p_t$; LARS is $|w| g/|g|$, and a fixed norm divides $w_{t+1}$ by its length.

The definitions run in rational numbers, roots to 200 bits. Bound: the optimizer itself, run on
numbers that carry their rounding error. The betas and eps that Adam and AdamW have by default, and
Adadelta's decay, must be those of their papers.
""",
    subjects=run_subjects,
    unfit=(
        (WORST_CASE, "float16"),
        ("roots of sums of squares, one in another, which no remainder decides", "symbol"),
    ),
)
def step_by_definition(subject):
    """|w - w by definition| at the entry and step, of four, that comes closest to its bound,
    relative to |w_5 - w_1|.
    """
    closest, name = Closest(), subject.optimizer
    start, gradients = subject.drawn()
    wing = backends.get(subject.backend)
    run = optimizer_run(name, wing.asarray(start), map(wing.asarray, gradients), wing)
    bounded = optimizer_run(
        name, Bounded(start), map(Bounded, gradients), backends.get("reference")
    )
    exact = _in_rationals(name, subject)
    size = float(np.linalg.norm((exact[-1] - _rationals(start)).astype(float)))
    for array, carried, w in zip(run, bounded, exact, strict=True):
        way = np.abs((w - _rationals(start)).astype(float))
        rows = _distance(wing.to_numpy(array), w), carried.error, way
        closest.offer(*(row / size for row in rows))
    if not _defaults_are_recommended(name):
        closest.offer(np.inf, closest.bound)
    other = _in_rationals(_OTHER.get(name, _kind(name)), subject)
    return closest.measurement(
        how="running error of the optimizer's steps, relative to the way that w has gone",
        control=float(np.max(_distance(wing.to_numpy(run[-1]), other[-1]))) / size,
        details={"steps": _STEPS, "defaults": dict(_optimizer(name).defaults)},
    )


@step_by_definition.exactly(subjects=run_subjects)
def _(subject):
    identity, name, numbers = Identity(), subject.optimizer, subject.numbers
    start, gradients = map(numbers.array, subject.drawn())
    update = backends.get("reference").update
    run = optimizer_run(
        name, start, gradients, SimpleNamespace(update=update, asarray=numbers.array)
    )
    exact = defined_run(name, start, gradients, numbers.number, np.sqrt)
    for array, w in zip(run, exact, strict=True):
        identity.vanishes(array - w)
    other = _OTHER.get(name, _kind(name))
    identity.remains(run[-1] - defined_run(other, start, gradients, numbers.number, np.sqrt)[-1])
    return identity
