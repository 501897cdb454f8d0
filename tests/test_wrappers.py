"""Rotational and Hyperball: another optimizer's update, by which w is turned at a fixed norm.

Against the published algorithms, written a second time for rows that are units, as their authors
have them; random networks in both wings and resumed; what they refuse.
"""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from agreement import assert_same_bits, read_only, wide
from runs import assert_same_run, batchnorm_network, random_data, train

import minimal_nn as nn
from minimal_nn import Group, Hyperball, Rotational
from minimal_nn import backend as backends
from minimal_nn.errors import ZeroNormError
from minimal_nn.mutants.loading import Mutant
from minimal_nn.mutants.planting import planted
from minimal_nn.schedules import Cosine

WINGS = ("reference", "cpu")
SHAPES = pytest.mark.parametrize("shape", ((6, 4), (2, 3, 2, 5), (5,)))
ETA, DECAY = 0.05, 0.4
ROTATED = {
    "sgd": (nn.SGD, {}),
    "momentum": (nn.Momentum, {"momentum": 0.75}),
    "adamw": (nn.AdamW, {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6}),
    "lion": (nn.Lion, {"beta1": 0.8, "beta2": 0.95}),
}
KEPT = {
    "nesterov": (nn.Nesterov, {"momentum": 0.75}),
    "adam": (nn.Adam, {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6}),
    "muon": (nn.Muon, {"momentum": 0.75}),
    "adadelta": (nn.Adadelta, {}),
}
EACH = pytest.mark.parametrize(
    "make",
    [
        *(functools.partial(Rotational, kind, **hyper) for kind, hyper in ROTATED.values()),
        *(functools.partial(Hyperball, kind, **hyper) for kind, hyper in KEPT.values()),
    ],
    ids=lambda make: f"{make.func.__name__} {make.args[0].__name__}",
)


@pytest.fixture
def data(rng):
    return random_data(rng)


# The updates and the published algorithms, by hand; gradients are a list, one for each step


def updates(name, gradients):
    """Yield the update of each step: without decay, and not times the learning rate."""
    hyper = {**ROTATED, **KEPT}[name][1]
    b1, b2 = hyper.get("beta1"), hyper.get("beta2")
    v = m = s = d = 0
    for t, g in enumerate(gradients, 1):
        if name == "sgd":
            yield g
        elif name in ("momentum", "nesterov", "muon"):
            v = hyper["momentum"] * v + g
            if name == "muon":
                U, _, Vh = np.linalg.svd(v.astype(float).reshape(-1, v.shape[-1]), False)
                yield (U @ Vh).reshape(v.shape)
            else:
                yield v if name == "momentum" else g + hyper["momentum"] * v
        elif name == "lion":
            yield np.sign(b1 * m + (1 - b1) * g)
            m = b2 * m + (1 - b2) * g
        elif name == "adadelta":
            s = 0.95 * s + 0.05 * g * g
            step = np.sqrt(d + 1e-6) / np.sqrt(s + 1e-6) * g
            d = 0.95 * d + 0.05 * step * step
            yield step
        else:
            m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g * g
            yield m / (1 - b1**t) / (np.sqrt(s / (1 - b2**t)) + hyper["eps"])


def rotated_by_hand(name, w, gradients, decay=DECAY):
    """Kosson et al. 2024: each row keeps the length that it has at first; no eps, no centering."""
    hyper = ROTATED[name][1]
    angle = {
        "sgd": lambda: 2 * ETA * decay,
        "momentum": lambda: 2 * ETA * decay / (1 + hyper["momentum"]),
        "adamw": lambda: 2 * ETA * decay * (1 - hyper["beta1"]) / (1 + hyper["beta1"]),
        "lion": lambda: (
            np.pi * ETA * decay * (0.2**2 + 0.8**2 * (1 - hyper["beta2"]) / (1 + hyper["beta2"]))
        ),
    }[name]() ** 0.5
    average = first = None
    for t, u in enumerate(updates(name, gradients), 1):
        if w.ndim < 2 or decay == 0:
            w = (1 - ETA * decay) * w - ETA * u
            continue
        rows, us = (np.moveaxis(x, -1, 0).reshape(x.shape[-1], -1) for x in (w, u))
        if first is None:
            first, average = np.sqrt((rows**2).sum(axis=1)), 0
        tangent = us - rows * ((us * rows).sum(axis=1) / first**2)[:, None]
        average = 0.1 * (tangent**2).sum(axis=1) + 0.9 * average
        rms = np.sqrt(average / (1 - np.longdouble(0.9) ** t))
        rows = rows - angle * first[:, None] * tangent / rms[:, None]
        rows = rows * (first / np.sqrt((rows**2).sum(axis=1)))[:, None]
        w = np.moveaxis(rows.reshape(w.shape[-1], *w.shape[:-1]), 0, -1)
    return w


def kept_by_hand(name, w, gradients):
    """Wen et al. 2025: W_(t+1) = R Norm(W_t - eta R Norm(u_t)), R = |W_0|."""
    R = np.sqrt((w**2).sum())
    for u in updates(name, gradients):
        if w.ndim < 2:
            w = w - ETA * u
            continue
        w = w - ETA * R * u / np.sqrt((u**2).sum())
        w = R * w / np.sqrt((w**2).sum())
    return w


def steps_of(optimizer, w, gradients, wing):
    """Return w after an optimizer's steps on given gradients."""
    model = SimpleNamespace(parameters={"w": w}, backend=backends.get(wing))
    for g in gradients:
        read_only(g)
        optimizer.step(model, {"w": g})
    return model.parameters["w"]


@SHAPES
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("name", [*ROTATED, *KEPT])
def test_the_published_steps_by_hand(name, dtype, shape, rng):
    """Five steps; bound: 2^10 units of round-off, of steps of which each loses a few dozen."""
    w, *gradients = (rng.standard_normal(shape).astype(dtype) for _ in range(6))
    if name == "muon" and len(shape) == 1:
        return
    if name in ROTATED:
        kind, hyper = ROTATED[name]
        optimizer = Rotational(kind, ETA, decoupled_weight_decay=DECAY, **hyper)
        by_hand = rotated_by_hand
    else:
        kind, hyper = KEPT[name]
        optimizer, by_hand = Hyperball(kind, ETA, **hyper), kept_by_hand
    expected = by_hand(name, wide(w), [wide(g) for g in gradients])
    for wing in WINGS:
        optimizer.reset()
        got = steps_of(optimizer, w, gradients, wing)
        assert got.dtype == dtype, wing
        error = np.max(np.abs(got - expected)) / np.max(np.abs(expected))
        assert error <= 2**10 * np.finfo(dtype).eps, wing
    assert np.max(np.abs(expected - wide(w))) > 1e-4  # Adadelta begins slowly


@pytest.mark.parametrize(
    "edit",
    [
        ("p = g - direction * (direction * g).sum(axis=axes)", "p = g"),
        ("_ratio((1 - decay**t) ** 0.5 * p, rms)", "_ratio(p, rms)"),
        ("angle = (2 * learning_rate", "angle = (learning_rate"),
        ("return scaled * (norm / length), rms", "return moved, rms"),
        ("- angle * norm * _ratio", "- angle * _ratio"),
        ("b, _, size = _scaled_norm(p)", "b, _, size = _scaled_norm(g)"),
        ("learning_rate * norm * _ratio(g, length)", "learning_rate * _ratio(g, length)"),
        ("return moved * (norm / after)", "return moved"),
    ],
)
def test_a_fault_in_the_formula_is_found(edit, rng):
    w, *gradients = (rng.standard_normal((6, 4)) for _ in range(4))
    optimizers = {
        "momentum": Rotational(nn.Momentum, ETA, decoupled_weight_decay=DECAY, momentum=0.75),
        "nesterov": Hyperball(nn.Nesterov, ETA, momentum=0.75),
    }
    with planted(Mutant("fault", "update", (edit,))):
        found = {k: steps_of(optimizers[k], w, gradients, "cpu") for k in optimizers}
    right = {"momentum": rotated_by_hand, "nesterov": kept_by_hand}
    apart = [np.max(np.abs(found[k] - by_hand(k, w, gradients))) for k, by_hand in right.items()]
    assert max(apart) > 1e-4 and min(apart) < 1e-12


def test_without_decay_it_is_the_optimizers_own_step(rng):
    w, *gradients = (rng.standard_normal((4, 3)) for _ in range(4))
    for kind, hyper in ROTATED.values():
        own = {"decoupled_weight_decay": 0.0} if kind in (nn.AdamW, nn.Lion) else {}
        plain = steps_of(kind(ETA, **own, **hyper), w, gradients, "cpu")
        wrapped = Rotational(kind, ETA, decoupled_weight_decay=0.0, **hyper)
        near = np.abs(steps_of(wrapped, w, gradients, "cpu") - plain)
        assert np.max(near) <= 16 * np.finfo(float).eps * np.max(np.abs(plain))


@pytest.mark.parametrize("wing", WINGS)
def test_the_average_turn_is_the_angle(wing, rng):
    """The mean of tan^2 over gradients whose lengths differ by far: the average is what is set."""
    w = rng.standard_normal((200, 3))
    optimizer = Rotational(nn.SGD, 0.01, decoupled_weight_decay=2.0, decay=0.99)
    before, tangents, lengths = w, [], np.sqrt((w * w).sum(axis=0))
    for _ in range(1200):
        g = rng.standard_normal(w.shape) * np.exp(rng.uniform(-1, 1))
        w = steps_of(optimizer, before, [g], wing)
        cosine = (w * before).sum(axis=0) / lengths**2
        tangents.append(1 / cosine**2 - 1)
        before = w
    assert np.max(np.abs(np.sqrt((w * w).sum(axis=0)) / lengths - 1)) < 1e-12
    assert np.mean(tangents[200:]) == pytest.approx(2 * 0.01 * 2.0, rel=0.03)
    assert np.std(tangents[200:]) > 0.3 * np.mean(tangents[200:])  # not each turn alike


@EACH
def test_scale_of_w_is_of_no_account(make, rng):
    """From 2^k w, gradients 2^-k times as large: 2^k times the run, to the bit."""
    w, *gradients = (rng.standard_normal((5, 3)) for _ in range(4))
    decay = {"decoupled_weight_decay": DECAY} if make.func is Rotational else {}
    eps = {"eps": 0.0} if "eps" in make.keywords else {}
    if make.args[0] is nn.Adadelta:
        return  # from u = 0 it does not move without its eps
    for k in (-9, 4):
        runs = [
            steps_of(make(ETA, **decay, **eps), a * w, [g / a for g in gradients], "cpu")
            for a in (1.0, 2.0**k)
        ]
        assert_same_bits(runs[1], 2.0**k * runs[0], str(k))


@EACH
@pytest.mark.parametrize("exponent", (-70, 60))
def test_updates_at_the_ends_of_the_range(make, exponent, rng):
    """Squares of float32 gradients leave its range at 2^64: the steps are those from 1."""
    kind = make.args[0]
    if kind in (nn.Adadelta, nn.Adam, nn.AdamW):  # which square gradients themselves
        return
    w, *gradients = (rng.standard_normal((5, 3)).astype(np.float32) for _ in range(4))
    decay = {"decoupled_weight_decay": DECAY} if make.func is Rotational else {}
    runs = [
        steps_of(make(ETA, **decay), w, [g * np.float32(2.0**k) for g in gradients], "cpu")
        for k in (0, exponent)
    ]
    assert_same_bits(runs[1], runs[0], "w")


# In training


@EACH
def test_it_trains_and_resumes_with_the_same_bits(make, data, tmp_path):
    def run(**options):
        rotated = make.func is Rotational
        decay = {"decoupled_weight_decay": 0.3} if rotated else {}
        groups = [Group(["dense1.W"], learning_rate=0.02, **decay)]
        return train(data, optimizer=make(0.01, groups=groups), **options)

    whole = run()
    run(epochs=2, checkpoint=tmp_path / "run.npz")
    assert_same_run(whole, run(checkpoint=tmp_path / "run.npz", resume=True))
    assert np.mean(whole[2].loss[-5:]) < np.mean(whole[2].loss[:5])
    w, first = (n.parameters["dense1.W"] for n in (whole[0], batchnorm_network()))
    squares = [(array.astype(float) ** 2).sum() for array in (w, first)]
    assert squares[0] == pytest.approx(squares[1], rel=1e-5)
    arrays = [a for slots in whole[1].state.values() for a in slots.values()]
    assert {str(a.dtype) for a in (*arrays, *whole[0].parameters.values())} == {"float32"}


def test_a_checkpoint_of_another_wrapper_is_refused(data, tmp_path):
    path = tmp_path / "run.npz"
    train(data, optimizer=Hyperball(nn.Adam, 0.01), epochs=1, checkpoint=path)
    for other in (Hyperball(nn.RMSprop, 0.01), Hyperball(nn.Adam, 0.02), nn.Adam(0.01)):
        with pytest.raises(ValueError, match="optimizer"):
            train(data, optimizer=other, checkpoint=path, resume=True)


def drawn(rng):
    """Draw a network, and a wrapper for it, with the hand's name for the wrapped optimizer."""
    layers, shape = [], (int(rng.integers(3, 9)),)
    if rng.random() < 0.4:
        shape = (int(rng.integers(3, 7)), int(rng.integers(3, 7)), int(rng.integers(1, 4)))
        layers = [nn.Conv2d(int(rng.integers(2, 6)), padding=1, bias=False), nn.BatchNorm(0.1)]
        layers += [nn.Tanh(), nn.Flatten()]
    for _ in range(int(rng.integers(1, 3))):
        norms = nn.BatchNorm(0.1), nn.LayerNorm(0.1), nn.RMSNorm(0.1)
        layers += [nn.Dense(int(rng.integers(3, 9)), bias=False), norms[rng.integers(3)], nn.Tanh()]
    network = nn.Network([*layers, nn.Dense(3)], shape, rng=rng, dtype=np.float64)
    if rng.random() < 0.5:
        name = str(rng.choice(list(ROTATED)))
        kind, hyper = ROTATED[name]
        hyper = {**hyper, "decoupled_weight_decay": DECAY}
        return network, functools.partial(Rotational, kind, ETA, **hyper), rotated_by_hand, name
    name = str(rng.choice(["nesterov", "adam"]))
    kind, hyper = KEPT[name]
    return network, functools.partial(Hyperball, kind, ETA, **hyper), kept_by_hand, name


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_in_both_wings_and_by_hand(seed):
    """Six steps of training; the steps by hand on the gradients that training saw."""
    rng = np.random.default_rng([seed, 17])
    network, make, by_hand, name = drawn(rng)
    X = rng.standard_normal((16, *network.input_shape))
    targets, ended = rng.integers(0, 3, 16), []
    for wing in WINGS:
        run, optimizer = network.with_parameters().on(wing), make()
        start, seen = dict(run.parameters), {k: [] for k in run.parameters}
        chance = np.random.default_rng(seed)
        for _ in range(6):
            rows = chance.permutation(16)
            _, gradients, run.state = run.loss_and_gradients(X[rows], targets[rows])
            for k, g in gradients.items():
                seen[k].append(wide(g))
            optimizer.step(run, gradients)
        for k, w in run.parameters.items():
            expected = by_hand(name, wide(start[k]), seen[k])
            error = np.max(np.abs(w - expected)) / max(np.max(np.abs(expected)), 1)
            assert error < 1e-12, (wing, k)
        fitted = network.with_parameters().on(wing)
        nn.fit(fitted, make(), X, targets, epochs=6, batch_size=16, rng=seed, progress=False)
        for k, w in run.parameters.items():
            assert_same_bits(fitted.parameters[k], w, k)
        ended.append(run.parameters)
    for k, w in ended[0].items():
        # signs flip where an average passes 0; all else differs by rounding
        assert name == "lion" or np.max(np.abs(ended[1][k] - w)) < 1e-8, k


def test_schedules_and_clipping_take_part(data):
    schedule = nn.Schedule(Cosine(25, final=0.1), groups=[])
    for make in (
        lambda: Rotational(nn.AdamW, 0.02, decoupled_weight_decay=0.5),
        lambda: Hyperball(nn.Momentum, 0.02),
    ):
        runs = [
            train(
                data,
                network=batchnorm_network().on(wing),
                optimizer=make(),
                schedule=schedule,
                clip_norm=0.5,
            )
            for wing in WINGS
        ]
        near = np.array(runs[0][2].loss) - runs[1][2].loss
        assert np.max(np.abs(near)) < 1e-4
        plain = train(data, optimizer=make())
        assert np.max(np.abs(np.array(plain[2].loss) - runs[0][2].loss)) > 1e-3


def test_angles_of_units_and_numbers_that_are_refused(rng):
    w, g = rng.standard_normal((2, 4, 3))
    rates = np.array([0.01, 0.04, 0.16])
    optimizer = Rotational(nn.SGD, rates, decoupled_weight_decay=0.5)
    new = steps_of(optimizer, w, [g], "cpu")
    cosine = (w * new).sum(axis=0) / np.sqrt((w * w).sum(axis=0) * (new * new).sum(axis=0))
    assert np.max(np.abs(1 / cosine**2 - 1 - rates)) < 1e-12  # tan^2 = 2 eta decay
    for hyper, told in (
        ({"learning_rate": np.full((4, 3), 0.1)}, "learning_rate, share: got .* one for each unit"),
        ({"decoupled_weight_decay": np.full(3, 0.1)}, "decoupled_weight_decay: .* one number"),
    ):
        given = {"learning_rate": 0.1, "decoupled_weight_decay": 0.5, **hyper}
        with pytest.raises(ValueError, match=told):
            steps_of(Rotational(nn.SGD, **given), w, [g], "cpu")


def test_what_has_no_direction_is_refused_and_what_does_not_move_stays(rng):
    w = rng.standard_normal((4, 3))
    w[:, 1] = 0
    with pytest.raises(ZeroNormError, match=r"units \[1\] are all 0"):
        steps_of(Rotational(nn.SGD, 0.1, decoupled_weight_decay=0.1), w, [w + 1], "cpu")
    with pytest.raises(ZeroNormError, match="norm 0.0 before"):
        steps_of(Hyperball(nn.SGD, 0.1), 0 * w, [w], "cpu")
    with pytest.raises(ZeroNormError, match="0.0 after"):
        steps_of(Hyperball(nn.SGD, 1.0), np.ones((2, 2)), [np.ones((2, 2))], "cpu")
    still = np.ones((2, 2))
    for optimizer in (
        Rotational(nn.SGD, 0.1, decoupled_weight_decay=0.1),
        Hyperball(nn.Momentum, 0.1),
    ):
        assert np.max(np.abs(steps_of(optimizer, still, [0 * still], "cpu") - still)) < 1e-15


def test_what_they_do_not_wrap_is_refused():
    for kind in (nn.LARS, nn.SGDP, nn.AdamW):
        with pytest.raises(TypeError, match="optimizer: got .* expected the class of one that Hyp"):
            Hyperball(kind)
    for kind in (nn.Adam, nn.Nesterov, nn.SGD(0.1), "SGD"):
        with pytest.raises(TypeError, match="Rotational can wrap: SGD, Momentum, AdamW, Lion"):
            Rotational(kind)
    with pytest.raises(TypeError, match="unknown argument 'decoupled_weight_decay'"):
        Hyperball(nn.Lion, decoupled_weight_decay=0.1)
    with pytest.raises(TypeError, match="decoupled_weight_decay"):
        Rotational(nn.Momentum, weight_decay=0.1)
    with pytest.raises(ValueError, match="decay: got 1.0"):
        Rotational(nn.SGD, decay=1.0)


def test_the_plan_says_that_there_is_no_loop():
    for optimizer in (Rotational(nn.SGD), Hyperball(nn.SGD)):
        network = batchnorm_network().on("cpu")
        reason = network.backend.why_not(network.program(), optimizer)
        assert reason == f"there is no kernel for the optimizer's formula {optimizer.formula!r}"
        assert optimizer.built_in and not type("Own", (type(optimizer),), {})(nn.SGD).built_in
    assert backends.get("cpu").update.BY_FORMULA[-2:] == ("rotational", "hyperball")
