"""Every arithmetic runs the reference wing's own lines, and catches a fault in them."""

import importlib
import itertools
import sys

import numpy as np
import pytest

from minimal_nn import backend, gradcheck
from theory import __main__ as command
from theory.claim import CLAIMS
from theory.measures.identity import Identity, evaluate
from theory.numbers import arithmetic
from theory.numbers.bounded import Bounded
from theory.numbers.jet import Jet
from theory.numbers.ladder import LADDER_BITS, ladder
from theory.subjects.exact import ball_subject, symbol_subject
from theory.subjects.networks import NORMALIZATIONS, Options

WING = backend.get("reference")


def faulty(name, text, replacement):
    """Return the reference wing's module `name` with one edit of its source."""
    module = getattr(WING, name)
    spec = importlib.util.find_spec(module.__name__)
    with open(spec.origin, encoding="utf-8") as file:
        source = file.read()
    assert source.count(text) == 1
    fresh = type(module)(f"faulty {name}")
    sys.modules[fresh.__name__] = fresh
    exec(compile(source.replace(text, replacement), spec.origin, "exec"), vars(fresh))
    return fresh


FAULTS = {
    "batchnorm": (" - normalized * (dgamma / n))", ")"),
    "layernorm": (" - normalized * mean_ah) / std", ") / std"),
    "rmsnorm": ("(a - normalized * mean_ah)", "a"),
    "groupnorm": (" - h * _mean(a * h)) / cache.std", ") / cache.std"),
    "weightnorm": ("(dW - cache.direction * dg)", "dW"),
}


@pytest.fixture(params=FAULTS)
def norm(request):
    return request.param


def without_variance_term(norm):
    return faulty(norm, *FAULTS[norm])


# The ladder


@pytest.fixture(scope="module")
def rungs():
    return ladder()


def test_the_ladder_spans_float16_to_a_thousand_bits(rungs):
    assert [(r.arithmetic, r.bits) for r in rungs[:3]] == [
        ("float16", 11),
        ("float32", 24),
        ("float64", 53),
    ]
    assert [(r.arithmetic, r.bits) for r in rungs[4:]] == [("ball", bits) for bits in LADDER_BITS]


def test_what_is_left_is_rounding_in_every_arithmetic(rungs):
    medians = [rung.median for rung in rungs]
    assert max(medians) <= 16 * min(medians), medians


def test_balls_of_the_ladder_enclose_zero(rungs):
    balls = [rung for rung in rungs if rung.arithmetic == "ball"]
    assert all(rung.enclosed and rung.radius >= rung.median for rung in balls)


def test_with_eps_the_ladder_grows_as_the_inverse_of_u():
    rungs = ladder(seeds=range(3), eps=0.5)
    residuals = [np.log2(rung.median) + np.log2(rung.unit_roundoff) for rung in rungs]
    assert np.ptp(residuals) <= 1  # the residual itself is the same everywhere
    assert not any(rung.enclosed for rung in rungs)


def test_the_ladder_sees_a_forgotten_term(monkeypatch):
    wing = backend.get("reference")
    mutant = without_variance_term("batchnorm")
    monkeypatch.setattr(wing.batchnorm, "backward", mutant.backward)
    medians = [r.median for r in ladder(seeds=range(3), bits=(200,))]
    assert max(medians) > 16 * min(medians)


def test_float16_accumulates_in_float32_where_the_note_says_so(rng):
    A, B = (rng.standard_normal(shape).astype(np.float16) for shape in ((32, 200), (200, 4)))
    assert np.array_equal(A @ B, (A.astype(float) @ B.astype(float)).astype(np.float16))
    assert np.array_equal(A.sum(axis=-1), A.astype(float).sum(axis=-1).astype(np.float16))
    over_batch = B.astype(float).sum(axis=0).astype(np.float16)
    assert not np.array_equal(B.sum(axis=0), over_batch)


# Balls


@pytest.mark.parametrize(
    "id",
    [
        pytest.param(id, marks=pytest.mark.slow) if id == "optimizer-symmetry" else id
        for id, claim in CLAIMS.items()
        if "ball" not in claim.unfit
    ],
)
def test_claims_enclose_zero_in_balls(id):
    for subject in CLAIMS[id].subjects(Options(arithmetic="ball", bits=1000)):
        verdict = CLAIMS[id].verify(subject)
        assert verdict.verified, str(verdict)
        assert verdict.measurement.details["largest radius"] < 1e-200
        excluding, of = verdict.measurement.details["control's enclosures that exclude 0"]
        assert 0 < excluding <= of


def test_radius_follows_the_precision():
    def radius(bits):
        subject = ball_subject("batch", bits)
        verdict = CLAIMS["gradient-orthogonality"].verify(subject)
        assert verdict.verified, str(verdict)
        return verdict.measurement.details["largest radius"]

    # 1900 bits more, and below the range of a double; rounding of radii leaves a few bits of play.
    assert np.log2(radius(100)) - np.log2(radius(2000)) == pytest.approx(1900, abs=8)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_balls_exclude_zero_when_the_variance_term_is_dropped(normalization, monkeypatch):
    name = f"{normalization}norm"
    subject = ball_subject(normalization, bits=200)
    mutant = without_variance_term(name)
    monkeypatch.setattr(getattr(WING, name), "backward", mutant.backward)
    assert not CLAIMS["gradient-orthogonality"].verify(subject).holds


def test_balls_that_contain_zero_are_refused_by_relu():
    balls = arithmetic.Balls(100)
    with balls.working():
        around_zero = balls.array([1.0]) / 3 - balls.array([2.0]) / 6
        with pytest.raises(ValueError, match="neither > 0 nor <= 0"):
            WING.activation.forward(around_zero, "relu")


def test_enclosures_that_are_too_wide_to_tell_do_not_verify():
    subject = ball_subject("layer", bits=24)

    def wide(subject):
        third = 1 / subject.numbers.number(3)
        ball = np.array([(third - third) * 2**24])  # 0 +- 1 or so: contains 0, and says nothing
        identity = Identity()
        identity.vanishes(ball)
        identity.remains(ball)
        return identity

    measurement = evaluate(wide, subject)
    assert 0 <= measurement.measured <= measurement.bound
    assert not measurement.control > measurement.bound


# Symbols: the backward formulas equal SymPy's derivatives of the forward formulas


def derivatives(symbols, y, dy, variables):
    """Return SymPy's derivative of <dy, y> by each variable, as an array of Expressions."""
    total = (y * dy).sum().expression
    results = [symbols.wrap(total.diff(v.expression)) for v in variables.ravel()]
    array = np.empty(len(results), dtype=object)
    array[:] = results
    return array.reshape(variables.shape)


def normalization_case(norm, module, signs=None):
    """Return (symbols, differences between backward and derivative) for small shapes."""
    symbols = arithmetic.Symbols(signs)
    eps = symbols.variables("eps", positive=True)
    if norm == "weightnorm":
        v, g, dW = (symbols.variables(n, s) for n, s in (("v", (2, 2)), ("g", (2,)), ("d", (2, 2))))
        W, cache = module.forward(v, g, eps)
        dv, dg = module.backward(dW, cache)
        pairs = [(dv, derivatives(symbols, W, dW, v)), (dg, derivatives(symbols, W, dW, g))]
    else:
        shape = {"batchnorm": (3, 1), "groupnorm": (1, 4)}.get(norm, (1, 3))
        units = shape[1:]
        z, dy = symbols.variables("z", shape), symbols.variables("d", shape)
        names = ("gamma",) if norm == "rmsnorm" else ("gamma", "beta")
        arguments = z, *(symbols.variables(name, units) for name in names)
        groups = (2,) if norm == "groupnorm" else ()
        y, cache = module.forward(*arguments, *groups, eps)
        gradients = module.backward(dy, cache)
        pairs = [
            (gradient, derivatives(symbols, y, dy, variables))
            for gradient, variables in zip(gradients, arguments, strict=True)
        ]
    return symbols, [a - b for a, b in pairs]


def test_backward_equals_sympys_derivative_identically(norm):
    symbols, differences = normalization_case(norm, getattr(WING, norm))
    for difference in differences:
        assert symbols.vanish(difference).all()


def test_symbols_see_the_forgotten_variance_term(norm):
    symbols, (difference, *_) = normalization_case(norm, without_variance_term(norm))
    assert not symbols.vanish(difference).any()


@pytest.mark.parametrize("signs", list(itertools.product([True, False], repeat=4)))
def test_relu_layer_equals_sympys_derivative_for_each_sign_pattern(signs):
    symbols = arithmetic.Symbols(signs)
    x, W, b, dy = (
        symbols.variables(name, shape)
        for name, shape in (("x", (2, 2)), ("w", (2, 2)), ("b", (2,)), ("d", (2, 2)))
    )
    z, affine_cache = WING.affine.forward(x, W, b)
    y, cache = WING.activation.forward(z, "relu")
    gradients = WING.affine.backward(WING.activation.backward(dy, cache), affine_cache)
    if not any(signs):
        assert not np.any(y)
        return
    for gradient, variables in zip(gradients, (x, W, b), strict=True):
        assert symbols.vanish(gradient - derivatives(symbols, y, dy, variables)).all()


@pytest.mark.parametrize("kind", ["cross_entropy", "mean_squared_error"])
def test_loss_gradient_equals_sympys_derivative(kind):
    symbols = arithmetic.Symbols()
    scores = symbols.variables("s", (2, 2))
    targets = np.array([0, 1])
    if kind == "mean_squared_error":
        targets = symbols.variables("t", (2, 2))
    value, cache = WING.loss.forward(scores, targets, kind)
    gradient = WING.loss.backward(1, cache)
    assert symbols.vanish(gradient - derivatives(symbols, np.array([value]), 1, scores)).all()


def test_tanh_gradient_equals_sympys_derivative():
    symbols = arithmetic.Symbols()
    z, dy = symbols.variables("z", (2,)), symbols.variables("d", (2,))
    y, cache = WING.activation.forward(z, "tanh")
    assert symbols.vanish(
        WING.activation.backward(dy, cache) - derivatives(symbols, y, dy, z)
    ).all()


IN_SYMBOLS = [id for id, claim in CLAIMS.items() if "symbol" not in claim.unfit]
QUICK_SYMBOLS = (
    *("scale-invariance", "penalty-rescaling", "eps-rescaling", "gradient-orthogonality"),
    *("gauss-newton-null", "equilibrium-norm", "equilibrium-angle", "relaxation-time"),
    *("equilibrium-rate", "growth-law", "norm-with-memory"),
)


@pytest.mark.parametrize("id", QUICK_SYMBOLS)
def test_claims_simplify_to_zero(id):
    subjects = CLAIMS[id].subjects(Options(arithmetic="symbol"))
    assert len(subjects) >= 3
    for subject in subjects:
        verdict = CLAIMS[id].verify(subject)
        assert verdict.verified, str(verdict)


@pytest.mark.parametrize("id", [id for id in IN_SYMBOLS if id not in QUICK_SYMBOLS])
@pytest.mark.parametrize(
    "normalization",
    [
        "weight",
        pytest.param("batch", marks=pytest.mark.slow),
        *(pytest.param(n, marks=pytest.mark.nightly) for n in ("layer", "rms")),
    ],
)
def test_longer_claims_simplify_to_zero(id, normalization):
    verdict = CLAIMS[id].verify(symbol_subject(normalization))
    assert verdict.verified, str(verdict)


# Floats: complex step, jets


def operations(rng):
    """Return (name, forward, backward, arguments) for the operations of small networks."""
    z, K = rng.standard_normal((6, 4)), 4
    gamma, beta = rng.standard_normal((2, K))
    targets = rng.integers(0, K, 6)
    W = rng.standard_normal((4, 3))
    yield "affine", WING.affine.forward, WING.affine.backward, (z, W, beta[:3])
    for name, arguments in (
        *(("batchnorm", (z, gamma, beta)), ("layernorm", (z, gamma, beta))),
        ("rmsnorm", (z, gamma)),
    ):
        module = getattr(WING, name)
        for eps in (0.0, 1e-5, 0.5):
            yield (
                f"{name} eps={eps}",
                lambda *a, module=module, eps=eps: module.forward(*a, eps),
                module.backward,
                arguments,
            )
    yield (
        "groupnorm",
        lambda *a: WING.groupnorm.forward(*a, 2, 1e-5),
        WING.groupnorm.backward,
        (z, gamma, beta),
    )
    yield (
        "weightnorm",
        lambda v, g: WING.weightnorm.forward(v, g, 0.0),
        WING.weightnorm.backward,
        (z, gamma),
    )
    mean, var = rng.standard_normal(K), rng.random(K) + 0.5
    yield (
        "batchnorm, running",
        lambda z, *a: WING.batchnorm.forward_running(
            z, *a, mean.astype(z.real.dtype), var.astype(z.real.dtype), 1e-5
        ),
        WING.batchnorm.backward_running,
        (z, gamma, beta),
    )
    for kind in ("relu", "tanh"):
        yield (
            kind,
            lambda z, kind=kind: WING.activation.forward(z, kind),
            WING.activation.backward,
            (z,),
        )
    yield (
        "cross-entropy",
        lambda s: WING.loss.forward(s, targets, "cross_entropy"),
        WING.loss.backward,
        (z,),
    )
    expected = rng.standard_normal(z.shape)
    yield (
        "mean squared error",
        lambda s: WING.loss.forward(s, expected.astype(s.real.dtype), "mean_squared_error"),
        WING.loss.backward,
        (z,),
    )


def image_operations(rng):
    """Return those that put their inputs into arrays of their own, which hold plain numbers."""
    image, kernel = rng.standard_normal((2, 4, 4, 2)), rng.standard_normal((3, 3, 2, 2))
    convolution, bias = WING.convolution, rng.standard_normal(2)
    yield "convolution", convolution.forward, convolution.backward, (image, kernel, bias)
    yield "pooling", lambda x: WING.pooling.forward(x, 2), WING.pooling.backward, (image,)


def bounded_backward(forward, backward, arguments, dy):
    """Return the running error bounds of the gradients."""
    _, cache = forward(*(Bounded(a) for a in arguments))
    gradients = backward(Bounded(dy), cache)
    return [g.error for g in (gradients if isinstance(gradients, tuple) else (gradients,))]


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
def test_every_backward_pass_agrees_with_the_complex_step(dtype, rng):
    bounded = [(*case, bounded_backward) for case in operations(rng)]
    plain = [
        (*case, lambda f, b, arguments, dy: [0] * len(arguments)) for case in image_operations(rng)
    ]
    for name, forward, backward, arguments, error_bounds in (*bounded, *plain):
        arguments = [a.astype(dtype) for a in arguments]
        y, cache = forward(*arguments)
        dy = np.asarray(rng.standard_normal(np.shape(y))).astype(dtype)
        gradients = backward(dy, cache)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        errors = error_bounds(forward, backward, arguments, dy)
        for k, (gradient, error) in enumerate(zip(gradients, errors, strict=True)):

            def total(moved, k=k, arguments=arguments, dy=dy, forward=forward):
                held = list(arguments)
                held[k] = moved
                return (forward(*held)[0] * dy).sum()

            derivative = gradcheck.complex_step(total, arguments[k].astype(np.longdouble))
            allowed = np.maximum(16 * np.finfo(dtype).eps * np.abs(derivative).max(), error)
            assert np.all(np.abs(gradient - derivative) <= allowed), name


def test_the_complex_step_sees_the_forgotten_variance_term(norm, rng):
    mutant = without_variance_term(norm)
    (case,) = [c for c in operations(rng) if c[0] in (norm, f"{norm} eps=0.5")]
    _, forward, _, arguments = case
    result = gradcheck.check(forward, mutant.backward, list(arguments), rng)
    assert not result.ok


def test_jets_agree_with_the_complex_step(rng):
    for name, forward, _, arguments in operations(rng):
        directions = [rng.standard_normal(a.shape) for a in arguments]
        jet = forward(*(Jet(a, d) for a, d in zip(arguments, directions, strict=True)))[0]
        y = forward(*(a + 1e-200j * d for a, d in zip(arguments, directions, strict=True)))[0]
        expected = y.imag / 1e-200
        np.testing.assert_allclose(jet.tangent, expected, rtol=1e-13, atol=1e-14, err_msg=name)


def test_a_jet_of_balls_encloses_the_derivative():
    balls = arithmetic.Balls(300)
    with balls.working():
        x = balls.array([0.5, 2.0])
        jet = np.tanh(np.exp(Jet(x, balls.array([1.0, 1.0]))) / np.sqrt(Jet(x)))
        assert jet.tangent.shape == (2,)
        assert np.all(balls.radii(jet.tangent) < 1e-80)


SLOW_IN_LONGDOUBLE = {
    **dict.fromkeys(("effective-learning-rate", "optimizer-symmetry"), pytest.mark.nightly),
    **dict.fromkeys(("step-exponent", "lars-removes-scale", "adam-eps"), pytest.mark.slow),
}


@pytest.mark.parametrize(
    "id",
    [
        pytest.param(id, marks=SLOW_IN_LONGDOUBLE.get(id, ()))
        for id, claim in CLAIMS.items()
        if "longdouble" not in claim.unfit
    ],
)
def test_claims_hold_in_longdouble(id):
    """Also where the residual is added up in the arithmetic that is judged."""
    for subject in CLAIMS[id].subjects(Options(dtypes=("longdouble",))):
        verdict = CLAIMS[id].verify(subject)
        assert verdict.arithmetic == "longdouble" and verdict.verified, str(verdict)


@pytest.mark.parametrize("seed", range(3))
def test_claims_hold_in_float16(seed):
    fit = [claim for claim in CLAIMS.values() if "float16" not in claim.unfit]
    assert [claim.id for claim in fit] == [
        *("scale-invariance", "eps-rescaling", "gradient-orthogonality")
    ]
    for claim in fit:
        for subject in claim.subjects(Options(dtypes=("float16",), seed=seed)):
            verdict = claim.verify(subject)
            assert verdict.arithmetic == "float16" and verdict.verified, str(verdict)


@pytest.mark.parametrize("name", arithmetic.NAMES)
@pytest.mark.parametrize("id", CLAIMS)
def test_every_claim_runs_in_an_arithmetic_or_says_why_not(id, name):
    claim, exact = CLAIMS[id], name in ("ball", "symbol")
    options = Options(arithmetic=name, dtypes=(name,), bits=100)
    if name in claim.unfit:
        assert len(claim.unfit[name].split()) > 3
        assert claim.subjects(options) == []
        assert claim.left_out(options) == {name: claim.unfit[name]}
    else:
        assert claim.left_out(options) == {} and (claim.exact or not exact)
        if not exact:
            arithmetics = {subject.arithmetic for subject in claim.subjects(options)}
            assert arithmetics == {name}


def test_what_is_left_out_is_named_with_its_reason(capsys, tmp_path):
    path = tmp_path / "figures.json"
    arguments = ["--arithmetic", "float16", "--json", str(path), "--report", str(tmp_path)]
    assert command.main(arguments) == 0
    out, text = capsys.readouterr().out, path.read_text()
    page = (tmp_path / "index.html").read_text()
    for id, claim in CLAIMS.items():
        assert id in out and (id in text and id in page)
        for reason in filter(None, [claim.unfit.get("float16")]):
            assert reason in " ".join(out.split()) and reason in text
    assert all(len(line) <= 100 for line in out.splitlines()[:-1])


# The command and its words


def test_the_command_encloses_zero_at_a_thousand_bits(capsys):
    arguments = ["--arithmetic", "ball", "--bits", "1000", "--only", "gradient-orthogonality"]
    assert command.main([*arguments, "--table"]) == 0
    out = capsys.readouterr().out
    assert out.count("ball 1000") == 4 and "4 verified" in out
    assert all(len(line) <= 100 for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arithmetic", "ball", "--bits", "7"], "bits: got 7, expected 24"),
        (["--arithmetic", "ball", "--backend", "cpu"], "expected reference"),
        (
            ["--arithmetic", "ball", "--only", "step-exponent"],
            "is not run in ball: a fit over random",
        ),
        (["--dtype", "float32", "--only", "newton-step"], "complex steps are taken in complex128"),
    ],
)
def test_the_command_says_what_to_mend(arguments, words, capsys):
    assert command.main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("name", "module"), [("ball", "flint"), ("symbol", "sympy")])
def test_a_missing_package_is_one_sentence_with_the_command(name, module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"python -m pip install "):
        arithmetic.get(name)
    assert command.main(["--arithmetic", name]) == 2
    assert "pip install" in capsys.readouterr().err


def test_unknown_arithmetic_and_bits_are_refused():
    with pytest.raises(ValueError, match="arithmetic: got 'half'"):
        arithmetic.get("half")
    with pytest.raises(TypeError, match="bits: got 3.5"):
        arithmetic.Balls(3.5)
