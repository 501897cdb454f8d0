"""A comparison as it is recorded and told: tiny ones, with ours as its own peer."""

import json
import re
import threading
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import table
from benchmarks.cpu import against, compare, contestants, machine, process
from benchmarks.cpu.configurations import by_name

ROOT = Path(__file__).parents[2]


def comparison(**changes):
    contestant = {
        "seconds": 1e-3,
        "quartiles": [0.9e-3, 1.1e-3],
        "ratio": 1.0,
        "memory_mib": 100.0,
        "first_step_seconds": 1.0,
        "disagreement": 0.0,
    }
    return {
        "configuration": "mlp",
        "title": "MLP",
        "threads": 2,
        "aim": 1.3,
        "best_peer": "jax_scan",
        "ratio": 1.5,
        "ratio_quartiles": [1.4, 1.6],
        "disturbed": None,
        "verdict": "met",
        "roofline": {
            "flops": 2e6,
            "bytes": 3e6,
            "peak_gflops": 100.0,
            "bandwidth_gb": 20.0,
            "seconds": 2e-4,
            "bound": "products",
            "fraction": 0.71,
        },
        "contestants": {"ours": contestant, "jax_scan": {**contestant, "seconds": 1.5e-3}},
        **changes,
    }


def record(machine="a processor, 512-bit vectors", **changes):
    return {
        "date": "2030-01-01T00:00",
        "machine": machine,
        "processor": machine.split(",")[0],
        "cores": 2,
        "rounds": 9,
        "versions": {"numpy": "2"},
        "comparisons": [comparison(**changes)],
    }


def test_no_verdict_from_a_disturbed_row():
    assert compare.verdict(1.3, 1.5, None) == "met" and compare.verdict(1.3, 1.2, None) == "missed"
    assert (
        compare.verdict(1.3, 1.5, "other work") is None and compare.verdict(None, 9, None) is None
    )
    told = table.printed(comparison(disturbed="other work used 40%", verdict=None))
    assert "no verdict: other work used 40%" in told and "aim" not in told
    assert "aim 1.3: met" in table.printed(comparison())


def test_printed_row_has_its_roofline():
    told = table.printed(comparison())
    assert "2 MFLOP, 3 MB; 100 GFLOP/s, 20.0 GB/s; roof 200 us by products, reached to 0.71" in told


def test_table_names_the_processor_in_each_row_and_marks_what_was_disturbed():
    other = record("another, 256-bit vectors", disturbed="other work")
    lines = table.markdown(record(), other).splitlines()
    columns = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:4]]
    assert len({len(row) for row in columns}) == 1
    assert [row[1] for row in columns] == ["processor", "---", "a processor", "another"]
    assert columns[2][-2:] == ["**1.50** (1.40 to 1.60)", "0.71"]
    assert columns[3][-2] == "disturbed: 1.40 to 1.60"
    assert sum("interleaved rounds" in line for line in lines) == 2


def test_table_has_products_and_batch_norm_where_they_were_measured():
    product = {
        "kind": "gradient",
        "rows": 128,
        "depth": 64,
        "columns": 10,
        "gflops": 97.6,
        "ratio": 1.25,
        "ratio_quartiles": [1.2, 1.3],
        "of_peak": 0.81,
        "disturbed": None,
    }
    told = table.markdown(
        {
            **record(),
            "products": [
                {"threads": 1, "rows": [product, {**product, "disturbed": "x"}]},
                {"threads": 2, "rows": [product]},
            ],
            "memory_bound": [
                {
                    "threads": 1,
                    "bandwidth_gb": 20.06,
                    "ratio": 0.8,
                    "ratio_quartiles": [0.7, 0.9],
                    "disturbed": None,
                }
            ],
        }
    ).splitlines()
    row = "| x^T dz 128 x 64 x 10 | a processor | 1 | 98 GFLOP/s | {} | 0.81 |"
    assert row.format("**1.25** (1.20 to 1.30)") in told
    assert row.format("disturbed: 1.20 to 1.30") in told
    assert row.replace("| 1 |", "| 2 |").format("**1.25** (1.20 to 1.30)") in told
    assert "| batch norm | a processor | 1 | 20.1 GB/s | **0.80** (0.70 to 0.90) |" in told
    assert sum(line.startswith("|---") for line in told) == 3


def test_newest_record_of_each_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RECORDS", tmp_path)
    for day, name in ((1, "one"), (2, "two"), (3, "one")):
        table.write_record("cpu", {**record(name), "date": f"2030-01-0{day}T00:00"})
    found = table.newest_records("cpu")
    assert [(r["machine"], r["date"][:10]) for r in found] == [
        ("one", "2030-01-03"),
        ("two", "2030-01-02"),
    ]


def test_the_committed_records_make_a_table():
    assert table.markdown(*table.newest_records("cpu")).count("\n") > 3


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(compare, "TARGET", 0.01)
    monkeypatch.setattr(compare.quiet, "idle_check", lambda: 0.0)
    monkeypatch.setattr(against.quiet, "idle_check", lambda: 0.0)


@pytest.mark.slow
def test_comparison_is_whole(short, monkeypatch):
    monkeypatch.setattr(contestants, "FEATURES", (contestants.ours, contestants.ours))
    found = compare.compare(by_name("small"), 1, 2, print)
    json.dumps(found, allow_nan=False)
    assert found["best_peer"] == "ours" and not found["failed"] and found["ratio"] > 0
    assert found["others"]["before"] == 0.0 and found["contestants"]["ours"]["disagreement"] == 0
    roof = found["roofline"]
    assert roof["peak_gflops"] > 0 and roof["bandwidth_gb"] > 0
    assert roof["fraction"] > 0 and roof["bound"] in ("products", "memory")


def test_batch_norm_is_told_as_a_share_of_the_bandwidth(short, monkeypatch):
    class Answering:
        session = 0

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def ask(self, rounds):
            return [(10.0, 4.0), (20.0, 10.0), (40.0, 24.0)][:rounds]

    monkeypatch.setattr(compare, "Process", Answering)
    found = compare.memory_bound(2, 3)
    assert (found["bandwidth_gb"], found["ratio"], found["threads"]) == (40.0, 0.5, 2)
    assert found["ratio_quartiles"] == [pytest.approx(0.45), pytest.approx(0.55)]
    assert found["verdict"] is None  # quartiles too far apart
    told = table.printed_memory({**found, "disturbed": "other work"})
    assert told == (
        "threads: 2: bandwidth 40.0 GB/s, batch norm at 0.50 of it (0.45 to 0.55), "
        "no verdict: other work"
    )
    assert table.printed_memory({**found, "disturbed": None, "verdict": "missed"}).endswith(
        ", aim 0.8: missed"
    )


def test_rates_are_work_over_time(monkeypatch):
    monkeypatch.setattr(machine, "SECONDS", 0.001)
    for rate, work in (
        (machine.peak(1), 2 * machine.CHAINS * machine.workspace.lanes("f4") * machine.STEPS),
        (machine.bandwidth(1, 3 * 2**12), 3 * 2**12),
        (machine.batchnorm_rate(1, rows=32, columns=32), 8 * 32 * 32 * 4),
    ):
        assert rate._seconds(3) > 0  # as many as a fast machine does in the time
        monkeypatch.setattr(rate, "_seconds", lambda steps: steps * 1e-9)
        assert rate.measure() == pytest.approx(work) and rate.steps >= 1


def test_a_rate_is_that_of_the_best_turn(monkeypatch):
    """Of five turns that take as long as the steps, or longer: the first while threads wake."""
    turns = iter([3.0, 1.5, 1.0, 2.0, 1.0])
    rate = machine.Rate(6.0, lambda steps: time.sleep(0.003))
    monkeypatch.setattr(rate, "_seconds", lambda steps: next(turns) * steps * 1e-9)
    assert rate.measure() == pytest.approx(6.0)


def test_the_peak_counts_what_is_computed(monkeypatch):
    """A chain that began with 1.0 was computed by the compiler, and the peak 12/11 too high."""
    kernel = machine.multiply_add_kernel
    monkeypatch.setenv("MINIMAL_NN_CACHE_DIR", "")
    monkeypatch.setattr(kernel, "_compiled", {})
    machine.peak(1)
    (compiled,) = kernel._compiled.values()
    text = compiled._library.get_llvm_str()
    found = len(re.findall(r"= (?:tail )?call [^\n]*@llvm\.fma|= fmul <", text))
    assert found and found % machine.CHAINS == 0


def test_each_thread_is_pinned_to_a_core_of_its_own(monkeypatch):
    pinned = {}
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {7, 3, 5})
    monkeypatch.setattr(
        machine.os,
        "sched_setaffinity",
        lambda _, cores: pinned.setdefault(threading.get_ident(), cores),
    )
    machine.pin(3)
    assert sorted(map(sorted, pinned.values())) == [[3], [5], [7]]
    assert pinned[threading.get_ident()] == {3}


@pytest.mark.slow
def test_a_checkout_against_itself(short, capsys):
    assert against.main([str(ROOT), "--only", "small", "--threads", "1", "--rounds", "2"]) == 0
    told = capsys.readouterr().out
    assert "times as fast; noise" in told and "losses: same bits" in told


def test_a_folder_without_the_package_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="expected a checkout that holds minimal_nn"):
        against.main([str(tmp_path)])


def test_other_checkouts_package_is_the_one_that_trains(tmp_path):
    """A package of that name which is no network: an import from here instead would go unseen."""
    (tmp_path / "minimal_nn").mkdir()
    (tmp_path / "minimal_nn" / "__init__.py").write_text("raise ImportError('the other one')")
    with (
        against.only_package(tmp_path) as folder,
        pytest.raises(RuntimeError, match="the other one"),
    ):
        against.started(by_name("small"), 1, folder)


def test_last_words_of_a_process_are_told():
    with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
        process.Process("training", "nobody", "small", 1, threads=1)


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--threads", "0"], ["--only"]])
def test_arguments_that_measure_nothing_are_refused(arguments):
    with pytest.raises(SystemExit):
        command.main(arguments)
