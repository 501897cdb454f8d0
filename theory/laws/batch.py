r"""Batch size: what becomes of hyper-parameters where a batch holds k times as many examples.

Where a gradient is mostly noise, its mean square falls as 1/k.  A run then goes on as before, per
example, if each example moves w as far: by a mean that is k times as large per step, and a variance
that is as well.  For steps in proportion to the gradient that asks for k times the learning rate;
where they do not feel the gradient's length (degree 0) the mean grows by sqrt(k) alone, and so must
the rate.  Averages over steps become averages over as many examples: 1 - beta is k times as large.
Decay per step is k times as large too: one that is a part of the gradient stays as it is.

First order in the learning rate and in k (1 - beta), and as long as noise prevails: the squared
mean of the gradient far below its variance over the larger batch.  Momentum stays, whose 1/(1 -
rho) steps must be few; so do Lion's betas: a sign is taken of their average, and a step grows with
the average's mean over its root mean square, which they would change.
"""

from fractions import Fraction

from theory.laws.scaling import rate_power

# The power of the batch's size with which the learning rate grows.
_RATES = {
    "SGD": Fraction(1),
    "Momentum": Fraction(1),
    "Nesterov": Fraction(1),
    "RMSprop": Fraction(1, 2),
    "Adam": Fraction(1, 2),
    "AdamW": Fraction(1, 2),
    "SignSGD": Fraction(1, 2),
    "NormalizedSGD": Fraction(1, 2),
    "LARS": Fraction(1, 2),
    "Lion": Fraction(1, 2),
    "SGDP": Fraction(1),
    "AdamP": Fraction(1, 2),
    "Muon": Fraction(1, 2),
}


def batch_powers(optimizer: str) -> dict[str, Fraction]:
    r"""Return {hyper-parameter: the power of k that it takes where a batch is k times as large}.

    learning_rate: 1 for SGD, with momentum and projected (SGDP), 1/2 where the step does not feel
    the gradient's length.  weight_decay (or l2): 0.  decoupled_weight_decay: what is left of 1,
    since its product with the learning rate takes 1.  eps, which stands beside a gradient: -1/2;
    inside the root -1.  See the module for what is assumed.

    Raises ValueError for another optimizer: Adagrad's statistics are of all steps since the first,
    and Adadelta's steps are set by no learning rate.  Sources: Goyal et al. 2017 (SGD); Malladi et
    al. 2022 (Adam, RMSprop); the others ours.

    >>> str(batch_powers("SGD")["learning_rate"]), str(batch_powers("Adam")["learning_rate"])
    ('1', '1/2')
    """
    rate_power(optimizer)  # refuses an unknown name
    if optimizer not in _RATES:
        raise ValueError(
            f"optimizer: got {optimizer!r}, expected one whose step depends on the last steps "
            f"alone, at a learning rate: {', '.join(_RATES)}"
        )
    rate = _RATES[optimizer]
    return {
        "learning_rate": rate,
        "weight_decay": Fraction(0),
        "decoupled_weight_decay": 1 - rate,
        "eps": -Fraction(1, 2),
        "eps_inside_root": -Fraction(1),
    }
