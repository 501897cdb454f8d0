"""A training run: what is recorded is what happened, and depends on the configuration alone."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from figures import presets, runs
from figures.grid.version import sources
from figures.runs import data, ladder, recording, scaling, training
from minimal_nn import SGD
from theory import laws

PRESET = presets.QUICK._replace(network={**presets.DENSE, "widths": [12, 8]})
EVEN = {"spacing": "even", "count": 4}


def configuration(optimizer="SGD", eta=0.1, l2=1e-3, seed=0, steps=40, probes=10, **changes):
    return {
        **presets.training(PRESET, optimizer, eta, l2, seed, steps, EVEN, probes, **changes),
        "backend": "reference",
    }


def measure(chosen):
    seen = []
    status, values = runs.run(chosen, seen.append)
    assert seen[-1] == chosen["steps"] and seen == sorted(seen)
    return status, values


def test_same_configuration_same_numbers():
    one, other = measure(configuration())[1], measure(configuration())[1]
    assert one["digest"] == other["digest"]
    np.testing.assert_equal(one, other)
    assert measure(configuration(seed=1))[1]["digest"] != one["digest"]


def test_records_have_their_shapes():
    status, values = measure(configuration())
    assert status == "finished" and values["layers"] == ["dense1", "dense2"]
    assert values["step"] == [0, 10, 20, 30, 40] and values["inputs"] == [64, 12]
    assert np.shape(values["s2"]) == (5, 2) and len(values["error"]) == 5
    assert np.isnan(values["error"][3]) and 0 <= values["error"][4] < 1  # the last quarter
    assert np.shape(values["late_w2"]) == (2,) and np.all(values["living"] == 1)
    assert values["first_loss"] == pytest.approx(np.log(10), abs=0.1)  # no score stands out


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "Nesterov", "Adam"])
def test_buffers_are_those_before_the_gradient(optimizer):
    """Two steps by hand: what is recorded at the second is of the first one's buffer."""
    chosen = configuration(optimizer, eta=0.01, l2=0.1, steps=2, probes=1)
    chosen["moments"] = {"spacing": "even", "count": 2}
    _, values = measure(chosen)
    X, y, *_ = data.load("digits", None, None, True)
    X = X.astype(np.float32)
    start, order = (np.random.default_rng([0, stream]) for stream in range(2))
    network = training.build_network(chosen, (64,), start)
    rows = data.Batches(len(X), 64, order).take(2)
    own = training.build_optimizer(chosen, network)
    w0, g0 = (
        network.parameters["dense1.W"].astype(float),
        network.loss_and_gradients(X[rows[0]], y[rows[0]]).gradients["dense1.W"].astype(float),
    )
    own.step(network, network.step_gradients(X[rows[0]], y[rows[0]]).gradients)
    w1 = network.parameters["dense1.W"].astype(float)
    g1 = network.loss_and_gradients(X[rows[1]], y[rows[1]]).gradients["dense1.W"].astype(float)
    p0, p1 = g0 + 0.2 * w0, g1 + 0.2 * w1
    squares = (w1 * w1).sum(axis=0)
    if optimizer == "Adam":
        root = np.sqrt((0.001 * p1**2 + 0.999 * 0.001 * p0**2) / (1 - 0.999**2))
        parts = np.divide(0.1 * p0 * p1, root, out=0 * root, where=root > 0).sum(axis=0)
        found, expected = values["drive_b"], (np.sqrt(squares) * parts).mean()
    else:
        buffer = 0 if optimizer == "SGD" else p0
        found, expected = values["sb"], (squares * (buffer * g1).sum(axis=0)).mean()
    assert found[2][0] == pytest.approx(expected, rel=2e-3)


def test_a_dead_unit_has_no_part_in_the_means_of_the_second_half():
    windows = []
    for gradient in (1.0, 0.0):  # of the second unit, in two windows
        window = recording.Window(None, ["conv1.W"], None, None)
        window.count = 2
        window.units["conv1.W"] = {
            "w2": np.array([2.0, 100.0]),
            "g2": np.array([4.0, gradient]),
            "gb": np.array([6.0, 0.0]),
        }
        windows.append(window)
    late = recording.second_half(windows)
    assert late == {"living": [0.5], "late_w2": [1.0], "late_g2": [2.0], "late_gb": [3.0]}


def test_growth_of_the_norm_is_the_recorded_gradient():
    """|w|^2 grows by eta^2 |g|^2 a step: with a probe at each step, s2/|w|^2 is that |g|^2."""
    chosen = configuration(l2=0.0, eta=0.1, steps=4, probes=1)
    chosen["moments"] = {"spacing": "even", "count": 4}
    _, values = measure(chosen)
    w4 = np.array(values["w2"], dtype=float)[:, 0] ** 2
    growth = 2 * 0.1**2 * np.array(values["s2"], dtype=float)[1:, 0]
    # The mean over units of |w|^4 is a little above the square of the mean of |w|^2.
    np.testing.assert_allclose(np.diff(w4), growth, rtol=0.3)


def test_probe_returns_the_gradient():
    chosen = configuration()
    X, y, *_ = data.load("digits", None, None, True)
    X = X.astype(np.float32)
    network = training.build_network(chosen, (64,), np.random.default_rng(0))
    rows = np.arange(64)
    names = training.invariant_weights(network)
    before = {n: a.copy() for n, a in network.parameters.items()}
    found = recording.Probe(network, chosen).gradients(X, y, rows, names)
    expected = network.loss_and_gradients(X[rows], y[rows]).gradients
    for n in names:
        np.testing.assert_allclose(found[n], expected[n], atol=1e-6 * np.abs(expected[n]).max())
    for n, a in network.parameters.items():
        np.testing.assert_array_equal(a, before[n])


def test_penalty_and_its_symmetry_touch_the_normalized_weights_alone():
    chosen = configuration("Adam", eta=0.01, l2=0.25, eps=1e-6, scale=4.0, symmetric=True)
    network = training.build_network(chosen, (64,), np.random.default_rng(0))
    optimizer = training.build_optimizer(chosen, network)
    own, rest = optimizer.hyper_parameters("dense1.W"), optimizer.hyper_parameters("dense3.W")
    assert (own["learning_rate"], own["weight_decay"], own["eps"]) == (0.04, 2 * 0.25 / 16, 2.5e-7)
    assert (rest["learning_rate"], rest["weight_decay"], rest["eps"]) == (0.001, 0.0, 1e-6)
    assert optimizer.hyper_parameters("batchnorm1.gamma")["weight_decay"] == 0


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "Nesterov", "RMSprop", "Adagrad", "Adam"])
def test_symmetric_start_is_the_same_run_to_the_last_bit(optimizer):
    changes = {"network": {**PRESET.network, "eps": 0.0}}
    if laws.DEGREES[optimizer] == 0:  # its step is divided by the size of gradients, and eps
        changes["eps"] = 1e-8
    plain = measure(configuration(optimizer, eta=0.01, scale=1.0, symmetric=True, **changes))[1]
    for scale in (2.0**-3, 2.0**5):
        scaled = configuration(optimizer, eta=0.01, scale=scale, symmetric=True, **changes)
        control = configuration(optimizer, eta=0.01, scale=scale, symmetric=False, **changes)
        assert measure(scaled)[1]["digest"] == plain["digest"]
        assert measure(control)[1]["digest"] != plain["digest"]


def test_divergence_is_a_status():
    with np.errstate(all="ignore"):
        status, values = measure(configuration(eta=1e30, network={**PRESET.network, "eps": 0.0}))
    assert status == "diverged" and values["reason"] in ("NonFiniteError", "ZeroVarianceError")
    assert len(values["step"]) < 5 and values["diverged_after"] <= 40


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_fixed_norm_holds_after_each_step(optimizer):
    _, values = measure(configuration(optimizer, eta=0.01, fixed_norm=2.0))
    np.testing.assert_allclose(values["w2"], 4.0, rtol=1e-5)


def test_fixed_norm_makes_the_penalty_a_learning_rate():
    eta, l2 = 0.1, 0.5  # 2 eta lambda = 0.1
    penalized = measure(configuration(eta=eta, l2=l2, fixed_norm=1.0))[1]
    equal = configuration(
        eta=eta / (1 - 2 * eta * l2), l2=0.0, fixed_norm=1.0, rest_learning_rate=eta
    )
    other = configuration(eta=eta, l2=0.0, fixed_norm=1.0)
    loss = np.array(penalized["loss"][1:])
    np.testing.assert_allclose(measure(equal)[1]["loss"][1:], loss, rtol=1e-4)
    assert np.abs(measure(other)[1]["loss"][1:] / loss - 1).max() > 1e-3


def test_batches_are_permutations():
    stream = data.Batches(10, 3, np.random.default_rng(0))
    ahead = stream.peek(2).copy()
    np.testing.assert_array_equal(stream.take(2), ahead)
    epochs = stream.take(7)
    for epoch in (np.concatenate([ahead, epochs[:1]]), epochs[1:4], epochs[4:]):
        assert len(set(epoch.ravel())) == 9


def test_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size: got 11, expected at most 10"):
        data.Batches(10, 11, np.random.default_rng(0))


def test_parts_and_moments_cover_the_run():
    assert recording.parts(10, 4) == [2, 3, 2, 3] and recording.parts(0, 4) == [0]
    assert recording.parts(2, 16) == [1, 1]
    powers = recording.moments({"steps": 1000, "moments": {"spacing": "powers", "count": 7}})
    assert powers == [0, 1, 3, 10, 32, 100, 316, 1000]


def test_convolutional_network_has_the_shape_of_the_paper(rng):
    chosen = configuration(network={"kind": "convolutional", "widths": [2, 2, 4, 4], "eps": 1e-5})
    network = training.build_network(chosen, (8, 8, 3), rng)
    kinds = [type(layer).__name__ for layer in network.layers]
    block = ["Conv2d", "BatchNorm", "ReLU"]
    assert kinds == [*block * 2, "MaxPool2d", *block * 2, "MaxPool2d", "Flatten", "Dense"]
    assert training.invariant_weights(network) == [f"conv{k}.W" for k in range(1, 5)]
    X = rng.standard_normal((6, 8, 8, 3)).astype(np.float32)
    network.loss_and_gradients(X, np.arange(6))


def test_every_step_scales_as_its_law_says():
    for hyper, power in (
        ({"name": "SGD"}, 2),
        ({"name": "Nesterov", "momentum": 0.9}, 2),
        ({"name": "Adam", "eps": 0.0}, 1),
        ({"name": "LARS"}, 0),
    ):
        chosen = {"optimizer": hyper, "exponents": [-4, 0, 6], "seed": 0}
        _, values = scaling.measure(chosen, lambda steps: None)
        slopes = -np.diff(np.log2(values["angle"])) / [4, 6]
        np.testing.assert_allclose(slopes, power, atol=1e-6)
        np.testing.assert_allclose(values["angle"], values["predicted"], rtol=1e-6)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_residuals_are_roundoff_and_the_control_is_not(name):
    _, values = ladder.measure({"arithmetic": name, "seed": 0}, lambda steps: None)
    for identity in ("invariance", "gradient", "orthogonality"):
        assert values[identity] < values["roundoff"] + 6
    assert values["control"] > -6


def test_a_run_in_balls_leaves_the_precision_as_it_was():
    flint = pytest.importorskip("flint")
    before = flint.ctx.prec
    ladder.measure({"arithmetic": "balls", "bits": before + 31, "seed": 0}, lambda steps: None)
    assert flint.ctx.prec == before


def test_balls_prove_what_floats_suggest():
    pytest.importorskip("flint")
    _, values = ladder.measure({"arithmetic": "balls", "bits": 200, "seed": 0}, lambda steps: None)
    assert values["roundoff"] == -200 and values["orthogonality"] < -180
    _, floats = ladder.measure({"arithmetic": "float64", "seed": 0}, lambda steps: None)
    assert values["control"] == pytest.approx(floats["control"], abs=1e-9)


@pytest.fixture
def copied_sources(tmp_path, monkeypatch):
    """A copy of all that the code version is taken of, in `runs.SOURCES`."""
    copies = []
    for source in runs.SOURCES:
        copies.append(tmp_path / source.name)
        if source.is_file():
            shutil.copy(source, copies[-1])
            continue
        shutil.copytree(source, copies[-1], ignore=shutil.ignore_patterns("*.npz", "__pycache__"))
    monkeypatch.setattr(runs, "SOURCES", tuple(copies))
    return copies


def test_code_version_follows_every_room_that_runs_compute_with(copied_sources):
    before = runs.version("cpu")
    package = next(source for source in copied_sources if source.name == "minimal_nn")
    for path in sources(*copied_sources):
        name = path.relative_to(package) if package in path.parents else path
        counted = name.parts[0] != "cuda" and not any(
            other in map(str, (name, *name.parents)) for other in runs.BESIDE
        )
        content = path.read_bytes()
        path.write_bytes(content + b"#")
        assert (runs.version("cpu") != before) == counted, path
        path.write_bytes(content)
    assert runs.version("cpu") == before != runs.version("reference")


def test_what_is_left_out_of_the_code_version_exists():
    assert [name for name in runs.BESIDE if not (runs.SOURCES[1] / name).exists()] == []


def test_code_version_covers_all_that_a_run_executes():
    executed = set()

    def note(frame, event, argument):
        executed.add(frame.f_code.co_filename)

    for chosen in (
        configuration("Adam"),
        {"experiment": "scaling", "optimizer": {"name": "LARS"}, "exponents": [0], "seed": 0},
        {"experiment": "precision", "arithmetic": "float32", "seed": 0},
    ):
        data.load.cache_clear()
        sys.setprofile(note)
        try:
            runs.run(chosen, lambda steps: None)
        finally:
            sys.setprofile(None)
    root = Path(runs.__file__).parents[2]
    packages = [root / package for package in ("minimal_nn", "theory", "figures")]
    ours = {Path(name) for name in executed}
    ours = {path for path in ours if any(path.is_relative_to(package) for package in packages)}
    assert {"optimizers.py", "affine.py", "sets.py", "floats.py", "scaling.py"} <= {
        path.name for path in ours
    }
    assert ours <= set(sources(*runs.SOURCES, without=(*runs.BESIDE, "cpu", "cuda")))


def test_unknown_data_and_missing_folder_are_named():
    with pytest.raises(ValueError, match="expected digits or cifar10"):
        data.load("imagenet", None, None, True)
    with pytest.raises(ValueError, match="--data DIR"):
        data.load("cifar10", None, None, False)


def test_optimizer_of_the_group_is_what_the_configuration_says():
    chosen = configuration(eta=0.5, l2=0.0)
    assert chosen["optimizer"]["rest_learning_rate"] == PRESET.rest["SGD"] == 0.1
    chosen = configuration(eta=0.5, l2=0.0, rest_learning_rate=0.25)
    network = training.build_network(chosen, (64,), np.random.default_rng(0))
    optimizer = training.build_optimizer(chosen, network)
    assert isinstance(optimizer, SGD)
    assert optimizer.hyper_parameters("dense1.W")["learning_rate"] == 0.5
    assert optimizer.hyper_parameters("dense3.b")["learning_rate"] == 0.25
    confounded = configuration(eta=0.5, l2=0.0, rest_learning_rate=None)
    optimizer = training.build_optimizer(confounded, network)
    assert optimizer.hyper_parameters("dense3.b")["learning_rate"] == 0.5
