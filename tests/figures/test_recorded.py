"""The predictions for a run, on runs whose gradient is known noise, and the settled test."""

import numpy as np
import pytest

from figures import fig_rate_exponents, fig_rate_plane, recorded
from figures.grid.store import Result
from figures.runs import training
from theory import laws

D, STEPS, MOMENTS = 200, 4000, 20


def simulated(name, eta, l2, rng, r0=1.0, s=1.0, momentum=None):
    """Run an optimizer on a random gradient orthogonal to w, |g| = s/|w|, and record it."""
    w = rng.standard_normal(D)
    w *= r0 / np.sqrt(w @ w)
    v = np.zeros(D)
    square, t = np.zeros(D), 0
    values = {key: [] for key in ("step", "w2", "w3", "w4", "s2", "s1", "g4", "rate")}
    edges = np.linspace(0, STEPS, MOMENTS + 1).astype(int)
    for start, end in zip(edges, edges[1:], strict=False):
        window = {key: [] for key in ("w3", "w4", "s2", "g2", "g4")}
        for _ in range(max(end - start, 1)):
            r2 = w @ w
            g = rng.standard_normal(D) * s / np.sqrt(D * r2)
            g -= (g @ w) / r2 * w
            window["w3"].append(r2**1.5)
            window["w4"].append(r2**2)
            window["s2"].append(r2 * (g @ g))
            window["g2"].append(r2 * g * g)
            window["g4"].append((g @ g) ** 2)
            g = g + 2 * l2 * w
            t += 1
            if name == "Adam":
                v = 0.9 * v + 0.1 * g
                square = 0.99 * square + 0.01 * g * g
                w = w - eta * (v / (1 - 0.9**t)) / np.sqrt(square / (1 - 0.99**t))
            else:
                v = (momentum or 0.0) * v + g
                w = w - eta * v
        values["step"].append(end)
        values["w2"].append([w @ w])
        for key in ("w3", "w4", "s2", "g4"):
            values[key].append([np.mean(window[key])])
        values["s1"].append([np.sqrt(np.mean(window["g2"], axis=0)).sum()])
        values["rate"].append([eta / (w @ w)])
    optimizer = {"name": name, "learning_rate": eta, "l2": l2}
    if momentum:
        optimizer["momentum"] = momentum
    values = {key: np.array(value, dtype=float) for key, value in values.items()}
    for key in values:  # moment 0
        first = [0] if key == "step" else values[key][:1]
        if key == "w2":
            first = [[r0**2]]
        values[key] = np.concatenate([first, values[key]])
    configuration = {"optimizer": optimizer, "steps": STEPS, "network": {"eps": 0.0}}
    return Result(configuration, "finished", {**values, "inputs": np.array([D])})


@pytest.mark.parametrize(
    "name, eta, l2, momentum",
    [("SGD", 0.1, 0.01, None), ("Momentum", 0.02, 0.01, 0.8), ("Adam", 0.002, 0.02, None)],
)
def test_equilibrium_is_reached_and_predicted(name, eta, l2, momentum, rng):
    run = simulated(name, eta, l2, rng, momentum=momentum)
    measured, predicted = recorded.equilibrium(run)
    assert recorded.settled(run)
    assert measured / predicted == pytest.approx(1, abs=0.06)
    np.testing.assert_allclose(
        recorded.trajectory(run)[-1], np.sqrt(run.values["w2"][-1]), rtol=0.06
    )


@pytest.mark.parametrize("name, eta", [("SGD", 0.05), ("Adam", 0.002)])
def test_growth_without_penalty_is_predicted(name, eta, rng):
    run = simulated(name, eta, 0.0, rng)
    grown = np.sqrt(run.values["w2"][:, 0])
    assert grown[-1] > 1.3 and not recorded.settled(run)
    np.testing.assert_allclose(recorded.trajectory(run)[:, 0], grown, rtol=0.05)


def test_large_steps_need_the_finite_law(rng):
    run = simulated("SGD", 0.5, 0.2, rng)  # eta lambda = 0.1
    measured, predicted = recorded.finite_equilibrium(run)
    assert measured / predicted == pytest.approx(1, abs=0.02)
    measured, predicted = recorded.equilibrium(run)
    assert measured / predicted > 1.08


def test_short_run_is_not_settled(rng):
    assert not recorded.settled(simulated("SGD", 0.1, 1e-4, rng))
    assert not recorded.settled(simulated("SGD", 0.1, 0.0012, rng, r0=30.0))  # far from its start


def test_collapse_is_seen(rng):
    run = simulated("SGD", 0.1, 0.01, rng)
    run.configuration["network"]["eps"] = 10.0
    assert recorded.collapsed(run) and recorded.broken(run) and not recorded.settled(run)


def test_a_dead_layer_is_seen(rng):
    run = simulated("SGD", 0.1, 0.01, rng)
    assert not recorded.broken(run)
    run.values["s2"][-1] = 0.0
    assert recorded.collapsed(run) and recorded.broken(run) and not recorded.settled(run)


@pytest.mark.parametrize("name, momentum", [("SGD", None), ("Momentum", 0.8), ("Adam", None)])
def test_growth_and_balance_written_out(name, momentum, rng):
    """eta' = eta/(1 - m): r^4 grows by 2 eta'^2 s^2 to eta' s^2/(4 lambda), r^2 by eta^2 d, and
    r^3 comes to eta S/(4 lambda)."""
    run = simulated(name, 0.02, 0.01, rng, momentum=momentum)
    eta, s2, s1 = 0.02 / (1 - (momentum or 0.0)), 3.0, 5.0
    growth = 7 * 0.02**2 * D if name == "Adam" else 7 * 2 * eta**2 * s2
    limit = eta * s1 / (4 * 0.01) if name == "Adam" else eta * s2 / (4 * 0.01)
    assert recorded.grown(run, s2, 7) == pytest.approx(growth)
    assert recorded.balance(run, s2, s1) == pytest.approx(limit)


def test_a_changed_law_moves_the_figures(rng, monkeypatch):
    run = simulated("SGD", 0.1, 0.01, rng)
    predicted = recorded.equilibrium(run)[1]
    line = fig_rate_plane._law("SGD", 0.1, 0.01)
    monkeypatch.setitem(laws.BALANCES, "SGD", lambda x, memory: 0.7)
    monkeypatch.setitem(laws.DEGREES, "Adam", 1)
    assert recorded.equilibrium(run)[1] == pytest.approx(1.4 * predicted)
    monkeypatch.setitem(laws.DEGREES, "SGD", 0)  # |w| as the cube root of eta/lambda
    assert fig_rate_plane._law("SGD", 0.1, 0.01) != line
    assert fig_rate_exponents._expected("Adam") == 2
    chosen = {"optimizer": {"name": "Adam", "learning_rate": 0.1}}
    assert training.effective_rate(chosen)(4.0) == pytest.approx(0.1 / 4)
