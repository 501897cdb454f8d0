"""Imports point one way: the contracts of setup.cfg, kept here and able to fail."""

from pathlib import Path

import pytest
from processes import python

ROOT = Path(__file__).parents[1]
PACKAGES = ("minimal_nn", "theory", "figures")
MODULES = [
    path.relative_to(ROOT).with_suffix("").as_posix()
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
]


def lint(folder):
    """Hold the packages in this folder to the contracts of setup.cfg."""
    code = "from importlinter.cli import lint_imports_command as main; main()"
    options = ["--config", str(ROOT / "setup.cfg"), "--no-cache", "--no-logo"]
    return python("-c", code, *options, cwd=folder, status=None)


def house(folder, lines):
    """Build all rooms of the packages there, empty but for the lines of some modules."""
    for name in {*MODULES, *lines}:
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines.get(name, ""))
    return folder


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
        ("minimal_nn/cpu/plan/loop", "import minimal_nn.cpu.affine", None),
        ("figures/style", "import theory.laws", None),
        ("minimal_nn/layers", "from minimal_nn import optimizers", "A wing knows"),
        ("minimal_nn/network", "from minimal_nn import training", "A wing knows"),
        ("minimal_nn/reference/affine", "import minimal_nn.layers", "A wing knows"),
        ("minimal_nn/cpu/affine", "import minimal_nn.cuda.affine", "A wing knows"),
        ("minimal_nn/reference/affine", "import minimal_nn.cpu.affine", "A wing knows"),
        ("minimal_nn/layers", "import theory.claim", "Imports point"),
        ("theory/claim", "def f():\n    import figures.grid", "Imports point"),
        ("theory/claim", "from minimal_nn.reference import affine", "Theory asks"),
        ("minimal_nn/cpu/machine/program", "import minimal_nn.cpu.affine", "The plan composes"),
        ("minimal_nn/cpu/affine", "import minimal_nn.cpu.plan.loop", "The plan composes"),
        ("minimal_nn/cuda/parts/vectors", "import minimal_nn.cuda.products.tiled", "Kernels stand"),
        ("minimal_nn/cuda/device/launch", "import minimal_nn.cuda.affine", "Kernels stand"),
        ("theory/laws/scaling", "import theory.measures.bits", "Claims use"),
        ("theory/claims/flow", "import theory.claims.gradients", "No chapter"),
        ("figures/style", "import theory.claims", "Figures take"),
    ],
)
def test_a_contract_can_be_broken(module, line, contract, tmp_path):
    found = lint(house(tmp_path, {module: line}))
    broken = [text for text in found.stdout.splitlines() if text.endswith("BROKEN")]
    if contract is None:
        assert found.returncode == 0 and not broken, found.stdout + found.stderr
    else:
        assert found.returncode == 1, found.stdout + found.stderr
        assert broken and broken[0].startswith(contract)


def test_a_circle_is_found(tmp_path):
    circle = {
        "minimal_nn/cuda/batchnorm": "import minimal_nn.cuda.layernorm",
        "minimal_nn/cuda/layernorm": "import minimal_nn.cuda.batchnorm",
    }
    found = lint(house(tmp_path, circle))
    assert found.returncode == 1 and "No circle anywhere BROKEN" in found.stdout


def test_a_new_module_must_be_given_its_floor(tmp_path):
    found = lint(house(tmp_path, {"minimal_nn/helpers": ""}))
    assert found.returncode == 1 and "minimal_nn.helpers" in found.stdout
