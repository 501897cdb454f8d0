"""What options cost: each is measured, in turn, and told as a part of a step without."""

import re

import numpy as np

from benchmarks.cpu import options
from minimal_nn.cpu.machine import threads


def test_every_option_is_measured_and_printed(monkeypatch, capsys):
    monkeypatch.setenv(threads.ENVIRONMENT, "1")  # put back afterwards
    monkeypatch.setattr(options, "STEPS", {"small": 4})
    assert options.main(["--only", "small", "--rounds", "3"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    count = len(options.OPTIONS)
    second, *more = lines[count:]
    assert re.fullmatch(r"small: .* a step without options", title)
    assert re.fullmatch(r"small without normalization: .* a step", second)
    named = [line[2:18].strip() for line in (*lines[:count], *more[:-1])]
    assert named == [*options.OPTIONS, *options.NORMALIZED, "less its bytes"]
    assert re.fullmatch(r"  RMS norm takes \d+\.\d\d of the time of its bytes", more[-1])
    for first in (lines[0], more[0]):
        assert first[18:].split() == ["1.000", "(1.000", "to", "1.000)"]
    parts = [float(line[18:].split()[0]) for line in (*lines[:count], *more[:-2])]
    assert np.all(np.isfinite(parts)) and min(parts) > 0
