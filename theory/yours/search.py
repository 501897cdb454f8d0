"""Which groups of a model's parameters are scale-invariant: where they are looked for.

Every question is asked of all parameters at once, as far as it can be, since an evaluation of the
model is what takes time.
"""

import itertools

import numpy as np

from theory.yours.parts import partitions, whole
from theory.yours.scale_law import LITTLE, Look, confirmed, lasts, partly

NO, CANCELLED, UNCLEAR = "no", "cancelled", "unclear"
_FAR_AWAY = 1000.0  # in units of a parameter's root mean square
_FAR = 1024.0  # all parameters times this: any eps is small beside the variances
_CLEARLY = 0.02  # of the cosine near by: far beyond what an eps leaves there
_TRIES = 3  # partitions of which a share may obey
_SHARE = 1 / 16  # of the parts: fewer obey by chance
_WEIGHTS = ("weight", "W", "w", "kernel", "scale", "gamma")
_BIASES = ("bias", "b", "beta", "offset")


def groups_of(model, unit_axis):
    """Return (names, word, Series or None, why) for every group, in the order of the parameters.

    model: an evaluation.Model.  unit_axis: the axis that is named where two would do.  why: what
    leaves one in doubt, where the word is UNCLEAR.
    """
    near = [model.point(model.generic(seed)) for seed in (5, 6)]
    points = [point for point in near if point is not None]
    if not points:
        raise ValueError(
            "loss_and_gradients: got a loss or gradients that are not finite at parameters a tenth "
            "away from the given ones"
        )
    far = [model.point(model.generic(seed, _FAR), probes=1) for seed in (5, 6)]
    return _Search(model, points, [point for point in far if point is not None], unit_axis).groups()


class _Search:
    """What is asked of a model's parameters.

    near: points at which the law is asked.  far: points at which no eps is left, and a radial
    derivative says no by itself.
    """

    def __init__(self, model, near, far, unit_axis):
        self.model, self.near, self.far, self.unit_axis = model, near, far, unit_axis
        self.arrays = near[0].parameters

    def groups(self):
        """Return (names, word, Series or None, why) for every group, as the parameters stand."""
        cancelled = self._cancelled()
        groups = {}
        alone = [name for name in self.arrays if name not in cancelled]
        for name, known in cancelled.items():
            groups[name] = (name,), CANCELLED if known else UNCLEAR, None
        for name, found in zip(alone, self._confirmed([(name,) for name in alone]), strict=True):
            groups[name] = (name,), _word(found), found
        taken = self._add_pairs(groups)
        for name in alone if len(self.near) > 1 else ():
            if name not in taken and groups[name][1] == NO:
                found = self._some((name,))
                groups[name] = groups[name][0], _word(found), found
        return [self._with_reason(*groups[name]) for name in self.arrays if groups[name][0]]

    def _with_reason(self, names, word, found):
        """Add why one cannot tell; what seems not to be invariant may have an eps outside a root.

        The leak of that falls as 1/|w|, as what some functions leave that saturate.
        """
        if word == NO and all(self._slow(names, point) for point in self.near):
            return names, UNCLEAR, None, "an eps outside a root may hide it, or a saturation"
        if word != UNCLEAR:
            return names, word, found, ""
        if found is not None and found.hidden:
            return names, word, found, "an eps that is not small hides it"
        better = ": let the function compute in float64" if self.model.dtype != np.float64 else ""
        return names, word, found, f"rounding hides it{better}"

    def _slow(self, names, point):
        """Return whether r is next to 0, and falls as 1/|w| while the gradient goes on as 1/|w|."""
        every, look = whole(names), Look(names, point)
        (noise,), _ = look.noise(every)
        (r,), (size,) = look.radial(every)
        if not 20 * noise < abs(r) <= LITTLE * size:
            return False
        fallen, lengths = [], []
        for a in (4.0, 16.0):
            changes = every.scaled(point.parameters, np.full(1, a))
            evaluation = self.model.at(point.parameters, changes)
            if evaluation is None:
                return False
            (further,), (length,) = look.radial(every, a, evaluation)
            fallen.append(a * further / r)
            lengths.append(length / size)
        return np.allclose(fallen, 1, atol=0.1) and np.allclose(lengths, 1, atol=0.01)

    def _add_pairs(self, groups):
        """Find pairs that are invariant jointly among what is not so alone; return their names."""
        left = [name for name in self.arrays if groups[name][1] in (NO, UNCLEAR)]
        pairs, taken = self._pairs(left), set()
        while pairs:
            batch, later = [], []
            for pair in pairs:
                if any(set(pair) & set(other) for other in batch):
                    later.append(pair)
                else:
                    batch.append(pair)
            for pair, found in zip(batch, self._confirmed(batch), strict=True):
                if found is not None:
                    taken.update(pair)
                    groups[pair[0]], groups[pair[1]] = (pair, _word(found), found), ((), "", None)
            pairs = [pair for pair in later if not taken & set(pair)]
        return taken

    def _confirmed(self, groups):
        """Return the Series of the finest partition that obeys of each tuple of names, or None.

        What an eps hardly moves is asked together, as it hardly fails.
        """
        kinds = {names: self._kind(names) for names in groups}
        plain = [names for names in groups if kinds[names] == "plain"]
        choices = [partitions(self.arrays, names, self.unit_axis) for names in plain]
        found = dict(zip(plain, confirmed(self.model, self.near, choices), strict=True))
        for names in groups:
            if kinds[names] == "open":
                found[names] = self._alone(names)
        return [found.get(names) for names in groups]

    def _alone(self, names):
        """Return the Series of one tuple of names, or None.

        The eps of other layers, where it is large, hides how a function saturates: the law must
        also hold where their weights are large.
        """
        choices = partitions(self.arrays, names, self.unit_axis)
        (found,) = confirmed(self.model, self.near, [choices])
        if found is None or self._seen(names) <= LITTLE:
            return found
        lifted = {
            name: array if name in names else _lifted(array) for name, array in self.arrays.items()
        }
        point = self.model.point(lifted, probes=1)
        if point is None or _far(Look(names, point), 1.0) == "dead":
            return found
        return found if lasts(self.model, point, found.partition) else None

    def _seen(self, names):
        """Return the largest |r| / |w| |g| of all parameters near by."""
        return max(_cosine(Look(names, point)) for point in self.near)

    def _kind(self, names):
        """Return NO where the radial derivative says so, else how likely the law holds.

        An eps that is seen near by would be a millionth of it far away, or were thousands of times
        the variance.
        """
        all_of_them = whole(names)
        near = [Look(names, point) for point in self.near]
        small = [look.small(all_of_them)[0] for look in near]
        seen = self._seen(names)
        far = [_far(Look(names, point), seen) for point in self.far]
        if not all(small) and "large" in far and "small" not in far:
            return NO
        return "plain" if all(small) and "small" in far and "large" not in far else "open"

    def _some(self, names):
        """Return the Series of the partition of which the largest share of parts obeys, or None.

        The radial derivatives of these parts must be next to 0 near by, or at large w, and the law
        hold where only they are rescaled.
        """
        shares = []
        looks = [[Look(names, point) for point in self.near]]
        if self.arrays[names[0]].ndim > 1:
            large = whole(names).scaled(self.arrays, np.full(1, _FAR))
            point = self.model.point({**self.arrays, **large}, probes=1)
            looks += [[Look(names, point)]] if point is not None else []
        for choice in partitions(self.arrays, names, self.unit_axis):
            for those in looks:
                mask = np.all([look.small(choice) for look in those], axis=0)
                if choice.count > 1 and np.count_nonzero(mask) > 1 and mask.mean() >= _SHARE:
                    shares.append((mask.mean(), choice, mask))
        for _, choice, mask in sorted(shares, key=lambda share: -share[0])[:_TRIES]:
            found = partly(self.model, self.near, choice, mask)
            if found is not None:
                return found
        return None

    def _cancelled(self):
        """Return {name: whether the loss does not depend on it} of what has no gradient.

        That is 0 or rounding.  None where rounding is too large to tell.
        """
        point = self.near[0]
        still = [
            name
            for name in self.arrays
            if np.linalg.norm(point.gradients[name]) <= 8 * np.linalg.norm(point.noise[name])
        ]
        if not still:
            return {}
        if len(still) > 1 and self._stays(still):
            return dict.fromkeys(still, True)
        known = {name: self._stays([name]) for name in still}
        return {name: stays for name, stays in known.items() if stays is not False}

    def _stays(self, names):
        """Return whether the loss stays where some parameters move, None where one cannot tell."""
        point, clear = self.near[0], True
        for reach in (1.0, _FAR_AWAY):  # far away too: a function that saturates stays near by
            changes, rounding = {}, 8 * reach * point.loss_noise
            for name in names:
                w = point.parameters[name]
                scale = np.sqrt(np.mean(np.square(w))) or 1.0
                shift = reach * scale * np.random.default_rng(7).standard_normal(w.shape)
                changes[name] = (w + shift).astype(w.dtype)
                rounding += 8 * float(np.linalg.norm(shift * point.noise[name]))
            moved = self.model.at(point.parameters, changes)
            if moved is None or abs(moved.loss - point.loss) > rounding:
                return False
            clear = clear and rounding <= 1e-2 * abs(point.loss)
        return True if clear else None

    def _pairs(self, names):
        """Return pairs that may be invariant jointly: by name, or as their r cancel each other.

        A common factor of both leaves the loss as it is only if <w, grad> and <b, grad> add up to
        0.  First comes the array of more axes.
        """
        radial = {
            name: np.array([Look((name,), p).radial(whole((name,)))[0][0] for p in self.near])
            for name in names
        }
        pairs = []
        for one, other in itertools.combinations(names, 2):
            size = np.maximum(np.abs(radial[one]), np.abs(radial[other]))
            near = len(self.near) > 1
            near = near and np.all(np.abs(radial[one] + radial[other]) <= 0.02 * size)
            if (near and np.all(size > 0)) or _one_layer(one, other):
                pairs.append(tuple(sorted((one, other), key=lambda name: -self.arrays[name].ndim)))
        return pairs


def _lifted(array):
    """Return weights whose units have norms of 4 or more; gains and biases as they are."""
    if array.ndim < 2:
        return array
    norm = np.linalg.norm(array) / np.sqrt(max(array.shape))
    return array * array.dtype.type(max(1.0, 4 / norm))


def _cosine(look):
    """Return |r| / |w| |g| of all parameters of a Look, 0 where they have no gradient."""
    (r,), (size,) = look.radial(whole(look.names))
    return float(abs(r) / size) if size > 0 else 0.0


def _far(look, seen):
    """Return "dead" without a gradient, else "large" or "small": r beside what is seen near by."""
    (noise,), (length_noise,) = look.noise(whole(look.names))
    (r,), (size,) = look.radial(whole(look.names))
    if size <= 100 * length_noise:
        return "dead"
    return "large" if abs(r) > _CLEARLY * seen * size + 25 * noise else "small"


def _word(found):
    if found is None:
        return NO
    if not found.clear:
        return UNCLEAR
    if not found.whole:
        return "partly"
    if found.partition.count == 1:
        return "as a whole"
    return "per unit" if found.partition.block == 1 else "in blocks"


def _one_layer(one, other):
    """Return whether two names are weights and bias of one layer.

    As PyTorch (fc.weight), minimal_nn (dense1.W), Flax (Dense_0/kernel), Haiku (linear/~/w) and
    Keras (dense/kernel:0) name them.
    """
    (layer, kind), (other_layer, other_kind) = _split(one), _split(other)
    kinds = {kind, other_kind}
    return layer == other_layer and bool(kinds & set(_WEIGHTS)) and bool(kinds & set(_BIASES))


def _split(name):
    name, _, number = name.rpartition(":") if name.rpartition(":")[2].isdigit() else (name, "", "")
    cut = max(name.rfind("."), name.rfind("/"))
    return name[: max(cut, 0)], name[cut + 1 :]
