"""What the followers' claims are measured on: optimizers on the random walk, and small networks."""

import dataclasses
import functools

import numpy as np

import minimal_nn as nn
from theory.claim import FOLLOWERS, UNDERFLOWS, claim
from theory.measures.statistics import judged
from theory.subjects.networks import network_subject, normalizations
from theory.subjects.walks import walk

_NO_EXACT_FORM = "it has no exact form"
SAMPLED = (
    "a mean over many random steps: its sampling error is far above the rounding of float64",
    "float16 float32 longdouble",
)
NARROW = (UNDERFLOWS, "float16")
OPEN = "open: terms of order 1/C"  # in a verdict's details, where the law leaves them out


def follower(*, unfit=(), exact="", **about):
    """Register the decorated function as a claim of a paper after 2017.

    exact: which of "ball symbol" it has a form in (exactly.py).
    """
    without = " ".join(name for name in ("ball", "symbol") if name not in exact.split())
    return claim(registry=FOLLOWERS, unfit=((_NO_EXACT_FORM, without), *unfit), **about)


@dataclasses.dataclass(frozen=True)
class Walked:
    """An optimizer of minimal_nn on the random walk.

    hyper: (name, value) pairs.  start: |w| at the start, of each chain.  s: the root of
    E |w|^2 |g|^2, of each chain.  schedule: as `walk` takes it, or None.
    """

    name: str
    optimizer: type
    hyper: tuple
    start: tuple
    skip: int
    steps: int
    dims: int = 256
    s: tuple = (1.0,)
    schedule: object = None
    seed: int = 0
    backend: str = "reference"
    arithmetic: str = "float64"

    def make(self):
        """Return the optimizer."""
        return self.optimizer(**dict(self.hyper))

    def __getitem__(self, name):
        """Return a hyper-parameter."""
        return {**self.optimizer.defaults, **dict(self.hyper)}[name]

    @property
    def path(self):
        """The recorded Path."""
        return _path(self)


@functools.lru_cache(maxsize=16)
def _path(subject):
    start = np.array(subject.start)
    s = np.broadcast_to(subject.s, start.shape)
    return walk(
        subject.make(),
        start,
        dims=subject.dims,
        steps=subject.steps,
        skip=subject.skip,
        seed=[subject.seed, *subject.name.encode()],
        s=s,
        wing=subject.backend,
        schedule=subject.schedule,
    )


def walked(options, name, optimizer, norm, *, chains=8, thorough=4, **settings):
    """Return the subject for a run's options, from 0.8 and 1.25 times a norm, in turns.

    thorough: how many times as long a thorough run is.
    """
    hyper = tuple(settings.pop("hyper").items())
    settings["steps"] = settings["steps"] * (thorough if options.thorough else 1)
    start = tuple(float(norm) * np.where(np.arange(chains) % 2, 1.25, 0.8))
    backend = "reference" if options.backend == "cuda" else options.backend
    return Walked(name, optimizer, hyper, start, seed=options.seed, backend=backend, **settings)


HOW = "of the law, with the 99.9 % t interval over independent chains inside it"


def judge(samples, law, wrong, tolerance=0.01, **details):
    """Return the Measurement of a mean over chains that should be `law`, and is not `wrong`."""
    return judged(
        samples, law, wrong, how=f"{tolerance:.1%} {HOW}", tolerance=tolerance, details=details
    )


def together(*measurements):
    """Return the one that comes closest to its bound; the controls of all must fail."""
    failing = all(m.control >= m.control_least and m.control_as_predicted for m in measurements)
    worst = max(measurements, key=lambda m: m.measured / m.bound)
    return dataclasses.replace(worst, control_as_predicted=failing)


def squares(path):
    """Return E|w|^2 and E<w, w'> of each chain."""
    products = path.cosines * path.norms * path.after
    return (path.norms**2).mean(axis=0), products.mean(axis=0)


def turns(path):
    """Return 1 - E<w, w'>/E|w|^2 of each chain."""
    square, product = squares(path)
    return 1 - product / square


def networks(options, *names):
    """Return the built-in networks (of some normalizations alone) in every dtype asked for.

    In the cuda wing, which of the later optimizers has Lion alone, there are none.
    """
    if options.backend == "cuda":
        return []
    return [
        network_subject(name, dtype, backend=options.backend, seed=options.seed)
        for name in names or normalizations(options.backend)
        for dtype in options.dtypes
    ]


def unit_networks(options):
    """Return those in which every unit's weights are a group of their own."""
    return networks(options, "batch", "weight")


def decoupled_sgd(learning_rate, groups=()):
    """Return SGD with decoupled decay, (1 - x) w - eta g in these very roundings: SGDP as SGD."""
    return nn.SGDP(learning_rate, momentum=0.0, delta=0.0, groups=groups)
