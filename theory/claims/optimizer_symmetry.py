r"""The effective learning rate of every optimizer: symmetries of runs, exponents, and Adam's eps.

One rule settles all of them (the paper's section 5).  If the raw step p of an optimizer satisfies
p(a w) = a^-nu p(w), its state rescaled accordingly, then eta is felt only as eta/|w|^(1+nu).
"""

import dataclasses

import numpy as np

import minimal_nn as nn
from theory.claim import EXPRESSIONS, FITTED, UNDERFLOWS, Measurement, claim
from theory.claims.effective_rate import LAMBDA, differing_runs, factors_of, run, scaled_start
from theory.claims.invariance import EXACT, limits
from theory.numbers.bounded import Bounded, unit_roundoff
from theory.subjects.networks import (
    NORMALIZATIONS,
    exact_range,
    network_subject,
    numbers,
    off_zero,
    rescaled,
    weight_groups,
)


class _EpsInside:
    """An optimizer with eps inside the root, sqrt(v + eps), by a formula of this module."""

    formula = ""  # no plan compiles it

    def rule(self, wing):
        def update(*arrays, **hyper):
            arrays = [wing.to_numpy(x) if hasattr(x, "shape") else x for x in arrays]
            return tuple(wing.asarray(x) for x in self.inside(*arrays, **hyper))

        return update


def _over_root(g, square, eps):
    root = np.sqrt(square + eps)
    return np.where(root == 0, 0, g / np.where(root == 0, 1, root))


class RMSpropEpsInside(_EpsInside, nn.RMSprop):
    """RMSprop with w - eta g / sqrt(s + eps)."""

    @staticmethod
    def inside(w, g, square, learning_rate, decay, eps):
        square = decay * square + (1 - decay) * (g * g)
        return w - learning_rate * _over_root(g, square, eps), square


class AdagradEpsInside(_EpsInside, nn.Adagrad):
    """Adagrad with w - eta g / sqrt(s + eps), as Duchi et al. (2011) write it."""

    @staticmethod
    def inside(w, g, square, learning_rate, eps):
        square = square + g * g
        return w - learning_rate * _over_root(g, square, eps), square


class AdamEpsInside(_EpsInside, nn.Adam):
    """Adam with w - eta m' / sqrt(v' + eps)."""

    @staticmethod
    def inside(w, g, m, v, t, learning_rate, beta1, beta2, eps):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (g * g)
        step = _over_root(m / (1 - beta1**t), v / (1 - beta2**t), eps)
        return w - learning_rate * step, m, v


_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Symmetry:
    """A run from a w_0 with hyper-parameters times powers of a is a times the run from w_0.

    name: the optimizer's, in the table.  variants: (class, hyper-parameters, powers) to be tried;
    each hyper-parameter in `powers` is multiplied by a to that power in the rescaled run.  degree:
    nu.
    """

    name: str
    variants: tuple
    degree: float

    def plain(self):
        """Return the optimizer without decay, at eps = 0 (Adadelta's numerator keeps its own)."""
        optimizer, hyper, _ = self.variants[0]
        off = ("l2", "decoupled_weight_decay", "eps", "eps_denominator")
        return optimizer(**{key: 0.0 if key in off else value for key, value in hyper.items()})


def _adaptive(name, optimizer, inside=None, eps=2.0**-12, l2=LAMBDA, powers=(), **hyper):
    """Return the symmetry of an optimizer of degree 0: eps outside the root, 0, and inside."""
    hyper = {**hyper, **({} if l2 is None else {"l2": l2})}
    powers = {"learning_rate": 1, **({} if l2 is None else {"l2": -2}), **dict(powers)}
    variants = [
        (optimizer, {**hyper, "eps": eps}, {**powers, "eps": -1}),
        (optimizer, {**hyper, "eps": 0.0}, powers),
    ]
    if inside is not None:
        variants.append((inside, {**hyper, "eps": eps**2}, {**powers, "eps": -2}))
    return Symmetry(name, tuple(variants), 0.0)


def _plain(name, optimizer, degree, **hyper):
    powers = {"learning_rate": 1 + degree, "l2": -2}
    return Symmetry(name, ((optimizer, {**hyper, "l2": LAMBDA}, powers),), float(degree))


# Table A5: what happens to (eta, lambda, eps) when w_0 becomes a w_0.
SYMMETRIES = (
    _plain("sgd", nn.SGD, 1, learning_rate=0.25),
    _plain("momentum", nn.Momentum, 1, learning_rate=0.125, momentum=0.9),
    _plain("nesterov", nn.Nesterov, 1, learning_rate=0.125, momentum=0.9),
    _adaptive("rmsprop", nn.RMSprop, RMSpropEpsInside, learning_rate=0.01, decay=0.9),
    _adaptive("adagrad", nn.Adagrad, AdagradEpsInside, learning_rate=0.01),
    Symmetry(
        "adadelta",
        (
            (
                nn.Adadelta,
                {"decay": 0.9, "eps_numerator": 1e-5, "eps_denominator": 1e-6, "l2": LAMBDA},
                {"eps_numerator": 2, "eps_denominator": -2, "l2": -2},
            ),
        ),
        0.0,
    ),
    _adaptive("adam + L2", nn.Adam, AdamEpsInside, learning_rate=0.01),
    _adaptive(
        "adamw",
        nn.AdamW,
        # 1 - eta decay is the same number in Python's float and in every dtype.
        learning_rate=2.0**-7,
        decoupled_weight_decay=0.5,
        l2=None,
        powers={"decoupled_weight_decay": -1},
    ),
    _plain("sign", nn.SignSGD, 0, learning_rate=0.01),
    _plain("normalized", nn.NormalizedSGD, 0, learning_rate=0.05),
    _plain("lars", nn.LARS, -1, learning_rate=0.05),
)


@dataclasses.dataclass(frozen=True)
class OptimizerSubject:
    """An optimizer on the three built-in networks of one dtype."""

    symmetry: Symmetry
    networks: tuple
    arithmetic: str

    @property
    def name(self):
        return self.symmetry.name


def _networks(options, dtype):
    return tuple(
        network_subject(normalization, dtype, backend=options.backend, seed=options.seed)
        for normalization in NORMALIZATIONS
    )


def optimizer_subjects(options):
    """Return every optimizer but plain SGD, which effective-learning-rate has, in every dtype."""
    return [
        OptimizerSubject(symmetry, _networks(options, dtype), dtype)
        for symmetry in SYMMETRIES[1:]
        for dtype in options.dtypes
    ]


def rescaled_optimizer(variant, factors):
    """Return the optimizer with hyper-parameters times powers of a, a different one by name."""
    optimizer, hyper, powers = variant
    groups = [
        nn.Group(
            [name],
            **{key: hyper.get(key, optimizer.defaults.get(key)) * np.power(a, float(power))
               for key, power in powers.items()},
        )
        for name, a in factors.items()
    ]
    return optimizer(**hyper, groups=groups)


def _per_unit_factors(network, rng):
    """Return a power of two for each unit, or one for a group that is rescaled jointly."""
    factors = {}
    for group in weight_groups(network):
        units = network.parameters[group.parameters[0]].shape[-1]
        a = 2.0 ** rng.integers(-6, 7, size=units if group.per_unit else None)
        factors.update(dict.fromkeys(group.parameters, a))
    return factors


def _range(count, least, limit, known):
    """Return (differing, low, high): searched, or the range that is known from other networks."""
    if known is not None:
        with np.errstate(all="ignore"):
            if count(known[0]) == 0 == count(known[1]):
                return 0, *known
    wrong, low, high = exact_range(count, least, limit)
    return (wrong, low, high) if known is None else (wrong, max(low, known[0]), min(high, known[1]))


def symmetry_of_runs(subject, network, variant, known=None):
    """Compare runs of a network; return (differing, low, high, control).

    known: the range of k that holds elsewhere; the whole range is searched if left out.
    """
    least, limit = limits(subject)
    one = rescaled_optimizer(variant, factors_of(network, 1.0))
    original = run(subject, network, one, steps=_STEPS)

    def compared(factors, optimizer):
        scaled = run(subject, scaled_start(network, factors), optimizer, steps=_STEPS)
        return differing_runs(network, original, scaled, factors)

    def count(k):
        factors = factors_of(network, 2.0**k)
        try:
            return compared(factors, rescaled_optimizer(variant, factors))
        except (ValueError, ArithmeticError):  # a run that breaks off agrees in nothing
            return sum(array.size for array in original.parameters.values())

    wrong, low, high = _range(count, least, limit, known)
    factors = _per_unit_factors(network, np.random.default_rng(0))
    wrong += compared(factors, rescaled_optimizer(variant, factors))
    plain = rescaled_optimizer(variant, factors_of(network, 1.0))
    return wrong, low, high, compared(factors_of(network, 2.0), plain)


@claim(
    id="optimizer-symmetry",
    statement=r"p(a w) = a^{-\nu} p(w) \;\Rightarrow\; (a w_0, a^{1+\nu} \eta, \lambda / a^2, "
    r"\varepsilon') \mapsto a \cdot \mathrm{run}(w_0, \eta, \lambda, \varepsilon): \quad "
    r"\eta_{\mathrm{eff}} = \eta / |w|^{1+\nu}",
    source="van Laarhoven 2017, sec. 5; the table of symmetries is ours",
    cite="vL17 s5",
    assumptions=(
        "the invariant weights form groups with their own hyper-parameters; all others keep theirs",
        "eps' = eps/a outside the root, eps/a^2 inside, a^2 eps in Adadelta's numerator, or 0",
        "coupled decay lambda/a^2; decoupled decay (AdamW) lambda/a",
        "the optimizer's state starts at 0",
    ),
    control="the plain hyper-parameters at 2 w_0: the runs differ",
    derivation=r"""
By induction: $w_t' = a w_t$ gives $\nabla L(w_t') = \nabla L(w_t)/a$, and with $\lambda/a^2$ the
penalised gradient $g$ is divided by $a$ as well. Momentum and Nesterov buffers are linear in $g$:
steps scale with $1/a$, $\nu = 1$. Second moments scale with $1/a^2$, so $g/(\sqrt{s} +
\varepsilon/a)$ and $g/\sqrt{s + \varepsilon/a^2}$ are unchanged: $\nu = 0$ for RMSprop, Adagrad and
Adam; also for $g/|g|$ and the sign. LARS multiplies by $|w|$: $\nu = -1$, and $\eta$ is felt as it
is.

Adadelta's step is $\sqrt{u + \varepsilon_1}/\sqrt{s + \varepsilon_2} \, g$, where $u$ is the mean
square of its own steps: it has no $\eta$, its scale is $\sqrt{\varepsilon_1}$, so $\varepsilon_1$
takes $a^2$.

The run is $a$ times the original if $a^{1+\nu} \eta$ multiplies $a^{-\nu} p$, and if decay shrinks
$w$ by the same factor: $\lambda/a^2$ in the gradient, $\lambda/a$ decoupled at $\nu = 0$. With $a =
2^k$, one for each unit, runs agree bit by bit.
""",
    subjects=optimizer_subjects,
    unfit=(
        (UNDERFLOWS, "float16"),
        (EXPRESSIONS, "symbol"),
    ),
)
def optimizer_symmetry(subject):
    """Numbers of a run from 2^k w_0 with the table's hyper-parameters that are not those of the
    plain run, for every placement of eps.
    """
    first, *others = subject.symmetry.variants
    known, wrong, control = None, 0, []
    for network in subject.networks:
        states = (network.network, network.untrained)
        for state in off_zero(states) if subject.symmetry.name == "lars" else states:
            different, *known, broken = symmetry_of_runs(network, state, first, known)
            wrong, control = wrong + different, [*control, broken]
        least = limits(network)[0]
        for variant in others:
            different, _, _, broken = symmetry_of_runs(
                network, network.network, variant, (-least, least)
            )
            wrong, control = wrong + different, [*control, broken]
    return Measurement(
        measured=wrong,
        bound=0,
        how=EXACT,
        control=min(control),
        control_least=1,
        details={
            "exact for k": known,
            "steps": _STEPS,
            "nu": subject.symmetry.degree,
            "variants": len(subject.symmetry.variants),
        },
    )


# The exponent nu, fitted


def step_length(optimizer, network, batches):
    """Return the length of the optimizer's last step over the invariant weights, w held fixed.

    The state is built up over `batches` of (X, targets) at the same w, so that only w's scale, and
    not its path, is in the result.
    """
    names = [name for group in weight_groups(network) for name in group.parameters]
    for X, targets in batches:
        moved = network.with_parameters()
        optimizer.step(moved, network.loss_and_gradients(X, targets).gradients)
    before, after = (numbers(n, n.parameters) for n in (network, moved))
    squares = [
        np.square((after[name] - before[name]).astype(np.longdouble)).sum() for name in names
    ]
    return float(np.sqrt(sum(squares)))


CONFIDENCE = 0.9999
_DRAWS = 40
_DECADES = 4.0


def exponent_subjects(options):
    """Return every optimizer, in float64 (or the one dtype asked for)."""
    dtype = options.dtypes[-1]
    networks = _networks(options, dtype)
    return [OptimizerSubject(symmetry, networks, dtype) for symmetry in SYMMETRIES]


def fit_slope(x, y, confidence=CONFIDENCE):
    """Return the least-squares slope of y on x and the half-width of its t interval."""
    from scipy.special import stdtrit  # on first use: scipy is slow to import

    x, y = x - np.mean(x), y - np.mean(y)
    slope = (x @ y) / (x @ x)
    residual = y - slope * x
    error = np.sqrt((residual @ residual) / (len(x) - 2) / (x @ x))
    return float(slope), float(stdtrit(len(x) - 2, (1 + confidence) / 2) * error)


@claim(
    id="step-exponent",
    statement=r"|p(w)| \propto |w|^{-\nu}: \quad \nu = 1 \text{ (SGD, momentum)}, "
    r"\; 0 \text{ (Adam and its kin)}, \; -1 \text{ (LARS)}",
    source="van Laarhoven 2017, sec. 5",
    cite="vL17 s5",
    assumptions=("eps = 0", "no decay", "weights drawn anew for each norm, over four decades"),
    control="the law of the neighbouring class, nu - 1 (LARS: nu + 1), is outside the interval",
    derivation=r"""
The rule of optimizer-symmetry at a fixed direction, fitted instead of compared: for networks with
fresh weights of norm $|w|$, the last of four steps taken at fixed $w$ has a length $A |w|^{-\nu}$,
where $A$ varies with the direction alone. The slope of $\log |p|$ on $\log |w|$ has the t interval
of least squares.

Bound: its half-width at 99.99 %, plus the rounding of the difference $w' - w$, relative to the step
$u |w'|/|p|$, seen through the slope.
""",
    subjects=exponent_subjects,
    unfit=(
        (UNDERFLOWS, "float16"),
        (FITTED, "ball symbol"),
    ),
)
def step_exponent(subject):
    """|nu - its value in the table|, nu the slope of -log |step| against log |w| over many
    draws.
    """
    symmetry, template = subject.symmetry, subject.networks[0]
    rng = np.random.default_rng(20170616)
    batches = [(template.X[i::4], template.targets[i::4]) for i in range(4)]
    norms, lengths, rounding = [], [], []
    u = max(unit_roundoff(template.arithmetic), unit_roundoff("float64"))  # lengths are float64
    for scale in 10.0 ** rng.uniform(-_DECADES / 2, _DECADES / 2, size=_DRAWS):
        drawn = template.untrained.with_parameters(
            {
                name: (scale * rng.standard_normal(array.shape) / np.sqrt(array.shape[0])).astype(
                    array.dtype
                )
                for name, array in numbers(
                    template.untrained, template.untrained.parameters
                ).items()
                if name in factors_of(template.untrained, 1.0)
            }
        )
        norm = np.sqrt(
            sum(
                np.square(drawn.backend.to_numpy(drawn.parameters[name]).astype(float)).sum()
                for name in factors_of(drawn, 1.0)
            )
        )
        length = step_length(symmetry.plain(), drawn, batches)
        norms.append(norm)
        lengths.append(length)
        rounding.append(u * (norm + length) / length + u * abs(np.log(length)))
    x, y = np.log(norms), np.log(lengths)
    slope, half = fit_slope(x, y)
    centered = x - x.mean()
    # A slope is sum (x - mean) y / sum (x - mean)^2: relative errors of the lengths enter linearly.
    seen = float(np.abs(centered) @ np.asarray(rounding) / (centered @ centered))
    nu = symmetry.degree
    other = nu + 1 if nu < 0 else nu - 1
    return Measurement(
        measured=abs(-slope - nu),
        bound=half + seen,
        how="half-width of the slope's 99.99 % t interval, and the rounding of w' - w",
        control=abs(-slope - other),
        control_least=100 * (half + seen) if half < 1e-9 else 2 * (half + seen),
        details={
            "nu": -slope,
            "interval": [-slope - half - seen, -slope + half + seen],
            "draws": _DRAWS,
        },
    )


# Adam's eps


def adam_step_law(g, a, eps):
    """Return |p(a w)| / eta of Adam's first step from g = grad L(w): g/(|g| + a eps), summed up.

    g: array in longdouble.  Returns the length and the exponent nu = -d log|p| / d log a.
    """
    size = np.abs(g)
    share = np.divide(size, size + a * eps, out=np.zeros_like(size), where=size > 0)
    squares = share * share
    total = squares.sum()
    return np.sqrt(total), (squares * (1 - share)).sum() / total


_ADAM = {"learning_rate": 1.0, "beta1": 0.9, "beta2": 0.999}
_CURVE = tuple(range(-12, 13))


def _first_step(network, gradient, eps, bounded=False):
    """Return Adam's first step, taken from w = 0 so that adding it to w rounds nothing away."""
    convert = Bounded if bounded else network.backend.asarray
    zero = [convert(np.zeros_like(gradient)) for _ in range(3)]
    update = network.backend.update.adam
    w, _, _ = update(zero[0], convert(gradient), zero[1], zero[2], 1, eps=eps, **_ADAM)
    return w if bounded else network.backend.to_numpy(w)


def _gradients_of_weights(network, subject):
    gradients = numbers(network, network.loss_and_gradients(subject.X, subject.targets).gradients)
    return [gradients[name] for group in weight_groups(network) for name in group.parameters]


@claim(
    id="adam-eps",
    statement=r"|p(a w)|^2 = \eta^2 \sum_i \left(\frac{|g_i|}{|g_i| + a \varepsilon}\right)^2: "
    r"\quad "
    r"\nu = \frac{\sum q_i^2 (1 - q_i)}{\sum q_i^2}, \; q_i = \frac{|g_i|}{|g_i| + a \varepsilon}",
    source="van Laarhoven 2017, sec. 5; the law is ours",
    cite="vL17 s5",
    assumptions=("the first step of Adam", "g = grad L(w) at eps = 0 of the normalization"),
    control="eps/a in place of eps: nu stays 0 for every |w|",
    derivation=r"""
At $t = 1$ the corrected moments are $g$ and $g^2$, so the step is $\eta g_i/(|g_i| +
\varepsilon)$, and at $a w$ the gradient is $g/a$. Hence the length above, and $-d \log|p|/d \log a
= \sum q_i^2 (1 - q_i)/\sum q_i^2$.

It rises from 0 ($|g| \gg a \varepsilon$: only the sign counts, the effective rate is $\eta/|w|$) to
1 ($|g| \ll a \varepsilon$: SGD with $\eta/\varepsilon$, effective rate $\eta/(\varepsilon
|w|^2)$). Adam removes the effect of $|w|$ only in part.

Measured: the mean exponent between $a$ and $2a$, $\log_2 (|p(a w)|/|p(2 a w)|)$, of real steps,
against the law, which knows the gradient at $w$ alone. Bound: Adam's formula run on numbers that
carry their rounding error, through the logarithm; the gradients at $2^k w$ are exact.
""",
    unfit=(
        (UNDERFLOWS, "float16"),
        ("the law has |g|, and a symbol has no sign", "symbol"),
    ),
)
def adam_eps(subject):
    """The first step's length against the law |g|/(|g| + eps), relative, over all |w| tried."""
    measured, bound, control = 0.0, 0.0, np.inf
    curve, reached, drawn = [], [], []
    for network in subject.states:
        gradient = _gradients_of_weights(network, subject)
        wide = np.concatenate([g.ravel() for g in gradient]).astype(np.longdouble)
        # The median gradient meets eps in the middle of the curve.
        eps = float(2.0 ** np.round(np.log2(np.median(np.abs(wide[wide != 0])))))
        reference = network.on("reference")
        rows = []
        for k in (*_CURVE, _CURVE[-1] + 1):
            scaled = rescaled(network, 2.0**k)
            at_k = _gradients_of_weights(scaled, subject)
            steps = [_first_step(scaled, g, eps).astype(np.longdouble).ravel() for g in at_k]
            length = np.sqrt(sum(np.square(step).sum() for step in steps))
            fixed = [_first_step(scaled, g, eps / 2.0**k).astype(np.longdouble) for g in at_k]
            without = np.sqrt(sum(np.square(step).sum() for step in fixed))
            runs = [_first_step(reference, g, eps, bounded=True) for g in at_k]
            error = sum((np.abs(b.value).astype(float) * b.error).sum() for b in runs)
            law, nu = adam_step_law(wide, 2.0**k, eps)
            rows.append((length, without, error / float(length) ** 2, law, nu))
        steps = zip(_CURVE, rows, rows[1:], strict=False)
        for k, (p, q, e, law, nu), (p2, q2, e2, law2, _) in steps:
            predicted = np.log2(law / law2)
            residual = float(abs(np.log2(p / p2) - predicted))
            limit = (e + e2) / np.log(2)
            if bound == 0 or residual * bound >= measured * limit:
                measured, bound = residual, float(limit)
            drawn.append([k + 0.5, float(np.log2(p / p2)), float(predicted)])
            reached.append(float(nu))
            curve.append((float(np.log2(q / q2)), float(predicted)))
        control = min(control, max(abs(q - predicted) for q, predicted in curve))
    flat = max(abs(q) for q, _ in curve)
    return Measurement(
        measured=measured,
        bound=bound,
        how="running error of Adam's first step, sum |p| error(p) / |p|^2, of both lengths",
        control=control,
        control_least=100 * bound,
        control_as_predicted=flat <= 2 * bound,
        details={
            "nu from": min(reached),
            "nu to": max(reached),
            "nu with eps/a": flat,
            # of the trained network: log2 a, nu measured, nu predicted
            "curve": drawn[-len(_CURVE) :],
        },
    )
