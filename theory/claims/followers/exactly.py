r"""The identities among the followers' claims, in balls and symbols.

What a claim measures along a run is here its induction step: from one network to the next, at
hyper-parameters of which no factor is a power of two.
"""

import dataclasses

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claims.followers.conservation import (
    gain_and_matrix,
    homogeneous_network,
    homogeneous_subjects,
    layers_share_their_product,
    norm_oscillator,
    rescale_law,
    translation_law,
    translation_oscillator,
)
from theory.claims.followers.mechanisms import sgd_as_adam, transplanted_norms
from theory.claims.followers.schedules import (
    any_schedule,
    exponential_schedule,
    hoffer_correction,
    momentum_schedule,
    schedule_law,
)
from theory.claims.followers.sphere import hessian_indefinite
from theory.claims.followers.tangent import momentum_sum, projected_angle, projected_steps
from theory.claims.followers.turning import rotational_step
from theory.measures.derivatives import directional
from theory.measures.exact_runs import UPDATE
from theory.measures.groups import group_sum
from theory.measures.identity import Identity, size_of
from theory.numbers.balls import Balls
from theory.subjects.exact import EPS, FACTOR, ball_subject
from theory.subjects.networks import times, weight_groups, weights_of

_ETA, _DECAY = 0.25, 1.0
_SHRINK = 1 - _ETA * _DECAY  # 3/4


def _gradients(subject, network):
    return network.loss_and_gradients(subject.X, subject.targets).gradients


def _sgd(w, g, decay=_DECAY):
    return UPDATE.sgd(w, UPDATE.add_penalty(g, w, decay), _ETA)


def _norm(arrays, group):
    """Return |.|^2 of each unit, or of the group as a whole."""
    return group_sum([arrays[k] * arrays[k] for k in group.parameters], group.per_unit)


def _product(one, other, group):
    return group_sum([one[k] * other[k] for k in group.parameters], group.per_unit)


# Schedules


def _one_step(subject, shrunk, wrong):
    """Return the Identity of a step at w/P without decay, P = shrunk, and a step at w with it.

    wrong: the rate of the control, of the right one.
    """
    identity = Identity()
    for network in subject.states:
        names, P = tuple(weights_of(network)), subject.numbers.number(shrunk)
        scaled = times(network, names, 1 / P)
        gradients, others = _gradients(subject, network), _gradients(subject, scaled)
        rate = laws.equivalent_rate(_ETA, _SHRINK, P)
        for k in names:
            expected = _sgd(network.parameters[k], gradients[k]) / (P * _SHRINK)
            found = UPDATE.sgd(scaled.parameters[k], others[k], rate)
            identity.vanishes(found - expected, size_of(subject, expected))
            other = UPDATE.sgd(scaled.parameters[k], others[k], wrong * rate)
            identity.remains(other - expected, size_of(subject, expected))
    return identity


@exponential_schedule.exactly
def _(subject):
    return _one_step(subject, _SHRINK * _SHRINK, _SHRINK)  # the third step; control: one behind


@any_schedule.exactly
def _(subject):
    return _one_step(subject, _SHRINK * 0.625, _SHRINK / 0.625)  # a step of 5/8 before


_RHO, _ALPHA, _X = 0.125, 0.5, 0.375  # alpha^2 - (1 + rho - x) alpha + rho = 0


@momentum_schedule.exactly
def _(subject):
    identity, rng = Identity(), np.random.default_rng(0)
    for network in subject.states:
        names = tuple(weights_of(network))
        scaled = times(network, names, 1 / subject.numbers.number(_ALPHA))
        gradients, others = _gradients(subject, network), _gradients(subject, scaled)
        rate = _ETA * _ALPHA**-3
        for k in names:
            w, g = network.parameters[k], gradients[k]
            v = subject.numbers.array(rng.integers(-3, 4, w.shape).astype(float))
            penalized = UPDATE.add_penalty(g, w, _X / _ETA)
            expected = UPDATE.momentum(w, penalized, v, _ETA, _RHO)[0] / _ALPHA**2
            size = size_of(subject, expected)
            for buffer, judge in (
                (_ALPHA * v - w * ((1 - _ALPHA) / _ETA), identity.vanishes),
                (_ALPHA * v, identity.remains),
            ):
                found, _ = UPDATE.momentum(scaled.parameters[k], others[k], buffer, rate, _RHO)
                judge(found - expected, size)
    return identity


@hoffer_correction.exactly
def _(subject):
    identity, a = Identity(), subject.a
    for network in subject.states:
        names = tuple(weights_of(network))
        scaled = times(network, names, a)
        gradients, others = _gradients(subject, network), _gradients(subject, scaled)
        for k in names:
            expected = _sgd(network.parameters[k], gradients[k])
            size = size_of(subject, expected)
            for rate, judge in (
                (a * a * _ETA / _SHRINK, identity.vanishes),
                (a * a * _ETA, identity.remains),
            ):
                found = UPDATE.sgd(scaled.parameters[k], others[k], rate)
                judge(found * _SHRINK / a - expected, size)
    return identity


def _moved(subject, network):
    """Yield |w|^2, |g|^2 and |w'|^2 of each group."""
    gradients = _gradients(subject, network)
    new = {k: _sgd(w, gradients[k]) for k, w in weights_of(network).items()}
    for group in weight_groups(network):
        yield tuple(_norm(arrays, group) for arrays in (network.parameters, gradients, new))


@schedule_law.exactly
def _(subject):
    identity, rate, shrink = Identity(), subject.numbers.number(0.125), 0.875  # of the next step
    B = laws.schedule_growth(_ETA, _SHRINK, rate, shrink)
    for network, judge in (
        *((state, identity.vanishes) for state in subject.states),
        (subject.states[-1].with_eps(EPS), identity.remains),
    ):
        for before, pushed, moved in _moved(subject, network):
            phi = _ETA / (_SHRINK * before)
            law = B * phi / (1 + phi * phi * before * pushed)
            judge(rate / (shrink * moved) - law, size_of(subject, law))
    return identity


@sgd_as_adam.exactly
def _(subject):
    identity, beta = Identity(), _SHRINK**4
    for network in subject.states:
        for before, pushed, moved in _moved(subject, network):
            v, after = (
                laws.sphere_moment(_ETA / (_SHRINK * square), beta) for square in (before, moved)
            )
            square = before * pushed
            size = size_of(subject, after)
            identity.vanishes(after - laws.next_sphere_moment(v, square, beta), size)
            identity.remains(after - beta * v - square, size)
    return identity


@transplanted_norms.exactly
def _(subject):
    """w' is (1 - x) times the step at eta/(1 - x): of one direction."""
    identity = Identity()
    for network in subject.states:
        gradients = _gradients(subject, network)
        for k, w in weights_of(network).items():
            expected = _sgd(w, gradients[k])
            size = size_of(subject, expected)
            rate = _ETA / subject.numbers.number(_SHRINK)
            identity.vanishes(UPDATE.sgd(w, gradients[k], rate) * _SHRINK - expected, size)
            identity.remains(UPDATE.sgd(w, gradients[k], _ETA) * _SHRINK - expected, size)
    return identity


# Orthogonal steps


@momentum_sum.exactly
def _(subject):
    """Two steps: |w''|^2 = |w'|^2 + eta^2 |v''|^2 + 2 eta^2 rho |v'|^2."""
    identity, rho = Identity(), 0.75
    for network in subject.states:
        names = tuple(weights_of(network))
        gradients = _gradients(subject, network)
        first = {
            k: UPDATE.momentum(network.parameters[k], gradients[k], 0 * gradients[k], _ETA, rho)
            for k in names
        }
        after = network.with_parameters({k: first[k][0] for k in names})
        gradients = _gradients(subject, after)
        second = {
            k: UPDATE.momentum(first[k][0], gradients[k], first[k][1], _ETA, rho) for k in names
        }
        for group in weight_groups(network):
            w, v = ({k: first[k][i] for k in names} for i in (0, 1))
            new, pushed = ({k: second[k][i] for k in names} for i in (0, 1))
            plain = _norm(new, group) - _norm(w, group) - _ETA**2 * _norm(pushed, group)
            size = size_of(subject, _norm(new, group))
            identity.vanishes(plain - 2 * _ETA**2 * rho * _norm(v, group), size)
            identity.remains(plain, size)
    return identity


@projected_steps.exactly(subjects=lambda options: _balls(options, "batch", "weight"))
def _(subject):
    """SGDP from a buffer that is not orthogonal to w; control: momentum from the same."""
    identity, rng, rho = Identity(), np.random.default_rng(0), 0.75
    hyper = {"delta": 0.1, "decay_ratio": 0.125, "decoupled_weight_decay": 1.0}
    a = 1 - _ETA * 0.125 / (1 - rho)
    for network in subject.states:
        gradients = _gradients(subject, network)
        for group in weight_groups(network):
            (k,) = group.parameters
            w, g = network.parameters[k], gradients[k]
            v = subject.numbers.array(rng.integers(-3, 4, w.shape).astype(float))
            size = size_of(subject, w)
            projected, _ = UPDATE.sgdp(w, g, v, _ETA, rho, **hyper)
            plain, _ = UPDATE.momentum(w, g, v, _ETA, rho)
            for moved, judge in (
                (projected - a * w, identity.vanishes),
                (plain - w, identity.remains),
            ):
                judge((w * moved).sum(axis=tuple(range(w.ndim - 1))), size * size)
    return identity


@rotational_step.exactly(subjects=lambda options: _balls(options, "batch", "weight"))
def _(subject):
    """|w'| = |w| and |w'_perp|^2 s = eta_r^2 |p|^2 <w', u>^2, from any buffer; control: |u|^2."""
    identity, rng, rho, kept = Identity(), np.random.default_rng(0), 0.75, 0.875
    hyper = {"share": 1 / (1 + rho), "decay": kept, "decoupled_weight_decay": _DECAY}
    square_rate = 2 * _ETA * _DECAY * (1 / (1 + rho))
    for network in subject.states:
        gradients = _gradients(subject, network)
        for group in weight_groups(network):
            (k,) = group.parameters
            w, g = network.parameters[k], gradients[k]
            v = subject.numbers.array(rng.integers(-3, 4, w.shape).astype(float))
            _, u = UPDATE.momentum(w, g, v, _ETA, rho)
            given = subject.numbers.array(np.ones(w.shape))
            new, root = UPDATE.rotational(w, u, given, 2, _ETA, **hyper)
            axes = tuple(range(w.ndim - 1))
            W, U, N, wu, wn = (
                (a * b).sum(axis=axes) for a, b in ((w, w), (u, u), (new, new), (w, u), (w, new))
            )
            identity.vanishes(N - W, size_of(subject, W))
            along = wn * wn / W
            mean = (root * root).reshape(-1, w.shape[-1])[0]
            # the numbers as the formula has them: roots, rounded
            rate, bias = (subject.numbers.number(x**0.5) for x in (square_rate, 1 - kept**2))
            for p, judge in ((U - wu * wu / W, identity.vanishes), (U, identity.remains)):
                tangent = rate * rate * bias * bias * p * along
                judge((N - along) * mean - tangent, size_of(subject, along * U))
    return identity


@projected_angle.exactly
def _(subject):
    """w and eta g are the legs of a right triangle, before w' is put back to its length."""
    identity = Identity()
    for network, judge in (
        *((state, identity.vanishes) for state in subject.states),
        (subject.states[-1].with_eps(EPS), identity.remains),
    ):
        gradients = _gradients(subject, network)
        new = {k: _sgd(w, gradients[k], 0.0) for k, w in weights_of(network).items()}
        for group in weight_groups(network):
            w, g, moved = (_norm(a, group) for a in (network.parameters, gradients, new))
            judge(_product(network.parameters, new, group) - w, size_of(subject, w))
            judge(moved - w - _ETA**2 * g, size_of(subject, moved))
    return identity


@hessian_indefinite.exactly
def _(subject):
    """w' H w = 0 and g' H w = -|g|^2, of all groups together."""
    identity = Identity()
    for network, judge in (
        *((state, identity.vanishes) for state in subject.states),
        (subject.states[-1].with_eps(EPS), identity.remains),
    ):
        weights = weights_of(network)
        gradient, product = directional(network, weights, subject.X, subject.targets)
        w, g, Hw = (
            np.concatenate([arrays[k].ravel() for k in weights])
            for arrays in (weights, gradient, product)
        )
        size = size_of(subject, g)
        judge(np.array([(w * Hw).sum(), (g * Hw).sum() + (g * g).sum()]), size * size)
    return identity


# Conservation


def _balls(options, *names):
    """Return the ball subjects of some normalizations."""
    return [ball_subject(name, options.bits, options.seed) for name in names]


def _classes(subject, network):
    """Return the last layer's weights and gradients, and those of the mean squared error."""
    last = network.names[-1]
    names = f"{last}.W", f"{last}.b"
    other = nn.Network(network.layers, network.input_shape, loss="mean_squared_error")
    other = other.converted(subject.numbers.array, object).with_parameters(network.parameters)
    wanted = np.eye(network.shapes[-1][0])[subject.targets] + 0.5
    squared = other.loss_and_gradients(subject.X, subject.numbers.array(wanted)).gradients
    gradients = _gradients(subject, network)
    return [(network.parameters[k], gradients[k], squared[k]) for k in names]


@translation_law.exactly(subjects=lambda options: _balls(options, "batch", "layer"))
def _(subject):
    identity = Identity()
    for w, g, squared in _classes(subject, subject.states[-1]):
        size = size_of(subject, w)
        for gradient, judge in ((g, identity.vanishes), (squared, identity.remains)):
            judge(np.atleast_1d((_sgd(w, gradient) - _SHRINK * w).sum(axis=-1)), size)
    return identity


@translation_oscillator.exactly(subjects=lambda options: _balls(options, "batch", "layer"))
def _(subject):
    """s'' of a step from w' = w - eta v: the buffer is what the step before leaves."""
    identity, rng = Identity(), np.random.default_rng(0)
    for w, g, squared in _classes(subject, subject.states[-1]):
        v = subject.numbers.array(rng.integers(-3, 4, w.shape).astype(float))
        before, size = w + _ETA * v, size_of(subject, w)
        for gradient, judge in ((g, identity.vanishes), (squared, identity.remains)):
            penalized = UPDATE.add_penalty(gradient, w, _X / _ETA)
            after, _ = UPDATE.momentum(w, penalized, v, _ETA, _RHO)
            swing = after - (1 + _RHO - _X) * w + _RHO * before
            judge(np.atleast_1d(swing.sum(axis=-1)), size)
    return identity


@norm_oscillator.exactly
def _(subject):
    """Two steps from any buffer; control: squared gradients in the place of squared buffers."""
    identity, rng = Identity(), np.random.default_rng(0)
    for network in subject.states:
        current, states = network, []
        v = {
            k: subject.numbers.array(rng.integers(-3, 4, w.shape).astype(float))
            for k, w in weights_of(network).items()
        }
        for _ in range(2):
            gradients, new = _gradients(subject, current), {}
            start = dict(weights_of(current))
            for k, w in start.items():
                penalized = UPDATE.add_penalty(gradients[k], w, _X / (2 * _ETA))
                new[k], v[k] = UPDATE.momentum(w, penalized, v[k], _ETA, _RHO)
            states.append((start, gradients, dict(v)))
            current = current.with_parameters(new)
        for group in weight_groups(network):
            (R0, pull0, B0), (R, pull, B) = (
                tuple(_norm(arrays, group) for arrays in state) for state in states
            )
            plain = _norm(current.parameters, group) - (1 + _RHO - _X) * R + _RHO * R0
            size = size_of(subject, R)
            identity.vanishes(plain - _ETA**2 * (B + _RHO * B0), size)
            identity.remains(plain - _ETA**2 * (pull + _RHO * pull0), size)
    return identity


@gain_and_matrix.exactly(subjects=lambda options: _balls(options, "rms"))
def _(subject):
    identity, network = Identity(), subject.states[-1]
    gradients = _gradients(subject, network)

    def D(arrays, unit, matrix):
        return (arrays[matrix] * arrays[matrix]).sum(axis=1) - arrays[unit] * arrays[unit]

    for gain, matrix in (("rmsnorm1.gamma", "dense2.W"), ("rmsnorm2.gamma", "dense3.W")):
        new = {k: _sgd(network.parameters[k], gradients[k]) for k in (gain, matrix)}
        before, pushed = (D(arrays, gain, matrix) for arrays in (network.parameters, gradients))
        plain, size = D(new, gain, matrix) - _SHRINK**2 * before, size_of(subject, before)
        identity.vanishes(plain - _ETA**2 * pushed, size)
        identity.remains(plain, size)
    return identity


# Networks that are homogeneous as a whole


@dataclasses.dataclass(frozen=True)
class HomogeneousBalls:
    """The network of matrices and ReLUs in balls, and its control with biases."""

    network: nn.Network
    control: nn.Network
    X: np.ndarray
    targets: np.ndarray
    numbers: Balls
    name: str = "relu, no bias"
    exact = True

    arithmetic = property(lambda self: f"ball {self.numbers.bits}")


def _homogeneous(options):
    (floats,) = homogeneous_subjects(dataclasses.replace(options, dtypes=("float64",)))
    balls = Balls(options.bits)
    networks = (each.converted(balls.array, object) for each in (floats.network, floats.control))
    return [HomogeneousBalls(*networks, balls.array(floats.X[:6]), floats.targets[:6], balls)]


@homogeneous_network.exactly(subjects=_homogeneous)
def _(subject):
    """f(3 theta) = 27 f(theta)."""
    identity, a = Identity(), subject.numbers.number(FACTOR)
    for network, judge in (
        (subject.network, identity.vanishes),
        (subject.control, identity.remains),
    ):
        scores = network.forward(subject.X)
        scaled = times(network, tuple(network.parameters), a).forward(subject.X)
        judge(scaled - a * a * a * scores, size_of(subject, scores))
    return identity


@layers_share_their_product.exactly(subjects=_homogeneous)
def _(subject):
    identity = Identity()
    for network, judge in (
        (subject.network, identity.vanishes),
        (subject.control, identity.remains),
    ):
        trace = network.trace(subject.X, subject.targets)
        last = trace.layers[network.names[-1]]
        total = (last.y * last.dy).sum()
        for k, w in network.parameters.items():
            if k.endswith(".W"):
                judge(np.array([(w * trace.gradients[k]).sum() - total]), abs(total))
    return identity


@rescale_law.exactly(subjects=_homogeneous)
def _(subject):
    identity = Identity()
    for network, judge in (
        (subject.network, identity.vanishes),
        (subject.control, identity.remains),
    ):
        gradients = _gradients(subject, network)
        new = {k: _sgd(w, gradients[k]) for k, w in network.parameters.items()}
        for into, out in (("dense1.W", "dense2.W"), ("dense2.W", "dense3.W")):
            before, pushed, after = (
                (a[into] * a[into]).sum(axis=0) - (a[out] * a[out]).sum(axis=1)
                for a in (network.parameters, gradients, new)
            )
            law = _SHRINK**2 * before + _ETA**2 * pushed
            judge(after - law, size_of(subject, before))
    return identity
