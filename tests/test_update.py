"""The optimizers' formulas against the same steps by hand, number by number, in 50 digits."""

import decimal
import types
import warnings
from decimal import Decimal

import numpy as np
import pytest
from agreement import assert_dtype, assert_same_bits, assert_within, read_only, wide
from hypothesis import given
from hypothesis import strategies as st

from minimal_nn.errors import NonFiniteError, ZeroNormError
from theory.numbers.bounded import running

STEPS = 3
RATE = 0.07


# By hand: (w, g, state, t, hyper-parameters) -> (w, state), all Decimal, straight from the papers.


def ratio(a, b):
    return a / b if b else Decimal(0)


def sgd(w, g, state, t, h):
    return w - h["learning_rate"] * g, ()


def momentum(w, g, state, t, h):
    v = h["momentum"] * state[0] + g
    return w - h["learning_rate"] * v, (v,)


def nesterov(w, g, state, t, h):
    v = h["momentum"] * state[0] + g
    return w - h["learning_rate"] * (g + h["momentum"] * v), (v,)


def rmsprop(w, g, state, t, h):
    s = h["decay"] * state[0] + (1 - h["decay"]) * g**2
    return w - h["learning_rate"] * ratio(g, (s + h["eps_inside_root"]).sqrt() + h["eps"]), (s,)


def adagrad(w, g, state, t, h):
    s = state[0] + g**2
    return w - h["learning_rate"] * ratio(g, (s + h["eps_inside_root"]).sqrt() + h["eps"]), (s,)


def adadelta(w, g, state, t, h):
    s = h["decay"] * state[0] + (1 - h["decay"]) * g**2
    d = ratio((state[1] + h["eps_numerator"]).sqrt() * g, (s + h["eps_denominator"]).sqrt())
    u = h["decay"] * state[1] + (1 - h["decay"]) * d**2
    return w - h["learning_rate"] * d, (s, u)


def adam(w, g, state, t, h):
    m = h["beta1"] * state[0] + (1 - h["beta1"]) * g
    v = h["beta2"] * state[1] + (1 - h["beta2"]) * g**2
    m_hat, v_hat = m / (1 - h["beta1"] ** t), v / (1 - h["beta2"] ** t)
    root = (v_hat + h["eps_inside_root"]).sqrt()
    return w - h["learning_rate"] * ratio(m_hat, root + h["eps"]), (m, v)


def adamw(w, g, state, t, h):
    decayed = w - h["learning_rate"] * h["decoupled_weight_decay"] * w
    new, state = adam(w, g, state, t, h)
    return decayed + (new - w), state


def sign_sgd(w, g, state, t, h):
    return w - h["learning_rate"] * (int(g > 0) - int(g < 0)), ()


def lion(w, g, state, t, h):
    c = h["beta1"] * state[0] + (1 - h["beta1"]) * g
    decayed = w - h["learning_rate"] * h["decoupled_weight_decay"] * w
    m = h["beta2"] * state[0] + (1 - h["beta2"]) * g
    return decayed - h["learning_rate"] * (int(c > 0) - int(c < 0)), (m,)


class Rule:
    """One formula: how many state arrays it has, its hyper-parameters, and how they scale.

    scaling: hyper-parameter -> power of a by which it grows when the weights grow by a and the
    gradients shrink by a, such that the whole trajectory grows by a.
    """

    def __init__(self, by_hand, slots, hyper, scaling):
        self.by_hand, self.slots, self.hyper, self.scaling = by_hand, slots, hyper, scaling
        self.counts_steps = by_hand in (adam, adamw)

    def hyper_parameters(self, eps):
        """Return the hyper-parameters with eps added to every eps (one of Adadelta's is not 0)."""
        return {k: v + eps if k.startswith("eps") else v for k, v in self.hyper.items()}


EPS = {"eps": 0.0, "eps_inside_root": 0.0}
SCALING = {"learning_rate": 1, "eps": -1, "eps_inside_root": -2}
ADAM = {"learning_rate": RATE, "beta1": 0.9, "beta2": 0.999, **EPS}
DELTA = {"learning_rate": 0.9, "decay": 0.95, "eps_numerator": 1e-3, "eps_denominator": 0.0}
RULES = {
    "sgd": Rule(sgd, 0, {"learning_rate": RATE}, {"learning_rate": 2}),
    "momentum": Rule(momentum, 1, {"learning_rate": RATE, "momentum": 0.9}, {"learning_rate": 2}),
    "nesterov": Rule(nesterov, 1, {"learning_rate": RATE, "momentum": 0.9}, {"learning_rate": 2}),
    "rmsprop": Rule(
        rmsprop,
        1,
        {"learning_rate": RATE, "decay": 0.99, **EPS},
        SCALING,
    ),
    "adagrad": Rule(adagrad, 1, {"learning_rate": RATE, **EPS}, SCALING),
    "adadelta": Rule(adadelta, 2, DELTA, {"eps_numerator": 2, "eps_denominator": -2}),
    "adam": Rule(adam, 2, ADAM, SCALING),
    "adamw": Rule(
        adamw,
        2,
        {**ADAM, "decoupled_weight_decay": 0.3},
        {**SCALING, "decoupled_weight_decay": -1},
    ),
    "sign_sgd": Rule(sign_sgd, 0, {"learning_rate": RATE}, {"learning_rate": 1}),
    "lion": Rule(
        lion,
        1,
        {"learning_rate": RATE, "beta1": 0.9, "beta2": 0.99, "decoupled_weight_decay": 0.3},
        {"learning_rate": 1, "decoupled_weight_decay": -1},
    ),
}
# Steps along a unit's whole gradient: not number by number, so not in the table.
BY_UNIT = ("normalized_sgd", "lars")
BY_PARAMETER = ("sgdp", "adamp", "muon")  # see test_later_optimizers.py
WRAPPED = ("rotational", "hyperball")  # see test_wrappers.py
ADAPTIVE = ("rmsprop", "adagrad", "adadelta", "adam", "adamw")


def draw(rng, dtype, shape=(3, 2)):
    """Return w and the gradients of STEPS steps, not to be written to."""
    w, *gradients = (rng.standard_normal(shape).astype(dtype) for _ in range(1 + STEPS))
    return *read_only(w), read_only(*gradients)


def trajectory(update, rule, name, w, gradients, zero, hyper):
    """Return the last weights and the last state."""
    state = (zero,) * rule.slots
    for t, g in enumerate(gradients, 1):
        steps = {"t": t} if rule.counts_steps else {}
        result = update.step(name, w, g, state, **steps, **hyper)
        w, *state = result if rule.slots else (result,)
    return w, tuple(state)


def by_hand(rule, w, gradients, hyper):
    """Return the last weights and the last state, one number after the other, in 50 digits."""
    with decimal.localcontext() as context:
        context.prec = 50
        return _by_hand(rule, w, gradients, hyper)


def _by_hand(rule, w, gradients, hyper):
    results = []
    for index in np.ndindex(w.shape):
        entry, state = Decimal(float(w[index])), (Decimal(0),) * rule.slots
        own = {k: Decimal(float(np.broadcast_to(v, w.shape)[index])) for k, v in hyper.items()}
        for t, g in enumerate(gradients, 1):
            entry, state = rule.by_hand(entry, Decimal(float(g[index])), state, t, own)
        results.append((entry, *state))
    columns = zip(*results, strict=True)
    w, *state = (np.array([np.longdouble(str(n)) for n in c]).reshape(w.shape) for c in columns)
    return w, tuple(state)


def check(wing, reference, name, w, gradients, hyper):
    """Check a few steps against the same steps by hand, within the running error."""
    rule, dtype = RULES[name], w.dtype
    got = trajectory(wing.update, rule, name, w, gradients, np.zeros_like(w), hyper)
    # Python's numbers are computed with in float64, whatever w is in: 1 - beta2^t cancels there.
    own = {k: running(v, getattr(v, "dtype", np.float64)) for k, v in hyper.items()}
    zero = running(np.zeros(w.shape), dtype)
    steps = [running(g, dtype) for g in gradients]
    bound = trajectory(reference.update, rule, name, running(w, dtype), steps, zero, own)
    expected = by_hand(rule, w, gradients, hyper)
    names = ("w", *(f"state {k}" for k in range(rule.slots)))
    arrays = ((w, *state) for w, state in (got, expected, bound))
    for what, value, truth, running_bound in zip(names, *arrays, strict=True):
        assert_dtype(dtype, **{what: value})
        assert_within(value, truth, running_bound.error, f"{name}: {what}")


def test_every_formula_is_tested(reference):
    module = reference.update
    public = {
        name
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    assert public - {"of_step", "step"} == {
        *(*RULES, *BY_UNIT, *BY_PARAMETER, *WRAPPED),
        *("add_penalty", "clip", "normalize"),
    }


@pytest.mark.parametrize("name", RULES)
def test_steps_by_hand(wing, reference, rng, dtype, eps, name):
    w, gradients = draw(rng, dtype)
    check(wing, reference, name, w, gradients, RULES[name].hyper_parameters(eps))


@pytest.mark.parametrize("name", RULES)
def test_a_learning_rate_for_each_column(wing, reference, rng, dtype, name):
    w, gradients = draw(rng, dtype)
    hyper = RULES[name].hyper_parameters(1e-5)
    hyper["learning_rate"] = np.array([0.5, 0.01], dtype)
    check(wing, reference, name, w, gradients, hyper)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_zero_over_zero_is_a_zero_step(wing, rng, dtype, name):
    """A unit that never had a gradient stays where it is, at eps = 0 too."""
    w, gradients = draw(rng, dtype)
    gradients = [g * np.array([0, 1], dtype) for g in gradients]
    rule = RULES[name]
    hyper = {k: v for k, v in rule.hyper.items() if k != "decoupled_weight_decay"}
    if name == "adamw":
        hyper["decoupled_weight_decay"] = 0.0
    new, _ = trajectory(wing.update, rule, name, w, gradients, np.zeros_like(w), hyper)
    assert_same_bits(new[:, 0], w[:, 0], "w of the unit without a gradient")
    assert np.all(new[:, 1] != w[:, 1])


@pytest.mark.parametrize("name", RULES)
def test_a_power_of_two_scales_the_trajectory_exactly(wing, rng, dtype, name):
    """With w a, g / a and the hyper-parameters scaled by the rule's powers: a times every step."""
    w, gradients = draw(rng, dtype)
    rule = RULES[name]
    hyper, zero = rule.hyper_parameters(1e-5), np.zeros_like(w)
    w_last, _ = trajectory(wing.update, rule, name, w, gradients, zero, hyper)
    for k in (-12, -1, 1, 12):
        a = dtype(2.0**k)
        scaled_hyper = {
            key: value * 2.0 ** (k * rule.scaling.get(key, 0)) for key, value in hyper.items()
        }
        scaled = [g / a for g in gradients]
        last, _ = trajectory(wing.update, rule, name, a * w, scaled, zero, scaled_hyper)
        assert_same_bits(last, a * w_last, "w")
        control, _ = trajectory(wing.update, rule, name, a * w, scaled, zero, hyper)
        assert not np.array_equal(control, a * w_last), "the control, one shared rate, agrees too"


def test_coupled_and_decoupled_decay(wing, reference, rng, dtype):
    """g + weight_decay w goes through the optimizer; AdamW without its decay is Adam."""
    w, gradients = draw(rng, dtype)
    for decay in (0.3, np.array([0.5, 0.01], dtype)):
        penalty = running(decay, dtype) if isinstance(decay, np.ndarray) else decay
        bound = reference.update.add_penalty(
            running(gradients[0], dtype), running(w, dtype), penalty
        )
        got = wing.update.add_penalty(gradients[0], w, decay)
        assert_dtype(dtype, g=got)
        assert_within(got, wide(gradients[0]) + wide(decay) * wide(w), bound.error, "g")
    own = {**ADAM, "decoupled_weight_decay": 0.0}
    one = trajectory(wing.update, RULES["adam"], "adam", w, gradients, np.zeros_like(w), ADAM)[0]
    two = trajectory(wing.update, RULES["adamw"], "adamw", w, gradients, np.zeros_like(w), own)[0]
    assert_same_bits(two, one, "AdamW at decoupled_weight_decay = 0")


@pytest.mark.parametrize("penalty", ({"weight_decay": 0.5}, {"l2": 0.25}))
def test_the_penalty_goes_through_the_adaptive_scaling(wing, optimizers, rng, dtype, penalty):
    """Adam with an L2 penalty is Adam on g + 2 l2 w; here w, g and the decay round nowhere."""
    w, g = (rng.integers(-8, 9, (3, 2)).astype(dtype) for _ in range(2))
    network = types.SimpleNamespace(
        parameters={"w": w}, backend=types.SimpleNamespace(update=wing.update, asarray=np.asarray)
    )
    optimizer = optimizers.Adam(learning_rate=RATE, **penalty)
    expected, state = w, (np.zeros_like(w),) * 2
    for t in (1, 2):
        penalized = g + dtype(0.5) * expected
        optimizer.step(network, {"w": g})
        hyper = {**ADAM, "t": t, "eps": 1e-8}
        expected, *state = wing.update.step("adam", expected, penalized, state, **hyper)
        if t == 1:
            assert_same_bits(network.parameters["w"], expected, "w")
    difference = np.abs(wide(network.parameters["w"]) - wide(expected)).max()
    assert difference <= 4 * np.finfo(dtype).eps * np.abs(expected).max()


def along(wing, name, w, g, rate=RATE):
    """Return w after a step of a formula without state."""
    return wing.update.step(name, w, g, learning_rate=rate)


@pytest.mark.parametrize("shape", ((3, 2), (5,), (2, 3, 2, 2)))
@pytest.mark.parametrize("name", BY_UNIT)
def test_steps_along_a_unit(wing, reference, rng, dtype, name, shape):
    w, (g, *_) = draw(rng, dtype, shape)
    axes = tuple(range(w.ndim - 1)) if w.ndim > 1 else None
    norm_w, norm_g = (np.sqrt(np.square(wide(x)).sum(axis=axes)) for x in (w, g))
    length = norm_w if name == "lars" else 1
    got = along(wing, name, w, g)
    bound = along(reference, name, running(w, dtype), running(g, dtype))
    assert_dtype(dtype, w=got)
    expected = wide(w) - np.longdouble(RATE) * length * wide(g) / norm_g
    assert_within(got, expected, bound.error, name)
    for k in (-12, 12):
        a = dtype(2.0**k)
        rate = RATE if name == "lars" else RATE * 2.0**k
        assert_same_bits(along(wing, name, a * w, g / a, rate), a * got, f"{name} of a w")


@pytest.mark.parametrize("name", BY_UNIT)
def test_a_unit_without_a_gradient_stays(wing, rng, dtype, name):
    w, (g, *_) = draw(rng, dtype)
    new = along(wing, name, w, g * np.array([0, 1], dtype))
    assert_same_bits(new[:, 0], w[:, 0], "w of the unit without a gradient")


@pytest.mark.parametrize("shape", ((3, 2), (5,), (2, 3, 2, 2)))
def test_lars_leaves_zero_by_the_step_of_sgd(wing, rng, dtype, shape):
    """A bias that starts at 0 stayed there for ever: ratio 1 where a norm is 0."""
    w, (g, *_) = draw(rng, dtype, shape)
    w, g = np.array(w), np.array(g)
    if w.ndim == 1:
        w[:] = 0
        assert_same_bits(along(wing, "lars", w, g), along(wing, "sgd", w, g), "a vector at 0")
        assert_same_bits(along(wing, "lars", g, w), g, "a vector without a gradient")
        return
    whole = along(wing, "lars", w, g)
    w[..., 1] = 0
    new = along(wing, "lars", w, g)
    assert_same_bits(new[..., 1], along(wing, "sgd", w, g)[..., 1], "the unit at 0")
    assert_same_bits(new[..., 0], whole[..., 0], "the other unit")
    g[..., 0] = 0
    assert_same_bits(along(wing, "lars", w, g)[..., 0], w[..., 0], "a unit without a gradient")


def sizes_beyond_the_squares(dtype):
    """Return powers of two whose squares underflow, lose digits, or overflow, and 1."""
    return [2.0**k for k in ((-100, -62, 0, 70, 100) if dtype == np.float32 else (-900, 0, 900))]


@pytest.mark.parametrize("shape", ((3, 2), (5,), (2, 3, 2, 2), (300, 2)))
def test_norms_whose_squares_leave_the_range(wing, rng, dtype, shape):
    """1e-25 in float32 was "all 0", or a gradient without a step; 1e25 normalized was 0."""
    w, (g, *_) = draw(rng, dtype, shape)
    unit = wing.update.normalize(w, 1.5)
    step = along(wing, "normalized_sgd", w, g)
    relative = along(wing, "lars", w, g)
    for a in sizes_beyond_the_squares(dtype):
        a = dtype(a)
        assert_same_bits(wing.update.normalize(a * w, 1.5), unit, f"w of size {a}")
        assert_same_bits(along(wing, "normalized_sgd", w, a * g), step, f"g of size {a}")
        assert_same_bits(along(wing, "lars", w, a * g), relative, f"lars, g of size {a}")
        assert_same_bits(along(wing, "lars", a * w, g), a * relative, f"lars, w of size {a}")


def test_units_of_very_different_sizes_do_not_meet(wing, rng, dtype):
    w, (g, *_) = draw(rng, dtype, (7, 5))
    a = np.array([1, *sizes_beyond_the_squares(dtype)][-5:], dtype)
    a = np.resize(a, 5)
    assert_same_bits(wing.update.normalize(a * w, 1.0), wing.update.normalize(w, 1.0), "w / |w|")
    assert_same_bits(along(wing, "lars", a * w, g), a * along(wing, "lars", w, g), "lars")


@pytest.mark.parametrize("shape", ((3, 2), (4,), (2, 3, 2, 2)))
def test_normalize_sets_the_norm_of_each_unit(wing, reference, rng, dtype, shape):
    w, _ = draw(rng, dtype, shape)
    axes = tuple(range(w.ndim - 1)) if w.ndim > 1 else None
    norms = [1.0, 2.5]
    if w.ndim > 1:
        norms.append(np.array([3.0, 0.25], dtype))
    for norm in norms:
        own = running(norm, dtype) if isinstance(norm, np.ndarray) else norm
        bound = reference.update.normalize(running(w, dtype), own)
        got = wing.update.normalize(w, norm)
        length = np.sqrt(np.square(wide(w)).sum(axis=axes))
        assert_dtype(dtype, w=got)
        assert_within(got, wide(w) * wide(norm) / length, bound.error, "w norm / |w|")
        assert_same_bits(wing.update.normalize(dtype(8) * w, norm), got, "normalize(8 w)")


def test_normalizing_a_zero_unit_is_refused(wing, dtype):
    with pytest.raises(ZeroNormError, match=r"units \[1\] are all 0 after the step"):
        wing.update.normalize(np.array([[1, 0], [2, 0]], dtype), 1.0)


GRADIENTS = {"W": (5, 7), "b": (7,), "kernel": (3, 3, 2, 19), "one": (1,), "column": (300, 1)}


def gradients_of(rng, dtype, scale=1.0):
    return {
        name: (scale * rng.standard_normal(shape)).astype(dtype)
        for name, shape in GRADIENTS.items()
    }


def wide_norm(gradients):
    """Return the norm of all gradients in longdouble, scaled to stay within its range."""
    numbers = np.concatenate([np.ravel(g).astype(np.longdouble) for g in gradients.values()])
    largest = np.max(np.abs(numbers))
    return largest * np.sqrt(np.sum((numbers / largest) ** 2))


@pytest.mark.parametrize("exponent", (-60, 0, 55))
@pytest.mark.parametrize("part", (1e-3, 0.9))
def test_longer_gradients_get_the_length_of_the_limit(wing, rng, dtype, exponent, part):
    """Also where their squares leave the range."""
    exponent *= 1 if dtype == np.float32 else 8
    gradients = gradients_of(rng, dtype, 2.0**exponent)
    norm = wide_norm(gradients)
    clipped = wing.update.clip(gradients, float(part * norm))
    # The norm is a sum of n squares: fewer than n roundings, halved by the root.
    count = sum(g.size for g in gradients.values())
    bound = (count / 2 + 5) * np.finfo(dtype).eps
    for name, g in gradients.items():
        assert clipped[name].dtype == dtype and clipped[name].shape == g.shape
        expected = part * g.astype(np.longdouble)
        assert np.all(np.abs(clipped[name] - expected) <= bound * np.abs(expected)), name
    assert abs(wide_norm(clipped) / (part * norm) - 1) <= bound


def test_shorter_gradients_stay_as_they_are(wing, rng, dtype):
    gradients = gradients_of(rng, dtype)
    limit = 1.001 * float(wide_norm(gradients))
    for name, g in wing.update.clip(gradients, limit).items():
        assert_same_bits(g, gradients[name], name)
    zeros = {name: np.zeros_like(g) for name, g in gradients.items()}
    assert not any(np.any(g) for g in wing.update.clip(zeros, 1e-3).values())


@pytest.mark.parametrize("size", (1, 3))
def test_a_norm_beyond_the_range_is_clipped_where_that_of_each_parameter_is_within(wing, size):
    largest = float(np.finfo(np.float32).max)
    near = np.full(size, 0.9 / size**0.5 * largest, np.float32)
    clipped = wing.update.clip({"v": near, "w": near}, 1.0)
    expected = 1 / np.sqrt(2 * size)
    for g in clipped.values():
        assert np.all(np.abs(g - expected) <= 10 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_without_a_norm_are_refused(wing, rng, value, name):
    gradients = gradients_of(rng, np.float32)
    gradients[name].reshape(-1)[-1] = value
    with (
        np.errstate(all="ignore"),
        pytest.raises(NonFiniteError, match="gradients: their norm is NaN or beyond the range of"),
    ):
        wing.update.clip(gradients, 1.0)


def test_what_a_formula_does_not_take_is_refused(wing, rng, dtype):
    w, (g, *_) = draw(rng, dtype)
    with pytest.raises(ValueError, match="formula: got 'adamax', expected one of sgd, momentum"):
        wing.update.step("adamax", w, g, learning_rate=0.1)
    for states, hyper in (((), {"momentum": 0.9}), ((g,), {}), ((g,), {"momentum": 0, "eps": 0})):
        with pytest.raises(
            TypeError, match=r"momentum: got . states and .*, expected momentum\(w,"
        ):
            wing.update.step("momentum", w, g, states, learning_rate=0.1, **hyper)


@pytest.mark.parametrize("name", RULES)
def test_arguments_are_untouched(wing, rng, dtype, name):
    rule = RULES[name]
    w, (g, *_) = draw(rng, dtype)
    arrays = [np.array(x) for x in (w, g, *(abs(g) for _ in range(rule.slots)))]
    copies = [x.copy() for x in arrays]
    steps = {"t": 2} if rule.counts_steps else {}
    w, g, *state = arrays
    wing.update.step(name, w, g, state, **steps, **rule.hyper_parameters(1e-5))
    for before, after in zip(copies, arrays, strict=True):
        assert_same_bits(after, before, f"an argument of {name}")


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda s: len(s) != 3),
    name=st.sampled_from(sorted(RULES)),
    seed=st.integers(0, 99),
)
def test_any_shape(wing, reference, dtype, shape, name, seed):
    w, gradients = draw(np.random.default_rng(seed), dtype, shape)
    check(wing, reference, name, w, gradients, RULES[name].hyper_parameters(1e-5))


LIMITS = (-1.0, 0.0, np.nan, np.inf, None, "1", True, [1.0], np.ones(1))


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_what_clips_nothing_is_refused(wing, limit):
    """A negative one would turn gradients round, and NaN would let them pass."""
    with pytest.raises(ValueError, match="limit: got .*, expected a finite number > 0"):
        wing.update.clip({"w": np.ones(3)}, limit)
    with pytest.raises(ValueError, match="gradients: got none, expected at least one array"):
        wing.update.clip({}, 1.0)


def test_a_limit_beyond_the_range_limits_nothing(wing):
    g = np.full(3, 2.0, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits(wing.update.clip({"w": g}, 1e300)["w"], g, "w")


@pytest.mark.parametrize("name", ("sign_sgd", "lion"))
def test_the_sign_of_nan_is_nan(wing, dtype, name):
    rule, w = RULES[name], np.ones(3, dtype)
    g = np.array([np.nan, 0, -1], dtype)
    found = wing.update.step(name, w, g, (np.zeros(3, dtype),) * rule.slots, **rule.hyper)
    moved = np.asarray(found[0] if rule.slots else found)
    assert np.isnan(moved).tolist() == [True, False, False]


@pytest.mark.parametrize("t", (0, -1, 1.5, None, True, np.nan), ids=repr)
def test_steps_are_counted_from_1(wing, t):
    w, zeros = np.ones(3), np.zeros(3)
    with pytest.raises(ValueError, match="t: got .*, expected an integer >= 1"):
        wing.update.step("adam", w, w, (zeros, zeros), **{**ADAM, "t": t})


@pytest.mark.parametrize("value", (None, "0.1", True, np.nan, -np.inf, {}), ids=repr)
def test_what_is_no_hyper_parameter_is_refused(wing, value):
    w = np.ones(3)
    with pytest.raises(ValueError, match="learning_rate: got .*, expected a finite number, or an"):
        wing.update.step("sgd", w, w, learning_rate=value)
    with pytest.raises(ValueError, match="eps_inside_root: got .*, expected a finite number, or"):
        wing.update.step("adagrad", w, w, (w,), learning_rate=0.1, eps=1e-8, eps_inside_root=value)


def test_a_list_is_an_array_of_hyper_parameters(wing):
    w, rates = np.ones((2, 3)), [0.1, 0.2, 0.3]
    found, expected = (
        wing.update.step("sgd", w, w, learning_rate=rate) for rate in (rates, np.array(rates))
    )
    assert_same_bits(found, expected, "w")
    with pytest.raises(ValueError, match="learning_rate: got shape .2, 3., expected one that broa"):
        wing.update.step("sgd", w[0], w[0], learning_rate=[rates, rates])


@pytest.mark.parametrize("states", (None, np.ones((1, 3)), {"buffer": np.ones(3)}), ids=type)
def test_states_are_a_tuple(wing, states):
    w = np.ones(3)
    with pytest.raises(TypeError, match="states: got .*, expected a tuple of arrays"):
        wing.update.step("momentum", w, w, states, learning_rate=0.1, momentum=0.9)


def test_the_formulas_themselves_count_steps_from_1(reference):
    w, zeros = np.ones(3), np.zeros(3)
    with pytest.raises(ValueError, match="t: got 0, expected an integer >= 1"):
        reference.update.adam(w, w, zeros, zeros, **{**ADAM, "t": 0})
