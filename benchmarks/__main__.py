"""python -m benchmarks: the cpu wing against PyTorch and JAX; prints a table, writes a record."""

import argparse
import datetime
import importlib.metadata
import os
import subprocess
import sys

from benchmarks import table
from benchmarks.cpu.compare import compare
from benchmarks.cpu.configurations import CONFIGURATIONS, flops


def _commit():
    try:
        git = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [c.name for c in CONFIGURATIONS]
    parser.add_argument("--only", nargs="*", choices=names, help="configurations (default: all)")
    parser.add_argument("--threads", nargs="*", type=int, help="default: 1 and all cores")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: 9)")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--markdown", action="store_true", help="print the newest record's table")
    options = parser.parse_args(arguments)
    if options.markdown:
        print(table.markdown(table.latest_record("cpu")))
        return 0
    cores = len(os.sched_getaffinity(0))
    threads = options.threads or sorted({1, cores})
    from benchmarks.cpu import machine

    rates_of = []
    for count in threads:
        rates = machine.measure(count)
        rates_of.append(rates)
        print(
            f"threads: {count}: peak {rates['peak_gflops']:.0f} GFLOP/s, bandwidth "
            f"{rates['bandwidth_gb']:.1f} GB/s, batch norm at "
            f"{rates['batchnorm_gb'] / rates['bandwidth_gb']:.2f} of it",
            flush=True,
        )
    comparisons = []
    for configuration in CONFIGURATIONS:
        if options.only and configuration.name not in options.only:
            continue
        for count in threads:
            if configuration.copies > 1 and count < max(threads):
                continue
            comparison = compare(configuration, count, options.rounds, print)
            mine = comparison["contestants"]["ours"]["seconds"] / configuration.copies
            peak = next(m["peak_gflops"] for m in rates_of if m["threads"] == count)
            comparison["fraction_of_peak"] = flops(configuration) / mine / 1e9 / peak
            comparisons.append(comparison)
            print(table.printed(comparison))
            fraction = comparison["fraction_of_peak"]
            print(f"  products at {fraction:.2f} of the measured peak", flush=True)
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M"),
        "commit": _commit(),
        "machine": machine.description(),
        "cores": cores,
        "rounds": options.rounds,
        "versions": {
            name: _version(name) for name in ("numpy", "numba", "llvmlite", "torch", "jax")
        },
        "rates": rates_of,
        "comparisons": comparisons,
    }
    if not options.no_record:
        print(f"record: {table.write_record('cpu', record).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
