"""python -m benchmarks.cpu.against PATH: this checkout's cpu wing against another's, in turn.

For each configuration three processes train in turn, each for a third of a second a round: the
`minimal_nn` of this checkout, that of the other, and that of this one again.  All run this
checkout's benchmark code.  Printed are medians and quartiles, over the rounds, of how many times as
fast this checkout is as the other, and as itself: the noise.  Their losses must agree; whether they
are the same bits is said.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.cpu import quiet
from benchmarks.cpu.compare import TOLERANCE, Contestant, ratios
from benchmarks.cpu.configurations import CONFIGURATIONS, by_name
from benchmarks.cpu.process import ROOT
from benchmarks.table import seconds

DEFAULT = ("mlp", "small", "conv", "grid-small")


@contextlib.contextmanager
def only_package(tree):
    """Give a folder that holds nothing but the tree's `minimal_nn`."""
    package = Path(tree).expanduser().resolve() / "minimal_nn"
    if not (package / "__init__.py").is_file():
        raise SystemExit(f"PATH: got {tree}, expected a checkout that holds minimal_nn")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "minimal_nn").symlink_to(package, target_is_directory=True)
        yield Path(folder)


def started(configuration, threads, folder):
    """Return the contestant that trains with the `minimal_nn` in this folder, and no other."""
    contestant = Contestant("ours", configuration, threads, folder)
    imported = Path(contestant.process.greeting["package"]).resolve().parent
    if imported != (folder / "minimal_nn").resolve():
        contestant.process.close()
        raise RuntimeError(f"minimal_nn: imported {imported}, expected the one in {folder}")
    return contestant


def against(configuration, threads, rounds, other):
    """Time this checkout against the `minimal_nn` in the folder `other`; return the record."""
    before = quiet.idle_check()
    with contextlib.ExitStack() as stack:
        running = []
        for folder in (ROOT, other, ROOT):
            running.append(started(configuration, threads, folder))
            stack.callback(running[-1].process.close)
        this, that, again = running
        for contestant in running:
            contestant.prepare(configuration.copies)
        watch = quiet.Watch([contestant.process.session for contestant in running])
        for index in range(rounds):
            for contestant in running if index % 2 == 0 else running[::-1]:
                contestant.measure()
        during = watch.others()
    ratio, noise = ratios(that, this), ratios(again, this)
    return {
        "configuration": configuration.name,
        "threads": threads,
        "seconds": [sorted(c.times)[len(c.times) // 2] for c in (this, that)],
        "ratio": ratio,
        "noise": noise,
        "disturbed": quiet.disturbance(before, during, ratio[0], ratio[1:]),
        "agree": this.disagreement(that.losses) <= TOLERANCE,
        "same_bits": this.losses == that.losses,
    }


def printed(found):
    """Return the line of one comparison."""
    this, that = map(seconds, found["seconds"])
    ratio, noise = ("{:.3f} ({:.3f} to {:.3f})".format(*found[key]) for key in ("ratio", "noise"))
    losses = "same bits" if found["same_bits"] else "agree" if found["agree"] else "DIFFER"
    line = (
        f"{found['configuration']:15} threads {found['threads']}: {this:>8} against {that:>8}, "
        f"{ratio} times as fast; noise {noise}; losses: {losses}"
    )
    return line + (f"; no verdict: {found['disturbed']}" if found["disturbed"] else "")


def main(arguments=None):
    """Run the command; return 1 where losses differ."""
    cores = len(os.sched_getaffinity(0))
    p = argparse.ArgumentParser(prog="python -m benchmarks.cpu.against", description=__doc__)
    p.add_argument("path", metavar="PATH", help="the other checkout")
    names = [c.name for c in CONFIGURATIONS]
    p.add_argument("--only", nargs="+", choices=names, default=DEFAULT)
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument(
        "--threads", nargs="+", type=int, choices=range(1, cores + 1), default=sorted({1, cores})
    )
    options = p.parse_args(arguments)
    if options.rounds < 1:
        p.error(f"--rounds: got {options.rounds}, expected at least 1")
    agree = True
    with only_package(options.path) as other:
        for configuration in map(by_name, options.only):
            for threads in options.threads:
                if configuration.copies > 1 and threads < max(options.threads):
                    continue
                found = against(configuration, threads, options.rounds, other)
                agree &= found["agree"]
                print(printed(found), flush=True)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
