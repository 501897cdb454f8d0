"""Arrays of hyper-parameters, a number for each unit or weight, in the compiled loop: the same bits
as step by step, whatever is an array, scheduled, clipped, added up, frozen or of a fixed norm.

Each seed draws a network, an optimizer, which of its hyper-parameters are arrays for which
parameters, their shapes and dtypes, and what else a step is made of.
"""

import numpy as np
import pytest

from minimal_nn import (
    SGD,
    Adam,
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    Group,
    LayerNorm,
    MaxPool2d,
    Momentum,
    Network,
    ReLU,
    Residual,
    RMSNorm,
    Tanh,
    WeightNorm,
    fit,
)
from minimal_nn.cpu import update
from minimal_nn.optimizers import ALL, LATER
from minimal_nn.plans import StepByStep, report
from minimal_nn.schedules import Cosine

OPTIMIZERS = [
    kind for kind in (*ALL, *LATER) if kind.formula in {*update.KERNELS, *update.NORMALIZED}
]
NETWORKS = (
    ([Dense(37), BatchNorm(), ReLU(), Dense(20), LayerNorm(), Dense(3)], (19,)),
    ([WeightNorm(Dense(40)), RMSNorm(), Tanh(), WeightNorm(Dense(5))], (33,)),
    ([Conv2d(5), BatchNorm(), MaxPool2d(2), Conv2d(20), ReLU(), Flatten(), Dense(4)], (8, 8, 3)),
    ([Conv2d(5, algorithm="winograd4"), BatchNorm(), ReLU(), Flatten(), Dense(4)], (8, 8, 3)),
    ([Residual([Dense(9), Tanh()], [Dense(9)]), Dense(4)], (70,)),
)
EXAMPLES, BATCH = 30, 12
LIMITS = {"learning_rate": (1e-4, 0.1), "weight_decay": (0, 0.1), "eps": (1e-8, 1e-3)}
LIMITS |= {"eps_inside_root": (1e-8, 1e-3), "decoupled_weight_decay": (0, 0.1)}
LIMITS |= dict.fromkeys(("momentum", "decay", "beta1", "beta2"), (0.5, 0.999))


def number(rng, key, shape):
    """Draw a hyper-parameter: one number, or an array that broadcasts to the shape."""
    some = tuple(size if rng.random() < 0.5 else 1 for size in shape)
    shapes = (), shape, shape[-1:], (1,), some
    found = rng.uniform(*LIMITS[key], shapes[rng.integers(len(shapes))])
    return found.astype(rng.choice(["f4", "f8", "g"])) if np.ndim(found) else float(found)


class Case:
    """What a seed draws; `run` trains and returns losses, weights and state."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.layers, self.shape = NETWORKS[rng.integers(len(NETWORKS))]
        self.kind = OPTIMIZERS[seed % len(OPTIMIZERS)]
        self.dtype = rng.choice(["f4", "f8"])
        self.groups = [
            Group([name], **self.hyper(rng, name, w.shape))
            for name, w in self.network().parameters.items()
            if rng.random() < 0.7
        ]
        self.X = rng.standard_normal((EXAMPLES, *self.shape)).astype(self.dtype)
        self.targets = rng.integers(0, 3, EXAMPLES)
        steps = int(rng.integers(2, 40))
        self.batches = rng.integers(0, EXAMPLES, (steps, BATCH))
        self.options, self.factors = {}, None
        if rng.random() < 0.4:
            self.options["scheduled"] = True
            self.factors = {
                name: {
                    key: rng.uniform(0, 1, steps)
                    for key in ("learning_rate", "weight_decay")
                    if rng.random() < 0.7
                }
                for name in self.network().parameters
            }
        for key, value in (("clip_norm", 0.5), ("part_size", 4), ("frozen", self.frozen())):
            if rng.random() < 0.25:
                self.options[key] = value

    def network(self):
        return Network(self.layers, self.shape, rng=0, dtype=self.dtype, backend="cpu")

    def frozen(self):
        return tuple(self.network().names[:1])

    def hyper(self, rng, name, shape):
        keys = {"learning_rate", "weight_decay", *self.kind.defaults, *self.kind.options}
        hyper = {key: number(rng, key, shape) for key in sorted(keys) if key in LIMITS}
        if name.endswith(".W") and rng.random() < 0.3:
            hyper["fixed_norm"] = rng.uniform(0.5, 2, shape[-1:]) if rng.random() < 0.5 else 1.5
        return hyper

    def optimizer(self):
        return self.kind(groups=self.groups)

    def run(self, compiled):
        network, optimizer = self.network(), self.optimizer()
        optimizer.check(network)
        plan = StepByStep(**self.options)
        if compiled:
            plan = network.backend.plan(network.program(), optimizer, BATCH, **self.options)
        losses = []
        for some in (slice(0, 1), slice(1, None)):
            factors = self.factors and {
                name: {key: values[some] for key, values in own.items()}
                for name, own in self.factors.items()
            }
            given = () if factors is None else (factors,)
            losses += [
                *plan.run(network, optimizer, self.X, self.targets, self.batches[some], *given)
            ]
        state = {f"{n} {s}": a for n, own in optimizer.state.items() for s, a in own.items()}
        return {"losses": np.array(losses), **network.parameters, **network.state, **state}


def check(seed):
    case = Case(seed)
    found, expected = case.run(compiled=True), case.run(compiled=False)
    expected = {key: value for key, value in expected.items() if key in found}
    assert found.keys() == expected.keys()
    differing = [key for key in found if found[key].tobytes() != expected[key].tobytes()]
    assert not differing, (seed, case.kind.__name__, case.dtype, case.options, case.layers)


@pytest.mark.parametrize("seed", range(3 * len(OPTIMIZERS)))
def test_a_loop_with_arrays_gives_the_same_bits_as_step_by_step(seed):
    check(seed)


@pytest.mark.nightly
def test_many_loops_with_arrays_give_the_same_bits():
    for seed in range(1000, 3000):
        check(seed)


@pytest.mark.parametrize("kind", (Momentum, Adam))
def test_the_cases_can_differ(kind, monkeypatch):
    """A table whose arrays are one number too far to the right is seen."""
    from minimal_nn.cpu.update import table

    fill = table.Table.fill

    def moved(self, row, shape, pack, *steps):
        fill(self, row, shape, lambda numbers, out: pack(np.roll(numbers, 1, -1), out), *steps)

    monkeypatch.setattr(table.Table, "fill", moved)
    case = Case(0)
    case.kind, case.options, case.factors = kind, {}, None
    rates = np.linspace(0.01, 0.1, case.network().parameters["dense1.b"].shape[-1])
    case.groups = [Group(["dense1.b"], learning_rate=rates)]
    found = case.run(compiled=True)
    monkeypatch.undo()
    assert found["losses"].tobytes() != case.run(compiled=False)["losses"].tobytes()


class Own(SGD):
    """Not a class that loops are compiled for."""


def test_a_rate_for_each_unit_with_a_schedule_is_compiled_by_fit():
    X = np.random.default_rng(0).standard_normal((24, 7)).astype(np.float32)
    rates = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    groups = [Group(["dense1.W", "dense1.b"], learning_rate=rates)]
    given = {"epochs": 3, "batch_size": 8, "schedule": Cosine(9), "progress": False}
    ends = []
    for kind in (SGD, Own):
        network = Network([Dense(5), Tanh(), Dense(3)], (7,), rng=0, backend="cpu")
        optimizer = kind(0.1, groups=groups)
        compiled = report(network, optimizer, 8, scheduled=True).startswith("compiled")
        assert compiled == (kind is SGD)
        fit(network, optimizer, X, np.arange(24) % 3, **given)
        ends.append(network.parameters)
    assert all(w.tobytes() == ends[1][name].tobytes() for name, w in ends[0].items())
