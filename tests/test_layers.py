"""Layers: shapes, initial parameters, and what they refuse; formulas are tested with the wings."""

import dataclasses

import numpy as np
import pytest

from minimal_nn import (
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GroupNorm,
    LayerNorm,
    MaxPool2d,
    Network,
    ReLU,
    Residual,
    RMSNorm,
    Sequential,
    Tanh,
    WeightNorm,
)
from minimal_nn.invariance import Absorbed, Rescaling

SHAPES = [
    (Dense(7), (4,), (7,)),
    (WeightNorm(Dense(7)), (4,), (7,)),
    (Conv2d(5), (6, 8, 3), (6, 8, 5)),
    (Conv2d(5, kernel=3, padding=0), (6, 8, 3), (4, 6, 5)),
    (Conv2d(5, kernel=2, stride=2, padding=0), (7, 8, 3), (3, 4, 5)),
    (Conv2d(5, kernel=5, stride=3, padding=2), (7, 9, 1), (3, 3, 5)),
    (WeightNorm(Conv2d(5)), (6, 8, 3), (6, 8, 5)),
    (BatchNorm(), (4,), (4,)),
    (BatchNorm(), (6, 8, 3), (6, 8, 3)),
    (LayerNorm(), (4,), (4,)),
    (RMSNorm(), (4,), (4,)),
    (GroupNorm(2), (4,), (4,)),
    (GroupNorm(3), (6, 8, 3), (6, 8, 3)),
    (GroupNorm(1), (2, 1, 1), (2, 1, 1)),
    (RMSNorm(), (1,), (1,)),
    (ReLU(), (6, 8, 3), (6, 8, 3)),
    (Tanh(), (4,), (4,)),
    (Dropout(0.5), (6, 8, 3), (6, 8, 3)),
    (MaxPool2d(), (6, 8, 3), (3, 4, 3)),
    (MaxPool2d(3), (6, 9, 3), (2, 3, 3)),
    (AveragePool2d(2), (6, 8, 3), (3, 4, 3)),
    (AveragePool2d(), (6, 9, 3), (3,)),
    (Flatten(), (6, 8, 3), (144,)),
    (Flatten(), (4,), (4,)),
    (Sequential([Conv2d(5, kernel=1, padding=0), Flatten(), Dense(2)]), (3, 2, 1), (2,)),
    (Residual([Dense(7), ReLU(), Dense(4)]), (4,), (4,)),
    (Residual([Conv2d(5), ReLU()], [Conv2d(5, kernel=1, padding=0)]), (6, 8, 3), (6, 8, 5)),
]


def network_with(layer, shape, **options):
    return Network([layer], shape, loss="mean_squared_error", dtype=np.float64, **options)


@pytest.mark.parametrize("layer, shape, expected", SHAPES, ids=lambda value: str(value))
def test_the_output_has_the_shape_that_is_promised(layer, shape, expected, rng):
    assert layer.output_shape(shape) == expected
    network = network_with(layer, shape)
    scores = network.forward(rng.standard_normal((5, *shape)), train=True)
    assert scores.shape == (5, *expected)


@pytest.mark.parametrize("layer, shape, expected", SHAPES, ids=lambda value: str(value))
def test_a_layer_is_an_immutable_description(layer, shape, expected):
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.kind = "another"
    assert layer == dataclasses.replace(layer)
    assert type(layer).__name__ in repr(layer)


def test_initial_weights_have_he_variance():
    W = network_with(Dense(400), (300,)).parameters["dense1.W"]
    kernel = network_with(Conv2d(200), (5, 5, 40)).parameters["conv1.W"]
    for array, fan_in in ((W, 300), (kernel, 9 * 40)):
        # The sample variance of n normal numbers has the relative deviation sqrt(2/n).
        assert abs(array.var() * fan_in / 2 - 1) < 5 * np.sqrt(2 / array.size)
        assert abs(array.mean()) < 5 * np.sqrt(2 / fan_in / array.size)


def test_initial_biases_gamma_beta_and_statistics():
    network = Network([Dense(6), BatchNorm(), LayerNorm(), Dense(3)], (4,))
    expected = {
        "dense1.b": 0,
        "batchnorm1.gamma": 1,
        "batchnorm1.beta": 0,
        "layernorm1.gamma": 1,
        "layernorm1.beta": 0,
        "dense2.b": 0,
    }
    for name, value in expected.items():
        assert np.all(network.parameters[name] == value), name
    assert list(network.state) == ["batchnorm1.mean", "batchnorm1.var"]
    assert np.all(network.state["batchnorm1.mean"] == 0)
    assert np.all(network.state["batchnorm1.var"] == 1)


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("eps", (0.0, 0.5))
def test_wrapping_in_weight_norm_does_not_change_the_output(bias, eps, rng):
    """v starts as W and g as |v|: W = g v/|v| up to one rounding of each step."""
    for layer, shape in ((Dense(6, bias=bias), (4,)), (Conv2d(6, bias=bias), (5, 5, 4))):
        plain, wrapped = network_with(layer, shape), network_with(WeightNorm(layer, eps=eps), shape)
        W = next(iter(plain.parameters.values()))
        assert np.array_equal(wrapped.parameters["weightnorm1.v"], W)
        assert ("weightnorm1.b" in wrapped.parameters) == bias
        X = rng.standard_normal((3, *shape))
        terms = W.size // W.shape[-1]
        scale = np.abs(X).max() * np.abs(W).sum()
        difference = np.abs(plain.forward(X) - wrapped.forward(X)).max()
        assert difference <= (terms + 8) * np.finfo(float).eps * scale


def test_batch_norm_counts_pixels_as_examples(rng):
    """One image has variance over its pixels; one example of a flat batch has none."""
    images = network_with(BatchNorm(), (3, 3, 2))
    assert images.forward(rng.standard_normal((1, 3, 3, 2)), train=True).shape == (1, 3, 3, 2)
    with pytest.raises(ValueError, match="X: got a batch with 1 number for each unit"):
        network_with(BatchNorm(), (2,)).forward(rng.standard_normal((1, 2)), train=True)


def test_running_statistics_have_the_documented_momentum(rng):
    X = rng.standard_normal((6, 2))
    network = network_with(BatchNorm(momentum=0.25), (2,))
    state = network.loss_and_gradients(X, np.zeros((6, 2))).state
    np.testing.assert_allclose(state["batchnorm1.mean"], 0.25 * X.mean(axis=0), rtol=1e-14)
    # The running variance is the unbiased one, 6/5 of what normalizes the batch.
    unbiased = X.var(axis=0, ddof=1)
    np.testing.assert_allclose(state["batchnorm1.var"], 0.75 + 0.25 * unbiased, rtol=1e-14)


@pytest.mark.parametrize("number", (np.float64(0.25), np.float32(0.25), 0.25))
def test_numbers_of_numpy_do_not_promote_float32(number, rng):
    layers = [
        BatchNorm(eps=number, momentum=number),
        LayerNorm(number),
        RMSNorm(number),
        GroupNorm(1, eps=number),
        WeightNorm(Dense(3), eps=number),
    ]
    network = Network(layers, (4,))
    result = network.loss_and_gradients(
        rng.standard_normal((5, 4)).astype(np.float32), np.zeros(5, dtype=int)
    )
    arrays = {"loss": result.loss, **result.gradients, **result.state}
    assert {str(array.dtype) for array in arrays.values()} == {"float32"}
    assert all(type(layer.eps) is float for layer in layers)
    assert BatchNorm(eps=0) == BatchNorm(eps=0.0)


REFUSED = [
    (lambda: Dense(0), ValueError, "units: got 0, expected an integer >= 1"),
    (lambda: Dense(2.5), TypeError, "units: got 2.5, expected an integer >= 1"),
    (lambda: Dense(True), TypeError, "units: got True, expected an integer >= 1"),
    (lambda: Conv2d(-1), ValueError, "channels: got -1, expected an integer >= 1"),
    (lambda: Conv2d(3, kernel=0), ValueError, "kernel: got 0, expected an integer >= 1"),
    (lambda: Conv2d(3, stride=0), ValueError, "stride: got 0, expected an integer >= 1"),
    (lambda: Conv2d(3, padding=-1), ValueError, "padding: got -1, expected an integer >= 0"),
    (lambda: AveragePool2d(0), ValueError, "size: got 0, expected an integer >= 1"),
    (lambda: MaxPool2d(0), ValueError, "size: got 0, expected an integer >= 1"),
    (lambda: BatchNorm(eps=-1e-5), ValueError, "eps: got -1e-05, expected a finite number >= 0"),
    (lambda: LayerNorm(eps=np.inf), ValueError, "eps: got inf, expected a finite number >= 0"),
    (lambda: LayerNorm(eps=np.nan), ValueError, "eps: got nan, expected a finite number >= 0"),
    (lambda: GroupNorm(0), ValueError, "groups: got 0, expected an integer >= 1"),
    (lambda: GroupNorm(1e-5), TypeError, "groups: got 1e-05, expected an integer >= 1"),
    (lambda: GroupNorm(2, eps=-1.0), ValueError, "eps: got -1.0, expected a finite number >= 0"),
    (lambda: RMSNorm(64), TypeError, "eps: got the integer 64, .* RMSNorm takes no number of"),
    (lambda: BatchNorm(eps="1e-5"), TypeError, "eps: got '1e-5', expected a finite number >= 0"),
    (lambda: BatchNorm(momentum=1.5), ValueError, "momentum: got 1.5, expected a number from 0"),
    (lambda: BatchNorm(momentum="a"), TypeError, "momentum: got 'a', expected a number from 0"),
    (lambda: WeightNorm(ReLU()), TypeError, r"layer: got ReLU\(\), expected a Dense or Conv2d"),
    (lambda: Sequential([]), ValueError, "layers: got none, expected at least one Layer"),
    (lambda: Sequential([Dense(3), 4]), TypeError, "layers: got 4, expected Layer objects"),
    (lambda: Sequential(Dense), TypeError, "layers: got <class .*Dense'>, expected Layer obj"),
    (lambda: Residual([]), ValueError, "layers: got none, expected at least one Layer: x . x is"),
    (lambda: Residual([Dense(3)], [None]), TypeError, "shortcut: got None, expected Layer obj"),
    (lambda: WeightNorm(Dense(3), eps=-1.0), ValueError, "eps: got -1.0, expected a finite number"),
]


@pytest.mark.parametrize("make, kind, message", REFUSED, ids=[case[2][:32] for case in REFUSED])
def test_a_layer_refuses_what_it_cannot_be(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


MISFITS = [
    (
        Dense(3),
        (4, 4, 2),
        r"dense1: input shape of Dense: got \(4, 4, 2\), expected \(D,\): put Fl",
    ),
    (Conv2d(3), (4,), r"conv1: input shape of Conv2d: got \(4,\), expected \(height, width, chan"),
    (Conv2d(3, kernel=5, padding=0), (4, 4, 1), r"conv1: .* got \(4, 4, 1\), expected at least 5"),
    (LayerNorm(), (4, 4, 2), r"layernorm1: .* got \(4, 4, 2\), expected \(K,\): put Flatten"),
    (RMSNorm(), (4, 4, 2), r"rmsnorm1: .* got \(4, 4, 2\), expected \(K,\): put Flatten"),
    (GroupNorm(3), (4, 4, 2), r"groupnorm1: .* got \(4, 4, 2\), expected a number of units that"),
    (GroupNorm(4), (4,), r"groupnorm1: .* got \(4,\), expected at least 2 numbers in each group"),
    (GroupNorm(2), (1, 1, 2), r"groupnorm1: .* got \(1, 1, 2\), expected at least 2 numbers"),
    (LayerNorm(), (1,), r"layernorm1: .* got \(1,\), expected at least 2 units"),
    (MaxPool2d(2), (5, 4, 1), r"maxpool1: .* got \(5, 4, 1\), expected .* multiples of size = 2"),
    (AveragePool2d(2), (5, 4, 1), r"averagepool1: .* got \(5, 4, 1\), expected .* multiples of"),
    (AveragePool2d(), (4,), r"averagepool1: .* got \(4,\), expected \(height, width, channels\)"),
    (MaxPool2d(2), (4,), r"maxpool1: input shape of MaxPool2d: got \(4,\), expected \(height"),
    (
        Residual([Dense(3)]),
        (4,),
        r"residual1.layers: got the output shape \(3,\), expected the input's, \(4,\): give",
    ),
    (
        Residual([Conv2d(3)], [Conv2d(3, stride=2)]),
        (4, 4, 1),
        r"residual1.layers: .* \(4, 4, 3\), expected the shortcut's, \(2, 2, 3\): give the block",
    ),
    (
        Residual([Dense(3)], [Sequential([LayerNorm()])]),
        (1,),
        r"residual1.shortcut.sequential1.lay",
    ),
    (WeightNorm(Dense(3)), (4, 4, 2), r"weightnorm1: input shape of Dense: got \(4, 4, 2\)"),
]


@pytest.mark.parametrize("layer, shape, message", MISFITS, ids=lambda value: str(value)[:32])
def test_a_layer_refuses_an_input_that_does_not_fit(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        network_with(layer, shape)


def test_what_becomes_of_a_rescaling():
    """Each layer's rule, in one place; tests/test_network.py verifies what is derived from them."""
    bare = [Rescaling(unit, offset) for unit in (True, False) for offset in (True, False)]
    unit_offset, unit, all_offset, all_units = bare
    for rescaling in bare:
        assert BatchNorm(0.5).rescaled(rescaling) == Absorbed(0.5, training_only=True)
        assert Tanh().rescaled(rescaling) is None
        for layer in (Flatten(), MaxPool2d()):
            assert layer.rescaled(rescaling) == rescaling
    assert LayerNorm(0.5).rescaled(all_units) == Absorbed(0.5, training_only=False)
    assert [LayerNorm().rescaled(r) for r in (unit_offset, unit, all_offset)] == [None] * 3
    assert RMSNorm(0.5).rescaled(all_units) == Absorbed(0.5, training_only=False)
    assert [RMSNorm().rescaled(r) for r in (unit_offset, unit, all_offset)] == [None] * 3
    assert RMSNorm().rescaled(Rescaling(False, True, even=True)) is None
    assert GroupNorm(2, eps=0.5).rescaled(all_units) == Absorbed(0.5, training_only=False)
    assert [GroupNorm(2).rescaled(r) for r in (unit_offset, unit, all_offset)] == [None] * 3
    in_blocks = [Rescaling(True, False, blocks=b, units=12) for b in (2, 3, 4, 6, 12)]
    assert [GroupNorm(6).rescaled(r) is not None for r in in_blocks] == [True] * 2 + [
        *(False, True, False)
    ]
    instances = Rescaling(True, True, blocks=4, units=4)
    assert GroupNorm(4).rescaled(instances) == Absorbed(1e-5, training_only=False)
    assert GroupNorm(4).rescaled(instances._replace(by_pixel=True)) is None
    assert GroupNorm(2).rescaled(Rescaling(False, True, even=True)) is not None
    assert [Dropout(0.5).rescaled(r) for r in bare] == [None, unit, None, all_units]
    assert [ReLU().rescaled(r) for r in bare] == [None, unit, None, all_units]
    assert [Dense(2).rescaled(r) for r in bare] == [None, None, all_offset, all_offset]
    assert Dense(2, bias=False).rescaled(all_units) == all_units
    assert WeightNorm(Dense(2, bias=False)).rescaled(all_units) == all_units
    by_pixel = Rescaling(False, True, by_pixel=True)
    assert Conv2d(2, padding=1).rescaled(all_offset) == by_pixel
    assert Conv2d(2, padding=1).rescaled(all_units) == all_offset
    assert Conv2d(2, padding=0).rescaled(all_offset) == all_offset
    assert Conv2d(2, padding=0).rescaled(by_pixel) == by_pixel
    altered = Rescaling(True, True, by_pixel=True, altered=True)
    assert BatchNorm().rescaled(by_pixel) == altered
    assert [layer.rescaled(by_pixel) for layer in (LayerNorm(), MaxPool2d(2), ReLU())] == [None] * 3
    assert LayerNorm(0.5).rescaled(Rescaling(False, True, even=True)) == Absorbed(0.5, False)
    assert [layer.rescaled(by_pixel) for layer in (Flatten(), MaxPool2d(1))] == [by_pixel] * 2


def test_one_layer_is_a_network_as_it_is_a_sequence():
    assert Network(Dense(3), (4,)).names == ("dense1",)
    assert Network(Sequential(Dense(3)), (4,)).names == ("sequential1",)


def test_average_pooling_without_a_size_is_global(rng):
    """The mean over all pixels, one number for each channel."""
    network = Network([AveragePool2d()], (3, 5, 4), loss="mean_squared_error", dtype=np.float64)
    X = rng.standard_normal((6, 3, 5, 4))
    assert network.shapes[-1] == (4,)
    np.testing.assert_allclose(network.forward(X), X.mean(axis=(1, 2)), rtol=1e-13, atol=1e-13)
    dX = network.trace(X, np.zeros((6, 4))).layers["averagepool1"].dx
    assert dX.shape == X.shape
    assert np.array_equal(dX, np.broadcast_to(dX[:, :1, :1], X.shape))
