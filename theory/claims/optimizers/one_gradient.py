r"""The step of every optimizer on one gradient, in length and direction, by another formula."""

import dataclasses

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claim import UNDERFLOWS, claim
from theory.claims.optimizers.table import networks_of
from theory.measures.closest import Closest
from theory.measures.exact_runs import UPDATE
from theory.measures.identity import Identity
from theory.numbers.bounded import Bounded, unit_roundoff
from theory.subjects.exact import exact_subjects
from theory.subjects.networks import gradients_of, matrices

_STEPS = 3
_HYPER = {"momentum": 0.75, "beta1": 0.75, "beta2": 0.875, "decay": 0.875}  # exact in every dtype
# By whose law the control goes: none of these takes the other's steps.
_OTHER = {
    "SGD": "Momentum",
    "Momentum": "Nesterov",
    "Nesterov": "Momentum",
    "RMSprop": "Adagrad",
    "Adagrad": "RMSprop",
    "Adam": "RMSprop",
    "AdamW": "Adagrad",
    "SignSGD": "NormalizedSGD",
    "NormalizedSGD": "LARS",
    "LARS": "NormalizedSGD",
}


@dataclasses.dataclass(frozen=True)
class StepSubject:
    """An optimizer on the built-in networks of one dtype, or on small ones in balls."""

    optimizer: str
    networks: tuple
    exact: bool = False

    name = property(lambda self: self.optimizer.lower())
    arithmetic = property(lambda self: self.networks[0].arithmetic)
    numbers = property(lambda self: self.networks[0].numbers)


def step_subjects(options):
    """Return every optimizer whose step on one gradient has a closed form, in every dtype."""
    return [
        StepSubject(name, networks_of(options, dtype))
        for name in _OTHER
        for dtype in options.dtypes
    ]


def _hyper(optimizer, eps):
    """Return the hyper-parameters of the steps: rate 1, no decay."""
    given = {**_HYPER, "learning_rate": 1.0, "eps": eps, "decoupled_weight_decay": 0.0}
    return {key: given[key] for key in optimizer.defaults}


def last_step(update, optimizer, w, g, zeros, hyper):
    """Return w' of the last of some steps on one gradient, w held at its place.

    update: a wing's module.  zeros: the state at the start.
    """
    state = [zeros] * len(optimizer.slots)
    for t in range(1, _STEPS + 1):
        count = {"t": t} if optimizer.counts_steps else {}
        result = update.step(optimizer.formula, w, g, state, **count, **hyper)
        after, *state = result if optimizer.slots else (result,)
    return after


def _laws(subject, w, g, eps, number):
    """Return the step by the law, and by that of another optimizer.

    number: a float in the arithmetic of w and g.
    """
    norm = np.sqrt((w * w).sum(axis=tuple(range(w.ndim - 1))))
    hyper = {key: number(_HYPER[key]) for key in ("momentum", "decay")}
    return (
        laws.repeated_step(name, g, _STEPS, eps=eps, norm=norm, **hyper)
        for name in (subject.optimizer, _OTHER[subject.optimizer])
    )


def _start(name, w):
    """Return from where to step: 0, to which a step is added without rounding; LARS needs |w|."""
    return w if name == "LARS" else 0 * w


def _eps(g):
    """Return an eps in the middle of the gradient's entries, a power of two."""
    return float(2.0 ** np.round(np.log2(np.median(np.abs(g[g != 0])))))


@claim(
    id="step-on-one-gradient",
    statement=r"p_t \text{ on one gradient } g: \quad g, \; \frac{1 - \rho^t}{1 - \rho} g, \; "
    r"\frac{1 - \rho^{t+1}}{1 - \rho} g, \; \frac{g}{|g| + \varepsilon}, \; \frac{g}{\sqrt{1 - "
    r"\beta^t} |g| + \varepsilon}, \; \frac{g}{\sqrt{t} |g| + \varepsilon}, \; "
    r"\operatorname{sign} g, \; \frac{g}{|g|_2}, \; |w| \frac{g}{|g|_2}",
    source="the optimizers' papers; their steps on one gradient, summed up, ours",
    cite="ours",
    assumptions=("w held at its place for three steps", "no decay", "learning rate 1"),
    control="the law of another optimizer: SGD by momentum's, Adam by RMSprop's, and so on",
    derivation=r"""
Symmetries and exponents tell how a step scales, not how long it is. On one gradient the moments are
geometric sums: momentum $v_t = \frac{1 - \rho^t}{1 - \rho} g$, and Nesterov's step $g + \rho v_t$
is that at $t + 1$; RMSprop's $s_t = (1 - \beta^t) g^2$, Adagrad's $t g^2$; both of Adam's moments
are corrected to $g$ and $g^2$, whatever the betas and $t$ are. Sign, normalized SGD and LARS have
no memory (the order of the statement: SGD, momentum, Nesterov, Adam and AdamW, RMSprop, Adagrad,
sign, normalized, LARS). Adadelta's mean square of its own steps has no such sum.

Bound: the running error of the formulas, run on numbers that carry their rounding, and eight
roundings of longdouble in the law.
""",
    subjects=step_subjects,
    unfit=(
        (UNDERFLOWS, "float16"),
        ("the laws have |g|, and a symbol has no sign", "symbol"),
    ),
)
def step_on_one_gradient(subject):
    """|p - law| of the entry that comes closest to its bound, relative to |p|."""
    closest, control = Closest(), np.inf
    optimizer = getattr(nn, subject.optimizer)
    for case in subject.networks:
        network = case.network
        gradients, wing = gradients_of(network, case.X, case.targets), network.backend
        for name in matrices(network)[:1]:
            w, g = wing.to_numpy(network.parameters[name]), gradients[name]
            w, hyper = _start(subject.optimizer, w), _hyper(optimizer, _eps(g))
            arrays = [wing.asarray(array) for array in (w, g, np.zeros_like(g))]
            step = w - wing.to_numpy(last_step(wing.update, optimizer, *arrays, hyper))
            arrays = [Bounded(array) for array in (w, g, np.zeros_like(g))]
            bounded = arrays[0] - last_step(UPDATE, optimizer, *arrays, hyper)
            wide = w.astype(np.longdouble), g.astype(np.longdouble), _eps(g)
            law, wrong = _laws(subject, *wide, np.longdouble)
            size = float(np.sqrt(np.square(law).sum()))
            error = bounded.error + 8 * unit_roundoff(np.longdouble) * np.abs(law)
            closest.offer(np.abs(step - law) / size, error / size, np.abs(law) / size)
            control = min(control, float(np.sqrt(np.square(step - wrong).sum()) / size))
    return closest.measurement(
        how="running error of the optimizer's formula, relative to the step",
        control=control,
        details={"steps": _STEPS},
    )


def _exact_steps(options):
    return [StepSubject(name, tuple(exact_subjects(options)), True) for name in _OTHER]


@step_on_one_gradient.exactly(subjects=_exact_steps)
def _(subject):
    identity, optimizer = Identity(), getattr(nn, subject.optimizer)
    for case in subject.networks:
        network, numbers = case.states[-1], case.numbers
        gradients = gradients_of(network, case.X, case.targets)
        for name in matrices(network)[:1]:
            g = gradients[name]
            w = _start(subject.optimizer, network.parameters[name])
            eps = numbers.number(_eps(numbers.midpoints(g)))
            hyper = {key: numbers.number(v) for key, v in _hyper(optimizer, 0.0).items()}
            hyper.update({"eps": eps} if "eps" in hyper else {})
            zeros = numbers.array(np.zeros(g.shape))
            step = w - last_step(UPDATE, optimizer, w, g, zeros, hyper)
            law, wrong = _laws(subject, w, g, eps, numbers.number)
            size = np.sqrt((law * law).sum())
            identity.vanishes(step - law, size)
            identity.remains(step - wrong, size)
    return identity
