"""The environment of every test: strict floating point, deterministic chance, all wings.

A test of tests/test_<operation>.py that takes `wing` runs once for every wing; one that takes
`dtype`, `layout` or `eps` runs once for each of those (see wings.py).
"""

import importlib

import hypothesis
import numpy as np
import pytest
import wings
from agreement import untouched_chance
from browser import one_tab, tab  # noqa: F401  (a browser's, for the tests that read pages)
from guard_zones import guard_zones  # noqa: F401  (around every test of the cpu wing)

from minimal_nn.backend import OPERATIONS

# Chance is drawn from the test's own name, so a failure is there again on the next run.
hypothesis.settings.register_profile(
    "deterministic", derandomize=True, deadline=None, max_examples=20, database=None
)
hypothesis.settings.load_profile("deterministic")


def pytest_addoption(parser):
    parser.addoption(
        "--nightly", action="store_true", help="run searches at full size (tests marked nightly)"
    )
    parser.addoption("--seed", type=int, help="the first seed of the nightly random networks")
    parser.addoption("--networks", type=int, default=2000, help="how many of them are judged")


# Files whose tests share what is slow to make: each is for one of several processes.
WHOLE = ("test_cuda_host.py", "test_package.py", "test_site.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deal out single tests, and whole files: xdist_group does nothing under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if file.endswith(WHOLE) else nodeid

    return Scheduling(config, log)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--nightly"):
        left_out = pytest.mark.skip(reason="a search at full size: run with --nightly")
        for item in items:
            if "nightly" in item.keywords:
                item.add_marker(left_out)


def pytest_generate_tests(metafunc):
    operation = metafunc.module.__name__.rpartition(".")[2].removeprefix("test_")
    if operation not in OPERATIONS:
        return
    axes = {"wing": [wings.Wing(name) for name in wings.names(operation)], **wings.AXES}
    marked = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    for axis, values in axes.items():
        if axis in metafunc.fixturenames and axis not in marked:
            ids = [getattr(value, "__name__", str(value)) for value in values]
            metafunc.parametrize(axis, values, ids=[f"{axis}={i}" for i in ids])


@pytest.fixture(scope="session")
def reference():
    """The reference wing, where a test of any wing takes its bounds and its derivatives from."""
    return wings.Wing("reference")


@pytest.fixture(scope="session")
def optimizers():
    """The module of optimizers, a fixture so that its mutants can take its place."""
    return importlib.import_module("minimal_nn.optimizers")


@pytest.fixture(scope="module")
def normalization(request):
    """The module of tests that a test of normalizations.py is run for."""
    return request.module


@pytest.fixture
def rng():
    return wings.random_generator()


@pytest.fixture(autouse=True)
def strict_floating_point():
    """Fail on overflow, division by zero and NaN; numbers may become so small that they vanish."""
    with np.errstate(divide="raise", over="raise", invalid="raise", under="ignore"):
        yield


@pytest.fixture(autouse=True)
def untouched_global_chance():
    """Fail a test whose code draws from the global random states or seeds them."""
    with untouched_chance():
        yield
