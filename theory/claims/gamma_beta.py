r"""gamma and beta: which of them an L2 penalty really regularizes (the paper's discussion)."""

import functools

import numpy as np

import minimal_nn as nn
from minimal_nn.data import digits
from theory.claim import EXPRESSIONS, UNDERFLOWS, claim
from theory.measures.bits import bit_exact, differing, limits
from theory.measures.exact_runs import rescaled_runs
from theory.measures.identity import Identity, size_of
from theory.measures.runs import plain_sgd, rescaled_optimizer, run
from theory.numbers.balls import Balls
from theory.subjects.exact import BATCH, FACTOR, WIDTH, ExactSubject
from theory.subjects.networks import NetworkSubject, scores, times, to_numpy, weight_groups

_STEPS = 8


@functools.lru_cache(maxsize=16)
def affine_subject(normalization, dtype, *, backend="reference", seed=0, width=24, batch=48):
    """Return a subject whose first (gamma, beta) a later normalization absorbs.

    Dense layers before a normalization have no bias: layer norm does not absorb it.  gamma and beta
    are drawn, since beta = 0 would be its own multiple.
    """
    norm = nn.BatchNorm if normalization == "batch" else nn.LayerNorm
    block = [nn.Dense(width, bias=False), norm(0.0), nn.ReLU()]
    data = digits(dtype=np.dtype(dtype))
    network = nn.Network(
        [*block, *block, nn.Dense(10)],
        input_shape=data.X_train.shape[1:],
        rng=seed,
        dtype=dtype,
        backend=backend,
    )
    rng = np.random.default_rng([seed, 1])
    drawn = {
        name: (1 + 0.2 * rng.standard_normal(array.shape)).astype(dtype)
        for name, array in to_numpy(network, network.parameters).items()
        if name.endswith((".gamma", ".beta"))
    }
    network = network.with_parameters(drawn)
    untrained = network.with_parameters()
    nn.fit(
        network,
        nn.SGD(0.05),
        data.X_train,
        data.y_train,
        epochs=1,
        batch_size=64,
        rng=seed,
        progress=False,
    )
    rows = np.random.default_rng(seed).permutation(len(data.X_train))[:batch]
    return NetworkSubject(normalization, network, untrained, data.X_train[rows], data.y_train[rows])


def gamma_beta_subjects(options):
    """Return networks with batch norm and layer norm; weight norm normalizes no activations."""
    return [
        affine_subject(normalization, dtype, backend=options.backend, seed=options.seed)
        for normalization in ("batch", "layer")
        for dtype in options.dtypes
    ]


def affine_groups(network):
    """Return the invariance groups that are not made of weights: gamma and beta of inner layers."""
    weights = weight_groups(network)
    return [group for group in network.invariance_groups() if group not in weights]


def _run(subject, network, group, a, start_state):
    """Run SGD with (a^2 eta, lambda/a^2) for the group, its absorbing layer's statistics scaled."""
    network = times(network, group.parameters, a)
    state = {}
    for local, power in (("mean", 1), ("var", 2)):
        name = f"{group.absorbed_by}.{local}"
        if name in network.state:
            state[name] = start_state[name] * network.dtype.type(a**power)
    optimizer = rescaled_optimizer(plain_sgd(), dict.fromkeys(group.parameters, a))
    return run(subject, network.with_parameters({}, state), optimizer, steps=_STEPS)


def _differing_runs(group, original, scaled, a):
    wrong = differing(scaled.losses, original.losses)
    for name, array in original.parameters.items():
        factor = array.dtype.type(a if name in group.parameters else 1.0)
        wrong += differing(scaled.parameters[name], array * factor)
    return wrong


@claim(
    id="gamma-beta",
    statement=r"y(c \gamma_l, c \beta_l) = y(\gamma_l, \beta_l) \text{ for inner layers: } "
    r"\inf_c L + \lambda c^2 (|\gamma_l|^2 + |\beta_l|^2) = L; \quad "
    r"\text{L2 regularizes the last } (\gamma, \beta) \text{ alone}",
    source="van Laarhoven 2017, discussion (which leaves it open); derived here",
    cite="vL17 s7",
    assumptions=(
        "every path from (gamma, beta) to the loss goes through positively homogeneous operations",
        "(ReLU, max pooling, a linear map without bias) into batch norm, or layer norm",
        "eps = 0; one common factor c > 0 for the layer's gamma and beta",
    ),
    control="the last (gamma, beta), which no normalization follows, and gamma without beta",
    derivation=r"""
The output of the layer is $\gamma \hat z + \beta$; multiplied by $c > 0$ it passes ReLU
(positively homogeneous of degree 1) and a linear map, and the next normalization divides by $c$
again. So $(\gamma_l, \beta_l)$ is a scale-invariant group like the weights: its penalty can be
made as small as one likes at the same loss, it sets an effective learning rate, and step by step it
obeys norm-with-memory, which is measured for it too: that is the law of equilibrium with memory for
the mean over any stretch at whose ends the same is stored. That training comes to such a stretch,
or that its gradients are without memory ($s^2$ alone), is not said of so few numbers, on which the
layers before and after act as they learn. After the last normalization nothing divides: there
$\lambda$ does restrict the function. $\gamma$ alone is no such group, and under weight norm, which
normalizes weights and not activations, there is none.

Measured: scores at $c = 2^k$, and whole runs with $(c^2 \eta, \lambda/c^2)$ for the group, must
agree bit by bit.
""",
    subjects=gamma_beta_subjects,
    unfit=(
        (UNDERFLOWS, "float16"),
        (EXPRESSIONS, "symbol"),
    ),
)
def gamma_beta(subject):
    """Numbers of runs from 2^k (gamma, beta) of an inner layer that are not those of the plain
    run.
    """
    least, _ = limits(subject)
    wrong, controls = 0, []
    for network in subject.states:
        plain = scores(network, subject.X)
        (group,) = affine_groups(network)
        for k in (-least, -1, 1, least):
            scaled = times(network, group.parameters, 2.0**k)
            wrong += differing(scores(scaled, subject.X), plain)
        state = to_numpy(network, network.state)
        original = _run(subject, network, group, 1.0, state)
        for a in (2.0**-6, 4.0):
            wrong += _differing_runs(group, original, _run(subject, network, group, a, state), a)
        last = [n for n in network.parameters if n.endswith((".gamma", ".beta"))][-2:]
        for names in (last, group.parameters[:1]):
            controls.append(differing(scores(times(network, names, 2.0), subject.X), plain))
    details = {
        "group": ", ".join(group.parameters),
        "regularized": ", ".join(last),
        "tried at k": [-least, -1, 1, least],
    }
    return bit_exact(wrong, min(controls), details)


def _exact_subjects(options):
    """Return networks whose first (gamma, beta) a later normalization absorbs, in balls."""
    balls = Balls(options.bits)
    results = []
    for normalization in ("batch", "layer"):
        floats = affine_subject(
            normalization, "float64", seed=options.seed, width=WIDTH, batch=BATCH
        )
        results.append(
            ExactSubject(
                normalization,
                balls,
                tuple(network.converted(balls.array, object) for network in floats.states),
                None,
                balls.array(floats.X),
                floats.targets,
                balls.number(FACTOR),
            )
        )
    return results


@gamma_beta.exactly(subjects=_exact_subjects)
def _(subject):
    identity = Identity()
    for network in subject.states:
        plain = scores(network, subject.X)
        size = size_of(subject, plain)
        (group,) = affine_groups(network)

        def difference(names, network=network, plain=plain):
            return scores(times(network, names, subject.a), subject.X) - plain

        identity.vanishes(difference(group.parameters), size)
        factors = dict.fromkeys(group.parameters, subject.a)
        identity.all_vanish(rescaled_runs(subject, network, plain_sgd(), factors))
        last = [n for n in network.parameters if n.endswith((".gamma", ".beta"))][-2:]
        for names in (last, group.parameters[:1]):
            identity.remains(difference(names), size)
    return identity
