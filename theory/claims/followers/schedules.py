r"""Schedules that are decay, and what decay and schedule together make of the effective rate."""

import functools

import numpy as np

import minimal_nn as nn
from minimal_nn.schedules import Cosine
from theory import laws
from theory.claim import TOO_LONG, WORST_CASE
from theory.claims.followers.table import (
    NARROW,
    SAMPLED,
    decoupled_sgd,
    follower,
    judge,
    networks,
    walked,
)
from theory.measures.bits import bit_exact, differing
from theory.measures.closest import Closest
from theory.measures.exact_runs import UPDATE
from theory.measures.groups import group_sum
from theory.measures.orthogonality import orthogonality
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.networks import invariant_weights, times, to_numpy, weight_groups

ETA = 0.25
_BATCH = 16


# Schedules that are decay, by powers of two


def _run(subject, network, rates, shrinks):
    """Return losses and parameters after each step of SGD at rates and shrinks of the weights.

    rates, shrinks: of each step, eta_t and 1 - eta_t decay_t, all powers of two, so that no
    factor is rounded.  The other parameters are trained at ETA throughout, without decay.
    """
    names, network = invariant_weights(network), network.with_parameters()
    found = []
    for step, (rate, shrink) in enumerate(zip(rates, shrinks, strict=True)):
        own = nn.Group(names, learning_rate=rate, decoupled_weight_decay=(1 - shrink) / rate)
        optimizer = decoupled_sgd(ETA, groups=[own])
        loss, gradients, network.state = network.loss_and_gradients(*subject.batch(step, _BATCH))
        optimizer.step(network, gradients)
        found.append((loss, to_numpy(network, network.parameters)))
    return found


def _equivalent(rates, shrinks):
    """Return the rates without decay, and what w is divided by after each step."""
    shrunk = np.cumprod([1.0, *shrinks])
    return [
        laws.equivalent_rate(rate, shrink, before)
        for rate, shrink, before in zip(rates, shrinks, shrunk, strict=False)
    ], shrunk[1:]


def _differing(network, one, other, divisors):
    """Return how many numbers of `other` are not those of `one`, the weights divided."""
    names, wrong = invariant_weights(network), 0
    for (loss, parameters), (loss2, parameters2), divisor in zip(one, other, divisors, strict=True):
        wrong += int(loss != loss2)
        for name, array in parameters.items():
            expected = array / array.dtype.type(divisor) if name in names else array
            wrong += differing(parameters2[name], expected)
    return wrong


def _compare(subject, rates, shrinks, wrong_rates):
    """Return the Measurement of runs with decay and with the equivalent schedule.

    wrong_rates: rates, shrinks -> those of the control.
    """
    wrong, control = 0, []
    for network in subject.states:
        steps = subject.steps(len(rates))
        now = list(rates)[:steps], list(shrinks)[:steps]
        equivalent, divisors = _equivalent(*now)
        ones = [1.0] * steps
        decayed = _run(subject, network, *now)
        wrong += _differing(network, decayed, _run(subject, network, equivalent, ones), divisors)
        other = _run(subject, network, wrong_rates(*now), ones)
        control.append(_differing(network, decayed, other, divisors))
    return bit_exact(wrong, min(control), {"steps": steps, "rates": equivalent})


@follower(
    id="exponential-schedule",
    statement=r"(\eta, \lambda) \text{ and } (\eta \alpha^{-2t-1}, 0) \text{ are one run: } \tilde "
    r"w_t = \alpha^{-t} w_t, \; \alpha = 1 - \eta \lambda_2",
    source="Li & Arora 2020, theorem 2.7",
    cite="LA20",
    assumptions=("SGD, eps = 0", "the invariant weights; all others keep rate and decay"),
    control="the rate eta alpha^(-2 t), one step behind",
    derivation=r"""
By induction: $\tilde w = \alpha^{-t} w$ has the gradient $\alpha^t g$, and $\tilde w - \eta
\alpha^{-2t-1} \alpha^t g = \alpha^{-t-1} (\alpha w - \eta g)$. With $\alpha = 1/2$ and decay
applied as $(1 - x) w$, every number of the two runs has the same bits, up to the power of two.
""",
    subjects=networks,
    exact="ball symbol",
    unfit=(NARROW,),
)
def exponential_schedule(subject):
    """Numbers of the run without decay that are not those of the run with it, times 2^t."""
    steps = 8
    return _compare(
        subject,
        [ETA] * steps,
        [0.5] * steps,
        lambda rates, shrinks: [rate * 4.0**t for t, rate in enumerate(rates)],
    )


@follower(
    id="any-schedule",
    statement=r"(\eta_t, \lambda_t) \text{ and } \left(\frac{\eta_t}{P_t^2 a_t}, 0\right) \text{ "
    r"are one run: } \tilde w_t = w_t/P_t, \; P_t = \prod_{i < t} a_i, \; a_t = 1 - \eta_t "
    r"\lambda_{2,t}",
    source="Li & Arora 2020, theorem 2.9 (TEXP); any schedule is ours",
    cite="LA20",
    assumptions=("those of exponential-schedule", "rate and decay may change at every step"),
    control="the growth 1/a_t^2 alone, without the factor a_(t-1)/a_t where decay changes",
    derivation=r"""
The induction of exponential-schedule with $P_t$ in the place of $\alpha^t$: $w_t/P_t - \tilde
\eta_t P_t g = (a_t w_t - \eta_t g)/P_{t+1}$ for $\tilde \eta_t = \eta_t/(P_t^2 a_t)$. Where the
rate steps down, the equivalent one has the ratio $(\eta_t/\eta_{t-1})/(a_{t-1} a_t)$.
""",
    subjects=networks,
    exact="ball symbol",
    unfit=(NARROW,),
)
def any_schedule(subject):
    """Numbers of the run without decay that are not those of the run with it, divided by P_t."""
    rates = [2.0**-2, 2.0**-3, 2.0**-3, 2.0**-5, 2.0**-2, 2.0**-4, 2.0**-4, 2.0**-3]
    shrinks = [0.5, 0.25, 1.0, 0.5, 0.5, 0.25, 0.5, 1.0]

    def without_boundaries(rates, shrinks):
        shrunk = np.cumprod([1.0, *shrinks[:-1]])
        return [rate / (before**2 * shrinks[0]) for rate, before in zip(rates, shrunk, strict=True)]

    return _compare(subject, rates, shrinks, without_boundaries)


# With momentum: a step from the same place


_RHO, _DECAY, _ALPHAS = 0.125, 1.5, (0.5, 0.25)  # of alpha^2 - (1 + rho - x) alpha + rho = 0


def _momentum_step(network, names, gradients, buffers, rate, decay):
    """Return the weights after a step of momentum from given buffers, by name."""
    optimizer = nn.Momentum(
        ETA, momentum=_RHO, groups=[nn.Group(names, learning_rate=rate, weight_decay=decay)]
    )
    after = network.with_parameters()
    optimizer.state = {name: {"buffer": network.backend.asarray(b)} for name, b in buffers.items()}
    optimizer.t = 1
    optimizer.belong(after)
    optimizer.step(after, gradients)
    state = {name: optimizer.state[name]["buffer"] for name in buffers}
    return after, to_numpy(network, after.parameters), to_numpy(network, state)


@follower(
    id="momentum-schedule",
    statement=r"(\eta, \lambda, v_{-1}) \text{ and } \left(\eta \alpha^{-2t-1}, 0, v_{-1} - "
    r"\tfrac{1 - \alpha}{\alpha \eta} w_0\right) \text{ are one run}, \; \alpha^2 - (1 + \rho - x) "
    r"\alpha + \rho = 0",
    source="Li & Arora 2020, theorem 2.12",
    cite="LA20",
    assumptions=("heavy ball, eps = 0", "real alpha: x <= (1 - sqrt rho)^2"),
    control="the buffer without its correction",
    derivation=r"""
$\tilde w_t = \alpha^{-t} w_t$ for all $t$ needs the buffer $\tilde v_t = \alpha^{t} (v_t - (1 -
\alpha) w_t/\eta)$ after step $t$, which is $\rho$ times the one before plus $\alpha^t g$ where
$\alpha$ solves the equation; before the first step it is $v_{-1} - (1 - \alpha) w_0/(\alpha \eta)$.
Both roots do. At $\rho = 0.9$ they are real for $x \le 0.0026$ alone.

Measured at every step of a run with decay, from that step's $w$ and $v$: one step with it and one
without, $\rho = 1/8$, $x = 3/8$, both roots $1/2$ and $1/4$. Bound: both steps and the corrected
buffer on numbers that carry their rounding error.
""",
    erratum="Exponential schedules are often quoted as decay with momentum as they stand: without "
    "the corrected buffer the first step is off by as much as decay moves w.",
    subjects=networks,
    exact="ball symbol",
    unfit=((WORST_CASE, "float16"),),
)
def momentum_schedule(subject):
    """|w~' - w'/alpha^(t+1)| of one step, at the entry that comes closest to its bound."""
    closest, control = Closest(), np.inf
    for network in subject.states:
        names, wrong = invariant_weights(network), 0.0
        every = list(network.parameters)
        buffers = {k: np.zeros_like(a) for k, a in to_numpy(network, network.parameters).items()}
        current = network
        for step in range(subject.steps(4)):
            gradients = current.loss_and_gradients(*subject.batch(step, _BATCH)).gradients
            w, g = to_numpy(current, current.parameters), to_numpy(current, gradients)
            after, decayed, new = _momentum_step(
                current, names, gradients, {k: buffers[k] for k in every}, ETA, _DECAY
            )
            for alpha in _ALPHAS:
                wrong = max(
                    wrong, _against_schedule(current, closest, names, w, g, buffers, decayed, alpha)
                )
            current, buffers = after, new
        control = min(control, wrong)
    return closest.measurement(
        how="running error of both steps, add_penalty and momentum, and of the corrected buffer",
        control=control,
        details={"alphas": list(_ALPHAS), "x": ETA * _DECAY},
    )


def _against_schedule(network, closest, names, w, g, buffers, decayed, alpha):
    """Offer the schedule's step against that with decay, at t = 1; return the control's."""
    u = alpha**-1.0  # w~ = w/alpha, and the step leads to w'/alpha^2
    correction = (1 - alpha) / ETA
    corrected = dict(buffers)
    for k in names:
        number = buffers[k].dtype.type
        corrected[k] = number(alpha) * buffers[k] - number(correction) * w[k]
    scaled = times(network, names, u)
    slower = network.backend.asarray
    gradients = {
        k: slower(a * a.dtype.type(alpha)) if k in names else slower(a) for k, a in g.items()
    }
    rate = ETA * alpha**-3
    _, found, _ = _momentum_step(scaled, names, gradients, corrected, rate, 0.0)
    _, plain, _ = _momentum_step(
        scaled, names, gradients, {**corrected, **{k: alpha * buffers[k] for k in names}}, rate, 0.0
    )
    residual = 0.0
    for name in names:
        W, G, V = Bounded(w[name]), Bounded(g[name]), Bounded(buffers[name])
        with_decay, _ = UPDATE.momentum(W, UPDATE.add_penalty(G, W, _DECAY), V, ETA, _RHO)
        other, _ = UPDATE.momentum(W * u, G * alpha, V * alpha - W * correction, rate, _RHO)
        expected = decayed[name].astype(np.longdouble) / alpha**2
        closest.offer(
            np.abs(found[name] - expected).astype(float), other.error + with_decay.error / alpha**2
        )
        residual = max(residual, float(np.max(np.abs(plain[name] - expected))))
    return residual


# Hoffer's correction


@follower(
    id="hoffer-correction",
    statement=r"\tilde w - \frac{\eta}{1 - x} \frac{|\tilde w|^2}{|w|^2} \tilde g \;\parallel\; "
    r"(1 - x) w - \eta g: \text{ without } 1/(1 - x) \text{ the turn is } 1 - x \text{ times it}",
    source="Hoffer et al. 2018, section 4, made exact",
    cite="HBG18",
    assumptions=("SGD, eps = 0", "w~ of w's direction, at another norm for each unit"),
    control="the published rate eta |w~|^2/|w|^2, whose turn's tangent is 1 - x times the right",
    derivation=r"""
A step turns $w$ by $\tan \varphi = \Phi |w| |g|$, $\Phi = \eta/((1 - x) |w|^2)$ with decay,
$\tilde \eta/|\tilde w|^2$ without: equal for $\tilde \eta = \eta |\tilde w|^2/((1 - x) |w|^2)$. The
published correction is of first order in $\eta$ and leaves out $1 - x$.

Measured at $x = 1/4$, with a power of two $|\tilde w|/|w|$ for each unit, entry by entry. Bound:
the running error of both steps.
""",
    erratum="Hoffer et al. 2018: the learning-rate correction |w|^2/|w_WD|^2 lacks the factor 1/(1 "
    "- eta decay): at eta decay = 1/4 the turn's tangent is 3/4 of that with decay.",
    subjects=networks,
    exact="ball symbol",
    unfit=((WORST_CASE, "float16"),),
)
def hoffer_correction(subject):
    """|w~'/c - w'/(1 - x)|, at the entry that comes closest to its bound."""
    decay, shrink = 1.0, 0.75
    closest, control, ratios = Closest(), 0.0, []
    rng = np.random.default_rng(0)
    for network in subject.states:
        gradients = network.loss_and_gradients(*subject.batch(0, _BATCH)).gradients
        w, g = to_numpy(network, network.parameters), to_numpy(network, gradients)
        for group in weight_groups(network):
            size = w[group.parameters[0]].shape[-1] if group.per_unit else ()
            c = 2.0 ** rng.integers(-4, 5, size)
            names = group.parameters
            with_decay = _sgd_step(network, names, gradients, ETA, decay)
            other = times(network, names, c)
            scaled = {k: a / np.asarray(c, a.dtype) if k in names else a for k, a in g.items()}
            scaled = {k: network.backend.asarray(a) for k, a in scaled.items()}
            right = _sgd_step(other, names, scaled, ETA * c * c / shrink, 0.0)
            published = _sgd_step(other, names, scaled, ETA * c * c, 0.0)
            for name in names:
                W, G = Bounded(w[name]), Bounded(g[name])
                one = UPDATE.sgd(W, UPDATE.add_penalty(G, W, decay), ETA).error / shrink
                two = UPDATE.sgd(W, G, ETA / shrink).error * 2  # the rates are rounded to w's dtype
                expected = with_decay[name].astype(np.longdouble) / shrink
                closest.offer(np.abs(right[name] / c - expected).astype(float), one + two)
                control = max(control, float(np.max(np.abs(published[name] / c - expected))))
                turned = w[name] - published[name] / c, w[name] - right[name] / c
                ratios.append(np.sqrt((turned[0] ** 2).sum() / (turned[1] ** 2).sum()))
    return closest.measurement(
        how="running error of both steps, add_penalty and sgd",
        control=control,
        control_as_predicted=bool(np.max(np.abs(np.array(ratios) / shrink - 1)) < 1e-3),
        details={"x": ETA * decay, "turn of the published over the right one": float(ratios[0])},
    )


def _sgd_step(network, names, gradients, rate, decay):
    after = network.with_parameters()
    group = nn.Group(names, learning_rate=rate, weight_decay=decay)
    nn.SGD(ETA, groups=[group]).step(after, gradients)
    return to_numpy(network, after.parameters)


# The law of the effective rate


def _norms(arrays, group):
    squares = [np.square(arrays[k].astype(np.longdouble)) for k in group.parameters]
    return group_sum(squares, group.per_unit)


def effective_rates(subject, network, rates, decay):
    """Yield (Phi, Phi', |w|^2 |g|^2, relative bound on |w'|^2, step) of groups along a run."""
    current = network
    for step, (rate, after_rate) in enumerate(zip(rates, rates[1:], strict=False)):
        X, targets = subject.batch(step, _BATCH)
        trace = current.trace(X, targets)
        after = current.with_parameters()
        groups = weight_groups(current)
        names = invariant_weights(current)
        own = nn.Group(names, learning_rate=rate, weight_decay=decay)
        nn.SGD(ETA, groups=[own]).step(after, trace.gradients)
        w, g = to_numpy(current, current.parameters), to_numpy(current, trace.gradients)
        new = to_numpy(current, after.parameters)
        a, next_a = 1 - rate * decay, 1 - after_rate * decay
        for group in groups:
            before, pushed, moved = (_norms(x, group) for x in (w, g, new))
            cross = orthogonality(current, group, X, targets, trace)[3]
            error = [
                2 * np.abs(new[k]) * e + e * e
                for k in group.parameters
                for e in [_step_error(w[k], g[k], rate, decay)]
            ]
            terms = sum(w[k].size for k in group.parameters) // before.size + 6
            bound = (group_sum(error, group.per_unit) + 2 * rate * a * cross) / moved
            bound = bound + 3 * gamma(terms, unit_roundoff(np.longdouble))
            yield (
                rate / (np.longdouble(a) * before),
                after_rate / (np.longdouble(next_a) * moved),
                before * pushed,
                bound,
                step,
            )
        current = after


def _step_error(w, g, rate, decay):
    w = Bounded(w)
    return UPDATE.sgd(w, UPDATE.add_penalty(Bounded(g), w, decay), rate).error


@follower(
    id="schedule-law",
    statement=r"\Phi' = \frac{B \, \Phi}{1 + \Phi^2 |w|^2 |g|^2}, \; B = \frac{\eta'}{\eta a a'}, "
    r"\; \Phi = \frac{\eta}{a |w|^2}",
    source="arXiv 2609.09116; re-derived",
    cite="2609.091",
    assumptions=("SGD, eps = 0, any schedule", "a = 1 - eta decay"),
    control="B = eta'/eta, decay left out",
    derivation=r"""
$w' = a (w - (\eta/a) g)$ and $\langle w, g \rangle = 0$: $|w'|^2 = a^2 |w|^2 (1 + \Phi^2 |w|^2
|g|^2)$, and $\Phi' = \eta'/(a' |w'|^2)$. So schedule and decay together are one number $B$: above 1
the effective rate grows, unless $\Phi |w| |g| \ge \sqrt{B - 1}$; below, it cannot.

Measured along a half cosine at $x$ from 0.25 to 0.025. Bound: running error of the update, and of
$\langle w, g \rangle$.
""",
    subjects=networks,
    exact="ball symbol",
    unfit=((WORST_CASE, "float16"),),
)
def schedule_law(subject):
    """|Phi'/law - 1| of the group and step that come closest to their bound."""
    closest, control, decay = Closest(), 0.0, 1.0
    cosine = Cosine(6, final=0.1)
    rates = [ETA * cosine(t) for t in range(subject.steps(5) + 1)]
    for network in subject.states:
        for phi, new, square, bound, step in effective_rates(subject, network, rates, decay):
            a, next_a = (1 - rate * decay for rate in rates[step : step + 2])
            B = laws.schedule_growth(rates[step], a, rates[step + 1], next_a)
            law = phi / (1 + phi * phi * square)
            closest.offer(np.abs(new / (B * law) - 1).astype(float), bound.astype(float))
            control = max(control, float(np.max(np.abs(new * a * next_a / (B * law) - 1))))
    return closest.measurement(
        how="running error of the update, and of <w, g>, relative to |w'|^2", control=control
    )


@follower(
    id="rate-cannot-grow",
    statement=r"B \le 1 \Rightarrow \Phi' \le \Phi: \; \frac{1}{\eta_{t+1}} = \frac{1}{\eta_t (1 - "
    r"\eta_t \lambda_2)} + \lambda_2",
    source="arXiv 2609.09116; the schedule is ours",
    cite="2609.091",
    assumptions=("SGD, eps = 0", "the schedule with B = 1, from eta decay = 1/4 on"),
    control="a constant rate: Phi grows wherever gradients are small",
    derivation=r"""
By schedule-law, with $B = 1$, $\Phi' = \Phi/(1 + \Phi^2 |w|^2 |g|^2) \le \Phi$, whatever gradients
are; the schedule solves $\eta'/(1 - \eta' \lambda_2) = \eta (1 - \eta \lambda_2)$, about
$1/(1/\eta_0 + 2 \lambda_2 t)$. At a constant rate $B = 1/a^2 > 1$.
""",
    subjects=networks,
    unfit=((WORST_CASE, "float16"),),
)
def rate_cannot_grow(subject):
    """The largest Phi'/Phi - 1 (0 where all fall), beside the rounding of |w'|^2."""
    decay, steps = 1.0, subject.steps(5)
    rates = [ETA]
    for _ in range(steps):
        rates.append(laws.next_rate(rates[-1], decay))
    closest, control = Closest(), 0.0
    for network in subject.states:
        for phi, new, _, bound, _ in effective_rates(subject, network, rates, decay):
            excess = np.maximum(new / phi - 1, 0).astype(float)
            closest.offer(excess, bound.astype(float))
        for phi, new, _, _, _ in effective_rates(subject, network, [ETA] * (steps + 1), decay):
            control = max(control, float(np.max(new / phi - 1)))
    return closest.measurement(how="running error of |w'|^2, relative", control=control)


# AdamC on the walk


_FINAL = 0.3


@functools.cache
def _corrected(steps, decay):
    """Return the schedule of rate and decay: 1 for a tenth, then half a cosine to _FINAL."""
    tenth, cosine = steps // 10, Cosine(steps * 7 // 10, final=_FINAL)

    def factors(step):
        f = cosine(max(step - tenth, 0))
        return {"learning_rate": f, decay: f}

    return factors


def adamc_subjects(options):
    """Return SGD and AdamW with decay that follows the schedule."""
    found = []
    for name, kind, eta, x, skip, dims in (
        ("sgd", nn.SGD, 0.1, 0.1, 200, 256),
        ("adamw", nn.AdamW, 0.01, 0.05, 1000, 1024),
    ):
        decay = "decoupled_weight_decay" if kind is nn.AdamW else "weight_decay"
        hyper = {"learning_rate": eta, decay: x / eta}
        if kind is nn.AdamW:
            hyper.update(beta1=0.9, beta2=0.99, eps=0.0)
        norm = laws.equilibrium(kind.__name__, eta, x / eta, dims=dims, memory=0.9).norm
        settings = {"hyper": hyper, "skip": skip, "steps": 3000, "chains": 16, "dims": dims}
        schedule = _corrected(3000, decay)
        found.append(walked(options, name, kind, norm, thorough=1, schedule=schedule, **settings))
    return found


@follower(
    id="adamc",
    statement=r"\text{decay } \lambda \eta_t/\eta_0: \; |g|/|w| \text{ (SGD) and } |w| \text{ "
    r"(AdamW) stay up to } 2 - x \text{ and } F(x), \text{ whatever the schedule}",
    source="Defazio 2025, sections 2 and 3; Chou 2025",
    cite="Def25",
    assumptions=("gradients without memory", "a half cosine to 0.3 of the rate"),
    control="decay that does not follow: at the end the square of |g|/|w| (SGD), and 1/|w|^2 "
    "(AdamW), is 3.3 times what it was",
    derivation=r"""
At equilibrium $|g|^2/|w|^2 = \lambda_t (2 - x_t)/\eta_t$ (SGD), $|w|^2 = (\eta_t/\lambda_t) C
F(x_t)$ (AdamW): with $\lambda_t \propto \eta_t$ the quotient $\lambda_t/\eta_t$ stays, and what
is left changes by $O(x)$, for AdamW by $O(x/(1 - \beta_1))$: that is the law here, $(2 - x_T)/(2 -
x_0)$ and $F(x_T)/F(x_0)$. In schedule-law,
$B = \eta_{t+1}/(\eta_t a_t a_{t+1})$ with the small $x_t = \eta_t^2 \lambda/\eta_0$.
""",
    subjects=adamc_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def adamc(subject):
    """The ratio at the end of the schedule over that at the start, against the law."""
    path, tenth = subject.path, subject.steps // 10
    x = subject["learning_rate"] * next(v for k, v in subject.hyper if k.endswith("decay"))
    last = x * _FINAL**2
    if subject.optimizer is nn.SGD:
        kept, law, wrong = path.gradients / path.norms**2, (2 - last) / (2 - x), 1 / _FINAL
    else:
        balance = laws.BALANCES["AdamW"]
        kept, law, wrong = path.norms**2, balance(last, 0.9) / balance(x, 0.9), _FINAL
    ratio = kept[-tenth:].mean(axis=0) / kept[:tenth].mean(axis=0)
    return judge(ratio, law, wrong, tolerance=0.02)
