"""theory.pytest_plugin: ids, messages, expected failures; the guide shows what is printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from test_readme import compare

import minimal_nn as nn
from theory import verify
from theory.pytest_plugin import (
    assert_claim,
    assert_gradient,
    assert_optimizer,
    invariance_groups,
    parametrize_with_claims,
    powers_of_two,
)
from theory.yours.networks import ON_NETWORKS
from theory.yours.verification import ON_CALLABLE

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "guide" / "testing.md"
# Of the output: how long it took
SECONDS = re.compile(r"in \d+\.\d+s( \(.*\))?")


def direction(w):
    """A function of the direction of w, with its gradient."""
    r = np.sqrt((w * w).sum())
    u = w / r
    g = np.roll(u, 1) + np.roll(u, -1)
    return (u * np.roll(u, 1)).sum(), (g - (g * u).sum() * u) / r


W = np.array([3.0, 1.0, 2.0, -1.5])


def shown():
    """The example file of the guide, and the output that it shows."""
    text = PAGE.read_text(encoding="utf-8")
    (source,) = re.findall(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (printed,) = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return source, printed


def run(folder, *options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "NO_COLOR": "1"}
    for name in ("CI", "BUILD_NUMBER"):  # where pytest's summary has whole messages
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "theory.pytest_plugin", "-p", "no:cacheprovider"]
        + ["-q", "--tb=short", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_guide_shows_what_its_example_prints(tmp_path):
    source, printed = shown()
    (tmp_path / "test_mine.py").write_text(source, encoding="utf-8")
    done = run(tmp_path)
    assert done.returncode == 1 and done.stderr == ""
    found, expected = (SECONDS.sub("in some time", text) for text in (done.stdout, printed))
    compare(found, expected, PAGE.name)
    for message in re.findall(r"^E .*?(?=^\w|^_|^=)", done.stdout, re.MULTILINE | re.DOTALL):
        assert len(message.splitlines()) < 10, message


@pytest.mark.slow
def test_fixtures_ids_and_expected_failures_that_do_not_fail(tmp_path):
    (tmp_path / "test_fixtures.py").write_text(
        "import numpy as np\n"
        "from theory.pytest_plugin import parametrize_with_claims\n"
        "def square(w): return (w * w).sum(), 2 * w\n"
        "def test_it(assert_gradient, assert_claim, assert_optimizer):\n"
        "    assert_gradient(square, np.ones(3))\n"
        "    assert_claim(square, np.ones(3), 'gradient-of-loss')\n"
        "@parametrize_with_claims({'a': (square, np.ones(3))}, claims=['gradient-of-loss'],\n"
        "                         expected_failures={'gradient-of-loss': 'no'})\n"
        "def test_claims(check): check()\n",
        encoding="utf-8",
    )
    done = run(tmp_path, "-vv")
    assert "test_fixtures.py::test_it PASSED" in done.stdout, done.stdout
    assert (
        "test_claims[a-gradient-of-loss] FAILED" in done.stdout and "XPASS(strict)" in done.stdout
    )


def ids(mark):
    return [parameter.id for parameter in mark.args[1]]


def test_an_id_for_each_claim_that_fits():
    network = nn.Network([nn.Dense(3), nn.BatchNorm(), nn.Dense(2)], (4,), dtype="float64")
    X, targets = np.random.default_rng(0).standard_normal((16, 4)), np.arange(16) % 2
    mark = parametrize_with_claims({"u": (direction, W), "net": (network, X, targets)})
    assert ids(mark) == [
        *(f"u-{id}" for id in ON_CALLABLE),
        *(f"net-{id}" for id in ON_NETWORKS),
    ]
    for parameter in mark.args[1][: len(ON_CALLABLE)]:
        (check,) = parameter.values
        check()
    chosen = parametrize_with_claims({"net": (network, X, targets)}, claims=["gradient-scaling"])
    (parameter,) = chosen.args[1]
    parameter.values[0]()
    assert repr(parameter.values[0]) == "<gradient-scaling on net>"


def test_expected_failures_are_strict_marks():
    mark = parametrize_with_claims(
        {"a": (direction, W), "b": (direction, W)},
        claims=["gradient-scaling"],
        expected_failures={"b-gradient-scaling": "why"},
    )
    free, marked = mark.args[1]
    assert not free.marks
    assert marked.marks[0].kwargs == {"reason": "why", "strict": True, "raises": AssertionError}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected_failures: got gradient-scalling"):
        parametrize_with_claims({"a": (direction, W)}, expected_failures={"gradient-scalling": ""})
    with pytest.raises(ValueError, match="claims: got scaling, expected some of gradient-of-loss"):
        parametrize_with_claims({"a": (direction, W)}, claims=["scaling"])
    with pytest.raises(TypeError, match="subjects: got function as 'a', expected a tuple"):
        parametrize_with_claims({"a": direction})
    with pytest.raises(ValueError, match="subjects: got none, expected at least one"):
        parametrize_with_claims({})
    for given in ([(direction, W)], (direction, W), direction, []):
        with pytest.raises(TypeError, match=f"subjects: got a {type(given).__name__}, expected"):
            parametrize_with_claims(given)
    with pytest.raises(TypeError, match="expected_failures: got a list, expected a dict"):
        parametrize_with_claims({"a": (direction, W)}, expected_failures=["gradient-scaling"])
    with pytest.raises(ValueError, match="claims: got scaling, expected some of effective"):
        parametrize_with_claims({"a": (direction, W)}, claims=["gradient-of-loss", "scaling"])
    with pytest.raises(TypeError, match="claims: got the string 'scaling', expected a list"):
        parametrize_with_claims({"a": (direction, W)}, claims="scaling")


@pytest.mark.parametrize(
    ("subject", "expected"),
    (
        ((nn.Network([nn.Dense(3)], (4,)), W), r"got 2 parts as 'a', expected \(Network, X, tar"),
        ((direction, W, {}, 1), r"got 4 parts as 'a', expected \(loss_and_grad, w\) or"),
        ((direction, W, 3), r"got .* as 'a', expected \(loss_and_grad, w\) or"),
        ((3.0, W), r"got .* as 'a', expected \(loss_and_grad, w\) or"),
    ),
)
def test_a_subject_of_other_parts_is_refused(subject, expected):
    with pytest.raises(TypeError, match=f"subjects: {expected}"):
        parametrize_with_claims({"a": subject})


def message(function, *arguments, **options):
    with pytest.raises(AssertionError) as caught:
        function(*arguments, **options)
    text = str(caught.value)
    assert len(text.splitlines()) < 10
    return text


def test_a_gradient_that_is_wrong_in_one_entry():
    def loss_and_grad(w):
        loss, g = direction(w)
        g = g.copy()
        g[2] = -g[2]
        return loss, g

    text = message(assert_gradient, loss_and_grad, W, name="mine")
    assert "on mine (float64): FAILS: off by" in text
    assert "1 of 4 entries tried are off" in text and "at [2]: gradient" in text
    gradient, quotient = map(float, re.search(r"gradient (\S+), .* (\S+)$", text).groups())
    assert quotient == pytest.approx(-gradient, rel=1e-3)


@pytest.mark.parametrize("factor", [0.5, 3.0, -1.0])
def test_a_gradient_of_wrong_length(factor):
    text = message(assert_gradient, lambda w: (direction(w)[0], factor * direction(w)[1]), W)
    assert f"the loss changes {1 / factor:.3g} times as much as the gradient says" in text


def test_messages_of_claims_and_optimizers():
    text = message(assert_claim, lambda w: ((w * w).sum(), 2 * w), W, "gradient-orthogonality")
    assert text.startswith("gradient-orthogonality on callable (float64): FAILS")
    text = message(assert_optimizer, nn.AdamW, expect={"nu": 1})
    assert text.startswith("AdamW        FAILS\n  why          nu is 0, expected 1")
    assert_optimizer(nn.AdamW, expect={"nu": 0})
    assert_gradient(direction, W)


@hypothesis.given(powers_of_two(-30, 30))
def test_powers_of_two(a):
    loss, gradient = direction(W)
    scaled_loss, scaled = direction(a * W)
    assert scaled_loss == loss and np.array_equal(a * scaled, gradient)


@hypothesis.given(invariance_groups((3, 2)))
@hypothesis.settings(max_examples=15, deadline=None)
def test_invariance_groups(groups):
    w = np.random.default_rng(0).standard_normal((3, 2))
    masks = groups if isinstance(groups, list) else None
    if masks is not None:
        assert sum(mask.astype(int) for mask in masks).max() == 1

    def constant(w):
        return 1.0, np.zeros_like(w)

    try:
        verdicts = verify(constant, w, groups=groups, claims=["scale-invariance"])
        assert verdicts[0].word == "CONTROL HOLDS"  # a constant, which tells nothing
    except ValueError as error:
        raise AssertionError(f"groups {groups!r} were refused: {error}") from None


@pytest.mark.parametrize("name", ["residual", "group norm", "qk norm", "weight norm"])
def test_the_layers_of_real_architectures(name):
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    from foreign_models import make

    module, loss, X, y = make(name, 0)
    mark = parametrize_with_claims({name: (module, loss, X, y)})
    assert len(mark.args[1]) >= 2 and all(id.startswith(f"{name}-") for id in ids(mark))
    for parameter in mark.args[1]:
        parameter.values[0]()


def test_a_faulty_layer_of_a_module_fails():
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

    class Faulty(torch.nn.Module):
        eps = 1e-3

        def forward(self, z):
            return (z - z.mean(0)) / (z.var(0, unbiased=False).sqrt() + self.eps)

    module = torch.nn.Sequential(torch.nn.Linear(3, 4), Faulty(), torch.nn.BatchNorm1d(4)).double()
    X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mark = parametrize_with_claims({"net": (module, lambda out, y: out.square().sum(), X, None)})
    assert ids(mark) == ["net-1", "net-2"]
    text = message(mark.args[1][0].values[0])
    assert text.startswith("1 (Faulty): FAILS: under rescaling")
    mark.args[1][1].values[0]()
