"""python -m theory.yours.optimizers: the symmetry of the optimizers of three libraries."""

import argparse
import os
import sys
import warnings

from tqdm.auto import tqdm

from minimal_nn.command import run
from theory.yours.optimizers import table


def parser():
    """Return the command line."""
    p = argparse.ArgumentParser(
        prog="python -m theory.yours.optimizers",
        description="Measure the symmetry of the optimizers of PyTorch, optax and "
        "pytorch_optimizer, a second or so for each.",
    )
    p.add_argument(
        "--library", nargs="+", choices=table.LIBRARIES, default=["torch"], help="(default: torch)"
    )
    p.add_argument("--only", metavar="NAME", nargs="+", help="these optimizers alone")
    p.add_argument(
        "--write",
        metavar="DIR",
        type=os.path.expanduser,
        help="write the table to DIR/optimizers.json and its page to DIR/optimizers.md; libraries "
        "that are not measured now keep their rows",
    )
    return p


def main(arguments=None):
    """Run the command; return the exit status."""
    options = parser().parse_args(arguments)
    try:
        if options.only and options.write:
            raise ValueError("--only: got it with --write, expected whole libraries there")
        found = {}
        for library in options.library:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of foreign libraries
                found[library] = table.measured(library, options.only, _progress)
    except (OSError, ValueError, ImportError) as error:
        print(f"python -m theory.yours.optimizers: {error}", file=sys.stderr)
        return 2
    if options.write:
        print(f"page: {table.write(options.write, {**table.read(options.write), **found})}")
    else:
        print("\n".join(table.text(found)))
    return 0


def _progress(entries):
    return tqdm(entries, unit="optimizer", file=sys.stderr, disable=None)


if __name__ == "__main__":
    run(main)
