r"""The claims as identities between numbers of any arithmetic: expressions that vanish exactly.

In floats a claim compares bits, or a residual with a bound on its rounding error.  In balls and
symbols there is nothing to bound: the residual of a true identity is an enclosure that contains 0,
or an expression that simplifies to 0, and that of the control is one that does not.  So a claim
needs no more than its residual here, written once for both; the factor a is 3, or a symbol.

    balls     measured = |midpoint|, bound = radius, of the enclosure closest to excluding 0;
              control = the least magnitude in the control's enclosures, > 0 if they exclude 0
    symbols   measured = how many expressions do not simplify to 0; control likewise
"""

import dataclasses
from typing import NamedTuple

import numpy as np

import minimal_nn as nn
from minimal_nn import backend
from theory.claim import IDENTITIES, ExactForm, Measurement
from theory.numbers import arithmetic as arithmetics
from theory.numbers.jet import Jet
from theory.subjects.networks import (
    NORMALIZATIONS,
    invariant_weights,
    network_subject,
    rescaled,
    weight_groups,
)

EPS = 0.5  # of the controls
ETA, LAMBDA = 0.25, 2.0**-7
WIDTH, BATCH = 6, 12  # of the networks in balls
_A = 3


class Identity(NamedTuple):
    """What must vanish, and what must not.

    residual, control: lists of object arrays.  scale, control_scale: for each array, magnitudes
    that broadcast against it (object arrays or numbers), which residuals are told relative to.
    """

    residual: list
    scale: list
    control: list
    control_scale: list


@dataclasses.dataclass(frozen=True)
class ExactSubject:
    """A network and a batch in balls or symbols: `states` as in a NetworkSubject, at eps = 0.

    control: the same network without normalization.  a: the factor of rescalings.
    """

    normalization: str
    numbers: object  # Balls or Symbols
    states: tuple
    control: nn.Network
    X: np.ndarray
    targets: np.ndarray
    a: object
    exact = True  # measured by identities

    def rescaled(self, network):
        """Return `network` with its invariant weights multiplied by a."""
        return rescaled(network, self.a)

    @property
    def name(self):
        return f"{self.normalization} norm"

    @property
    def arithmetic(self):
        bits = self.numbers.bits
        return self.numbers.name if bits is None else f"ball {bits}"


def ball_numbers(bits):
    """Return balls of `bits`, and the factor a in them."""
    balls = arithmetics.Balls(bits)
    return balls, balls.number(_A)


def ball_subject(normalization, bits, seed=0):
    """Return a small network on digits in balls, before and after its training in float64."""
    balls, a = ball_numbers(bits)
    floats, control = (
        network_subject(kind, "float64", seed=seed, width=WIDTH, batch=BATCH, epochs=1)
        for kind in (normalization, "none")
    )
    return ExactSubject(
        normalization,
        balls,
        tuple(network.converted(balls.array, object) for network in floats.states),
        control.network.converted(balls.array, object),
        balls.array(floats.X),
        floats.targets,
        a,
    )


def symbol_subject(normalization, seed=0):
    """Return the smallest network whose identities are not trivial, its invariant weights symbols.

    Three examples of small integers and one unit (layer norm: one example, three units), a
    squared loss; all other parameters are small integers.  No activation, since tanh of two forms
    of one expression is not one expression.
    """
    symbols = arithmetics.Symbols()
    rng = np.random.default_rng(seed)
    examples, features, units = (1, 1, 3) if normalization == "layer" else (3, 2, 1)
    X = symbols.array([[2.0, 1.0], [-1.0, 3.0], [1.0, -1.0]])[:examples, :features]
    targets = symbols.array(rng.integers(-3, 4, (len(X), 1)).astype(float))

    def network(kind):
        layers = {
            "batch": [nn.Dense(units, bias=False), nn.BatchNorm(0.0)],
            "layer": [nn.Dense(units, bias=False), nn.LayerNorm(0.0)],
            "weight": [nn.WeightNorm(nn.Dense(units))],
            "none": [nn.Dense(units)],
        }[kind]
        network = nn.Network(
            [*layers, nn.Dense(1)], (features,), loss="mean_squared_error", dtype=np.float64
        )
        network = network.converted(symbols.array, object)
        invariant = invariant_weights(network)
        changes = {
            name: symbols.variables(name.replace(".", "_"), array.shape)
            if name in invariant or kind == "none"
            else symbols.array(rng.integers(1, 4, array.shape).astype(float))
            for name, array in network.parameters.items()
        }
        return network.with_parameters(changes)

    return ExactSubject(
        normalization,
        symbols,
        (network(normalization),),
        network("none"),
        X,
        targets,
        symbols.variables("a", positive=True),
    )


def subjects(options):
    """Return the identities' subjects for `python -m theory --arithmetic ball` or `symbol`."""
    if options.arithmetic == "symbol":
        return [symbol_subject(normalization, options.seed) for normalization in NORMALIZATIONS]
    return [ball_subject(norm, options.bits, options.seed) for norm in NORMALIZATIONS]


def identity(id, *, subjects=subjects):
    """Register the decorated function, subject -> Identity, as the claim's exact form."""

    def register(function):
        IDENTITIES[id] = ExactForm(lambda subject: measure(function, subject), subjects)
        return function

    return register


def measure(function, subject):
    """Evaluate an identity in the subject's arithmetic and return the Measurement."""
    with subject.numbers.working():
        result = function(subject)
        judge = _in_symbols if subject.numbers.name == "symbol" else _in_balls
        return judge(subject.numbers, result)


def _flat(numbers, arrays):
    """Return all entries in one array; the integers that np.where put in become numbers too."""
    entries = [entry for array in arrays for entry in np.asarray(array, dtype=object).ravel()]
    flat = np.empty(len(entries), dtype=object)
    flat[:] = [numbers.number(entry) if isinstance(entry, int) else entry for entry in entries]
    return flat


def _in_symbols(symbols, result):
    wrong = ~symbols.vanish(_flat(symbols, result.residual))
    control = ~symbols.vanish(_flat(symbols, result.control))
    return Measurement(
        measured=int(wrong.sum()),
        bound=0,
        how="0: every expression simplifies to 0",
        control=int(control.sum()),
        control_least=1,
        details={"expressions": int(wrong.size)},
    )


def _in_balls(balls, result):
    def sizes(scales, arrays):
        """Return the scale for each entry, 1 where it is 0 (all that is compared vanishes)."""
        spread = [
            np.broadcast_to(np.asarray(scale, dtype=object), np.shape(np.asarray(array, object)))
            for scale, array in zip(scales, arrays, strict=True)
        ]
        size = np.abs(balls.midpoints(_flat(balls, spread)))
        return np.where(size > 0, size, 1)

    residual, control = _flat(balls, result.residual), _flat(balls, result.control)
    scale = sizes(result.scale, result.residual)
    control_scale = sizes(result.control_scale, result.control)
    middle, radius = np.abs(balls.midpoints(residual)), balls.radii(residual)
    contain = balls.contain_zero(residual)
    # Midpoint and radius are rounded to longdouble here; whether 0 is inside was decided before.
    middle = np.where(contain, np.minimum(middle, radius), middle)
    excess = np.where(contain, middle / np.where(radius > 0, radius, 1), np.inf)
    at = int(np.argmax(excess))
    lower = balls.lower(control) / control_scale
    return Measurement(
        measured=(middle / scale)[at],
        bound=(radius / scale)[at],
        how="the radius of the enclosure: 0 lies inside",
        control=np.max(lower),
        control_least=100 * np.max(radius / scale),
        details={
            "enclosures": int(residual.size),
            "largest radius": np.max(radius),
            "control's enclosures that exclude 0": [int(np.sum(lower > 0)), int(lower.size)],
            "bits": balls.bits,
        },
    )


# What the identities are made of


def _norm(array):
    """Return the root of the sum of squares, or 1 for a sum of symbols (which has no size)."""
    return np.sqrt((array * array).sum()) if array.size else 1


def scale_of(subject, array):
    """Return what residuals of `array`'s kind are relative to: its norm, 1 for symbols."""
    return 1 if subject.numbers.name == "symbol" else _norm(array)


def scores_of(network, X):
    """Return the network's scores in training mode."""
    return network.forward(X, train=True)


def gradients_of(network, subject):
    """Return the gradients of the loss on the subject's batch, by name."""
    return network.loss_and_gradients(subject.X, subject.targets).gradients


def group_sum(arrays, per_unit):
    """Sum arrays over all axes, or over all but the last if per_unit."""
    return sum(
        array.sum(axis=tuple(range(array.ndim - 1))) if per_unit else array.sum()
        for array in arrays
    )


def _products(network, group, gradients):
    """Return <w, grad L> of a group, one for each unit or one for all."""
    terms = [network.parameters[name] * gradients[name] for name in group.parameters]
    return group_sum(terms, group.per_unit)


def _leak(network, group, trace):
    """Return what eps leaves of <w, grad L>: the sum of eps/(v + eps) dy (y - beta)."""
    name = group.absorbed_by
    layer, parameters = trace.layers[name], network.parameters
    kind = network.layers[network.names.index(name)].kind
    if kind == "weightnorm":
        v = group_sum([parameters[f"{name}.v"] * parameters[f"{name}.v"]], per_unit=True)
        shift = parameters.get(f"{name}.b", 0)
    else:
        axis = tuple(range(layer.x.ndim - 1)) if kind == "batchnorm" else -1
        count = layer.x.size // (layer.x.shape[-1] if kind == "batchnorm" else len(layer.x))
        centered = layer.x - layer.x.sum(axis=axis, keepdims=True) / count
        v = (centered * centered).sum(axis=axis, keepdims=True) / count
        shift = parameters[f"{name}.beta"]
    return group_sum([group.eps / (v + group.eps) * layer.dy * (layer.y - shift)], group.per_unit)


def with_direction(network, direction):
    """Return the network with its parameters as jets along `direction`, arrays by name."""
    copy = network.with_parameters()
    copy.parameters = {
        name: Jet(array, direction.get(name)) for name, array in network.parameters.items()
    }
    return copy


def directional(network, direction, X, targets):
    """Return the gradient and H d, its derivative along `direction`, by parameter name."""
    jets = with_direction(network, direction).step_gradients(Jet(X), targets).gradients
    values = {name: jet.value for name, jet in jets.items()}
    return values, {
        name: 0 * jet.value if jet.tangent is None else jet.tangent for name, jet in jets.items()
    }


def weights_of(network):
    """Return {name: array} of the invariant weights."""
    return {name: network.parameters[name] for name in invariant_weights(network)}


# The identities


@identity("scale-invariance")
def scale_invariance(subject):
    residual, scale = [], []
    for network in subject.states:
        plain = scores_of(network, subject.X)
        signs = {}
        for group in weight_groups(network):
            local = "g" if f"{group.absorbed_by}.g" in network.parameters else "gamma"
            name = f"{group.absorbed_by}.{local}"
            signs[name] = -network.parameters[name]
        mirrored = scores_of(network.with_parameters(signs), subject.X)
        residual += [
            scores_of(rescaled(network, subject.a), subject.X) - plain,
            scores_of(rescaled(network, -subject.a), subject.X) - mirrored,
        ]
        scale += [scale_of(subject, plain)] * 2
    control = subject.control
    plain = scores_of(control, subject.X)
    name = control.weights()[0]
    scaled = control.with_parameters({name: control.parameters[name] * subject.a})
    return Identity(
        residual, scale, [scores_of(scaled, subject.X) - plain], [scale_of(subject, plain)]
    )


@identity("penalty-rescaling")
def penalty_rescaling(subject):
    def objective(network, names, coefficient):
        square = sum((network.parameters[n] * network.parameters[n]).sum() for n in names)
        return network.loss(subject.X, subject.targets) + coefficient * square

    a = subject.a
    residual, scale = [], []
    for network in subject.states:
        names = invariant_weights(network)
        right = objective(network, names, LAMBDA * (a * a))
        residual.append(objective(rescaled(network, a), names, LAMBDA) - right)
        scale.append(right if subject.numbers.name == "ball" else 1)
    control = subject.control
    names = control.weights()[:1]
    scaled = control.with_parameters({name: a * control.parameters[name] for name in names})
    difference = objective(scaled, names, LAMBDA) - objective(control, names, LAMBDA * (a * a))
    return Identity(residual, scale, [difference], [scale[-1]])


@identity("eps-rescaling")
def eps_rescaling(subject):
    residual, scale, control = [], [], []
    for network in subject.states:
        scaled = rescaled(network.with_eps(_A**2 * EPS), subject.numbers.number(_A))
        right = scores_of(network.with_eps(EPS), subject.X)
        residual.append(scores_of(scaled, subject.X) - right)
        control.append(scores_of(scaled.with_eps(EPS), subject.X) - right)
        scale.append(scale_of(subject, right))
    return Identity(residual, scale, control, scale)


@identity("gradient-scaling")
def gradient_scaling(subject):
    def differences(network):
        plain = gradients_of(network, subject)
        scaled = gradients_of(rescaled(network, subject.a), subject)
        invariant = invariant_weights(network)
        pairs = {
            name: (subject.a * scaled[name] if name in invariant else scaled[name], plain[name])
            for name in plain
        }
        return [a - b for a, b in pairs.values()], [scale_of(subject, b) for _, b in pairs.values()]

    results = [differences(network) for network in subject.states]
    control = differences(subject.states[-1].with_eps(EPS))
    return Identity(
        [array for arrays, _ in results for array in arrays],
        [size for _, sizes in results for size in sizes],
        *control,
    )


@identity("gradient-orthogonality")
def gradient_orthogonality(subject):
    residual, scale, control, control_scale = [], [], [], []
    for network in subject.states:
        for eps in (0.0, EPS):
            leaky = network.with_eps(eps)
            trace = leaky.trace(subject.X, subject.targets)
            for group in leaky.invariance_groups():
                product = _products(leaky, group, trace.gradients)
                size = _sizes(subject, leaky, group, trace.gradients)
                residual.append(product - _leak(leaky, group, trace) if eps else product)
                scale.append(size)
                if eps:
                    control.append(product)
                    control_scale.append(size)
    network = subject.control
    gradients = gradients_of(network, subject)
    for name in network.weights()[:-1]:
        control.append((network.parameters[name] * gradients[name]).sum())
        control_scale.append(scale_of(subject, network.parameters[name] * gradients[name]))
    return Identity(residual, scale, control, control_scale)


def _sizes(subject, network, group, gradients):
    """Return |w| |grad L| for a group's units (1 for symbols)."""
    if subject.numbers.name == "symbol":
        return 1
    squares = [
        group_sum([arrays[name] * arrays[name] for name in group.parameters], group.per_unit)
        for arrays in (network.parameters, gradients)
    ]
    return np.sqrt(squares[0] * squares[1])


@identity("norm-growth")
def norm_growth(subject):
    update = backend.get("reference").update
    shrink = 1 - 2 * ETA * LAMBDA  # exact: powers of two
    residual, scale, control = [], [], []
    for network in subject.states:
        for eps in (0.0, EPS):
            leaky = network.with_eps(eps)
            trace = leaky.trace(subject.X, subject.targets)
            for group in leaky.invariance_groups():
                old = [leaky.parameters[name] for name in group.parameters]
                grad = [trace.gradients[name] for name in group.parameters]
                new = [
                    update.sgd(w, update.add_penalty(g, w, 2 * LAMBDA), ETA)
                    for w, g in zip(old, grad, strict=True)
                ]
                after, before, step = (
                    group_sum([w * w for w in arrays], group.per_unit)
                    for arrays in (new, old, grad)
                )
                plain = after - shrink**2 * before - ETA**2 * step
                cross = 2 * ETA * shrink * _leak(leaky, group, trace) if eps else 0
                residual.append(plain + cross)
                scale.append(after if subject.numbers.name == "ball" else 1)
                if eps:
                    control.append(plain)
    return Identity(residual, scale, control, scale[-len(control) :])


@identity("hessian-radial")
def hessian_radial(subject):
    def residuals(network):
        rows = [], []
        for group in weight_groups(network):
            direction = {name: network.parameters[name] for name in group.parameters}
            gradient, product = directional(network, direction, subject.X, subject.targets)
            for name in weights_of(network):
                inside = name in group.parameters
                rows[0].append(product[name] + gradient[name] if inside else product[name])
                rows[1].append(scale_of(subject, gradient[name]))
        return rows

    results = [residuals(network) for network in subject.states]
    return Identity(
        [array for arrays, _ in results for array in arrays],
        [size for _, sizes in results for size in sizes],
        *residuals(subject.states[-1].with_eps(EPS)),
    )


@identity("hessian-scaling")
def hessian_scaling(subject):
    rng = np.random.default_rng(0)

    def residuals(network):
        direction = {
            name: subject.numbers.array(rng.integers(1, 8, array.shape).astype(float))
            for name, array in weights_of(network).items()
        }
        data = subject.X, subject.targets
        plain = directional(network, direction, *data)[1]
        scaled = directional(rescaled(network, subject.a), direction, *data)[1]
        square = subject.a * subject.a
        names = tuple(direction)
        return (
            [square * scaled[name] - plain[name] for name in names],
            [scale_of(subject, plain[name]) for name in names],
        )

    results = [residuals(network) for network in subject.states]
    return Identity(
        [array for arrays, _ in results for array in arrays],
        [size for _, sizes in results for size in sizes],
        *residuals(subject.states[-1].with_eps(EPS)),
    )
