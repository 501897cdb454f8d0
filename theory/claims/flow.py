r"""Gradient flow: the limit of small steps, in which |w| is conserved or decays by itself."""

import dataclasses

import numpy as np

import minimal_nn as nn
from theory.claim import TOO_LONG, claim
from theory.measures.closest import Closest
from theory.subjects.networks import network_subject, normalizations, to_numpy, weight_groups

TOLERANCE = 1e-7  # the solver's rtol
_TIME = 1.0
_LAMBDA = 0.1
_EXAMPLES = 16


@dataclasses.dataclass(frozen=True)
class FlowSubject:
    """A network with tanh: at a kink of ReLU the solver would take many small steps."""

    normalization: str
    network: nn.Network
    X: np.ndarray
    targets: np.ndarray
    arithmetic: str = "float64"

    @property
    def name(self):
        return f"{self.normalization} norm"


def flow_subjects(options):
    """Return the normalizations of the wing."""
    subjects = []
    for normalization in normalizations(options.backend):
        data = network_subject(normalization, "float64", backend=options.backend, seed=options.seed)
        dense = nn.Dense(12, bias=normalization != "batch")
        block = {
            "batch": [dense, nn.BatchNorm(0.0)],
            "layer": [dense, nn.LayerNorm(0.0)],
            "rms": [dense, nn.RMSNorm(0.0)],
            "weight": [nn.WeightNorm(dense, eps=0.0)],
        }[normalization]
        network = nn.Network(
            [*block, nn.Tanh(), *block, nn.Tanh(), nn.Dense(10)],
            input_shape=data.X.shape[1:],
            rng=options.seed,
            dtype="float64",
            backend=options.backend,
        )
        subjects.append(
            FlowSubject(normalization, network, data.X[:_EXAMPLES], data.targets[:_EXAMPLES])
        )
    return subjects


def flow(network, X, targets, l2, tolerance=TOLERANCE, time=_TIME):
    """Integrate dw/dt = -grad L(w) - 2 l2 w of the invariant weights, the others held fixed.

    scipy's RK45, the solver behind solve_ivp, with its error control and no events.  Returns
    the Closest of | |w|^2 e^(4 l2 t)/|w_0|^2 - 1 | to its bound, of all groups and accepted steps,
    the largest one of all, and the number of steps.  The bound adds up 2 |w| |e| + |e|^2
    over the steps, e the solver's estimate of its error at that step: a flow neither enlarges nor
    shrinks what is measured.
    """
    from scipy.integrate import RK45  # on first use: scipy is slow to import

    groups = weight_groups(network)
    names = [name for group in groups for name in group.parameters]
    start = to_numpy(network, network.parameters)
    cuts = np.cumsum([start[name].size for name in names])[:-1]

    def velocity(t, y):
        moved = network.with_parameters(
            {
                name: part.reshape(start[name].shape)
                for name, part in zip(names, np.split(y, cuts), strict=True)
            }
        )
        gradients = to_numpy(moved, moved.loss_and_gradients(X, targets).gradients)
        return -np.concatenate([gradients[name].ravel() for name in names]) - 2 * l2 * y

    y0 = np.concatenate([start[name].ravel() for name in names])
    sizes = [sum(start[name].size for name in group.parameters) for group in groups]
    edges = np.cumsum([0, *sizes[:-1]])

    def squares(y):
        return np.add.reduceat(y * y, edges)

    solver = RK45(velocity, 0.0, y0, time, rtol=tolerance, atol=1e-3 * tolerance)
    first, bound, closest, largest, steps = squares(y0), 0.0, Closest(), 0.0, 0
    while solver.status == "running":
        solver.step()
        error = (solver.t - solver.t_old) * (solver.K.T @ solver.E)
        weight, error = squares(solver.y), squares(error)
        growth = np.exp(4 * l2 * solver.t) / first
        bound = bound + (2 * np.sqrt(weight * error) + error) * growth
        residual = np.abs(weight * growth - 1)
        closest.offer(residual, bound, solver.t / time)
        largest = max(largest, float(np.max(residual)))
        steps += 1
    return closest, largest, steps


@claim(
    id="gradient-flow",
    statement=r"\dot w = -\nabla L(w) - 2 \lambda w \;\Rightarrow\; |w(t)|^2 = |w(0)|^2 "
    r"e^{-4 \lambda t}",
    source="van Laarhoven 2017, sec. 4, in the limit of small eta; Kunin et al. 2021, eq. 19",
    cite="Kun21 19",
    assumptions=("eps = 0", "all invariant groups flow at once, other parameters are fixed"),
    control="eps = 0.5: |w| is not conserved",
    derivation=r"""
$\frac{d}{dt} |w|^2 = 2 \langle w, \dot w \rangle = -2 \langle w, \nabla L \rangle - 4 \lambda
|w|^2$, and the first term is 0. The growth $\eta^2 |\nabla L|^2$ of discrete steps is of second
order in $\eta$ and vanishes in the limit: without decay the effective learning rate of a flow never
changes.

Measured: $|w|^2 e^{4 \lambda t}/|w_0|^2 - 1$ along scipy's RK45 (the solver of solve_ivp, relative
tolerance $10^{-7}$), for $\lambda = 0$ and $0.1$; at a hundredth of the tolerance it must be a
tenth or less. Bound: the solver's error estimates $e$ of its accepted steps, through $|w + e|^2 -
|w|^2$, at most $2 |w| |e| + |e|^2$, added up.
""",
    subjects=flow_subjects,
    unfit=(("scipy's solver works in float64", "float16 float32 longdouble ball symbol"),),
    too_long=TOO_LONG,
)
def gradient_flow(subject):
    """||w|^2 - exp(-4 lambda t) |w_0|^2| / |w|^2 at the end of the flow, the worst of the
    groups.
    """
    closest, follows, accepted = Closest(), True, 0
    for l2 in (0.0, _LAMBDA):
        network, data = subject.network, (subject.X, subject.targets)
        coarse, _, steps = flow(network, *data, l2)
        finer, _, _ = flow(network, *data, l2, TOLERANCE / 100)
        follows &= finer.residual <= coarse.residual / 10 and finer.residual <= finer.bound
        accepted += steps
        closest.take(coarse)
        closest.least = min(closest.least, finer.least)
    leaky = subject.network.with_eps(0.5)
    _, control, _ = flow(leaky, subject.X, subject.targets, 0.0)
    return closest.measurement(
        how="the solver's error estimates of its steps, 2 |w| |e| + |e|^2, added up",
        control=control,
        control_as_predicted=bool(follows),
        details={"rtol": TOLERANCE, "accepted steps": accepted, "finer residual": finer.residual},
    )
