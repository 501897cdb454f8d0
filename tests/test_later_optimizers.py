"""Optimizers after the paper: Lion, SGDP, AdamP, Muon, and AdamC's schedule.

Their steps against second derivations, from the papers, that share no code with them; Lion's number
by number is in test_update.py.  Random networks train with all of them (test_random_networks.py).
"""

import numpy as np
import pytest
from agreement import assert_same_bits, assert_within, read_only, wide
from runs import assert_same_run, batchnorm_network, random_data, train

from minimal_nn import AdamP, AdamW, BatchNorm, Dense, Group, Lion, Muon, Network, Schedule
from minimal_nn import backend as backends
from minimal_nn.errors import NonFiniteError
from minimal_nn.optimizers import ALL, LATER
from minimal_nn.plans import StepByStep
from minimal_nn.schedules import Cosine
from theory.numbers.bounded import running

EACH = pytest.mark.parametrize("kind", LATER, ids=lambda kind: kind.__name__)
WINGS = pytest.mark.parametrize("wing", ("reference", "cpu"))
SHAPES = pytest.mark.parametrize("shape", ((6, 4), (2, 3, 2, 5), (5,)))
P = {"learning_rate": 0.07, "delta": 0.1, "decay_ratio": 0.25, "decoupled_weight_decay": 0.3}
SGDP_HYPER = {**P, "momentum": 0.9}
ADAMP_HYPER = {**P, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


@pytest.fixture
def data(rng):
    return random_data(rng)


def update(wing):
    return backends.get(wing).update


def tangent(g, w, whole=False):
    """Return g without its part along w, unit by unit or as a whole, rounded once."""
    axes = None if whole else tuple(range(w.ndim - 1))
    square = (wide(w) ** 2).sum(axis=axes)
    return (wide(g) - wide(w) * ((wide(g) * wide(w)).sum(axis=axes) / square)).astype(g.dtype)


# The step, written a second time: units are rows, as in the authors' description


def without_radial_part(w, g, step, delta):
    """Return (step, whether its radial part was taken away) by the rule of Heo et al. (2021)."""
    if w.ndim < 2:
        return step, False
    rows = [np.moveaxis(x, -1, 0).reshape(w.shape[-1], -1) for x in (w, g, step)]
    for whole in (False, True):
        views = [r.reshape(1, -1) if whole else r for r in rows]
        cosines, moved = [], []
        for u, v, p in zip(*views, strict=True):
            lengths = np.sqrt(u @ u) * np.sqrt(v @ v)
            cosines.append(abs(u @ v) / lengths if lengths else 0)
            moved.append(p - u * (u @ p) / (u @ u))
        if max(cosines) < delta / np.sqrt(views[0].shape[1]):
            moved = np.array(moved).reshape(w.shape[-1], *w.shape[:-1])
            return np.moveaxis(moved, 0, -1), True
    return step, False


def sgdp_by_hand(w, gradients):
    h, v, judged = SGDP_HYPER, 0, []
    for g in gradients:
        v = h["momentum"] * v + g
        step, taken = without_radial_part(w, g, v, h["delta"])
        decay = h["decoupled_weight_decay"] / (1 - h["momentum"])
        w = w - h["learning_rate"] * (decay * (h["decay_ratio"] if taken else 1) * w + step)
        judged.append(taken)
    return w, judged


def adamp_by_hand(w, gradients):
    h, m, v, judged = ADAMP_HYPER, 0, 0, []
    for t, g in enumerate(gradients, 1):
        m = h["beta1"] * m + (1 - h["beta1"]) * g
        v = h["beta2"] * v + (1 - h["beta2"]) * g**2
        root = np.sqrt(v / (1 - np.longdouble(h["beta2"]) ** t)) + h["eps"]
        step = m / (1 - np.longdouble(h["beta1"]) ** t) / root
        step, taken = without_radial_part(w, g, step, h["delta"])
        decay = h["decoupled_weight_decay"] * (h["decay_ratio"] if taken else 1)
        w = w - h["learning_rate"] * (decay * w + step)
        judged.append(taken)
    return w, judged


def run_steps(module, formula, w, gradients, zero, hyper, counts):
    states = (zero,) * (1 if formula == "sgdp" else 2)
    for t, g in enumerate(gradients, 1):
        w, *states = module.step(formula, w, g, states, **hyper, **({"t": t} if counts else {}))
    return w


@SHAPES
@WINGS
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("formula", ("sgdp", "adamp"))
def test_projected_steps_by_hand(formula, dtype, wing, shape, rng):
    """Gradients that are tangent to every unit, to the whole alone, and to neither."""
    hyper, by_hand = (
        (SGDP_HYPER, sgdp_by_hand) if formula == "sgdp" else (ADAMP_HYPER, adamp_by_hand)
    )
    w, *drawn = (rng.standard_normal(shape).astype(dtype) for _ in range(4))
    kinds = (lambda g: tangent(g, w)), (lambda g: tangent(g, w, True)), (lambda g: g + 2 * w)
    for number, make in enumerate(kinds):
        gradients = [make(drawn[number])]
        read_only(w, *gradients)
        got = run_steps(
            update(wing), formula, w, gradients, np.zeros_like(w), hyper, formula == "adamp"
        )
        bound = run_steps(
            update("reference"),
            formula,
            running(w, dtype),
            [running(g, dtype) for g in gradients],
            running(np.zeros(shape), dtype),
            hyper,
            formula == "adamp",
        )
        expected, judged = by_hand(wide(w), [wide(g) for g in gradients])
        assert got.dtype == dtype
        assert_within(got, expected, bound.error, formula)
        assert judged == [len(shape) > 1 and number < 2]


@pytest.mark.parametrize("formula", ("sgdp", "adamp"))
def test_projected_steps_over_a_run(formula, rng):
    """Three steps on gradients of both kinds, against the same by hand."""
    hyper, by_hand = (
        (SGDP_HYPER, sgdp_by_hand) if formula == "sgdp" else (ADAMP_HYPER, adamp_by_hand)
    )
    w = rng.standard_normal((6, 4))
    gradients = [tangent(rng.standard_normal(w.shape), w), rng.standard_normal(w.shape)] * 2
    expected, judged = by_hand(wide(w), [wide(g) for g in gradients])
    got = run_steps(
        update("cpu"), formula, w, gradients, np.zeros_like(w), hyper, formula == "adamp"
    )
    assert set(judged) == {True, False}
    assert np.max(np.abs(got - expected)) <= 64 * np.finfo(float).eps * np.max(np.abs(expected))


def test_one_number_judges_a_parameter(rng):
    w, g = rng.standard_normal((2, 3, 2))
    with pytest.raises(ValueError, match="delta: got .* expected one number"):
        update("cpu").step("sgdp", w, g, (0 * w,), **{**SGDP_HYPER, "delta": np.ones(2)})
    network = Network([Dense(3)], (4,))
    optimizer = AdamP(groups=[Group(["dense1.W"], delta=[0.1, 0.2, 0.3])])
    with pytest.raises(ValueError, match="delta: got an array of shape .3,., expected one number"):
        train((np.ones((4, 4), np.float32), np.zeros(4, int)), network=network, optimizer=optimizer)


def muon(w, g, wing="reference", buffer=None, steps=0, dtype=np.float64, decay=0.0):
    hyper = {"learning_rate": 1.0, "momentum": 0.5, "decoupled_weight_decay": decay}
    buffer = np.zeros_like(w) if buffer is None else buffer
    return update(wing).step("muon", w, g, (buffer,), newton_schulz_steps=steps, **hyper)


@WINGS
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("shape", ((6, 4), (4, 6), (3, 3, 2, 5), (5, 5)))
def test_muon_steps_along_the_polar_factor(shape, dtype, wing, rng):
    """O = v (v^T v)^(-1/2): O^T O = 1 and O^T v is symmetric and positive, which fixes O.

    Bound: LAPACK's singular vectors are orthonormal, and U S V^T is v, up to p(n) units of
    round-off (Higham 2002, section 19), here taken as 20 n.
    """
    g, buffer = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    new, v = muon(np.zeros_like(g), g, wing, buffer)
    assert new.dtype == v.dtype == dtype
    assert_same_bits(v, dtype(0.5) * buffer + g, "v")
    polar, v = (-wide(new).reshape(-1, shape[-1]), wide(v).reshape(-1, shape[-1]))
    if len(polar) < polar.shape[1]:
        polar, v = polar.T, v.T
    bound = 20 * max(polar.shape) * np.finfo(dtype).eps
    H = polar.T @ v
    assert np.max(np.abs(polar.T @ polar - np.eye(polar.shape[1]))) <= bound
    assert np.max(np.abs(H - H.T)) <= bound * np.sqrt((v * v).sum())
    assert np.linalg.eigvalsh(H.astype(float)).min() > 0
    assert np.max(np.abs(polar @ H - v)) <= bound * np.sqrt((v * v).sum())


def test_muon_of_a_signed_permutation_is_exact(rng):
    """Singular values that are powers of two, far apart: O has the entries -1, 0 and 1."""
    polar = np.zeros((5, 4))
    polar[rng.permutation(5)[:4], np.arange(4)] = [1, -1, -1, 1]
    for scale in (1.0, 2.0**-300, 2.0**300):
        w, _ = muon(np.ones_like(polar), polar * 2.0 ** np.arange(0, 8, 2) * scale, decay=0.25)
        assert np.max(np.abs(w - (0.75 - polar))) <= 8 * np.finfo(float).eps


def test_muon_leaves_what_has_no_momentum(rng):
    assert_same_bits(muon(np.ones((3, 2)), np.zeros((3, 2)))[0], np.ones((3, 2)), "w")
    rank_one = np.outer([3.0, 4.0], [1.0, 0.0, 0.0])
    step = -muon(np.zeros((2, 3)), rank_one)[0]
    assert np.max(np.abs(step - rank_one / 5)) <= 8 * np.finfo(float).eps
    vector = -muon(np.zeros(2), np.array([3.0, -4.0]))[0]
    assert np.max(np.abs(vector - [0.6, -0.8])) <= 4 * np.finfo(float).eps


@pytest.mark.parametrize("shape", ((6, 4), (4, 6)))
def test_newton_schulz_is_the_polynomial_of_singular_values(shape, rng):
    """Its step leaves singular vectors and takes s to a s + b s^3 + c s^5, from s/|v|."""
    g = rng.standard_normal(shape)
    U, S, Vh = np.linalg.svd(g, full_matrices=False)
    s = S / np.sqrt((S * S).sum())
    for steps in range(1, 6):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        got = -muon(np.zeros(shape), g, steps=steps)[0]
        assert np.max(np.abs(got - (U * s) @ Vh)) <= 1e-12
    assert 0.6 < s.min() <= s.max() < 1.3


def test_muon_refuses_what_has_no_polar_factor():
    with pytest.raises(NonFiniteError, match="buffer: got momentum that is not finite"):
        muon(np.ones((2, 2)), np.full((2, 2), np.inf))
    with pytest.raises(TypeError, match="expected float32 or float64"):
        muon(np.ones((2, 2), np.float16), np.ones((2, 2), np.float16))
    with pytest.raises(ValueError, match="newton_schulz_steps"):
        muon(np.ones((2, 2)), np.ones((2, 2)), steps=2.5)


# As optimizers


def test_they_are_no_others():
    assert not set(ALL) & set(LATER) and all(kind().built_in for kind in LATER)


@EACH
def test_it_trains_and_resumes_with_the_same_bits(kind, data, tmp_path):
    def run(**options):
        groups = [Group(["dense1.W"], learning_rate=0.02, decoupled_weight_decay=0.1)]
        return train(data, optimizer=kind(0.01, groups=groups), validation=data, **options)

    whole = run()
    run(epochs=2, checkpoint=tmp_path / "run.npz")
    assert_same_run(whole, run(checkpoint=tmp_path / "run.npz", resume=True))
    assert np.mean(whole[2].loss[-5:]) < np.mean(whole[2].loss[:5])
    arrays = [a for slots in whole[1].state.values() for a in slots.values()]
    assert {str(a.dtype) for a in (*arrays, *whole[0].parameters.values())} == {"float32"}


@EACH
def test_the_wings_agree_and_the_loop_is_the_steps(kind, data):
    """Lion has a compiled loop; of the others the plan says why they have none."""
    schedule = Schedule(Cosine(30), groups=[Group(["dense1.b"], decoupled_weight_decay=Cosine(9))])

    def run(wing, own_step=False, dtype=np.float64):
        layers = [Dense(8), BatchNorm(), Dense(3)]
        network = Network(layers, (6,), rng=5, dtype=dtype, backend=wing)
        optimizer = kind(0.01, decoupled_weight_decay=0.1, weight_decay=0.02)
        if own_step:
            optimizer.step = optimizer.step  # a method of its own: no compiled loop
        X = data[0].astype(dtype)
        return train((X, data[1]), network=network, optimizer=optimizer, schedule=schedule)

    for dtype in (np.float32, np.float64):
        compiled = run("cpu", dtype=dtype)
        assert_same_run(compiled, run("cpu", True, dtype))
    near = np.array(run("reference")[2].loss)
    assert np.max(np.abs(near - compiled[2].loss)) < 1e-9
    network = batchnorm_network().on("cpu")
    plan = network.backend.plan(network.program(), kind(), 4)
    assert (plan is not None and not isinstance(plan, StepByStep)) == (kind is Lion)
    if kind is not Lion:
        reason = network.backend.why_not(network.program(), kind())
        assert reason == f"there is no kernel for the optimizer's formula {kind.formula!r}"


@EACH
def test_a_penalty_is_refused_beside_nothing_and_taken_by_name(kind):
    with pytest.raises(TypeError, match="decoupled_weight_decay"):
        kind(l2=0.1)
    assert kind(l2=0.1, decoupled_weight_decay=0.0).hyper_parameters("w")["weight_decay"] == 0.2


def test_projected_weights_of_a_normalized_layer_do_not_grow_faster(data):
    """Of the layer that batch norm makes scale-invariant; the last layer is not, and is left."""

    def norms(kind, **options):
        network, optimizer, _ = train(data, optimizer=kind(0.02, **options), epochs=20)
        return {k: float(np.sqrt((network.parameters[k] ** 2).sum())) for k in ("dense1.W",)}

    assert norms(AdamP)["dense1.W"] < norms(AdamW, decoupled_weight_decay=0.0)["dense1.W"]


def test_muon_takes_images_and_vectors(data):
    network, *_ = train(data, optimizer=Muon(0.01, newton_schulz_steps=5))
    assert all(np.all(np.isfinite(w)) for w in network.parameters.values())


# AdamC


def test_adamc_is_a_schedule(data):
    """Defazio (2025): w - eta_t (step + (eta_t/eta_max) decay w) for normalized layers."""
    eta, decay, schedule = 0.01, 0.5, Cosine(30, final=0.1)
    corrected = Schedule(schedule, groups=[Group(["dense1.W"], decoupled_weight_decay=schedule)])
    layers = [Dense(8, bias=False), BatchNorm(), Dense(3)]
    network = Network(layers, (6,), rng=5, dtype=np.float64)
    optimizer = AdamW(eta, decoupled_weight_decay=decay)
    X = data[0].astype(np.float64)
    found = network.with_parameters()
    train((X, data[1]), network=found, optimizer=optimizer, schedule=corrected, batch_size=40)

    expected, m, v = network.with_parameters(), {}, {}
    rows = np.random.default_rng(3)
    for t in range(5):
        order = rows.permutation(40)
        _, gradients, expected.state = expected.loss_and_gradients(X[order], data[1][order])
        rate, new = eta * schedule(t), {}
        for name, g in gradients.items():
            w = expected.parameters[name]
            m[name] = 0.9 * m.get(name, 0) + 0.1 * g
            v[name] = 0.999 * v.get(name, 0) + 0.001 * g * g
            root = np.sqrt(v[name] / (1 - 0.999 ** (t + 1))) + 1e-8
            factor = rate / eta if name == "dense1.W" else 1.0
            step = m[name] / (1 - 0.9 ** (t + 1)) / root + factor * decay * w
            new[name] = w - rate * step
        expected.parameters.update(new)
    for name, w in expected.parameters.items():
        assert np.max(np.abs(found.parameters[name] - w)) <= 1e-12, name
    plain = network.with_parameters()
    optimizer.reset()
    train((X, data[1]), network=plain, optimizer=optimizer, schedule=schedule, batch_size=40)
    difference = plain.parameters["dense1.W"] - found.parameters["dense1.W"]
    assert np.max(np.abs(difference)) > 1e-6  # the control: AdamW's own decay
