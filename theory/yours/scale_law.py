r"""Which parts of the parameters are scale-invariant: the law of the radial derivative.

r(a) = <a w, grad L(a w)> is dL/d log a.  For a scale-invariant part it is 0 within rounding, or
what an eps > 0 leaks: L(a w; eps) = L(w; eps/a^2) is smooth in 1/a^2, so that r(a) goes to 0 and
falls 16-fold from a to 4 a, neither slower, as where a function saturates like 1/a, nor faster, as
where it saturates like exp(-a).  The loss then moves by (1 - 1/16)/2 r(a) from a to 4 a, and the
gradient goes on, four times smaller.  Large a make eps small beside the variance; the same is asked
of w.

Groups that are invariant each by itself are so together.  They are scaled together, each judged by
its own r, and apart only where that fails: a few evaluations then do for a network.
"""

import itertools
import math

import numpy as np

from theory.yours.parts import sums, whole

FALL = 4.0  # between two scales
_FIRST, _MOST = 64.0, 4  # the first scale above 1, and how many are tried, each 16-fold
_SMALL = 3e-3  # the cosine below which eps is small beside the variance
LITTLE = 1e-3  # the cosine below which every step must show the law
_FADED = 1e-10  # the cosine down to which the law is followed
_STEADY = 0.01  # how far a gradient may turn between two scales where eps is small
_FAR = 2.0**16  # the scale at which any eps is small
_SHARE = 1 / 16  # of the parts: fewer obey by chance
_SHIFT = 0.5  # the share by which the eps of other groups may move r
_NOISES = 4  # times the noise that was seen: what it may be


class Look:
    """Some parameters at a point: the sums that say how a loss moves as parts of them are scaled.

    names: the parameters.  point: an evaluation.Point.
    """

    def __init__(self, names, point):
        self.names, self.point = names, point
        self._w = {name: point.parameters[name].astype(float) for name in names}
        off = {name: np.square(point.noise[name].astype(float)) for name in names}
        self._squares = {name: sums(w * w) for name, w in self._w.items()}
        self._off = {name: sums(off[name]) for name in names}
        self._radial_off = {name: sums(w * w * off[name]) for name, w in self._w.items()}
        self._known = {}

    def radial(self, partition, scale=1.0, evaluation=None):
        """Return r and |w| |g| of each part where the w of the point is multiplied by scale."""
        evaluation = self.point if evaluation is None else evaluation
        if scale not in self._known:
            lengths = {n: sums(evaluation.gradients[n].astype(float) ** 2) for n in self.names}
            self._known[scale] = self.products(evaluation), lengths
        products, lengths = self._known[scale]
        return scale * partition.total(products), scale * self.times_w(partition, lengths)

    def products(self, evaluation):
        """Return the sums of w g, with the w of the point and the g of an evaluation."""
        return {name: sums(w * evaluation.gradients[name]) for name, w in self._w.items()}

    def turned(self, before, after, by):
        """Return the sums of (by g' - g)^2, which are 0 if g' goes on as 1/by of g."""
        return {
            name: sums(np.square(by * after.gradients[name].astype(float) - before.gradients[name]))
            for name in self.names
        }

    def times_w(self, partition, squares):
        """Return |w| times the root of some sums of squares."""
        return np.sqrt(partition.total(squares) * partition.total(self._squares))

    def noise(self, partition):
        """Return how far r and |w| |g| of each part may be off."""
        radial = np.sqrt(partition.total(self._radial_off))
        return _NOISES * radial, _NOISES * self.times_w(partition, self._off)

    def small(self, partition):
        """Return which parts have a gradient, and a radial derivative that an eps might leave."""
        noise, length_noise = self.noise(partition)
        r, size = self.radial(partition)
        return (np.abs(r) <= LITTLE * size + noise) & (size > 4 * length_noise)


class _Together:
    """Groups of parameters scaled by one factor from a point, each scale evaluated once.

    partitions: of each group.  masks: which parts of each are scaled.
    """

    def __init__(self, model, point, partitions, masks=None):
        self.model, self.point, self.partitions = model, point, partitions
        self.masks = masks or [np.ones(p.count, dtype=bool) for p in partitions]
        self.looks = [Look(p.parameters, point) for p in partitions]
        self._known = {1.0: point}

    def at(self, scale):
        """Return the Evaluation with all groups times scale, None where it is not finite."""
        if scale not in self._known:
            factors = [np.where(mask, scale, 1.0) for mask in self.masks]
            self._known[scale] = self.changed(self.partitions, factors)
        return self._known[scale]

    def changed(self, partitions, factors):
        """Return the Evaluation with each part of the partitions times its own factor."""
        changes = {}
        for partition, own in zip(partitions, factors, strict=True):
            changes.update(partition.scaled(self.point.parameters, own))
        return self.model.at(self.point.parameters, changes)


class Series:
    """Parts of some parameters at a w for a = 1, a and 4 a, and what can be said of each part.

    radial, lengths: r(a) and |a w| |grad L(a w)| of each part, at the three scales.  obeys: which
    parts obey the law.  settled: False where larger a would tell more.  steady: whether eps is
    small at these a.  doubtful: whether all parts obey if a small r says nothing.  hidden: whether
    an eps that is not small leaves one in doubt.
    """

    def __init__(self, partition, look, factor, evaluations, turned):
        self.partition, self.look, self.factor = partition, look, factor
        self.seen, self.finest, self.proved, self.hidden, self.doubtful = (
            1.0,
            True,
            True,
            False,
            False,
        )
        self.noise, self.length_noise = look.noise(partition)
        scales = (1.0, factor, FALL * factor)
        rows = [look.radial(partition, a, e) for a, e in zip(scales, evaluations, strict=True)]
        self.radial, self.lengths = zip(*rows, strict=True)
        now, ahead = (look.times_w(partition, squares) for squares in turned)
        self._judge(now, factor * ahead)

    def _judge(self, turned_now, turned):
        (now, ahead, further), size = self.radial, self.lengths[0]
        noise = 5 * self.length_noise
        self.alive = size > 4 * self.length_noise
        # The gradient goes on as 1/a: not as that of a function which grows or saturates.
        goes_on = turned <= 0.6 * self.lengths[1] + noise
        goes_on &= (self.lengths[1] > size / 64) & (self.lengths[2] > self.lengths[1] / 4)
        candidates = self.alive & goes_on
        if np.mean(candidates) < _SHARE:
            self.obeys, self.settled, self.steady = np.zeros_like(candidates), True, False
            return
        length = np.where(size > 0, size, 1)
        cosine, cosine_now = (np.where(self.alive, np.abs(r) / length, 0) for r in (ahead, now))
        typical = np.maximum(cosine, np.median(cosine[candidates]))
        typical_now = np.maximum(cosine_now, np.median(cosine_now[candidates]))
        steady = (turned <= _STEADY * self.lengths[1] + noise) & (cosine <= _SMALL)
        hopeless = np.abs(further) > np.abs(ahead) / 2  # r does not fall at all
        self.settled = bool(np.all((steady | hopeless)[candidates]))
        self.steady = bool(np.all(steady[candidates]))
        law = _falls(ahead, further, FALL, typical, size, self.noise, 0.25)
        at_once = _falls(now, ahead, self.factor, typical_now, size, self.noise, 0.25)
        early = turned_now > _STEADY * length + noise  # eps is not small yet
        visible = typical_now > LITTLE  # else r may pass through 0
        self.obeys = candidates & steady & law & (at_once | early & visible)
        self.doubtful = bool(np.all(candidates & steady & law & (at_once | early) | ~self.alive))

    @property
    def clear(self):
        """Whether rounding leaves no doubt.

        A leak is next to 0, or was followed down as far as its size asks.
        """
        size, noise, r = (
            np.linalg.norm(x[self.obeys]) for x in (self.lengths[0], self.noise, self.radial[0])
        )
        followed = r <= 1e-4 * size or self.seen <= (1e-3 if r <= 1e-3 * size else 1e-5)
        told = self.finest and self.proved and not self.hidden
        return bool(noise <= 1e-4 * size and followed and told)

    @property
    def whole(self):
        """Whether all parts obey that have a gradient."""
        return bool(np.all(self.obeys | ~self.alive) and self.obeys.any())

    @property
    def parts(self):
        """Which parts are followed: what has no gradient here may have one where eps is small."""
        return np.ones_like(self.obeys) if self.whole else self.obeys

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


def _falls(before, after, by, cosine, size, noise, room):
    """Return whether r falls with the square of `by`, up to a share `room` of what is usual.

    cosine: |r| / |w| |g| as it is usual; it tells how large eps still is beside the variance.
    """
    off = np.abs(before - by**2 * after)
    return off <= (room * cosine + _curvature(cosine)) * size + (1 + by**2) * noise


def _curvature(cosine):
    """Return how far r may be from its law, in |w| |g|.

    A ReLU that is crossed leaves its power 3/2, the next order of eps its square.
    """
    return 5 * cosine**1.5 + 30 * cosine**2


def confirmed(model, points, groups):
    """Return for each group the Series of its finest partition whose parts all obey, or None.

    The groups are scaled together; their r must be next to 0 already, if they are more than one.

    points: where to ask; at the second what has almost been found at the first, since r may pass
    through 0 there by chance.  groups: lists of partitions of the same parameters, from the finest
    to the whole; no parameter is in two.
    """
    if not groups:
        return []
    if len(groups) == 1 and not _goes_on(model, points[0], groups[0][-1]):
        return [None]
    found = _jointly(model, points, groups)
    if found is not None or len(groups) == 1:
        return found or [None]
    half = len(groups) // 2
    return [*confirmed(model, points, groups[:half]), *confirmed(model, points, groups[half:])]


def _jointly(model, points, groups):
    """Return the Series of each group, or None unless all obey where all are scaled."""
    doubt = None
    for point in points:
        together = _Together(model, point, [choices[-1] for choices in groups])
        found = _finest(together, groups)
        if found is None or (not found[0].hidden and _proved(together, found)):
            return found
        if found[0].hidden:
            doubt = found
    if len(groups) > 1:
        return None
    if doubt is None and model.dtype != np.float64:
        found[0].proved, doubt = False, found
    return doubt


def _goes_on(model, point, partition):
    """Return whether the gradient of the whole goes on as 1/a at large a: most others do not.

    Asked in the parameters' own numbers, at scales where no eps matters.
    """
    g = []
    for a in (_FAR, FALL * _FAR):
        changes = partition.scaled(point.parameters, np.full(partition.count, a))
        evaluation = model.at(point.parameters, changes, model.quick)
        if evaluation is None:
            return False
        g.append({name: evaluation.gradients[name].astype(float) for name in partition.parameters})
    length, turned = (
        sum(float(np.sum(np.square(array))) for array in arrays.values())
        for arrays in (g[0], {name: FALL * g[1][name] - g[0][name] for name in g[0]})
    )
    return 0 < length and turned <= 0.25 * length


def _finest(together, groups):
    """Return the Series of the finest partition of each group that obeys, None if one has none."""
    best = []
    for choices in _settled(together, groups) or [[]]:
        obeying = next((series for series in choices if series.whole), None)
        if obeying is None and len(groups) == 1 and choices:
            obeying = next(
                (s for s in choices if s.doubtful or s is choices[-1] and not s.steady), None
            )
            if obeying is not None:
                obeying.hidden = True
        if obeying is None:
            return None
        finer = choices[: choices.index(obeying)]
        obeying.finest = not any(_nearly(series) or not series.settled for series in finer)
        best.append(obeying)
    return best


def _settled(together, groups):
    """Return the Series of all partitions of each group, at scales that tell enough, or None."""
    for factor in _FIRST * 16.0 ** np.arange(_MOST):
        found = _series(together, groups, factor)
        if found is None:
            break
        if all(choices[-1].steady and all(s.settled for s in choices) for choices in found):
            break
    return found


def _nearly(found):
    """Return whether most parts obey: where rounding is large, all might."""
    return found.obeys.sum() > 0.5 * found.alive.sum()


def _series(together, groups, factor):
    """Return for each group the Series of its partitions, or None where nothing is finite."""
    evaluations = [together.at(a) for a in (1.0, factor, FALL * factor)]
    if None in evaluations:
        return None
    now, ahead, further = evaluations
    found = []
    for choices, look in zip(groups, together.looks, strict=True):
        turned = look.turned(now, ahead, factor), look.turned(ahead, further, FALL)
        found.append([Series(choice, look, factor, evaluations, turned) for choice in choices])
    return found


def partly(model, points, partition, mask):
    """Return the Series where some parts of a partition are scaled, if just these obey, or None."""
    first = None
    for point in points:
        together = _Together(model, point, [partition], [mask])
        found = _settled(together, [[partition]])
        if found is None:
            return None
        ((series,),) = found
        if not np.array_equal(series.obeys, mask & series.alive) or not _proved(together, [series]):
            return None
        first = first or series
    return first


def lasts(model, point, partition):
    """Return whether r of a partition falls as it must at a point, from a large scale on."""
    together = _Together(model, point, [whole(partition.parameters)])
    found = _series(together, [[partition]], _FIRST)
    if found is None:
        return False
    found[0][0].obeys[:] = True  # as is asked
    return _chain(together, found[0], _FIRST)


def _proved(together, found):
    return _chain(together, found) and _apart(together, found)


class _Link:
    """A Series followed from scale to scale, as one vector of the parts that obey."""

    def __init__(self, series, scale, evaluation):
        self.series = series
        self.size, self.noise = self._length(series.lengths[0]), self._length(series.noise)
        self.length_noise = self._length(series.length_noise)
        self.r = series.look.radial(series.partition, scale, evaluation)[0][series.parts]
        self.little = bool(np.linalg.norm(self.r) <= LITTLE * self.size)

    def _length(self, values):
        return float(np.linalg.norm(values[self.series.parts]))

    @property
    def faded(self):
        """Whether r is too small to be followed on."""
        return bool(np.linalg.norm(self.r) <= max((1 + FALL**2) * self.noise, _FADED * self.size))

    def room(self, r):
        """Return how far the loss may move beside what r says."""
        curvature = _curvature(np.linalg.norm(r) / self.size) * self.size
        return 0.3 * float(np.sum(np.abs(r))) + curvature + 4 * self.noise

    def near(self, r, left, factors):
        """Return whether r of each part, times the square of its factor, is still what it was."""
        noise = float(np.linalg.norm((1 + factors**2) * self.series.noise[self.series.parts]))
        visible, off = np.linalg.norm(r), np.linalg.norm(left - r)
        cosine = visible / self.size
        return bool(off <= (_SHIFT * cosine + _curvature(cosine)) * self.size + noise)

    def moved(self, before, after, last, scale, share):
        """Return whether r fell as it must from the last scale to this one, and is so for good.

        share: of r, by which it may be off its law.

        Not for good while eps is not small: then r may fall slower, but does not vanish.
        """
        series, look, by = self.series, self.series.look, scale / last
        r, self.r = self.r, look.radial(series.partition, scale, after)[0][series.parts]
        visible = float(np.linalg.norm(r))
        cosine = visible / self.size
        length = self._length(look.radial(series.partition, last, before)[1])
        turned = self._length(look.times_w(series.partition, look.turned(before, after, by)))
        early = last * turned > _STEADY * length + 5 * self.length_noise
        if early and cosine > LITTLE:
            left = by**2 * np.linalg.norm(self.r)
            return bool(visible <= 8 * left + (1 + by**2) * self.noise), False
        # How small a leak was seen to obey, and how well it could be seen.
        if visible > 10 * (1 + by**2) * self.noise:
            series.seen = cosine
        off = np.linalg.norm(r - by**2 * self.r)
        room = (share * cosine + _curvature(cosine)) * self.size + (1 + by**2) * self.noise
        series.hidden |= bool(early and off > room)  # r may pass through 0
        return bool(off <= room), True


def _chain(together, found, start=1.0):
    """Return whether r of the parts that obey, as one vector, falls as it must at every scale.

    From `start` on, until it cannot be seen any more; the loss moves as r says.  A function that
    saturates may fall 16-fold over a range of scales, not over all.
    """
    links, factor = [_Link(series, start, together.at(start)) for series in found], found[0].factor
    little = all(link.little for link in links)
    last, before = start, together.at(start)
    first = factor if start == 1 and little else FALL * start
    # The eps of others moves ReLUs across their kinks, and with them what is left of r.
    share = _SHIFT if little and len(links) > 1 else 0.05
    for scale in first * FALL ** np.arange(0, 12.0):
        after, by = together.at(scale), scale / last
        if after is None:
            return False
        left = [link.r for link in links]
        steps = [link.moved(before, after, last, scale, share) for link in links]
        if not all(holds for holds, _ in steps):
            return False
        steady = all(steady for _, steady in steps)
        if len(links) > 1 and not steady:
            return False
        if steady:
            shift = sum(float(np.sum(r)) for r in left) * (1 - by**-2) / 2
            room = sum(link.room(r) for link, r in zip(links, left, strict=True))
            if abs(after.loss - before.loss - shift) > room + 8 * together.point.loss_noise:
                return False
        last, before = scale, after
        if scale >= FALL * factor and all(link.faded for link in links):
            break
    return True


def _apart(together, found):
    """Return whether the loss stays where the parts that obey get factors of their own.

    Of several groups some are scaled at a time, and the others' r must stay: of two which saturate
    like 1/a each, but like 1/a^2 together, one would fall with the other.
    """
    if len(found) == 1 and found[0].partition.count == 1:
        return True
    alone, factor = len(found) == 1, found[0].factor
    base, choices = (factor, (1.0, 2.0, 4.0, 16.0)) if alone else (1.0, (16.0, 32.0, 64.0))
    rng, before = np.random.default_rng(4), together.at(base)
    for chosen in _antichain(len(found)):
        own = [
            np.where(series.parts & on, rng.choice(choices, series.partition.count), 1.0)
            for series, on in zip(found, chosen, strict=True)
        ]
        factors = [np.where(s.parts, base * a, 1.0) for s, a in zip(found, own, strict=True)]
        after = together.changed([series.partition for series in found], factors)
        if after is None:
            return False
        shift, room = 0.0, 8 * together.point.loss_noise
        for series, a in zip(found, own, strict=True):
            link, a = _Link(series, base, before), a[series.parts]
            r = link.r
            shift += float(np.sum(r * (1 - a**-2.0) / 2))
            room += link.room(r)
            products = series.look.products(after)
            left = base * a**3 * series.partition.total(products)[series.parts]
            if not alone and not link.near(r, left, a):
                return False
        if abs(after.loss - before.loss - shift) > room:
            return False
    return True


def _antichain(n):
    """Return rows of n booleans such that, of any two columns, each is true where the other is not.

    >>> _antichain(3)
    [[True, False, False], [False, True, False], [False, False, True]]
    """
    m = next(m for m in itertools.count(1) if math.comb(m, m // 2) >= n) if n > 1 else 1
    columns = itertools.islice(itertools.combinations(range(m), max(m // 2, 1)), n)
    return [list(row) for row in zip(*([i in c for i in range(m)] for c in columns), strict=True)]
