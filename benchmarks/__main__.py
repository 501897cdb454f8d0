"""python -m benchmarks: the cpu wing against PyTorch and JAX; prints a table, writes a record."""

import argparse
import datetime
import importlib.metadata
import os
import sys

from benchmarks import commit, table
from benchmarks.cpu import machine
from benchmarks.cpu.compare import compare, memory_bound, products_beside_mkl
from benchmarks.cpu.configurations import CONFIGURATIONS


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def parser():
    """Return the command's arguments."""
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [c.name for c in CONFIGURATIONS]
    cores = len(os.sched_getaffinity(0))
    p.add_argument("--only", nargs="+", choices=names, help="configurations (default: all)")
    p.add_argument(
        "--threads",
        nargs="+",
        type=int,
        choices=range(1, cores + 1),
        default=sorted({1, cores}),
        help="default: 1 and all cores",
    )
    p.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: 9)")
    p.add_argument("--no-record", action="store_true", help="print only")
    p.add_argument(
        "--markdown", action="store_true", help="print the table of the newest records, and end"
    )
    return p


def main(arguments=None):
    """Run the command; return the exit status."""
    options = parser().parse_args(arguments)
    if options.rounds < 1:
        parser().error(f"--rounds: got {options.rounds}, expected at least 1")
    if options.markdown:
        print(table.markdown(*table.newest_records("cpu")))
        return 0
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M"),
        "commit": commit(),
        "machine": machine.description(),
        "processor": machine.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "rounds": options.rounds,
        "versions": {
            name: _version(name) for name in ("numpy", "numba", "llvmlite", "torch", "jax")
        },
        "memory_bound": [],
        "products": [],
        "comparisons": [],
    }
    for threads in options.threads:
        record["memory_bound"].append(memory_bound(threads, options.rounds))
        print(table.printed_memory(record["memory_bound"][-1]), flush=True)
        try:
            record["products"].append(products_beside_mkl(threads, options.rounds))
        except RuntimeError as error:  # no PyTorch, or one without MKL
            print(f"products beside MKL: {error}", flush=True)
        else:
            print(table.printed_products(record["products"][-1]), flush=True)
    for configuration in CONFIGURATIONS:
        if options.only and configuration.name not in options.only:
            continue
        for threads in options.threads:
            if configuration.copies > 1 and threads < max(options.threads):
                continue
            comparison = compare(configuration, threads, options.rounds, print)
            record["comparisons"].append(comparison)
            print(table.printed(comparison), flush=True)
            if not options.no_record:  # after each, so that what is interrupted is not lost
                path = table.write_record("cpu", record)
    if not options.no_record:
        print(f"record: {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
