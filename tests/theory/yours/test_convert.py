"""theory.convert: there and back exactly; equivalent runs have the same bits, or numbers."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimal_nn as nn
from minimal_nn import backend
from minimal_nn.data import digits
from minimal_nn.hyper import BELOW_ONE
from theory import convert, laws
from theory.numbers.balls import Balls
from theory.numbers.symbols import Symbols
from theory.yours.conversion import DECAYS

COUPLED, DECOUPLED = DECAYS[:2], DECAYS[2:]
BATCHED = tuple(name for name in laws.DEGREES if name not in ("Adagrad", "Adadelta"))
DEFAULTS = {name: getattr(nn, name).defaults for name in laws.DEGREES}
DECOUPLES = [name for name in DEFAULTS if "decoupled_weight_decay" in DEFAULTS[name]]
fractions = st.fractions(min_value=Fraction(1, 1000), max_value=4)


# There and back


@given(rate=fractions, decay=fractions, old=st.sampled_from(DECAYS), new=st.sampled_from(DECAYS))
def test_names_of_decay_go_there_and_back_exactly(rate, decay, old, new):
    there = convert("SGD", learning_rate=rate, decay_as=new, **{old: decay})
    assert list(there) == ["learning_rate", new]
    assert convert("SGD", decay_as=old, **there) == {"learning_rate": rate, old: decay}


@given(
    name=st.sampled_from(tuple(laws.DEGREES)),
    values=st.lists(fractions, min_size=9, max_size=9),
    a=fractions,
)
def test_scales_go_there_and_back_exactly(name, values, a):
    """Every hyper-parameter that the class has, those from 0 to below 1 unchanged."""
    own = [*DEFAULTS[name], *getattr(nn, name).options]
    keys = dict.fromkeys(["weight_decay", *own])  # with decoupled decay, where there is one
    fits = {
        key: value / (5 if key in BELOW_ONE else 1)
        for key, value in zip(keys, values, strict=False)
    }
    there = convert(name, rescale=a, **fits)
    assert all(there[key] == fits[key] for key in keys if key in BELOW_ONE)
    assert convert(name, rescale=1 / a, **there) == fits


@given(name=st.sampled_from(BATCHED), sizes=st.tuples(*[st.integers(1, 64)] * 2), rate=fractions)
def test_batch_sizes_go_there_and_back_exactly(name, sizes, rate):
    before, after = (size**2 for size in sizes)
    own = {*DEFAULTS[name], *getattr(nn, name).options}
    hyper = {"learning_rate": rate, "l2": Fraction(1, 7)}
    hyper |= {key: Fraction(1, 9) for key in ("eps", "eps_inside_root") if key in own}
    decoupled = "decoupled_weight_decay" in own or name == "SGD"
    hyper |= {"decoupled_weight_decay": Fraction(1, 3)} if decoupled else {}
    there = convert(name, batch=(before, after), **hyper)
    assert convert(name, batch=(after, before), **there) == hyper
    if not decoupled:
        return
    product = there["learning_rate"] * there["decoupled_weight_decay"]
    assert product == rate / 3 * after / before
    independent = convert(name, batch=(before, after), independent_weight_decay=rate)
    assert independent == {"independent_weight_decay": rate * after / before}


# The conventions, by what a step does


def test_names_of_decay_are_what_frameworks_do_with_them():
    """One step of SGD in each convention, from its own definition."""
    rate, w, g = Fraction(1, 10), Fraction(3), Fraction(2)
    steps = {
        "l2": lambda d: w - rate * (g + 2 * d * w),
        "weight_decay": lambda d: w - rate * (g + d * w),
        "decoupled_weight_decay": lambda d: (1 - rate * d) * w - rate * g,
        "independent_weight_decay": lambda d: (1 - d) * w - rate * g,
    }
    results = {
        name: step(convert("SGD", learning_rate=rate, l2=Fraction(1, 8), decay_as=name)[name])
        for name, step in steps.items()
    }
    assert len(set(results.values())) == 1


@pytest.mark.parametrize("name", [n for n in laws.DEGREES if n != "SGD"])
def test_a_penalty_is_no_decoupled_decay_where_it_goes_through_a_buffer(name):
    old, new = DECOUPLED if name in DECOUPLES else COUPLED
    wrong = COUPLED[0] if name in DECOUPLES else DECOUPLED[0]
    with pytest.raises(ValueError, match=f"decay_as: got '{wrong}' for {old} of {name}, expected"):
        convert(name, learning_rate=0.1, decay_as=wrong, **{old: 0.1})
    assert convert(name, learning_rate=0.5, decay_as=new, **{old: 0.25})


OPTIONS = ({}, {"rescale": 2}, {"batch": (1, 4)}, {"decay_as": "weight_decay"}, {"decay_as": "l2"})


@pytest.mark.parametrize("penalty", COUPLED)
@pytest.mark.parametrize("name", DECOUPLES)
def test_weight_decay_of_a_decoupled_optimizer_is_refused_as_minimal_nn_refuses_it(name, penalty):
    """Frameworks call its decoupled decay so: read as the penalty it took another power."""
    with pytest.raises(TypeError):
        getattr(nn, name)(**{penalty: 0.1})
    for options in OPTIONS:
        with pytest.raises(ValueError, match=f"^{penalty}: got 0.1, the penalty.*decoupled_weight"):
            convert(name, learning_rate=0.1, **{penalty: 0.1}, **options)
    both = {"learning_rate": 0.1, penalty: 0.1, DECOUPLED[0]: 0.1}
    getattr(nn, name)(**both)
    assert convert(name, rescale=2, **both)[penalty] == 0.1 / 4


@pytest.mark.parametrize("name", laws.DEGREES)
def test_hyper_parameters_are_those_of_the_class(name):
    """What minimal_nn's class refuses is refused, apart from SGD's decay, one by every name."""
    every = {key for defaults in DEFAULTS.values() for key in defaults} | {"eps_inside_root"}
    for key in sorted(every - set(DECAYS)):
        try:
            getattr(nn, name)(**{key: 0.5})
        except TypeError:
            with pytest.raises(ValueError, match=f"^{key}: got 0.5, expected .* of {name}, among"):
                convert(name, **{key: 0.5})
        else:
            assert convert(name, **{key: 0.5}) == {key: 0.5}
    for key in DECOUPLED if name != "SGD" and name not in DECOUPLES else ():
        with pytest.raises(ValueError, match=f"^{key}: got 0.5, expected .* of {name}, among"):
            convert(name, **{key: 0.5})


# Equivalent runs


def trained(name, hyper, a=1.0, steps=12):
    """The invariant weights of a batch-norm network after some steps from a w_0."""
    data = digits(dtype=np.float64)
    layers = [nn.Dense(8, bias=False), nn.BatchNorm(0.0), nn.ReLU(), nn.Dense(10)]
    network = nn.Network(layers, (64,), dtype=np.float64, rng=0)
    start = a * network.parameters["dense1.W"]
    network = network.with_parameters({**network.parameters, "dense1.W": start})
    rest = {"learning_rate": 0.01, "l2": 0.0} if "l2" in hyper else {"learning_rate": 0.01}
    others = [n for n in network.parameters if n != "dense1.W"]
    own = nn.Group(("dense1.W",), **hyper)
    optimizer = getattr(nn, name)(groups=[own, nn.Group(others, **rest)])
    X, y = data.X_train[: 32 * steps], data.y_train[: 32 * steps]
    nn.fit(network, optimizer, X, y, epochs=1, progress=False)
    return network.parameters["dense1.W"]


HYPER = {
    "SGD": {"learning_rate": 0.1, "l2": 0.01},
    "Momentum": {"learning_rate": 0.05, "momentum": 0.75, "weight_decay": 0.02},
    "Nesterov": {"learning_rate": 0.05, "momentum": 0.75, "weight_decay": 0.02},
    "RMSprop": {"learning_rate": 0.01, "eps": 1e-4, "l2": 0.01},
    "Adagrad": {"learning_rate": 0.01, "eps": 1e-4, "l2": 0.01},
    "Adadelta": {"eps_numerator": 1e-5, "eps_denominator": 1e-6, "l2": 0.01},
    "Adam": {"learning_rate": 0.01, "eps_inside_root": 1e-6, "eps": 0.0, "l2": 0.01},
    "AdamW": {"learning_rate": 0.01, "eps": 1e-4, "decoupled_weight_decay": 0.5},
    "SignSGD": {"learning_rate": 0.01, "l2": 0.01},
    "NormalizedSGD": {"learning_rate": 0.01, "l2": 0.01},
    "LARS": {"learning_rate": 0.01, "l2": 0.01},
    "Lion": {"learning_rate": 0.01, "decoupled_weight_decay": 0.5},
    "SGDP": {"learning_rate": 0.05, "momentum": 0.75, "decoupled_weight_decay": 0.5},
    "AdamP": {"learning_rate": 0.01, "eps": 1e-4, "decoupled_weight_decay": 0.5},
    "Muon": {"learning_rate": 0.01, "decoupled_weight_decay": 0.5},
}


def test_every_optimizer_is_tried():
    assert set(HYPER) == set(laws.DEGREES)


@pytest.mark.parametrize("name", HYPER)
def test_a_rescaled_run_is_the_run_before_times_a(name):
    hyper = HYPER[name]
    before = trained(name, hyper)
    exactly = trained(name, convert(name, rescale=8.0, **hyper), 8.0)
    # 1 - eta decay is the same number only where their product is.
    if name in DECOUPLES:
        np.testing.assert_allclose(exactly, 8 * before, rtol=1e-12)
    else:
        assert np.array_equal(exactly, 8 * before)
    nearly = trained(name, convert(name, rescale=3.0, **hyper), 3.0)
    size = np.linalg.norm(before)
    assert np.linalg.norm(nearly / 3 - before) <= 1e-9 * size
    assert np.linalg.norm(trained(name, hyper, 3.0) / 3 - before) > 1e-6 * size or name == "LARS"


# Batch sizes


@pytest.mark.parametrize("name", laws.BALANCES)
def test_an_equilibrium_stays_and_turns_as_far_per_example(name):
    """To first order, with gradients whose length falls as the root of the batch's size."""
    decay = "decoupled_weight_decay" if name == "AdamW" else "weight_decay"
    hyper = {"learning_rate": 1e-5, decay: 1e-2}
    for k in (4, 7.5):
        after = convert(name, batch=(2.0, 2.0 * k), **hyper)
        one, other = (
            laws.equilibrium(name, h["learning_rate"], h[decay], s=s, dims=50, memory=0.5)
            for h, s in ((hyper, 3.0), (after, 3.0 / np.sqrt(k)))
        )
        assert other.norm == pytest.approx(one.norm, rel=1e-4)
        assert other.turn == pytest.approx(k * one.turn, rel=1e-4)
        time = [
            laws.relaxation_rate(name, h["learning_rate"], h[decay], s=s, dims=50, memory=0.5)
            for h, s in ((hyper, 3.0), (after, 3.0 / np.sqrt(k)))
        ]
        assert time[1] == pytest.approx(k * time[0], rel=1e-4)


def walked(name, hyper, batch, examples=12_800, dims=4000):
    """Mean and variance of how far weights go on gradients of a small mean and much noise."""
    rng = np.random.default_rng(batch)
    update = backend.get("reference").update
    optimizer = getattr(nn, name)
    w = np.zeros(dims)
    states = [np.zeros(dims) for _ in optimizer.slots]
    if name == "RMSprop":  # which has no correction of its first steps
        states = [np.full(dims, 1 / batch)]
    for t in range(1, examples // batch + 1):
        g = 0.01 + rng.standard_normal(dims) / np.sqrt(batch)
        steps = {"t": t} if optimizer.counts_steps else {}
        result = update.step(optimizer.formula, w, g, states, **steps, **optimizer.defaults | hyper)
        w, *states = result if optimizer.slots else (result,)
    return -w.mean(), w.var()


@pytest.mark.parametrize(
    "name",
    ("SGD", "Momentum", "Adam", "RMSprop", "SignSGD", "Lion", "SGDP", "AdamP", "Muon"),
)
def test_weights_go_as_far_per_example(name):
    """The mean to its sampling error, some 2 %, the variance to the batch's growth of 1 - beta."""
    adam = {"beta1": 0.9, "beta2": 0.99}
    own = {"Adam": adam, "AdamP": adam, "RMSprop": {"decay": 0.998}}
    own["Lion"] = {"beta1": 0.5, "beta2": 0.8}
    own["Muon"] = {"learning_rate": 0.1, "momentum": 0.8}  # of one unit, the whole vector
    hyper = {"learning_rate": 1e-3, **own.get(name, {})}
    one, other = (walked(name, convert(name, batch=(4, size), **hyper), size) for size in (4, 16))
    np.testing.assert_allclose(other, one, rtol=0.1)
    unconverted = walked(name, hyper, 16)
    assert unconverted[0] < 0.7 * one[0] and unconverted[1] < 0.5 * one[1]


@pytest.mark.parametrize("name", ("Adagrad", "Adadelta"))
def test_a_step_that_remembers_all_steps_has_no_batch(name):
    with pytest.raises(ValueError, match=f"got '{name}', expected one whose step depends on the"):
        convert(name, learning_rate=0.1, batch=(1, 4))


def test_averages_are_over_as_many_examples():
    assert convert("Lion", beta1=0.9, beta2=0.99, batch=(1, 4)) == {"beta1": 0.9, "beta2": 0.99}
    after = convert("Adam", learning_rate=0.1, beta1=0.9, beta2=Fraction(999, 1000), batch=(1, 4))
    assert after["beta1"] == pytest.approx(0.6) and after["beta2"] == Fraction(996, 1000)
    with pytest.raises(ValueError, match="batch: got .1, 16., expected at most 10 times"):
        convert("Adam", learning_rate=0.1, beta1=0.9, batch=(1, 16))
    with pytest.raises(ValueError, match="batch: got .1, 16., expected at most 2 times"):
        convert("Adam", beta1=np.array([0.99, 0.5]), batch=(1, 16))


# Numbers of every kind


def test_symbols_and_balls_are_exact():
    symbols = Symbols()
    eta, decay, a = (symbols.variables(n, positive=True) for n in ("eta", "decay", "a"))
    after = convert("Adam", learning_rate=eta, weight_decay=decay, rescale=a, batch=(1, 4))
    assert symbols.vanish(np.array([after["learning_rate"] - 2 * a * eta])).all()
    assert symbols.vanish(np.array([after["weight_decay"] * a * a - decay])).all()
    after = convert("Adam", learning_rate=eta, batch=(1, a))
    assert symbols.vanish(
        np.array([after["learning_rate"] * after["learning_rate"] - a * eta * eta])
    )
    balls = Balls(200)
    with balls.working():
        rate, third = balls.number(0.5), balls.number(1) / 3
        after = convert("SGD", learning_rate=rate, l2=third, decay_as="independent_weight_decay")
        residual = after["independent_weight_decay"] * 3 - 1
        assert balls.contain_zero(residual) and float(balls.radii(residual)) < 1e-50
        tripled = convert("SGD", learning_rate=third, batch=(3, 9))["learning_rate"]
        assert balls.contain_zero(tripled - 1)


def test_arrays_keep_their_dtype():
    rates = np.array([0.5, 0.25], dtype=np.float32)
    four = np.array([4.0, 4.0], dtype=np.float32)
    for options in ({"rescale": 4}, {"batch": (2, 8)}, {"rescale": four}, {"batch": (1, four)}):
        after = convert("SGD", learning_rate=rates, **options)["learning_rate"]
        assert after.dtype == np.float32 and after[1] == after[0] / 2


def test_a_whole_number_is_a_number():
    assert convert("Adam", learning_rate=1, batch=(64, 128)) == {"learning_rate": np.sqrt(2)}
    assert convert("Adam", learning_rate=1, batch=(64, 256)) == {"learning_rate": 2}
    sizes = np.array([64.0, 256.0])
    after = convert("Adam", learning_rate=1.0, batch=(64, sizes))["learning_rate"]
    assert after.dtype == np.float64 and after.tolist() == [1.0, 2.0]


BEYOND = (-0.5, float("nan"), float("inf"), Fraction(-1, 2))


@pytest.mark.parametrize("form", (lambda x: x, lambda x: np.array([0.5, x])))
@pytest.mark.parametrize("x", (*BEYOND, 0, 1, 1.5, 7))
def test_numbers_outside_their_range_are_refused_also_in_arrays(x, form):
    for key in (*HYPER["Adam"], "beta1", "beta2", "rescale"):
        outside = x in BEYOND or key == "rescale" and x == 0 or key in BELOW_ONE and x >= 1
        options = {"learning_rate": 0.5, key: form(x)}
        if outside:
            with pytest.raises(ValueError, match=f"^{key}: got .*, expected .* 0"):
                convert("Adam", **options)
        else:
            assert convert("Adam", **options)
    if x in BEYOND or x == 0:
        for sizes in ((2, form(x)), (form(x), 2)):
            with pytest.raises(ValueError, match="^batch: got .*, expected finite numbers > 0"):
                convert("SGD", learning_rate=0.5, batch=sizes)


@pytest.mark.parametrize(
    "x", (True, np.True_, "1", None, [0.5], (0.5,), 1j, Decimal(1), np.array(["1"]))
)
def test_what_is_no_number_is_refused(x):
    for options in ({"learning_rate": x}, {"learning_rate": 0.5, "batch": (2, x)}):
        with pytest.raises(TypeError, match="expected a number or an array of numbers"):
            convert("SGD", **options)


@pytest.mark.parametrize(
    "error, words, arguments",
    (
        (ValueError, "optimizer: got 'Shampoo', expected one of", ("Shampoo", {})),
        (
            ValueError,
            "lr: got 0.1, expected hyper-parameters of SGD, among learning_rate, l2",
            ("SGD", {"lr": 0.1}),
        ),
        (ValueError, r"\(momentum is of Momentum, Nesterov, SGDP", ("SGD", {"momentum": 0.9})),
        (ValueError, "l2, weight_decay: got both", ("SGD", {"l2": 1, "weight_decay": 1})),
        (ValueError, "learning_rate: got nan", ("SGD", {"learning_rate": float("nan")})),
        (TypeError, "learning_rate: got '0.1'", ("SGD", {"learning_rate": "0.1"})),
        (ValueError, "rescale: got 0, expected", ("SGD", {"rescale": 0})),
        (TypeError, "rescale: got True", ("SGD", {"rescale": True})),
        (TypeError, "batch: got 4, expected a pair", ("SGD", {"batch": 4})),
        (ValueError, "batch: got -1", ("SGD", {"batch": (2, -1)})),
        (ValueError, "optimizer: got 'Adagrad'", ("Adagrad", {"batch": (2, 4)})),
        (
            ValueError,
            "decay_as: got 'wd', expected one of l2",
            ("SGD", {"l2": 1, "decay_as": "wd"}),
        ),
        (ValueError, "decay_as: got 0 kinds", ("SGD", {"decay_as": "l2"})),
        (
            ValueError,
            "decay_as: got 2 kinds of decay",
            ("AdamW", {"l2": 1, "decoupled_weight_decay": 1, "decay_as": "l2"}),
        ),
        (
            ValueError,
            "learning_rate: got None, expected one > 0",
            ("SGD", {"l2": 1, "decay_as": "independent_weight_decay"}),
        ),
        (
            ValueError,
            "learning_rate: got the fraction 1/3, to be multiplied by the root of 2",
            ("Adam", {"learning_rate": Fraction(1, 3), "batch": (1, 2)}),
        ),
    ),
)
def test_what_no_law_converts_is_refused(error, words, arguments):
    name, options = arguments
    with pytest.raises(error, match=words):
        convert(name, **options)


@pytest.mark.parametrize("name", laws.BALANCES)
def test_another_power_of_the_batch_is_seen(name, monkeypatch):
    """The constants of laws.batch, which no claim of the paper needs."""
    monkeypatch.setitem(laws.batch._RATES, name, Fraction(3, 2) - laws.batch._RATES[name])
    with pytest.raises(AssertionError):
        test_an_equilibrium_stays_and_turns_as_far_per_example(name)
