"""The search for the power of a that each hyper-parameter takes where w_0 becomes a w_0."""

import itertools

import numpy as np

from theory import laws
from theory.yours.optimizers.runs import FAILED
from theory.yours.optimizers.stepping import role

SCALES = (2, -4, 6, -20, 20)  # k of 2^k; even, so that half powers are exact too
_OF_EPS = (-1, -2, 1, 2, 0)  # beside a gradient, its square, w, its square, or of no scale
_OTHERS = (-2, -1, 1, 2)
_MOST_PAIRED = 4  # hyper-parameters of unknown role, up to which pairs of them are tried


class Search:
    """Powers that make a run from a w_0 a times that from w_0, found one term after the other.

    quiet: the hyper-parameters without decay and, where it can be run so, at eps = 0.  felt: the
    values at which eps and decay are tried; full: with all of them.  powers: what was found, in
    the end for the full run; reach: the k of SCALES at which it holds.  missing: the sites for
    which no power is right.  unfelt: those that change no bit.  degrees: nu of each step.
    """

    def __init__(self, runs, given):
        self.runs, self.given = runs, dict(given)
        self.missing, self.unfelt, self._rate_felt = (), (), False
        self.sites = dict(runs.maker.sites)
        self.by_role = {
            kind: [site for site in self.sites if role(site) == kind]
            for kind in ("rate", "eps", "decay", "other")
        }
        self.felt = self._felt()
        runs.others = {**self.sites, **self.felt}
        self.quiet, self.eps_stays = self._quiet()
        self.degrees = runs.degrees(self.quiet)
        self.powers, self.reach = self._base()
        if self.whole:
            self._terms()
            # p(a w) = a^-nu p(w) with eps and the like taking part
            self.degrees = runs.degrees(self.quiet, powers=self._without_rate())
            self._rate_felt = any(
                not runs.exact(self.quiet, {**self.powers, site: self.powers[site] + 1}, SCALES)
                for site in self.by_role["rate"][:1]
            )
        self.full = {**self.quiet, **self.felt} if self.whole else self.quiet

    @property
    def whole(self):
        """Whether the run without decay and eps has powers that hold at every k."""
        return len(self.reach) == len(SCALES)

    @property
    def nu(self):
        """The rate's power less 1, if it has one, else nu of the last step that moved, or NaN."""
        if self._rate_felt:
            return self.powers[self.by_role["rate"][0]] - 1
        moved = self.degrees[np.isfinite(self.degrees)]
        return float(moved[-1]) if moved.size else float("nan")

    @property
    def nu_words(self):
        """nu in words: its value, or its range over the steps."""
        nu = self.degrees[np.isfinite(self.degrees)]
        if self._rate_felt or not nu.size:
            return f"{self.nu:g}" if self._rate_felt else "-"
        low, high = (round(float(end), 3) + 0.0 for end in (nu.min(), nu.max()))
        return f"{low:g}" if high - low <= 1e-3 else f"{low:g} to {high:g}"

    def _without_rate(self):
        return {site: power for site, power in self.powers.items() if role(site) != "rate"}

    def _felt(self):
        """Return values of eps and decay that change the steps visibly; those given are kept."""
        problem, given = self.runs.problem, self.runs.maker.given
        _, gradients = problem.evaluate(problem.start())
        g, w = (
            np.sqrt(np.mean([np.mean(arrays[n] ** 2) for n in problem.invariant]))
            for arrays in (gradients, problem.arrays)
        )
        eps, decay = (float(2.0 ** np.round(np.log2(x))) for x in (g / 16, g / w / 4))
        felt = {site: eps for site in self.by_role["eps"]}
        felt.update(dict.fromkeys(self.by_role["decay"], decay))
        return {site: given.get(site) or value for site, value in felt.items()}

    def _quiet(self):
        """Return hyper-parameters without decay and eps, and whether eps had to stay."""
        without = dict.fromkeys(self.by_role["decay"], 0.0)
        off = dict.fromkeys(self.by_role["eps"], 0.0)
        for eps in (off, {site: self.felt[site] for site in off}, {}):
            sites = {**self.sites, **without, **eps}
            try:
                path = self.runs.plain(sites)
            except FAILED as error:
                failure = error
                continue
            start = self.runs.problem.start()
            if any((path[-1][n] != start[n]).any() for n in self.runs.problem.invariant):
                return sites, eps is not off and bool(off)
            failure = ValueError("no step moves a parameter")
        raise failure

    def _base(self):
        """Return the powers with the longest reach for the quiet run, and their reach."""
        rates, others = self.by_role["rate"][:1], self.by_role["other"]
        stays = self.by_role["eps"] if self.eps_stays else []
        first = rate_power_of(self.nu)
        choices = dict.fromkeys((*([] if first is None else [first]), 2, 1, 0, -1, 3))
        found = itertools.product(
            *([self.given[s]] if s in self.given else choices for s in rates),
            *([self.given[s]] if s in self.given else _OF_EPS for s in stays),
        )
        known = {s: p for s, p in self.given.items() if role(s) == "other"}
        tried = [{**known, **dict(zip((*rates, *stays), p, strict=True))} for p in found]
        best = self._best(tried, ({}, ()))
        free = [s for s in others if s not in self.given and self.sites[s]]
        for together in (1, 1, 2):
            # With another site's power the rate's may be another too, unless some k holds.
            bases = [best[0]] if best[1] else tried[:8]
            left = [s for s in free if s not in best[0]]
            if together == 2 and (best[1] or len(left) > _MOST_PAIRED):
                break
            choices = itertools.product(
                bases,
                itertools.combinations(left, together),
                itertools.product(_OTHERS, repeat=together),
            )
            best = self._best(({**b, **dict(zip(s, p, strict=True))} for b, s, p in choices), best)
        return best

    def _best(self, candidates, best):
        """Return the (powers, reach) with the longest reach; the first that is whole ends it."""
        for powers in candidates:
            if len(best[1]) == len(SCALES):
                break
            reach = self._reach(self.quiet, powers, enough=len(best[1]))
            if len(reach) > len(best[1]):
                best = {site: float(power) for site, power in powers.items()}, reach
        return best

    def _reach(self, sites, powers, enough=0):
        """Return the k at which runs agree; () as soon as there can be no more than `enough`."""
        reach = ()
        for i, k in enumerate(SCALES):
            if self.runs.exact(sites, powers, (k,)):
                reach += (k,)
            elif len(reach) + len(SCALES) - i - 1 <= enough:
                return ()
        return reach

    def _terms(self):
        """Find the powers of each eps and decay by itself."""
        missing, unfelt = [], []
        terms = [] if self.eps_stays else self.by_role["eps"]
        for site in (*terms, *self.by_role["decay"]):
            sites = {**self.quiet, site: self.felt[site]}
            same = _same(self.runs, sites, self.quiet)
            if same and self.runs.exact(sites, self.powers, SCALES):
                unfelt.append(site)
            elif not self._site(site, sites):
                missing.append(site)
        self.missing, self.unfelt = tuple(missing), tuple(unfelt)

    def _site(self, site, sites):
        rate = next((self.powers[s] for s in self.by_role["rate"] if s in self.powers), 0)
        coupled = laws.powers("SGD")["weight_decay"]
        choices = _OF_EPS if role(site) == "eps" else (coupled, 0 - rate, -1, 0, 1)
        for power in [self.given[site]] if site in self.given else dict.fromkeys(choices):
            if self.runs.exact(sites, {**self.powers, site: power}, SCALES):
                self.powers = {**self.powers, site: float(power)}
                return True
        return False


def rate_power_of(nu):
    """Return 1 + nu as a multiple of 1/2, None where nu is none."""
    power = np.round(2 * (1 + nu)) / 2
    return float(power) + 0.0 if abs(1 + nu - power) < 1e-3 else None


def _same(runs, sites, others):
    """Return whether two settings give the same run."""
    return all(
        np.array_equal(one[name], other[name])
        for one, other in zip(runs.plain(sites), runs.plain(others), strict=True)
        for name in one
    )
