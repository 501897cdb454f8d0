"""The cache of compiled kernels, and what starting costs."""

import pathlib
import shutil
import sys

import pytest
from processes import python

import minimal_nn

PACKAGE = pathlib.Path(minimal_nn.__file__).parent
RELU = (
    "import numpy as np; from minimal_nn.cpu import activation; "
    "print(activation.forward(np.array([-1, 0, 3], np.float32), 'relu')[0].tolist())"
)


def run(code, root, cache, **environment):
    """Run Python code with the package found in `root`; return what it printed."""
    settings = {"PYTHONPATH": str(root), "MINIMAL_NN_CACHE_DIR": str(cache)}
    return python("-c", code, cwd=root, **settings, **environment)


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


def test_an_edited_file_in_any_room_changes_the_key(copy, tmp_path):
    """Operations, the plan and the machine: every folder of the wing."""
    code = (
        "import pathlib\n"
        "from minimal_nn.cpu.machine import compiler\n"
        "keys = [compiler.cache_key()]\n"
        "rooms = {}\n"
        "for path in sorted(pathlib.Path('minimal_nn/cpu').rglob('*.py')):\n"
        "    rooms.setdefault(path.parent, path)\n"
        "for path in rooms.values():\n"
        "    path.write_text(path.read_text() + '# edited\\n')\n"
        "    compiler.cache_key.cache_clear()\n"
        "    keys.append(compiler.cache_key())\n"
        "assert len(set(keys)) == len(keys), keys\n"
        "print(*sorted(room.name for room in rooms))"
    )
    rooms = {"cpu", "machine", "plan"}
    assert rooms <= set(run(code, copy, tmp_path).stdout.split())


def test_a_file_under_another_name_is_not_taken(copy, tmp_path):
    """Neither another kernel's file nor one of another key: both would run and be wrong."""
    cache = tmp_path / "cache"
    both = "; from minimal_nn.cpu import activation; activation.forward(np.ones(1), 'tanh')"
    run(RELU, copy, cache)
    (relu,) = cache.rglob("*relu_kernel*")
    run(RELU + both, copy, cache)
    (tanh,) = cache.rglob("*tanh_and_slope_kernel*")
    shutil.copy(tanh, relu)
    result = run(RELU, copy, cache)
    assert result.stdout.strip() == "[0.0, 0.0, 3.0]"
    assert result.stderr.count("RuntimeWarning") == 1 and "damaged" in result.stderr
    for entry in entries(cache):
        other = entry.parents[1] / "of another key" / entry.name
        other.parent.mkdir(exist_ok=True)
        shutil.copy(entry, other)
    code = "from minimal_nn.cpu.machine import compiler; compiler.cache_key = lambda: %r; " + RELU
    result = run(code % other.parent.name, copy, cache)
    assert result.stdout.strip() == "[0.0, 0.0, 3.0]" and "damaged" in result.stderr


def test_a_full_disk_costs_one_warning_and_leaves_nothing(copy, tmp_path):
    cache = tmp_path / "cache"
    full = (
        "import builtins, errno, io\n"
        "class Full(io.FileIO):\n"
        "    def write(self, data):\n"
        "        super().write(data[:100])\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "plain = open\n"
        "def limited(path, mode='r', *arguments, **options):\n"
        "    if mode == 'xb':\n"
        "        return Full(path, mode)\n"
        "    return plain(path, mode, *arguments, **options)\n"
        "builtins.open = limited\n"
    )
    result = run(full + RELU, copy, cache)
    assert result.stdout.strip() == "[0.0, 0.0, 3.0]"
    assert result.stderr.count("RuntimeWarning") == 1 and "No space left" in result.stderr
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kept", (True, False))
def test_the_notice_promises_a_cache_only_where_there_is_one(copy, tmp_path, kept):
    code = "from minimal_nn.cpu.machine import compiler; compiler.NOTICE_SECONDS = 0; " + RELU
    result = run(code, copy, tmp_path / "cache" if kept else "")
    assert ("later starts take them from a cache" in result.stderr) == kept
    assert ("they are not kept" in result.stderr) != kept


def test_disabled_compilation_is_named(copy, tmp_path):
    code = (
        "import numpy as np\n"
        "from minimal_nn.cpu import activation\n"
        "try: activation.forward(np.ones(1), 'relu')\n"
        "except RuntimeError as error: print(error)\n"
    )
    said = run(code, copy, tmp_path, NUMBA_DISABLE_JIT="1").stdout
    assert said.startswith("NUMBA_DISABLE_JIT is set") and said.count("\n") == 1


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
        run(code, copy, cache, MINIMAL_NN_VECTORS="128x32").stdout,
    }
    assert len(keys) == 4


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
