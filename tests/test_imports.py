"""Imports point one way: the contracts of setup.cfg, kept here and able to fail."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = """
minimal_nn/__init__ minimal_nn/training minimal_nn/optimizers minimal_nn/network minimal_nn/layers
minimal_nn/backend minimal_nn/cpu/__init__ minimal_nn/cpu/affine minimal_nn/cuda/__init__
minimal_nn/cuda/affine minimal_nn/reference/__init__ minimal_nn/reference/affine
theory/__init__ theory/claim figures/__init__ figures/grid/__init__
""".split()


def lint(folder):
    """Hold the packages in this folder to the contracts of setup.cfg."""
    code = "from importlinter.cli import lint_imports_command as main; main()"
    options = ["--config", str(ROOT / "setup.cfg"), "--no-cache", "--no-logo"]
    return subprocess.run(
        [sys.executable, "-c", code, *options], cwd=folder, capture_output=True, text=True
    )


def test_the_contracts_are_kept():
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 broken" in found.stdout


@pytest.mark.parametrize(
    "module, line, contract",
    [
        ("theory/claim", "import minimal_nn.backend", None),
        ("minimal_nn/cuda/affine", "import minimal_nn.reference.affine", None),
        ("minimal_nn/training", "import minimal_nn.optimizers", None),
        ("minimal_nn/layers", "from minimal_nn import optimizers", "A wing knows"),
        ("minimal_nn/network", "from minimal_nn import training", "A wing knows"),
        ("minimal_nn/reference/affine", "import minimal_nn.layers", "A wing knows"),
        ("minimal_nn/cpu/affine", "import minimal_nn.cuda.affine", "A wing knows"),
        ("minimal_nn/reference/affine", "import minimal_nn.cpu.affine", "A wing knows"),
        ("minimal_nn/layers", "import theory.claim", "Imports point"),
        ("theory/claim", "def f():\n    import figures.grid", "Imports point"),
        ("theory/claim", "from minimal_nn.reference import affine", "Theory asks"),
    ],
)
def test_a_contract_can_be_broken(module, line, contract, tmp_path):
    for name in MODULES:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line if name == module else "")
    found = lint(tmp_path)
    broken = [text for text in found.stdout.splitlines() if text.endswith("BROKEN")]
    if contract is None:
        assert found.returncode == 0 and not broken, found.stdout + found.stderr
    else:
        assert found.returncode == 1, found.stdout + found.stderr
        assert broken and broken[0].startswith(contract)
