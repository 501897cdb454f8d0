r"""`python -m theory --ask`, and a page of the guide: what practitioners ask, answered by claims.

Numbers are computed by the laws.  The questions are those of issues and forums of PyTorch, Keras,
timm, transformers and others.
"""

import re
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from theory import laws
from theory.report.table import WIDTH
from theory.yours.conversion import convert


class Question(NamedTuple):
    """A question, its answer (a function, as it computes), and the claims that it rests on."""

    question: str
    answer: Callable
    claims: tuple


def _gamma_beta():
    return (
        "Where a ReLU and another normalization follow, gamma and beta are scale-invariant as a "
        "pair: their decay penalizes nothing and sets their effective rate, as it does for w. Only "
        "those of the last normalization, whose output reaches the loss unnormalized, are really "
        "penalized. theory.audit and theory.torch.audit name them for a model."
    )


def _which_paper():
    return (
        "Not van Laarhoven 2017: it is about the weights before the normalization, whose decay it "
        "shows to act on the effective rate alone. It left gamma and beta out in its experiments, "
        "and says nothing that forbids their decay."
    )


def _stops_training():
    return (
        "No. Decay and gradient are two terms of a step; in a group with decay 0 the gradient's "
        "stays. With SGD w - 0.1 (g + 0 w) is w - 0.1 g."
    )


def _what_decays():
    return (
        "To whatever the optimizer's groups say: by default to everything, biases, normalization "
        "and embeddings included. theory.lint_decay(theory.torch.audit(...)) lists scale-invariant "
        "parameters without decay, gains and biases with it, and what timm's rule would do."
    )


def _no_reaction():
    at = laws.equilibrium("SGD", 0.1, 5e-4)
    tau = 1 / laws.relaxation_rate("SGD", 0.1, 5e-4)
    return (
        "Yes: outputs do not feel |w|, so decay cannot change them at once. It changes |w|, and "
        "through it the effective rate eta/|w|^2. At eta = 0.1 and decay 5e-4 (s = 1) |w| tends to "
        f"{at.norm:.2f}, in {tau:,.0f} steps; theory.audit tells the rate of a model."
    )


def _cancels():
    rate = laws.equilibrium_rate("SGD", 0.2, 5e-4) / laws.equilibrium_rate("SGD", 0.1, 5e-4)
    return (
        "Not the learning rate, but its unit: it counts as eta/|w|^2, so a times the initial "
        "weights is eta/a^2. In the long run decay sets |w|, and doubling eta multiplies the "
        f"effective rate by {rate:.3f}, not by 2."
    )


def _dies():
    halved = 3 / (2 * 0.1**2)  # |w|^4 from 1 to 4
    norm = laws.growth("SGD", 1.0, halved, 0.1)
    return (
        "It falls as t^(-1/2) and never stops: |w|^4 grows by 2 (eta s)^2 per step (momentum: with "
        f"eta/(1 - rho)). From |w| = 1 at eta = 0.1, s = 1 the rate eta/|w|^2 is halved after "
        f"{halved:.0f} steps, where |w|^2 is {norm**2:.2f}, and in the end it is 1/(s sqrt(2 t)), "
        "whatever eta was."
    )


def _renormalize():
    before = {"learning_rate": 0.1, "weight_decay": 5e-4}
    sgd, adam = (convert(name, rescale=0.5, **before) for name in ("SGD", "Adam"))
    plain, remembered = (laws.hyperball_turn(0.1, memory) for memory in (0.0, 0.9))
    return (
        "The function stays, the effective rate does not: w/a has a^2 times it under SGD, a times "
        "under Adam. theory.convert gives the settings with which the run goes on unchanged: after "
        f"halving w, eta = 0.1 and decay 5e-4 become {sgd['learning_rate']:.3g} and "
        f"{sgd['weight_decay']:.3g} (SGD, its momentum buffer times 2), "
        f"{adam['learning_rate']:.3g} and {adam['weight_decay']:.3g} (Adam + L2). At every step, "
        "with steps of a set length, it is Hyperball or Rotational: no decay is needed, and 1 - "
        f"cos of a step of 0.1 |w| is {plain:.3g}, with momentum 0.9 {remembered:.3g}."
    )


def _gradients_rise():
    x = np.array([0.1, 0.001]) * 0.01
    ratio = np.sqrt(x * (2 - x)) / np.array([0.1, 0.001])
    return (
        "|g| = s/|w|: as a schedule lowers eta, decay shrinks w towards a smaller equilibrium, and "
        "gradients grow, whatever the loss does. |g|/|w| tends to sqrt(decay (2 - x)/eta): at "
        f"decay 0.01 from {ratio[0]:.3f} at eta = 0.1 to {ratio[1]:.3f} at 0.001. Decay that "
        "follows the rate (AdamC: Schedule(f, decoupled_weight_decay=f)) keeps it."
    )


def _times_rate():
    given = {"learning_rate": 1e-3, "decoupled_weight_decay": 0.1}
    adamw = convert("AdamW", decay_as="independent_weight_decay", **given)
    sgd = convert("SGD", learning_rate=0.1, weight_decay=5e-4, decay_as="l2")
    return (
        "In PyTorch's and optax's AdamW yes, in its paper no: decay 0.1 at eta = 1e-3 shrinks w by "
        f"{adamw['independent_weight_decay']:.3g} a step. In SGD the penalty's gradient is always "
        f"multiplied by eta; weight_decay 5e-4 is the coefficient {sgd['l2']:.3g} of |w|^2 in the "
        "loss. What sets the effective rate is eta times decay: theory.convert translates."
    )


def _l2_or_decay():
    turns = [laws.equilibrium("Adam", 1e-3, 1e-2, s=s, dims=1000).turn for s in (1.0, 8.0)]
    w = laws.adamw_turn(1e-5, 0.9)
    return (
        "For SGD they are one thing, weight_decay = 2 l2. For Adam they are two: decoupled, all "
        f"layers turn alike (1 - cos = {w:.2g} at eta = 1e-3, decay 1e-2); in the gradient, layers "
        f"with 8 times the gradient turn {turns[0] / turns[1]:.2f} times less. PyTorch's Adam puts "
        "weight_decay into the gradient, its AdamW does not; their defaults are 0 and 0.01."
    )


def _momentum():
    plain, heavy = (laws.equilibrium(name, 0.1, 5e-4) for name in ("SGD", "Momentum"))
    return (
        "Gradient and penalty alike are multiplied by 1/(1 - rho), so decay does not gain on the "
        "gradient; but |w|^4 at equilibrium does: at rho = 0.9, eta = 0.1, decay 5e-4 |w| is "
        f"{heavy.norm / plain.norm:.3f} times SGD's, and 1 - cos of a step is x/(1 + rho), "
        f"{heavy.turn / plain.turn:.3f} of SGD's."
    )


def _jointly():
    sgd, adam = laws.rate_exponents("SGD"), laws.rate_exponents("Adam")
    larger = convert("AdamW", learning_rate=1e-3, decoupled_weight_decay=0.1, batch=(32, 128))
    return (
        f"The effective rate at equilibrium goes as eta^{sgd[0]:.2g} decay^{sgd[1]:.2g} for SGD "
        f"and AdamW, as eta^{adam[0]:.2g} decay^{adam[1]:.2g} for Adam + L2: it stays along eta "
        "decay, or eta^2 decay, constant. Search that product first, then along its curve, where "
        "only the way to equilibrium differs. For four times the batch AdamW's eta = 1e-3, decay "
        f"0.1 become {larger['learning_rate']:.3g} and {larger['decoupled_weight_decay']:.3g}."
    )


def _which_eps():
    leak = 1e-5 / (1e-4 + 1e-5)
    return (
        "One far below the smallest variance: eps is felt as eps/a^2 where w is scaled by a, and "
        "leaves the share eps/(v + eps) of what would be radial in the gradient, "
        f"{leak:.1%} for eps = 1e-5 beside a variance of 1e-4. In float16 squares below 6e-8 are "
        "0, and 1e-8 is no eps at all: take the statistics in float32. The claims print the range "
        "of scales that is exact in each dtype."
    )


def _gains():
    half = np.log(2) / (0.1 * 5e-4)
    return (
        "Such a gain is penalized unless a normalization follows: without a gradient decay halves "
        f"it in {half:,.0f} steps at eta = 0.1, decay 5e-4. A gain in front of a ReLU and a matrix "
        "shares its scale with it: decay drives gain^2 and the matrix's |row|^2 together, their "
        "difference dies out by (1 - x)^2 a step."
    )


def _per_what():
    return (
        "Per invariance group: before batch norm, or under weight norm, every unit's vector is a "
        "group of its own; before layer or RMS norm the matrix as a whole (with a bias) is one, "
        "and its units alone are none. network.invariance_groups() lists them; fixed_norm of an "
        "optimizer holds each unit's."
    )


QUESTIONS = (
    Question("Should batch norm's gamma and beta get weight decay?", _gamma_beta, ("gamma-beta",)),
    Question(
        "Which paper justifies leaving normalization parameters out of decay?",
        _which_paper,
        ("gamma-beta", "penalty-rescaling"),
    ),
    Question(
        "Does leaving parameters out of decay stop their training?",
        _stops_training,
        ("step-by-definition",),
    ),
    Question(
        "Is decay applied to biases, LayerNorm, embeddings?",
        _what_decays,
        ("gamma-beta", "gradient-orthogonality"),
    ),
    Question(
        "With batch norm my predictions do not react to learning rate or decay: is that right?",
        _no_reaction,
        ("scale-invariance", "penalty-rescaling", "relaxation-time"),
    ),
    Question(
        "Does batch norm cancel the learning rate?",
        _cancels,
        ("effective-learning-rate", "equilibrium-rate"),
    ),
    Question("Without L2, does the effective rate die?", _dies, ("growth-law", "norm-growth")),
    Question(
        "Can I renormalize the weights every k steps instead of AdamP or decay?",
        _renormalize,
        ("optimizer-symmetry", "later-symmetry", "projected-steps", "hyperball-turn"),
    ),
    Question(
        "Why does the gradient's norm rise while the loss falls?",
        _gradients_rise,
        ("gradient-scaling", "gradient-weight-ratio", "adamc"),
    ),
    Question(
        "Is decay multiplied by the learning rate?",
        _times_rate,
        ("step-by-definition", "adamw-average"),
    ),
    Question(
        "L2 penalty or weight decay, and which is the default?",
        _l2_or_decay,
        ("equilibrium-norm", "layers-turn"),
    ),
    Question(
        "Does momentum multiply the L2 penalty by 1/(1 - momentum)?",
        _momentum,
        ("equilibrium-norm", "equilibrium-angle", "momentum-sum"),
    ),
    Question(
        "Should learning rate and decay be tuned jointly, and along which curve?",
        _jointly,
        ("equilibrium-exponents", "intrinsic-rate"),
    ),
    Question(
        "Which eps for weight standardization, weight norm and float16?",
        _which_eps,
        ("eps-rescaling", "gradient-orthogonality"),
    ),
    Question(
        "Decay on ReZero, LayerScale and gain scalars?", _gains, ("gamma-beta", "gain-and-matrix")
    ),
    Question(
        "Is the unit norm one per weight vector or per matrix?",
        _per_what,
        ("scale-invariance", "fixed-norm-sgd"),
    ),
)


def lines(numbers=()):
    """Return the answers to some questions, by number from 1 on, or to all.

    Raises ValueError for a number that has no question.
    """
    for number in numbers:
        if not 1 <= number <= len(QUESTIONS):
            raise ValueError(f"--ask: got {number}, expected numbers from 1 to {len(QUESTIONS)}")
    found = []
    for number in numbers or range(1, len(QUESTIONS) + 1):
        asked = QUESTIONS[number - 1]
        ids = ", ".join(asked.claims)
        found += textwrap.wrap(f"{number}. {asked.question}", WIDTH, subsequent_indent="    ")
        for text in (asked.answer(), f"claims: {ids}"):
            options = {"initial_indent": "    ", "subsequent_indent": "    "}
            found += textwrap.wrap(text, WIDTH, break_on_hyphens=False, **options)
    return found


def markdown():
    """Return the questions as sections of a page in Markdown, with their answers and claims."""
    sections = []
    for number, asked in enumerate(QUESTIONS, 1):
        ids = ", ".join(f"`{id}`" for id in asked.claims)
        text = re.sub(r"([\\`*_<>$\[\]|#~])", r"\\\1", asked.answer())
        sections.append(f"## {number}. {asked.question}\n\n{text}\n\nClaims: {ids}\n")
    return "\n".join(sections)
