"""Dropout in networks: draws, steps, evaluation, other arithmetics, and what is refused."""

import numpy as np
import pytest
import wings
from agreement import (
    assert_same_bits,
)

from minimal_nn import Adam, BatchNorm, Dense, Dropout, Network, ReLU, Sequential, fit, gradcheck


def network_of(wing="reference", dtype=np.float64, rate=0.25, rng=3):
    layers = [Dense(8), Sequential([BatchNorm(), ReLU(), Dropout(rate)]), Dropout(rate), Dense(3)]
    return Network(layers, (4,), rng=rng, dtype=dtype, backend=wing)


def data(dtype=np.float64, n=24):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 4)).astype(dtype), rng.integers(0, 3, n)


def test_a_share_of_the_rate_is_dropped_and_the_mean_stays():
    for rate in (0.1, 0.5, 0.9):
        network = Network([Dropout(rate)], (5000,), loss="mean_squared_error", dtype=np.float64)
        y = network.forward(np.ones((20, 5000)), train=True)
        # The relative deviation of the mean of n such numbers is sqrt(rate / (1 - rate) / n).
        deviation = np.sqrt(rate / (1 - rate) / y.size)
        assert abs(y.mean() - 1) < 5 * deviation
        assert set(np.unique(y)) == {0, 1 / (1 - rate)}


def test_every_step_and_layer_draws_anew_and_a_seed_repeats_it():
    network, (X, labels) = network_of(), data()
    first = network.step_gradients(X, labels)
    again = network_of().step_gradients(X, labels)
    assert_same_bits(first.loss, again.loss, "the loss of the same seed")
    assert network_of(rng=4).with_parameters(network.parameters).loss(X, labels) != first.loss
    second = network.with_parameters(state=first.state).step_gradients(X, labels)
    assert second.loss != first.loss
    seeds = [a for name, a in network.state.items() if name.endswith(".seed")]
    assert len(seeds) == 2 and np.any(seeds[0] != seeds[1])


def test_the_same_state_has_the_same_draw(rng):
    """So a pass is a function that gradients can be checked of."""
    network, (X, labels) = network_of(), data()
    assert network.loss(X, labels) == network.loss_and_gradients(X, labels).loss
    gradients = network.loss_and_gradients(X, labels).gradients
    for name, w in network.parameters.items():
        direction = rng.standard_normal(w.shape)

        def loss(w, name=name):
            moved = network.astype(w.dtype).with_parameters({name: w})
            return moved.loss(X.astype(w.dtype), labels)

        derivative = gradcheck.complex_step(loss, w, direction)
        assert abs(derivative - np.sum(gradients[name] * direction)) < 1e-13, name


@pytest.mark.parametrize("dtype", (np.float16, np.float32, np.longdouble, np.complex128))
def test_the_draw_is_the_same_in_every_dtype(dtype):
    network, X = network_of(), np.ones((6, 8))
    dropout, state = network.layers[2], network.state
    own = {k.removeprefix("dropout1."): a for k, a in state.items() if k.startswith("dropout1.")}
    assert own["seed"].max() < 2**10
    kept = dropout.kept(own, X.shape)
    converted = {name: a.astype(dtype) for name, a in own.items()}
    assert np.array_equal(dropout.kept(converted, X.shape), kept)


def test_balls_have_the_same_draw():
    flint = pytest.importorskip("flint", reason="python -m pip install python-flint")
    network, X = network_of(), data()[0]
    balls = network.converted(np.vectorize(flint.arb, otypes=[object]), object)
    y = balls.forward(np.vectorize(flint.arb, otypes=[object])(X), train=True)
    middle = np.array([float(e.mid()) for e in y.ravel()]).reshape(y.shape)
    np.testing.assert_allclose(middle, network.forward(X, train=True), rtol=1e-12, atol=1e-12)


def test_evaluation_drops_nothing():
    network, (X, _) = network_of(rate=0.9), data()
    plain = network_of(rate=0.0).with_parameters(network.parameters)
    assert_same_bits(network.forward(X), plain.forward(X), "scores")
    assert np.array_equal(network.predict(X), plain.predict(X))


def test_a_rate_of_zero_drops_nothing_in_training():
    network, (X, _) = network_of(rate=0.0), data()
    bare = Network([Dense(8), BatchNorm(), ReLU(), Dense(3)], (4,), rng=3, dtype=np.float64)
    values = list(network.parameters.values())
    bare = bare.with_parameters(dict(zip(bare.parameters, values, strict=True)))
    assert_same_bits(network.forward(X, train=True), bare.forward(X, train=True), "scores")


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("name", wings.names("affine"))
def test_a_resumed_run_has_the_same_bits(name, dtype, tmp_path):
    X, labels = data(dtype)
    path, options = tmp_path / "run.npz", {"batch_size": 5, "progress": False, "rng": 2}
    whole, resumed = network_of(name, dtype), network_of(name, dtype)
    losses = fit(whole, Adam(0.02), X, labels, epochs=3, **options).loss
    fit(network_of(name, dtype), Adam(0.02), X, labels, epochs=1, checkpoint=path, **options)
    options.update(checkpoint=path, resume=True)
    assert fit(resumed, Adam(0.02), X, labels, epochs=3, **options).loss == losses
    for key, array in {**whole.parameters, **whole.state}.items():
        assert_same_bits({**resumed.parameters, **resumed.state}[key], array, key)
    assert whole.state["dropout1.step"] == 15


def test_the_plan_says_that_it_has_no_loop():
    report = network_of("cpu").plan_report(Adam())
    assert "dropout1: there are no kernels for dropout on vectors in a loop" in report


def test_a_count_that_its_dtype_cannot_hold_is_refused():
    """The same draw for ever would be no dropout."""
    network, (X, labels) = network_of(dtype=np.float32), data(np.float32)
    late = network.with_parameters(state={"dropout1.step": np.full(1, 2.0**24, np.float32)})
    with pytest.raises(ValueError, match="step: got 16777216, beyond which float32 cannot count"):
        late.loss(X, labels)


@pytest.mark.parametrize("rate", (-0.1, 1.0, 1, 2.5, np.nan, np.inf))
def test_a_rate_outside_its_range_is_refused(rate):
    message = f"rate: got {rate!r}, expected a number from 0 to below 1: the share that is dropped"
    with pytest.raises(ValueError, match=message):
        Dropout(rate)


@pytest.mark.parametrize("rate", ("0.5", None, True))
def test_a_rate_that_is_no_number_is_refused(rate):
    with pytest.raises(TypeError, match="rate: got .*, expected a number from 0 to below 1"):
        Dropout(rate)
