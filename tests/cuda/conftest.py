"""Where the kernels of a test run: in the simulator always, on a device where there is one."""

import ledger
import pytest

from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import to_host
from minimal_nn.cuda.device.current import current
from minimal_nn.errors import CudaUnavailableError

# Watched by the race detector, and one order of single threads: what holds for both holds for all.
SCHEDULES = ("lockstep", "races", 7)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        try:
            current().require()
        except CudaUnavailableError as error:
            pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.passed = report.when == "call" and report.passed
    return report


@pytest.fixture(autouse=True)
def as_the_table_of_kernels_says(request):
    with ledger.watched(request.node):
        yield


def pytest_sessionfinish():
    if ledger.WRITING:
        ledger.write()


@pytest.fixture(params=["simulator", pytest.param("device", marks=pytest.mark.gpu)])
def place(request):
    """Run the test once in the simulator and once, marked gpu, on the device."""
    if request.param == "device":
        yield request.param
    else:
        with launch.simulation():
            yield request.param


@pytest.fixture
def schedules():
    """Return a function that checks: call() gives the same bits in every order of threads."""

    def check(call):
        results = []
        for schedule in SCHEDULES:
            with launch.simulation(schedule):
                results.append([to_host(array).tobytes() for array in call()])
        assert all(result == results[0] for result in results), "the bits depend on the schedule"

    return check
