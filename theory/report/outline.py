"""What `python -m theory` prints: a line for each claim, in plain words, under its chapter."""

import textwrap

from theory.numbers.arithmetic import EXACT
from theory.report import table

CHAPTERS = {
    "derivative": "The gradient",
    "definitions": "The definitions",
    "invariance": "What the network computes",
    "gradients": "Its gradients",
    "effective_rate": "The effective learning rate",
    "optimizers": "Every optimizer's",
    "second_order": "Second-order methods",
    "norm_dynamics": "How |w| moves",
    "stored": "How |w| moves, with a buffer",
    "flow": "In the limit of small steps",
    "equilibrium": "Equilibrium of growth and decay, on a random walk",
    "rotation": "The angle between successive w",
    "in_training": "Equilibrium in training",
    "remedies": "Remedies",
    "gamma_beta": "Scale and shift after normalization",
    "followers": "After 2017",
}
# At most 46 characters, so that a line has room for the figures.
SENTENCES = {
    "gradient-of-loss": "the gradient is the gradient of the loss",
    "hessian-symmetric": "its derivative is symmetric, as gradients' are",
    "loss-is-a-mean": "the loss is the mean that it is defined to be",
    "running-statistics": "running averages are weighted means of batches",
    "step-by-definition": "optimizers step as their papers define",
    "training-is-its-steps": "training is its steps, one after the other",
    "scale-invariance": "outputs do not feel the scale of w",
    "penalty-rescaling": "rescaled, another penalty and the same loss",
    "eps-rescaling": "scaling w by a is dividing eps by a^2",
    "gradient-scaling": "gradients shrink as w grows",
    "gradient-orthogonality": "the gradient is orthogonal to w",
    "effective-learning-rate": "SGD feels eta/|w|^2 alone, along whole runs",
    "direction-rate": "one step turns w by eta/((1 - x) |w|^2) g",
    "optimizer-symmetry": "rescaled runs are one run, to the last bit",
    "step-exponent": "an optimizer's step goes as |w|^-nu",
    "step-on-one-gradient": "steps on one gradient sum up as the law says",
    "adam-eps": "where eps exceeds |g|, Adam scales like SGD",
    "hessian-scaling": "the Hessian shrinks as |w|^-2",
    "hessian-radial": "along w the Hessian gives back -gradient",
    "newton-step": "an undamped Newton step leads from w to 2 w",
    "gauss-newton-null": "Gauss-Newton and Fisher map w to 0",
    "second-order-symmetry": "second-order steps grow in proportion to w",
    "norm-growth": "|w'|^2 = (1 - x)^2 |w|^2 + eta^2 |g|^2",
    "norm-with-memory": "what w and the buffer store obeys its law",
    "gradient-flow": "gradient flow keeps |w|, decay shrinks it",
    "equilibrium-norm": "|w| settles where growth and decay balance",
    "equilibrium-angle": "there w turns at a steady rate",
    "equilibrium-rate": "there decay has set the effective rate",
    "relaxation-time": "the time to get there follows the law",
    "equilibrium-exponents": "its powers of eta and decay follow the law",
    "growth-law": "without decay |w|^4 grows linearly (Adam: ^2)",
    "rotation-per-step": "a step's angle follows from |w| and |w'|",
    "equilibrium-in-training": "trained networks settle by the same laws",
    "fixed-norm-sgd": "with |w| held, decay is a change of eta",
    "fixed-norm-momentum": "the same with momentum, below a threshold",
    "fixed-norm-adam": "decay turns Adam's signs where it exceeds |g|",
    "weight-norm-grows": "weight normalization lets |v| grow",
    "lars-removes-scale": "LARS is the same from every scale of w",
    "gamma-beta": "of gamma and beta only the last are penalized",
    "exponential-schedule": "decay is a growing learning rate, to the bit",
    "any-schedule": "any schedule of decay is one of the rate",
    "momentum-schedule": "so with momentum, its buffer corrected",
    "hoffer-correction": "decay as a correction of the rate, made exact",
    "schedule-law": "decay and schedule are one number in the rate",
    "rate-cannot-grow": "a schedule along which no rate grows",
    "adamc": "decay that follows the rate keeps |g|/|w|",
    "lion-norm": "Lion settles by the arcsine law",
    "lion-turn": "and turns by it",
    "sign-equilibrium": "signs with decay: |w| and turn at any x",
    "projected-norm": "SGDP and AdamP settle at a smaller |w|",
    "muon-norm": "Muon settles by its factors' correlations",
    "muon-turn": "and turns by them",
    "coupled-equilibrium": "so do normalized and sign steps with L2",
    "muon-polynomial": "with Newton-Schulz it settles lower",
    "later-relaxation": "the time to get there follows the law, too",
    "fast-equilibrium": "the loss settles within 1/(eta decay) steps",
    "published-turns": "published angles hold for small x alone",
    "published-norms": "and so do published norms",
    "rotational-step": "a rotational variant's angle is what is set",
    "rotational-variant": "a rotation that is set falls short of SGD's",
    "hyperball-turn": "fixed steps turn by less where they remember",
    "forced-normalization": "an eps beside |w| leaves w short of its norm",
    "gradient-weight-ratio": "|g|/|w| is set by decay over rate",
    "adamw-covariance": "AdamW's average is not orthogonal to w",
    "layers-turn": "AdamW turns layers alike, Adam + L2 does not",
    "intrinsic-rate": "|w|^4 follows the intrinsic rate",
    "adamw-average": "AdamW's w is an average of its updates",
    "momentum-sum": "momentum adds to |w| what it remembers",
    "projected-steps": "projected steps are orthogonal to w",
    "projected-angle": "steps on the sphere turn by arctan eta",
    "later-symmetry": "the later optimizers' runs are one run",
    "transplanted-norms": "decay acts on |w| alone, up to 1/(1 - x)",
    "effective-damping": "decay lowers a second-order method's damping",
    "sgd-as-adam": "SGD with decay is an Adam on the sphere",
    "translation-oscillator": "with momentum they obey a recursion",
    "norm-oscillator": "with momentum |w|^2 is a driven oscillator",
    "translation-law": "sums over classes shrink by decay alone",
    "rescale-law": "ReLU's two sides keep their difference",
    "gain-and-matrix": "gain and next matrix keep their difference",
    "homogeneous-network": "without biases f is of degree M in theta",
    "layers-share-product": "and <W, g> is the same in all layers",
    "sphere-threshold": "on the sphere the threshold is 2/sum a",
    "decay-never-settles": "decay without noise never settles",
    "sphere-regimes": "above it F is 1 - (threshold/rate) of random",
    "period-edge": "F rises where the rate exceeds 2/curvature",
    "decay-period": "and its period is of order 1/(eta decay)",
    "hessian-indefinite": "with a gradient there is no convexity in w",
}
_WIDTHS = (23, 46, 8, 8)
_EXACT_BITS = "a bound of 0 leaves nothing to rounding: such claims hold to the last bit"


def chapter(claim):
    """Return the title of a claim's chapter."""
    name = claim.measure.__module__.split(".")[2]
    return CHAPTERS.get(name, name.replace("_", " "))


def sentence(claim):
    """Return a claim in plain words; one that has none yet is named by its id."""
    return SENTENCES.get(claim.id, claim.id.replace("-", " "))


def listing(claims):
    """Return a line for each claim, its id and what it says; --explain says the rest."""
    return [f"{claim.id:25s} {sentence(claim)}" for claim in claims]


def errata(claims):
    """Return what is wrong in sources, each with the claim that measures it."""
    indent = {"initial_indent": "    ", "subsequent_indent": "    "}
    found = ((c.id, textwrap.wrap(c.erratum, table.WIDTH, **indent)) for c in claims if c.erratum)
    return [line for id, lines in found for line in (id, *lines)]


def header(count, arithmetic=None):
    """Return the first lines for a number of claims in an arithmetic (None: floats)."""
    return [
        f"claims to verify: {count}; of each the worst subject is shown (--table: every subject)",
        table.header(arithmetic)[0] if arithmetic in EXACT else _EXACT_BITS,
        _line(("claim", "what it says", "measured", "bound", "verdict")),
        "-" * table.WIDTH,
    ]


def _line(cells):
    fixed = " ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False))
    return f"{fixed} {cells[-1]}".rstrip()


def worst(verdicts):
    """Return the verdict that fails or, if none does, comes closest to its bound."""

    def severity(verdict):
        m = verdict.measurement
        measured, bound = float(m.measured), float(m.bound)
        share = 0.0 if measured == 0 else measured / bound if bound else float("inf")
        return not verdict.verified, share

    return max(verdicts, key=severity)


def lines(verdicts):
    """Return a claim's line and, where it fails, every subject's and the next command to type."""
    shown = worst(verdicts)
    claim, m = shown.claim, shown.measurement
    cells = (claim.id, sentence(claim), table.number(m.measured), table.number(m.bound), shown.word)
    found = [_line(cells)]
    if not all(verdict.verified for verdict in verdicts):
        found += [f"    {line}" for line in _subjects(verdicts)]
        found.append(f"    next: python -m theory --explain {claim.id}")
    return found


def _subjects(verdicts):
    yield "subject                  measured bound    control  verdict"
    for verdict in verdicts:
        _, _, subject, measured, bound, control, word = table.row(verdict)
        yield f"{subject:24s} {measured:8s} {bound:8s} {control:8s} {word}"
