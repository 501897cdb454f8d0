"""minimal-nn audit: models by their name alone, what is tried out, and what is refused."""

import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

import torch
from foreign_models import make

import theory.torch
from theory import command

HERE = Path(__file__).parent
OWN = "foreign_models"


@pytest.fixture(autouse=True)
def kept_chance():
    """The command seeds torch, as a process of its own may."""
    with torch.random.fork_rng():
        yield


def run(capsys, *arguments):
    status = command.main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


# A target, arguments, what its batch is called, and what the audit says of one parameter
REAL = (
    ("ResNet", ("--input", "3x6x6"), "8x3x6x6 normal", "block.conv1.weight", "per unit (8"),
    ("GroupNet", ("--input", "3x8x8"), "8x3x8x8 normal", "conv.weight, conv.bias", "in blocks (3"),
    ("Transformer", (), "8x16 integers below 11, tried out", "attention.q.weight", "no"),
    (
        "Transformer(qk=True, width=8)",
        ("--batch", "4"),
        "4x16 int",
        "attention.q.w",
        "in blocks (2",
    ),
)


@pytest.mark.parametrize(
    "name, arguments, batch, parameter, extent", REAL, ids=[r[0] for r in REAL]
)
def test_a_real_model_is_audited_by_its_name(capsys, name, arguments, batch, parameter, extent):
    target = f"{OWN}:{name}"
    status, out, err = run(capsys, target, "--optimizer", "AdamW", *arguments)
    assert status == 0, err
    assert out.startswith(f"{target}: {batch}") and "cross-entropy with random labels" in out
    assert f"auditing {target}: " in err and "AdamW(lr=0.1" in out
    row = next(line for line in out.splitlines() if line.startswith(parameter))
    assert f"  {extent}" in row


def test_the_figures_are_those_of_the_audit_and_json_is_all_that_is_printed(capsys):
    arguments = (f"{OWN}:ResNet", "--input", "3x6x6", "--weight-decay", "1e-3", "--json", "-")
    status, out, _ = run(capsys, *arguments)
    found = json.loads(out)
    assert status == 0 and found["schema"] == 1
    rows = {", ".join(row["parameters"]): row for row in found["groups"]}
    assert rows["stem.weight"]["invariant"] == "per unit" and rows["stem.weight"]["units"] == 8
    assert rows["head.weight"]["equilibrium"] is None
    torch.manual_seed(0)
    model = command.model_of(f"{OWN}:ResNet")
    batch = command.batch_of(model, command.parser().parse_args(arguments))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)
    report = theory.torch.audit(model, batch.loss, batch.X, batch.y, optimizer)
    assert [row.equilibrium for row in report.rows if row.equilibrium == row.equilibrium] == [
        row["equilibrium"] for row in found["groups"] if row["equilibrium"] is not None
    ]
    assert {finding["kind"] for finding in found["findings"]} == {"penalized", "timm"}


def test_findings_of_one_sentence_stand_together(capsys):
    _, out, _ = run(capsys, f"{OWN}:ResNet", "--input", "3x6x6", "--weight-decay", "1e-3")
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("penalized: a gain or a bias"))
    assert lines[at + 1].split(", ") == [
        "    bn.weight",
        *("bn.bias", "block.bn2.weight", "block.bn2.bias", "head.bias"),
    ]
    assert out.count("penalized: ") == 1 and "    block.bn1.weight with block.bn1.bias" in lines


def test_a_file_gets_the_same_figures(capsys, tmp_path):
    path = tmp_path / "audit.json"
    arguments = (f"{OWN}:ResNet", "--input", "3x6x6", "--json")
    status, out, _ = run(capsys, *arguments, str(path))
    assert status == 0 and "stem.weight" in out
    assert json.loads(path.read_text()) == json.loads(run(capsys, *arguments, "-")[1])


def test_evaluation_is_told(capsys):
    _, out, _ = run(capsys, f"{OWN}:ResNet", "--input", "3x6x6", "--eval")
    assert "in evaluation mode bn, block.bn1, block.bn2 normalize with running statistics" in out
    assert re.search(r"^stem.weight +no ", out, re.MULTILINE)


@pytest.fixture
def fake_libraries(tmp_path, monkeypatch):
    """Libraries with a model each, which must be asked for random weights."""
    (tmp_path / "timm.py").write_text(
        "import foreign_models\n"
        "def list_models():\n    return ['resnet8', 'resnet18']\n"
        "def create_model(name, pretrained):\n"
        "    assert pretrained is False\n    return foreign_models.ResNet()\n"
    )
    (tmp_path / "torchvision.py").write_text(
        "import foreign_models\n"
        "class models:\n"
        "    list_models = staticmethod(lambda: ['resnet8'])\n"
        "    @staticmethod\n    def get_model(name, weights):\n"
        "        assert weights is None\n        return foreign_models.ResNet()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("timm", "torchvision"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("timm", "torchvision"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("library", ("timm", "torchvision"))
def test_a_library_is_asked_for_random_weights(capsys, fake_libraries, library):
    status, out, err = run(capsys, f"{library}:resnet8", "--input", "3x6x6")
    assert status == 0 and "stem.weight" in out, err
    status, _, err = run(capsys, f"{library}:resnet9")
    assert status == 2
    assert err == (
        f"minimal-nn audit: {library}:resnet9: {library} has no such model (did you mean "
        "'resnet8'?)\n"
    )


@pytest.mark.parametrize("library", ("timm", "torchvision"))
def test_a_library_that_is_not_there_is_named_with_a_command(capsys, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    status, _, err = run(capsys, f"{library}:resnet18")
    command_line = f"{sys.executable} -m pip install {library}"
    assert status == 2
    assert err == (
        f"minimal-nn audit: the package {library} is not installed; install it with: "
        f"{command_line}\n"
    )


@pytest.mark.parametrize(
    "arguments, words",
    (
        (("resnet18",), "MODEL: got 'resnet18', expected timm:NAME, torchvision:NAME or pack"),
        (("no_such_module:Net",), "No module named 'no_such_module'"),
        ((f"{OWN}:ResNet18",), f"{OWN}: got no 'ResNet18' in it (did you mean 'ResNet'?)"),
        ((f"{OWN}:ResNet(8)",), "MODEL: got 'ResNet(8)' behind the colon, expected Factory, or"),
        ((f"{OWN}:ResNet(channels=open)",), "MODEL: got 'ResNet(channels=open)' behind"),
        ((f"{OWN}:NAMES.count(value=1)",), "count() takes no keyword arguments"),
        ((f"{OWN}:make(name='relu', seed=0)",), "got a tuple, expected a torch.nn.Module"),
        ((f"{OWN}:ResNet", "--input", "3x"), "--input: got '3x', expected an example's shape"),
        ((f"{OWN}:ResNet", "--input", "4x8x8"), "no input was found that it takes (4x8x8: Given"),
        ((f"{OWN}:ResNet", "--batch", "1"), "--batch: got 1, expected at least 2 examples"),
        ((OWN, "--tokens", "-3", "--input", "4"), "--tokens: got -3, expected an integer >= 1"),
        ((OWN, "--tokens", "0"), "--tokens: got 0, expected an integer >= 1"),
        (
            (f"{OWN}:ResNet", "--tokens", "7"),
            f"--tokens: got 7, but {OWN}:ResNet has no torch.nn.Embedding, expected one, or --inp",
        ),
        ((OWN, "--lr", "nan"), "--lr: got nan, expected a finite number >= 0"),
        ((OWN, "--lr", "-1"), "--lr: got -1, expected a finite number >= 0"),
        ((OWN, "--weight-decay", "inf"), "--weight-decay: got inf, expected a finite number"),
        ((OWN, "--momentum", "nan"), "--momentum: got nan, expected from 0 to below 1"),
        ((OWN, "--momentum", "1"), "--momentum: got 1, expected from 0 to below 1"),
        (
            (OWN, "--momentum", "0.9", "--optimizer", "Adam"),
            "--momentum: got 0.9 with Adam, expected SGD",
        ),
        ((OWN, "--seed", str(2**64)), f"--seed: got {2**64}, expected an integer from 0"),
        ((OWN, "--seed", "-1"), "--seed: got -1, expected an integer from 0"),
        ((OWN, "--json", str(HERE)), f"--json: got the folder {HERE}, expected a file's path"),
        (
            (OWN, "--json", str(HERE / "missing" / "a.json")),
            f"--json: the folder {HERE / 'missing'} does not exist",
        ),
        (
            (f"{OWN}:ResNet", "--input", "3x99999999x99999999"),
            "no input was found that it takes (3x99999999x99999999: ",
        ),
        (
            (f"{OWN}:Transformer", "--input", "4", "--tokens", str(2**63 - 1)),
            "no input was found that it takes (4: ",
        ),
    ),
)
def test_what_cannot_be_audited_is_refused_in_a_sentence(capsys, arguments, words):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == ""
    assert err.startswith("minimal-nn audit: ") and words in err and err.count("\n") == 1


def test_a_fault_in_ones_own_module_is_not_called_a_missing_package(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ImportError, match="a_package_that_is_not_there"):
        command.model_of("broken_module:Net")


def test_inputs_are_tried_out_for_every_kind_of_first_layer():
    options = command.parser().parse_args(["x:y"])
    for name, text in (
        ("batch norm", "8x6 normal numbers, tried out"),
        ("instance norm", "8x3x32x32 normal numbers, tried out"),
        ("gelu into layer norm", "8x16 integers below 11, tried out"),
    ):
        assert command.batch_of(make(name, 0, torch.float32)[0], options).text.startswith(text)
    options.tokens = 5
    text = command.batch_of(make("transformer", 0, torch.float32)[0], options).text
    assert text.startswith("8x16 integers below 5, tried out")
    options.tokens = None
    for part, text in (
        (torch.nn.Conv1d(2, 3, 5), "8x2x32"),
        (torch.nn.Conv3d(2, 3, 3), "8x2x8x16x16"),
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1)), "8x48"),
    ):
        batch = command.batch_of(part, options)
        assert batch.text.startswith(text) and "mean squared error with random" in batch.text
