"""What a preset would cost, from some steps of one run of each figure."""

import functools
import os
import time

from figures import runs
from figures.drawing import figure
from figures.grid.executors import compute, processor
from minimal_nn.backend import get as wing
from minimal_nn.errors import CudaUnavailableError

SECONDS = 0.5  # what the steps must take that are timed
IMAGES = {"train": 1000, "test": 100}


def shortened(configuration, steps):
    """Return the run with so many steps, recorded at its end, with one probe, on few images."""
    return {
        **configuration,
        "data": {**configuration["data"], **IMAGES},
        "steps": steps,
        "moments": {"spacing": "even", "count": 1},
        "probes": 1,
    }


def whole_cost(configuration):
    """Return how many steps of training a run costs, its probes counted as a step each."""
    probes = configuration["probes"] * configuration["moments"]["count"]
    return configuration["steps"] + min(probes, configuration["steps"])


def device(backend):
    """Return the device that a wing computes on, in words."""
    current = getattr(wing(backend).package, "current_device", None)
    try:
        return str(current().require()) if current else processor()
    except (CudaUnavailableError, ValueError) as error:  # no device, or no such choice of one
        raise SystemExit(f"--backend {backend}: {error}") from None


def seconds_a_step(run, clock):
    """Return the time of a step: a run of n steps less one of a single step, n growing."""

    def timed(steps):
        start = clock()
        run(steps)
        return clock() - start

    timed(1)  # compiles
    single, steps = timed(1), 4
    while (more := timed(steps) - single) < SECONDS:
        steps *= 2
    return more / (steps - 1)


def dry_run(arguments, preset, wanted):
    """Run some steps of one run of each figure, print what all would take, and return 0."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MINIMAL_NN_NUM_THREADS", "1")
    measure = functools.partial(runs.run, folder=arguments.data)
    clock = time.perf_counter if arguments.backend == "cuda" else time.process_time
    print(f"preset {preset.name}, backend {arguments.backend}, {device(arguments.backend)}")
    print("time of the " + ("device" if arguments.backend == "cuda" else "processor, one thread"))
    print(f"{'figure':18s} {'runs':>5s} {'steps':>6s} {'ms a step':>10s} {'h a run':>8s} {'h':>8s}")
    total = 0.0
    for name in wanted:
        planned = [{**c, "backend": arguments.backend} for c in figure(name).configurations(preset)]
        step = seconds_a_step(
            lambda steps, run=planned[0]: compute(measure, shortened(run, steps), "dry run"), clock
        )
        all_hours = sum(map(whole_cost, planned)) * step / 3600
        total += all_hours
        one = whole_cost(planned[0])
        print(
            f"{name:18s} {len(planned):5d} {planned[0]['steps']:6d} {1000 * step:10.1f} "
            f"{one * step / 3600:8.3f} {all_hours:8.1f}"
        )
    print(f"{'all':18s} {total:52.1f} hours on one process (test errors come on top)")
    return 0
