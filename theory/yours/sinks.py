"""Where a monitor's samples go: a CSV file, TensorBoard, Weights & Biases, or a function."""

import csv
import inspect
import math
import os
from collections.abc import Iterable
from typing import Any

from minimal_nn.files import check_new, path_of
from theory.yours.monitoring import Sample


def writers_of(sinks: Any) -> list[Any]:
    """Return a function (samples of one step) -> None for each of some sinks, or for one alone."""
    one = isinstance(sinks, (str, os.PathLike)) or not isinstance(sinks, Iterable)
    return [_writer_of(sink) for sink in ((sinks,) if one else sinks)]


def _writer_of(sink):
    """Return the function of a sink, by what it can do.

    A path: rows are added to a CSV file.  An object with add_scalar(tag, value, step):
    TensorBoard's SummaryWriter.  With log(dict, step=): a run of Weights & Biases.  Any other
    function gets the samples.  Raises TypeError for anything else, and OSError for a path that no
    file can be written to.
    """
    if isinstance(sink, (str, os.PathLike)):
        path = path_of("sinks", sink)
        check_new("sinks", path)
        return _csv(path)
    if callable(getattr(sink, "add_scalar", None)):
        return _tensorboard(sink)
    if _takes_numbers(getattr(sink, "log", None)):
        return _wandb(sink)
    if callable(sink):
        return sink
    raise TypeError(
        f"sinks: got {type(sink).__name__}, expected a path of a CSV file, an object with "
        "add_scalar (TensorBoard) or log (Weights & Biases), or a function"
    )


def _takes_numbers(log):
    """Return whether log(dict, step=) is a call: not of Python's loggers, nor of math.log."""
    try:
        inspect.signature(log).bind({}, step=0)
    except (TypeError, ValueError):
        return False
    return True


def _csv(path):
    def write(samples):
        new = not path.exists() or path.stat().st_size == 0
        with open(path, "a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if new:
                rows.writerow(Sample._fields)
            rows.writerows(samples)

    return write


def _scalars(sample):
    """Yield (tag, value) of what is known of a sample."""
    for field in Sample._fields[2:]:
        value = getattr(sample, field)
        if not math.isnan(value):
            yield f"{field}/{sample.name}", value


def _tensorboard(writer):
    def write(samples):
        for sample in samples:
            for tag, value in _scalars(sample):
                writer.add_scalar(tag, value, sample.step)

    return write


def _wandb(run):
    def write(samples):
        if samples:
            values = dict(pair for sample in samples for pair in _scalars(sample))
            run.log(values, step=samples[0].step)

    return write
