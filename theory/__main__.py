"""python -m theory: verify the paper's claims on networks trained on real data."""

import argparse
import sys
import time

from minimal_nn import backend
from theory import report
from theory.claim import select
from theory.subject import DTYPES, Options


def parser():
    """Return the command line."""
    p = argparse.ArgumentParser(
        prog="python -m theory",
        description="Verify the claims of van Laarhoven (2017) on networks trained on the digits.",
    )
    p.add_argument("--list", action="store_true", help="list the claims and exit")
    p.add_argument("--only", metavar="ID", nargs="+", help="verify these claims alone")
    p.add_argument("--backend", default="reference", choices=backend.NAMES, help="the wing")
    p.add_argument("--dtype", default=None, choices=DTYPES, help="one dtype (default: both)")
    p.add_argument("--seed", type=int, default=0, help="of weights and batches (default 0)")
    p.add_argument("--thorough", action="store_true", help="also the long statistical runs")
    p.add_argument("--json", metavar="FILE", help="write every figure to FILE")
    return p


def main(arguments=None):
    """Run the command; return the exit status: 0 only if all is verified."""
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(report.listing()))
        return 0
    try:
        claims = select(options.only)
        if options.seed < 0:
            raise ValueError(f"--seed: got {options.seed}, expected an integer >= 0")
        backend.get(options.backend)
    except (ValueError, ImportError, RuntimeError) as error:
        print(f"python -m theory: {error}", file=sys.stderr)
        return 2
    asked = Options(
        backend=options.backend,
        dtypes=DTYPES if options.dtype is None else (options.dtype,),
        seed=options.seed,
        thorough=options.thorough,
    )
    started = time.perf_counter()
    print("\n".join(report.header()))
    verdicts = []
    with _one_blas_thread():
        for claim in claims:
            for subject in claim.subjects(asked):
                verdicts.append(claim.verify(subject))
                print(report.line(verdicts[-1]), flush=True)
    print("-" * report.WIDTH)
    print(report.summary(verdicts, time.perf_counter() - started))
    if options.json:
        try:
            report.write_json(options.json, verdicts, vars(options))
        except (OSError, ValueError) as error:
            print(f"python -m theory: {error}", file=sys.stderr)
            return 2
    return 0 if all(verdict.verified for verdict in verdicts) else 1


def _one_blas_thread():
    """Pin BLAS to one thread: bits depend on the number, and small products are faster."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1, user_api="blas")


if __name__ == "__main__":
    sys.exit(main())
