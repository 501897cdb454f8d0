"""The claims in a test suite of your own: `pytest -p theory.pytest_plugin`, or import from here.

    parametrize_with_claims     a test for each claim that fits each subject
    assert_gradient, assert_claim, assert_optimizer    also as fixtures
    powers_of_two, invariance_groups                   strategies of hypothesis

There is no entry point: no test run imports this unasked.  What a test needs is imported when it is
used.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pytest


class Check(NamedTuple):
    """One claim on one subject; a call raises AssertionError unless it is verified."""

    subject: str
    claim: str
    run: Callable[[], None]

    def __call__(self) -> None:
        __tracebackhide__ = True
        self.run()

    def __repr__(self) -> str:
        return f"<{self.claim} on {self.subject}>"


def parametrize_with_claims(
    subjects: Mapping[str, Any],
    *,
    claims: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> pytest.MarkDecorator:
    """Return the mark that runs a test, which takes `check`, for each claim on each subject.

    subjects: {name: subject}; a subject is (loss_and_grad, w), or (loss_and_grad, w, options of
    theory.verify), or (minimal_nn Network, X, targets), or (PyTorch module, loss, X, y), of which
    each normalizing layer is a claim of theory.torch.verify.  claims: ids, by default all that fit.
    expected_failures: {"subject-claim" or "claim": why}, which must fail; they are reported as
    xfailed.  The tests' ids are "subject-claim".

    Raises ValueError for no subject, for claims that fit none, and for an expected failure that no
    test has the id of; TypeError for a subject of another kind.
    """
    if isinstance(claims, str):
        raise TypeError(f"claims: got the string {claims!r}, expected a list of claims")
    for argument, given in (("subjects", subjects), ("expected_failures", expected_failures)):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"{argument}: got a {type(given).__name__}, expected a dict by names")
    if not subjects:
        raise ValueError("subjects: got none, expected at least one")
    wanted = None if claims is None else tuple(claims)
    expected, params = dict(expected_failures or {}), []
    met: set[str] = set()
    fitting: set[str] = set()
    for name, subject in subjects.items():
        checks = _checks(name, subject)
        fitting.update(check.claim for check in checks)
        chosen = [check for check in checks if wanted is None or check.claim in wanted]
        if not chosen:
            raise ValueError(
                f"claims: got {', '.join(wanted or ())}, expected some of "
                f"{', '.join(check.claim for check in checks)} for {name!r}"
            )
        for check in chosen:
            id = f"{name}-{check.claim}"
            known = [key for key in (id, check.claim) if key in expected]
            met.update(known)
            marks = [
                pytest.mark.xfail(reason=expected[key], strict=True, raises=AssertionError)
                for key in known[:1]
            ]
            params.append(pytest.param(check, id=id, marks=marks))
    strange = [claim for claim in wanted or () if claim not in fitting]
    if strange:
        raise ValueError(
            f"claims: got {', '.join(strange)}, expected some of {', '.join(sorted(fitting))}"
        )
    if expected.keys() - met:
        raise ValueError(
            f"expected_failures: got {', '.join(sorted(expected.keys() - met))}, expected ids of "
            "these tests, or claims"
        )
    return pytest.mark.parametrize("check", params)


def _checks(name, subject):
    """Return the Checks of a subject, without running anything."""
    if not isinstance(subject, (tuple, list)) or not 2 <= len(subject) <= 4:
        raise TypeError(
            f"subjects: got {type(subject).__name__} as {name!r}, expected a tuple (loss_and_grad, "
            "w), (Network, X, targets) or (module, loss, X, y)"
        )
    first, *rest = subject
    if hasattr(first, "named_modules"):
        _expect_parts(name, subject, "(module, loss, X, y)", 4)
        return _of_module(name, first, *rest)
    from minimal_nn import Network

    if isinstance(first, Network):
        _expect_parts(name, subject, "(Network, X, targets)", 3)
        return _of_network(name, first, *rest)
    callable_form = "(loss_and_grad, w) or (loss_and_grad, w, {option: value})"
    _expect_parts(name, subject, callable_form, 2, 3)
    if not callable(first) or not isinstance((rest[1:] or [{}])[0], Mapping):
        raise TypeError(f"subjects: got {subject!r} as {name!r}, expected {callable_form}")
    from theory.yours.verification import ON_CALLABLE

    return [Check(name, id, _on_callable(name, id, first, *rest)) for id in ON_CALLABLE]


def _expect_parts(name, subject, form, *counts):
    if len(subject) not in counts:
        raise TypeError(f"subjects: got {len(subject)} parts as {name!r}, expected {form}")


def _on_callable(name, id, loss_and_grad, w, options=None):
    def run():
        __tracebackhide__ = True
        if id == "gradient-of-loss":
            assert_gradient(loss_and_grad, w, name=name)
        else:
            assert_claim(loss_and_grad, w, id, name=name, **(options or {}))

    return run


def _of_network(name, network, X, targets):
    from theory.yours.networks import ON_NETWORKS, claims_on

    def runs(id):
        def run():
            __tracebackhide__ = True
            (verdict,) = claims_on(network, X, targets, claims=[id], name=name)
            if not verdict:
                raise AssertionError(f"{verdict}: {verdict.claim.statement}")

        return run

    return [Check(name, id, runs(id)) for id in ON_NETWORKS]


def _of_module(name, module, loss, X, y):
    import theory.torch
    from theory.yours.real_layers import normalizing_layers

    verdicts = []

    def runs(layer):
        def run():
            __tracebackhide__ = True
            if not verdicts:
                verdicts.extend(theory.torch.verify(module, loss, X, y))
            (verdict,) = (verdict for verdict in verdicts if verdict.layer == layer)
            if not verdict:
                raise AssertionError(str(verdict))

        return run

    layers = normalizing_layers(module)
    if not layers:
        raise ValueError(f"subjects: got {name!r} without a normalizing layer, expected some")
    return [Check(name, layer, runs(layer)) for layer in layers]


def assert_gradient(
    loss_and_grad: Callable[[Any], tuple[Any, Any]], w: Any, **options: Any
) -> None:
    """Raise AssertionError unless the gradient is the loss's: theory.assert_gradient."""
    __tracebackhide__ = True
    from theory.yours import assertions

    assertions.assert_gradient(loss_and_grad, w, **options)


def assert_claim(
    loss_and_grad: Callable[[Any], tuple[Any, Any]], w: Any, claim: str, **options: Any
) -> None:
    """Raise AssertionError unless a claim holds on a loss: theory.assert_claim."""
    __tracebackhide__ = True
    from theory.yours import verification

    verification.assert_claim(loss_and_grad, w, claim, **options)


def assert_optimizer(make: Callable[..., Any], problem: Any = None, **options: Any) -> None:
    """Raise AssertionError unless an optimizer's symmetry is verified: theory.assert_optimizer."""
    __tracebackhide__ = True
    from theory.yours import assertions

    assertions.assert_optimizer(make, problem, **options)


@pytest.fixture(name="assert_gradient", scope="session")
def _assert_gradient():
    return assert_gradient


@pytest.fixture(name="assert_claim", scope="session")
def _assert_claim():
    return assert_claim


@pytest.fixture(name="assert_optimizer", scope="session")
def _assert_optimizer():
    return assert_optimizer


def powers_of_two(low: int = -20, high: int = 20) -> Any:
    """Return the strategy of hypothesis for 2^k, low <= k <= high, as floats.

    Scaling by them rounds nothing, as long as nothing over- or underflows.
    """
    from hypothesis import strategies

    return strategies.integers(low, high).map(lambda k: 2.0**k)


def invariance_groups(shape: tuple[int, ...]) -> Any:
    """Return the strategy of hypothesis for the `groups` of an array of theory.verify.

    The whole, the columns and rows, an axis, or masks that do not overlap.
    """
    import numpy as np
    from hypothesis import strategies

    size = int(np.prod(shape))

    def masks(labels):
        labels = np.reshape(labels, shape)
        return [labels == label for label in np.unique(labels[labels > 0])]

    labels = strategies.lists(strategies.integers(0, 3), min_size=size, max_size=size)
    named = ["whole", "columns", "rows", *range(len(shape))]
    return strategies.sampled_from(named) | labels.filter(any).map(masks)
