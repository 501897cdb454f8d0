"""What claims measure with: the residual closest to its bound, sums over groups, exact forms."""

import math

import numpy as np
import pytest

from theory.claim import CLAIMS, claim
from theory.measures.bits import Search
from theory.measures.closest import Closest
from theory.measures.groups import group_sum
from theory.measures.identity import Identity
from theory.measures.measurement import Measurement
from theory.subjects.exact import ball_subject
from theory.subjects.networks import Options


def closest_of(*offers):
    closest = Closest()
    for residual, bound in offers:
        closest.offer(residual, bound)
    return closest.residual, closest.bound


def test_the_closest_is_that_with_the_largest_quotient_however_offers_are_cut(rng):
    residual, bound = rng.random((2, 40))
    at = int(np.argmax(residual / bound))
    expected = (residual[at], bound[at])
    assert closest_of((residual, bound)) == expected
    assert closest_of(*zip(np.split(residual, 8), np.split(bound, 8), strict=True)) == expected
    assert closest_of(*zip(residual, bound, strict=True)) == expected
    square = residual.reshape(5, 8), bound.reshape(5, 8)
    assert closest_of(square) == expected


def test_a_residual_above_a_bound_of_0_is_the_closest_and_0_above_0_is_not():
    assert closest_of(([1.0, 1e-300, 0.0], [1.0, 0.0, 0.0]), (5.0, 1.0)) == (1e-300, 0.0)
    assert closest_of((0.0, 0.0), (0.5, 1.0)) == (0.5, 1.0)
    assert closest_of((0.0, 3.0), (0.0, 7.0)) == (0.0, 3.0)


def test_a_nan_is_kept_so_that_it_verifies_nothing():
    residual, _ = closest_of((0.1, 1.0), ([0.2, math.nan], [1.0, 1.0]), (0.9, 1.0))
    assert math.isnan(residual)


def test_sums_over_groups_are_taken_in_longdouble(rng):
    arrays = [rng.standard_normal((3, 5, 4)).astype(np.float32), rng.standard_normal((1, 4))]
    wide = [array.astype(np.longdouble) for array in arrays]
    whole, each = group_sum(arrays, False), group_sum(arrays, True)
    assert whole.shape == (1,) and each.shape == (4,)
    assert whole.dtype == each.dtype == np.longdouble
    assert whole[0] == wide[0].sum() + wide[1].sum()
    assert np.array_equal(each, wide[0].sum(axis=(0, 1)) + wide[1].sum(axis=0))


def test_a_search_keeps_what_all_of_its_functions_have_in_common():
    search = Search(4, 100)
    search.run(lambda k: int(not -30 <= k <= 60))
    search.run(lambda k: int(not -50 <= k <= 20))
    search.run(lambda k: 0, limit=10)
    assert (search.wrong, search.low, search.high) == (0, -10, 10)
    m = search.measurement(3, steps=2)
    assert (m.measured, m.bound, m.control) == (0, 0, 3)
    assert m.details == {"exact for k": [-10, 10], "steps": 2}


@pytest.fixture
def own_claim():
    """A claim of one's own, taken out of the registry afterwards."""
    fields = dict.fromkeys(("statement", "source", "cite", "control", "derivation"), "x")
    own = claim(id="own", assumptions=("none",), **fields)(
        lambda subject: Measurement(0.0, 1.0, "so", 2.0, 1.0)
    )
    yield own
    del CLAIMS["own"]


def test_a_claim_has_its_exact_form_beside_it_or_says_that_it_has_none(own_claim):
    options = Options(arithmetic="ball", bits=100)
    assert own_claim.subjects(options) == []
    assert own_claim.left_out(options) == {"ball": "it has no exact form"}

    @own_claim.exactly(subjects=lambda options: [ball_subject("batch", options.bits)])
    def roots(subject):
        identity, two = Identity(), subject.numbers.number(2)
        identity.vanishes(np.array([two.sqrt() * two.sqrt() - 2]))
        identity.remains(np.array([two.sqrt() * two.sqrt() - 3]))
        return identity

    assert own_claim.left_out(options) == {}
    (subject,) = own_claim.subjects(options)
    verdict = own_claim.verify(subject)
    assert verdict.word == "holds" and verdict.arithmetic == "ball 100", verdict
