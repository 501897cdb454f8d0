"""python -m minimal_nn.lab FILE ...: grade submissions; exit status 0 only if all is right."""

import argparse
import json
import sys
from pathlib import Path

from minimal_nn.command import run
from minimal_nn.files import check_new, path_of, whole_file
from minimal_nn.lab.apart import SECONDS, check
from minimal_nn.lab.exercises import EXERCISES


def parser():
    """Return the command line."""
    p = argparse.ArgumentParser(
        prog="python -m minimal_nn.lab",
        description="Grade the exercises in .py or .ipynb files: a point for each that is right.",
    )
    p.add_argument("files", metavar="FILE", nargs="+", help="a submission")
    p.add_argument(
        "--only", metavar="NAME", nargs="+", choices=EXERCISES, help="grade these exercises alone"
    )
    p.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"for each exercise (default {SECONDS:g})"
    )
    p.add_argument(
        "--json",
        metavar="OUT",
        help="write the points to OUT, as Gradescope's results.json has them",
    )
    return p


def grade(path, names, seconds=SECONDS):
    """Return the points of a submission: score, max_score, and each exercise's output."""
    tests = []
    for name in names:
        answer = check(path, name, seconds=seconds)
        tests.append(
            {"name": name, "score": int(answer.right), "max_score": 1, "fault": answer.fault}
            | {"output": answer.text}
        )
    points = sum(test["score"] for test in tests)
    return {"file": str(path), "score": points, "max_score": len(names), "tests": tests}


def main(arguments=None):
    """Run the command; return the exit status: 0 only if every exercise of every file is right."""
    options = parser().parse_args(arguments)
    missing = [path for path in options.files if not Path(path).is_file()]
    if missing:
        print(f"python -m minimal_nn.lab: FILE: {missing[0]} is no file", file=sys.stderr)
        return 2
    try:
        if options.json:
            check_new("--json", path_of("--json", options.json))
    except OSError as error:
        print(f"python -m minimal_nn.lab: {error}", file=sys.stderr)
        return 2
    graded = []
    for path in options.files:
        graded.append(grade(path, options.only or list(EXERCISES), options.seconds))
        print(f"{path}: {graded[-1]['score']} of {graded[-1]['max_score']}")
        for test in graded[-1]["tests"]:
            print("  " + test["output"].replace("\n", "\n  "), flush=True)
    if options.json:
        # A grader of one submission reads its results at the top of the file.
        report = graded[0] if len(graded) == 1 else {"submissions": graded}
        with whole_file(path_of("--json", options.json), "w") as file:
            json.dump(report, file, indent=1)
    return 0 if all(one["score"] == one["max_score"] for one in graded) else 1


if __name__ == "__main__":
    run(main)
