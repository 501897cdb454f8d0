r"""w normalized after each step, with momentum: decay is a longer memory, and a larger rate.

On networks exactly, step after step; in the long run on the circle, where the gradient of a loss
has the same length everywhere.
"""

import dataclasses

import numpy as np

import minimal_nn as nn
from minimal_nn import backend
from theory import laws
from theory.claim import TOO_LONG, WORST_CASE, claim
from theory.measures.closest import Closest
from theory.measures.exact_runs import UPDATE
from theory.measures.identity import Identity
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.networks import gradients_of, matrices, network_subjects, to_numpy
from theory.subjects.walks import kept


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
        hyper = {"learning_rate": eta, "momentum": momentum}
        w, buffer = update.step("momentum", w, g, (buffer,), **hyper)
        w = update.normalize(w, 1.0)
    at = wing.to_numpy(w)
    angles[steps] = np.arctan2(at[1, 0], at[0, 0])
    return np.unwrap(angles)


def momentum_subjects(options):
    """Return the networks, and in float64 the circle."""
    circle = [CircleSubject(options.backend)] if "float64" in options.dtypes else []
    return [*circle, *network_subjects(options)]


_MOMENTUM = 0.75
_SHARES = (1 / 16, 1 / 4, 1 / 2)  # of the threshold (1 - momentum)^2
_CIRCLE_ETA, _SLOPE = 2.0**-4, 2.0**-8
# On networks: exact in every dtype; x = 1/32 is half of the threshold.
_ETA, _DECAY, _STEPS, _EXAMPLES = 2.0**-4, 0.5, 12, 16


def _lengths(array):
    return np.sqrt((array * array).sum(axis=tuple(range(array.ndim - 1))))


class Undecayed:
    """The run of one matrix without decay that is the run with it: w and its own buffer u.

    u' = (rho u + g)/A, w' = (w - eta u')/|w - eta u'|, with A = 1 - eta K, K = rho k + decay, and
    k' = K |w - eta u'|, unit by unit: the buffer with decay is u + k w.
    """

    def __init__(self, w, decay, convert=lambda number: number):
        self.eta, self.momentum, self.decay = map(convert, (_ETA, _MOMENTUM, decay))
        self.buffer, self.radial = 0 * w, 0 * _lengths(w)

    def step(self, w, g):
        """Return w' from w, and how long w - eta u' is."""
        radial = self.momentum * self.radial + self.decay
        self.share = 1 - self.eta * radial  # A
        self.buffer = (self.momentum * self.buffer + g) / self.share
        moved = w - self.eta * self.buffer
        length = _lengths(moved)
        self.radial = radial * length
        return moved / length, length


def _on_network(subject):
    """Measure the steps of networks under momentum with decay against those without it."""
    closest, control, memory = Closest(), np.inf, 0.0
    for network in subject.states:
        names, wing = matrices(network), network.backend
        group = nn.Group(names, learning_rate=_ETA, weight_decay=_DECAY, fixed_norm=1.0)
        optimizer = nn.Momentum(0.125, momentum=_MOMENTUM, groups=[group])
        network = network.with_parameters(
            {n: wing.to_numpy(wing.update.normalize(network.parameters[n], 1.0)) for n in names}
        )
        start = to_numpy(network, network.parameters)
        wide = {name: start[name].astype(np.longdouble) for name in names}
        twins = {name: [Undecayed(wide[name], decay) for decay in (_DECAY, 0.0)] for name in names}
        drifted, off = dict.fromkeys(names, 0.0), 0.0
        for step in range(subject.steps(_STEPS)):
            X, targets = subject.batch(step, _EXAMPLES)
            before = to_numpy(network, network.parameters)
            gradients = gradients_of(network, X, targets)
            zeros = {name: np.zeros_like(before[name]) for name in names}
            buffers = {
                n: zeros[n] + kept(optimizer, n, "buffer").astype(network.dtype) for n in names
            }
            network = network.with_parameters()
            optimizer.step(network, {n: wing.asarray(g) for n, g in gradients.items()})
            after = to_numpy(network, network.parameters)
            for name in names:
                w, g = before[name], gradients[name]
                twin, without = twins[name]
                (law, length), (wrong, _) = (
                    each.step(w.astype(np.longdouble), g) for each in (twin, without)
                )
                moved, buffer = _carried(w, g, buffers[name])
                # By how much the buffer's roundings have taken u from that of the twin
                drift = (_MOMENTUM * drifted[name] + buffer.error) / twin.share
                drifted[name] = drift + twin.radial * moved.error
                turned = _ETA * (drift + np.abs(law) * _lengths(drift)) / length
                rounding = gamma(16 * (step + 1) + w.size, unit_roundoff(np.longdouble))
                error = moved.error + turned + rounding * (np.abs(law) + _ETA)
                residual = np.abs(after[name].astype(np.longdouble) - law)
                rows = residual, error, np.abs(law)
                closest.offer(*(row.astype(float) for row in rows))
                memory = max(memory, float(np.max(_MOMENTUM / twin.share)))
                off = max(off, float(np.max(np.abs(after[name] - wrong))))
        control = min(control, off)
    return closest.measurement(
        how="running error of the steps, and of the buffer's through rho/A, added up",
        control=control,
        details={"steps": subject.steps(_STEPS), "memory with decay": memory},
    )


def _carried(w, g, buffer):
    """Return w' and the buffer of a step with decay as Bounded arrays."""
    w, g, buffer = map(Bounded, (w, g, buffer))
    w, buffer = UPDATE.momentum(w, UPDATE.add_penalty(g, w, _DECAY), buffer, _ETA, _MOMENTUM)
    return UPDATE.normalize(w, 1.0), buffer


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

On networks nothing need be small. With $K = \rho k + 2 \lambda$ and $A = 1 - \eta K$ the buffer is
$u + k w$, where $u' = (\rho u + \nabla L)/A$, $w' \propto w - \eta u'$ and $k' = K |w - \eta u'|$:
what decay adds to the buffer along $w$ goes into the length, which is normalized away. So the run
is one without decay, with the memory $\rho/A$ and the rate $\eta/A$; for $k = 2 \lambda/(1 - \rho)$
that is the law again, $\frac{\eta}{A}/(1 - \frac{\rho}{A})$, and the threshold is where the memory
reaches 1. Twelve steps of real runs, $u$ and $k$ from their own recursion. Bound: the running
errors of the steps.

On the circle: a step rounds $w$ by at most $8 u$ and the buffer by $4 u/(1 - \rho)$, seen through
$\eta$.
""",
    erratum="Section 5.5 says that the effective rate then does not depend on lambda: with "
    "momentum it does, as 1/(1 - 2 eta lambda/(1 - momentum)^2).",
    subjects=momentum_subjects,
    unfit=(
        (WORST_CASE, "float16"),
        ("roots of sums of squares, one in another, which no remainder decides", "symbol"),
    ),
    too_long=TOO_LONG,
)
def fixed_norm_momentum(subject):
    """|w' - w' of the run without decay| at the entry and step that come closest to their bound; on
    the circle, the angle per step against the steady solution, relative.
    """
    if not isinstance(subject, CircleSubject):
        return _on_network(subject)
    u, eta = unit_roundoff("float64"), _CIRCLE_ETA
    threshold = 1 / laws.fixed_norm_share(eta, 1.0, _MOMENTUM)  # the decay at which the share is 1
    closest, control, small = Closest(), np.inf, 0.0
    for share in _SHARES:
        decay = share * threshold
        angles = circle_run(eta, _MOMENTUM, decay, _SLOPE, 600, subject.backend)
        phi = (angles[-1] - angles[-201]) / 200
        exact = laws.circle_angle(eta, decay, _SLOPE, _MOMENTUM)
        size = abs(exact)
        limit = 8 * u + 4 * u * eta * abs(complex(decay, _SLOPE)) / (1 - _MOMENTUM)
        closest.offer(abs(phi - exact) / size, limit / size)
        plain, law = (_SLOPE * laws.fixed_norm_rate(eta, d, _MOMENTUM) for d in (0.0, decay))
        control = min(control, abs(plain / size - 1))
        small = max(small, abs(law / size - 1))
    # Beyond the threshold w turns though there is hardly a gradient.
    turning = circle_run(eta, _MOMENTUM, 1.5 * threshold, 1e-12, 2000, subject.backend)
    beyond = abs(turning[-1] - turning[-2])
    return closest.measurement(
        how="(8 u + 4 u eta |2 lambda + i c|/(1 - momentum)) / phi: the rounding of a step",
        control=control,
        control_as_predicted=beyond > 1e-2 and small < 1e-3,
        details={
            "law of small angles is off by": small,
            "angle beyond the threshold, c = 1e-12": beyond,
            "2 eta lambda/(1 - momentum)^2": list(_SHARES),
        },
    )


@fixed_norm_momentum.exactly
def _(subject):
    identity, number = Identity(), subject.numbers.number
    eta, momentum, decay = map(number, (_ETA, _MOMENTUM, _DECAY))
    for network in subject.states:
        names = matrices(network)
        network = network.with_parameters(
            {name: UPDATE.normalize(network.parameters[name], number(1.0)) for name in names}
        )
        start = {name: network.parameters[name] for name in names}
        twins = {n: [Undecayed(w, d, number) for d in (_DECAY, 0.0)] for n, w in start.items()}
        buffers = {name: 0 * w for name, w in start.items()}
        for _ in range(2):
            gradients, new = gradients_of(network, subject.X, subject.targets), {}
            for name in names:
                w, g = network.parameters[name], gradients[name]
                moved, buffers[name] = UPDATE.momentum(
                    w, UPDATE.add_penalty(g, w, decay), buffers[name], eta, momentum
                )
                new[name] = UPDATE.normalize(moved, number(1.0))
                law, wrong = (twin.step(w, g)[0] for twin in twins[name])
                identity.vanishes(new[name] - law)
                identity.remains(new[name] - wrong)
            network = network.with_parameters(new)
    return identity
