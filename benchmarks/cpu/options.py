"""python -m benchmarks.cpu.options: what a step costs with a schedule, clipping, a rate for each
unit, and RMS norm.

Each configuration is trained in turn without options (twice: the noise), with a schedule, with
clipping that changes nothing and clipping that does, with both, and with a learning rate for each
unit, that stays or is scheduled.  Then the same MLP without
normalization, with RMS norm behind each hidden layer, and with all three.  Printed are medians and
quartiles, over the rounds, of the time of a step, as a part of that without.  One thread, in
processor time, which other programs' shares do not count in.

RMS norm's own bytes: its kernels read z and write y; read z and dy and write dz; read z and dy for
gamma.  That is TRANSFERS times the numbers that it normalizes, at the speed at which this processor
does a = b + 3 c with arrays of a hidden layer's size.
"""

import argparse
import sys
import time

import numpy as np

from benchmarks.cpu.compare import quartiles
from benchmarks.cpu.configurations import (
    BATCH,
    BATCHES,
    EPS,
    by_name,
    data,
    learning_rates,
    weights,
)
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
    "rates of units": {"per_unit": True},
    "these scheduled": {"per_unit": True, "scheduled": True},
}
NORMALIZED = {  # whether there is RMS norm, and the options
    "plain": (False, {}),
    "plain once more": (False, {}),
    "RMS norm": (True, {}),
    "all three": (True, OPTIONS["both"]),
}
TRANSFERS = 7


def networks(configuration):
    """Return what is trained: {name: (network, options)}."""
    return {name: (network_of(configuration), options) for name, options in OPTIONS.items()}


def normalized(configuration):
    """Return the MLP without normalization and with RMS norm: {name: (network, options)}."""
    from minimal_nn import Dense, Network, ReLU, RMSNorm

    found, (features, *hidden, classes) = {}, configuration.sizes
    for name, (norm, options) in NORMALIZED.items():
        layers = []
        for units in hidden:
            layers += [Dense(units, bias=False), *([RMSNorm(EPS)] if norm else []), ReLU()]
        network = Network([*layers, Dense(classes)], input_shape=(features,), backend="cpu")
        named = dict(zip(network.weights(), weights(configuration), strict=True))
        found[name] = network.with_parameters(named), options
    return found


def own_seconds(configuration):
    """Return how long RMS norm's bytes take at the bandwidth of arrays as large as z."""
    from benchmarks.cpu.machine import bandwidth

    bytes_of = [4 * BATCH * units for units in configuration.sizes[1:-1]]
    return TRANSFERS * sum(bytes_of) / (bandwidth(1, 3 * max(bytes_of)).measure() * 1e9)


def measured(configuration, trained, rounds):
    """Return the times of a step, in seconds, a list for each of {name: (network, options)}."""
    from minimal_nn import Group, schedules, set_num_threads

    set_num_threads(1)
    X, labels = data(configuration)
    X, labels = X.reshape(-1, *X.shape[2:]), labels.reshape(-1)
    steps = STEPS.get(configuration.name, 64)
    rows = np.arange(BATCHES * BATCH).reshape(BATCHES, BATCH)[np.arange(steps) % BATCHES]
    rates = {"learning_rate": np.array([*map(schedules.Cosine(steps), range(steps))])}
    running, times = {}, {name: [] for name in trained}
    for name, (network, options) in trained.items():
        options, rate = dict(options), learning_rates(configuration)[0]
        optimizer = optimizer_of(configuration, rate)
        if options.pop("per_unit", False):
            optimizer.groups = [
                Group([name], learning_rate=np.full(w.shape[-1], rate))
                for name, w in network.parameters.items()
            ]
        plan = network.backend.plan(network.program(), optimizer, BATCH, **options)
        factors = dict.fromkeys(network.parameters, rates) if "scheduled" in options else None
        running[name] = plan, network, optimizer, factors
    for index in range(1 + rounds):  # the first compiles
        for name in list(trained)[:: 1 if index % 2 else -1]:
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
        configuration = by_name(name)
        times = measured(configuration, networks(configuration), options.rounds)
        print(f"{name}: {seconds(float(np.median(times['without'])))} a step without options")
        _print_parts(times, times["without"])
        times = measured(configuration, normalized(configuration), options.rounds)
        plain, own = times["plain"], own_seconds(configuration)
        print(f"{name} without normalization: {seconds(float(np.median(plain)))} a step")
        _print_parts(times, plain)
        _print_parts({"less its bytes": [t - own for t in times["all three"]]}, plain)
        added = np.median(np.array(times["RMS norm"]) - plain)
        print(f"  RMS norm takes {added / own:.2f} of the time of its bytes", flush=True)
    return 0


def _print_parts(times, whole):
    for what, found in times.items():
        parts = [a / b for a, b in zip(found, whole, strict=True)]
        print("  {:16} {:.3f} ({:.3f} to {:.3f})".format(what, *quartiles(parts)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
