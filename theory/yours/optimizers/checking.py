"""check_optimizer: nu, the powers of the symmetry, and whole runs that keep it bit by bit."""

import dataclasses
import html
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from theory.yours.optimizers import habits
from theory.yours.optimizers.powers import SCALES, Search, rate_power_of
from theory.yours.optimizers.problems import Problem, built_in
from theory.yours.optimizers.reasons import FAMILIES, Reason, reason_of
from theory.yours.optimizers.runs import FAILED, Parting, Runs
from theory.yours.optimizers.stepping import Maker

_LONGER = 5  # times the steps, for what begins late
_EXPECTED = ("nu", "decay", "parameters", "powers", "course")


@dataclasses.dataclass(frozen=True, repr=False)
class OptimizerReport:
    """What check_optimizer found; true if the symmetry was verified, and all that was expected.

    name: the optimizer's.  nu: of p(a w) = a^-nu p(w), of the last step without eps and decay;
    degrees: that of each step.  powers: {hyper-parameter: power of a} under which the run from a
    w_0 is a times that from w_0.  decay: how it enters.  parameters: whether each is updated
    independently of the others.  differing: numbers of the runs from 2^k w_0 that are not 2^k times
    the plain run's, of `compared`, over `scales` k and all steps up to the first that differs;
    parting: where that is.  control: the least number of entries that differ after the last step
    where one hyper-parameter takes another power.  unfelt: hyper-parameters whose power no bit
    tells.
    one_gradient: the lengths of steps at one w and gradient, of the first > 0; course: the same in
    words, "constant" where moments are corrected for their start.  reason: why it fails.
    unexpected: sentences on what was expected otherwise.  refused: why nothing can be told.
    """

    name: str
    problem: str
    steps: int
    scales: tuple[int, ...] = SCALES
    nu: float = math.nan
    degrees: tuple[float, ...] = ()
    nu_words: str = "-"
    powers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    decay: str = habits.NONE
    parameters: str = habits.INDEPENDENT
    differing: int = 0
    compared: int = 0
    parting: Parting | None = None
    control: int = 0
    unfelt: tuple[str, ...] = ()
    one_gradient: tuple[float, ...] = ()
    reason: Reason | None = None
    unexpected: tuple[str, ...] = ()
    refused: str = ""

    @property
    def word(self) -> str:
        """The verdict in a word: holds, FAILS, CONTROL HOLDS, or refused."""
        if self.refused:
            return "refused"
        if self.reason is not None or self.differing or not self.compared or self.unexpected:
            return "FAILS"
        return "holds" if self.control > 0 else "CONTROL HOLDS"

    def __bool__(self) -> bool:
        return self.word == "holds"

    def __repr__(self) -> str:
        return f"<check_optimizer {self.name}: {self.word}: {self.sentence}>"

    def __str__(self) -> str:
        return self.table()

    @property
    def course(self) -> str:
        """How the steps on one gradient go on, in words."""
        return habits.course_of(self.one_gradient) if self.one_gradient else "-"

    @property
    def sentence(self) -> str:
        """What was found, in a sentence."""
        if self.refused:
            return self.refused
        if self.unexpected:
            return "; ".join(self.unexpected)
        if self.reason is not None:
            where = f" ({self.parting})" if self.parting else ""
            return f"{self.reason}{where}"
        if self.parting:
            return str(self.parting)
        if not self.control:
            return "a run with another power is the same: nothing can be told apart"
        return f"nu {self.nu_words}, {self.powers_words}, decay {self.decay}"

    @property
    def powers_words(self) -> str:
        """The powers of a, in words: "lr a^2, weight_decay a^-2"."""
        found = [f"{site} a^{power:g}" for site, power in self.powers.items() if power]
        return ", ".join(found) or "no power of a"

    def table(self) -> str:
        """Return the report as text, a line for each thing that was measured."""
        return "\n".join(f"{key:12} {value}" for key, value in self._rows())

    def _rows(self):
        yield self.name, self.word
        if self.refused:
            yield "why", self.refused
            return
        if not self:
            yield "why", "; ".join(self.unexpected) or str(self.reason or self.sentence)
            if self.parting:
                yield "where", str(self.parting)
        yield "nu", f"{self.nu_words}: a step is as long as |w|^-nu"
        yield "powers", f"{self.powers_words}, where w_0 becomes a w_0"
        yield "decay", self.decay
        yield "parameters", self.parameters
        yield "course", f"{self.course}, on one gradient"
        if self.unfelt:
            yield "unfelt", ", ".join(self.unfelt)
        ks = ", ".join(map(str, self.scales))
        yield "runs", f"from 2^k w_0, k = {ks}; {self.steps} steps on {self.problem}"
        yield "differing", f"{self.differing} of {self.compared} numbers; {self._control()}"

    def _control(self):
        if self.differing:
            return "compared up to the first step that differs"
        return f"with another power at least {self.control}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
            for key, value in self._rows()
        )
        return f"<table>{rows}</table>"

    def as_dict(self) -> dict[str, Any]:
        """Return every figure of the report as plain JSON values."""
        found = {field.name: _json(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"verdict": self.word, "course": self.course, **found}


def _json(value):
    """Return a value as JSON can hold it; a NaN as None."""
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return _json(value._asdict())
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_optimizer(
    make: Callable[..., Any],
    problem: Problem | None = None,
    *,
    powers: Mapping[str, float] | None = None,
    expect: Mapping[str, Any] | None = None,
    steps: int = 12,
    name: str | None = None,
    **hyper: Any,
) -> OptimizerReport:
    r"""Return the OptimizerReport of any optimizer: its symmetry on whole runs, bit by bit.

    If p(a w) = a^-nu p(w), state and eps taking part, the run from a w_0 with each hyper-parameter
    times a to its power is a times the run from w_0.  nu is measured, the powers are searched, and
    runs from 2^k w_0 are compared in every number of every step.

    make: a torch.optim class, a function parameters -> torch optimizer, a function of
    hyper-parameters that makes an optax GradientTransformation (optax.adam) or an optimizer of
    minimal_nn, a class of minimal_nn, or a function (w, g, state, **hyper-parameters) -> (w,
    state), for which state is None at first.  problem: what it is run on, two layers before batch
    norm by default; see `problem_of` and theory.torch.problem_of.  powers: of hyper-parameters
    whose power is known.  expect: what must be found, of nu, decay, parameters, course, powers;
    else it fails.  steps: of each run; at two k five times as many.  hyper: given to `make`; eps
    and decay are tried at values that change the steps.

    Source: van Laarhoven 2017, section 5, and the claim optimizer-symmetry.  Raises TypeError and
    ValueError for arguments that do not fit; what an optimizer raises is its report's `refused`.

    >>> def rule(w, g, state, lr=0.1, eps=1e-8):
    ...     return w - lr * g / (np.sqrt(g * g) + eps), state
    >>> report = check_optimizer(rule)
    >>> bool(report), report.nu_words, dict(report.powers)
    (True, '0', {'lr': 1.0, 'eps': -1.0})
    """
    _check_expected(expect)
    _check_powers("powers", powers)
    if problem is None:
        problem = built_in()
    if not isinstance(problem, Problem):
        raise TypeError(
            f"problem: got {type(problem).__name__}, expected what problem_of or "
            "theory.torch.problem_of returns"
        )
    if not (isinstance(steps, int) and steps >= 2):
        raise ValueError(f"steps: got {steps!r}, expected an integer >= 2")
    maker = Maker(make, hyper)
    for argument, given in (("powers", powers), ("expect", (expect or {}).get("powers"))):
        unknown = sorted(map(str, set(given or {}) - set(maker.sites)))
        if unknown:
            raise ValueError(
                f"{argument}: got {', '.join(unknown)}, expected some of {', '.join(maker.sites)}"
            )
    start = OptimizerReport(name or maker.name, problem.name, steps)
    with maker.context(), np.errstate(all="ignore"):
        try:
            report = _measured(start, Runs(maker, problem, steps), powers or {})
        except FAILED as error:
            return dataclasses.replace(start, refused=_sentence(error))
    return dataclasses.replace(report, unexpected=tuple(_unexpected(report, expect or {})))


def _measured(start, runs, given):
    search = Search(runs, given)
    again = list(runs.at(search.quiet))
    for step, (one, other) in enumerate(zip(runs.plain(search.quiet), again, strict=True), 1):
        if not all(np.array_equal(one[name], other[name]) for name in one):
            return dataclasses.replace(
                start,
                refused=f"two runs from one start differ from step {step} on: it draws by chance, "
                "or keeps something outside of the optimizer, as a counter of its class",
            )
    style = habits.decay_style(runs, search.quiet, search.felt)
    together = habits.parameters_together(runs, search.quiet)
    powers = search.powers or _likely(runs, search)
    partings, compared = _compared(runs, search.full, powers)
    others = {} if partings else _with_other_powers(runs, search.full, powers)
    late = None if partings else _late(runs, search.full, powers)
    unfelt = dict.fromkeys((*search.unfelt, *(site for site, wrong in others.items() if not wrong)))
    reason = None
    if style in habits.FAULTS:
        reason = Reason("decay added twice", f"weight decay is {style}")
    elif partings or search.missing:
        reason = reason_of(runs, search)
    elif late:
        partings = [late]
        reason = Reason("late", f"{late.step - 1} steps agree: {FAMILIES['late']}")
    elif together == habits.BY_COUNT:
        reason = Reason("step counter", FAMILIES["step counter"])
    return dataclasses.replace(
        start,
        nu=search.nu,
        degrees=tuple(map(float, search.degrees)),
        nu_words=search.nu_words,
        powers={site: power for site, power in powers.items() if site not in unfelt},
        decay=style,
        parameters=together,
        differing=sum(parting.differing for parting in partings),
        compared=compared,
        parting=min(partings, key=lambda p: (p.step, abs(p.k)), default=None),
        control=min(filter(None, others.values()), default=0),
        unfelt=tuple(unfelt),
        one_gradient=habits.on_one_gradient(runs, search.quiet),
        reason=reason,
    )


def _likely(runs, search):
    """Return the power of the rate with which runs agree longest, where none is right."""
    power, found = 0.0, {}
    for site in search.by_role["rate"][:1]:
        first = [] if rate_power_of(search.nu) is None else [rate_power_of(search.nu)]
        for power in dict.fromkeys((*first, 2.0, 1.0, 0.0)):
            try:
                parting = runs.parting(search.quiet, {site: power}, SCALES[0])
            except FAILED:
                continue
            found[power] = parting.step if parting else runs.steps + 1
        return {site: max(found, key=found.__getitem__, default=power)}
    return {}


def _compared(runs, sites, powers):
    """Return the Partings of the runs from 2^k w_0, and how many numbers were compared."""
    partings, compared = [], 0
    size = sum(array.size for array in runs.problem.arrays.values())
    for k in SCALES:
        try:
            parting = runs.parting(sites, powers, k)
        except FAILED as error:
            raise ValueError(f"from 2^{k} w_0: {_sentence(error)}") from None
        partings += [parting] if parting else []
        compared += size * (parting.step if parting else runs.steps)
    return partings, compared


def _late(runs, sites, powers):
    """Return the Parting of runs that are longer, None where they agree."""
    longer = Runs(runs.maker, runs.problem, _LONGER * runs.steps)
    longer.others = runs.others
    found = (longer.parting(sites, powers, k) for k in SCALES[1:3])
    return next(filter(None, found), None)


def _with_other_powers(runs, sites, powers):
    """Return {site: how many numbers differ where its power is another one}."""
    return {
        site: _most_apart(runs, sites, {**powers, site: power + 1})
        for site, power in powers.items()
    }


def _most_apart(runs, sites, powers):
    found = 0
    for k in SCALES:  # a floor is felt at some only
        try:
            found = max(found, runs.apart(sites, powers, k)[0])
        except FAILED:  # it cannot even be run
            found = max(found, sum(array.size for array in runs.problem.arrays.values()))
        if found:
            break
    return found


def _sentence(error):
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else ''}".strip()


def _check_expected(expect):
    """Refuse what is no mapping of what is found to what it can be."""
    _check_mapping("expect", expect)
    unknown = sorted(map(str, set(expect or {}) - set(_EXPECTED)))
    if unknown:
        raise ValueError(
            f"expect: got {', '.join(unknown)}, expected some of {', '.join(_EXPECTED)}"
        )
    for key, value in (expect or {}).items():
        if key == "powers":
            _check_powers("expect['powers']", value)
        elif key == "nu":
            _check_real("expect['nu']", value)
        elif not isinstance(value, str):
            raise TypeError(f"expect[{key!r}]: got {value!r}, expected a string")


def _check_powers(argument, powers):
    _check_mapping(argument, powers)
    for site, power in (powers or {}).items():
        _check_real(f"{argument}[{site!r}]", power)


def _check_mapping(argument, value):
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{argument}: got {value!r}, expected a dict by names")


def _check_real(argument, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise TypeError(f"{argument}: got {value!r}, expected a finite number")


def _unexpected(report, expect):
    """Yield a sentence for each thing that was expected otherwise."""
    if report.refused:
        return
    for key, value in expect.items():
        if key == "nu":
            if not abs(report.nu - value) < 1e-3:
                yield f"nu is {report.nu_words}, expected {value:g}"
        elif key == "powers":
            wrong = [s for s, power in value.items() if report.powers.get(s, 0) != power]
            for site in wrong:
                yield (f"{site} takes a^{report.powers.get(site, 0):g}, expected a^{value[site]:g}")
        elif getattr(report, key) != value:
            yield f"{key}: {getattr(report, key)}, expected {value}"
