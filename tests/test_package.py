"""The wheel is what people install: it is built, installed elsewhere and used from there."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import minimal_nn

ROOT = Path(__file__).parents[1]
PACKAGES = ("minimal_nn", "theory", "figures")

METADATA = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")

pytestmark = pytest.mark.slow


def check(*command, **options):
    """Run a command; its output when it succeeds, an AssertionError with its output else.

    Without PYTHONPATH, by which the checkout would come along, and its benchmarks run.
    """
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(command, capture_output=True, text=True, env=own, **options)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the source distribution, so that both are whole; nothing is downloaded."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    # A copy, because building writes beside the sources.
    for name in METADATA:
        shutil.copy(ROOT / name, sources)
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    check(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, sources)
    assert len(list(out.glob("*.tar.gz"))) == 1
    [wheel] = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An environment with nothing but the wheel; its dependencies are lent by this one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    check(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel
    )
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(check(python, "-c", code).strip())
    # A .pth file inside a lent folder is not read, so the checkout does not come along.
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_all_modules_and_data_and_no_tests(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    tracked = check("git", "ls-files", *PACKAGES, cwd=ROOT).split()
    assert len(tracked) > 10
    assert [name for name in tracked if name not in held] == []
    others = {name.split("/")[0] for name in held} - set(PACKAGES)
    assert [name for name in others if not name.endswith(".dist-info")] == []
    assert any(name.endswith("/LICENSE") for name in held)


def test_the_metadata(python, tmp_path):
    code = (
        "from importlib.metadata import metadata; m = metadata('l2-versus-normalization');"
        "print(m['Requires-Python'], sorted(m.get_all('Provides-Extra')), len(m.get_payload()))"
    )
    extras = [
        "bench",
        "cluster",
        "cuda",
        "data",
        "exact",
        "guide",
        "jax",
        "lint",
        "release",
        "test",
        "torch",
    ]
    version, rest = check(python, "-c", code, cwd=tmp_path).split(" ", 1)
    listed, length = rest.rsplit(" ", 1)
    assert (version, listed) == (">=3.10", str(extras))
    assert int(length) > 500  # the README


def test_one_version_stands_everywhere():
    """In the metadata, the package, the citation, and the changelog's newest entry."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    version = settings["metadata"]["version"]
    assert version == minimal_nn.__version__
    citation, changes = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("CITATION.cff", "CHANGELOG.md")
    )
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == version
    assert re.search(r"^## \[(\d.*?)\]", changes, re.M)[1] == version


def test_the_installed_package_is_the_one_that_runs(python, tmp_path):
    code = (
        "import minimal_nn, theory, figures; from minimal_nn.data import digits;"
        "print(minimal_nn.__file__, theory.__file__, figures.__file__, digits().X_train.shape)"
    )
    printed = check(python, "-c", code, cwd=tmp_path)
    assert printed.count(str(python.parents[1])) == 3 and str(ROOT) not in printed
    assert printed.endswith("(1352, 64)\n")


def test_theory_runs_from_another_folder(python, tmp_path):
    listed = check(python, "-m", "theory", "--list", cwd=tmp_path)
    assert len(listed.splitlines()) >= 7


def test_figures_and_data_run_from_another_folder(python, tmp_path):
    assert check(python, "-m", "figures", "--list", cwd=tmp_path)
    assert "cifar10" in check(python, "-m", "minimal_nn.data", "--list", cwd=tmp_path)


def test_the_pytest_plugin_runs_from_another_folder(python, tmp_path):
    (tmp_path / "test_own.py").write_text(
        "from minimal_nn import AdamW\n\n\n"
        "def test_optimizer(assert_optimizer):\n"
        "    assert_optimizer(AdamW, expect={'decay': 'decoupled'})\n",
        encoding="utf-8",
    )
    options = ["-q", "-p", "theory.pytest_plugin", "-p", "no:cacheprovider"]
    assert "1 passed" in check(python, "-m", "pytest", *options, cwd=tmp_path)


def test_the_command_runs_in_a_folder_with_a_theory_of_its_own(python, tmp_path):
    (tmp_path / "theory").mkdir()
    (tmp_path / "theory" / "__init__.py").write_text("raise ImportError('not this one')\n")
    script = python.parent / "minimal-nn"
    assert check(script, "--version", cwd=tmp_path) == f"minimal-nn {minimal_nn.__version__}\n"
    assert "scale-invariance" in check(script, "verify", "--list", cwd=tmp_path)
    assert "norm_dynamics" in check(script, "figures", "--list", cwd=tmp_path)
    with pytest.raises(AssertionError, match="minimal-nn bench: run it in a clone"):
        check(script, "bench", cwd=tmp_path)


def test_without_numba_the_reference_wing_trains_and_verify_runs(tmp_path):
    """As in a browser."""
    code = (
        "import sys; sys.modules.update(numba=None, llvmlite=None)\n"
        "import numpy as np, minimal_nn as nn, theory\n"
        "network = nn.Network([nn.Dense(4), nn.BatchNorm(), nn.Dense(3)], (5,), rng=0)\n"
        "X = np.eye(5, dtype=np.float32)\n"
        "nn.fit(network, nn.SGD(0.1), X, np.arange(5) % 3, epochs=1, progress=False)\n"
        "loss = lambda w: (w[0] / w[1], np.array([1 / w[1], -w[0] / w[1] ** 2]))\n"
        "print(all(theory.verify(loss, np.array([3.0, 2.0]))))\n"
    )
    assert check(sys.executable, "-c", code, cwd=ROOT) == "True\n"
