"""A model's loss and gradients, evaluated in the widest numbers that it takes, with their noise."""

import math
from typing import NamedTuple

import numpy as np

from theory.yours.arrays import as_numpy
from theory.yours.differences import derivative_by_mean_slope, directional_derivative
from theory.yours.tree import finite_floats, flatten, rebuild

# The step at which rounding is told from curvature, per dtype of the evaluation: wide enough for
# numbers that are rounded to float32 inside to be noticed, narrow enough for few ReLUs to be
# crossed, whose jumps the median of the probes leaves out.
_STEP = {"float32": 2.0**-20, "float64": 2.0**-30}
_DOUBT = 0.01  # of the slope: a gradient that is off by less is not told from kinks


class Evaluation(NamedTuple):
    """loss: a number.  gradients: {name: array}."""

    loss: float
    gradients: dict


class Point(NamedTuple):
    """Parameters with loss and gradients there, and how far both were seen to be off by rounding.

    noise: {name: array}, of each entry of the gradients.
    """

    parameters: dict
    loss: float
    gradients: dict
    loss_noise: float
    noise: dict


class Model:
    """Loss and gradients at the given parameters, and at other ones.

    function: a tree of arrays -> (loss, a tree of gradients), on one batch.  parameters: the tree,
    see theory.yours.tree.  The numbers are float64 where the function computes in it when it gets
    them, else the parameters' own float32.

    Raises ValueError for a function whose two calls differ, and one that needs half precision.
    """

    def __init__(self, function, parameters):
        if not callable(function):
            raise TypeError(
                f"loss_and_gradients: got {type(function).__name__}, expected a function "
                "parameters -> (loss, gradients)"
            )
        self._function, self._tree = function, parameters
        self.given = finite_floats(
            {
                name: as_numpy(leaf, f"parameters[{name!r}]")
                for name, leaf in flatten(parameters).items()
            }
        )
        self.dtype = self._widest()
        # Where float32 is the parameters' own, it is the faster one to reject with.
        own = np.result_type(*(array.dtype for array in self.given.values()))
        self.quick = np.dtype("float32") if own.itemsize <= 4 else self.dtype
        self.parameters = {name: array.astype(self.dtype) for name, array in self.given.items()}

    def _widest(self):
        own = np.result_type(*(array.dtype for array in self.given.values()))
        reasons = []
        for dtype in (np.dtype("float64"), np.dtype("float32")):
            arrays = {name: array.astype(dtype) for name, array in self.given.items()}
            if dtype == own:
                return own
            try:
                gradients = self._evaluate(arrays).gradients
            except Exception as error:  # what a foreign function raises for another dtype
                reasons.append(f"{type(error).__name__}: {error}")
                continue
            if all(gradient.dtype == dtype for gradient in gradients.values()):
                return dtype
        raise ValueError(
            f"parameters: got {own}, whose rounding hides what is to be seen, and the function "
            f"does not compute in float32 or float64, expected one of them ({'; '.join(reasons)})"
        )

    def _evaluate(self, arrays):
        result = self._function(rebuild(self._tree, arrays))
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise TypeError(
                f"loss_and_gradients: got the result {result!r:.60}, expected a pair (loss, "
                "gradients)"
            )
        loss, gradients = result
        gradients = flatten(gradients, "gradients")
        missing = [name for name in arrays if name not in gradients]
        if missing:
            raise ValueError(f"loss_and_gradients: got no gradient of {missing}, expected one each")
        gradients = {
            name: as_numpy(gradients[name], f"the gradient of {name!r}") for name in arrays
        }
        for name, gradient in gradients.items():
            if gradient.shape != arrays[name].shape:
                raise ValueError(
                    f"loss_and_gradients: got a gradient of {name!r} of shape {gradient.shape}, "
                    f"expected the parameter's, {arrays[name].shape}"
                )
        loss = as_numpy(loss, "the loss")
        if loss.size != 1 or loss.dtype.kind not in "fiu":
            raise TypeError(
                f"loss_and_gradients: got a loss of shape {loss.shape} and dtype {loss.dtype}, "
                "expected one real number, such as a mean over the examples"
            )
        return Evaluation(float(loss.reshape(())), gradients)

    def at(self, parameters, changes=(), dtype=None):
        """Return the Evaluation at `parameters` with some replaced, None where it is not finite.

        dtype: to compute in, the model's by default.
        """
        arrays = {**parameters, **dict(changes)}
        if dtype is not None:
            arrays = {name: array.astype(dtype) for name, array in arrays.items()}
        with np.errstate(all="ignore"):
            result = self._evaluate(arrays)
        finite = np.isfinite(result.loss) and all(
            np.all(np.isfinite(gradient)) for gradient in result.gradients.values()
        )
        return result if finite else None

    def check_repeats(self):
        """Refuse a function that gives another loss at the same parameters; return it there."""
        here, again = self.at(self.parameters), self.at(self.parameters)
        if here is None or again is None:
            raise ValueError("loss_and_gradients: got a loss or gradients that are not finite")
        if abs(again.loss - here.loss) > 64 * float(np.finfo(self.dtype).eps) * abs(here.loss):
            raise ValueError(
                f"loss_and_gradients: two calls at the same parameters gave the losses "
                f"{here.loss:.6g} and {again.loss:.6g}, expected the same: fix the batch and the "
                "seed, and switch dropout off"
            )
        return here

    def point(self, parameters, probes=3):
        """Return the Point at some parameters, None where it is not finite.

        The noise is what two steps along one direction do not share: g(2h) - 2 g(h) + g(0).  The
        median of some probes leaves out jumps, as of a ReLU that is crossed.
        """
        here = self.at(parameters)
        if here is None:
            return None
        u = float(np.finfo(self.dtype).eps) / 2
        rng, step = np.random.default_rng(3), _STEP[self.dtype.name]
        losses, apart = [], {name: [] for name in parameters}
        for _ in range(probes):
            signs = {name: rng.uniform(-1, 1, array.shape) for name, array in parameters.items()}
            one, two = (self.at(_stepped(parameters, signs, h)) for h in (step, 2 * step))
            if one is None or two is None:
                return None
            losses.append(abs(two.loss - 2 * one.loss + here.loss))
            for name, g in here.gradients.items():
                apart[name].append(np.abs(two.gradients[name] - 2 * one.gradients[name] + g))
        noise = {
            name: np.hypot(np.median(off, axis=0), 2 * u * here.gradients[name])
            for name, off in apart.items()
        }
        loss_noise = max(4 * u * abs(here.loss), *losses)
        return Point(parameters, here.loss, here.gradients, loss_noise, noise)

    def check_gradient(self):
        """Refuse gradients that are not the loss's: along them the loss must move as they say.

        Judged only where differences can tell, by both of theory.yours.differences.
        """
        point = self.point(self.parameters)
        if point is None:
            return
        shapes = {name: array.shape for name, array in self.parameters.items()}
        w, g, noise = (
            _joined(arrays) for arrays in (point.parameters, point.gradients, point.noise)
        )
        length = float(np.linalg.norm(g))
        if length == 0:
            return
        direction = (np.linalg.norm(w) / length) * g.astype(np.float64)

        def loss_and_slope(moved):
            here = self.at(_split(moved.astype(self.dtype), shapes))
            if here is None:
                return math.nan, math.nan
            return here.loss, float(np.sum(_joined(here.gradients) * direction))

        slope = float(np.sum(g * direction))
        rounding = float(np.sum(np.abs(direction) * noise)) + _DOUBT * abs(slope)
        for derivative_along in (directional_derivative, derivative_by_mean_slope):
            derivative, error = derivative_along(
                loss_and_slope, w, direction, slope, point.loss_noise
            )
            if not abs(derivative - slope) > error + rounding:
                return
        raise ValueError(
            f"loss_and_gradients: along the gradient the loss changes {derivative / slope:.3g} "
            "times as fast as the gradient's length says, expected once: it is not the gradient of "
            "this loss"
        )

    def generic(self, seed, factor=1.0):
        """Return parameters a tenth away, where nothing is 0 or equal by choice, times a factor."""
        rng = np.random.default_rng(seed)
        moved = {}
        for name, array in self.parameters.items():
            scale = 0.1 * (np.sqrt(np.mean(np.square(array))) or 1.0)
            noise = rng.standard_normal(array.shape)
            moved[name] = (factor * (array + scale * noise)).astype(self.dtype)
        return moved


def _joined(arrays):
    return np.concatenate([array.ravel() for array in arrays.values()])


def _split(vector, shapes):
    """Return {name: array} of these shapes, of what was joined."""
    arrays, at = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        arrays[name] = vector[at : at + size].reshape(shape)
        at += size
    return arrays


def _stepped(parameters, signs, h):
    """Return every number times 1 + h sign."""
    return {name: (a * (1 + h * signs[name])).astype(a.dtype) for name, a in parameters.items()}
