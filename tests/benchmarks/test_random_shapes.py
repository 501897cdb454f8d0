"""Random shapes: the same for the same seed, judged alike, told in a line for each operation."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cpu import shapes
from minimal_nn.cpu.machine import threads

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("operation", shapes.OPERATIONS)
def test_a_number_stands_for_a_shape(operation):
    (what, compute), (again, other) = (shapes.case(operation, 3, 5) for _ in range(2))
    assert what == again and what != shapes.case(operation, 3, 6)[0]
    for mine, theirs in zip(compute(), other(), strict=True):
        assert (mine is None and theirs is None) or np.array_equal(mine, theirs)


def test_a_process_tells_what_it_computes_and_times_it(monkeypatch):
    monkeypatch.setenv(threads.ENVIRONMENT, "1")  # put back afterwards
    monkeypatch.setattr(shapes, "keep_memory", lambda: None)  # of the tests' process
    greeting, answer = shapes.serve("activation", 0, 3)
    assert [what for what, _ in greeting["cases"]] == [
        shapes.case("activation", 0, number)[0] for number in range(3)
    ]
    results = b"".join(np.asarray(each).tobytes() for each in shapes.case("activation", 0, 2)[1]())
    assert greeting["cases"][2][1] == hashlib.sha256(results).hexdigest()
    assert answer([2, 0.001]) > 0


class Answering:
    """A process that takes these seconds for each shape, in turn where there are several."""

    def __init__(self, *seconds):
        self.seconds, self.asked = seconds, []

    def ask(self, question):
        self.asked.append(question)
        return self.seconds[len(self.asked) % len(self.seconds)]


def test_the_ratio_is_the_other_ones_time_over_this_ones():
    this, that = Answering(2.0), Answering(3.0)
    assert shapes.compared(this, that, 7, 4, 0.5) == (1.5, 1.5, 1.5)
    assert this.asked == that.asked == [[7, 0.5]] * 4


def test_what_is_slower_is_measured_again_and_named(monkeypatch):
    class Process(Answering):
        def __init__(self, kind, operation, seed, count, threads, folder):
            super().__init__(1.0)
            self.greeting = {"cases": [["a", "x"], ["b", str(folder)], ["c", "x"]]}
            self.folder = folder

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def ask(self, question):
            number, seconds = question
            slow = number == 1 or number == 2 and seconds == shapes.SECONDS
            return 1.1 if slow and self.folder == shapes.ROOT else 1.0

    monkeypatch.setattr(shapes, "Process", Process)
    found = shapes.against("affine", "elsewhere", 3, 2, 0)
    assert [what for what, ratio, _ in found if ratio < shapes.LEAST] == ["b"]
    told = shapes.printed("affine", found).splitlines()
    assert told[0].endswith("the slowest 0.91; slower than 0.97: 1; other bits: 1")
    assert told[1:] == ["  0.91: b", "  other bits: b"]


@pytest.mark.slow
def test_a_checkout_against_itself(capsys):
    shapes.main([str(ROOT), "--only", "activation", "--shapes", "2", "--rounds", "2"])
    assert "activation     2 shapes" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--shapes", "0"], ["--rounds", "0"], ["--only"]])
def test_arguments_that_measure_nothing_are_refused(arguments):
    with pytest.raises(SystemExit):
        shapes.main(["PATH", *arguments])
