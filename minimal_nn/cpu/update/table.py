"""Hyper-parameters as kernels take them: a row for each step, with one number for all weights or
one for each."""

import numpy as np

from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.operands import elements

# Whether a step is relative to |w|.  The row of their table begins with that of the step of SGD
# which adds the penalty to g: 0, -decay, learning rate.
NORMALIZED = {"normalized_sgd": False, "lars": True}
RATE = 2  # where it stands there
CORRECTIONS = slice(7, 10)  # where the bias corrections stand in Adam's row
CORRECTED = ("adam", "adamw")


def bias_corrections(t, beta1, beta2, eps_inside_root=0.0):
    """Return 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t), and eps_inside_root (1 - beta2^t)."""
    left = 1 - beta2**t
    return [1 / (1 - beta1**t), 1 / np.sqrt(left), eps_inside_root * left]


def hyper_parameters(formula, t=1, weight_decay=0.0, eps_inside_root=0.0, **hyper):
    """Return the row of the table for an optimizer's kernel, in its order."""
    rate = hyper["learning_rate"]
    if formula in NORMALIZED:
        return [0.0, np.negative(weight_decay), rate]
    if formula in ("sgd", "sign_sgd"):
        return [weight_decay, rate]
    if formula in ("momentum", "nesterov"):
        return [weight_decay, rate, hyper["momentum"]]
    if formula == "rmsprop":
        return [
            weight_decay,
            rate,
            hyper["decay"],
            1 - hyper["decay"],
            hyper["eps"],
            eps_inside_root,
        ]
    if formula == "adagrad":
        return [weight_decay, rate, hyper["eps"], eps_inside_root]
    if formula == "adadelta":
        decay = hyper["decay"]
        eps = hyper["eps_numerator"], hyper["eps_denominator"]
        return [weight_decay, rate, decay, 1 - decay, *eps]
    beta1, beta2 = hyper["beta1"], hyper["beta2"]
    row = [weight_decay, rate, beta1, 1 - beta1, beta2, 1 - beta2]
    if formula != "lion":
        row += [hyper["eps"], *bias_corrections(t, beta1, beta2, eps_inside_root)]
    if formula != "adam":
        row.append(1 - rate * hyper["decoupled_weight_decay"])
    return row


def arrays_of(row):
    """Return which hyper-parameters of a row are arrays, with a number for each weight."""
    return tuple(n for n, value in enumerate(row) if np.ndim(value))


class Table:
    """Room for the hyper-parameters of a formula, of one step or of each turn of a loop.

    hypers: how many they are; which: the numbers of those that are arrays, for weights that take
    `size` numbers in memory, `unit_size` each unit.  turns, array_turns: for how many turns there
    are numbers and arrays of their own; 1 for the same in all.
    """

    def __init__(self, hypers, which, size, dtype, unit_size=0, turns=1, array_turns=1):
        self.which = which
        self.numbers = workspace.aligned((turns, hypers, workspace.lanes(dtype)), dtype)
        self._numbers, self.arrays = elements(self.numbers), None
        if which:
            self.arrays = workspace.aligned((array_turns, len(which), size), dtype)
            self._arrays = elements(self.arrays, unit_size)
            self._which = np.array(which, dtype=np.int64)

    def fill(self, row, shape, pack, steps=1, parts=1):
        """Write the hyper-parameters of so many steps, `parts` turns each.

        row: of each a number, or an array that broadcasts to (steps, *shape).  pack(array, out):
        puts numbers of weights where these lie.
        """
        if len(self.numbers) == 1 and not self.which:
            self.numbers[0].T[...] = row
            return
        turns = min(steps * parts, len(self.numbers))
        for n, value in enumerate(row):
            if n not in self.which:
                numbers = np.ravel(value)
                repeated = np.repeat(numbers, parts) if numbers.size > 1 else numbers
                self.numbers[:turns, n] = repeated[:, None]
        for k, n in enumerate(self.which):
            values = np.broadcast_to(row[n], (steps, *shape))
            for turn in range(min(steps * parts, len(self.arrays))):
                pack(values[turn // parts], self.arrays[turn, k])

    @property
    def shared(self):
        """What kernels take of hyper-parameters that are one number for all weights."""
        return self._numbers, _step(self.numbers), self.numbers.shape[2]

    def by_weight(self, hypers):
        """What kernels take of arrays among the first `hypers` hyper-parameters: where they lie,
        which they are, and how many."""
        count = sum(n < hypers for n in self.which)
        return self._arrays, _step(self.arrays), self.arrays.shape[2], self._which, count

    def one(self, n):
        """What kernels take of one hyper-parameter: where it lies, how far from one step to the
        next, and from one weight to the next."""
        if n in self.which:
            start = self.which.index(n) * self.arrays.shape[2]
            return self._arrays.at(start=start), _step(self.arrays), 1
        return self._numbers.at(start=n * self.numbers.shape[2]), _step(self.numbers), 0


def _step(array):
    """Return how many numbers lie from one turn's to the next one's."""
    return array.shape[1] * array.shape[2] if len(array) > 1 else 0
