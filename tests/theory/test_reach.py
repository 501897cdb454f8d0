"""How far claims reach: twice the smallest fault that they tell of is caught, half of it not."""

import dataclasses
import importlib

import numpy as np
import pytest

import minimal_nn as nn
from theory import CLAIMS
from theory.numbers.bounded import Bounded
from theory.report import reach, table
from theory.subjects.networks import Options, invariant_weights, weights_of


@pytest.fixture(autouse=True)
def loose_floating_point():
    with np.errstate(all="ignore"):
        yield


class Plant:
    """Plants faults of a size f in the functions of a claim's module."""

    def __init__(self, claim, f, patch):
        self.module = importlib.import_module(claim.measure.__module__)
        self.f, self.patch = f, patch

    def results(self, name, change, owner=None):
        """Change what a function returns: change(result, its arguments)."""
        owner = self.module if owner is None else owner
        function = getattr(owner, name)

        def changed(*given, **named):
            return change(function(*given, **named), given)

        self.patch.setattr(owner, name, changed)

    def times(self, name, positions=None, owner=None):
        """Multiply a function's result, or some of its results, by 1 + f."""

        def change(result, _):
            if positions is None:
                return _times(result, 1 + self.f)
            return type(result)(
                _times(part, 1 + self.f) if at in positions else part
                for at, part in enumerate(result)
            )

        self.results(name, change, owner)

    def law(self, name="judged"):
        """Judge samples by a law that is wrong by the factor 1 + f."""
        function = getattr(self.module, name)

        def judged(samples, law, wrong, *given, **named):
            return function(samples, np.multiply(law, 1 + self.f), wrong, *given, **named)

        self.patch.setattr(self.module, name, judged)


def _times(part, factor):
    if isinstance(part, dict):
        return {name: _times(array, factor) for name, array in part.items()}
    return part * factor


def _off(array, by):
    """Return an array with its first entry larger by something."""
    array = np.array(array)
    array[(0,) * array.ndim] += by
    return array


def _gradient_along_w(plant):
    def change(trace, given):
        network, gradients = given[0], dict(trace.gradients)
        for group in network.invariance_groups():
            arrays = [(network.parameters[n], gradients[n]) for n in group.parameters]
            axes = tuple(range(arrays[0][0].ndim - 1)) if group.per_unit else None
            w2, g2 = (sum((pair[i] ** 2).sum(axis=axes) for pair in arrays) for i in (0, 1))
            for name, (w, g) in zip(group.parameters, arrays, strict=True):
                gradients[name] = g + plant.f * np.sqrt(g2 / w2) * w
        return trace._replace(gradients=gradients)

    plant.results("trace", change, nn.Network)


def _last_digit(name, place):
    """Plant a number that is larger in the last digit in one result of a function, not in all.

    place: which result to change, (result, arguments, how often the function was called before) ->
    the changed one.
    """

    def planted(plant):
        calls = []

        def change(result, given):
            calls.append(0)
            return place(result, given, len(calls) - 1)

        plant.results(name, change)

    return planted


def _next(array):
    return _off(array, np.spacing(np.abs(np.array(array)[(0,) * np.ndim(array)])))


def _run(result, _, before):
    """A training run: not the first of a claim, with which the others are compared."""
    if before:
        name = next(iter(result.parameters))
        result.parameters[name] = _next(result.parameters[name])
    return result


def _of_a_rescaled_network(result, given, before):
    if before:
        name = next(iter(result)) if isinstance(result, dict) else None
        return {**result, name: _next(result[name])} if name else _next(result)
    return result


def _fitted(result, _, before):
    network, optimizer, losses = result
    return network, optimizer, [losses[0] * (1 + 2.0**-52), *losses[1:]]


def _every_other(result, _, before):
    return _next(result) if before % 2 else result


def _gradient_of_some(plant):
    def change(result, given):
        gradients, cotangents = result
        names = invariant_weights(given[0])
        return {n: g * (1 + plant.f if n in names else 1) for n, g in gradients.items()}, cotangents

    plant.results("_backward", change, nn.Network)


def _way(plant):
    def change(run, given):
        start = plant.module._rationals(given[1].drawn()[0])
        factor = plant.module.Fraction(1 + plant.f) if plant.f < 1 else 1 + plant.f
        return [start + (w - start) * factor for w in run]

    plant.results("_in_rationals", change)


def _step(plant):
    def change(laws, _):
        law, wrong = laws
        return law + plant.f * law, wrong

    plant.results("_laws", change)


def _length(plant):
    """adam-eps: a length that falls with another exponent of a."""

    def change(result, given):
        return result[0] * np.longdouble(given[1]) ** -plant.f, result[1]

    plant.results("adam_step_law", change)


def _drift(plant):
    """gradient-flow: a part of the velocity along w, by which |w|^2 grows by f in the time 1."""

    def change(result, given):
        network, gradients = given[0], dict(result.gradients)
        for name in plant.module.weight_groups(network)[0].parameters:
            gradients[name] = gradients[name] - plant.f / 2 * network.parameters[name]
        return result._replace(gradients=gradients)

    plant.results("loss_and_gradients", change, nn.Network)


def _cosines(plant):
    plant.results("_rotation", lambda r, _: (r[0] + plant.f * r[1] * r[2], *r[1:]))


def _products(plant):
    def change(product, given):
        network, direction, X = given
        size = np.linalg.norm(plant.module.jacobian(network, X))
        size = size * np.linalg.norm(next(iter(direction.values())))
        return Bounded(product.value + plant.f * size, product.error)

    plant.results("_scores_along", change)


def _with_decay(plant):
    def change(result, given):
        arrays, after = result
        return (_times(arrays, 1 + plant.f), after) if given[3] in plant.module.DECAYS else result

    plant.results("_fixed_norm_step", change)


def _threshold(plant):
    function = plant.module.laws.reversed_by_decay
    plant.patch.setattr(
        plant.module.laws,
        "reversed_by_decay",
        lambda g, w, decay: function(g, w, decay * (1 + plant.f)),
    )


def _exponent(plant):
    def change(length, given):
        squares = sum((np.asarray(w) ** 2).sum() for w in weights_of(given[1]).values())
        return length * squares ** (plant.f / 2)

    plant.results("step_length", change)


def _squares(plant):
    def change(result, _):
        network, rows = result
        return network, [[r + plant.f * size, b, size, w] for r, b, size, w in rows]

    plant.results("norm_residuals", change)


def _along_w(plant):
    def change(result, _):
        gradient, product = result
        return gradient, Bounded(product.value * (1 + plant.f), product.error)

    plant.results("along_weights", change)


def _growth(plant):
    plant.results("_growth", lambda r, _: (r[0] * (1 + plant.f), *r[1:]))


def _law(plant):
    plant.law()


def _stored(plant):
    def change(result, _):
        change, memory, size = result
        return change + plant.f * size, memory, size

    plant.results("_change", change)


PLANTS = {
    "gradient-of-loss": lambda plant: plant.times("gradients_of"),
    "hessian-symmetric": _gradient_of_some,
    "loss-is-a-mean": lambda plant: plant.times("defined_loss"),
    "running-statistics": lambda plant: plant.times("_defined", range(6)),
    "step-by-definition": _way,
    "training-is-its-steps": _last_digit("_fitted", _fitted),
    "scale-invariance": _last_digit("scores", _of_a_rescaled_network),
    "penalty-rescaling": _last_digit("_objective", _every_other),
    "eps-rescaling": _last_digit("scores", _every_other),
    "gradient-scaling": _last_digit("gradients_of", _of_a_rescaled_network),
    "gradient-orthogonality": _gradient_along_w,
    "effective-learning-rate": _last_digit("run", _run),
    "direction-rate": lambda plant: plant.times("direction_rate", owner=plant.module.laws),
    "optimizer-symmetry": _last_digit("run", _run),
    "step-exponent": _exponent,
    "step-on-one-gradient": _step,
    "adam-eps": _length,
    "hessian-scaling": _last_digit("hessian", _every_other),
    "hessian-radial": _along_w,
    "newton-step": None,  # an eps, which the subject has
    "gauss-newton-null": _products,
    "second-order-symmetry": _last_digit("second_order_steps", _of_a_rescaled_network),
    "norm-growth": _squares,
    "norm-with-memory": _stored,
    "gradient-flow": _drift,
    "equilibrium-norm": _law,
    "equilibrium-angle": _law,
    "equilibrium-rate": _law,
    "relaxation-time": _law,
    "equilibrium-exponents": lambda plant: plant.law("judged_exponents"),
    "growth-law": _law,
    "rotation-per-step": _cosines,
    "equilibrium-in-training": _law,
    "fixed-norm-sgd": _with_decay,
    "fixed-norm-momentum": lambda plant: plant.times("circle_angle", owner=plant.module.laws),
    "fixed-norm-adam": _threshold,
    "weight-norm-grows": _growth,
    "lars-removes-scale": _last_digit("run", _run),
    "gamma-beta": _last_digit("scores", _of_a_rescaled_network),
}
MARKS = {
    "gradient-flow": pytest.mark.nightly,
    **dict.fromkeys(("fixed-norm-momentum", "optimizer-symmetry"), pytest.mark.slow),
    **dict.fromkeys(("effective-learning-rate", "lars-removes-scale"), pytest.mark.slow),
    **{
        id: pytest.mark.slow
        for id, claim in CLAIMS.items()
        if "sampling" in claim.unfit.get("float32", "")
    },
}


def planted(id, subject, f, monkeypatch):
    """The verdict of a claim on a subject with a fault of size f."""
    claim = CLAIMS[id]
    if PLANTS[id] is None:
        return claim.verify(subject.with_eps(f))
    with monkeypatch.context() as patch:
        PLANTS[id](Plant(claim, f, patch))
        return claim.verify(subject)


@pytest.mark.parametrize("id", [pytest.param(id, marks=MARKS.get(id, ())) for id in PLANTS])
def test_twice_the_smallest_fault_is_caught_and_half_of_it_is_not(id, monkeypatch):
    subject = CLAIMS[id].subjects(Options(dtypes=("float64",)))[0]
    verdict = CLAIMS[id].verify(subject)
    smallest = verdict.smallest_fault
    assert verdict.verified and 0 < smallest < 0.05
    wrong = planted(id, subject, 2 * smallest, monkeypatch)
    assert not wrong.verified, (smallest, wrong)
    if reach.REACHES[id].fault != reach._BIT:  # there is no half of a last digit
        assert planted(id, subject, smallest / 2, monkeypatch).verified


def test_every_claim_has_a_reach_and_a_fault_to_plant():
    assert list(reach.REACHES) == list(CLAIMS) and PLANTS.keys() == CLAIMS.keys()


def test_the_line_of_an_explanation():
    claim = CLAIMS["loss-is-a-mean"]
    told = reach.told(claim)
    size = claim.verify(claim.subjects(Options(dtypes=("float64",)))[0]).smallest_fault
    assert told == (
        "reach: the control takes away the division by the number of examples, or the cotangent; "
        "the smallest fault that is caught: a loss or a gradient too large by "
        f"{table.number(size)} of it (cross entropy, float64)"
    )
    assert reach.told(dataclasses.replace(claim, id="ones-own")) == ""
    assert all(r.fault.count("{}") == 1 for r in reach.REACHES.values())
