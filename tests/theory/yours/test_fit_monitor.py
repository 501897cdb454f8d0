"""FitMonitor: what fit records of norms and rates, and where the laws take them."""

import math

import numpy as np
import pytest

import minimal_nn as nn
from minimal_nn.data import digits
from theory import FitMonitor, laws
from theory.yours.fit_monitor import _Clock, _rest
from theory.yours.rates import Rule


def network(backend="reference", norm=nn.BatchNorm, dtype="float64"):
    layers = [nn.Dense(12, bias=False), norm(), nn.ReLU(), nn.Dense(10)]
    return nn.Network(layers, (64,), dtype=dtype, backend=backend, rng=0)


def noisy():
    data = digits(dtype=np.float64)
    rng = np.random.default_rng(1)
    y = data.y_train.copy()
    drawn = rng.random(len(y)) < 0.3
    y[drawn] = rng.integers(0, 10, np.count_nonzero(drawn))
    return data.X_train, y


def optimizer_of(name, eta, x, **hyper):
    """An optimizer whose invariant weights have their own eta and decay, as theory's runs have."""
    kind = getattr(nn, name)
    decay = "decoupled_weight_decay" if name == "AdamW" else "weight_decay"
    own = nn.Group(["dense1.W"], learning_rate=eta, **{decay: x / eta})
    rest = {"decoupled_weight_decay": 0.0} if name == "AdamW" else {}
    return kind(hyper.pop("rest", 0.02), groups=[own], **rest, **hyper)


SETTLED = (
    ("SGD", 0.1, 0.002, {}),
    ("Momentum", 0.05, 2e-4, {"rest": 0.002}),
    ("Nesterov", 0.05, 2e-4, {"rest": 0.002}),
    ("Adam", 0.02, 2e-4, {"rest": 0.001}),
    ("AdamW", 0.02, 0.004, {"rest": 0.001}),
)


@pytest.mark.slow
@pytest.mark.parametrize("name, eta, x, hyper", SETTLED, ids=[row[0] for row in SETTLED])
def test_the_prediction_meets_the_norm_of_a_settled_run(name, eta, x, hyper):
    X, y = noisy()
    optimizer = optimizer_of(name, eta, x, **hyper)
    monitor = FitMonitor(optimizer)
    options = {"epochs": 60, "rng": 0, "progress": False, "observe": monitor}
    history = nn.fit(network("cpu"), optimizer, X, y, **options)
    late = history.epochs[30:]
    norm, rest = (
        math.sqrt(np.mean([record[f"dense1.W {word}"] ** 2 for record in late]))
        for word in ("|w|", "|w| at rest")
    )
    assert rest == pytest.approx(norm, rel=0.02)
    if name != "AdamW":  # whose weights with small gradients go on growing
        early = [record["dense1.W |w| at rest"] for record in history.epochs[3:6]]
        assert max(early) / min(early) < 1.1
    assert history.epochs[-1]["dense1.W steps to rest"] < 200


@pytest.mark.parametrize("before, rest", ((2.0, 0.5), (0.3, 0.5), (0.45, 0.5)))
@pytest.mark.parametrize("name", laws.BALANCES)
def test_two_norms_on_the_laws_path_give_its_end(name, before, rest):
    """Exactly, for norms that were made by the law's clock itself, and back to the right time."""
    rule = Rule(name, 0.01, 0.05, 0.0 if name == "SGD" else 0.8)
    clock = _Clock(rule, 40, rest)
    for now in (before + 0.3 * (rest - before), before + 0.9 * (rest - before)):
        steps = clock.steps(before / rest, now / rest)
        assert steps > 0
        assert _rest(rule, 40, before, now, steps) == pytest.approx(rest, rel=1e-9)
        # A constant of the relaxation that is wrong by 3 % is seen.
        assert abs(_rest(rule, 40, before, now, 1.03 * steps) / rest - 1) > 1e-4


def test_adams_clock_runs_at_the_equilibrium_that_it_is_given():
    rule, rest, dims = Rule("Adam", 1e-4, 0.05, 0.9), 0.7, 64
    s = rest**3 / laws.adam_weighted(1e-4, 0.05, math.sqrt(dims))
    at = laws.equilibrium("Adam", 1e-4, 0.05, s=s, dims=dims, memory=0.9)
    assert at.norm == pytest.approx(rest, rel=1e-3)
    assert _Clock(rule, dims, rest).turn == pytest.approx(at.turn, rel=1e-9)


def test_what_no_rest_explains_has_none():
    """|w| that grows faster than a free one does under AdamW, whose steps no gradient sets."""
    rule = Rule("Adam", 0.01, 0.05, 0.9)
    assert math.isnan(_rest(rule, 4, 1.0, 3.0, 1))
    assert _rest(rule, 4, 1.0, 1.0, 10) == 1.0


def test_both_wings_and_a_whole_run_record_the_same():
    X, y = noisy()
    found = {}
    for wing in ("reference", "cpu"):
        optimizer = optimizer_of("Momentum", 0.05, 0.02, rest=0.002)
        monitor = FitMonitor(optimizer)
        nn.fit(network(wing), optimizer, X, y, epochs=3, progress=False, observe=monitor)
        found[wing] = np.array([sample[2:] for sample in monitor.samples])
    assert found["cpu"].shape == (3, 8)
    np.testing.assert_allclose(found["cpu"], found["reference"], rtol=1e-6)
    assert np.isnan(found["cpu"][0, 3]) and np.isfinite(found["cpu"][1:, 3]).all()


def test_schedules_count_and_a_rate_that_changes_predicts_nothing():
    optimizer = nn.SGD(0.1, weight_decay=0.1)
    factors = {0: 1.0, 10: 1.001, 20: 0.5, 30: 0.5}
    monitor = FitMonitor(optimizer, schedule=factors.get)
    net = network()
    known = []
    for step in factors:
        optimizer.t = step
        monitor(net)
        known.append(monitor.samples[-1].norm_at_rest)
        net = net.with_parameters({"dense1.W": 0.99 * net.parameters["dense1.W"]})
    assert [not math.isnan(value) for value in known] == [False, True, False, True]
    assert monitor.samples[2].rate == pytest.approx(0.5 * monitor.samples[0].rate / 0.99**4)


def test_a_schedule_that_ends_at_0_is_watched_to_its_end():
    X, y = noisy()
    optimizer, schedule = nn.SGD(0.1, weight_decay=0.1), nn.schedules.Cosine(6)
    monitor = FitMonitor(optimizer, schedule=schedule)
    options = {"batch_size": 32, "progress": False, "schedule": schedule, "observe": monitor}
    nn.fit(network(), optimizer, X[:96], y[:96], epochs=2, **options)
    assert [sample.step for sample in monitor.samples] == [3, 6]
    assert monitor.samples[-1].rate == 0 and math.isnan(monitor.samples[-1].norm_at_rest)


def test_one_path_is_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FitMonitor(nn.SGD(0.1), sinks="norms.csv")(network())
    assert [path.name for path in tmp_path.iterdir()] == ["norms.csv"]


def test_blocks_whole_layers_and_optimizers_without_laws():
    for norm, count in ((lambda: nn.GroupNorm(4), 4), (nn.LayerNorm, 1), (nn.BatchNorm, 12)):
        net = network(norm=norm)
        numbers = FitMonitor(nn.SGD(0.1, weight_decay=0.1))(net)
        total = np.linalg.norm(net.parameters["dense1.W"])
        assert numbers["dense1.W |w|"] == pytest.approx(total / math.sqrt(count))
        assert numbers["dense1.W rate"] == pytest.approx(0.1 * count / total**2)
    for optimizer in (nn.LARS(0.01), nn.SGD(0.1), nn.SGD(0.1, weight_decay=0.1, fixed_norm=1.0)):
        monitor, net = FitMonitor(optimizer), network()
        for _ in range(2):
            numbers = monitor(net)
            optimizer.t += 10
        assert "dense1.W |w|" in numbers and "dense1.W |w| at rest" not in numbers


def test_it_is_printed_drawn_and_written(tmp_path):
    optimizer = nn.SGD(0.1, weight_decay=0.1)
    monitor = FitMonitor(optimizer, sinks=[tmp_path / "norms.csv"])
    monitor(network())
    assert "dense1.W" in str(monitor) and "at rest" in str(monitor)
    assert len(monitor.plot().axes) == 2
    head, row = (tmp_path / "norms.csv").read_text().splitlines()
    assert head.startswith("step,name,norm,rate") and row.startswith("0,dense1.W,")


@pytest.mark.parametrize(
    "error, words, options",
    (
        (TypeError, "optimizer: got str, expected minimal_nn's", {"optimizer": "SGD"}),
        (TypeError, "schedule: got float, expected a function of the step", {"schedule": 0.5}),
        (TypeError, "sinks: got int, expected a path", {"sinks": [1]}),
    ),
)
def test_what_does_not_fit_is_refused(error, words, options):
    with pytest.raises(error, match=words):
        FitMonitor(**{"optimizer": nn.SGD(0.1), **options})
