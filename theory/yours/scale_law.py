r"""Which parts of the parameters are scale-invariant: the law of the radial derivative.

r(a) = <a w, grad L(a w)> is dL/d log a.  For a scale-invariant part it is 0 within rounding, or what
an eps > 0 leaks: L(a w; eps) = L(w; eps/a^2) is smooth in 1/a^2, so that r(a) goes to 0 and falls
16-fold from a to 4 a, neither slower, as where a function saturates like 1/a, nor faster, as where
it saturates like exp(-a).  The loss then moves by (1 - 1/16)/2 r(a) from a to 4 a, and the gradient
goes on, four times smaller.  Large a make eps small beside the variance; the same is asked of w.
"""

import numpy as np

from theory.yours.evaluation import Evaluation

FALL = 4.0  # between two scales
_FIRST, _MOST = 64.0, 2  # the first scale above 1, and how many are tried, each 16-fold
_SMALL = 3e-3  # the cosine below which eps is small beside the variance
_LITTLE = 1e-3  # the cosine below which every step must show the law
_STEADY = 0.01  # how far a gradient may turn between two scales where eps is small
_FAR = 1024.0  # the scale at which any eps is small
_TRIES = 3  # partitions of which a share may obey
_SHARE = 1 / 16  # of the parts: fewer obey by chance
_NOISES = 4  # times the noise that was seen: what it may be


class Series:
    """Parts of some parameters at a w for a = 1, a and 4 a, and what can be said of each part.

    radial, lengths: r(a) and |a w| |grad L(a w)| of each part, at the three scales.  obeys: which
    parts obey the law.  settled: False where larger a would tell more.
    """

    def __init__(self, partition, point, factor, ahead, further):
        self.partition, self.factor = partition, factor
        self.seen, self.finest, self.proved = 1.0, True, True
        self.noise, self.length_noise, self._squares = _noises(partition, point)
        now = Evaluation(point.loss, point.gradients)
        self.known = {1.0: now, factor: ahead, FALL * factor: further}
        here = _radial(partition, point, 1.0, now)
        rows = [here, _radial(partition, point, factor, ahead)]
        rows.append(_radial(partition, point, FALL * factor, further))
        self.radial, self.lengths = zip(*rows, strict=True)
        self.turned = factor * self.turned_between(ahead, further, FALL)
        self._judge(self.turned_between(point, ahead, factor))

    def turned_between(self, before, after, by):
        """Return |w| |by g' - g| of each part, which is 0 if g' goes on as 1/by of g."""
        apart = {
            name: np.square(by * after.gradients[name].astype(np.longdouble) - before.gradients[name])
            for name in self.partition.parameters
        }
        return np.sqrt(self.partition.sums(apart) * self._squares)

    def _judge(self, turned_now):
        (now, ahead, further), size = self.radial, self.lengths[0]
        noise = 5 * self.length_noise
        self.alive = size > 4 * self.length_noise
        # The gradient goes on as 1/a: not as that of a function which grows or saturates.
        goes_on = self.turned <= 0.6 * self.lengths[1] + noise
        goes_on &= (self.lengths[1] > size / 64) & (self.lengths[2] > self.lengths[1] / 4)
        candidates = self.alive & goes_on
        if np.mean(candidates) < _SHARE:
            self.obeys, self.settled = np.zeros_like(candidates), True
            return
        length = np.where(size > 0, size, 1)
        cosine, cosine_now = (np.where(self.alive, np.abs(r) / length, 0) for r in (ahead, now))
        typical = np.maximum(cosine, np.median(cosine[candidates]))
        typical_now = np.maximum(cosine_now, np.median(cosine_now[candidates]))
        tau_now = turned_now / length
        steady = (self.turned <= _STEADY * self.lengths[1] + noise) & (cosine <= _SMALL)
        hopeless = np.abs(further) > np.abs(ahead) / 2  # r does not fall at all
        self.settled = bool(np.all((steady | hopeless)[candidates]))
        law = _falls(ahead, further, FALL, typical, size, self.noise, 0.25)
        at_once = _falls(now, ahead, self.factor, typical_now, size, self.noise, 0.25)
        early = (tau_now > _STEADY) & (typical_now > _LITTLE)
        self.obeys = candidates & steady & law & (at_once | early)

    @property
    def clear(self):
        """Whether rounding leaves no doubt: a leak is next to 0, or was followed down as far as its
        size asks."""
        size, noise, r = (
            np.linalg.norm(x[self.obeys]) for x in (self.lengths[0], self.noise, self.radial[0])
        )
        followed = r <= 1e-4 * size or self.seen <= (1e-3 if r <= 1e-3 * size else 1e-5)
        return bool(noise <= 1e-4 * size and followed and self.finest and self.proved)

    @property
    def whole(self):
        """Whether all parts obey that have a gradient."""
        return bool(np.all(self.obeys | ~self.alive) and self.obeys.any())

    @property
    def falls(self):
        """The p of r ~ a^-p, from the last two scales that show it; NaN where there is nothing."""
        norms = [float(np.linalg.norm(r[self.obeys])) for r in self.radial]
        noise = 4 * float(np.linalg.norm(self.noise[self.obeys]))
        if norms[2] > noise:
            return np.log(norms[1] / norms[2]) / np.log(FALL)
        if norms[1] > noise:
            return np.log(norms[0] / norms[1]) / np.log(self.factor)
        return float("nan")


def _noises(partition, point):
    """Return how far r and |w| |g| of each part may be off, and |w|^2."""
    wide = {name: point.parameters[name].astype(np.longdouble) for name in partition.parameters}
    squares = partition.sums({name: w * w for name, w in wide.items()})
    off = {name: np.square(point.noise[name].astype(np.longdouble)) for name in wide}
    radial = np.sqrt(partition.sums({name: wide[name] ** 2 * off[name] for name in wide}))
    return _NOISES * radial, _NOISES * np.sqrt(partition.sums(off) * squares), squares


def _radial(partition, point, scale, evaluation):
    """Return r and |w| |g| of each part where its w, as at the point, is multiplied by scale."""
    wide = {name: point.parameters[name].astype(np.longdouble) for name in partition.parameters}
    g = {name: evaluation.gradients[name].astype(np.longdouble) for name in wide}
    squares = partition.sums({name: w * w for name, w in wide.items()})
    lengths = partition.sums({name: g[name] * g[name] for name in wide})
    product = partition.sums({name: wide[name] * g[name] for name in wide})
    return scale * product, scale * np.sqrt(squares * lengths)


def _falls(before, after, by, cosine, size, noise, room):
    """Return whether r falls with the square of `by`, up to a share `room` of what is usual.

    cosine: |r| / |w| |g| as it is usual; it tells how large eps still is beside the variance.
    """
    off = np.abs(before - by**2 * after)
    return off <= (room * cosine + _curvature(cosine)) * size + (1 + by**2) * noise


def _curvature(cosine):
    """Return how far r may be from its law, in |w| |g|: a ReLU that is crossed leaves its power
    3/2, the next order of eps its square."""
    return 5 * cosine**1.5 + 30 * cosine**2


def series(model, points, choices):
    """Return the Series of the finest of some partitions of which all parts obey the law, or None.

    points: where to ask; at the second what has almost been found at the first, since r may pass
    through 0 there by chance.  choices: partitions of the same parameters, from the finest to the
    whole.
    """
    if not _goes_on(model, points[0], choices[-1]):
        return None
    for point in points:
        found = _finest(model, point, choices)
        if found is None or _proved(model, point, found):
            return found
    found.proved = False
    return None if model.dtype == np.float64 else found


def _goes_on(model, point, whole):
    """Return whether the gradient of the whole goes on as 1/a at large a: most others do not.

    Asked in the parameters' own numbers, at scales where no eps matters.
    """
    g = []
    for a in (_FAR, FALL * _FAR):
        changes = whole.scaled(point.parameters, np.ones(whole.count) * a)
        evaluation = model.at(point.parameters, changes, model.quick)
        if evaluation is None:
            return False
        g.append({name: evaluation.gradients[name].astype(float) for name in whole.parameters})
    length, turned = (
        sum(float(np.sum(np.square(array))) for array in arrays.values())
        for arrays in (g[0], {name: FALL * g[1][name] - g[0][name] for name in g[0]})
    )
    return 0 < length and turned <= 0.25 * length


def _finest(model, point, choices):
    factor, whole = _FIRST, choices[-1]
    for _ in range(_MOST):
        found = _scaled(model, point, choices, whole, np.ones(whole.count, dtype=bool), factor)
        if found is None:
            return None
        if all(s.settled for s in found):
            break
        factor *= 16
    best = next((s for s in found if s.whole), None)
    if best is not None:
        finer = [s for s in found if s.partition.count > best.partition.count]
        best.finest = not any(map(_nearly, finer))
    return best


def _nearly(found):
    """Return whether most parts obey: where rounding is large, all might."""
    return found.obeys.sum() > 0.5 * found.alive.sum()


def some(model, points, choices):
    """Return the Series of the partition of which the largest share of parts obeys, or None.

    points: two; at both, the radial derivatives of these parts must be next to 0, and the law hold
    where only they are rescaled.
    """
    small = {}
    for choice in choices:
        mask = np.all([_small(choice, point) for point in points], axis=0)
        if choice.count > 1 and np.count_nonzero(mask) > 1 and mask.mean() >= _SHARE:
            small[choice] = mask
    for choice in sorted(small, key=lambda choice: -small[choice].mean())[:_TRIES]:
        found = [_masked(model, point, choice, small[choice]) for point in points]
        if None not in found:
            return found[0]
    return None


def _masked(model, point, partition, mask):
    """Return the Series where the parts of a mask are scaled, if just these obey, or None."""
    found = _scaled(model, point, [partition], partition, mask, _FIRST)
    if found is None or not np.array_equal(found[0].obeys, mask & found[0].alive):
        return None
    return found[0] if _proved(model, point, found[0]) else None


def _small(partition, point):
    """Return which parts have a gradient, and a radial derivative that an eps might leave."""
    noise, length_noise, _ = _noises(partition, point)
    r, size = _radial(partition, point, 1.0, Evaluation(point.loss, point.gradients))
    return (np.abs(r) <= _LITTLE * size + noise) & (size > 4 * length_noise)


def _scaled(model, point, choices, partition, parts, factor):
    """Return the Series of the choices where some parts of a partition are scaled, or None."""
    ahead, further = (
        model.at(point.parameters, partition.scaled(point.parameters, np.where(parts, a, 1.0)))
        for a in (factor, FALL * factor)
    )
    if ahead is None or further is None:
        return None
    return [Series(choice, point, factor, ahead, further) for choice in choices]


def _proved(model, point, found):
    return _chain(model, point, found) and _apart(model, point, found)


def _chain(model, point, found):
    """Return whether r of the parts that obey, as one vector, falls as it must at every scale.

    From 1 on, until it cannot be seen any more; the loss moves as r says.  A function that
    saturates may fall 16-fold over a range of scales, not over all.
    """
    some, partition = found.obeys, found.partition
    size, noise = (np.linalg.norm(x[some]) for x in (found.lengths[0], found.noise))
    last, before = 1.0, found.known[1.0]
    r = found.radial[0][some]
    first = found.factor if np.linalg.norm(r) <= _LITTLE * size else FALL
    for scale in first * FALL ** np.arange(0, 12.0):
        changes = partition.scaled(point.parameters, np.where(some, scale, 1.0))
        after, by = found.known.get(scale) or model.at(point.parameters, changes), scale / last
        if after is None:
            return False
        next_r = _radial(partition, point, scale, after)[0][some]
        length = np.linalg.norm(_radial(partition, point, last, before)[1][some])
        tau = last * np.linalg.norm(found.turned_between(before, after, by)[some]) / length
        visible, off = np.linalg.norm(r), np.linalg.norm(r - by**2 * next_r)
        cosine = visible / size
        if tau > _STEADY and cosine > _LITTLE:  # eps is not small yet: at least it does not vanish
            if visible > 8 * by**2 * np.linalg.norm(next_r) + (1 + by**2) * noise:
                return False
        else:
            if not _falls(visible, (visible - off) / by**2, by, cosine, size, noise, 0.05):
                return False
            shift = float(np.sum(r)) * (1 - by**-2) / 2
            if abs(after.loss - before.loss - shift) > _room(r, size, noise, point):
                return False
            # How small a leak was seen to obey, and how well it could be seen.
            if visible > 10 * (1 + by**2) * noise:
                found.seen = cosine
        last, before, r = scale, after, next_r
        if np.linalg.norm(r) <= (1 + FALL**2) * noise and scale >= FALL * found.factor:
            break
    return True


def _room(r, size, noise, point):
    """Return how far the loss may move beside what r says."""
    curvature = _curvature(np.linalg.norm(r) / size) * size
    return 0.3 * float(np.sum(np.abs(r))) + curvature + 8 * point.loss_noise + 4 * noise


def _apart(model, point, found):
    """Return whether the loss stays where the parts that obey get factors of their own."""
    some, partition = found.obeys, found.partition
    if partition.count == 1:
        return True
    rng = np.random.default_rng(4)
    base = np.where(some, found.factor, 1.0)
    own = np.where(some, rng.choice((1.0, 2.0, 4.0, 16.0), partition.count), 1.0)
    before = found.known[found.factor]
    after = model.at(point.parameters, partition.scaled(point.parameters, base * own))
    if after is None:
        return False
    r = found.radial[1][some]
    shift = float(np.sum(r * (1 - own[some] ** -2.0) / 2))
    size, noise = (np.linalg.norm(x[some]) for x in (found.lengths[0], found.noise))
    moved = after.loss - before.loss
    return bool(abs(moved - shift) <= _room(r, size, noise, point))
