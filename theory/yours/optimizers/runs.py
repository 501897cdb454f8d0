"""Runs from w_0 and from 2^k w_0 side by side, bit by bit, up to where they part."""

from typing import NamedTuple

import numpy as np

from theory.measures.bits import differing

FAILED = Exception  # whatever a foreign optimizer raises: it cannot be run so


class Parting(NamedTuple):
    """Where two runs part: the power k, the step, the parameter, and how many of its numbers."""

    k: int
    step: int
    parameter: str
    differing: int
    size: int

    def __str__(self):
        return (
            f"from 2^{self.k} w, step {self.step} is the first that differs, in {self.differing} "
            f"of {self.size} numbers of {self.parameter}"
        )


class Runs:
    """The runs of one optimizer on one problem."""

    def __init__(self, maker, problem, steps):
        self.maker, self.problem, self.steps = maker, problem, steps
        self.others = maker.sites  # the hyper-parameters of what is not invariant
        self._plain = {}

    def at(self, sites, k=0, *, problem=None, held=False, penalty=0.0):
        """Yield the arrays after each step of the run from 2^k w_0.

        sites: the hyper-parameters of the invariant parameters.  held: w is put back to where it
        was after each step.  penalty: `penalty w` is added to each gradient.  Raises
        ArithmeticError where the numbers are not finite.
        """
        problem = self.problem if problem is None else problem
        arrays = problem.start(k)
        inner = {name: arrays[name] for name in problem.invariant}
        outer = {name: array for name, array in arrays.items() if name not in inner}
        optimizers = [self.maker.begin(sites, inner, problem)]
        if outer:
            optimizers.append(self.maker.begin(self.others, outer, problem))
        evaluation = _Evaluation(problem, k, penalty)
        for step in range(1, self.steps + 1):
            before = _together(optimizers)
            for optimizer in optimizers:
                optimizer.step(evaluation(before))
            after = _together(optimizers)
            for name, array in after.items():
                if np.shape(array) != before[name].shape:
                    raise ValueError(
                        f"a step made {name} an array of shape {np.shape(array)}, expected the "
                        f"parameter's, {before[name].shape}"
                    )
            if not all(np.isfinite(array).all() for array in after.values()):
                raise FloatingPointError(f"its numbers are not finite after step {step}")
            yield after
            if held:
                for optimizer in optimizers:
                    optimizer.place({name: before[name] for name in optimizer.arrays()})

    def plain(self, sites, offset=0):
        """Return the arrays after each step of the run from 2^offset w_0; made once."""
        key = (offset, tuple(sorted(sites.items())))
        if key not in self._plain:
            self._plain[key] = list(self.at(sites, offset))
        return self._plain[key]

    def parting(self, sites, powers, k, offset=0):
        """Return the Parting of the run from 2^k w_0, None where it is 2^k times the plain one.

        powers: {site: power of 2^k that multiplies it}.
        """
        plain, scaled = self.plain(sites, offset), rescaled(sites, powers, k)
        for step, (one, other) in enumerate(
            zip(plain, self.at(scaled, offset + k), strict=True), 1
        ):
            for name, array in one.items():
                wrong = differing(other[name], self._shifted(name, array, k))
                if wrong:
                    return Parting(k, step, name, wrong, array.size)
        return None

    def exact(self, sites, powers, ks, offset=0):
        """Return whether the runs from 2^k w_0 agree; what cannot be run agrees in nothing."""
        try:
            return not any(self.parting(sites, powers, k, offset) for k in ks)
        except FAILED:
            return False

    def apart(self, sites, powers, k):
        """Return how many numbers differ after the last step, and by how much of the largest."""
        plain = self.plain(sites)[-1]
        scaled = list(self.at(rescaled(sites, powers, k), k))[-1]
        wrong, relative = 0, 0.0
        for name, array in plain.items():
            expected = self._shifted(name, array, k)
            wrong += differing(scaled[name], expected)
            off = np.abs(scaled[name] - expected).max() / np.abs(expected).max()
            relative = max(relative, float(off))
        return wrong, relative

    def _shifted(self, name, array, k):
        return np.ldexp(array, k if name in self.problem.absorbed else 0)

    def steps_held(self, sites, k=0, penalty=0.0):
        """Return the steps w' - w of the invariant parameters, w held, as a row each."""
        start = self.problem.start(k)
        names = self.problem.invariant
        return np.array(
            [
                np.concatenate([(after[name] - start[name]).ravel() for name in names])
                for after in self.at(sites, k, held=True, penalty=penalty)
            ]
        )

    def degrees(self, sites, offset=0, k=6, powers=None):
        """Return nu of each step at a fixed w: -log2(|p(2^k w)|/|p(w)|)/k; NaN where p is 0."""
        settings = ((0, sites), (k, rescaled(sites, powers or {}, k)))
        lengths = [
            np.linalg.norm(self.steps_held(own, offset + shift), axis=1) for shift, own in settings
        ]
        with np.errstate(all="ignore"):
            return -np.log2(lengths[1] / lengths[0]) / k


def rescaled(sites, powers, k):
    """Return the hyper-parameters, each times 2^k to its power."""
    return {site: value * 2.0 ** (powers.get(site, 0) * k) for site, value in sites.items()}


def _together(optimizers):
    return {name: array for optimizer in optimizers for name, array in optimizer.arrays().items()}


class _Evaluation:
    """Makes functions of an optimizer's own arrays -> loss, gradients of them; the last is kept.

    A closure asks again at the same arrays, and so does the optimizer of the other parameters.
    """

    def __init__(self, problem, k, penalty):
        self.problem, self.k, self.penalty = problem, k, penalty
        self.last = None

    def __call__(self, others):
        def evaluate(own):
            arrays = {**others, **own}
            kept = self.last
            if kept is None or not all(np.array_equal(kept[0][n], arrays[n]) for n in arrays):
                kept = self.last = (arrays, self.problem.evaluate(arrays, self.k))
            loss, gradients = kept[1]
            if self.penalty:
                return loss, {name: gradients[name] + self.penalty * own[name] for name in own}
            return loss, {name: gradients[name] for name in own}

        return evaluate
