"""Claims: statements of the paper as objects that can be run, their registry and their verdicts.

A claim measures a residual on a subject (subjects/), says which bound it must keep and how that
bound is derived, and runs its negative control: the same measurement with an assumption taken away,
which must break the bound in the predicted way.  A claim whose control does not fail proves
nothing.  Nor does one whose bound is slack: a derived bound must be within a factor of a thousand
of the residual of at least one of twenty seeds (tests/theory/test_bounds.py).
"""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from minimal_nn import backend
from minimal_nn.command import suggestion
from theory.measures.identity import evaluate
from theory.measures.measurement import Measurement, Refused
from theory.numbers import arithmetic
from theory.subjects.exact import exact_subjects
from theory.subjects.networks import network_subjects

CLAIMS: dict[str, "Claim"] = {}  # by id, in the order of the paper
FOLLOWERS: dict[str, "Claim"] = {}  # those of the papers after it, which are run when asked for


# Why some claims are not run in some arithmetics
UNDERFLOWS = "gradients, and the squares of them, leave the range of float16, 2^-24 to 65504"
WORST_CASE = "a bound for the worst case leaves no digit where u = 2^-11"
EXPRESSIONS = "a run's expressions grow with every step; its induction step is gradient-scaling"
FITTED = "a fit over random draws: its interval is far above any rounding"
STATISTICAL = (
    "a mean over many random steps: its sampling error is far above the rounding of float64",
    "float16 float32 longdouble ball symbol",
)
TOO_LONG = "thousands of steps, which a simulated wing would take hours for"


class ExactForm(NamedTuple):
    """A claim in balls and symbols: subject -> Identity, and Options -> its subjects."""

    identity: Callable
    subjects: Callable


@dataclass(frozen=True, repr=False)
class Verdict:
    """A claim's measurement on a subject, judged; true if verified."""

    claim: "Claim"
    subject: str
    arithmetic: str
    measurement: Measurement

    @property
    def holds(self) -> bool:
        """Whether the residual keeps the bound (a NaN does not)."""
        return bool(self.measurement.measured <= self.measurement.bound) and not self.refused

    @property
    def refused(self) -> str:
        """Why the measurement can tell nothing; "" if it can."""
        return self.measurement.refused

    @property
    def control_fails(self) -> bool:
        """Whether the control breaks the bound as predicted; True where there is no control."""
        m = self.measurement
        if m.control is None:
            return True
        return bool(m.control > m.bound and m.control >= m.control_least) and m.control_as_predicted

    @property
    def verified(self) -> bool:
        """Whether the claim holds and its control fails."""
        return self.holds and self.control_fails

    @property
    def smallest_fault(self) -> float:
        """The smallest relative fault that is caught, of what report/reach.py names."""
        m = self.measurement
        if m.smallest is not None or m.bound:
            return float(m.bound if m.smallest is None else m.smallest)
        return float(np.finfo(self.arithmetic).eps) if self.arithmetic in arithmetic.FLOATS else 0.0

    @property
    def word(self) -> str:
        """The verdict in a word: holds (estimated), leaks, FAILS, CONTROL HOLDS, or refused."""
        if self.refused:
            return "refused"
        if not self.holds:
            return "leaks" if self.measurement.leak else "FAILS"
        if not self.control_fails:
            return "CONTROL HOLDS"
        return "holds (estimated)" if self.measurement.estimated else "holds"

    def __bool__(self):
        return self.verified

    def __repr__(self):
        m = self.measurement
        figures = m.refused or f"measured {m.measured:.3g}, bound {m.bound:.3g}"
        return f"<{self.claim.id} on {self.subject} {self.arithmetic}: {self.word}: {figures}>"

    def _repr_html_(self):
        return f"<code>{html.escape(str(self))}</code>"

    def __str__(self):
        m = self.measurement
        if m.refused:
            return f"{self.claim.id} on {self.subject} ({self.arithmetic}): refused: {m.refused}"
        control = "no control" if m.control is None else f"control {m.control:.3g}"
        return (
            f"{self.claim.id} on {self.subject} ({self.arithmetic}): {self.word}: measured "
            f"{m.measured:.3g}, bound {m.bound:.3g} ({m.how}), {control}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return every figure of the verdict as plain JSON values."""
        m = self.measurement
        return {
            "claim": self.claim.id,
            "subject": self.subject,
            "arithmetic": self.arithmetic,
            "verdict": self.word,
            "holds": self.holds,
            "refused": self.refused,
            "control_fails": self.control_fails,
            "measured": _plain(m.measured),
            "bound": _plain(m.bound),
            "bound_derivation": m.how,
            "control": None if m.control is None else _plain(m.control),
            "control_least": _plain(m.control_least),
            "smallest_fault": _plain(self.smallest_fault),
            "estimated": m.estimated,
            "details": {key: _plain(value) for key, value in m.details.items()},
        }


def _plain(value):
    """Return a number as JSON can hold it: finite floats and ints as they are, others as text."""
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    plain = float(value)
    if not math.isfinite(plain) or (plain == 0 and value != 0):  # below a double's range
        return np.format_float_scientific(value, precision=3)
    return plain


@dataclass(eq=False)
class Claim:
    """A statement with its source, assumptions, derivation, measurement, and control.

    id: the name on the command line.  statement: LaTeX.  source: paper and place; cite: the same in
    at most 8 characters, for the table.  assumptions: a tuple of sentences.  control: what is taken
    away, and what must happen.  derivation: LaTeX and words, a few lines.  measure: subject ->
    Measurement.  floats: Options -> the subjects in floating point.  unfit: {arithmetic: why the
    claim is not run in it}.  numpy_only: why it runs in NumPy whatever the wing is, "" if it does
    not.  too_long: why a simulated wing is left out, "" if it is not.  erratum: where a source is
    wrong.  runs_of: the id of a claim whose runs it measures as well, "" if it has its own; both
    are verified in one process.  exact: its ExactForm for balls and symbols, where it has one (see
    `exactly`).
    """

    id: str
    statement: str
    source: str
    assumptions: tuple[str, ...]
    control: str
    derivation: str
    measure: Callable
    floats: Callable
    cite: str
    unfit: dict[str, str]
    numpy_only: str = ""
    too_long: str = ""
    erratum: str = ""
    runs_of: str = ""
    exact: Any = None

    def exactly(
        self, identity: Callable | None = None, *, subjects: Callable = exact_subjects
    ) -> Callable:
        """Take the decorated function, exact subject -> Identity, as the claim's exact form.

        subjects: Options -> the subjects in balls or symbols that it is measured on.
        """
        if identity is None:
            return lambda identity: self.exactly(identity, subjects=subjects)
        self.exact = ExactForm(identity, subjects)
        return identity

    def subjects(self, options: Any) -> Sequence[Any]:
        """Return the subjects that `python -m theory` measures the claim on."""
        left_out = self.left_out(options)
        if options.arithmetic in arithmetic.EXACT:
            return [] if left_out else self.exact.subjects(options)
        dtypes = tuple(dtype for dtype in options.dtypes if dtype not in left_out)
        return self.floats(replace(options, dtypes=dtypes)) if dtypes else []

    def left_out(self, options: Any) -> dict[str, str]:
        """Return {arithmetic: why the claim is not run in it} for those that are asked for."""
        exact = options.arithmetic in arithmetic.EXACT
        asked = (options.arithmetic,) if exact else options.dtypes
        if self.too_long and backend.get(options.backend).simulated:
            return dict.fromkeys(asked, self.too_long)
        if exact and self.exact is None:
            return {name: self.unfit.get(name, "it has no exact form") for name in asked}
        return {name: self.unfit[name] for name in asked if name in self.unfit}

    def verify(self, subject: Any) -> Verdict:
        """Measure on `subject` and return the Verdict; `refused` where that can tell nothing.

        A subject that is `exact` (in balls or symbols) is measured by the claim's exact form.
        """
        try:
            if getattr(subject, "exact", False):
                measurement = evaluate(self.exact.identity, subject)
            else:
                measurement = self.measure(subject)
        except Refused as reason:
            measurement = Measurement(math.nan, 0.0, "", None, 0.0, refused=str(reason))
        return Verdict(self, subject.name, subject.arithmetic, measurement)


def claim(
    *,
    id: str,
    statement: str,
    source: str,
    cite: str,
    assumptions: Iterable[str],
    control: str,
    derivation: str,
    erratum: str = "",
    subjects: Callable = network_subjects,
    unfit: Iterable[tuple[str, str]] = (),
    numpy_only: str = "",
    too_long: str = "",
    runs_of: str = "",
    registry: dict[str, Claim] = CLAIMS,
) -> Callable[[Callable], Claim]:
    """Register the decorated function, subject -> Measurement, as a Claim, and return the Claim.

    unfit: (why, names) pairs, the names of arithmetics separated by spaces.  registry: CLAIMS or
    FOLLOWERS.
    """

    def register(measure):
        if id in {**CLAIMS, **FOLLOWERS}:
            raise ValueError(f"id: the claim {id!r} exists already, expected a new id")
        registry[id] = Claim(
            id=id,
            statement=statement,
            source=source,
            cite=cite,
            assumptions=tuple(assumptions),
            control=control,
            derivation=derivation,
            measure=measure,
            floats=subjects,
            unfit={name: why for why, names in unfit for name in names.split()},
            numpy_only=numpy_only,
            too_long=too_long,
            erratum=erratum,
            runs_of=runs_of,
        )
        return registry[id]

    return register


def select(
    ids: Iterable[str] | None = None, registry: dict[str, Claim] = CLAIMS
) -> tuple[Claim, ...]:
    """Return the claims with the given ids, or all of `registry`, in the registries' order.

    registry: CLAIMS, or FOLLOWERS: the papers' after 2017.  Raises ValueError for an unknown id.
    """
    if ids is None:
        return tuple(registry.values())
    known = {**CLAIMS, **FOLLOWERS}
    unknown = [id for id in ids if id not in known]
    if unknown:
        near = suggestion(unknown[0], known)
        raise ValueError(
            f"claims: got {unknown}{near}, expected some of {', '.join(CLAIMS)}, or of the "
            "followers' (--chapter followers --list)"
        )
    return tuple(c for c in known.values() if c.id in ids)
