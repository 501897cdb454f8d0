r"""What symmetries conserve: exact discrete laws of gradient descent with decay."""

import dataclasses

import numpy as np

import minimal_nn as nn
from minimal_nn import backend
from minimal_nn.data import digits
from theory.claim import WORST_CASE
from theory.claims.followers.table import NARROW, follower, networks
from theory.measures.bits import bit_exact, differing
from theory.measures.closest import Closest
from theory.measures.exact_runs import UPDATE
from theory.measures.groups import group_sum
from theory.measures.orthogonality import orthogonality
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.networks import dtype_name, network_subject, to_numpy, weight_groups

_ETA, _DECAY, _BATCH, _WIDE = 0.25, 0.5, 16, np.longdouble
_SHRINK = 1 - _ETA * _DECAY
_SOFTMAX = "sums of the softmax's exponentials do not simplify to 1", "symbol"


def _step(network, gradients):
    """Return the parameters after a step of SGD with decay."""
    after = network.with_parameters()
    nn.SGD(_ETA, weight_decay=_DECAY).step(after, gradients)
    return to_numpy(network, after.parameters)


def _bounded_step(w, g):
    return UPDATE.sgd(w, UPDATE.add_penalty(g, w, _DECAY), _ETA)


@follower(
    id="translation-law",
    statement=r"\sum_k w'_{ik} = (1 - \eta \lambda_2) \sum_k w_{ik}",
    source="Kunin et al. 2021, equation 18, in discrete form",
    cite="KSG21",
    assumptions=("cross-entropy; the weights of an input to all scores, and their biases", "SGD"),
    control="the mean squared error, which is not invariant under translations of all scores",
    derivation=r"""
The softmax does not feel a number added to all scores, so $\sum_k \partial L/\partial z_k = 0$, and
with $g = h^\top \partial L/\partial z$ every row of $g$ sums to 0. Gradient flow has $e^{-\lambda
t}$ for $(1 - \eta \lambda)^t$.

Bound: the loss's backward pass from the computed scores, and the update, on numbers that carry
their rounding error.
""",
    subjects=networks,
    exact="ball",
    unfit=((WORST_CASE, "float16"), _SOFTMAX),
    numpy_only="sums that carry bounds run through its lines alone",
)
def translation_law(subject):
    """|sum_k w'_ik - (1 - x) sum_k w_ik| of the row that comes closest to its bound."""
    closest, control = Closest(), 0.0
    loss = backend.get("reference").loss
    for network in subject.states:
        last = network.names[-1]
        for step in range(subject.steps(3)):
            X, targets = subject.batch(step, _BATCH)
            trace = network.trace(X, targets)
            new = _step(network, trace.gradients)
            layer = trace.layers[last]
            h, z = (network.backend.to_numpy(a) for a in (layer.x, layer.y))
            dz = loss.backward(1, loss.forward(Bounded(z), targets, "cross_entropy")[1])
            gradients = {f"{last}.W": Bounded(h.T) @ dz, f"{last}.b": dz.sum(axis=0)}
            squared = _squared_error_step(network, X, targets)
            for name, g in gradients.items():
                w = network.backend.to_numpy(network.parameters[name])
                bounded = _bounded_step(Bounded(w), g)
                sums = new[name].astype(_WIDE).sum(axis=-1)
                expected = _WIDE(_SHRINK) * w.astype(_WIDE).sum(axis=-1)
                rounded = gamma(w.shape[-1] + 2, unit_roundoff(_WIDE)) * np.abs(w).sum(axis=-1)
                closest.offer(
                    np.abs(sums - expected).astype(float),
                    (bounded.error.sum(axis=-1) + 2 * rounded).astype(float),
                )
                other = squared[name].astype(_WIDE).sum(axis=-1) - expected
                control = max(control, float(np.max(np.abs(other))))
    return closest.measurement(
        how="running error of the loss's backward pass and of the update", control=control
    )


def _squared_error_step(network, X, targets):
    """Return the parameters after a step on the mean squared error."""
    other = _with_squared_error(network)
    return _step(other, _squared_gradients(other, X, targets))


def _with_squared_error(network):
    """Return the network with the mean squared error for a loss."""
    other = nn.Network(
        network.layers, network.input_shape, loss="mean_squared_error", dtype=network.dtype
    )
    return other.with_parameters(to_numpy(network, network.parameters))


def _squared_gradients(network, X, targets):
    """Return the gradients on one-hot targets from 1/2 on, whose sum is not that of the scores."""
    wanted = np.eye(network.shapes[-1][0], dtype=network.dtype)[targets] + network.dtype.type(0.5)
    return network.loss_and_gradients(X, wanted).gradients


_RHO, _SWING = 0.125, 1.5  # at eta decay = 3/8 both roots are real: 1/2 and 1/4


@follower(
    id="translation-oscillator",
    statement=r"s_{t+1} - (1 + \rho - x) s_t + \rho s_{t-1} = 0, \quad s = \sum_k w_{ik}",
    source="Kunin et al. 2021 (momentum as a damped oscillator), in discrete form",
    cite="KSG21",
    assumptions=("those of translation-law, with heavy ball: rho = 1/8, x = 3/8",),
    control="the mean squared error, which is not invariant under translations of all scores",
    derivation=r"""
Sums over classes do not feel the gradient, so $s$ and the buffer's sum obey $v' = \rho v +
\lambda_2 s$, $s' = s - \eta v'$; with $\eta v_t = s_{t-1} - s_t$ that is the recursion. It swings
where $(1 + \rho - x)^2 < 4 \rho$, $x > (1 - \sqrt \rho)^2$. The published oscillator, in the time
$\eta t$, has the damping $\gamma = (1 - \rho)/(\eta (1 + \rho))$ and the frequency $\omega^2 = 2
\lambda_2/(\eta (1 + \rho))$, and swings where $\omega > \gamma$, $x > (1 - \rho)^2/(2 (1 + \rho))$:
that is the limit for $\rho \to 1$, and half of it at $\rho = 0$.

Bound: the loss's backward pass and the update on numbers that carry their rounding error, and the
rounding of $w_t$ in the step before.
""",
    erratum="Kunin et al. 2021: the oscillator of momentum, in its continuous form, swings for x > "
    "(1 - rho)^2/(2 (1 + rho)); the iteration does for x > (1 - sqrt rho)^2. At rho = 1/8, x = 3/8 "
    "the first says that it swings; the recursion that is measured has the roots 1/2 and 1/4.",
    subjects=networks,
    exact="ball",
    unfit=((WORST_CASE, "float16"), _SOFTMAX),
    numpy_only="sums that carry bounds run through its lines alone",
)
def translation_oscillator(subject):
    """|s'' - (1 + rho - x) s' + rho s| of the row and step that come closest to their bound."""
    closest, control = Closest(), 0.0
    for network in subject.states:
        for residual, bound, squared in _swings(subject, network):
            closest.offer(residual, bound)
            control = max(control, float(np.max(squared)))
    x, trace = _ETA * _SWING, 1 + _RHO - _ETA * _SWING
    published = 2 * x / (1 + _RHO) > ((1 - _RHO) / (1 + _RHO)) ** 2
    return closest.measurement(
        how="running error of the loss's backward pass and of the update, and rho times that of "
        "the update before",
        control=control,
        control_as_predicted=bool(published and trace * trace > 4 * _RHO),
    )


def _swings(subject, network):
    """Yield residuals, bounds and the residuals of the squared error, along a run."""
    loss, last = backend.get("reference").loss, network.names[-1]
    names = (f"{last}.W", f"{last}.b")
    runs = [network.with_parameters(), _with_squared_error(network)]
    optimizers = [nn.Momentum(_ETA, momentum=_RHO, weight_decay=_SWING) for _ in runs]
    sums, rounded = [], None
    for step in range(subject.steps(5)):
        X, targets = subject.batch(step, _BATCH)
        trace = runs[0].trace(X, targets)
        gradients = [trace.gradients, _squared_gradients(runs[1], X, targets)]
        w = to_numpy(network, {n: runs[0].parameters[n] for n in names})
        buffers = {n: optimizers[0].state.get(n, {"buffer": 0 * w[n]})["buffer"] for n in names}
        for run, optimizer, g in zip(runs, optimizers, gradients, strict=True):
            optimizer.step(run, g)
        layer = trace.layers[last]
        h, z = (network.backend.to_numpy(a) for a in (layer.x, layer.y))
        dz = loss.backward(1, loss.forward(Bounded(z), targets, "cross_entropy")[1])
        each = {names[0]: Bounded(h.T) @ dz, names[1]: dz.sum(axis=0)}
        new = to_numpy(network, {n: runs[0].parameters[n] for n in names})
        sums.append([w, to_numpy(network, {n: runs[1].parameters[n] for n in names})])
        errors = {}
        for n in names:
            v = Bounded(network.backend.to_numpy(buffers[n]))
            penalized = UPDATE.add_penalty(each[n], Bounded(w[n]), _SWING)
            errors[n] = UPDATE.momentum(Bounded(w[n]), penalized, v, _ETA, _RHO)[0].error
        if len(sums) > 1:
            other = sums[-3:] if len(sums) > 2 else None
            for n in names:
                residual, size = _three(new[n], w[n], sums[-2][0][n])
                bound = errors[n].sum(axis=-1) + _RHO * rounded[n].sum(axis=-1) + size
                squared = _three(*(o[1][n] for o in reversed(other)))[0] if other else 0 * residual
                yield residual.astype(float), bound.astype(float), squared.astype(float)
        moved = to_numpy(network, {n: optimizers[0].state[n]["buffer"] for n in names})
        rounded = {n: UPDATE.sgd(Bounded(w[n]), Bounded(moved[n]), _ETA).error for n in names}


def _three(after, now, before):
    """Return |s'' - (1 + rho - x) s' + rho s| of sums over classes, and what summing rounds."""
    trace = _WIDE(1 + _RHO - _ETA * _SWING)
    sums = [array.astype(_WIDE).sum(axis=-1) for array in (after, now, before)]
    size = sum(np.abs(array).sum(axis=-1) for array in (after, now, before))
    rounding = gamma(after.shape[-1] + 4, unit_roundoff(_WIDE)) * 2 * size
    return np.abs(sums[0] - trace * sums[1] + _WIDE(_RHO) * sums[2]), rounding


_SQUARE_DECAY = 0.75  # 2 eta decay = 3/8: the roots are again 1/2 and 1/4


@follower(
    id="norm-oscillator",
    statement=r"|w_{t+2}|^2 - (1 + \rho - 2 x) |w_{t+1}|^2 + \rho |w_t|^2 = \eta^2 (|v_{t+2}|^2 + "
    r"\rho |v_{t+1}|^2)",
    source="Kunin et al. 2021 (the squared norm as a driven oscillator), in exact discrete form",
    cite="KSG21",
    assumptions=(
        "heavy ball with decay, eps = 0: rho = 1/8, x = 3/16",
        "w_{t+1} = w_t - eta v_{t+1}, v the buffer with its step's gradient and decay in it",
    ),
    control="the squared gradient in the place of the squared buffer",
    derivation=r"""
With $A_t = \langle w_t, v_{t+1} \rangle$: $|w_{t+1}|^2 - |w_t|^2 = -2 \eta A_t + \eta^2
|v_{t+1}|^2$, and as $\langle w, g \rangle = 0$, $A_{t+1} = \rho (A_t - \eta |v_{t+1}|^2) +
\lambda_2 |w_{t+1}|^2$. Without $A$ that is the recursion: a damped oscillator that $|v|^2$ drives,
exactly. Where $|w|^2$ and $|v|^2$ stay, $2 x |w|^2 = \eta^2 (1 + \rho) |v|^2$, of which
equilibrium-norm is made. Its continuous form, in the time $\eta t$, is the published one: $\gamma =
(1 - \rho)/(\eta (1 + \rho))$, $\omega^2 = 4 \lambda_2/(\eta (1 + \rho))$, force $2 |v|^2$. That
swings for $x > (1 - \rho)^2/(4 (1 + \rho))$, the iteration for $2 x > (1 - \sqrt \rho)^2$.

Bound: the errors of update and buffer and of $\langle w, g \rangle$, through the recursion,
relative to $|w|^2$.
""",
    erratum="Kunin et al. 2021: the oscillator of |w|^2 under momentum, in its continuous form, "
    "swings for x > (1 - rho)^2/(4 (1 + rho)); the iteration does for 2 x > (1 - sqrt rho)^2. At "
    "rho = 1/8, x = 3/16 the first says that it swings; the recursion that is measured has the "
    "roots 1/2 and 1/4.",
    subjects=networks,
    exact="ball",
    unfit=((WORST_CASE, "float16"),),
)
def norm_oscillator(subject):
    """The recursion's residual over |w|^2, of the group and step that come closest to the bound."""
    closest, control = Closest(), 0.0
    for network in subject.states:
        optimizer = nn.Momentum(_ETA, momentum=_RHO, weight_decay=_SQUARE_DECAY)
        current, groups = network.with_parameters(), weight_groups(network)
        v = {k: np.zeros_like(a) for k, a in to_numpy(network, network.parameters).items()}
        before = [None] * len(groups)
        for step in range(subject.steps(5)):
            X, targets = subject.batch(step, _BATCH)
            trace, at = current.trace(X, targets), current.with_parameters()
            w, g = to_numpy(current, current.parameters), to_numpy(current, trace.gradients)
            optimizer.step(current, trace.gradients)
            new = to_numpy(current, current.parameters)
            pushed = to_numpy(current, {k: optimizer.state[k]["buffer"] for k in w})
            errors = {k: _heavy_errors(w[k], g[k], v[k]) for k in w}
            for index, group in enumerate(groups):
                R, after, B, pull = (_square(x, group) for x in (w, new, pushed, g))
                by_w, by_v = _against(new, errors, 0, group), _against(w, errors, 1, group)
                lag = _against(pushed, errors, 0, group)
                if before[index] is not None:
                    R0, B0, pull0, old_w, old_lag = before[index]
                    plain = after - (1 + _RHO - 2 * _X_SQUARE) * R + _RHO * R0
                    residual = np.abs(plain - _ETA**2 * (B + _RHO * B0))
                    cross = orthogonality(at, group, X, targets, trace)[3]
                    terms = sum(w[k].size for k in group.parameters) // R.size + 8
                    sums = 8 * gamma(terms, unit_roundoff(_WIDE)) * (after + R + R0)
                    bound = 2 * by_w + 2 * _RHO * old_w + sums
                    bound = bound + 2 * _ETA * (_RHO * old_lag + cross + by_v)
                    closest.offer((residual / R).astype(float), (bound / R).astype(float))
                    wrong = np.abs(plain - _ETA**2 * (pull + _RHO * pull0)) / R
                    control = max(control, float(np.max(wrong)))
                before[index] = R, B, pull, by_w, lag
            v = pushed
    swings = 4 * _X_SQUARE / (1 + _RHO) > ((1 - _RHO) / (1 + _RHO)) ** 2
    trace = 1 + _RHO - 2 * _X_SQUARE
    return closest.measurement(
        how="errors of update, buffer and <w, g> through the recursion, relative to |w|^2",
        control=control,
        control_as_predicted=bool(swings and trace * trace > 4 * _RHO),
    )


_X_SQUARE = _ETA * _SQUARE_DECAY


def _square(arrays, group):
    """Return |.|^2 of a group, in longdouble."""
    return group_sum([np.square(arrays[k].astype(_WIDE)) for k in group.parameters], group.per_unit)


def _against(arrays, errors, which, group):
    """Return sum |x| e of a group, e the errors of w' (0) or of v' (1)."""
    products = [np.abs(arrays[k].astype(_WIDE)) * errors[k][which] for k in group.parameters]
    return group_sum(products, group.per_unit)


def _heavy_errors(w, g, buffer):
    """Return the errors of w' and v' of a step with decay."""
    penalized = UPDATE.add_penalty(Bounded(g), Bounded(w), _SQUARE_DECAY)
    new, v = UPDATE.momentum(Bounded(w), penalized, Bounded(buffer), _ETA, _RHO)
    return new.error, v.error


@follower(
    id="gain-and-matrix",
    statement=r"D_i = |W_{i \cdot}|^2 - \gamma_i^2: \quad D_i' = (1 - x)^2 D_i + \eta^2 "
    r"(|g_{W_i}|^2 - g_{\gamma_i}^2)",
    source="Kunin et al. 2021, equation 20 (rescale symmetry), in discrete form, for a gain",
    cite="KSG21",
    assumptions=("RMS norm's gain, ReLU, and the matrix behind it", "SGD, any decay"),
    control="batch norm, whose shift stands between gain and ReLU",
    derivation=r"""
$\gamma_i \to c \gamma_i$, $W_{i \cdot} \to W_{i \cdot}/c$ leaves the outputs as they are, so
$\langle W_{i \cdot}, g_{W_i} \rangle = \gamma_i g_{\gamma_i}$: both are $\sum_n h_{ni} \, \partial
L/\partial h_{ni}$, $h$ the ReLU's output. The cross terms of $|w - \eta (g + \lambda_2 w)|^2$ are
equal and leave the difference.

Bound: both sums from the same $h$ and cotangent, on numbers that carry their rounding error, and
the update's.
""",
    subjects=lambda options: networks(options, "rms"),
    exact="ball",
    unfit=((WORST_CASE, "float16"),),
    numpy_only="sums that carry bounds run through its lines alone",
)
def gain_and_matrix(subject):
    """|D' - law| of the unit that comes closest to its bound."""
    closest, control = Closest(), 0.0
    dtype = subject.network.dtype
    other = network_subject("batch", str(dtype), backend=subject.network.backend.name).network
    for network in subject.states:
        for step in range(subject.steps(3)):
            batch = subject.batch(step, _BATCH)
            for gain, matrix in (("rmsnorm1", "dense2"), ("rmsnorm2", "dense3")):
                residual, bound = _gain_residual(network, gain, matrix, *batch)
                closest.offer(residual, bound)
            residual, _ = _gain_residual(other, "batchnorm2", "dense3", *batch)
            control = max(control, float(np.max(residual)))
    return closest.measurement(
        how="running error of <W, g> - gamma g_gamma and of the update", control=control
    )


def _gain_residual(network, gain, matrix, X, targets):
    """Return |D' - law| and its bound for each unit."""
    trace = network.trace(X, targets)
    new = _step(network, trace.gradients)
    w, g = to_numpy(network, network.parameters), to_numpy(network, trace.gradients)
    layer = trace.layers[matrix]
    h, dy = (Bounded(network.backend.to_numpy(a)) for a in (layer.x, layer.dy))
    W, gamma_ = w[f"{matrix}.W"], w[f"{gain}.gamma"]
    by_matrix = (Bounded(W) * (h.T @ dy)).sum(axis=1)
    by_gain = (h * (dy @ Bounded(W.T))).sum(axis=0)
    # gamma times what is normalized is h up to three roundings
    loose = 3 * unit_roundoff(network.dtype) * np.abs((h * (dy @ Bounded(W.T))).value).sum(axis=0)
    cross = by_matrix.error + by_gain.error + loose
    update = 0.0
    for name, axis in ((f"{matrix}.W", 1), (f"{gain}.gamma", None)):
        error = _bounded_step(Bounded(w[name]), Bounded(g[name])).error
        change = 2 * np.abs(new[name]) * error + error * error
        update = update + (change.sum(axis=1) if axis else change)

    def D(arrays):
        return np.square(arrays[f"{matrix}.W"].astype(_WIDE)).sum(axis=1) - np.square(
            arrays[f"{gain}.gamma"].astype(_WIDE)
        )

    law = _WIDE(_SHRINK) ** 2 * D(w) + _WIDE(_ETA) ** 2 * D(g)
    terms = gamma(W.shape[1] + 8, unit_roundoff(_WIDE)) * (
        np.square(W).sum(axis=1) + np.square(gamma_)
    )
    bound = update + 2 * _ETA * _SHRINK * cross + 3 * terms
    return np.abs(D(new) - law).astype(float), bound.astype(float)


# Networks that are homogeneous as a whole


@dataclasses.dataclass(frozen=True)
class Homogeneous:
    """A network of matrices and ReLUs on the digits; with biases it is the control."""

    network: nn.Network
    control: nn.Network
    X: np.ndarray
    targets: np.ndarray
    name: str = "relu, no bias"

    arithmetic = property(lambda self: dtype_name(self.network.dtype))


def homogeneous_subjects(options):
    """Return the network in each dtype."""
    if options.backend == "cuda":
        return []
    return [_homogeneous(dtype, options) for dtype in options.dtypes]


def _homogeneous(dtype, options):
    data = digits(dtype=np.dtype(dtype))
    rows = np.random.default_rng(options.seed).permutation(len(data.X_train))[:24]
    shape = data.X_train.shape[1:]

    def made(bias):
        hidden = [nn.Dense(16, bias=bias), nn.ReLU(), nn.Dense(12, bias=bias), nn.ReLU()]
        layers = [*hidden, nn.Dense(10, bias=bias)]
        network = nn.Network(layers, shape, rng=options.seed, dtype=dtype, backend=options.backend)
        arrays = to_numpy(network, network.parameters)
        return network.with_parameters(
            {name: np.ones_like(a) for name, a in arrays.items() if name.endswith(".b")}
        )

    return Homogeneous(made(False), made(True), data.X_train[rows], data.y_train[rows])


@follower(
    id="homogeneous-network",
    statement=r"f(a \theta) = a^M f(\theta): \quad J_\theta \theta = M f(\theta)",
    source="Zhang et al. 2019, lemma 2",
    cite="ZWX19",
    assumptions=("M layers of weights, ReLU, no biases; no normalization", "a = 2^k"),
    control="with biases at 1",
    derivation=r"""
Each layer's output is a times what it was for each layer before it that is scaled. So for the
squared error's Gauss-Newton matrix $\theta^\top G \theta = M^2 E |f|^2$: decay by it penalizes the
output, not the weights. With $a = 2^k$ both sides have the same bits.
""",
    subjects=homogeneous_subjects,
    exact="ball",
    unfit=(NARROW,),
)
def homogeneous_network(subject):
    """Scores at 2^k theta that are not 2^(3 k) times those at theta."""

    def count(network, k):
        arrays = to_numpy(network, network.parameters)
        scaled = network.with_parameters({n: np.ldexp(a, k) for n, a in arrays.items()})
        plain, other = (
            network.backend.to_numpy(net.forward(subject.X)) for net in (network, scaled)
        )
        return differing(other, np.ldexp(plain, 3 * k))

    wrong = sum(count(subject.network, k) for k in (-8, -3, -1, 1, 2, 7))
    return bit_exact(wrong, count(subject.control, 1), {"layers": 3})


@follower(
    id="layers-share-product",
    statement=r"\langle W_l, g_{W_l} \rangle = \sum_n \langle f_n, \partial L/\partial f_n \rangle "
    r"\text{ for every layer } l",
    source="Zhang et al. 2019, lemma 2; Du et al. 2018 (balanced layers)",
    cite="ZWX19",
    assumptions=("those of homogeneous-network",),
    control="with biases at 1",
    derivation=r"""
$f$ is of degree 1 in every layer: $J_l W_l = f$, and $\langle W_l, g_l \rangle = \langle J_l W_l,
\partial L/\partial f \rangle$. So under gradient flow $|W_l|^2 - |W_m|^2$ is conserved, and decay
lets it die out.

Bound: the running errors of the three products of each layer, from the last one down.
""",
    subjects=homogeneous_subjects,
    exact="ball",
    unfit=((WORST_CASE, "float16"),),
    numpy_only="sums that carry bounds run through its lines alone",
)
def layers_share_their_product(subject):
    """|<W_l, g_l> - sum <f, dL/df>| of the layer that comes closest to its bound."""
    closest = Closest()
    total, each = _products(subject.network, subject.X, subject.targets)
    bounds = _product_bounds(subject.network, subject.X, subject.targets)
    for name, product in each.items():
        closest.offer(float(abs(product - total)), bounds[name])
    other, wrong = _products(subject.control, subject.X, subject.targets)
    return closest.measurement(
        how="running errors of products, layer by layer, from the last one down",
        control=max(float(abs(product - other)) for product in wrong.values()),
    )


@follower(
    id="rescale-law",
    statement=r"D_j = |W_{\cdot j}|^2 - |V_{j \cdot}|^2: \quad D_j' = (1 - x)^2 D_j + \eta^2 "
    r"(|g_{W_{\cdot j}}|^2 - |g_{V_{j \cdot}}|^2)",
    source="Kunin et al. 2021, equation 20, in discrete form; Du et al. 2018",
    cite="KSG21",
    assumptions=("W leads into ReLUs and V out of them; no biases; SGD",),
    control="with biases at 1, left out of D",
    derivation=r"""
A unit's $W_{\cdot j}$ times $a$ and $V_{j \cdot}$ over $a$ leave the outputs, as ReLU is
homogeneous, so $\langle W_{\cdot j}, g \rangle = \langle V_{j \cdot}, g \rangle$: both are
$\sum_n h_{nj} \, \partial L/\partial h_{nj}$. In $|W'|^2 - |V'|^2$ they cancel. Gradient flow keeps
$D$ but for decay; a step does not: it adds the difference of the squared gradients.

Bound: the running errors of the products that make the gradients, and of the update.
""",
    subjects=homogeneous_subjects,
    exact="ball",
    unfit=((WORST_CASE, "float16"),),
    numpy_only="sums that carry bounds run through its lines alone",
)
def rescale_law(subject):
    """|D' - law| of the unit that comes closest to its bound."""
    closest, control = Closest(), 0.0
    for into, out in (("dense1", "dense2"), ("dense2", "dense3")):
        residual, bound = _rescale_residual(subject.network, into, out, subject)
        closest.offer(residual, bound)
        control = max(
            control, float(np.max(_rescale_residual(subject.control, into, out, subject)[0]))
        )
    return closest.measurement(
        how="running error of <W, g> - <V, g> and of the update", control=control
    )


def _rescale_residual(network, into, out, subject):
    """Return |D' - law| and its bound for each unit between two layers."""
    trace = network.trace(subject.X, subject.targets)
    new = _step(network, trace.gradients)
    w, g = to_numpy(network, network.parameters), to_numpy(network, trace.gradients)
    (x, dz), (h, dy) = (
        tuple(network.backend.to_numpy(a) for a in (trace.layers[name].x, trace.layers[name].dy))
        for name in (into, out)
    )
    sides = {f"{into}.W": 0, f"{out}.W": 1}  # the axis that is summed over
    W, V = (w[name] for name in sides)
    cross = (np.abs(W) * (Bounded(x.T) @ Bounded(dz)).error).sum(axis=0)
    cross = cross + (np.abs(V) * (Bounded(h.T) @ Bounded(dy)).error).sum(axis=1)
    cross = cross + (np.abs(dz) * (Bounded(x) @ Bounded(W)).error).sum(axis=0)
    cross = cross + (np.abs(h) * (Bounded(dy) @ Bounded(V.T)).error).sum(axis=0)
    update = 0.0
    for name, axis in sides.items():
        error = _bounded_step(Bounded(w[name]), Bounded(g[name])).error
        update = update + (2 * np.abs(new[name]) * error + error * error).sum(axis=axis)

    def D(arrays):
        one, other = (
            np.square(arrays[name].astype(_WIDE)).sum(axis=axis) for name, axis in sides.items()
        )
        return one - other

    law = _WIDE(_SHRINK) ** 2 * D(w) + _WIDE(_ETA) ** 2 * D(g)
    terms = gamma(max(W.shape[0], V.shape[1]) + 8, unit_roundoff(_WIDE))
    sums = terms * (np.square(W).sum(axis=0) + np.square(V).sum(axis=1))
    bound = update + 2 * _ETA * _SHRINK * cross + 3 * sums
    return np.abs(D(new) - law).astype(float), bound.astype(float)


def _products(network, X, targets):
    """Return sum <f, dL/df>, and {layer: <W, g>}."""
    trace = network.trace(X, targets)
    last = trace.layers[network.names[-1]]
    f, df = (network.backend.to_numpy(a).astype(_WIDE) for a in (last.y, last.dy))
    w, g = to_numpy(network, network.parameters), to_numpy(network, trace.gradients)
    each = {n: (w[n].astype(_WIDE) * g[n]).sum() for n in w if n.endswith(".W")}
    return (f * df).sum(), each


def _product_bounds(network, X, targets):
    """Return bounds of <W, g> - sum <f, dL/df>, {layer: bound}.

    sum dz z = <W, x' dz> = sum dx x in each layer, up to what its three products are rounded by,
    and a ReLU leaves sum dx x as it is.
    """
    trace, bounds, passed = network.trace(X, targets), {}, 0.0
    for name in reversed(network.names):
        W = network.parameters.get(f"{name}.W")
        if W is None:
            continue
        layer = trace.layers[name]
        x, dz, W = (network.backend.to_numpy(a) for a in (layer.x, layer.dy, W))
        z_error, dx_error = (Bounded(x) @ Bounded(W)).error, (Bounded(dz) @ Bounded(W.T)).error
        own = (np.abs(W) * (Bounded(x.T) @ Bounded(dz)).error).sum()
        forward = (np.abs(dz) * z_error).sum()
        bounds[f"{name}.W"] = float(passed + own + forward)
        passed = passed + forward + (np.abs(x) * dx_error).sum()
    return bounds
