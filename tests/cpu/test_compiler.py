"""The cache of compiled kernels, and what starting costs."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import minimal_nn

PACKAGE = pathlib.Path(minimal_nn.__file__).parent
RELU = (
    "import numpy as np; from minimal_nn.cpu import activation; "
    "print(activation.forward(np.array([-1, 0, 3], np.float32), 'relu')[0].tolist())"
)


def run(code, root, cache, **environment):
    """Run Python code with the package found in `root`; return what it printed."""
    settings = {"PYTHONPATH": str(root), "MINIMAL_NN_CACHE_DIR": str(cache)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings, **environment},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture
def copy(tmp_path):
    """A copy of the package that may be edited."""
    root = tmp_path / "root"
    shutil.copytree(PACKAGE, root / "minimal_nn", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def entries(cache):
    return sorted(cache.rglob("*.bin"))


def test_an_edited_callee_changes_the_result(copy, tmp_path):
    """`relu` is called by the kernel, in whose own lines nothing changes."""
    cache = tmp_path / "cache"
    assert run(RELU, copy, cache).stdout.strip() == "[0.0, 0.0, 3.0]"
    before = entries(cache)
    assert run(RELU, copy, cache).stdout.strip() == "[0.0, 0.0, 3.0]"
    assert entries(cache) == before, "the second start compiled again"
    path = copy / "minimal_nn" / "cpu" / "activation.py"
    old = "return where_above(z, z, fill(z, 0.0))"
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, "return where_above(z, z + z, fill(z, 0.0))"))
    assert run(RELU, copy, cache).stdout.strip() == "[0.0, 0.0, 6.0]"
    assert len({entry.parent for entry in entries(cache)}) == 2


def test_a_damaged_cache_costs_one_warning_and_no_wrong_result(copy, tmp_path):
    cache = tmp_path / "cache"
    run(RELU, copy, cache)
    for number, entry in enumerate(entries(cache)):
        content = entry.read_bytes()
        entry.write_bytes(content[: len(content) // 2] if number % 2 else b"\0" * len(content))
    result = run(RELU, copy, cache)
    assert result.stdout.strip() == "[0.0, 0.0, 3.0]"
    assert result.stderr.count("RuntimeWarning") == 1
    result = run(RELU, copy, cache)
    assert "RuntimeWarning" not in result.stderr, "the damaged files were not replaced"


def test_a_cache_that_cannot_be_written_costs_one_warning(copy, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    result = run(RELU, copy, blocked / "cache")
    assert result.stdout.strip() == "[0.0, 0.0, 3.0]"
    assert result.stderr.count("RuntimeWarning") == 1


def test_an_empty_setting_turns_the_cache_off(copy, tmp_path):
    result = run(RELU, copy, "")
    assert result.stdout.strip() == "[0.0, 0.0, 3.0]"
    assert "RuntimeWarning" not in result.stderr


def test_another_processor_has_another_cache(copy, tmp_path):
    cache = tmp_path / "cache"
    code = "from minimal_nn.cpu.machine import compiler; print(compiler.cache_key())"
    keys = {
        run(code, copy, cache).stdout,
        run(code, copy, cache, NUMBA_CPU_NAME="x86-64-v3").stdout,
        run(code, copy, cache, NUMBA_OPT="2").stdout,
    }
    assert len(keys) == 3


def test_importing_compiles_nothing(copy, tmp_path):
    cache = tmp_path / "cache"
    code = (
        "import sys, minimal_nn; assert 'numba' not in sys.modules; "
        "from minimal_nn import backend; from minimal_nn.cpu import plan; backend.get('cpu')"
    )
    run(code, copy, cache)
    assert not entries(cache)


@pytest.mark.slow
def test_the_vector_width_does_not_change_exact_results(copy, tmp_path):
    """256-bit and 128-bit code, with and without fused multiply-add, on this processor."""
    code = (
        "import numpy as np; from minimal_nn.cpu import affine, batchnorm; "
        "from minimal_nn.cpu.machine import processor; "
        "x = np.arange(70, dtype=np.float32).reshape(7, 10) % 9; W = x.T @ x; "
        "y = affine.forward(x, W)[0]; assert np.array_equal(y, x @ W); "
        "print(processor.VECTOR_BYTES, processor.HAS_FMA, y.sum())"
    )
    seen = set()
    for features in (None, "+sse2,+avx,+avx2,+fma", "+sse2,+sse4.1"):
        settings = {} if features is None else {"NUMBA_CPU_NAME": "generic"}
        if features is not None:
            settings["NUMBA_CPU_FEATURES"] = features
        seen.add(run(code, copy, tmp_path / "cache", **settings).stdout)
    assert len({line.split()[-1] for line in seen}) == 1
    assert len(seen) >= 2 or sys.platform == "darwin"
