r"""How fast equilibrium comes: the norms of the later optimizers, and the loss itself."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import numpy as np

import minimal_nn as nn
from minimal_nn import backend
from minimal_nn.data import digits
from theory import laws
from theory.claim import TOO_LONG
from theory.claims.followers.table import SAMPLED, follower, judge, together, walked
from theory.subjects.matrices import matrix_walk
from theory.subjects.networks import invariant_weights, times

# |w| of the later optimizers


_ETA = 0.01


def _from_above(options, name, kind, limit, factor, **settings):
    """Return the subject whose 48 chains all start at `factor` times its limit."""
    subject = walked(options, name, kind, 1.0, chains=48, thorough=1, **settings)
    return dataclasses.replace(subject, start=(float(limit) * factor,) * 48)


def relaxation_subjects(options):
    """Return Lion, SGDP, NormalizedSGD and AdamP from above their limits, and Muon."""
    x = 0.005
    lion = {"learning_rate": _ETA, "beta1": 0.5, "beta2": 0.9, "decoupled_weight_decay": x / _ETA}
    limit = _later(nn.Lion, lion).norm
    found = [_from_above(options, "lion", nn.Lion, limit, 6.0, hyper=lion, skip=60, steps=141)]
    # w shrinks by x decay_ratio/(1 - momentum) a step, far below (1 - momentum)^2
    sgdp = {"learning_rate": 0.02, "momentum": 0.5, "decoupled_weight_decay": 0.25}
    limit = _later(nn.SGDP, sgdp).norm
    found.append(_from_above(options, "sgdp", nn.SGDP, limit, 2.0, hyper=sgdp, skip=20, steps=401))
    coupled = {"learning_rate": 0.02, "weight_decay": 0.05}
    limit = laws.coupled_equilibrium("NormalizedSGD", **coupled).norm
    settings = {"hyper": coupled, "skip": 0, "steps": 401}
    found.append(_from_above(options, "normalized + L2", nn.NormalizedSGD, limit, 2.0, **settings))
    # 2 x is 1/5 of the time over which v averages: v lags, and the clock tells it
    adamp = {"learning_rate": _ETA, "beta1": 0.5, "beta2": 0.99, "eps": 0.0}
    adamp["decoupled_weight_decay"] = 1.0
    limit = _later(nn.AdamP, adamp).norm
    settings = {"hyper": adamp, "skip": 300, "steps": 701}
    found.append(_from_above(options, "adamp", nn.AdamP, limit, 2.0, **settings))
    wing = "reference" if options.backend == "cuda" else options.backend
    return [*found, MuonFromAbove(options.seed, wing)]


def _later(kind, hyper):
    adaptive = kind is not nn.SGDP
    return laws.later_equilibrium(
        kind.__name__,
        hyper["learning_rate"],
        hyper["decoupled_weight_decay"],
        dims=256,
        memory=hyper["beta1" if adaptive else "momentum"],
        beta2=hyper.get("beta2", 0.0),
    )


@dataclasses.dataclass(frozen=True)
class MuonFromAbove:
    """Matrices under Muon without momentum, from six times their limit."""

    seed: int
    backend: str
    name: str = "muon"
    arithmetic: str = "float64"
    x: float = 0.01
    steps: int = 101

    @property
    def limit(self):
        """|W| at equilibrium: polar factors without memory have S = 0."""
        return math.sqrt(_ETA**2 * 12 * laws.directions_balance(self.x, 0.0))

    @property
    def norms(self):
        """|W| before each step, (steps, chains)."""
        optimizer = nn.Muon(_ETA, momentum=0.0, decoupled_weight_decay=self.x / _ETA)
        settings = {"skip": 0, "steps": self.steps, "seed": [self.seed, 5], "wing": self.backend}
        return np.sqrt(matrix_walk(optimizer, (16, 12), [6 * self.limit] * 24, **settings)[0])


@follower(
    id="later-relaxation",
    statement=r"|w|^{2 + 2 \nu} \to \text{its limit as } (1 - x)^{(2 + 2 \nu) t}: \; \text{rate } "
    r"2 x \text{ (Lion, Muon, AdamP)}, \; 4 x \text{ (SGDP)}; \; 3 x_e \text{ (normalized + L2)}",
    source="the rule of Li, Lyu & Arora 2020, section 4, for optimizers after it",
    cite="LLA20",
    assumptions=(
        "gradients without memory, from above the limit, after the optimizer's own memory",
        "SGDP and AdamP: x far below (1 - momentum)^2, (1 - beta1)^2; AdamP: eps = 0, beta2 = 0.99",
    ),
    control="a wrong degree: 4 x for Lion and Muon, 2 x for SGDP and for normalized steps with L2; "
    "AdamP: v taken for its mean, as if it did not lag",
    derivation=r"""
Where directions do not feel $|w|$ (Lion, Muon), $w_t = a^t w_0 - \eta \sum a^j o_{t-1-j}$, and as
$o$ does not prefer $w_0$, $E|w_t|^2 = a^{2 t} |w_0|^2 + E|\ldots|^2$, whose second part misses its
limit by a multiple of $a^{2 t}$ once the memory of $o$ is over: the rate is $-2 \log a$, at any
$x$.
SGDP's steps fall as $1/|w|$: $|w|^4$, at $-4 \log a$, up to $x/(1 - \rho)^2$, which is what its
projection moves with $|w|$. Normalized steps with L2 in the gradient take $x_e = \eta
\lambda_2/|p|$, $|p| = s/|w|$, from $w$: the equation and the clock of Adam with L2.
AdamP's $v$ lags: while $|w|^2$ falls by the part $d = 2 x (1 - 1/q^2)$ per step $|g|^2$ rises, and
$|m'|^2/v$, by which $|w|^2$ grows, is larger by $(\tau - b) d$, $\tau = \beta_2/(1 - \beta_2)$,
$b = \beta_1^2/(1 - \beta_1^2)$. So its clock is $\log (q^2 - 1) + 2 x (\tau - b) \log (1 -
1/q^2)$, and a term for $v$'s fluctuations. The slope of $\log (q^2 - 1)$ alone falls short of $2 x$
by 9 % at $2 x \tau = 0.2$. Left are terms of second order in $2 x \tau$, 1 %.
At $C = 256$ the mean of $1/|p|$, and the rate with it, are larger by $3/(4 C)$, 0.3 %.

Measured: how far $\log(q^{2 + 2 \nu} - 1)$, $q = |w|$ over its limit, of the mean over chains
falls, in six groups of chains; for normalized steps the clock.
""",
    subjects=relaxation_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def later_relaxation(subject):
    """The rate at which the distance to the limit falls, against the law, with its interval."""
    if isinstance(subject, MuonFromAbove):
        return _fallen(subject.norms, subject.limit, 2, -2 * np.log1p(-subject.x), 2.0)
    hyper, norms = dict(subject.hyper), subject.path.norms
    if subject.optimizer is nn.NormalizedSGD:
        at = laws.coupled_equilibrium("NormalizedSGD", **hyper)
        first, last = laws.adam_clock(norms[[0, -1]] / at.norm)
        rate = laws.adam_relaxation(at.small)
        return judge((first - last) / (len(norms) - 1), rate, 2 * at.small, tolerance=0.02)
    if subject.optimizer is nn.AdamP:
        return _lagging(subject)
    at, power = _later(subject.optimizer, hyper), laws.norm_power(subject.optimizer.__name__)
    wrong = 2.0 if power == 2 else 0.5
    return _fallen(norms, at.norm, power, -power * np.log1p(-at.small), wrong)


def _lagging(subject):
    """Judge AdamP's clock; the wrong law: that log(q^2 - 1) falls by the rate."""
    hyper, norms = dict(subject.hyper), subject.path.norms
    at = _later(nn.AdamP, hyper)
    squares = ((norms[[0, -1]] / at.norm) ** 2).reshape(2, 6, -1).mean(axis=2)
    first, last = laws.projected_clock(np.sqrt(squares), at.small, hyper["beta1"], hyper["beta2"])
    plain, steps = np.log(squares - 1), len(norms) - 1
    found, short = (first - last) / steps, (plain[0] - plain[1]) / steps
    rate = -2 * np.log1p(-at.small)
    wrong = rate * float((found / short).mean())
    told = {"slope of log(q^2 - 1) over the law": float(short.mean() / rate)}
    return judge(found, rate, wrong, tolerance=0.025, **told)


def _fallen(norms, limit, power, rate, wrong):
    """Judge the rate at which |w|^power comes to its limit; wrong: times the law."""
    q = (norms[[0, -1]] / limit) ** power
    groups = q.reshape(2, 6, -1).mean(axis=2)
    first, last = np.log(groups - 1)
    found = (first - last) / (len(norms) - 1)
    return judge(found, rate, wrong * rate, tolerance=0.03)


# The loss


@dataclasses.dataclass(frozen=True)
class Signal:
    """SGD on the walk with a signal: the loss (h/2)(1 - u_1^2) of the direction u, and noise.

    |w| starts at twice its limit.  intrinsic: eta decay.  s: of the noise.
    """

    seed: int
    backend: str
    intrinsic: float
    rate: float = 0.1
    curvature: float = 4.0
    dims: int = 512
    chains: int = 32
    arithmetic: str = "float64"

    @property
    def name(self):
        return f"walk, 1/{1 / self.intrinsic:g}"

    @property
    def limit(self):
        """eta/|w|^2 at equilibrium, for s = 1."""
        return float(laws.equilibrium_rate("SGD", self.rate, self.intrinsic / self.rate))

    def stationary(self, rate):
        """The mean loss where the effective rate is `rate` for long.

        Across the minimum v' = (1 - Phi h) v + Phi xi: E|v|^2 (2 Phi h - Phi^2 h^2) = Phi^2, of
        which the loss is h/2.
        """
        return rate / (4 - 2 * rate * self.curvature)

    def law(self, steps):
        """The mean loss before each step, by its moments and those of |w|^2."""
        norm = 2 * math.sqrt(self.rate / self.limit)
        start = self.stationary(self.rate / norm**2)
        decay = self.intrinsic / self.rate
        given = self.rate, decay, self.curvature, norm, start, steps, self.dims
        return laws.loss_near_minimum(*given)


@functools.lru_cache(maxsize=4)
def _losses(subject, steps):
    """Return the loss before each step, (steps, chains)."""
    rng, wing = np.random.default_rng([subject.seed, 11]), backend.get(subject.backend)
    eta, h, C = subject.rate, subject.curvature, subject.dims
    norm = 2 * math.sqrt(eta / subject.limit)
    w = rng.standard_normal((C, subject.chains))
    apart = 2 * subject.stationary(eta / norm**2) / h
    w[0] = 0
    w *= math.sqrt(apart) / np.sqrt((w * w).sum(axis=0))
    w[0] = math.sqrt(1 - apart)
    model = SimpleNamespace(parameters={"w": wing.asarray(w * norm)}, backend=wing)
    optimizer = nn.SGD(eta, weight_decay=subject.intrinsic / eta)
    losses = np.empty((steps, subject.chains))
    for step in range(steps):
        w = wing.to_numpy(model.parameters["w"])
        length = np.sqrt((w * w).sum(axis=0))
        u = w / length
        losses[step] = h / 2 * (1 - u[0] ** 2)
        g = rng.standard_normal(w.shape) / math.sqrt(C - 1)
        g[0] -= h * u[0]
        g -= u * (u * g).sum(axis=0)
        optimizer.step(model, {"w": wing.asarray(g / length)})
    return losses


# When two losses are compared, from when on to when, in units of 1/(eta decay); and the starts.
_EARLY, _LATE, _FACTOR = (0.15, 0.25), (2.0, 2.5), 3.0


@dataclasses.dataclass(frozen=True)
class Paired:
    """Networks on the digits from w and from 3 w, with the same batches."""

    seed: int
    backend: str
    intrinsic: float = 1 / 128
    rate: float = 0.25
    pairs: int = 8
    name: str = "networks"
    arithmetic: str = "float64"

    def losses(self, pair, factor):
        """Return the loss of each batch until `_LATE`, from `factor` times the weights."""
        data, seed = digits(dtype=np.float64), [self.seed, pair]
        block = [nn.Dense(12, bias=False), nn.BatchNorm(0.0), nn.ReLU()]
        network = nn.Network(
            [*block, *block, nn.Dense(10)], data.X_train.shape[1:], rng=seed, dtype="float64"
        ).on(self.backend)
        names = invariant_weights(network)
        network = times(network, names, factor)
        decay = self.intrinsic / self.rate
        own = nn.Group(names, learning_rate=self.rate, weight_decay=decay)
        optimizer, rng, losses = nn.SGD(0.0, groups=[own]), np.random.default_rng(seed), []
        for _ in range(int(_LATE[1] / self.intrinsic)):
            rows = rng.integers(0, len(data.X_train), 16)
            batch = data.X_train[rows], data.y_train[rows]
            loss, gradients, network.state = network.loss_and_gradients(*batch)
            optimizer.step(network, gradients)
            losses.append(float(loss))
        return np.array(losses)

    @functools.cached_property
    def ratios(self):
        """The loss from 3 w over that from w, early and late, (2, pairs)."""
        windows = [slice(*(int(t / self.intrinsic) for t in both)) for both in (_EARLY, _LATE)]
        found = []
        for pair in range(self.pairs):
            one, other = (self.losses(pair, factor) for factor in (1.0, _FACTOR))
            found.append([other[w].mean() / one[w].mean() for w in windows])
        return np.transpose(found)


def fast_subjects(options):
    """Return the walk with a signal at two intrinsic rates, and networks."""
    wing = "reference" if options.backend == "cuda" else options.backend
    walks = [Signal(options.seed, wing, 1 / k) for k in (1024, 4096)]
    return [*walks, Paired(options.seed, wing)]


@follower(
    id="fast-equilibrium",
    statement=r"L(t) = L_\infty \left(1 + (G_0/G_\infty - 1) e^{-4 \lambda_e t}\right)^{-1/2}, \; "
    r"G = |w|^4, \; \lambda_e = \eta \lambda_2: \text{ the loss is at equilibrium after } "
    r"O(1/\lambda_e) \text{ steps}",
    source="Li, Lyu & Arora 2020 (the fast equilibrium conjecture), measured",
    cite="LLA20",
    assumptions=(
        "walk: SGD near a minimum of curvature h on the sphere, from twice the norm of equilibrium",
        "networks: batch norm, the digits, from w and 3 w with the same batches, t = 2/lambda_e",
    ),
    control="walk: no dependence on |w_0|, the loss of equilibrium from the first 1/eta steps on; "
    "networks: the same comparison at t = 1/(5 lambda_e)",
    derivation=r"""
Where noise prevails the loss follows the effective rate: across the minimum $v' = (1 - \Phi h) v +
\Phi \xi$ has $E|v|^2 = \Phi s^2/(2 h - \Phi h^2)$, $L = h E|v|^2/2$, after $1/(\Phi h)$ steps, of
order $\lambda_e^{-1/2}$. $\Phi = \eta/|w|^2$ itself needs $1/(4 \lambda_e)$ steps (intrinsic-rate):
it is the slower one, and what is left of the start is $\Phi/\Phi_\infty = (G/G_\infty)^{-1/2}$.
The time does not depend on $\eta$ but through $\lambda_e$, nor is it exponential in anything. That
is the leading form; of order $\sqrt{\lambda_e}$, the gradient of the loss itself adds $\Phi h/(2 -
\Phi h)$ to $s^2$, which makes $|w|$ larger and $\Phi_\infty$ smaller, and $L$ lags behind $\Phi$ by
$\dot \Phi/(2 \Phi^2 h)$. Measured is the loss over both means, iterated: $|w'|^2 = a^2 |w|^2 S$ and
the recursion of $E |v|^2$ (laws.loss_near_minimum). The leading form is up to 2.5 % above it.

Networks: the ratio of the losses, over 64 steps, of runs from $3 w$ and $w$. $G_0$ is 81 times as
large, of which $81 e^{-8} = 0.03$ is left at $t = 2/\lambda_e$, 1.4 % in $\Phi$: inside the 6 % to
which this is told. A conjecture for
networks is not proved by one: it could have failed here, and did not.
""",
    subjects=fast_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def fast_equilibrium(subject):
    """The loss over the law (networks: from 3 w over from w), with its interval."""
    if isinstance(subject, Paired):
        early, late = subject.ratios
        left = _FACTOR**4 * math.exp(-4 * _LATE[0]) / 2
        told = {"early": float(early.mean()), "open: what the loss makes of Phi's rest": left}
        return judge(late, 1.0, 1 / float(early.mean()), tolerance=0.06, **told)
    steps, found = int(0.85 / subject.intrinsic), []
    losses, law = _losses(subject, steps), subject.law(steps)
    for tau in (0.25, 0.5, 0.75):
        at = int(tau / subject.intrinsic)
        near = slice(int(0.9 * at), int(1.1 * at))
        mean = losses[near].mean(axis=0) / law[near].mean()
        share = (1 + 15 * np.exp(-4 * tau)) ** -0.5
        leading = subject.stationary(subject.limit * share) / law[near].mean()
        told = {"tau": tau, "leading form over law": float(leading)}
        found.append(judge(mean, 1.0, 1 / share, tolerance=0.04, **told))
    return together(*found)
