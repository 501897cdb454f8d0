"""Subjects in balls and symbols: small networks, and the factor that scales their weights."""

import dataclasses

import numpy as np

import minimal_nn as nn
from theory.numbers.balls import Balls
from theory.numbers.symbols import Symbols
from theory.subjects.networks import NORMALIZATIONS, invariant_weights, network_subject, rescaled

EPS = 0.5  # of the controls
FACTOR = 3  # of rescaled weights in balls; a symbol in symbols
WIDTH, BATCH = 6, 12  # of the networks in balls


@dataclasses.dataclass(frozen=True)
class ExactSubject:
    """A network and a batch in balls or symbols: `states` as in a NetworkSubject, at eps = 0.

    control: the same network without normalization.  a: the factor of rescalings.
    """

    normalization: str
    numbers: object  # Balls or Symbols
    states: tuple
    control: nn.Network
    X: np.ndarray
    targets: np.ndarray
    a: object
    exact = True  # measured by a claim's exact form

    def rescaled(self, network):
        """Return `network` with its invariant weights multiplied by a."""
        return rescaled(network, self.a)

    @property
    def name(self):
        return f"{self.normalization} norm"

    @property
    def arithmetic(self):
        bits = self.numbers.bits
        return self.numbers.name if bits is None else f"ball {bits}"


def ball_subject(normalization, bits, seed=0):
    """Return a small network on digits in balls, before and after its training in float64."""
    balls = Balls(bits)
    floats, control = (
        network_subject(kind, "float64", seed=seed, width=WIDTH, batch=BATCH, epochs=1)
        for kind in (normalization, "none")
    )
    return ExactSubject(
        normalization,
        balls,
        tuple(network.converted(balls.array, object) for network in floats.states),
        control.network.converted(balls.array, object),
        balls.array(floats.X),
        floats.targets,
        balls.number(FACTOR),
    )


def symbol_subject(normalization, seed=0):
    """Return the smallest network whose identities are not trivial, its invariant weights symbols.

    Three examples of small integers and one unit (layer and RMS norm: one example, three units), a
    squared loss; all other parameters are small integers.  No activation, since tanh of two forms
    of one expression is not one expression.
    """
    symbols = Symbols()
    rng = np.random.default_rng(seed)
    over_units = normalization in ("layer", "rms")
    examples, features, units = (1, 1, 3) if over_units else (3, 2, 1)
    X = symbols.array([[2.0, 1.0], [-1.0, 3.0], [1.0, -1.0]])[:examples, :features]
    targets = symbols.array(rng.integers(-3, 4, (len(X), 1)).astype(float))

    def network(kind):
        layers = {
            "batch": [nn.Dense(units, bias=False), nn.BatchNorm(0.0)],
            "layer": [nn.Dense(units, bias=False), nn.LayerNorm(0.0)],
            "rms": [nn.Dense(units, bias=False), nn.RMSNorm(0.0)],
            "weight": [nn.WeightNorm(nn.Dense(units))],
            "none": [nn.Dense(units)],
        }[kind]
        network = nn.Network(
            [*layers, nn.Dense(1)], (features,), loss="mean_squared_error", dtype=np.float64
        )
        network = network.converted(symbols.array, object)
        invariant = invariant_weights(network)
        changes = {
            name: symbols.variables(name.replace(".", "_"), array.shape)
            if name in invariant or kind == "none"
            else symbols.array(rng.integers(1, 4, array.shape).astype(float))
            for name, array in network.parameters.items()
        }
        return network.with_parameters(changes)

    return ExactSubject(
        normalization,
        symbols,
        (network(normalization),),
        network("none"),
        X,
        targets,
        symbols.variables("a", positive=True),
    )


def exact_subjects(options):
    """Return the identities' subjects for `python -m theory --arithmetic ball` or `symbol`."""
    if options.arithmetic == "symbol":
        return [symbol_subject(normalization, options.seed) for normalization in NORMALIZATIONS]
    return [ball_subject(norm, options.bits, options.seed) for norm in NORMALIZATIONS]
