"""python -m theory: verify the paper's claims on networks trained on real data."""

import argparse
import sys
import time

from minimal_nn import backend
from theory import arithmetic, identities, report
from theory.claim import IDENTITIES, select
from theory.subject import DTYPES, Options


def parser():
    """Return the command line."""
    p = argparse.ArgumentParser(
        prog="python -m theory",
        description="Verify the claims of van Laarhoven (2017) on networks trained on the digits.",
    )
    p.add_argument("--list", action="store_true", help="list the claims and exit")
    p.add_argument("--explain", metavar="ID", help="print a claim with its derivation and exit")
    p.add_argument("--only", metavar="ID", nargs="+", help="verify these claims alone")
    p.add_argument("--backend", default="reference", choices=backend.NAMES, help="the wing")
    numbers = p.add_mutually_exclusive_group()
    numbers.add_argument("--dtype", default=None, choices=DTYPES, help="one dtype (default: both)")
    numbers.add_argument(
        "--arithmetic",
        default=None,
        choices=[name for name in arithmetic.NAMES if name != "float16"],  # networks underflow
        help="other numbers: a dtype, rigorous balls, or symbols (the claims that are identities)",
    )
    p.add_argument(
        "--bits", type=int, default=1000, help="the balls' precision (default 1000)"
    )
    p.add_argument("--seed", type=int, default=0, help="of weights and batches (default 0)")
    p.add_argument("--thorough", action="store_true", help="also the long statistical runs")
    p.add_argument("--json", metavar="FILE", help="write every figure to FILE")
    p.add_argument("--report", metavar="DIR", help="write a page with every claim to DIR")
    return p


def main(arguments=None):
    """Run the command; return the exit status: 0 only if all is verified."""
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(report.listing()))
        return 0
    try:
        if options.explain:
            print(report.explanation(select([options.explain])[0]))
            return 0
        claims = select(options.only)
        if options.seed < 0:
            raise ValueError(f"--seed: got {options.seed}, expected an integer >= 0")
        backend.get(options.backend)
        if options.json:
            report.check_json_path(options.json)
        if options.arithmetic is not None:
            arithmetic.get(options.arithmetic, options.bits)
        if options.arithmetic in ("ball", "symbol"):
            claims = _identities(claims, options)
    except (ValueError, ImportError, RuntimeError) as error:
        print(f"python -m theory: {error}", file=sys.stderr)
        return 2
    dtype = options.dtype or options.arithmetic
    asked = Options(
        backend=options.backend,
        dtypes=DTYPES if dtype is None else (dtype,),
        seed=options.seed,
        thorough=options.thorough,
        arithmetic=options.arithmetic,
        bits=options.bits,
    )
    exact = asked.arithmetic in ("ball", "symbol")
    started = time.perf_counter()
    print("\n".join(report.header(asked.arithmetic)))
    verdicts = []
    with _one_blas_thread():
        for claim in claims:
            for subject in identities.subjects(asked) if exact else claim.subjects(asked):
                verdicts.append(claim.verify(subject))
                print(report.line(verdicts[-1]), flush=True)
    print("-" * report.WIDTH)
    seconds = time.perf_counter() - started
    print(report.summary(verdicts, seconds))
    try:
        if options.json:
            report.write_json(options.json, verdicts, vars(options))
        if options.report:
            from theory import page  # latex2mathml and matplotlib, for this option alone

            print(f"report: {page.write(options.report, verdicts, seconds)}")
    except (OSError, ValueError, ImportError) as error:
        print(f"python -m theory: {error}", file=sys.stderr)
        return 2
    return 0 if all(verdict.verified for verdict in verdicts) else 1


def _identities(claims, options):
    """Return the claims that balls and symbols can be asked for; refuse what asks for none."""
    if options.backend != "reference":
        raise ValueError(
            f"--backend: got {options.backend}, expected reference with --arithmetic "
            f"{options.arithmetic}: only its formulas run on other numbers"
        )
    ids = identities.SYMBOLIC if options.arithmetic == "symbol" else IDENTITIES
    chosen = tuple(claim for claim in claims if claim.id in ids)
    if not chosen:
        raise ValueError(
            f"--only: got {options.only}, expected some of {', '.join(ids)} (the claims that are "
            f"identities) with --arithmetic {options.arithmetic}"
        )
    return chosen


def _one_blas_thread():
    """Pin BLAS to one thread: bits depend on the number, and small products are faster."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1, user_api="blas")


if __name__ == "__main__":
    sys.exit(main())
