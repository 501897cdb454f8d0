"""What a gradient check found: numbers compared, what they would have shown, and how it is told."""

from typing import NamedTuple

import numpy as np

MOST_ARGUMENTS = 3  # that a message gives an account of, in three lines each


class Comparison(NamedTuple):
    """One number that was compared: |numeric - backward| against a bound.

    scale: what the two inner products add up.  tells: whether the bound is below what the gradient
    may be expected to be, so that agreement says something.
    """

    name: str
    kind: str
    numeric: float
    backward: float
    scale: float
    bound: float
    derivation: str
    tells: bool = True

    @property
    def error(self) -> float:
        return abs(self.numeric - self.backward)

    @property
    def agrees(self) -> bool:
        return bool(self.error <= self.bound)  # False for NaN

    @property
    def ok(self) -> bool:
        return self.agrees and self.tells

    @property
    def severity(self) -> float:
        """error / bound; infinite for NaN and where the bound is exceeded at 0 or tells nothing."""
        if self.error == 0:
            return 0.0 if self.tells else np.inf
        return self.error / self.bound if self.bound > 0 and not np.isnan(self.error) else np.inf

    @property
    def verdict(self) -> str:
        return "agree" if self.ok else "CANNOT TELL" if self.agrees else "DISAGREE"

    def account(self, more: str = "") -> str:
        """Return three lines: the verdict (and `more`), the numbers, how the bound is derived."""
        return (
            f"d/d{self.name}, {self.kind}: {self.verdict}{more}\n"
            f"    numeric {self.numeric:.17g}, backward {self.backward:.17g}, "
            f"error {self.error:.3g}, bound {self.bound:.3g}, scale {self.scale:.3g}\n"
            f"    bound = {self.derivation}"
        )

    def __str__(self) -> str:
        return self.account()


class Sensitivity(NamedTuple):
    """What a check of one argument would have seen.

    factor: a relative error that all entries have in common.  entry: an error of a single entry,
    as a part of the mean |gradient|; infinite where single entries were not looked at.
    """

    name: str
    factor: float
    entry: float

    def __str__(self) -> str:
        seen = f"of {self.name}, a common factor off by {self.factor:.1g} would have been seen"
        if self.entry < 1:
            return f"{seen}, and one entry off by {self.entry:.1g} of the mean |gradient|"
        return (
            f"{seen}; one wrong entry cannot be seen below {self.entry:.2g} times the mean "
            "|gradient|: give more groups, or float64"
        )


class Result(NamedTuple):
    """The comparisons of one check; the worst one (largest error / bound) speaks for all.

    sensitivities: for each argument, what would have been seen.  not_analytic: the arguments whose
    complex steps are not derivatives, and which were therefore judged by differences.
    """

    comparisons: tuple[Comparison, ...]
    sensitivities: tuple[Sensitivity, ...] = ()
    not_analytic: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(comparison.ok for comparison in self.comparisons)

    @property
    def worst(self) -> Comparison:
        return max(self.comparisons, key=lambda comparison: comparison.severity)

    @property
    def error(self) -> float:
        return self.worst.error

    @property
    def bound(self) -> float:
        return self.worst.bound

    @property
    def message(self) -> str:
        """What was found, in at most ten lines: the worst entry of the arguments that fail."""
        note = "".join(
            f"; the forward pass is not analytic in {name} (abs, var, norm, conj, or a comparison "
            "of complex numbers), so it was judged by differences"
            for name in self.not_analytic
        )
        failed = [c for c in self.comparisons if not c.ok]
        if not failed:
            lines = [f"the backward pass is the derivative{note}; closest call:\n{self.worst}"]
            return "\n".join([*lines, *map(str, self.sensitivities[:6])])
        wrong = [c for c in failed if not c.agrees]
        if wrong:
            text = f"the backward pass is not the derivative{note}"
        else:
            text = f"the check can tell nothing, as its bound is as large as what it compares{note}"
        names = list(dict.fromkeys(c.name for c in wrong or failed))
        if len(names) > MOST_ARGUMENTS:
            text += f" (of {len(names)} arguments: {', '.join(names)})"
        accounts = [self._account(name, wrong or failed) for name in names[:MOST_ARGUMENTS]]
        return "\n".join([f"{text}:", *accounts])

    def _account(self, name, failed):
        own = [c for c in failed if c.name == name]
        entries = [c for c in own if c.kind.startswith("entry")]
        shown = max(entries or own, key=lambda c: c.severity)
        parts = []
        for what, start in (("entries", "entry"), ("groups", "entries")):
            of = [c for c in self.comparisons if c.name == name and c.kind.startswith(f"{start} ")]
            if of:
                parts.append(f"{sum(not c.ok for c in of)} of {len(of)} {what}")
        what = "cannot be told" if shown.agrees else "disagree"
        return shown.account(f" ({', '.join(parts)} {what})" if parts else "")
