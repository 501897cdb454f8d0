"""Networks: gradients of whole networks, invariance groups both ways, purity, copies, summary."""

from itertools import pairwise

import numpy as np
import pytest
import wings
from agreement import assert_same_bits, read_only
from architectures import ARCHITECTURES, batch_of, extent, network_of

from minimal_nn import BatchNorm, Dense, Network, ReLU, gradcheck
from minimal_nn.network import LOSSES

NAMES = tuple(ARCHITECTURES)
INVARIANT = tuple(name for name in NAMES if ARCHITECTURES[name].groups)
WINGS = wings.names("affine")


@pytest.fixture
def rng():
    return np.random.default_rng(41)


def in_dtype(network, X, dtype):
    return network.astype(dtype), X.astype(dtype)


def with_arrays(network, arrays):
    """Return the network with `arrays` for its parameters, in their arithmetic."""
    dtype = np.result_type(*arrays)
    parameters = (a.astype(dtype) for a in arrays)
    return network.astype(dtype).with_parameters(
        dict(zip(network.parameters, parameters, strict=True))
    )


# Gradients


@pytest.mark.parametrize("train", (True, False), ids=("training", "evaluation"))
@pytest.mark.parametrize("eps", (1e-5, 0.5))
@pytest.mark.parametrize("name", NAMES)
def test_the_backward_pass_is_the_derivative_of_the_scores(name, eps, train, rng):
    """With a random cotangent: <dy, J d> = <J^T dy, d> by complex steps, for X and parameters."""
    network = network_of(name, rng, eps=eps)
    X, _ = batch_of(network, rng)

    def forward(X, *arrays):
        moved = with_arrays(network, arrays)
        outputs, caches, _ = moved._forward(X.astype(moved.dtype), train)
        return outputs[-1], (moved, caches)

    def backward(dscores, cache):
        moved, caches = cache
        gradients, cotangents = moved._backward(dscores, caches)
        return (cotangents[0], *gradients.values())

    arguments = [X, *network.parameters.values()]
    names = ["X", *network.parameters]
    gradcheck.assert_gradient(forward, backward, arguments, rng, names=names, entries=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_derivative_of_the_loss(name, loss, rng):
    network = network_of(name, rng, eps=0.5, loss=loss)
    X, targets = batch_of(network, rng)

    def typed(dtype):
        return targets if loss == "cross_entropy" else targets.astype(dtype)

    def forward(*arrays):
        moved = with_arrays(network, arrays)
        data = X.astype(moved.dtype), typed(moved.dtype)
        return np.atleast_1d(moved.loss(*data)), (moved, data)

    def backward(dvalue, cache):
        moved, data = cache
        result = moved.loss_and_gradients(*data)
        return tuple(dvalue * gradient for gradient in result.gradients.values())

    arguments = list(network.parameters.values())
    names = list(network.parameters)
    gradcheck.assert_gradient(forward, backward, arguments, rng, names=names, entries=0)


@pytest.mark.parametrize("name", ("two batch norm blocks with tanh", "weight norm, tanh"))
def test_the_gradient_agrees_with_finite_differences(name, rng):
    network = network_of(name, rng, eps=1e-5)
    X, targets = batch_of(network, rng)
    gradients = network.loss_and_gradients(X, targets).gradients
    for parameter, w in network.parameters.items():
        direction = rng.standard_normal(w.shape)

        def loss(w, parameter=parameter):
            return network.with_parameters({parameter: w}).loss(X, targets)

        result = gradcheck.finite_difference(loss, w, direction, noise=len(X) * 2.0**-48)
        error = abs(result.derivative - np.sum(gradients[parameter] * direction))
        assert error <= result.truncation + result.noise, parameter


@pytest.mark.parametrize("backend", WINGS)
def test_all_wings_agree(backend, rng):
    """A wing's gradients are as close to longdouble's as rounding the data lets them be."""
    network = network_of("two batch norm blocks", rng, eps=1e-5, dtype=np.float32)
    X, targets = batch_of(network, rng)
    result = network.on(backend).loss_and_gradients(X, targets)
    exact_network, exact_X = in_dtype(network, X, np.longdouble)
    exact = exact_network.loss_and_gradients(exact_X, targets)
    noise = noise_of(lambda n, x: n.loss_and_gradients(x, targets).gradients, network, X, rng)
    for name, gradient in result.gradients.items():
        gradient = network.on(backend).backend.to_numpy(gradient)
        assert gradient.dtype == np.float32
        assert np.abs(gradient - exact.gradients[name]).max() <= noise[name], name


def noise_of(function, network, X, rng, probes=6):
    """Return 6 sqrt(n) times the largest change of {name: array} when all numbers move by an ulp.

    n: the numbers in network and data, about as many as the roundings in a result; the factor is
    that of gradcheck.check (Higham & Mary, 2019).
    """
    plain = function(network, X)
    count = X.size + sum(w.size for w in network.parameters.values())

    def shaken(array):
        return array + array * np.finfo(array.dtype).eps * rng.uniform(-1, 1, array.shape)

    largest = {name: 0.0 for name in plain}
    for _ in range(probes):
        moved = network.with_parameters(
            {n: shaken(w).astype(w.dtype) for n, w in network.parameters.items()}
        )
        changed = function(moved, shaken(X).astype(X.dtype))
        for name, array in changed.items():
            change = float(np.max(np.abs(array - plain[name])))
            largest[name] = max(largest[name], change)
    return {name: 6 * np.sqrt(count) * change for name, change in largest.items()}


# Invariance groups: in longdouble, so that a change of the loss and its rounding lie far apart


def rescaled(network, group_parameters, extent, rng):
    """Return the network with parameters times powers of two: one, or one a unit or block."""
    units = network.parameters[group_parameters[0]].shape[-1]
    count = units if extent is True else max(extent, 1)
    factor = 2.0
    if count > 1:
        factor = np.repeat(2.0 ** rng.permutation(np.arange(count) % 3 - 1), units // count)
    return network.with_parameters(
        {name: (network.parameters[name] * factor) for name in group_parameters}
    )


def exact_subject(name, rng):
    network = network_of(name, rng)
    X, targets = batch_of(network, rng)
    network, X = in_dtype(network, X, np.longdouble)
    noise = noise_of(lambda n, x: {"loss": n.loss(x, targets)}, network, X, rng)["loss"]
    return network, X, targets, noise


@pytest.mark.parametrize("name", NAMES)
def test_the_groups_are_those_that_the_theory_says(name, rng):
    groups = [
        (g.parameters, extent(g), g.absorbed_by) for g in network_of(name, rng).invariance_groups()
    ]
    assert sorted(groups) == sorted(ARCHITECTURES[name].groups)


@pytest.mark.parametrize("name", INVARIANT)
def test_rescaling_a_group_does_not_change_the_loss(name, rng):
    network, X, targets, noise = exact_subject(name, rng)
    loss = network.loss(X, targets)
    for group in network.invariance_groups():
        moved = rescaled(network, group.parameters, extent(group), rng)
        assert abs(moved.loss(X, targets) - loss) <= noise, group


@pytest.mark.parametrize("name", INVARIANT)
def test_a_group_is_orthogonal_to_its_gradient(name, rng):
    network, X, targets, _ = exact_subject(name, rng)

    def products(network, X):
        gradients = network.loss_and_gradients(X, targets).gradients
        found = {}
        for group in network.invariance_groups():
            terms = [network.parameters[p] * gradients[p] for p in group.parameters]
            count = terms[0].shape[-1] if group.per_unit else group.blocks
            by_block = [t.reshape(-1, count, t.shape[-1] // count) for t in terms]
            found[group] = sum(each.sum(axis=(0, 2)) for each in by_block)
        return found

    noise = noise_of(products, network, X, rng)
    for group, product in products(network, X).items():
        assert np.max(np.abs(product)) <= noise[group], group
        assert noise[group] < 1e-12  # in longdouble: small beside <w, grad L> of ordinary weights


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_no_group_changes_the_loss(name, rng):
    """The derivation is not too narrow: a parameter outside is felt, or cancelled altogether."""
    network, X, targets, noise = exact_subject(name, rng)
    loss = network.loss(X, targets)
    inside = {p for group in network.invariance_groups() for p in group.parameters}
    cancelled = set(ARCHITECTURES[name].cancelled)
    assert not inside & cancelled
    for parameter in network.parameters.keys() - inside:
        moved = network.with_parameters({parameter: 2 * network.parameters[parameter]})
        change = abs(moved.loss(X, targets) - loss)
        if parameter in cancelled:
            assert change <= noise, parameter
        else:
            assert change > 1e6 * noise, parameter


@pytest.mark.parametrize("name", INVARIANT)
def test_a_group_cannot_be_divided(name, rng):
    """Nor too wide: a joint group's members alone, or units one by one, are felt."""
    network, X, targets, noise = exact_subject(name, rng)
    loss = network.loss(X, targets)
    for group in network.invariance_groups():
        parts = (
            [(parameter,) for parameter in group.parameters] if len(group.parameters) > 1 else []
        )
        for part in parts:
            moved = rescaled(network, part, False, rng)
            assert abs(moved.loss(X, targets) - loss) > 1e6 * noise, part
        if not group.per_unit:
            moved = rescaled(network, group.parameters, True, rng)
            assert abs(moved.loss(X, targets) - loss) > 1e6 * noise, group


@pytest.mark.parametrize("name", INVARIANT)
def test_running_statistics_absorb_nothing(name, rng):
    """In evaluation batch norm is not invariant, layer and weight norm are."""
    network, X, targets, noise = exact_subject(name, rng)
    loss = network.loss(X, targets, train=False)
    for group in network.invariance_groups():
        moved = rescaled(network, group.parameters, extent(group), rng)
        change = abs(moved.loss(X, targets, train=False) - loss)
        kind = group.absorbed_by.split(".")[-1].rstrip("0123456789")
        # Both branches of the residual blocks here end it by batch norm.
        assert group.training_only == (kind in ("batchnorm", "residual"))
        if group.training_only:
            assert change > 1e6 * noise, group
        else:
            assert change <= 100 * noise, group


def test_groups_know_the_eps_that_limits_them(rng):
    network = network_of("weight norm, batch norm", rng, eps=0.25)
    assert {group.eps for group in network.invariance_groups()} == {0.25}
    X, targets = batch_of(network, rng)
    loss = network.loss(X, targets)
    (v, _) = network.invariance_groups()
    assert abs(rescaled(network, v.parameters, True, rng).loss(X, targets) - loss) > 1e-3


# Names, copies, purity


def test_parameters_are_named_by_layer_and_kind(rng):
    network = network_of("convolutions with batch norm", rng)
    assert network.names == (
        *("conv1", "batchnorm1", "relu1", "maxpool1"),
        *("conv2", "batchnorm2", "relu2", "flatten1", "dense1"),
    )
    assert list(network.parameters) == [
        *("conv1.W", "conv1.b", "batchnorm1.gamma", "batchnorm1.beta"),
        *("conv2.W", "conv2.b", "batchnorm2.gamma", "batchnorm2.beta", "dense1.W", "dense1.b"),
    ]
    assert network.weights() == ("conv1.W", "conv2.W", "dense1.W")
    assert network_of("weight norm", rng).weights() == ("weightnorm1.v", "dense1.W")


def everything(network):
    return {**network.parameters, **network.state}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_changed_by_a_pass(name, rng):
    network = network_of(name, rng, eps=1e-5, dtype=np.float32)
    X, targets = batch_of(network, rng)
    read_only(X, targets, *everything(network).values())
    before = everything(network)
    first = network.loss_and_gradients(X, targets)
    second = network.loss_and_gradients(X, targets)
    network.trace(X, targets)
    network.loss_and_gradients(X, targets, train=False)
    assert everything(network) == before  # the very same, read-only, arrays
    assert_same_bits(second.loss, first.loss, "the loss of a second pass")
    for parameter in network.parameters:
        assert_same_bits(second.gradients[parameter], first.gradients[parameter], parameter)
    for statistic in network.state:
        assert_same_bits(second.state[statistic], first.state[statistic], statistic)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", (np.float32, np.longdouble))
@pytest.mark.parametrize("name", NAMES)
def test_no_dtype_is_promoted(name, dtype, loss, rng):
    train = loss == "cross_entropy"
    network = network_of(name, rng, eps=1e-5, dtype=dtype, loss=loss)
    X, targets = batch_of(network, rng)
    trace = network.trace(X, targets, train=train)
    result = network.loss_and_gradients(X, targets, train=train)
    arrays = {**result.gradients, **result.state, "loss": result.loss}
    for layer in trace.layers.values():
        arrays.update({f"{layer.name} {k}": getattr(layer, k) for k in ("x", "y", "dx", "dy")})
    wrong = {name: array.dtype for name, array in arrays.items() if array.dtype != dtype}
    assert not wrong


def test_a_trace_is_the_pass_layer_by_layer(rng):
    network = network_of("two batch norm blocks", rng, eps=0.5)
    X, targets = batch_of(network, rng)
    trace, result = network.trace(X, targets), network.loss_and_gradients(X, targets)
    assert trace.loss == result.loss
    assert list(trace.layers) == list(network.names)
    layers = list(trace.layers.values())
    assert layers[0].x is X
    for before, after in pairwise(layers):
        assert after.x is before.y and after.dx is before.dy
    assert_same_bits(layers[-1].y, network.forward(X, train=True), "the scores")
    # dL/d(bias of the last layer) is its cotangent, summed over the batch.
    assert_same_bits(layers[-1].dy.sum(axis=0), trace.gradients["dense3.b"], "db")


def test_the_same_seed_gives_the_same_bits(rng):
    def made(rng):
        return Network([Dense(5), BatchNorm(), ReLU(), Dense(3)], (4,), rng=rng).parameters

    one, other = made(3), made(3)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(one["dense1.W"], made(4)["dense1.W"])
    generator = np.random.default_rng(3)
    assert np.array_equal(made(generator)["dense1.W"], one["dense1.W"])
    assert not np.array_equal(made(generator)["dense1.W"], one["dense1.W"])


def test_float32_weights_are_the_rounded_float64_ones():
    single, double = (Network([Dense(5)], (4,), rng=1, dtype=d) for d in (np.float32, np.float64))
    assert_same_bits(
        single.parameters["dense1.W"], double.parameters["dense1.W"].astype(np.float32), "W"
    )
    assert_same_bits(
        double.astype(np.float32).parameters["dense1.W"], single.parameters["dense1.W"], "W"
    )


def test_with_parameters_replaces_and_shares_the_rest(rng):
    network = network_of("batch norm after a bias", rng)
    W, mean = np.ones((4, 5)), np.full(5, 2.0)
    copy = network.with_parameters({"dense1.W": W}, {"batchnorm1.mean": mean})
    assert copy.parameters["dense1.W"] is W and copy.state["batchnorm1.mean"] is mean
    assert network.parameters["dense1.W"] is not W
    assert copy.parameters["dense1.b"] is network.parameters["dense1.b"]
    assert copy.layers is network.layers and list(copy.parameters) == list(network.parameters)


@pytest.mark.parametrize(
    "copied",
    (
        lambda network: network.with_parameters(),
        lambda network: network.with_eps(0.5),
        lambda network: network.astype(np.float64),
        lambda network: network.on("reference"),
    ),
    ids=("with_parameters", "with_eps", "astype", "on"),
)
def test_a_copy_has_dictionaries_of_its_own(copied, rng):
    """Training a copy replaces entries; the original must not see it."""
    network = network_of("batch norm", rng)
    copy = copied(network)
    assert copy.parameters is not network.parameters and copy.state is not network.state
    for name, array in everything(network).items():
        assert_same_bits(everything(copy)[name], array, name)


def test_with_eps_changes_every_normalization_and_no_number(rng):
    network = network_of("weight norm of convolutions", rng, eps=0.0)
    copy = network.with_eps(0.5)
    assert [layer.eps for layer in copy.layers if hasattr(layer, "eps")] == [0.5] * 3
    assert [layer.eps for layer in network.layers if hasattr(layer, "eps")] == [0.0] * 3
    assert everything(copy) == everything(network)


def test_predict_and_error_use_running_statistics(rng):
    network = network_of("batch norm", rng, dtype=np.float32)
    X, labels = batch_of(network, rng, examples=7)
    scores = network.forward(X)
    assert_same_bits(network.predict(X), scores.argmax(axis=1).astype(np.int64), "labels")
    assert_same_bits(network.predict(X, batch_size=3), network.predict(X), "labels in parts")
    assert network.error(X, labels) == np.mean(scores.argmax(axis=1) != labels)
    assert not np.array_equal(scores, network.forward(X, train=True))


def test_the_program_names_everything(rng):
    program = network_of("weight norm of convolutions", rng).program()
    assert [operation.module for operation in program.operations] == [
        *("convolution", "batchnorm", "activation", "convolution", "flatten", "affine")
    ]
    conv = program.operations[0]
    expected = {"kernel": (3, 3), "stride": 1, "padding": 1, "algorithm": "direct"}
    assert conv.options == {**expected, "weightnorm_eps": 0.0}
    assert conv.parameters["v"] == "weightnorm1.v"
    assert (conv.input_shape, conv.output_shape) == ((3, 3, 2), (3, 3, 3))
    assert program.operations[1].state == {"mean": "batchnorm1.mean", "var": "batchnorm1.var"}
    assert (program.loss, program.dtype) == ("cross_entropy", np.float64)


SUMMARY = """\
layer       output  eps  parameters  numbers  invariant under
-------------------------------------------------------------------------------------
dense1      5            W 4x5       20       a factor per unit, by batchnorm1
                         b 5         5
batchnorm1  5       0    gamma 5     5        (gamma, beta) one factor, by batchnorm2
                         beta 5      5        (gamma, beta) one factor, by batchnorm2
relu1       5
dense2      6            W 5x6       30       a factor per unit, by batchnorm2
                         b 6         6
batchnorm2  6       0    gamma 6     6
                         beta 6      6
relu2       6
dense3      3            W 6x3       18
                         b 3         3
104 parameters, float64, reference wing"""


def test_the_summary_is_readable(rng):
    assert network_of("two batch norm blocks", rng).summary() == SUMMARY
    summary = network_of("layer norm", rng, eps=1e-5).summary()
    assert "one factor, by layernorm1 up to eps = 1e-05" in summary
    images = network_of("convolutions with batch norm", rng).summary()
    assert "conv1       4x4x3        W 3x3x2x3" in images
    blocks = network_of("residual on images", rng, eps=0.5).summary()
    assert "  shortcut.batchnorm1  2x2x4   0.5  gamma 4     4" in blocks


def test_evaluation_drops_no_imaginary_part(rng):
    """A loss that is complex is refused, and `loss` gives it whole."""
    network = network_of("tanh", rng).astype(np.complex128)
    network.parameters["dense1.b"] = network.parameters["dense1.b"] + 1e-3j
    X, labels = batch_of(network_of("tanh", rng), rng)
    X = X.astype(np.complex128)
    with pytest.raises(TypeError, match="evaluate: got a network of complex128, whose loss is a"):
        network.evaluate(X, labels)
    assert network.loss(X, labels, train=False).imag != 0


def test_a_network_says_in_a_line_what_it_is_and_shows_its_summary():
    network = Network([Dense(3), BatchNorm(), Dense(2)], (4,), rng=0)
    assert repr(network) == "<Network of 3 layers, 29 parameters in float32, reference>"
    assert network._repr_html_().startswith("<pre>") and "dense1" in network._repr_html_()
