"""How decay enters a step, and whether parameters are updated independently of each other."""

import numpy as np

from theory import laws
from theory.yours.optimizers.runs import FAILED
from theory.yours.optimizers.stepping import role

NONE, UNCLEAR = "none", "in no simple way"
COUPLED, DECOUPLED, PLAIN = "coupled", "decoupled", "coupled = decoupled"
TWICE, BOTH = "coupled, added twice", "coupled and decoupled at once"
DECOUPLED_TWICE = "decoupled, added twice"
FAULTS = (TWICE, BOTH, DECOUPLED_TWICE)
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
    penalised = {f: runs.steps_held(quiet, penalty=f * decay) for f in (1, 2)}
    size = np.linalg.norm(with_decay - without)
    near = [f for f, p in penalised.items() if np.linalg.norm(with_decay - p) <= _CLOSE * size]
    before, after = (_multiple(with_decay - without, of) for of in (w, w + without))
    if near == [1]:
        return COUPLED if before is None else PLAIN
    if near == [2]:
        return TWICE
    multiple = after if before is None else before
    if multiple is None:
        rest = _multiple(with_decay - penalised[1], w)
        return BOTH if rest is not None and rest > 0 else UNCLEAR
    ways = {DECOUPLED: rate, "decoupled, without the rate": 1.0, DECOUPLED_TWICE: 2 * rate}
    for words, factor in ways.items():
        if abs(multiple / (factor * decay) - 1) <= 1e-3:
            return words + (", after the step" if before is None else "")
    return f"decoupled, {multiple / (rate * decay):.3g} rate decay w"


def _multiple(steps, of):
    """Return the c of steps = -c times `of`, the same c in each step; None where there is none."""
    of = np.broadcast_to(of, steps.shape)
    each = -(steps * of).sum(axis=1) / (of * of).sum(axis=1)
    off = np.linalg.norm(steps + each[:, None] * of, axis=1)
    size = np.linalg.norm(steps, axis=1)
    if np.any(off > 1e-3 * size) or np.ptp(each) > 1e-3 * abs(each[0]):
        return None
    return float(each[0])


INDEPENDENT, BY_VALUES = "independent", "coupled"
BY_COUNT = "coupled by their number"


def parameters_together(runs, sites):
    """Return whether a parameter's run depends on the others', in words.

    On their values, as under a global norm, or merely on how many there are, as with a counter of
    steps that every parameter turns.
    """
    problem = runs.problem
    if problem.loss_of is None:  # only there the loss itself keeps parameters apart
        return "not asked"
    first, *others = problem.invariant
    try:
        together, alone, elsewhere = (
            _path(runs, sites, given, first)
            for given in (problem, problem.only([first]), problem.changed(others))
        )
        by_chance = not np.array_equal(together, _path(runs, sites, problem, first, seed=1))
    except FAILED:
        return "cannot be run one by one"
    if not np.array_equal(together, elsewhere):
        return BY_VALUES
    if by_chance:  # whose draws the others share
        return "not asked"
    # A library may compile one array otherwise than two: that changes the last digits.
    moved = np.abs(together - problem.arrays[first]).max()
    return BY_COUNT if np.abs(together - alone).max() > _CLOSE * moved else INDEPENDENT


def _path(runs, sites, problem, name, seed=0):
    runs.maker.seed, before = seed, runs.maker.seed
    try:
        return np.array([arrays[name] for arrays in runs.at(sites, problem=problem)])
    finally:
        runs.maker.seed = before


CONSTANT = "constant"


def on_one_gradient(runs, quiet):
    """Return the lengths of the steps at one w and gradient, relative to the first that moves w."""
    lengths = np.linalg.norm(runs.steps_held(quiet), axis=1)
    moving = lengths[lengths > 0]
    return tuple(float(length) for length in (lengths / moving[0] if moving.size else lengths))


def course_of(lengths):
    """Return how steps on one gradient go on, in words, by theory.laws' forms of them.

    Constant: without memory, or with moments that are corrected for their start.
    """
    lengths = np.array(lengths)
    still = int(np.argmax(lengths > 0))
    if still:
        return f"0 for {still} step{'s' * (still > 1)}, then {course_of(lengths[still:])}"
    if len(lengths) < 2:
        return "one"
    second = lengths[1]
    grown, fallen = second - 1, second**-2.0 - 1
    forms = {
        CONSTANT: ("SGD", {}),
        f"momentum {grown:.3g}": ("Momentum", {"momentum": grown}),
        f"Nesterov {_nesterov(grown):.3g}": ("Nesterov", {"momentum": _nesterov(grown)}),
        "sum of squares": ("Adagrad", {}),
        f"mean of squares {fallen:.3g}, not corrected": ("RMSprop", {"decay": fallen}),
    }
    for words, (optimizer, hyper) in forms.items():
        law = [
            float(laws.repeated_step(optimizer, np.ones(1), t, **hyper)[0])
            for t in range(1, len(lengths) + 1)
        ]
        if np.allclose(lengths, np.array(law) / law[0], rtol=_CLOSE, atol=0):
            return words
    return f"{lengths.min():.3g} to {lengths.max():.3g} times the first"


def _nesterov(grown):
    """Return the momentum of which the second step is (1 + rho + rho^2)/(1 + rho) of the first."""
    return (grown + np.sqrt(max(grown * grown + 4 * grown, 0.0))) / 2
