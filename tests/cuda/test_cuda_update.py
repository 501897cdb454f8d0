"""The update kernels: whole groups in one launch, rows of numbers, and the compiled code."""

import inspect

import compiled
import numpy as np
import pytest
from agreement import as_tuple, assert_same_bits, assert_within, wide

from minimal_nn import Dense, Hyperball, Momentum, Network, Rotational
from minimal_nn.cuda import update
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, to_host
from minimal_nn.cuda.parts import reduction, units
from minimal_nn.cuda.parts.units import Units
from minimal_nn.errors import ZeroNormError
from minimal_nn.reference import update as reference
from theory.numbers.bounded import running

HYPER = {
    "learning_rate": 0.07,
    "momentum": 0.9,
    "decay": 0.95,
    "beta1": 0.9,
    "beta2": 0.99,
    "eps": 1e-8,
    "eps_numerator": 1e-6,
    "eps_denominator": 1e-5,
    "decoupled_weight_decay": 0.01,
}
FORMULAS = sorted(update.FORMULAS)
DECOUPLED = ("adamw", "lion")  # which shrink the weights beside their step
KINDS = pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
EVERY_FORMULA = pytest.mark.parametrize("formula", FORMULAS)


def hyper_of(formula, t=1):
    names = inspect.signature(getattr(reference, formula)).parameters
    hyper = {name: HYPER[name] for name in names if name in HYPER}
    return {"t": t, **hyper} if "t" in names else hyper


def draw(rng, formula, kind, shape):
    """Return w, g and states; the states are nonnegative, as squares are."""
    states = update.FORMULAS[formula].states
    w, g = rng.standard_normal((2, *shape)).astype(kind)
    return [w, g, *np.abs(rng.standard_normal((states, *shape))).astype(kind)]


def stepped(wing, formula, arrays, **hyper):
    """Return the new w and states of a wing's step, as host arrays; arrays: w, g and states."""
    w, g, *states = arrays
    new = as_tuple(wing.step(formula, w, g, states, **hyper))
    return [to_host(x) for x in new] if wing is update else new


def table_of(rows, kind):
    return asarray(np.array(rows, kind).ravel())


@KINDS
@EVERY_FORMULA
@pytest.mark.parametrize("shape", [(1,), (5, 3), (2, 2, 3, 7)], ids=str)
def test_agrees_with_the_reference(place, rng, kind, formula, shape):
    arrays = draw(rng, formula, kind, shape)
    hyper = hyper_of(formula, t=3)
    got = stepped(update, formula, arrays, **hyper)
    expected = stepped(reference, formula, map(wide, arrays), **hyper)
    if formula == "sign_sgd":
        bounds = [8 * np.finfo(kind).eps * (np.abs(arrays[0]) + 1)]
    else:
        given = (running(x, kind) for x in arrays)
        bounds = [bound.error for bound in stepped(reference, formula, given, **hyper)]
    for value, truth, bound in zip(got, expected, bounds, strict=True):
        assert value.dtype == kind
        assert_within(value, truth, bound, formula)


@EVERY_FORMULA
def test_a_group_in_place_takes_its_row_of_numbers(place, rng, formula):
    """In place, two steps from a table, the penalty fused: the bits of single steps."""
    shapes, kind = [(5, 3), (7,), (3, 3, 1, 2)], np.float32
    parts = [draw(rng, formula, kind, shape) for shape in shapes]
    flat = [np.concatenate([part[k].ravel() for part in parts]) for k in range(len(parts[0]))]
    w, g, *states = (asarray(x) for x in flat)
    rows = [update.scalars(formula, 0.25, **hyper_of(formula, t)) for t in (1, 2)]
    table = table_of(rows, kind)
    for step in range(2):
        place = asarray(np.array([step], np.uint32))
        update.launch_step(formula, w, g, states, table, place)
    start = 0
    for shape, part in zip(shapes, parts, strict=True):
        one, gradient, *others = part
        for t in (1, 2):
            penalized = to_host(update.add_penalty(gradient, one, 0.25))
            given = one, penalized, *others
            one, *others = stepped(update, formula, given, **hyper_of(formula, t))
        n = int(np.prod(shape))
        for got, same in zip((w, *states), (one, *others), strict=True):
            got = to_host(got)[start : start + n].reshape(shape)
            assert_same_bits(got, same, formula)
        start += n


@EVERY_FORMULA
def test_zero_over_zero_is_a_zero_step(place, formula):
    hyper = {k: 0.0 if k.startswith("eps") else v for k, v in hyper_of(formula).items()}
    w = np.arange(1, 6, dtype=np.float32)
    zeros = [np.zeros(5, np.float32)] * (1 + update.FORMULAS[formula].states)
    got, *states = stepped(update, formula, (w, *zeros), **hyper)
    shrink = np.float32(1 - 0.07 * 0.01) if formula in DECOUPLED else np.float32(1)
    assert_same_bits(got, shrink * w, formula)
    assert not any(state.any() for state in states)


@EVERY_FORMULA
def test_a_hyper_parameter_for_each_unit(place, rng, formula):
    """Arrays that broadcast give the bits of a step with each column's own number."""
    arrays = draw(rng, formula, np.float32, (5, 3))
    hyper = hyper_of(formula)
    rates = np.array([0.5, 0.25, 2.0], np.float32)
    if (
        formula in DECOUPLED
    ):  # 1 - rate decay is rounded to float32 in the array, once in the number
        hyper["decoupled_weight_decay"] = 0.0
    got = stepped(update, formula, arrays, **{**hyper, "learning_rate": rates})
    for k in range(3):
        column = [np.ascontiguousarray(x[:, k]) for x in arrays]
        alone = stepped(update, formula, column, **{**hyper, "learning_rate": float(rates[k])})
        for value, same in zip(got, alone, strict=True):
            assert_same_bits(value[:, k], same, formula)


# Unit by unit


SHAPES = [(5, 3), (7,), (3, 3, 1, 2), (70, 8)]


def group(rng, kind, shapes, starts, n):
    """Return flat w and g that hold parameters of these shapes at these places."""
    w, g = rng.standard_normal((2, n)).astype(kind)
    cut = [slice(s, s + int(np.prod(shape))) for s, shape in zip(starts, shapes, strict=True)]
    return w, g, cut


@KINDS
@pytest.mark.parametrize(
    ("shapes", "starts", "n"),
    [(SHAPES, [0, 15, 22, 40], 600), ([(70, 8), (3, 4)], [0, 560], 572)],
    ids=["ragged", "aligned"],
)
def test_units_of_a_group_in_one_launch(place, rng, kind, shapes, starts, n):
    w, g, cuts = group(rng, kind, shapes, starts, n)
    on_device = asarray(w.copy())
    blocks = Units(shapes, Units.widest(shapes, starts, on_device), starts)
    norms = rng.uniform(0.5, 2, blocks.count).astype(kind)
    blocks.launch_norms(on_device, on_device, asarray(norms), reduction.status())
    got, first = to_host(on_device), 0
    for shape, cut in zip(shapes, cuts, strict=True):
        count = shape[-1] if len(shape) > 1 else 1
        norm = norms[first : first + count] if count > 1 else norms[first]
        truth = reference.normalize(wide(w[cut]).reshape(shape), wide(norm))
        bound = reference.normalize(running(w[cut].reshape(shape), kind), running(norm, kind))
        assert_within(got[cut].reshape(shape), truth, bound.error, str(shape))
        first += count
    untouched = np.ones(n, bool)
    for cut in cuts:
        untouched[cut] = False
    assert_same_bits(got[untouched], w[untouched], "numbers between the parameters")

    place_of_row = asarray(np.zeros(1, np.uint32))
    for formula in ("normalized_sgd", "lars"):
        on_device = asarray(w.copy())
        table = table_of([(0.0, 0.07)], kind)
        blocks.launch_step(formula, on_device, asarray(g), on_device, table, place_of_row)
        got = to_host(on_device)
        for shape, cut in zip(shapes, cuts, strict=True):
            arrays = w[cut].reshape(shape), g[cut].reshape(shape)
            step = getattr(reference, formula)
            truth = step(*(wide(x) for x in arrays), 0.07)
            bound = step(*(running(x, kind) for x in arrays), 0.07)
            assert_within(got[cut].reshape(shape), truth, bound.error, f"{formula} {shape}")


@KINDS
def test_normalize_and_lars_commute_with_powers_of_two(place, rng, kind):
    w, g = rng.standard_normal((2, 9, 8)).astype(kind)
    a = (2.0 ** rng.integers(-20, 21, 8)).astype(kind)
    w, g, scaled, other = (asarray(x) for x in (w, g, a * w, g / a))
    normalized = to_host(update.normalize(w, 2.0))
    assert_same_bits(to_host(update.normalize(scaled, 2.0)), normalized, "normalize")
    step = to_host(update.step("lars", w, g, learning_rate=0.1))
    assert_same_bits(
        to_host(update.step("lars", scaled, other, learning_rate=0.1)), a * step, "lars"
    )


@KINDS
@pytest.mark.parametrize("formula", ["normalized_sgd", "lars"])
def test_a_rate_for_each_unit_sums_in_the_same_order(place, rng, kind, formula):
    w, g = (asarray(x) for x in rng.standard_normal((2, 70, 8)).astype(kind))
    one = update.step(formula, w, g, learning_rate=4.0)
    each = update.step(formula, w, g, learning_rate=np.full(8, 4.0))
    assert_same_bits(to_host(each), to_host(one), formula)


def test_zero_gradients_step_nowhere_and_zero_weights_are_refused(place, rng):
    w = rng.standard_normal((9, 8)).astype(np.float32)
    zero = asarray(np.zeros_like(w))
    for formula in ("normalized_sgd", "lars"):
        got = update.step(formula, asarray(w), zero, learning_rate=0.1)
        assert_same_bits(to_host(got), w, formula)
    w[:, [1, 4]] = 0
    with pytest.raises(ZeroNormError, match=r"units \[1, 4\] are all 0"):
        update.normalize(asarray(w), 1.0)


def everything(rng, kind, shapes=((5, 3), (6, 8))):
    results = []
    for shape in shapes:
        for formula in FORMULAS:
            arrays = draw(rng, formula, kind, shape)
            results += stepped(update, formula, arrays, **hyper_of(formula))
        w, g = arrays[:2]
        results += [update.add_penalty(g, w, 0.5), update.normalize(w, 1.0)]
        for formula in update.BY_UNIT:
            results += stepped(update, formula, (w, g), learning_rate=0.1)
    rates = np.array([1, 2, 3, 4, 5, 6, 7, 8], kind)
    arrays = draw(rng, "adam", kind, (6, 8))
    results += stepped(update, "adam", arrays, **{**hyper_of("adam"), "learning_rate": rates})
    for formula in update.BY_UNIT:
        results += stepped(update, formula, arrays[:2], learning_rate=rates)
    return results


def test_bits_do_not_depend_on_the_schedule(schedules):
    schedules(lambda: everything(np.random.default_rng(5), np.float32))


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        (np.float32, ((5, 3), (6, 8))),
        pytest.param(np.float64, ((6, 8),), marks=pytest.mark.nightly),
        pytest.param(np.float64, ((5, 3),), marks=pytest.mark.nightly),
    ],
)
def test_the_compiled_kernels(rng, kind, shapes):
    with launch.simulation(), launch.recorded() as records:
        everything(rng, kind, shapes)
    compiled.check(records, update, units)
    forms = compiled.check_fusion(records)
    for formula, its in update.FORMULAS.items():
        assert len(forms[formula]) == 1 + its.states, forms[formula]


@pytest.mark.parametrize("formula", ["rmsprop", "adagrad", "adam", "adamw"])
def test_a_step_by_name_with_eps_inside_the_root(place, rng, formula):
    arrays = rng.uniform(0.5, 2, (2 + update.FORMULAS[formula].states, 5, 3))
    hyper = {**hyper_of(formula), "eps_inside_root": 0.25}
    expected = stepped(reference, formula, arrays, **hyper)
    for value, truth in zip(stepped(update, formula, arrays, **hyper), expected, strict=True):
        np.testing.assert_allclose(value, truth, rtol=1e-14)
    plain = stepped(update, formula, arrays, **hyper_of(formula))
    assert np.max(np.abs(plain[0] - expected[0])) > 1e-6


@pytest.mark.parametrize(
    "formula", sorted({*reference.FORMULAS} - {*update.FORMULAS, *update.BY_UNIT})
)
def test_what_has_no_kernel_is_refused(formula, rng):
    names = inspect.signature(getattr(reference, formula)).parameters
    states = [name for name in names if name in ("buffer", "rms", "m", "v")]
    hyper = {name: 0.5 for name in names if name not in (*states, "w", "g", "t")}
    if "t" in names:
        hyper["t"] = 1
    w, g, *states = rng.standard_normal((2 + len(states), 3, 2))
    with pytest.raises(ValueError, match=f"got '{formula}', which the cuda wing has no kernels"):
        update.step(formula, w, g, states, **hyper)


@pytest.mark.parametrize("wrapper", (Rotational, Hyperball))
def test_wrappers_are_refused_in_one_sentence(place, wrapper):
    network = Network([Dense(2)], (3,), backend="cuda")
    gradients = {name: np.ones(w.shape, w.dtype) for name, w in network.parameters.items()}
    with pytest.raises(ValueError, match=f"got '{wrapper.formula}', which the cuda wing has no"):
        wrapper(Momentum).step(network, gradients)
