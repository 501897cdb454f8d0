"""python -m benchmarks.cpu.options: what a step costs with a schedule and clipping.

Each configuration is trained in turn without options (twice: the noise), with a schedule, with
clipping that changes nothing and clipping that does, and with both.  Printed are medians and
quartiles, over the rounds, of the time of a step, as a part of that without options.  One thread,
in processor time, which other programs' shares do not count in.
"""

import argparse
import sys
import time

import numpy as np

from benchmarks.cpu.compare import quartiles
from benchmarks.cpu.configurations import BATCH, BATCHES, by_name, data, learning_rates
from benchmarks.cpu.contestants.with_minimal_nn import network_of, optimizer_of
from benchmarks.table import seconds

DEFAULT = ("small", "small-adam", "mlp", "mlp-adam")
STEPS = {"small": 1024, "small-adam": 1024}  # of a round; else 64
OPTIONS = {
    "without": {},
    "once more": {},
    "schedule": {"scheduled": True},
    "clipping, below": {"clip_norm": 1e9},
    "clipping": {"clip_norm": 1e-2},
    "both": {"scheduled": True, "clip_norm": 1e-2},
}


def measured(configuration, rounds):
    """Return the times of a step, in seconds, a list for each set of options."""
    from minimal_nn import schedules, set_num_threads

    set_num_threads(1)
    X, labels = data(configuration)
    X, labels = X.reshape(-1, *X.shape[2:]), labels.reshape(-1)
    steps = STEPS.get(configuration.name, 64)
    rows = np.arange(BATCHES * BATCH).reshape(BATCHES, BATCH)[np.arange(steps) % BATCHES]
    rates = {"learning_rate": np.array([*map(schedules.Cosine(steps), range(steps))])}
    running, times = {}, {name: [] for name in OPTIONS}
    for name, options in OPTIONS.items():
        network = network_of(configuration)
        optimizer = optimizer_of(configuration, learning_rates(configuration)[0])
        plan = network.backend.plan(network.program(), optimizer, BATCH, **options)
        factors = dict.fromkeys(network.parameters, rates) if "scheduled" in options else None
        running[name] = plan, network, optimizer, factors
    for index in range(1 + rounds):  # the first compiles
        for name in list(OPTIONS)[:: 1 if index % 2 else -1]:
            plan, network, optimizer, factors = running[name]
            start = time.process_time()
            plan.run(network, optimizer, X, labels, rows, factors)
            times[name].append((time.process_time() - start) / steps)
    return {name: found[1:] for name, found in times.items()}


def main(arguments=None):
    """Run the command."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.cpu.options", description=__doc__)
    p.add_argument("--only", nargs="+", choices=DEFAULT, default=DEFAULT)
    p.add_argument("--rounds", type=int, default=15)
    options = p.parse_args(arguments)
    if options.rounds < 1:
        p.error(f"--rounds: got {options.rounds}, expected at least 1")
    for name in options.only:
        times = measured(by_name(name), options.rounds)
        print(f"{name}: {seconds(float(np.median(times['without'])))} a step without options")
        for what, found in times.items():
            parts = [a / b for a, b in zip(found, times["without"], strict=True)]
            print("  {:16} {:.3f} ({:.3f} to {:.3f})".format(what, *quartiles(parts)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
