"""The claims on networks of one's own: right, wrong, and refused in a sentence."""

import numpy as np
import pytest

import minimal_nn as nn
from minimal_nn import backend, mutants
from minimal_nn.invariance import Absorbed
from theory import claims_on
from theory.measures.orthogonality import layer_traces
from theory.yours.networks import ON_NETWORKS


def dense(*layers):
    return [nn.Flatten(), *layers, nn.Dense(10)]


NETWORKS = {
    "biases before batch norm": dense(nn.Dense(7), nn.BatchNorm(), nn.ReLU()),
    "layer norm": dense(nn.Dense(7), nn.LayerNorm(), nn.Tanh(), nn.Dense(5), nn.LayerNorm()),
    "weight norm": dense(nn.WeightNorm(nn.Dense(6), eps=1e-3), nn.ReLU()),
    "blocks": [
        *(nn.Conv2d(3), nn.BatchNorm(), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Residual([nn.Conv2d(3), nn.BatchNorm(), nn.ReLU()]), nn.Flatten()),
        *(nn.Sequential([nn.Dense(5), nn.LayerNorm()]), nn.Dense(10)),
    ],
    "group norm": [
        *(nn.Conv2d(4), nn.GroupNorm(2), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(3, bias=False)),
        *(nn.GroupNorm(3), nn.Tanh(), nn.AveragePool2d(), nn.Dense(6), nn.RMSNorm(), nn.Dense(10)),
    ],
    "images": [
        *(nn.Conv2d(3, kernel=5, stride=2, padding=2), nn.BatchNorm(), nn.ReLU()),
        *(nn.WeightNorm(nn.Conv2d(2)), nn.MaxPool2d(2), nn.Flatten(), nn.Dense(10)),
    ],
}


def drawn(seed, dtype, examples=20):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((examples, 8, 8, 1)).astype(dtype), rng.integers(0, 10, examples)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("name", NETWORKS)
def test_right_networks_are_verified(name, dtype):
    """After some training, too: then a bias before batch norm is rounding, and not 0."""
    X, y = drawn(1, dtype)
    network = nn.Network(NETWORKS[name], (8, 8, 1), rng=2, dtype=dtype)
    nn.fit(network, nn.SGD(0.05), X, y, epochs=2, batch_size=10, progress=False)
    before = {name: array.copy() for name, array in network.parameters.items()}
    verdicts = claims_on(network, X, y, name=name[:12])
    assert [v.claim.id for v in verdicts] == list(ON_NETWORKS)
    for verdict in verdicts:
        assert verdict.verified, verdict
        assert (verdict.subject, verdict.arithmetic) == (name[:12], np.dtype(dtype).name)
    for key, array in before.items():
        assert np.array_equal(network.parameters[key], array)


def test_layers_within_layers_are_traced_as_if_they_stood_in_the_network():
    inner = [nn.Dense(5), nn.BatchNorm(), nn.Tanh()]
    X, y = drawn(6, np.float64)
    flat, nested = (
        nn.Network(dense(*layers), (8, 8, 1), rng=3, dtype=np.float64)
        for layers in (inner, [nn.Sequential(inner)])
    )
    plain = flat.trace(X, y).layers
    found = layer_traces(nested, nested.trace(X, y))
    for name in ("dense1", "batchnorm1", "tanh1"):
        for one, other in zip(plain[name][1:], found[f"sequential1.{name}"][1:], strict=True):
            assert np.array_equal(one, other), name


BRANCHES = {
    "one after the other": [
        nn.Sequential([nn.Dense(6, bias=False), nn.Sequential([nn.Tanh(), nn.Dense(4)])]),
        nn.Sequential([nn.Sequential([nn.BatchNorm(), nn.ReLU()])]),
    ],
    "each with its norm": [
        *(nn.Dense(12), nn.BatchNorm(), nn.ReLU()),
        nn.Residual([nn.Dense(4), nn.BatchNorm()], shortcut=[nn.Dense(4), nn.LayerNorm()]),
    ],
    "from one weight": [
        nn.Dense(6),
        nn.Residual([nn.RMSNorm(), nn.Dense(5)], shortcut=[nn.LayerNorm(), nn.Dense(5)]),
    ],
    "a branch of branches": [
        nn.Dense(6, bias=False),
        nn.Residual(
            [nn.Residual([nn.BatchNorm()], shortcut=[nn.Dense(6, bias=False), nn.BatchNorm()])],
            shortcut=[nn.ReLU(), nn.WeightNorm(nn.Dense(6)), nn.BatchNorm()],
        ),
    ],
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_scale_is_followed_into_the_branches_that_absorb_it(name):
    """Also with an eps, whose leak is the sum of the branches'."""
    network = nn.Network(dense(*BRANCHES[name], nn.Tanh()), (8, 8, 1), rng=6, dtype=np.float64)
    verdicts = words(network, claims=["gradient-orthogonality", "norm-growth"])
    assert all(verdicts.values()), verdicts
    fault = next(m for m in mutants.MUTANTS if m.name == "variance-term-missing")
    if name != "from one weight":  # where no batch norm is
        with mutants.planted(fault):
            wrong = words(network, claims=["gradient-orthogonality", "norm-growth"])
        assert {v.word for v in wrong.values()} == {"FAILS"}, wrong


def test_numbers_as_targets_are_verified():
    X, _ = drawn(3, np.float64)
    layers = [nn.Flatten(), nn.Dense(5), nn.BatchNorm(), nn.Tanh(), nn.Dense(2)]
    network = nn.Network(layers, (8, 8, 1), loss="mean_squared_error", dtype=np.float64)
    targets = np.random.default_rng(0).standard_normal((len(X), 2))
    assert all(claims_on(network, X, targets))


class Twice(nn.Layer):
    """y = 2 x, with a backward pass that forgets the 2, or through an operation of its own."""

    kind = "twice"

    def __init__(self, slope=2, operation=lambda x: 2 * x):
        object.__setattr__(self, "slope", slope)
        object.__setattr__(self, "operation", operation)

    def output_shape(self, input_shape):
        return tuple(input_shape)

    def forward(self, wing, parameters, state, x, train):
        return self.operation(x), None, state

    def backward(self, wing, dy, cache):
        return self.slope * dy, {}

    def rescaled(self, rescaling):
        return rescaling


def words(network, **options):
    return {v.claim.id: v for v in claims_on(network, *drawn(4, np.float64), **options)}


def test_a_wrong_backward_pass_of_ones_own_fails():
    def network(slope):
        layers = dense(nn.Dense(6, bias=False), Twice(slope), nn.BatchNorm(), nn.ReLU())
        return nn.Network(layers, (8, 8, 1), dtype=np.float64)

    assert all(words(network(2)).values())
    wrong = words(network(1))
    assert wrong["gradient-of-loss"].word == "FAILS"
    assert wrong["gradient-scaling"].word == "holds"  # half the gradient scales as well


def test_a_fault_of_the_wing_is_found_on_ones_own_network():
    fault = next(m for m in mutants.MUTANTS if m.name == "variance-term-missing")
    network = nn.Network(NETWORKS["biases before batch norm"], (8, 8, 1), dtype=np.float64)
    with mutants.planted(fault):
        found = words(network, claims=["gradient-orthogonality", "scale-invariance"])
    assert {id: v.word for id, v in found.items()} == {
        "gradient-orthogonality": "FAILS",
        "scale-invariance": "holds",
    }


def test_a_layer_that_cannot_carry_bounds_is_named_in_a_sentence():
    layers = dense(
        nn.Dense(6, bias=False), Twice(operation=lambda x: np.cbrt(8 * x**3)), nn.BatchNorm()
    )
    network = nn.Network(layers, (8, 8, 1), dtype=np.float64)
    verdict = words(network, claims=["gradient-orthogonality"])["gradient-orthogonality"]
    assert verdict.word == "refused" and not verdict
    assert "it does not run on this network: " in str(verdict)


class L1Norm(nn.Layer):
    """y = x / (m + eps), m the mean of |x| over an example's units; without parameters."""

    kind = "l1norm"

    def __init__(self, eps=0.0):
        object.__setattr__(self, "eps", eps)

    def output_shape(self, input_shape):
        return tuple(input_shape)

    def forward(self, wing, parameters, state, x, train):
        sign = 1.0 - 2.0 * (x < 0)
        m = (x * sign).sum(axis=1, keepdims=True) / x.shape[1]
        return x / (m + self.eps), (sign, x, m), state

    def backward(self, wing, dy, cache):
        sign, x, m = cache
        s = m + self.eps
        return (dy - sign * ((dy * x).sum(axis=1, keepdims=True) / x.shape[1]) / s) / s, {}

    def rescaled(self, rescaling):
        one_factor = not rescaling.per_unit and not rescaling.offset
        return Absorbed(self.eps, training_only=False) if one_factor else None


def test_a_normalization_of_ones_own_is_verified_or_refused_in_a_sentence():
    """It has no parameters, and says nothing of what its eps stands beside."""
    layers = dense(nn.Dense(6, bias=False), L1Norm(), nn.Tanh())
    found = words(nn.Network(layers, (8, 8, 1), dtype=np.float64))
    wrong = {id: verdict.word for id, verdict in found.items() if not verdict}
    # Its eps stands outside the root, so that one claim's law is none of its own.
    refused = {"gradient-orthogonality": "refused", "norm-growth": "refused"}
    assert wrong == {"eps-rescaling": "FAILS", **refused}
    refused = found["gradient-orthogonality"].measurement.refused
    assert "l1norm1 has an eps and no method beside_eps(x, parameters)" in refused


RARE = {  # what stands between a weight and its normalization, and how many there are of either
    "relu": dense(nn.Dense(6, bias=False), nn.ReLU(), nn.BatchNorm()),
    "max pooling": [nn.Conv2d(3, bias=False), nn.MaxPool2d(2), *dense(nn.BatchNorm())],
    "two linear": dense(nn.Dense(6, bias=False), nn.Dense(5, bias=False), nn.BatchNorm()),
    "linear and relu": dense(
        *(nn.Dense(6, bias=False), nn.ReLU(), nn.Dense(5, bias=False), nn.BatchNorm(), nn.ReLU())
    ),
    "weight norm and batch norm": dense(nn.WeightNorm(nn.Dense(6)), nn.BatchNorm(), nn.ReLU()),
    "a bias of weight norm": dense(
        nn.Dense(6, bias=False), nn.WeightNorm(nn.Dense(5)), nn.BatchNorm(), nn.ReLU()
    ),
    "channels in a row": [nn.Conv2d(3, bias=False), *dense(nn.BatchNorm())],
    "two norms": dense(nn.Dense(6, bias=False), nn.RMSNorm(), nn.RMSNorm(), nn.Tanh()),
    "branches": dense(
        nn.Dense(6, bias=False),
        nn.Residual(
            [nn.BatchNorm(), nn.ReLU(), nn.Dense(4)], shortcut=[nn.LayerNorm(), nn.Dense(4)]
        ),
    ),
    "branches with weights": dense(
        nn.Dense(6, bias=False),
        nn.Residual(
            [nn.WeightNorm(nn.Dense(4)), nn.Dense(6), nn.BatchNorm()],
            shortcut=[nn.Dense(6, bias=False), nn.BatchNorm()],
        ),
    ),
    "within": dense(
        nn.Sequential([nn.Dense(6, bias=False), nn.Sequential([nn.Dense(4)])]),
        nn.Sequential([nn.BatchNorm(), nn.ReLU()]),
    ),
}


@pytest.mark.parametrize("name", RARE)
def test_no_claim_is_said_to_fail_on_a_right_network(name):
    """What the claims' laws say of one weight before one normalization is refused elsewhere."""
    verdicts = words(nn.Network(RARE[name], (8, 8, 1), dtype=np.float64, rng=5))
    assert {v.word.partition(" ")[0] for v in verdicts.values()} <= {"holds", "refused"}, verdicts
    assert sum(v.verified for v in verdicts.values()) >= 6
    assert verdicts["scale-invariance"].verified


@pytest.mark.parametrize("shape", ((6,), (3, 2, 6)))
@pytest.mark.parametrize("layer", (nn.GroupNorm(1), nn.GroupNorm(2), nn.GroupNorm(6)))
def test_group_norm_says_what_its_eps_stands_beside(layer, shape):
    if (layer.groups, len(shape)) == (6, 1):
        return  # one number in each group has no variance
    x = np.random.default_rng(7).standard_normal((4, *shape))
    parameters = layer.initial_parameters(shape, None)
    y, _, _ = layer.with_eps(0.0).forward(backend.get("reference"), parameters, {}, x, True)
    groups = (x.reshape(4, -1, layer.groups, 6 // layer.groups), (1, 3))
    centered = x - np.broadcast_to(
        groups[0].mean(axis=groups[1], keepdims=True), groups[0].shape
    ).reshape(x.shape)
    assert np.allclose(y * np.sqrt(layer.beside_eps(x, parameters)), centered, rtol=1e-13)


def test_what_does_not_fit_is_refused():
    X, y = drawn(5, np.float32)
    network = nn.Network(dense(nn.Dense(3), nn.BatchNorm()), (8, 8, 1))
    with pytest.raises(TypeError, match="network: got function, expected a minimal_nn.Network"):
        claims_on(lambda w: w, X, y)
    with pytest.raises(TypeError, match="network: got dtype float16, expected float32 or float64"):
        claims_on(network.astype(np.float16), X.astype(np.float16), y)
    with pytest.raises(ValueError, match="no weights of it are scale-invariant, expected some"):
        claims_on(nn.Network(dense(nn.Dense(3), nn.ReLU()), (8, 8, 1)), X, y)
    with pytest.raises(ValueError, match="claims: got .'no'., expected some of gradient-of-loss"):
        claims_on(network, X, y, claims=["no"])
    with pytest.raises(TypeError, match="claims: got the string 'norm-growth', expected a list"):
        claims_on(network, X, y, claims="norm-growth")
    with pytest.raises(ValueError, match="X: got shape"):
        claims_on(network, X[:, :4], y)

    class Own(nn.Network):
        pass

    with pytest.raises(TypeError, match="got a Own with biases before a normalization"):
        claims_on(Own(network.layers, (8, 8, 1)), X, y)
