r"""The remedies (the paper's section 5.5 and discussion): fixed norms, weight norm, LARS."""

import cmath
import dataclasses

import numpy as np

import minimal_nn as nn
from minimal_nn import backend
from theory.claim import (
    EXPRESSIONS,
    TOO_LONG,
    UNDERFLOWS,
    WORST_CASE,
    Measurement,
    claim,
)
from theory.claims.effective_rate import differing_runs, factors_of, run, scaled_start
from theory.claims.invariance import EXACT, limits
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.networks import network_subject, numbers, off_zero, weight_groups

# Normalizing w after each step, with SGD

ETA = 0.25
DECAYS = (2.0, 3.0)  # 2 eta lambda = 1/2 and 3/4: eta / (1 - 2 eta lambda) is exact in every dtype
_BEYOND = 6.0  # 2 eta lambda = 3/2
_STEPS = 4
_EXAMPLES = 16


def _matrices(network):
    """Return the names of the invariant weight matrices: what section 5.5 normalizes."""
    return [group.parameters[0] for group in weight_groups(network)]


def _fixed_norm_step(network, gradients, eta, decay):
    """Return the invariant weights after one step of SGD with norm 1, and the network."""
    names = _matrices(network)
    group = nn.Group(names, learning_rate=eta, weight_decay=decay, fixed_norm=1.0)
    after = network.with_parameters()
    nn.SGD(ETA, groups=[group]).step(after, gradients)
    arrays = numbers(after, after.parameters)
    return {name: arrays[name] for name in names}, after


def _bounded_step(w, g, eta, decay):
    """Return the rounding errors of the same step, from the reference formulas on `Bounded`."""
    update = backend.get("reference").update
    g = update.add_penalty(Bounded(g), Bounded(w), decay) if decay else Bounded(g)
    return update.normalize(update.sgd(Bounded(w), g, eta), 1.0).error


def _over(residual, error):
    """Return residual / error, with 0/0 = 0 and infinity where only the error is 0."""
    residual = residual.astype(float)
    quotient = np.divide(residual, error, out=np.zeros_like(error), where=error > 0)
    return np.where((error == 0) & (residual > 0), np.inf, quotient)


@claim(
    id="fixed-norm-sgd",
    statement=r"\tilde w = w - \eta (\nabla L + 2 \lambda w), \; w' = \tilde w / |\tilde w|: \quad "
    r"(\eta, \lambda) \text{ and } \left(\tfrac{\eta}{1 - 2 \eta \lambda}, 0\right) \text{ are "
    r"one run "
    r"for } 2 \eta \lambda < 1",
    source="van Laarhoven 2017, sec. 5.5; the threshold is ours",
    cite="vL17 s5",
    assumptions=("SGD with L2", "w normalized after each step", "2 eta lambda < 1"),
    control="lambda = 0 at the same eta: another run; and 2 eta lambda = 3/2 reverses w",
    derivation=r"""
$\tilde w = (1 - 2 \eta \lambda) w - \eta \nabla L$, and a positive factor does not survive the
normalization: for $2 \eta \lambda < 1$ the step is that of $w - \eta/(1 - 2 \eta \lambda) \,
\nabla L$. So $\lambda$ changes the learning rate alone, and hardly, as long as $2 \eta \lambda \ll
1$. Beyond $2 \eta \lambda = 1$ the factor is negative: $w$ is reversed at every step, and climbs.

Measured at every step of a run, from the same $w$: the two steps' difference, entry by entry
(which is the induction step for whole runs). Bound: both steps on numbers that carry their
rounding error.
""",
    erratum="Section 5.5 says that the effective rate then does not depend on lambda: it does, as "
    "eta/(1 - 2 eta lambda).",
    unfit=(
        (WORST_CASE, "float16"),
        (EXPRESSIONS, "symbol"),
    ),
)
def fixed_norm_sgd(subject):
    """One normalized step with (eta, lambda) against one with (eta/(1 - 2 eta lambda), 0), at every
    step.
    """
    worst, control, beyond = (0.0, 0.0), np.inf, 0.0
    for network in subject.states:
        for decay in DECAYS:
            current = network
            for step in range(_STEPS):
                rows = (np.arange(_EXAMPLES) + step * _EXAMPLES) % len(subject.X)
                gradients = current.loss_and_gradients(
                    subject.X[rows], subject.targets[rows]
                ).gradients
                eta = ETA / (1 - ETA * decay)
                with_decay, after = _fixed_norm_step(current, gradients, ETA, decay)
                without, _ = _fixed_norm_step(current, gradients, eta, 0.0)
                plain, _ = _fixed_norm_step(current, gradients, ETA, 0.0)
                g, w = numbers(current, gradients), numbers(current, current.parameters)
                wrong = 0.0
                for name, array in with_decay.items():
                    error = _bounded_step(w[name], g[name], ETA, decay)
                    error = error + _bounded_step(w[name], g[name], eta, 0.0)
                    residual = np.abs(array.astype(np.longdouble) - without[name])
                    at = np.unravel_index(np.argmax(_over(residual, error)), error.shape)
                    if residual[at] * worst[1] >= worst[0] * error[at]:
                        worst = (float(residual[at]), float(error[at]))
                    wrong = max(wrong, float(np.max(np.abs(array - plain[name]))))
                control = min(control, wrong)
                if step == 0:
                    beyond = max(beyond, _reversed(current, gradients, w, g))
                current = after
    return Measurement(
        measured=worst[0],
        bound=worst[1],
        how="running error of both steps, add_penalty, sgd and normalize",
        control=control,
        control_least=100 * worst[1],
        control_as_predicted=beyond <= 1.0,
        details={"2 eta lambda": [ETA * decay for decay in DECAYS], "steps": _STEPS},
    )


def _reversed(network, gradients, w, g):
    """Return |step + normalize(w + eta/(x - 1) g)| / bound at x = 2 eta lambda = 3/2."""
    update = backend.get("reference").update
    step, _ = _fixed_norm_step(network, gradients, ETA, _BEYOND)
    eta = ETA / (ETA * _BEYOND - 1)
    ratio = 0.0
    for name, array in step.items():
        climbing = update.normalize(w[name] + eta * g[name], 1.0)
        error = _bounded_step(w[name], g[name], ETA, _BEYOND)
        error = error + _bounded_step(w[name], -g[name], eta, 0.0)
        residual = np.abs(array.astype(np.longdouble) + climbing)
        ratio = max(ratio, float(np.max(_over(residual, error))))
    return ratio


# With momentum: a loss on the circle, whose gradient has the same length everywhere


@dataclasses.dataclass(frozen=True)
class CircleSubject:
    """L(w) = c times the angle of w in the plane: the simplest scale-invariant loss."""

    backend: str = "reference"
    arithmetic: str = "float64"
    name: str = "circle"


def circle_run(eta, momentum, decay, slope, steps, wing="reference"):
    """Return the angles of w (steps + 1,) under momentum with L2 and |w| = 1 after each step."""
    wing = backend.get(wing)
    update = wing.update
    w, buffer = wing.asarray(np.array([[1.0], [0.0]])), wing.asarray(np.zeros((2, 1)))
    angles = np.empty(steps + 1)
    for step in range(steps):
        at = wing.to_numpy(w)
        angles[step] = np.arctan2(at[1, 0], at[0, 0])
        g = slope / (at * at).sum() * np.array([-at[1], at[0]])
        g = update.add_penalty(wing.asarray(g), w, decay)
        w, buffer = update.momentum(w, g, buffer, eta, momentum)
        w = update.normalize(w, 1.0)
    at = wing.to_numpy(w)
    angles[steps] = np.arctan2(at[1, 0], at[0, 0])
    return np.unwrap(angles)


def circle_angle(eta, momentum, decay, slope):
    """Return the steady angle per step: phi = arg(1 - eta (decay + i c) / (1 - rho e^(-i phi)))."""
    phi = 0.0
    for _ in range(4000):
        phi = cmath.phase(1 - eta * complex(decay, slope) / (1 - momentum * cmath.exp(-1j * phi)))
    return phi


_MOMENTUM = 0.75
_SHARES = (1 / 16, 1 / 4, 1 / 2)  # of the threshold (1 - momentum)^2
_CIRCLE_ETA, _SLOPE = 2.0**-4, 2.0**-8


@claim(
    id="fixed-norm-momentum",
    statement=r"\eta_{eff} = \frac{\eta}{1 - \rho} / \left(1 - \frac{2 \eta \lambda}{(1 - "
    r"\rho)^2}\right), \quad 2 \eta \lambda < (1 - \rho)^2",
    source="van Laarhoven 2017, sec. 5.5; the law and its threshold are ours",
    cite="vL17 s5",
    assumptions=("momentum with L2", "w normalized after each step", "a steady drift"),
    control="eta/(1 - momentum), without lambda; beyond the threshold w turns without gradient",
    derivation=r"""
$\rho$ is the momentum. On the circle, with $w_t = e^{i \phi t}$ and a gradient of length $c$ along
it, the steady buffer is $v = (i c + 2 \lambda)/(1 - \rho e^{-i \phi}) w$, and $\phi =
\operatorname{arg}(1 - \eta v / w)$: an equation for $\phi$, exact.

For small $\phi$ the buffer's radial part is $2 \lambda/(1 - \rho)$, and its tangential part
remembers where $w$ was: $(i c - 2 \lambda \rho i \phi/(1 - \rho))/(1 - \rho)$. With $x = 2 \eta
\lambda$: $\phi (1 - x/(1 - \rho)) = -\eta c/(1 - \rho) + x \rho \phi/(1 - \rho)^2$, hence the law.
So $\lambda$ is not felt only while $x/(1 - \rho)^2$ is small, a hundred times sooner at $\rho =
0.9$ than with SGD. At $x = (1 - \rho)^2$ the second eigenvalue, $(1 - x)/(1 - x/(1 - \rho)) + \rho
- 1$, reaches 1: beyond it $w$ turns by itself.

Bound: a step rounds $w$ by at most $8 u$ and the buffer by $4 u/(1 - \rho)$, seen through $\eta$.
""",
    erratum="Section 5.5 says that the effective rate then does not depend on lambda: with "
    "momentum it "
    "does, as 1/(1 - 2 eta lambda/(1 - momentum)^2).",
    subjects=lambda options: [CircleSubject(options.backend)],
    unfit=(
        (
            "a steady drift is approached over hundreds of steps, and reached in no finite number",
            "float16 float32 longdouble ball symbol",
        ),
    ),
    too_long=TOO_LONG,
)
def fixed_norm_momentum(subject):
    """The angle per step on the circle against the steady solution, relative, up to the
    threshold.
    """
    u = unit_roundoff("float64")
    threshold = (1 - _MOMENTUM) ** 2
    measured, bound, control, small = 0.0, 0.0, np.inf, 0.0
    for share in _SHARES:
        decay = share * threshold / _CIRCLE_ETA
        angles = circle_run(_CIRCLE_ETA, _MOMENTUM, decay, _SLOPE, 600, subject.backend)
        phi = (angles[-1] - angles[-201]) / 200
        exact = circle_angle(_CIRCLE_ETA, _MOMENTUM, decay, _SLOPE)
        size = abs(exact)
        residual = abs(phi - exact) / size
        limit = (8 * u + 4 * u * _CIRCLE_ETA * abs(complex(decay, _SLOPE)) / (1 - _MOMENTUM)) / size
        if residual * bound >= measured * limit:
            measured, bound = residual, limit
        plain = _CIRCLE_ETA * _SLOPE / (1 - _MOMENTUM)
        control = min(control, abs(plain / size - 1))
        small = max(small, abs(plain / (1 - share) / size - 1))
    # Beyond the threshold w turns though there is hardly a gradient.
    turning = circle_run(
        _CIRCLE_ETA, _MOMENTUM, 1.5 * threshold / _CIRCLE_ETA, 1e-12, 2000, subject.backend
    )
    beyond = abs(turning[-1] - turning[-2])
    return Measurement(
        measured=measured,
        bound=bound,
        how="(8 u + 4 u eta |2 lambda + i c|/(1 - momentum)) / phi: the rounding of a step",
        control=control,
        control_least=100 * bound,
        control_as_predicted=beyond > 1e-2 and small < 1e-3,
        details={
            "law of small angles is off by": small,
            "angle beyond the threshold, c = 1e-12": beyond,
            "2 eta lambda/(1 - momentum)^2": list(_SHARES),
        },
    )


# With Adam and L2: no eta helps

_SHIFTS = tuple(range(-24, 13, 4))


def _flipped(network, g, w, decay, eta):
    """Return where Adam's first step with the penalty has another sign than without."""
    update, wing = network.backend.update, network.backend
    g, w = wing.asarray(g), wing.asarray(w)
    zero = [wing.asarray(np.zeros(g.shape, dtype=network.dtype)) for _ in range(3)]
    settings = {"learning_rate": eta, "beta1": 0.9, "beta2": 0.999, "eps": 0.0}
    steps = [
        wing.to_numpy(update.adam(zero[0], gradient, zero[1], zero[2], 1, **settings)[0])
        for gradient in (g, update.add_penalty(g, w, decay))
    ]
    return np.sign(steps[0]) * np.sign(steps[1]) < 0


@claim(
    id="fixed-norm-adam",
    statement=r"\operatorname{sign}(g_i + 2 \lambda w_i) \ne \operatorname{sign}(g_i) "
    r"\iff 2 \lambda |w_i| > |g_i| \text{ and } w_i g_i < 0, \quad \text{whatever } \eta",
    source="van Laarhoven 2017, sec. 5.5; the threshold is ours",
    cite="vL17 s5",
    assumptions=("Adam with L2, eps = 0", "the first step"),
    control="2 eta lambda < 2^-20 is not enough: steps are reversed all the same",
    derivation=r"""
At $t = 1$ and $\varepsilon = 0$ Adam's step is $\eta \operatorname{sign}(g_i + 2 \lambda w_i)$.
Normalizing $w$ afterwards removes no part of the penalty that has changed a sign, and neither does
a small $\eta$, which stands outside. So $\lambda$ is not felt only while $2 \lambda |w_i| < |g_i|$
where $w_i g_i < 0$; with $|w| = 1$ fixed that is a condition on $\lambda$ and the gradient alone.

Measured: the entries whose sign changes, for ten $\lambda$ over 36 octaves and two $\eta$, against
the right-hand side evaluated exactly; how many differ.
""",
    erratum="The remedy of section 5.5 frees SGD of lambda for small eta lambda; Adam with L2 "
    "it does "
    "not free for any eta.",
    unfit=(
        (UNDERFLOWS, "float16"),
        ("the sign of a rounded sum of two numbers is exact anyway", "ball symbol"),
    ),
)
def fixed_norm_adam(subject):
    """Signs of the first step that do not follow g + 2 lambda w as predicted."""
    wrong, control, below = 0, np.inf, 0
    for network in subject.states:
        gradients = numbers(
            network, network.loss_and_gradients(subject.X, subject.targets).gradients
        )
        small = 0
        for name in _matrices(network):
            g = gradients[name]
            w = network.backend.to_numpy(network.backend.update.normalize(
                network.parameters[name], 1.0
            ))
            opposite = (np.sign(w) * np.sign(g) < 0) & (g != 0)
            ratios = np.abs(g[opposite].astype(np.longdouble) / w[opposite])
            middle = 2.0 ** np.round(np.log2(float(np.median(ratios))))
            for shift in _SHIFTS:
                decay = middle * 2.0**shift
                predicted = opposite & (np.abs(decay * w) > np.abs(g))
                for eta in (1.0, min(2.0**-20 / decay, 1.0)):
                    flipped = _flipped(network, g, w, decay, eta)
                    wrong += int(np.count_nonzero(flipped != predicted))
                if shift == 0:
                    small += int(np.count_nonzero(flipped))
            least = float(np.min(ratios)) / 2
            below += int(np.count_nonzero(_flipped(network, g, w, least, 1.0)))
        control = min(control, small)
    return Measurement(
        measured=wrong,
        bound=0,
        how="0: the sign of a rounded sum of two numbers is that of the sum",
        control=control,
        control_least=1,
        control_as_predicted=below == 0,
        details={"reversed at 2 lambda |w| = the median |g|": control, "reversed below": below},
    )


# Weight normalization is another thing


def _growth(network, X, targets, eta, fixed, steps):
    """Return (units that grew, units) over steps of SGD, counting growth above rounding."""
    names = _matrices(network)
    hyper = {"fixed_norm": 1.0} if fixed else {}
    optimizer = nn.SGD(ETA, groups=[nn.Group(names, learning_rate=eta, **hyper)])
    network = network.with_parameters()
    if fixed:
        network = network.with_parameters(
            {
                name: network.backend.to_numpy(
                    network.backend.update.normalize(network.parameters[name], 1.0)
                )
                for name in names
            }
        )
    grew = total = 0
    norms = []
    for step in range(steps):
        rows = (np.arange(_EXAMPLES) + step * _EXAMPLES) % len(X)
        before = numbers(network, network.parameters)
        gradients = network.loss_and_gradients(X[rows], targets[rows]).gradients
        optimizer.step(network, gradients)
        after = numbers(network, network.parameters)
        for name in names:
            moved = np.any(numbers(network, gradients)[name] != 0, axis=0)
            old, new = (
                np.square(array[name].astype(np.longdouble)).sum(axis=0)
                for array in (before, after)
            )
            rounding = np.longdouble(2 * gamma(len(before[name]) + 8, unit_roundoff(network.dtype)))
            grew += int(np.count_nonzero((new > old * (1 + rounding)) & moved))
            total += int(np.count_nonzero(moved))
        norms.append(float(np.mean(np.sqrt(new))))
    return grew, total, norms


@claim(
    id="weight-norm-grows",
    statement=r"\text{weight norm: } |v_{t+1}| > |v_t| \text{ always, } \eta / |v|^2 \to 0; \quad "
    r"\text{normalizing } w: |w_{t+1}| = 1",
    source="van Laarhoven 2017, sec. 5.5; Salimans & Kingma 2016, sec. 2.1",
    cite="vL17 s5",
    assumptions=("SGD without decay", "units with a gradient"),
    control="w normalized after each step: no unit grows",
    derivation=r"""
Weight norm divides by $|v|$ in the forward pass and so makes the gradient orthogonal to $v$, but
leaves $|v|$ free: $|v'|^2 = |v|^2 + \eta^2 |\nabla L|^2 > |v|^2$ (Pythagoras), at every step and
for every unit, and the effective rate can only fall. The remedy of section 5.5 normalizes $w$
itself: the same function, but $|w|$ stays 1 and so does the effective rate.

Measured: the unit-steps in which $|v|$ has not grown by more than rounding, $2 \gamma_{n+8}$.
""",
    subjects=lambda options: [
        network_subject("weight", dtype, backend=options.backend, seed=options.seed)
        for dtype in options.dtypes
    ],
    unfit=(
        ("growth by eta^2 |grad L|^2 is not always above the rounding of |v|^2", "float16 float32"),
        ("the recursion that it rests on is norm-growth", "ball symbol"),
    ),
)
def weight_norm_grows(subject):
    """Units and steps at which |v| of weight norm does not grow under plain SGD."""
    grew, total, norms = _growth(
        subject.untrained, subject.X, subject.targets, ETA, False, steps=20
    )
    fixed, units, _ = _growth(subject.untrained, subject.X, subject.targets, ETA, True, steps=20)
    return Measurement(
        measured=total - grew,
        bound=0,
        how="0: growth by eta^2 |grad L|^2 stands above the rounding of |v|^2",
        control=units - fixed,
        control_least=units,
        details={"unit-steps": total, "mean |v|, first and last": [norms[0], norms[-1]]},
    )


# A first-order method that removes the effect

_LARS = {"learning_rate": 0.05}


@claim(
    id="lars-removes-scale",
    statement=r"w' = w - \eta |w| \frac{\nabla L}{|\nabla L|}: \quad a w_0 \mapsto a \cdot "
    r"\mathrm{run}(w_0, \eta), \; \eta_{eff} = \eta \text{ for every } |w|",
    source="against van Laarhoven 2017, discussion; You, Gitman & Ginsburg 2017",
    cite="vL17 s7",
    assumptions=("no decay", "the step's length is eta |w|, unit by unit", "w_0 != 0"),
    control="SGD and Adam with the same hyper-parameters at 2 w_0: other runs",
    derivation=r"""
At $a w$ the gradient is divided by $a$ and its direction is the same, so the step is multiplied by
$a$, as $w$ is: $\nu = -1$ in $\eta/|w|^{1+\nu}$. The method uses first derivatives alone, and no
hyper-parameter is changed with $a$. SGD with $\eta |w|^2$ does the same. (With decay the step
depends on $\lambda |w|^2$: $(a w_0, \lambda/a^2)$, see optimizer-symmetry.  A bias that starts at 0
leaves it by the step of SGD, which is not proportional to $|w|$.) Measured: runs from $2^k w_0$
must be $2^k$ times the original, bit by bit.
""",
    erratum="\"We know of no first order gradient method that can fully eliminate this effect\" "
    "(discussion): this one does; LARS appeared two months after the paper.",
    unfit=(
        (UNDERFLOWS, "float16"),
        (EXPRESSIONS, "symbol"),
    ),
)
def lars_removes_scale(subject):
    """Numbers of LARS runs from 2^k w_0, nothing else changed, that are not those of the plain
    run.
    """
    least, _ = limits(subject)
    wrong, controls = 0, []
    for network in off_zero(subject.states):
        def compared(make, k, network=network):
            factors = factors_of(network, 2.0**k)
            original = run(subject, network, make())
            scaled = run(subject, scaled_start(network, factors), make())
            return differing_runs(network, original, scaled, factors)

        wrong += sum(compared(lambda: nn.LARS(**_LARS), k) for k in (-least, -1, 1, least))
        controls += [compared(lambda: nn.SGD(0.25), 1), compared(lambda: nn.Adam(0.01), 1)]
    return Measurement(
        measured=wrong,
        bound=0,
        how=EXACT,
        control=min(controls),
        control_least=1,
        details={"tried at k": [-least, -1, 1, least]},
    )


