"""Timing contestants against each other: separate processes, in turn, ratios within each round.

Rounds go through all contestants, forwards and backwards in turn, each training about TARGET
seconds, and end with the yardstick: what the same cores multiply at this moment, and move of as
many bytes as a step moves (so that caches count).  A ratio is taken between two times of one round,
so that what slows the machine for seconds slows both.  The median over rounds and its quartiles are
reported.  Before that, all must agree on the losses of the first steps.  A row during which others
worked is told as such, and says neither met nor missed.  Beside a ratio stands the one that the
roof allows: that of the best peer to the least time of a step (roofline.py).
"""

import contextlib
import statistics

from benchmarks.cpu import contestants, quiet, roofline
from benchmarks.cpu.configurations import BATCHES
from benchmarks.cpu.process import Process
from benchmarks.cpu.products import products

TARGET = 0.3  # seconds of one measurement
MEMORY_AIM = 0.8  # of the bandwidth, for batch norm beyond the cache
PRODUCT_AIMS = (1.0, 0.8)  # of MKL's rate, and of the peak
TOLERANCE = 2e-3  # relative: rounding of float32, amplified by a few steps of training


class Contestant:
    """A contestant's process, with what was measured of it."""

    def __init__(self, name, configuration, threads, folder=None):
        self.name, self.times, self.memory = name, [], 0
        self.process = Process(
            "training", name, configuration.name, threads, threads=threads, folder=folder
        )
        self.losses, self.first = (self.process.greeting[key] for key in ("losses", "first"))
        self.steps = None  # of one measurement, see `prepare`

    def train(self, steps):
        """Train so many steps; return seconds a step."""
        answer = self.process.ask(steps)
        self.memory = answer["memory_mib"]
        return answer["seconds"]

    def prepare(self, copies):
        """Choose the number of steps that take about TARGET, and train them once."""
        self.train(2)  # compiles what these lengths need
        seconds = self.train(2)
        if seconds * BATCHES < 10 * TARGET:
            self.train(BATCHES)
            seconds = self.train(BATCHES)
        # Whole rounds of the data where that is short enough: a scan then has one length.  Grids
        # always: their networks train for long by themselves, not a few steps each in turn.
        self.steps = max(1, round(TARGET / seconds))
        if self.steps > BATCHES // 2 or copies > 1:
            self.steps = max(1, round(self.steps / BATCHES)) * BATCHES
        self.train(self.steps)

    def measure(self):
        """Take one time."""
        self.times.append(self.train(self.steps))

    def disagreement(self, losses):
        """Return the largest relative difference from these losses."""
        pairs = zip(self.losses, losses, strict=True)
        return max(abs(mine - other) / abs(other) for mine, other in pairs)


def quartiles(values):
    """Return median and quartiles."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def ratios(slow, fast):
    """Return how many times `fast` is as fast as `slow`, median and quartiles over the rounds."""
    return quartiles([a / b for a, b in zip(slow.times, fast.times, strict=True)])


def verdict(aim, ratio, disturbed):
    """Return "met" or "missed", or None where there is no aim or the row says nothing."""
    if aim is None or disturbed:
        return None
    return "met" if ratio >= aim else "missed"


def memory_bound(threads, rounds):
    """Return a record of batch norm's share of the bandwidth, beyond cache, measured in turn."""
    before = quiet.idle_check()
    with Process("memory_bound", threads, threads=threads) as process:
        watch = quiet.Watch([process.session])
        pairs = process.ask(rounds)
        during = watch.others()
    ratio, low, high = quartiles([ours / limit for limit, ours in pairs])
    disturbed = quiet.disturbance(before, during, ratio, (low, high))
    return {
        "threads": threads,
        "bandwidth_gb": max(limit for limit, _ in pairs),
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "others": {"before": before, "during": during},
        "aim": MEMORY_AIM,
        "disturbed": disturbed,
        "verdict": verdict(MEMORY_AIM, ratio, disturbed),
    }


def products_beside_mkl(threads, rounds):
    """Return a record of the MLPs' products: ours, MKL's and the peak, in turn."""
    before = quiet.idle_check()
    with contextlib.ExitStack() as stack:
        ours, mkl, yardstick = (
            stack.enter_context(Process(*arguments, threads=threads))
            for arguments in (
                ("products", "ours", threads),
                ("products", "mkl", threads),
                ("rates", threads, 1 << 16),
            )
        )
        watch = quiet.Watch([each.session for each in (ours, mkl, yardstick)])
        found = []
        for index in range(rounds):
            order = (ours, mkl) if index % 2 == 0 else (mkl, ours)
            rates = {each: each.ask(None) for each in order}
            found.append((yardstick.ask(None)["peak_gflops"], rates[ours], rates[mkl]))
        during = watch.others()
    rows = [
        _product(product, [(peak, a[i], b[i]) for peak, a, b in found], before, during)
        for i, product in enumerate(products())
    ]
    return {"threads": threads, "others": {"before": before, "during": during}, "rows": rows}


def _product(product, rates, before, during):
    """Return the record of a product, given its rates (peak, ours, MKL's) of each round."""
    ratio, low, high = quartiles([ours / mkl for _, ours, mkl in rates])
    of_peak = statistics.median(ours / peak for peak, ours, _ in rates)
    disturbed = quiet.disturbance(before, during, ratio, (low, high))
    met = min(ratio / PRODUCT_AIMS[0], of_peak / PRODUCT_AIMS[1])
    return {
        **product._asdict(),
        "gflops": statistics.median(ours for _, ours, _ in rates),
        "mkl_gflops": statistics.median(mkl for *_, mkl in rates),
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "of_peak": of_peak,
        "aims": PRODUCT_AIMS,
        "disturbed": disturbed,
        "verdict": verdict(1.0, met, disturbed),
    }


def compare(configuration, threads, rounds, say):
    """Compare all contestants on one configuration; return a record (a dict)."""
    before = quiet.idle_check()
    with contextlib.ExitStack() as stack:
        running, failed = [], {}
        for function in contestants.contestants(configuration):
            name = function.__name__
            try:
                contestant = Contestant(name, configuration, threads)
            except RuntimeError as error:
                failed[name] = str(error)
                say(f"  {name}: {error}")
                continue
            stack.callback(contestant.process.close)
            if running and not contestant.disagreement(running[0].losses) <= TOLERANCE:
                failed[name] = f"losses {contestant.losses}, expected {running[0].losses}"
                say(f"  {name}: {failed[name]}")
                contestant.process.close()
            else:
                running.append(contestant)
        if len(running) < 2 or running[0].name != "ours":
            raise RuntimeError(f"{configuration.name}: nothing to compare ({failed})")
        size = min(roofline.in_use(configuration, threads), roofline.BEYOND_CACHE)
        yardstick = stack.enter_context(Process("rates", threads, size, threads=threads))
        for contestant in running:
            contestant.prepare(configuration.copies)
        watch = quiet.Watch([yardstick.session, *(c.process.session for c in running)])
        rates = []
        for index in range(rounds):
            for contestant in running if index % 2 == 0 else running[::-1]:
                contestant.measure()
            rates.append(yardstick.ask(None))
        during = watch.others()
    return _record(configuration, threads, running, failed, rates, before, during)


def _record(configuration, threads, running, failed, rates, before, during):
    ours, *peers = running
    best = min(peers, key=lambda peer: statistics.median(peer.times))
    ratio, low, high = ratios(best, ours)
    aim = dict(configuration.aims).get(threads)
    disturbed = quiet.disturbance(before, during, ratio, (low, high))
    return {
        "configuration": configuration.name,
        "title": configuration.title,
        "threads": threads,
        "aim": aim,
        "best_peer": best.name,
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "others": {"before": before, "during": during},
        "disturbed": disturbed,
        "verdict": verdict(aim, ratio, disturbed),
        "roofline": _roofline(configuration, rates, statistics.median(ours.times)),
        "failed": failed,
        "contestants": {
            contestant.name: {
                "seconds": statistics.median(contestant.times),
                "quartiles": list(quartiles(contestant.times)[1:]),
                "ratio": ratios(contestant, ours)[0],
                "memory_mib": contestant.memory,
                "first_step_seconds": contestant.first,
                "disagreement": contestant.disagreement(ours.losses),
            }
            for contestant in running
        },
    }


def _roofline(configuration, rates, seconds):
    """Return the roof by the best rates of the rounds: what the cores can do, undisturbed."""
    best = {name: max(rate[name] for rate in rates) for name in rates[0]}
    least, bound = roofline.roof(configuration, **best)
    return {
        "flops": roofline.flops(configuration),
        "bytes": roofline.traffic(configuration),
        **best,
        "seconds": least,
        "bound": bound,
        "fraction": least / seconds,
    }
