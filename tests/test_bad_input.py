"""Bad input, case by case: the message names the argument, what came, and what was expected.

The cases of layers, optimizers, data files and checkpoints stand in their own files; here are those
of arrays that meet a network, and of fit.
"""

import numpy as np
import pytest

from minimal_nn import (
    SGD,
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    Group,
    LayerNorm,
    Network,
    ReLU,
    RMSNorm,
    WeightNorm,
    errors,
    fit,
)
from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])
SCORES = np.zeros((6, 3), np.float32)
NETWORK = Network([Dense(5), BatchNorm(), ReLU(), Dense(3)], (4,))
REGRESSION = Network([Dense(3)], (4,), loss="mean_squared_error")
EXACT = NETWORK.with_eps(0.0)


def with_entry(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def gradients(X=X, targets=LABELS, network=NETWORK, **options):
    return network.loss_and_gradients(X, targets, **options)


def train(X=X, targets=LABELS, network=NETWORK, optimizer=None, **options):
    options = {"epochs": 1, "progress": False, **options}
    return fit(network.with_parameters(), optimizer or SGD(), X, targets, **options)


DATA = {  # case: (keywords of gradients and of train, exception, message)
    "a list": ({"X": X.tolist()}, TypeError, r"X: got list, expected an array \(N, \*\(4,\)\)"),
    "None": ({"X": None}, TypeError, r"X: got NoneType, expected an array"),
    "a number": ({"X": np.float32(3)}, ValueError, r"X: got shape \(\), expected \(N, \*\(4,\)\)"),
    "features": ({"X": X[:, :3]}, ValueError, r"X: got shape \(6, 3\), expected \(N, \*\(4,\)\)"),
    "axes": ({"X": X[0]}, ValueError, r"X: got shape \(4,\), expected \(N, \*\(4,\)\)"),
    "nothing": ({"X": X[:0]}, ValueError, "X: got no examples, expected at least one"),
    "float64": (
        {"X": X.astype(np.float64)},
        TypeError,
        r"X: got dtype float64, expected the network's float32 \(there is no silent conversion\): "
        r"use X.astype\('float32'\) or Network\(..., dtype='float64'\)",
    ),
    "integers": (
        {"X": np.ones((6, 4), int)},
        TypeError,
        "X: got dtype int64, expected the network",
    ),
    "NaN": (
        {"X": with_entry(X, (2, 3), np.nan)},
        NonFiniteError,
        r"X: got 1 numbers that are NaN or infinite, the first at \(2, 3\); expected finite numb",
    ),
    "infinity": (
        {"X": with_entry(X, (1, slice(None)), -np.inf)},
        NonFiniteError,
        r"X: got 4 numbers that are NaN or infinite, the first at \(1, 0\); .* remove or replace",
    ),
    "a list of labels": (
        {"targets": LABELS.tolist()},
        TypeError,
        "targets: got list, expected an array of integer labels",
    ),
    "float labels": (
        {"targets": LABELS.astype(float)},
        TypeError,
        "targets: got dtype float64, expected integer labels",
    ),
    "one-hot labels": (
        {"targets": np.eye(3, dtype=int)[LABELS]},
        ValueError,
        r"targets: got shape \(6, 3\), expected one label for each of the 6 examples",
    ),
    "fewer labels": (
        {"targets": LABELS[:5]},
        ValueError,
        r"targets: got shape \(5,\), expected one label for each of the 6 examples",
    ),
    "a label too large": (
        {"targets": with_entry(LABELS, 4, 3)},
        ValueError,
        "targets: got labels from 0 to 3, expected 0 to 2 for 3 outputs",
    ),
    "a negative label": (
        {"targets": with_entry(LABELS, 4, -1)},
        ValueError,
        "targets: got labels from -1 to 2, expected 0 to 2 for 3 outputs",
    ),
    "labels for a regression": (
        {"network": REGRESSION},
        ValueError,
        r"targets: got shape \(6,\), expected \(6, 3\) for mean_squared_error",
    ),
    "a list for a regression": (
        {"network": REGRESSION, "targets": SCORES.tolist()},
        TypeError,
        r"targets: got list, expected an array \(6, 3\)",
    ),
    "float64 for a regression": (
        {"network": REGRESSION, "targets": SCORES.astype(float)},
        TypeError,
        "targets: got dtype float64, expected float32",
    ),
    "NaN for a regression": (
        {"network": REGRESSION, "targets": with_entry(SCORES, (0, 1), np.nan)},
        NonFiniteError,
        r"targets: got 1 numbers that are NaN or infinite, the first at \(0, 1\)",
    ),
}


@pytest.mark.parametrize("call", (gradients, train), ids=("loss_and_gradients", "fit"))
@pytest.mark.parametrize("case", DATA)
def test_data_that_do_not_fit(case, call):
    options, kind, message = DATA[case]
    with pytest.raises(kind, match=message):
        call(**options)


@pytest.mark.parametrize("case", [case for case in DATA if "X" in DATA[case][0]])
def test_every_way_in_checks_X(case):
    options, kind, message = DATA[case]
    for call in (NETWORK.forward, NETWORK.predict, lambda X: NETWORK.loss(X, LABELS)):
        with pytest.raises(kind, match=message):
            call(options["X"])


def test_the_loss_and_the_trace_check_targets():
    for call in (NETWORK.loss, NETWORK.trace):
        with pytest.raises(ValueError, match="targets: got labels from 0 to 3, expected 0 to 2"):
            call(X, with_entry(LABELS, 4, 3))


def test_the_error_needs_labels():
    with pytest.raises(TypeError, match="labels: got dtype float32, expected integer labels"):
        NETWORK.error(X, SCORES)
    with pytest.raises(ValueError, match=r"labels: got shape \(5,\), expected one label for each"):
        NETWORK.error(X, LABELS[:5])


def test_a_regression_has_no_error():
    for targets in (SCORES, LABELS):
        with pytest.raises(ValueError, match="error: got a network of mean_squared_error, whose"):
            REGRESSION.error(X, targets)


STEPS = {  # case: (call, exception, message): what shows only inside a pass
    "one example in batch norm": (
        lambda: gradients(X[:1], LABELS[:1]),
        ValueError,
        "X: got a batch with 1 number for each unit, expected at least 2 in batch norm's training "
        r"mode \(the variance of one number is 0\): use a larger batch, or train=False",
    ),
    "zero variance in batch norm": (
        lambda: gradients(np.zeros_like(X), network=EXACT),
        ZeroVarianceError,
        r"batchnorm1: var: units \[0, 1, 2, 3, 4\] have variance 0 at eps = 0, where 0/0",
    ),
    "zero running variance": (
        lambda: gradients(
            network=EXACT.with_parameters(state={"batchnorm1.var": np.zeros(5, np.float32)}),
            train=False,
        ),
        ZeroVarianceError,
        r"batchnorm1: var: units \(running variance\) \[0, 1, 2, 3, 4\] have variance 0 at eps = 0",
    ),
    "zero variance in layer norm": (
        lambda: gradients(
            with_entry(X, 2, 0), network=Network([Dense(5), LayerNorm(0.0), Dense(3)], (4,))
        ),
        ZeroVarianceError,
        r"layernorm1: var: examples \[2\] have variance 0 at eps = 0",
    ),
    "zero examples in RMS norm": (
        lambda: gradients(
            with_entry(X, 2, 0), network=Network([Dense(5), RMSNorm(0.0), Dense(3)], (4,))
        ),
        ZeroVarianceError,
        r"rmsnorm1: z: examples \[2\] have mean square 0 at eps = 0",
    ),
    "zero weights in weight norm": (
        lambda: gradients(
            network=(network := Network([WeightNorm(Dense(3))], (4,))).with_parameters(
                {"weightnorm1.v": with_entry(network.parameters["weightnorm1.v"], np.s_[:, 1], 0)}
            )
        ),
        ZeroNormError,
        r"weightnorm1: v: the weight vectors of units \[1\] have norm 0 at eps = 0, where v/",
    ),
    "overflow": (
        lambda: gradients(
            network=REGRESSION.with_parameters({"dense1.W": np.full((4, 3), 3e38, np.float32)}),
            targets=SCORES,
        ),
        NonFiniteError,
        r"loss: got (inf|nan), expected a finite number: .* \(a smaller learning rate keeps",
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_what_shows_only_inside_a_pass(case):
    call, kind, message = STEPS[case]
    with np.errstate(all="ignore"), pytest.raises(kind, match=message):
        call()


def test_evaluation_takes_one_example_and_eps_takes_zero_variance():
    assert np.isfinite(gradients(X[:1], LABELS[:1], train=False).loss)
    assert np.isfinite(gradients(np.zeros_like(X)).loss)


NETWORKS = {
    "no layers": (
        lambda: Network([], (4,)),
        ValueError,
        "layers: got none, expected at least",
    ),
    "a class": (
        lambda: Network([Dense(3), ReLU], (4,)),
        TypeError,
        r"layers: got <class .*ReLU'>, expected Layer objects such as Dense\(64\)",
    ),
    "None": (lambda: Network(None, (4,)), TypeError, "layers: got None, expected Layer objects"),
    "a loss": (
        lambda: Network([Dense(3)], (4,), loss="hinge"),
        ValueError,
        "loss: got 'hinge', expected one of cross_entropy, mean_squared_error",
    ),
    "integers": (
        lambda: Network([Dense(3)], (4,), dtype=int),
        TypeError,
        "dtype: got int64, expected a floating type such as float32",
    ),
    "a wing": (
        lambda: Network([Dense(3)], (4,), backend="gpu"),
        ValueError,
        "backend: got 'gpu', expected one of reference, cpu, cuda",
    ),
    "images at the end": (
        lambda: Network([Conv2d(3)], (4, 4, 1)),
        ValueError,
        r"layers: the last output has shape \(4, 4, 3\), expected \(classes,\) for cross_entropy",
    ),
    "a misfit": (
        lambda: Network([Dense(3), ReLU(), Conv2d(3)], (4,)),
        ValueError,
        r"conv1: input shape of Conv2d: got \(3,\), expected \(height, width, channels\)",
    ),
    "images into Dense": (
        lambda: Network([Conv2d(3), Dense(3)], (4, 4, 1)),
        ValueError,
        r"dense1: input shape of Dense: got \(4, 4, 3\), expected \(D,\): put Flatten\(\)",
    ),
    **{
        f"input shape {shape}": (
            lambda shape=shape: Network([Flatten(), Dense(3)], shape),
            ValueError,
            "input_shape: got .*, expected an example's shape, ",
        )
        for shape in (4, (), (0,), (4.5,), (-1, 3), "ab", None, (True,))
    },
}


@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_that_cannot_be(case):
    make, kind, message = NETWORKS[case]
    with pytest.raises(kind, match=message):
        make()


W = NETWORK.parameters["dense1.W"]
REPLACEMENTS = {
    "a name": (
        {"parameters": {"dense9.W": W}},
        ValueError,
        "parameters: got the name 'dense9.W', expected one of dense1.W, dense1.b, ",
    ),
    "a name of the state": (
        {"state": {"dense1.W": W}},
        ValueError,
        "state: got the name 'dense1.W', expected one of batchnorm1.mean, batchnorm1.var",
    ),
    "a shape": (
        {"parameters": {"dense1.W": W[:, :3]}},
        ValueError,
        r"parameters\['dense1.W'\]: got shape \(4, 3\), expected \(4, 5\)",
    ),
    "a dtype": (
        {"parameters": {"dense1.W": W.astype(float)}},
        TypeError,
        r"parameters\['dense1.W'\]: got dtype float64, expected float32: convert it with .astype",
    ),
    "NaN": (
        {"parameters": {"dense1.W": with_entry(W, (1, 2), np.nan)}},
        NonFiniteError,
        r"parameters\['dense1.W'\]: got 1 numbers that are NaN or infinite, the first at \(1, 2\)",
    ),
}


@pytest.mark.parametrize("case", REPLACEMENTS)
def test_numbers_that_a_network_cannot_take(case):
    options, kind, message = REPLACEMENTS[case]
    with pytest.raises(kind, match=message):
        NETWORK.with_parameters(**options)


TRAINING = {
    "no epochs": ({"epochs": 0}, ValueError, "epochs: got 0, expected an integer >= 1"),
    "half an epoch": ({"epochs": 0.5}, ValueError, "epochs: got 0.5, expected an integer >= 1"),
    "no batch": ({"batch_size": 0}, ValueError, "batch_size: got 0, expected an integer >= 1"),
    "True": ({"batch_size": True}, ValueError, "batch_size: got True, expected an integer >= 1"),
    "batches of one": (
        {"batch_size": 1},
        ValueError,
        "batch_size: got batches of 1 example, expected at least 2 for batchnorm1 ",
    ),
    "one example": (
        {"X": X[:1], "targets": LABELS[:1]},
        ValueError,
        "batch_size: got batches of 1 example, expected at least 2 for batchnorm1 ",
    ),
    "a class for an optimizer": (
        {"optimizer": SGD},
        TypeError,
        r"optimizer: got <class .*SGD'>, expected an optimizer such as SGD\(0.1\)",
    ),
    "a group": (
        {"optimizer": SGD(groups=[Group(["dense1.w"])])},
        ValueError,
        r"groups: got the names \['dense1.w'\], expected names among dense1.W, dense1.b, ",
    ),
    "an array of rates": (
        {"optimizer": SGD(np.ones(7))},
        ValueError,
        r"learning_rate: got an array of shape \(7,\), expected one that broadcasts to dense1.W's",
    ),
    "a seed": (
        {"rng": "seed"},
        TypeError,
        "rng: got 'seed', expected a seed or a numpy.random.Gene",
    ),
    "a negative seed": (
        {"rng": -1},
        ValueError,
        "rng: got -1, expected a seed or a numpy.random.Ge",
    ),
    "validation data": (
        {"validation": (X[:, :2], LABELS)},
        ValueError,
        r"validation: X: got shape \(6, 2\), expected \(N, \*\(4,\)\)",
    ),
    "validation labels": (
        {"validation": (X, LABELS + 1)},
        ValueError,
        "validation: labels: got labels from 1 to 3, expected 0 to 2 for 3 outputs",
    ),
    "no pair": (
        {"validation": X},
        TypeError,
        r"validation: got ndarray, expected a pair \(X, labels\)",
    ),
    "an observation": (
        {"observe": lambda network: {"W": W}},
        TypeError,
        "observe: got 'W' = a ndarray, expected a dict of numbers",
    ),
    "no dict": (
        {"observe": lambda network: 3.0},
        TypeError,
        "observe: got 3.0, expected a dict of numbers",
    ),
}


@pytest.mark.parametrize("case", TRAINING)
def test_training_that_cannot_start(case):
    options, kind, message = TRAINING[case]
    network = NETWORK.with_parameters()
    before = dict(network.parameters)
    with pytest.raises(kind, match=message):
        train(network=network, **options)
    if "observe" not in options:
        assert network.parameters == before


@pytest.mark.parametrize("rng", ("seed", -1, 1.5))
def test_a_network_refuses_a_seed_that_is_none(rng):
    with pytest.raises(
        (TypeError, ValueError), match="rng: got .*, expected a seed or a numpy.ran"
    ):
        Network([Dense(3)], (4,), rng=rng)


def test_named_exceptions_are_value_errors():
    named = (ZeroVarianceError, ZeroNormError, NonFiniteError, errors.CheckpointError)
    assert all(issubclass(kind, ValueError) and kind.__doc__ for kind in named)
