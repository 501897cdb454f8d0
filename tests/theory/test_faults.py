"""Planted faults: each is caught by a claim, or outside of all for a reason that is named."""

import json

import numpy as np
import pytest

from theory.claim import CLAIMS
from theory.report import faults
from theory.subjects.networks import Options

KNOWN = {fault.name: fault for fault in faults.faults()}
FLOAT64 = Options(dtypes=("float64",))
# Each a fault that no claim caught before the one that is named.
SAMPLE = (
    ("loss:cotangent-ignored", "loss-is-a-mean"),
    ("loss:squared-error-gradient-without-2", "loss-is-a-mean"),
    ("batchnorm:running-momentum-reversed", "running-statistics"),
    ("batchnorm:evaluation-gradient-of-the-training-mode", "running-statistics"),
    ("update:adagrad-forgets", "step-by-definition"),
    ("update:lars-with-the-largest-weight", "step-by-definition"),
    ("optimizers:adam-beta2-of-0.99", "step-by-definition"),
    ("training:fit-does-nothing", "training-is-its-steps"),
)


@pytest.fixture(autouse=True)
def loose_floating_point():
    with np.errstate(all="ignore"):
        yield
    faults.forget()


def failing(id, fault):
    """Return whether a claim fails on one of its subjects with a fault planted."""
    faults.forget()
    with KNOWN[fault].plant():
        return any(faults._fails(CLAIMS[id], subject) for subject in CLAIMS[id].subjects(FLOAT64))


@pytest.mark.nightly
def test_every_fault_stands_in_the_table():
    missing = " ".join(KNOWN.keys() - faults.stored()["caught"].keys())
    assert not missing, (
        f"compute them: python -m theory --faults {missing} --json theory/report/faults.json"
    )


def test_the_table_names_faults_and_claims_that_exist():
    caught = faults.stored()["caught"]
    assert caught.keys() <= KNOWN.keys()
    assert {id for ids in caught.values() for id in ids} <= CLAIMS.keys()


def test_no_fault_survives_and_none_is_outside_that_is_caught():
    caught = faults.stored()["caught"]
    assert faults.survivors(caught) == []
    assert {name for name, ids in caught.items() if not ids} == faults.OUTSIDE.keys()


@pytest.mark.parametrize("fault, id", SAMPLE)
def test_a_fault_is_caught_as_the_table_says(fault, id):
    assert id in faults.stored()["caught"][fault]
    assert failing(id, fault)


def test_without_a_fault_nothing_fails():
    faults.forget()
    for id in {id for _, id in SAMPLE}:
        assert not any(faults._fails(CLAIMS[id], s) for s in CLAIMS[id].subjects(FLOAT64)), id


def test_a_field_with_all_that_homogeneity_gives_is_told_from_a_gradient():
    name = "network:a-tangent-field"
    assert faults.stored()["caught"][name] == ["gradient-of-loss", "hessian-symmetric"]
    for id in ("gradient-scaling", "gradient-orthogonality", "hessian-radial", "direction-rate"):
        assert not failing(id, name), id
    assert failing("gradient-of-loss", name) and failing("hessian-symmetric", name)


def test_what_a_measurement_calls_is_recorded():
    called = faults.calls([CLAIMS["loss-is-a-mean"], CLAIMS["step-by-definition"]])
    assert {"loss.forward", "loss.backward"} <= called["loss-is-a-mean", 0]
    assert not any("update.m" in what for what in called["loss-is-a-mean", 0])
    assert {"update.momentum", "update.add_penalty"} <= called["step-by-definition", 1]
    assert not any("loss" in what for what in called["step-by-definition", 1])


def test_a_named_fault_is_judged_and_put_into_a_table(tmp_path, capsys, monkeypatch):
    few = [CLAIMS["loss-is-a-mean"], CLAIMS["running-statistics"]]
    monkeypatch.setattr(faults, "select", lambda: few)
    path = tmp_path / "faults.json"
    name = "loss:cotangent-ignored"
    assert faults.judged([name]) == {name: ["loss-is-a-mean"]}
    assert capsys.readouterr().out == "loss:cotangent-ignored: loss-is-a-mean\n"
    path.write_text(json.dumps({"caught": {"other": ["x"], name: []}}))
    faults.write_json(path, {name: ["loss-is-a-mean"]})
    record = json.loads(path.read_text())
    assert record["caught"] == {"other": ["x"], name: ["loss-is-a-mean"]}
    assert record["commit"] and record["versions"]["numpy"] == np.__version__
    with pytest.raises(ValueError, match="--faults: got .'no'., expected some of network:a-tang"):
        faults.judged(["no"])


@pytest.mark.nightly
def test_the_whole_table_is_computed_again():
    assert faults.judged(say=lambda line: None) == faults.stored()["caught"]
