r"""The optimizers' formulas: one update each, as a pure function of weights, gradient and state.

w, g and the state have one shape; t counts the steps from 1; hyper-parameters are Python numbers,
or arrays that broadcast against w (a learning rate for each column), in float64 where they need its
digits: 1 - beta is computed before anything is rounded to w's dtype, which every result has.  eta
is the learning rate.  A quotient 0/0, which eps = 0 makes possible, is a zero step.

The fast wings have them as `step` alone, which takes a formula by its name here.
"""

import functools
import inspect

import numpy as np

from minimal_nn.errors import NonFiniteError, ZeroNormError
from minimal_nn.reference.arguments import (
    alike,
    arrays,
    expect_broadcast,
    expect_integer,
    expect_limit,
    expect_norm,
)
from minimal_nn.reference.extremes import CLIPPED, FIXED_NORM, TURNED, check_norm, power_of_two

ARRAYS = ("w", "g", "buffer", "square", "delta_square", "m", "v", "rms")


def _formula(function):
    """Make a formula check its arrays, and round its results to the dtype of the first."""
    names = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*arguments, **named):
        given = {**dict(zip(names, arguments, strict=False)), **named}
        arrays = {name: given[name] for name in names if name in ARRAYS and name in given}
        given.update(zip(arrays, alike(**arrays), strict=True))
        first = given[next(iter(arrays))]
        if "t" in given:
            expect_integer("t", given["t"], 1)
        for name, value in given.items():
            if name not in arrays and isinstance(value, np.ndarray) and name != "norm":
                expect_broadcast(name, value, first)
        results = function(**given)
        if isinstance(results, tuple):
            return tuple(_rounded(result, first) for result in results)
        return _rounded(results, first)

    return checked


_signature = functools.lru_cache(inspect.signature)  # asked at every step


def _rounded(result, w):
    """Return a result in w's dtype, where a hyper-parameter of a wider one has widened it."""
    if isinstance(w, np.ndarray) and isinstance(result, np.ndarray) and result.dtype != w.dtype:
        return result.astype(w.dtype)
    return result


def _ratio(numerator, denominator):
    """Return numerator / denominator, and 0 where the denominator is 0."""
    zero = denominator == 0
    return np.where(zero, 0, numerator / np.where(zero, 1, denominator))


def _root(square, inside):
    """Return sqrt(square + inside); a plain 0 is not added, so that nothing is rounded."""
    return np.sqrt(square if type(inside) is float and inside == 0 else square + inside)


@_formula
def add_penalty(g, w, weight_decay):
    """Return g + weight_decay w: the gradient of L + (weight_decay / 2) |w|^2."""
    return g + weight_decay * w


def clip(gradients, limit):
    """Return gradients {name: array} times min(1, limit / |g|), |g| the norm of all together.

    Clipping by the global norm (Pascanu, Mikolov & Bengio, 2013): longer gradients keep their
    direction and get the length `limit`; a penalty is added afterwards.  Raises NonFiniteError
    where |g| is NaN or beyond the range of the dtype.
    """
    limit = expect_limit(gradients, limit)
    gradients = dict(zip(gradients, arrays(**gradients), strict=True))
    lengths = np.array([_length(g) for g in gradients.values()])
    a = power_of_two(lengths, None)
    # |g| itself may leave the range: `length` is a times it.
    length = np.sqrt((a * lengths * (a * lengths)).sum())
    with np.errstate(over="ignore"):  # a limit beyond the range of the dtype limits nothing
        most = a * limit
    if lengths.dtype != object and not np.isfinite(length):
        raise NonFiniteError(CLIPPED.format(dtype=lengths.dtype))
    factor = most / length if length.real > most else 1
    return {name: factor * g for name, g in gradients.items()}


def _length(g):
    """Return the norm of an array as a whole."""
    a = power_of_two(g, None)
    return np.sqrt((a * g * (a * g)).sum()) / a


@_formula
def sgd(w, g, learning_rate):
    """Return w - eta g."""
    return w - learning_rate * g


@_formula
def momentum(w, g, buffer, learning_rate, momentum):
    """Heavy ball (Polyak, 1964): v = momentum v + g; w - eta v.  Returns w and v."""
    buffer = momentum * buffer + g
    return w - learning_rate * buffer, buffer


@_formula
def nesterov(w, g, buffer, learning_rate, momentum):
    """Nesterov's form (Sutskever et al., 2013): v = momentum v + g; w - eta (g + momentum v)."""
    buffer = momentum * buffer + g
    return w - learning_rate * (g + momentum * buffer), buffer


@_formula
def rmsprop(w, g, square, learning_rate, decay, eps, eps_inside_root=0.0):
    """RMSprop: s = decay s + (1 - decay) g^2; w - eta g / (sqrt(s) + eps).  Returns w and s.

    eps_inside_root is added to s under the root, here and below.
    """
    square = decay * square + (1 - decay) * (g * g)
    return w - learning_rate * _ratio(g, _root(square, eps_inside_root) + eps), square


@_formula
def adagrad(w, g, square, learning_rate, eps, eps_inside_root=0.0):
    """Adagrad (Duchi et al., 2011): s = s + g^2; w - eta g / (sqrt(s) + eps).  Returns w and s."""
    square = square + g * g
    return w - learning_rate * _ratio(g, _root(square, eps_inside_root) + eps), square


@_formula
def adadelta(w, g, square, delta_square, learning_rate, decay, eps_numerator, eps_denominator):
    """Adadelta (Zeiler, 2012), with an eps of its own in each root.  Returns w, s and u.

    s = decay s + (1 - decay) g^2; d = sqrt(u + eps_numerator) / sqrt(s + eps_denominator) g;
    u = decay u + (1 - decay) d^2; w - eta d.
    """
    square = decay * square + (1 - decay) * (g * g)
    delta = _ratio(np.sqrt(delta_square + eps_numerator) * g, np.sqrt(square + eps_denominator))
    delta_square = decay * delta_square + (1 - decay) * (delta * delta)
    return w - learning_rate * delta, square, delta_square


def _adam_step(g, m, v, t, learning_rate, beta1, beta2, eps, eps_inside_root):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * (g * g)
    corrected_m = m / (1 - beta1**t)
    corrected_v = v / (1 - beta2**t)
    return learning_rate * _ratio(corrected_m, _root(corrected_v, eps_inside_root) + eps), m, v


@_formula
def adam(w, g, m, v, t, learning_rate, beta1, beta2, eps, eps_inside_root=0.0):
    """Adam (Kingma & Ba, 2015): w - eta m' / (sqrt(v') + eps).  Returns w, m and v.

    m = beta1 m + (1 - beta1) g, m' = m / (1 - beta1^t); v = beta2 v + (1 - beta2) g^2,
    v' = v / (1 - beta2^t).
    """
    step, m, v = _adam_step(g, m, v, t, learning_rate, beta1, beta2, eps, eps_inside_root)
    return w - step, m, v


@_formula
def adamw(
    w, g, m, v, t, learning_rate, beta1, beta2, eps, decoupled_weight_decay, eps_inside_root=0.0
):
    """AdamW (Loshchilov & Hutter, 2019): (1 - eta decoupled_weight_decay) w - Adam's step."""
    step, m, v = _adam_step(g, m, v, t, learning_rate, beta1, beta2, eps, eps_inside_root)
    return (1 - learning_rate * decoupled_weight_decay) * w - step, m, v


@_formula
def sign_sgd(w, g, learning_rate):
    """Return w - eta sign(g)."""
    return w - learning_rate * np.sign(g)


def _scaled_norm(w):
    """Return for each unit a power of two a, a w, and |a w|, whose squares stay within the range.

    Over all axes but the last, or of a vector as a whole.
    """
    axes = tuple(range(w.ndim - 1)) if w.ndim > 1 else None
    a = power_of_two(w, axes)
    w = a * w
    return a, w, np.sqrt((w * w).sum(axis=axes))


@_formula
def normalized_sgd(w, g, learning_rate):
    """Return w - eta g / |g|, unit by unit (a vector, such as a bias, as a whole)."""
    _, g, length = _scaled_norm(g)
    return w - learning_rate * _ratio(g, length)


@_formula
def lars(w, g, learning_rate):
    """Return w - eta |w| g / |g|, unit by unit (a vector as a whole): steps relative to |w|.

    The trust-ratio step of LARS (You, Gitman & Ginsburg, 2017) without momentum.  Where |w| or |g|
    is 0 the ratio is 1, as in apex and LAMB, and the step -eta g: what starts at 0, such as a bias,
    can leave it.  A penalty is part of g: with the smallest decay a unit that has no other gradient
    takes a whole step towards 0.
    """
    a, _, w_length = _scaled_norm(w)
    _, scaled_g, g_length = _scaled_norm(g)
    norm = w_length / a
    return w - learning_rate * np.where(norm == 0, g, norm * _ratio(scaled_g, g_length))


@_formula
def lion(w, g, m, learning_rate, beta1, beta2, decoupled_weight_decay):
    """Lion (Chen et al., 2023): (1 - eta decoupled_weight_decay) w - eta sign(c).  Returns w and m.

    c = beta1 m + (1 - beta1) g; m = beta2 m + (1 - beta2) g.
    """
    direction = np.sign(beta1 * m + (1 - beta1) * g)
    m = beta2 * m + (1 - beta2) * g
    shrink = 1 - learning_rate * decoupled_weight_decay
    return shrink * w - learning_rate * direction, m


def _tangent(w, g, step, delta):
    """Return a step without its part along w where the loss does not feel |w|, and whether that is.

    Heo et al. (2021) tell that from |cos(g, w)| < delta/sqrt(n) for each unit of n weights, or of
    the parameter as a whole: the part is taken from each unit, or from the whole.  A vector, such
    as a bias, is left alone.  The cosine with what is all 0 is 0.
    """
    if np.ndim(delta) > 0:
        raise ValueError(f"delta: got {delta!r}, expected one number: it judges a whole parameter")
    views = ((-1, w.shape[-1]), (-1, 1)) if w.ndim > 1 else ()
    for shape in views:
        u, v, p = (x.reshape(shape) for x in (w, g, step))
        u, v = (_ratio(scaled, length) for _, scaled, length in map(_scaled_norm, (u, v)))
        cosines = (u * v).sum(axis=0)
        if np.all(cosines * cosines < delta * delta / len(u)):
            return (p - u * (u * p).sum(axis=0)).reshape(w.shape), True
    return step, False


@_formula
def sgdp(w, g, buffer, learning_rate, momentum, delta, decay_ratio, decoupled_weight_decay):
    """SGDP (Heo et al., 2021): momentum whose step has no part along w.  Returns w and v.

    v = momentum v + g; p = v - <v, w> w/|w|^2, where |cos(g, w)| < delta/sqrt(n), else p = v;
    (1 - eta decay/(1 - momentum)) w - eta p, decay being decoupled_weight_decay, times decay_ratio
    where p is not v.  Of its eps, which keeps 0/0 away, there is none: 0/0 is 0.
    """
    buffer = momentum * buffer + g
    step, tangent = _tangent(w, g, buffer, delta)
    decay = decoupled_weight_decay * (decay_ratio if tangent else 1) / (1 - momentum)
    return (1 - learning_rate * decay) * w - learning_rate * step, buffer


@_formula
def adamp(
    w, g, m, v, t, learning_rate, beta1, beta2, eps, delta, decay_ratio, decoupled_weight_decay
):
    """AdamP (Heo et al., 2021): AdamW whose step has no part along w, by sgdp's rule."""
    step, m, v = _adam_step(g, m, v, t, 1.0, beta1, beta2, eps, 0.0)
    step, tangent = _tangent(w, g, step, delta)
    decay = decoupled_weight_decay * (decay_ratio if tangent else 1)
    return (1 - learning_rate * decay) * w - learning_rate * step, m, v


NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # a, b, c of a step X = a X + (b A + c A^2) X, A = X X^T


def _polar_factor(w, newton_schulz_steps):
    """Return U V^T of w = U S V^T, a parameter's columns being its units; a vector is one unit.

    Singular values that are 0 up to rounding stay 0.  newton_schulz_steps: 0 for LAPACK's singular
    vectors, else how many steps of Jordan's polynomial, after which singular values lie between
    about 0.7 and 1.2.
    """
    expect_integer("newton_schulz_steps", newton_schulz_steps, 0)
    if w.dtype not in (np.float32, np.float64):
        raise TypeError(f"w: got {w.dtype}, expected float32 or float64, which LAPACK knows")
    if not np.all(np.isfinite(w)):
        raise NonFiniteError("buffer: got momentum that is not finite, of which there is no U V^T")
    matrix = w.reshape(-1, w.shape[-1] if w.ndim > 1 else 1)
    matrix = power_of_two(matrix, None) * matrix
    if newton_schulz_steps == 0:
        U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
        rank = S > max(matrix.shape) * np.finfo(w.dtype).eps * S[0]
        return ((U * rank) @ Vh).reshape(w.shape)
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    X, (a, b, c) = _ratio(wide, np.sqrt((wide * wide).sum())), NEWTON_SCHULZ
    for _ in range(newton_schulz_steps):
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return (X if wide is matrix else X.T).reshape(w.shape)


@_formula
def muon(w, g, buffer, learning_rate, momentum, newton_schulz_steps, decoupled_weight_decay):
    """Muon (Jordan et al., 2024): (1 - eta decoupled_weight_decay) w - eta O.  Returns w and v.

    v = momentum v + g, without Nesterov's look ahead; O = U V^T of v = U S V^T, without a factor
    for its shape: |O|^2 is the rank of v.
    """
    buffer = momentum * buffer + g
    step = _polar_factor(buffer, newton_schulz_steps)
    shrink = 1 - learning_rate * decoupled_weight_decay
    return shrink * w - learning_rate * step, buffer


@_formula
def rotational(w, g, rms, t, learning_rate, share, decay, decoupled_weight_decay):
    """Turn w, unit by unit, by an angle that is set (Kosson et al., 2024).  Returns w and r.

    g: not a gradient, but the update u of an optimizer without decay.  p = u - <u, w> w/|w|^2;
    r^2 = decay r^2 + (1 - decay) |p|^2; |w| N(w - angle |w| p sqrt(1 - decay^t)/r), N(z) = z/|z|,
    angle = sqrt(2 eta decoupled_weight_decay share): share is the optimizer's part in it.  A
    vector, such as a bias, and what has no decay, takes the optimizer's own step:
    (1 - eta decoupled_weight_decay) w - eta u.  Of the published eps, which keeps 0/0 away, there
    is none: 0/0 is 0; nor is the mean of w taken away.

    Raises ZeroNormError where a unit's weights are all 0.
    """
    if np.ndim(decoupled_weight_decay) > 0:
        raise ValueError(
            f"decoupled_weight_decay: got {decoupled_weight_decay!r}, expected one number: it "
            "decides whether a parameter is turned"
        )
    if w.ndim < 2 or decoupled_weight_decay == 0:
        shrink = 1 - learning_rate * decoupled_weight_decay
        return shrink * w - learning_rate * g, rms
    angle = (2 * learning_rate * decoupled_weight_decay * share) ** 0.5
    if np.ndim(angle) > 1:
        raise ValueError(
            f"learning_rate, share: got {learning_rate!r} and {share!r}, expected numbers, or one "
            "for each unit, which turns as a whole"
        )
    a, scaled, length = _scaled_norm(w)
    check_norm(length, *TURNED)
    direction, norm, axes = scaled / length, length / a, tuple(range(w.ndim - 1))
    p = g - direction * (direction * g).sum(axis=axes)
    b, _, size = _scaled_norm(p)
    size = size / b
    b = power_of_two(size + rms, ())  # squares stay within the range
    rms = np.sqrt(decay * (b * rms * (b * rms)) + (1 - decay) * (b * size * (b * size))) / b
    moved = w - angle * norm * _ratio((1 - decay**t) ** 0.5 * p, rms)
    _, scaled, length = _scaled_norm(moved)
    return scaled * (norm / length), rms


@_formula
def hyperball(w, g, learning_rate):
    """Return |w| N(w - eta |w| N(u)), N(z) = z/|z|, of a parameter as a whole (Wen et al., 2025).

    g: not a gradient, but the update u of an optimizer without decay.  A vector, such as a bias,
    takes the optimizer's own step, w - eta u.  Where u is 0, w stays.

    Raises ZeroNormError where |w| is 0, or becomes it.
    """
    if w.ndim < 2:
        return w - learning_rate * g
    norm, length = _length(w), _length(g)
    moved = w - learning_rate * norm * _ratio(g, length)
    after = _length(moved)
    if norm == 0 or after == 0:
        raise ZeroNormError(
            f"w: got weights of norm {norm} before the step and {after} after it, expected norms "
            "> 0, since w/|w| is kept: use other weights, or a smaller learning rate"
        )
    return moved * (norm / after)


@_formula
def normalize(w, norm):
    """Return w norm / |w|, unit by unit: "Normalizing Weights", section 5.5 of the paper.

    Raises ZeroNormError where a unit's weights are all 0.
    """
    expect_norm(norm, w)
    _, w, length = _scaled_norm(w)
    check_norm(length, *FIXED_NORM)
    return w * (norm / length)


FORMULAS = (
    *("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adadelta", "adam", "adamw"),
    *("sign_sgd", "normalized_sgd", "lars", "lion", "sgdp", "adamp", "muon"),
    *("rotational", "hyperball"),
)


def of_step(formula, w, g, states, hyper):
    """Return what `step` was given as the arguments of a formula: {name: array} and {name: number}.

    Raises ValueError for an unknown formula, TypeError for arguments that it does not take.
    """
    if formula not in FORMULAS:
        raise ValueError(f"formula: got {formula!r}, expected one of {', '.join(FORMULAS)}")
    if not isinstance(states, (tuple, list)):
        raise TypeError(f"states: got {type(states).__name__}, expected a tuple of arrays")
    signature = _signature(globals()[formula])
    try:
        given = signature.bind(w, g, *states, **hyper).arguments
    except TypeError as error:
        raise TypeError(
            f"{formula}: got {len(states)} states and {', '.join(hyper) or 'nothing else'} "
            f"({error}), expected {formula}{signature}"
        ) from None
    arrays = {name: value for name, value in given.items() if name in ARRAYS}
    return arrays, {n: _number(n, value) for n, value in given.items() if n not in ARRAYS}


def _number(name, value):
    """Return what stands for a number, or for an array of them; refuse what is neither."""
    if name == "t":
        expect_integer("t", value, 1)
    if isinstance(value, (tuple, list)):
        value = np.asarray(value)
    wrong = value is None or isinstance(value, (bool, str, bytes, dict))
    if wrong or (isinstance(value, float) and not np.isfinite(value)):
        raise ValueError(f"{name}: got {value!r}, expected a finite number, or an array of them")
    return value


def step(formula, w, g, states=(), **hyper):
    """Return the new w of a formula, by name, and the new states where it has any.

    formula: of `FORMULAS`.  states: its arrays of state, in the order of its arguments.  hyper: t,
    where it counts steps, and its hyper-parameters.

    >>> step("momentum", np.ones(2), np.ones(2), (np.zeros(2),), learning_rate=0.5, momentum=0.9)
    (array([0.5, 0.5]), array([1., 1.]))
    """
    arrays, hyper = of_step(formula, w, g, states, hyper)
    return globals()[formula](**arrays, **hyper)
