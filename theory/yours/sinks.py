"""Where a monitor's samples go: a CSV file, TensorBoard, Weights & Biases, or a function."""

import csv
import math
import os
from pathlib import Path
from typing import Any

from theory.yours.monitoring import Sample


def writer_of(sink: Any) -> Any:
    """Return the function (samples of one step) -> None of a sink, by what it can do.

    A path: rows are added to a CSV file.  An object with add_scalar(tag, value, step):
    TensorBoard's SummaryWriter.  With log(dict, step=): a run of Weights & Biases.  Any other
    function gets the samples.  Raises TypeError for anything else.
    """
    if isinstance(sink, (str, os.PathLike)):
        return _csv(Path(sink).expanduser())
    if callable(getattr(sink, "add_scalar", None)):
        return _tensorboard(sink)
    if callable(getattr(sink, "log", None)):
        return _wandb(sink)
    if callable(sink):
        return sink
    raise TypeError(
        f"sinks: got {type(sink).__name__}, expected a path of a CSV file, an object with "
        "add_scalar (TensorBoard) or log (Weights & Biases), or a function"
    )


def _csv(path):
    if not path.parent.is_dir():
        raise FileNotFoundError(f"sinks: the folder {path.parent} does not exist; create it first")

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
