"""python -m theory: verify the paper's claims on networks trained on real data."""

import argparse
import contextlib
import os
import sys
import time

import numpy as np

from minimal_nn import backend
from minimal_nn.command import painted, run
from theory.claim import CLAIMS, FOLLOWERS, select
from theory.numbers import arithmetic
from theory.report import ask, faults, outline, processes, reach, seeds, table
from theory.subjects.networks import DTYPES, Options


def parser():
    """Return the command line."""
    p = argparse.ArgumentParser(
        prog="python -m theory",
        description="Verify the claims of van Laarhoven (2017) on networks trained on the digits.",
    )
    p.add_argument("--list", action="store_true", help="say each claim in a sentence and exit")
    p.add_argument("--explain", metavar="ID", help="print a claim with its derivation and exit")
    p.add_argument("--latex", action="store_true", help="--explain: formulas in LaTeX")
    p.add_argument(
        "--chapter",
        choices=["followers"],
        help="the papers after 2017, in place of the paper's claims",
    )
    p.add_argument(
        "--ask",
        metavar="N",
        type=int,
        nargs="*",
        help="answer what practitioners ask (question N, or all) and exit",
    )
    p.add_argument("--errata", action="store_true", help="list where sources err, and exit")
    p.add_argument("--only", metavar="ID", nargs="+", help="verify these claims alone")
    p.add_argument("--backend", default="reference", choices=backend.NAMES, help="the wing")
    numbers = p.add_mutually_exclusive_group()
    numbers.add_argument("--dtype", default=None, choices=DTYPES, help="one dtype (default: both)")
    numbers.add_argument(
        "--arithmetic",
        default=None,
        choices=arithmetic.NAMES,
        help="other numbers: a dtype, rigorous balls, or symbols (the claims that fit them; the "
        "others are named with the reason)",
    )
    p.add_argument("--bits", type=int, default=1000, help="the balls' precision (default 1000)")
    p.add_argument("--seed", type=int, default=0, help="of weights and batches (default 0)")
    p.add_argument(
        "--seeds", type=int, metavar="N", help="seeds 0 to N - 1: how often, and the pooled biases"
    )
    p.add_argument(
        "--faults",
        metavar="FAULT",
        nargs="*",
        help="which claims catch which planted fault (all of them: half an hour)",
    )
    p.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="verify on N processes (default: two where there are two cores, one with --only)",
    )
    p.add_argument("--thorough", action="store_true", help="also the long statistical runs")
    p.add_argument("--table", action="store_true", help="print a line for every subject")
    p.add_argument(
        "--json",
        metavar="FILE",
        type=os.path.expanduser,
        help="write every figure to FILE, or to stdout (-), where nothing else is then",
    )
    folder = {"metavar": "DIR", "type": os.path.expanduser}
    p.add_argument("--play", **folder, help="write a page to play with to DIR and exit")
    p.add_argument("--report", **folder, help="write a page with every claim to DIR")
    return p


def main(arguments=None):
    """Run the command; return the exit status: 0 only if all is verified."""
    options = parser().parse_args(arguments)
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if options.json == "-" else out):
        return _main(options, out)


def _main(options, out):
    registry = FOLLOWERS if options.chapter else CLAIMS
    if options.list:
        print("\n".join(outline.listing(registry.values())))
        return 0
    if options.errata:
        print("\n".join(outline.errata({**CLAIMS, **FOLLOWERS}.values())))
        return 0
    try:
        if options.ask is not None:
            print("\n".join(ask.lines(options.ask)))
            return 0
        if options.latex and not options.explain:
            raise ValueError(
                "--latex: got it alone, expected --explain ID, whose formulas it shows"
            )
        if options.explain:
            (claim,) = select([options.explain])
            print(_explained(claim, options.latex))
            return 0
        if options.play:
            from theory.report import play  # latex2mathml, for this option alone

            print(f"page: {play.write(options.play)}")
            return 0
        claims = select(options.only, registry)
        if options.seed < 0:
            raise ValueError(f"--seed: got {options.seed}, expected an integer >= 0")
        if options.seeds is not None and options.seeds < 1:
            raise ValueError(f"--seeds: got {options.seeds}, expected an integer >= 1")
        for option in ("seed", "table", "report"):
            if options.seeds is not None and getattr(options, option):
                raise ValueError(
                    f"--seeds: got it with --{option}, expected one of the two: it counts over "
                    "seeds from 0 on, and --json has every figure"
                )
        if options.processes is None:
            options.processes = 1 if options.only else processes.default_number()
        if options.processes < 1:
            raise ValueError(f"--processes: got {options.processes}, expected an integer >= 1")
        backend.get(options.backend).asarray(np.zeros(1))  # says what is missing before the work
        if options.json:
            table.check_json_path(options.json, options.faults is None)
        if options.arithmetic is not None:
            arithmetic.get(options.arithmetic, options.bits)
        asked = _asked(options)
        left_out = {claim: claim.left_out(asked) for claim in claims}
        _refuse(options, asked, claims)
        if options.faults is not None:
            return _planted(options)
    except BrokenPipeError:
        raise  # which ends the command quietly
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(f"python -m theory: {error}", file=sys.stderr)
        return 2
    started = time.perf_counter()
    try:
        if options.seeds is not None:
            return _over_seeds(claims, asked, options, left_out, out)
        found = _watched(processes.verified(claims, asked, options.processes), len(claims))
        verdicts = (_every_subject if options.table else _every_claim)(claims, found, asked)
    except processes.LostProcessError as error:
        print(f"python -m theory: {error}", file=sys.stderr)
        return 2
    for line in table.notes(left_out, options.backend):
        print(line)
    print("-" * table.WIDTH)
    seconds = time.perf_counter() - started
    print(table.summary(verdicts, seconds))
    try:
        if options.json:
            rows = [verdict.as_dict() for verdict in verdicts]
            table.write_json(options.json, rows, vars(options), left_out, out)
        if options.report:
            from theory.report import page  # latex2mathml, for this option alone

            print(f"report: {page.write(options.report, verdicts, seconds, left_out)}")
    except BrokenPipeError:
        raise  # which ends the command quietly
    except (OSError, ValueError, ImportError) as error:
        print(f"python -m theory: {error}", file=sys.stderr)
        return 2
    return 0 if all(verdict.verified for verdict in verdicts) else 1


def _explained(claim, latex):
    """Return a claim in full; in LaTeX too where the terminal lacks the letters."""
    caught = [line for line in (reach.told(claim), faults.caught_by_claim(claim)) if line]
    text = table.explanation(claim, caught, latex)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return table.explanation(claim, caught, latex=True)
    return text


def _planted(options):
    """Print which claims catch which fault; return 1 if a fault survives that should not."""
    with processes.one_blas_thread():
        found = faults.judged(options.faults)
    if options.json:
        faults.write_json(options.json, found)
    alive = faults.survivors(found)
    count = table.counted(len(found), "fault")
    print(f"{count}, {sum(map(bool, found.values()))} caught, {len(alive)} survive")
    return 1 if alive else 0


def _over_seeds(claims, asked, options, left_out, out):
    """Print how often each claim is verified over seeds; return 1 unless always."""
    found = seeds.verdicts_of(
        claims, asked, options.seeds, lambda text: print(text, flush=True), options.processes
    )
    print("\n".join(seeds.lines(found)))
    if options.json:
        rows = [
            {"seed": seed, **verdict.as_dict()}
            for verdicts in found.values()
            for seed, verdict in enumerate(verdicts)
        ]
        try:
            table.write_json(options.json, rows, vars(options), left_out, out)
        except BrokenPipeError:
            raise
        except (OSError, ValueError) as error:
            print(f"python -m theory: {error}", file=sys.stderr)
            return 2
    return 0 if all(verdict for verdicts in found.values() for verdict in verdicts) else 1


def _every_subject(claims, found, asked):
    """Print a line for each subject of the claims that are found; return the verdicts."""
    print("\n".join(table.header(asked.arithmetic)))
    verdicts = []
    for _, own in found:
        _show(map(table.line, own))
        verdicts += own
    return verdicts


def _every_claim(claims, found, asked):
    """Print a line for each of the claims that are found, by chapters; return the verdicts."""
    print("\n".join(outline.header(len(claims), asked.arithmetic)), flush=True)
    verdicts, chapter = [], None
    for claim, own in found:
        if outline.chapter(claim) != chapter:
            chapter = outline.chapter(claim)
            print(chapter, flush=True)
        _show(outline.lines(own))
        verdicts += own
    return verdicts


def _show(lines):
    """Print lines that end with a verdict, which a terminal shows in its colour."""
    print("\n".join(painted(line, table.COLOURS) for line in lines), flush=True)


def _watched(found, count):
    """Yield what is found; while it is waited for, a terminal's last line says how far it is."""
    if not sys.stderr.isatty():
        yield from found
        return
    found = iter(found)
    for at in range(count + 1):
        print(
            f"\033[K{at} of {table.counted(count, 'claim')}\r", end="", file=sys.stderr, flush=True
        )
        item = next(found, None)
        print("\033[K", end="", file=sys.stderr, flush=True)
        if item is None:
            return
        yield item


def _asked(options):
    """Return the command line's choices as the claims' Options."""
    dtype = options.dtype or options.arithmetic
    return Options(
        backend=options.backend,
        dtypes=DTYPES if dtype is None else (dtype,),
        seed=options.seed,
        thorough=options.thorough,
        arithmetic=options.arithmetic,
        bits=options.bits,
    )


def _refuse(options, asked, claims):
    """Refuse a wing that has no such numbers, and a claim that is asked for but fits none of it."""
    if options.backend != "reference" and options.arithmetic not in (None, *DTYPES):
        raise ValueError(
            f"--backend: got {options.backend}, expected reference with --arithmetic "
            f"{options.arithmetic}: only its formulas run on other numbers"
        )
    for claim in claims if options.only else ():
        reasons = claim.left_out(asked)
        if len(reasons) == len(asked.dtypes if asked.arithmetic not in arithmetic.EXACT else (1,)):
            name, reason = next(iter(reasons.items()))
            raise ValueError(f"--only: {claim.id} is not run in {name}: {reason}")


if __name__ == "__main__":
    run(main)
