r"""How |w| moves where the optimizer has a buffer: what both store, step by step."""

import dataclasses
from types import SimpleNamespace

import numpy as np

import minimal_nn as nn
from minimal_nn import backend as backends
from theory import laws
from theory.claim import WORST_CASE, claim
from theory.measures.closest import Closest
from theory.measures.exact_runs import UPDATE
from theory.measures.groups import group_sum
from theory.measures.identity import Identity
from theory.measures.orthogonality import orthogonality
from theory.numbers.bounded import Bounded
from theory.numbers.symbols import Symbols
from theory.subjects.exact import exact_subjects
from theory.subjects.networks import to_numpy

_MEMORY, _BETA2 = 0.75, 0.9375  # exact in every dtype, as all that follows
# eta and decay: large enough for the term of memory to be felt
_SETTINGS = {
    "SGD": (2.0, 0.125),
    "Momentum": (2.0, 0.125),
    "Nesterov": (2.0, 0.125),
    "Adam": (2.0**-4, 2.0**-6),
    "AdamW": (2.0**-4, 4.0),
}


def _optimizer(name, eta, decay):
    hyper = {"decoupled_weight_decay" if name == "AdamW" else "weight_decay": decay}
    if name.startswith("Adam"):
        hyper |= {"beta1": _MEMORY, "beta2": _BETA2, "eps": 0.0}
    elif name != "SGD":
        hyper["momentum"] = _MEMORY
    return getattr(nn, name)(eta, **hyper)


def _change(name, numbers, before, after, g, root):
    """Return for each weight Y' - Y less what the law gives it, c = 0; its term of c; and its Y'.

    numbers: x, decay, the learning rate and the memory.  before, after: (w, buffer).  root: the
    sqrt(v) that the step divides by.
    """
    x, decay, rate, memory = numbers
    store = laws.STORES[name](x, memory)
    (w, b), (new, new_b) = ((w / rate, b) for w, b in (before, after))

    def stored(w, b):
        return (
            store.weights * (w * w * root) + store.mixed * (w * b) + store.buffer * (b * b / root)
        )

    if name == "Adam":
        p, lost = g + decay * rate * w, 2 * decay * rate * (w * w)
    else:
        p, lost = g, x / laws.BALANCES[name](x, memory) * (w * w * root)
    change = stored(new, new_b) - stored(w, b) + lost - p * p / root
    return (
        change,
        laws.MEMORIES[name](x, memory) * (b * p / root),
        store.weights * (new * new * root),
    )


# In floats


def _second_step(network, name, eta, decay, batches):
    """Take two steps; return the network and the state before the second, and both after it."""
    optimizer = _optimizer(name, eta, decay)
    network = network.with_parameters()
    for X, targets in batches:
        before, state = network.with_parameters(), dict(optimizer.state)
        trace = network.trace(X, targets)
        optimizer.step(network, trace.gradients)
    return before, state, trace, network, optimizer.state


def _carried(name, eta, decay, w, g, state):
    """Return w' and the state of a second step on `Bounded` numbers: with rounding errors."""
    optimizer = _optimizer(name, eta, decay)
    model = SimpleNamespace(parameters={"w": Bounded(w)}, backend=backends.get("reference"))
    optimizer.state, optimizer.t = {"w": {key: Bounded(a) for key, a in state.items()}}, 1
    optimizer.step(model, {"w": Bounded(g)})
    return model.parameters["w"], optimizer.state["w"]


def _known(array, carried):
    """Return a wing's array as longdouble's, with what the reference's rounding can be off by."""
    return Bounded(array.astype(np.longdouble), carried.error)


def _root(v):
    """Return the root of the second step's corrected v, 1 where there never was a gradient."""
    if v is None:
        return Bounded(np.longdouble(1))
    corrected = v / Bounded(np.longdouble(1) - np.longdouble(_BETA2) ** 2)
    return np.sqrt(np.where(corrected.value == 0, np.longdouble(1), corrected))


def _residuals(network, name, eta, decay, batches):
    """Return residual, the same without memory, bound and size of every unit, (units,) each."""
    before, state, trace, after, later = _second_step(network, name, eta, decay, batches)
    exact = [Bounded(np.longdouble(number)) for number in (eta * decay, decay, eta, _MEMORY)]
    if name.startswith("Adam"):  # m' is divided by 1 - beta1^t, which is a part of the rate
        exact[2] = exact[2] / Bounded(1 - np.longdouble(_MEMORY) ** 2)
    convert = network.backend.to_numpy
    rows = []
    for group in before.invariance_groups():
        change, memory, size = 0, 0, 0
        for parameter in group.parameters:
            w, g, new = (
                convert(arrays[parameter])
                for arrays in (before.parameters, trace.gradients, after.parameters)
            )
            old, now = (to_numpy(network, states.get(parameter, {})) for states in (state, later))
            carried_w, carried = _carried(name, eta, decay, w, g, old)
            now = {key: _known(array, carried[key]) for key, array in now.items()}
            (slot,) = [key for key in now if key != "v"] or [None]
            nothing = Bounded(np.zeros(w.shape, np.longdouble))
            buffers = (
                [Bounded(old[slot].astype(np.longdouble)), now[slot]] if slot else [nothing] * 2
            )
            terms = _change(
                name,
                exact,
                (Bounded(w.astype(np.longdouble)), buffers[0]),
                (_known(new, carried_w), buffers[1]),
                Bounded(g.astype(np.longdouble)),
                _root(now.get("v")),
            )
            axes = tuple(range(w.ndim - 1)) if group.per_unit else None
            change, memory, size = (
                total + term.sum(axis=axes)
                for total, term in zip((change, memory, size), terms, strict=True)
            )
        *_, orthogonal = orthogonality(before, group, *batches[-1], trace)
        radial = laws.STORES[name](eta * decay, _MEMORY).radial / float(exact[2].value)
        residual = change - memory
        bound = residual.error + abs(radial) * orthogonal
        row = residual.value, change.value, bound, size.value
        rows.append([np.atleast_1d(part).astype(float) for part in row])
    return map(np.concatenate, zip(*rows, strict=True))


@claim(
    id="norm-with-memory",
    statement=r"Y' = Y + |g|^2 + c \langle b, g \rangle - \frac{x}{\eta^2 F} |w|^2, \quad Y = k_1 "
    r"\frac{|w|^2}{\eta^2} + k_2 \frac{\langle w, b \rangle}{\eta} + k_3 |b|^2; \quad "
    r"\text{without decay } Y = \left| \tfrac{1 - \rho}{\eta} w - \rho v \right|^2 \text{ "
    r"(momentum)}",
    source="Wan et al. 2021, thm. 2, made exact at every step; for the other optimizers ours",
    cite="Wan21 t2",
    assumptions=(
        "eps = 0, every group and step, any gradients, with decay and without",
        "Adam and AdamW: sums over the weights with sqrt(v), the step's own, on both sides",
    ),
    control="without the term of memory, c = 0",
    derivation=r"""
Where an optimizer has a buffer $b$, $|w|^2$ alone obeys no law of one step: what was put in the
buffer comes out later. But a quadratic form of both does. Momentum without decay: $u = (1 - \rho) w
- \rho \eta v$ moves by $-\eta g$ alone, so that $|u|^2$ grows by $\eta^2 (|g|^2 + 2 \rho \langle v,
g \rangle)$, as $\langle w, g \rangle = 0$: the law of growth with memory, at every step. With decay
$x = \eta \lambda_2$, $Y = |u|^2/\eta^2 + 2 \rho x (|w|^2/\eta^2 + \langle w, v \rangle/\eta)/(1 +
\rho)$ loses $x/F$ of $|w|^2/\eta^2$, $F$ the balance of equilibrium-norm: where $Y$ comes to its
place again, $|w|^2 = \frac{\eta}{\lambda_2} F \, (|g|^2 + c \langle b, g \rangle)$ in the mean, the
law of equilibrium-in-training. theory.laws.memory has $k_1$, $k_2$ and $k_3$ of each optimizer, and
derives them.

Adam: each weight counts $\sqrt{v_i}$ times, and with L2 $p = g + \lambda_2 w$ takes the place of
$g$, and $\frac{2 \lambda_2}{\eta} |w|^2$, without $\sqrt{v}$, that of the last term. As $v$ makes
its own step $Y$ changes too: that is all that a finite $\beta_2$ adds.

Measured: the second step from the start, of five optimizers, with decay and without, for every
invariance group, $(\gamma, \beta)$ of an inner layer among them. Bound: the running error of the
step and of the sums, and that of $\langle w, g \rangle$.
""",
    unfit=((WORST_CASE, "float16"),),
)
def norm_with_memory(subject):
    """|Y' - Y - what the law adds|, relative to |w'|^2's part of Y', of the unit and optimizer that
    come closest to their bound.
    """
    closest, controls = Closest(), []
    batches = [subject.batch(step, 24) for step in range(2)]
    for name, (eta, decay) in _SETTINGS.items():
        control = 0.0
        for penalty in (decay, 0.0):
            residual, without, bound, size = _residuals(
                subject.network.with_eps(0.0), name, eta, penalty, batches
            )
            closest.offer(np.abs(residual) / size, bound / size)
            control = max(control, float(np.max(np.abs(without) / size)))
        controls.append(control)
    return closest.measurement(
        how="running error of step and sums, and of <w, g>, relative to |w'|^2's part of Y'",
        control=min(controls[1:]),  # SGD has no memory
        details={"optimizers": len(_SETTINGS)},
    )


# In balls and symbols


@dataclasses.dataclass(frozen=True)
class WeightSubject:
    """A step of one weight in symbols: whatever w, buffer, gradient and sqrt(v) are."""

    optimizer: str
    numbers: Symbols
    exact = True
    arithmetic = "symbol"

    name = property(lambda self: self.optimizer.lower())


def _exact_subjects(options):
    """Return the networks in balls, or each optimizer's step of a weight in symbols."""
    if options.arithmetic == "symbol":
        return [WeightSubject(name, Symbols()) for name in _SETTINGS]
    return exact_subjects(options)


def _stepped(name, numbers, w, b, g, root):
    """Return w' and the buffer of one step, v at its place."""
    x, decay, rate, memory = numbers
    if name.startswith("Adam"):
        new = memory * b + (1 - memory) * (g + decay * w if name == "Adam" else g)
        return (w - x * w if name == "AdamW" else w) - rate * new / root, new
    g = UPDATE.add_penalty(g, w, decay)
    if name == "SGD":
        return UPDATE.sgd(w, g, rate), 0 * b
    return getattr(UPDATE, name.lower())(w, g, b, rate, memory)


def _exact_change(name, numbers, w, b, g, root):
    """Return what must vanish, and what remains of it without memory, for each weight."""
    after = _stepped(name, numbers, w, b, g, root)
    change, memory, _ = _change(name, numbers, (w, b), after, g, root)
    return change - memory, change


@norm_with_memory.exactly(subjects=_exact_subjects)
def _(subject):
    """From any buffer and with any v; in symbols also of a gradient that is not orthogonal to w."""
    if isinstance(subject, WeightSubject):
        return _of_weight(subject)
    identity, number = Identity(), subject.numbers.number
    for network in subject.states:
        gradients = network.trace(subject.X, subject.targets).gradients
        for name, (rate, decay) in _SETTINGS.items():
            for penalty in (decay, 0.0):
                numbers = [number(value) for value in (rate * penalty, penalty, rate, _MEMORY)]
                for group in network.invariance_groups():
                    totals = _of_group(subject, network, gradients, group, name, numbers)
                    identity.vanishes(totals[0])
                    if name != "SGD":
                        identity.remains(totals[1])
    return identity


def _of_group(subject, network, gradients, group, name, numbers):
    """Return the sums over a group, each (units,), from a random buffer and v."""
    rng, array = np.random.default_rng(0), subject.numbers.array
    parts = []
    for parameter in group.parameters:
        w, g = network.parameters[parameter], gradients[parameter]
        b = array(rng.integers(-3, 4, w.shape).astype(float))
        root = array(rng.integers(1, 4 if name.startswith("Adam") else 2, w.shape).astype(float))
        parts.append(_exact_change(name, numbers, w, b, g, root))
    return [group_sum(part, group.per_unit) for part in zip(*parts, strict=True)]


def _of_weight(subject):
    """Return the identity of one weight, with the radial term; SGD's control is without it."""
    names = ("x", "eta", "rho", "w", "b", "g", "d")
    x, rate, memory, w, b, g, root = (subject.numbers.variables(n, positive=True) for n in names)
    name = subject.optimizer
    if not name.startswith("Adam"):
        root = subject.numbers.number(1)
    whole, without = _exact_change(name, (x, x / rate, rate, memory), w, b, g, root)
    radial = laws.STORES[name](x, memory).radial * w * g / rate
    identity = Identity()
    identity.vanishes(np.array([whole - radial]))
    identity.remains(np.array([whole if name == "SGD" else without - radial]))
    return identity
