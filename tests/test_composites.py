"""Sequential and Residual: what they compute, their names, copies, checkpoints and loops."""

import copy
import pickle

import numpy as np
import pytest
import wings
from agreement import assert_same_bits

from minimal_nn import (
    SGD,
    Adam,
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    LayerNorm,
    Network,
    ReLU,
    Residual,
    RMSNorm,
    Sequential,
    Tanh,
    fit,
)
from minimal_nn.errors import NonFiniteError

EVERY_WING = pytest.mark.parametrize("wing", wings.names("affine"))
BLOCKS = {
    "sequential": lambda: [Sequential([Dense(6, bias=False), BatchNorm(), ReLU()]), Dense(3)],
    "nested": lambda: [Sequential([Sequential([Dense(6)]), RMSNorm()]), Tanh(), Dense(3)],
    "residual": lambda: [
        Dense(6),
        Residual([LayerNorm(), Dense(7), ReLU(), Dense(6)]),
        Residual([Dense(5), BatchNorm()], [Dense(5), BatchNorm()]),
        Dense(3),
    ],
}
IMAGES = [
    Conv2d(3),
    Residual([Conv2d(4, stride=2), BatchNorm(), ReLU(), Conv2d(4)], [Conv2d(4, stride=2)]),
    *(ReLU(), Flatten(), Dense(3)),
]


def data(rng, shape=(4,), n=24):
    return rng.standard_normal((n, *shape)), rng.integers(0, 3, n)


def network(name, wing="reference", dtype=np.float64):
    return Network(BLOCKS[name](), (4,), rng=3, dtype=dtype, backend=wing)


def arrays(network):
    return {**network.parameters, **network.state}


@EVERY_WING
def test_a_sequence_is_its_layers(wing, rng):
    """The same numbers under other names, by a compiled loop where there is one."""
    inside = [Dense(6), BatchNorm(), ReLU(), Dense(5), RMSNorm(), Dense(3)]
    results = []
    for layers in (inside, [Sequential(inside[:2]), Sequential(inside[2:5]), inside[5]]):
        built = Network(layers, (4,), rng=3, dtype=np.float64, backend=wing)
        assert built.plan_report(SGD()).startswith("compiled") == (wing == "cpu")
        X, labels = data(np.random.default_rng(1))
        losses = fit(built, Adam(0.01), X, labels, epochs=2, batch_size=7, progress=False).loss
        results.append((losses, list(arrays(built).values())))
    (one, numbers), (other, others) = results
    assert one == other
    for array, same in zip(numbers, others, strict=True):
        assert_same_bits(same, array, "a parameter")


@EVERY_WING
def test_a_residual_block_adds_its_branches(wing, rng):
    X, _ = data(rng)
    body, shortcut = [Dense(5), Tanh()], [Dense(5, bias=False)]
    built = Network(
        [Residual(body, shortcut)],
        (4,),
        loss="mean_squared_error",
        dtype=np.float64,
        backend=wing,
    )
    W, b, S = (
        built.parameters[f"residual1.{name}"]
        for name in ("dense1.W", "dense1.b", "shortcut.dense1.W")
    )
    np.testing.assert_allclose(built.forward(X), np.tanh(X @ W + b) + X @ S, rtol=1e-12)


def test_parameters_are_named_by_their_path():
    assert list(network("nested").parameters) == [
        *("sequential1.sequential1.dense1.W", "sequential1.sequential1.dense1.b"),
        *("sequential1.rmsnorm1.gamma", "dense1.W", "dense1.b"),
    ]
    built = network("residual")
    assert "residual2.shortcut.batchnorm1.gamma" in built.parameters
    assert list(built.state) == [
        *("residual2.batchnorm1.mean", "residual2.batchnorm1.var"),
        *("residual2.shortcut.batchnorm1.mean", "residual2.shortcut.batchnorm1.var"),
    ]
    assert "residual2.shortcut.dense1.W" in built.weights()
    assert built.least_examples() == (2, "residual2")


def test_eps_is_changed_in_every_branch():
    changed = network("residual").with_eps(0.25)
    one, other = changed.layers[1:3]
    assert one.layers[0].eps == other.layers[1].eps == other.shortcut[1].eps == 0.25
    assert {group.eps for group in changed.invariance_groups()} == {0.25}


@pytest.mark.parametrize("name", BLOCKS)
def test_copies_and_pickles_are_the_same_network(name, rng):
    built, (X, labels) = network(name), data(rng)
    for other in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert other.layers == built.layers
        assert_same_bits(other.loss(X, labels), built.loss(X, labels), "loss")


@EVERY_WING
@pytest.mark.parametrize("name", BLOCKS)
def test_a_resumed_run_has_the_same_bits(name, wing, rng, tmp_path):
    X, labels = data(rng)
    path, options = tmp_path / "run.npz", {"batch_size": 5, "progress": False, "rng": 2}
    whole, resumed = network(name, wing), network(name, wing)
    losses = fit(whole, Adam(0.02), X, labels, epochs=3, **options).loss
    fit(network(name, wing), Adam(0.02), X, labels, epochs=1, checkpoint=path, **options)
    options.update(checkpoint=path, resume=True)
    assert fit(resumed, Adam(0.02), X, labels, epochs=3, **options).loss == losses
    for key, array in arrays(whole).items():
        assert_same_bits(arrays(resumed)[key], array, key)


def test_the_plan_says_what_has_no_loop():
    for name in BLOCKS:
        assert network(name, "cpu").plan_report(SGD()).startswith("compiled")
    for layers, shape, reason in (
        (IMAGES, (8, 8, 1), None),
        ([Residual([Conv2d(1)]), *IMAGES], (8, 8, 1), "loops on images begin with a convolution"),
        (
            [Conv2d(2), Residual([Flatten(), Dense(3)], [AveragePool2d(), Dense(3)]), Dense(2)],
            (8, 8, 1),
            "residual1.flatten1: loops are compiled for blocks whose branches are images to their",
        ),
        ([Residual([Dropout(0.1)]), Dense(2)], (4,), "residual1.dropout1: there are no kernels"),
    ):
        report = Network(layers, shape, backend="cpu").plan_report(SGD())
        assert report.startswith("compiled") if reason is None else reason in report, report


class Half(Dense):
    """A layer of one's own."""

    def forward(self, wing, parameters, state, x, train):
        y, cache, state = super().forward(wing, parameters, state, x, train)
        return y / 2, cache, state


def test_a_layer_of_ones_own_in_a_sequence_is_not_compiled():
    built = Network([Sequential([Half(3), ReLU()]), Dense(2)], (4,), backend="cpu")
    assert "layer sequential1 has methods of its own" in built.plan_report(SGD())


@EVERY_WING
def test_what_goes_wrong_inside_is_located(wing, rng):
    """By the same name where the steps are compiled and where they are not."""
    X, labels = data(rng)
    for name, inner in (
        ("sequential", "sequential1.batchnorm1"),
        ("residual", "residual1.layernorm1"),
    ):
        built = network(name, wing)
        built.parameters = {
            key: 1e200 * array if key.endswith("dense1.W") else array
            for key, array in built.parameters.items()
        }
        with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match=rf"step 1: {inner}"):
            fit(built, SGD(0.1), X, labels, epochs=1, progress=False)


def test_cuda_is_refused_in_one_sentence():
    message = r"residual1.backend: got 'cuda', which has no kernel for a sum of branches; expected"
    with pytest.raises(ValueError, match=message):
        Network([Residual([Dense(4)])], (4,), backend="cuda")
