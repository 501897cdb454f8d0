"""The code of the host on a driver that is written in Python: tests marked gpu, without a GPU."""

import json
import re

import pytest
import standin
from compiled import every_place
from processes import ROOT, python


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return what the tests marked gpu printed on the stand-in, and what it found."""
    folder = tmp_path_factory.mktemp("standin")
    if standin.library(folder) is None:
        pytest.skip("no C compiler: install gcc to run the code of the host")
    environment = {
        "STANDIN": str(folder),
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'cuda'}",
        "MINIMAL_NN_CUDA": "",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = ("-m", "pytest", "-q", "-m", "gpu", "-p", "standin", "-p", "no:cacheprovider")
    tests = ROOT / "tests" / "cuda", ROOT / "tests" / "cuda" / "host_faults.py"
    done = python(*command, *tests, cwd=ROOT, **environment)
    return done.stdout, json.loads((folder / "found.json").read_text())


def test_every_test_that_needs_a_device_runs(ended):
    said, found = ended
    assert re.search(r"\n\d{3} passed, \d+ deselected", said), said[-3000:]
    assert found["missing"] == []


def test_every_kernel_is_launched(ended):
    launched = {tuple(place) for place in ended[1]["launched"]}
    assert not sorted(every_place() - launched, key=str)
