r"""Training: `fit` is the steps that it is made of, and they lower the loss."""

import numpy as np

import minimal_nn as nn
from theory.claim import UNDERFLOWS, claim
from theory.measures.bits import bit_exact, differing
from theory.subjects.networks import to_numpy

_EPOCHS, _BATCH, _SEED = 2, 12, 5
_HYPER = {"learning_rate": 0.0625, "momentum": 0.75, "l2": 2.0**-10}


def _fitted(network, X, targets):
    """Return a copy after `fit`, its optimizer, and the losses of its steps."""
    network, optimizer = network.with_parameters(), nn.Momentum(**_HYPER)
    history = nn.fit(
        network,
        optimizer,
        X,
        targets,
        epochs=_EPOCHS,
        batch_size=_BATCH,
        rng=_SEED,
        progress=False,
    )
    return network, optimizer, history.loss


def _stepped(network, X, targets):
    """Return the same, of steps written out: every epoch in a new order, batch after batch."""
    network, optimizer, losses = network.with_parameters(), nn.Momentum(**_HYPER), []
    rng = np.random.default_rng(_SEED)
    for _ in range(_EPOCHS):
        order = rng.permutation(len(X))
        for start in range(0, len(X), _BATCH):
            rows = order[start : start + _BATCH]
            loss, gradients, state = network.loss_and_gradients(X[rows], targets[rows])
            optimizer.step(network, gradients)
            network = network.with_parameters({}, state)
            losses.append(float(loss))
    return network, optimizer, losses


def _numbers(network, optimizer, losses):
    """Return all that training changes, as arrays."""
    buffers = {name: slots["buffer"] for name, slots in optimizer.state.items()}
    return [
        np.asarray(losses, dtype=float),
        *(
            array
            for arrays in (network.parameters, network.state, buffers)
            for _, array in sorted(to_numpy(network, arrays).items())
        ),
    ]


@claim(
    id="training-is-its-steps",
    statement=r"\mathrm{fit} = \text{for every batch of a new order: } g = \nabla L(w), \; v' = "
    r"\rho v + g + 2 \lambda w, \; w' = w - \eta v'; \qquad L(w_T) < L(w_0)",
    source="the definition; the order of batches is this project's",
    cite="defined",
    assumptions=("momentum with L2", "a rate that is small enough for the loss to fall"),
    control="nothing is trained: parameters, statistics and buffers stay",
    derivation=r"""
Claims about training runs, equilibria among them, are claims about these steps: a training loop
that did nothing, or that took a batch twice, would keep every symmetry. The same steps written out
one by one, with the same order of the examples, must leave the same bits in every parameter,
running statistic and buffer, and the same losses, also where a wing runs an epoch in one compiled
loop. And the loss of the batch that was learned must have fallen.
""",
    unfit=(
        (UNDERFLOWS, "float16"),
        ("its steps are those of step-by-definition; a loop adds nothing to them", "ball symbol"),
    ),
)
def training_is_its_steps(subject):
    """Numbers of parameters, statistics, buffers and losses that differ after two epochs."""
    network, data = subject.untrained, (subject.X, subject.targets)
    fitted, stepped = (train(network, *data) for train in (_fitted, _stepped))
    pairs = zip(_numbers(*fitted), _numbers(*stepped), strict=True)
    wrong = sum(differing(a, b) for a, b in pairs)
    before, after = (float(n.loss(*data)) for n in (network, fitted[0]))
    still = [
        differing(array, to_numpy(fitted[0], fitted[0].parameters)[name])
        for name, array in to_numpy(network, network.parameters).items()
    ]
    wrong += not after < before
    return bit_exact(wrong, sum(still), {"loss before": before, "loss after": after})
