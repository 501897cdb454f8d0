r"""w normalized after each step, with momentum: a loss on the circle, whose gradient has the same
length everywhere.
"""

import dataclasses

import numpy as np

from minimal_nn import backend
from theory import laws
from theory.claim import TOO_LONG, claim
from theory.measures.closest import Closest
from theory.numbers.bounded import unit_roundoff


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
    "momentum it does, as 1/(1 - 2 eta lambda/(1 - momentum)^2).",
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
