"""The claims: verified on every built-in subject, within tight bounds, refuted by faults."""

import dataclasses
import sys

import numpy as np
import pytest

from minimal_nn.reference import batchnorm
from theory import CLAIMS, Claim, Measurement, Verdict, select
from theory.claim import claim
from theory.measures.bits import LEAST_RANGE, Search, differing, exact_range
from theory.subjects.networks import DTYPES, IMAGES, NORMALIZATIONS, Options, network_subject

SPINE = (
    "scale-invariance",
    "penalty-rescaling",
    "eps-rescaling",
    "gradient-scaling",
    "gradient-orthogonality",
    "effective-learning-rate",
    "norm-growth",
)
BIT_EXACT = tuple(id for id in SPINE if id not in ("gradient-orthogonality", "norm-growth"))
ROUNDED = ("gradient-orthogonality", "norm-growth")
SUBJECTS = pytest.mark.parametrize(
    "normalization, dtype",
    [*((n, d) for n in NORMALIZATIONS for d in DTYPES), (IMAGES, "float32")],
)


@pytest.fixture(autouse=True)
def loose_floating_point():
    """Claims search for the k at which numbers over- and underflow."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def fresh_subjects():
    """Subjects trained anew: those of a faulty wing must not be kept."""
    network_subject.cache_clear()
    yield
    network_subject.cache_clear()


# They hold


@SUBJECTS
@pytest.mark.parametrize("id", SPINE)
def test_it_is_verified(id, normalization, dtype):
    verdict = CLAIMS[id].verify(network_subject(normalization, dtype))
    assert verdict.verified and verdict.word == "holds", verdict
    if id in BIT_EXACT:
        assert (verdict.measurement.measured, verdict.measurement.bound) == (0, 0)
        low, high = verdict.measurement.details["exact for k"]
        assert min(-low, high) >= LEAST_RANGE[dtype]
    else:
        assert 0 < verdict.measurement.measured <= verdict.measurement.bound
    assert verdict.measurement.control > 0


def test_the_least_ranges_are_those_promised():
    assert LEAST_RANGE["float32"] >= 12 and LEAST_RANGE["float64"] >= 100


@pytest.fixture
def no_extras(monkeypatch):
    """What `make verify` has: the packages of the extras cannot be imported."""
    for package in ("flint", "sympy", "torch", "jax", "dask", "pooch"):
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.slow
@pytest.mark.parametrize("id", [id for id in CLAIMS if id not in SPINE])
def test_every_other_claim_is_verified_on_every_subject(id, no_extras):
    subjects = CLAIMS[id].subjects(Options())
    assert subjects
    for subject in subjects:
        verdict = CLAIMS[id].verify(subject)
        assert verdict.verified, verdict


@pytest.mark.parametrize("id", SPINE)
def test_another_seed_is_verified_too(id):
    for normalization in NORMALIZATIONS:
        verdict = CLAIMS[id].verify(network_subject(normalization, "float32", seed=7))
        assert verdict.verified, verdict


@pytest.mark.slow
@SUBJECTS
def test_the_bounds_are_tight(normalization, dtype):
    """At most 1000 times the largest residual over 8 seeds; the control at least 100 bounds."""
    found = {id: [] for id in (*ROUNDED, "penalty-rescaling")}
    for seed in range(8):
        subject = network_subject(normalization, dtype, seed=seed)
        for id, pairs in found.items():
            verdict = CLAIMS[id].verify(subject)
            assert verdict.verified, verdict
            measurement = verdict.measurement
            pair = measurement.measured, measurement.bound
            if id == "penalty-rescaling":  # its second half is the one that rounds
                pair = [measurement.details[f"infimum {name}"] for name in ("residual", "bound")]
            assert measurement.control >= 100 * pair[1]
            pairs.append(pair)
    for id, pairs in found.items():
        residuals, bounds = zip(*pairs, strict=True)
        assert max(bounds) <= 1000 * max(residuals), id


# They can fail


def without_the_variance_term(dy, cache):
    axes, n = tuple(range(dy.ndim - 1)), dy.size // dy.shape[-1]
    dbeta, dgamma = dy.sum(axis=axes), (dy * cache.normalized).sum(axis=axes)
    return (cache.gamma / cache.std) * (dy - dbeta / n), dgamma, dbeta


def without_gamma(dy, cache):
    axes, n = tuple(range(dy.ndim - 1)), dy.size // dy.shape[-1]
    dbeta, dgamma = dy.sum(axis=axes), (dy * cache.normalized).sum(axis=axes)
    return (dy - dbeta / n - cache.normalized * (dgamma / n)) / cache.std, dgamma, dbeta


def eps_outside_the_root(var, eps, what):
    return np.sqrt(var) + eps


def statistics_of_half_the_batch(z, gamma, beta, eps):
    """A forward pass that is not invariant: the mean is half of what it should be."""
    axes, n = tuple(range(z.ndim - 1)), z.size // z.shape[-1]
    mean = z.sum(axis=axes) / (2 * n) + 0.25
    centered = z - mean
    var = (centered * centered).sum(axis=axes) / n
    std = np.sqrt(var + eps)
    return (
        gamma * (centered / std) + beta,
        batchnorm.Cache(centered / std, gamma, std, mean, var),
    )


FAULTS = {
    "variance term": ("backward", without_the_variance_term, ROUNDED),
    "gamma": ("backward", without_gamma, ("gradient-orthogonality",)),
    "eps outside the root": ("standard_deviation", eps_outside_the_root, ("eps-rescaling",)),
    "a shifted mean": (
        "forward",
        statistics_of_half_the_batch,
        ("scale-invariance", "penalty-rescaling", "gradient-scaling", "effective-learning-rate"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch, fresh_subjects):
    function, faulty, ids = FAULTS[fault]
    monkeypatch.setattr(batchnorm, function, faulty)
    for id in ids:
        for dtype in DTYPES:
            verdict = CLAIMS[id].verify(network_subject("batch", dtype, epochs=1))
            assert not verdict.verified, verdict


@SUBJECTS
@pytest.mark.parametrize("id", ROUNDED)
def test_a_gradient_that_is_a_little_wrong_is_found(id, normalization, dtype, monkeypatch):
    """One entry of each gradient off by its 1000th part, of the norm: far above the bound."""
    subject = network_subject(normalization, dtype)
    kind = type(subject.network)
    original = kind.trace

    def trace(self, *arguments, **options):
        result = original(self, *arguments, **options)
        gradients = {name: g.copy() for name, g in result.gradients.items()}
        for g in gradients.values():
            g[(0,) * g.ndim] += g.dtype.type(1e-2 * np.sqrt((g * g).sum()))
        return result._replace(gradients=gradients)

    monkeypatch.setattr(kind, "trace", trace)
    verdict = CLAIMS[id].verify(subject)
    assert not verdict.holds and verdict.word == "FAILS", verdict


@pytest.mark.parametrize("id", ("scale-invariance", "gradient-scaling", "effective-learning-rate"))
def test_eps_breaks_what_needs_eps_0(id):
    verdict = CLAIMS[id].verify(network_subject("batch", "float32").with_eps(0.5))
    assert verdict.word == "FAILS", verdict


@pytest.mark.parametrize("id", ("scale-invariance", "gradient-scaling"))
def test_a_claim_whose_control_holds_proves_nothing(id):
    subject = network_subject("batch", "float32")
    verdict = CLAIMS[id].verify(subject)
    powerless = dataclasses.replace(verdict.measurement, control=0)
    verdict = dataclasses.replace(verdict, measurement=powerless)
    assert verdict.holds and not verdict.control_fails and not verdict.verified
    assert verdict.word == "CONTROL HOLDS"


# Verdicts and the registry


def verdict_of(**changes):
    fields = {"measured": 1.0, "bound": 2.0, "how": "so", "control": 9.0, "control_least": 5.0}
    return Verdict(
        CLAIMS["norm-growth"], "a subject", "float64", Measurement(**{**fields, **changes})
    )


def test_words():
    assert verdict_of().word == "holds"
    assert verdict_of(estimated=True).word == "holds (estimated)"
    assert verdict_of(measured=3.0).word == "FAILS"
    assert verdict_of(measured=3.0, leak=True).word == "leaks"
    assert verdict_of(control=4.0).word == "CONTROL HOLDS"
    assert verdict_of(control=1.5, control_least=1.0).word == "CONTROL HOLDS"  # below the bound
    assert verdict_of(control_as_predicted=False).word == "CONTROL HOLDS"
    assert verdict_of(control=None).verified


@pytest.mark.parametrize("field", ("measured", "bound", "control"))
def test_nan_verifies_nothing(field):
    assert not verdict_of(**{field: np.nan}).verified


def test_a_verdict_says_what_was_measured_against_what():
    text = str(verdict_of(measured=3.0))
    assert text == (
        "norm-growth on a subject (float64): FAILS: measured 3, bound 2 (so), control 9"
    )


@pytest.mark.parametrize("id", CLAIMS)
def test_every_claim_is_complete(id):
    c = CLAIMS[id]
    assert isinstance(c, Claim) and c.id == id
    for text in (c.statement, c.source, c.control, c.derivation, c.cite):
        assert text.strip()
    assert c.assumptions and all(isinstance(a, str) and a for a in c.assumptions)
    assert len(c.cite) <= 8 and len(id) <= 23  # the table's columns


def test_the_registry_is_in_the_papers_order_and_refuses_a_second_of_a_name():
    assert [id for id in CLAIMS if id in SPINE] == list(SPINE)
    assert [c.id for c in select(["norm-growth", "scale-invariance"])] == [SPINE[0], SPINE[-1]]
    assert select() == tuple(CLAIMS.values())
    fields = dict.fromkeys(("statement", "source", "cite", "control", "derivation"), "x")
    with pytest.raises(
        ValueError, match="id: the claim 'norm-growth' exists already, expected a new"
    ):
        claim(id="norm-growth", assumptions=(), **fields)(lambda subject: None)
    with pytest.raises(
        ValueError, match=r"claims: got \['no'\], expected some of gradient-of-loss, "
    ):
        select(["no"])


# Subjects and their tools


def test_a_subject_is_made_once_and_depends_on_its_seed():
    assert network_subject("batch", "float32") is network_subject("batch", "float32")
    one, other = (network_subject("batch", "float32", seed=seed) for seed in (0, 1))
    assert np.any(one.X != other.X)
    name = "dense1.W"
    assert np.any(one.network.parameters[name] != other.network.parameters[name])
    assert np.any(one.network.parameters[name] != one.untrained.parameters[name])


def test_training_helps():
    for normalization in NORMALIZATIONS:
        subject = network_subject(normalization, "float32")
        before, after = (n.loss(subject.X, subject.targets) for n in subject.states)
        assert after < 0.8 * before


def test_differing_compares_bits():
    a = np.array([0.0, 1.0, 2.0])
    assert differing(a, a) == 0
    assert differing(a, np.array([-0.0, 1.0, 2.0])) == 1
    assert differing(a, np.nextafter(a, 9)) == 3
    assert differing(np.array([np.nan]), np.array([np.nan])) == 1
    with pytest.raises(ValueError, match="expected the same"):
        differing(a, a.astype(np.float32))


@pytest.mark.parametrize("low, high", ((-20, 33), (-12, 12), (-100, 100), (-13, 99)))
def test_the_exact_range_is_found(low, high):
    def count(k):
        if k > 90 and high < 100:
            raise ValueError("overflow")
        return int(not low <= k <= high)

    found = exact_range(count, 12, 100)
    assert found == (0, low, min(high, 90) if high < 100 else 100)


@pytest.mark.parametrize("ends", ((-20, 33), (-70, 33), (-20, 90), (-40, 40)))
def test_what_all_searches_have_in_common_is_what_each_finds_alone(ends):
    """A later search asks no more than it must: the ends that are known, once each if exact."""
    ranges = ((-50, 60), ends, (-30, 45))
    search, asked = Search(12, 100), []
    for low, high in ranges:

        def count(k, low=low, high=high):
            asked.append(k)
            return int(not low <= k <= high)

        search.run(count)
    alone = [exact_range(lambda k, e=e: int(not e[0] <= k <= e[1]), 12, 100) for e in ranges]
    assert (search.low, search.high) == (max(a[1] for a in alone), min(a[2] for a in alone))
    assert search.wrong == 0
    before = len(asked)
    search.run(lambda k: asked.append(k) or 0)
    inner = [sign * k for k in (1, 6, 12) for sign in (1, -1)]
    assert asked[before:] == [*inner, search.low, search.high]


def test_a_range_that_is_too_small_is_counted():
    wrong, low, high = exact_range(lambda k: int(abs(k) > 8), 12, 100)
    assert wrong == 2 and low == high == 0
