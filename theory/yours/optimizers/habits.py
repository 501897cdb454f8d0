"""How decay enters a step, and whether parameters are updated independently of each other."""

import numpy as np

from theory.yours.optimizers.runs import FAILED
from theory.yours.optimizers.stepping import role

NONE, UNCLEAR = "none", "in no simple way"
COUPLED, DECOUPLED, PLAIN = "coupled", "decoupled", "coupled = decoupled"
TWICE, BOTH = "coupled, added twice", "coupled and decoupled at once"
FAULTS = (TWICE, BOTH)
_CLOSE = 1e-6  # of a difference of steps, which has lost the digits of w


def decay_style(runs, quiet, felt):
    """Return how weight decay enters, in words, measured at a fixed w.

    Coupled: the steps with decay are those without on the gradient g + decay w.  Decoupled: they
    are those without, less the same multiple of w each time.  Plain gradient descent is both.
    """
    for site in [site for site in quiet if role(site) == "decay"]:
        try:
            return _style(runs, quiet, site, felt[site])
        except FAILED:
            return UNCLEAR
    return NONE


def _style(runs, quiet, site, decay):
    with_decay = runs.steps_held({**quiet, site: decay})
    without = runs.steps_held(quiet)
    if np.array_equal(with_decay, without):
        return NONE
    rate = next((value for name, value in quiet.items() if role(name) == "rate"), 1.0)
    start = runs.problem.start()
    w = np.concatenate([start[name].ravel() for name in runs.problem.invariant])

    def shrinks(from_):
        """Return the multiple of w that is left of each step, NaN where it is no multiple."""
        rest = with_decay - from_
        multiples = -(rest @ w) / (w @ w)
        off = np.linalg.norm(rest + multiples[:, None] * w, axis=1)
        scale = np.linalg.norm(with_decay, axis=1) + np.linalg.norm(rest, axis=1)
        return np.where(
            off <= _CLOSE * scale * 1e-3 + _CLOSE * np.abs(multiples), multiples, np.nan
        )

    apart = shrinks(without)
    steady = bool(np.ptp(apart) <= _CLOSE * abs(apart[0]))  # False where one is NaN
    penalised = {f: runs.steps_held(quiet, penalty=f * decay) for f in (1, 2)}
    size = np.linalg.norm(with_decay - without)
    near = [f for f, p in penalised.items() if np.linalg.norm(with_decay - p) <= _CLOSE * size]
    if near == [1]:
        return PLAIN if steady else COUPLED
    if near == [2]:
        return TWICE
    if steady:
        for factor, words in (
            (rate, DECOUPLED),
            (1.0, "decoupled, without the rate"),
            (2 * rate, "decoupled, added twice"),
        ):
            if abs(apart[0] / (factor * decay) - 1) <= 1e-3:
                return words
        return f"decoupled, {apart[0] / (rate * decay):.3g} rate decay w"
    rest = shrinks(penalised[1])
    if np.ptp(rest) <= _CLOSE * abs(rest[0]) and rest[0] > 0:
        return BOTH
    return UNCLEAR


INDEPENDENT, BY_VALUES = "independent", "coupled"
BY_COUNT = "a step counted once for each parameter"


def parameters_together(runs, sites):
    """Return whether a parameter's run depends on the others', in words.

    On their values, as under a global norm, or merely on how many they are: a counter of steps that
    every parameter turns.
    """
    problem = runs.problem
    if problem.loss_of is None:  # only there the loss itself keeps parameters apart
        return "not asked"
    for name in problem.invariant:
        others = [other for other in problem.invariant if other != name]
        try:
            together, alone, elsewhere = (
                _path(runs, sites, given, name)
                for given in (problem, problem.only([name]), problem.changed(others))
            )
        except FAILED:
            return "cannot be run one by one"
        # Libraries may compile a tree of arrays otherwise than one: that changes the last digits.
        close = _CLOSE * np.abs(together - problem.arrays[name]).max()
        if np.abs(together - elsewhere).max() > close:
            return BY_VALUES
        if np.abs(together - alone).max() > close:
            return BY_COUNT
    return INDEPENDENT


def _path(runs, sites, problem, name):
    return np.array([arrays[name] for arrays in runs.at(sites, problem=problem)])


def on_one_gradient(runs, quiet):
    """Return the lengths of the steps at one w and gradient, relative to the first."""
    lengths = np.linalg.norm(runs.steps_held(quiet), axis=1)
    return tuple(float(length) for length in lengths / lengths[0])
