"""What the symbols of the claims mean, those of all claims and each claim's own."""

import re

from theory.report import letters

# In every claim that has no other meaning for them
SYMBOLS = {
    r"X": "examples, a row each",
    r"w": "the weights under which the loss is scale-invariant: a unit's, or a layer's",
    r"z": "X w, before the normalization",
    r"y": "outputs of the normalization, γ h + β",
    r"h": "z less its mean, over its standard deviation",
    r"\gamma": "scale after the normalization",
    r"\beta": "shift after the normalization",
    r"\mu": "mean of z",
    r"\sigma": "standard deviation of z",
    r"\varepsilon": "eps, added to the variance under the root of the normalization",
    r"L": "the loss, a mean over the batch; L_λ = L + λ |w|²",
    r"\nabla": "gradient with respect to the weights",
    r"g": "the gradient of the loss with respect to w",
    r"a": "the factor by which w is scaled",
    r"k": "a = 2ᵏ",
    r"c": "a factor > 0",
    r"\eta": "learning rate",
    r"\eta_{eff}": "effective learning rate: how fast the direction of w moves",
    r"\lambda": "coefficient of the penalty λ |w|²",
    r"\lambda_2": "2 λ, the weight decay of the frameworks",
    r"\lambda_{dec}": "AdamW's decoupled weight decay",
    r"\rho": "momentum",
    r"\beta_1": "decay of Adam's first moment",
    r"\beta_2": "decay of Adam's second moment",
    r"\nu": "exponent of a step's length: |p| ∝ |w|^(−ν)",
    r"p": "the optimizer's step, before the learning rate",
    r"x": "η λ₂, the part of w that decay takes away in a step",
    r"x_e": "η λ₂/V, the same for Adam with L2",
    r"s": "root of E |w|² |g|²: the gradient's length where |w| = 1",
    r"C": "number of weights in w",
    r"r": "|w|",
    r"E": "mean over steps",
    r"V": "root of the mean of Adam's second moment",
    r"\kappa": "(1 − β₁)/(1 + β₁)",
    r"\tau": "time in steps until a distance has fallen to 1/e",
    r"\Phi": "effective learning rate, with its constant",
    r"\phi": "angle of a step",
    r"u": "unit round-off, half of the gap between 1 and the next number",
    r"H": "the Hessian, the derivative of the gradient",
    r"J": "derivative of the scores with respect to w",
    r"G": "the Gauss-Newton matrix",
    r"F": "the Fisher matrix",
    r"\ell": "loss of one example",
    r"\top": "transposed",
    r"\dot": "derivative of the loss by y",
    r"\angle": "angle between two vectors",
    r"\langle": "inner product, the sum of the products of the entries",
}
_ADAM_EPS = {r"\varepsilon": "eps in the optimizer's denominator"}
_DIRECTION = {r"d": "a direction in the space of a parameter"}
_STATIONARY = {r"a": "1 − x", r"v": "momentum's buffer; Adam's second moment", r"B": "|v′|²"}
_ROUNDED = {r"\gamma": "with an index n: n u/(1 − n u), what n roundings make at most"}
_DECAYED = {r"a": "1 − η λ₂, the factor by which decay shrinks w in a step"}
_SIGN_WALK = {
    **_DECAYED,
    r"S": "sum over the memory of a step's sign",
    r"R": "autocovariance of c",
    r"c": "what the sign is taken of; with an index, the correlation of signs",
    r"k": "steps between two of them",
}
_MATRIX_WALK = {
    **_DECAYED,
    r"W": "a matrix of weights",
    r"\mu": "Muon's momentum",
    r"f": "correlation of polar factors over that of their matrices",
    r"S": "sum of the correlations over the memory; U S V, the momentum's singular parts",
    r"V": "singular vectors of the momentum",
    r"c": "correlation of steps",
    r"k": "steps between two of them",
    r"r": "a correlation",
}
_TOY = {
    r"F": "the loss of sphere-threshold",
    r"a": "how much a pair counts: its curvature on the sphere",
    r"\theta": "angle of a pair to the minimum",
}
_ERRORS = {r"e": "rounding errors of the update"}
OWN = {
    "gradient-of-loss": {
        **_DIRECTION,
        r"h": "a small step",
        r"i": "the root of −1",
        r"e": "rounding errors",
    },
    "hessian-symmetric": {r"h": "a small step", r"i": "the root of −1", r"e": "unit vectors"},
    "loss-is-a-mean": {
        r"s": "scores: i the example, j the class",
        r"t": "label or target of an example",
        r"N": "number of examples",
        r"K": "number of scores of an example",
        r"e": "Euler's number",
    },
    "running-statistics": {
        r"r": "running statistic",
        r"b": "statistic of a batch",
        r"m": "weight of a new batch",
        r"n": "numbers for each unit",
        r"T": "batches seen",
        r"v": "variance",
    },
    "step-by-definition": {
        **_ADAM_EPS,
        r"\beta": "weight of the past in a mean",
        r"\overline": "weighted mean over the past",
        r"k": "a step of the past",
        r"\delta": "decay of RMSprop's mean square",
    },
    "penalty-rescaling": _ROUNDED,
    "training-is-its-steps": {r"v": "momentum's buffer", r"T": "number of steps"},
    "gradient-orthogonality": {r"v": "variance of z of a unit; under weight norm |v|² of its v"},
    "direction-rate": {r"u": "w/|w|, the direction", r"v": "weights of the same direction"},
    "optimizer-symmetry": {
        **_ADAM_EPS,
        r"u": "Adadelta's mean square of its own steps",
        r"s": "mean square of the gradients",
    },
    "step-exponent": {r"A": "a factor that the direction sets"},
    "step-on-one-gradient": {
        **_ADAM_EPS,
        r"\beta": "RMSprop's decay of its second moment",
        r"s": "sum or mean of squares of the gradients",
        r"t": "number of steps on the same gradient",
        r"v": "momentum's buffer",
    },
    "adam-eps": {**_ADAM_EPS, r"q": "share of a weight's gradient in |g| + a ε"},
    "hessian-scaling": {r"h": "a small step"},
    "newton-step": {r"P": "projection on the null space of the Hessian", r"d": "the step"},
    "gauss-newton-null": {
        r"s": "scores",
        r"r": "derivative of an example's loss by its scores",
        r"S": "Hessian of the loss by the scores",
        r"N": "number of examples",
    },
    "second-order-symmetry": {r"d": "the step", r"\mu": "damping"},
    "norm-growth": _ERRORS,
    "norm-with-memory": {
        r"Y": "what w and the buffer store: a quadratic form of both",
        r"k": "coefficients of the form",
        r"b": "the optimizer's buffer before g comes in",
        r"c": "factor of memory",
        r"F": "the law of equilibrium-norm as a function of x and of the memory",
        r"u": "a vector of w and the buffer, which moves by −η g alone",
        r"v": "momentum's buffer; with an index Adam's second moment",
        r"p": "for Adam with L2 g + λ₂ w",
    },
    "gradient-flow": {
        r"\dot": "derivative of w by time",
        r"t": "time, the sum of the learning rates",
        r"e": "Euler's number; |e|: the solver's estimate of its error",
    },
    "equilibrium-norm": {**_STATIONARY, r"A": "⟨w, v′⟩", r"m": "Adam's first moment"},
    "equilibrium-angle": _STATIONARY,
    "equilibrium-rate": {
        r"u": "w/|w|, the direction",
        r"k": "steps after a gradient, 20",
        r"q": "the raw step that g asks for at |w| = 1",
        r"\psi": "what w has of a gradient's step k steps later",
    },
    "relaxation-time": {
        r"e": "Euler's number",
        r"q": "|w| over its limit",
        r"z": "|w|⁴",
        r"F": "a clock: a function of q that falls evenly",
        r"\alpha": "the factor by which momentum shrinks w in a step",
    },
    "equilibrium-exponents": {r"a": "a factor"},
    "rotation-per-step": _ERRORS,
    "equilibrium-in-training": {
        r"s": "with an index: root of E |w|² gᵢ²",
        r"b": "the optimizer's buffer before g comes in",
        r"c": "factor of memory",
        r"F": "the law of equilibrium-norm as a function of x and of the memory",
        r"v": "Adam's second moment",
        r"m": "Adam's first moment",
        r"p": "g, for Adam with L2 g + λ₂ w",
    },
    "fixed-norm-sgd": {r"\tilde": "before w is normalized again"},
    "fixed-norm-momentum": {
        r"c": "length of the gradient",
        r"v": "momentum's buffer",
        r"u": "the buffer of the run without decay",
        r"k": "how much of w the buffer holds beside u; K and A: see the text",
        r"e": "Euler's number",
        r"i": "the root of −1: w is a point of the complex plane",
    },
    "weight-norm-grows": {r"v": "weight norm's parameter: a unit has the weights g v/|v|"},
    "gamma-beta": {r"l": "a layer"},
    # After 2017
    "exponential-schedule": {
        r"\tilde": "of the run without decay",
        r"\alpha": "1 − η λ₂, the factor by which decay shrinks w in a step",
    },
    "any-schedule": {
        r"\tilde": "of the run without decay",
        r"a": "1 − ηₜ λ₂, with that step's rate and decay",
        r"P": "product of the factors a of the steps before",
    },
    "momentum-schedule": {
        r"\alpha": "the factor by which decay shrinks w in a step",
        r"v": "momentum's buffer",
    },
    "hoffer-correction": {r"\tilde": "of the run without decay", r"\parallel": "of one direction"},
    "schedule-law": {**_DECAYED, r"B": "what schedule and decay together make of the rate"},
    "rate-cannot-grow": {**_DECAYED, r"B": "that of schedule-law"},
    "adamc": {r"F": "the balance of growth and decay, as a function of x"},
    "sign-equilibrium": _DECAYED,
    "published-turns": _DECAYED,
    "published-norms": {**_DECAYED, r"F": "the balance of growth and decay, as a function of x"},
    "adamw-average": {**_DECAYED, r"u": "Adam's step, before the learning rate"},
    "projected-steps": {**_DECAYED, r"u": "w/|w|, the direction"},
    "sphere-threshold": {
        r"F": "a loss of pairs of weights",
        r"a": "how much a pair counts",
        r"x": "first weight of a pair",
        r"y": "second weight of a pair",
    },
    "decay-never-settles": {r"F": "the loss of sphere-threshold"},
    "sphere-regimes": {
        **_TOY,
        r"x": "first weight of a pair",
        r"y": "second weight of a pair",
        r"\rho": "length of a pair of weights; i: which pair",
        r"z": "η aᵢ/ρᵢ²",
        r"t": "x/y of a pair",
    },
    "period-edge": {**_TOY, r"t": "the tangent of θ"},
    "decay-period": {
        r"a": _TOY[r"a"],
        r"\theta": _TOY[r"\theta"],
        r"z": "Φ a; with the indices 0 and 1 its smallest and next largest value",
        r"T": "steps from the one to the other",
    },
    "rotational-step": {
        r"\eta": "learning rate; with the index r, length of a step over |w|",
        r"\varphi": "angle of a step",
        r"u": "the optimizer's update, before the learning rate",
        r"p": "its part orthogonal to w",
        r"s": "running mean of |p|²",
        r"\bar": "over 1 − βᵗ, as in Adam",
        r"\beta": "the decay of that mean",
    },
    "rotational-variant": {
        **_DECAYED,
        r"\eta": "learning rate; with the index r, length of a step over |w|",
        r"\varphi": "angle of a step",
        r"p": "the update's part orthogonal to w",
        r"s": "running mean of |p|²",
        r"\beta": "β₁ or β₂",
    },
    "hyperball-turn": {
        r"N": "puts a matrix to the length 1",
        r"m": "the average of gradients along which steps go",
        r"\rho": "its memory: momentum, or β₁",
        r"A": "⟨w, N(m)⟩",
        r"q": "|w − η N(m)|",
        r"\varphi": "angle of a step",
    },
    "forced-normalization": {
        r"\varepsilon": "what is added to the norm of w, over √n",
        r"\hat": "after the step, before w is normalized",
        r"n": "number of weights of a unit",
        r"N": "puts a vector to the length 1",
        r"q": "|w| over √n",
    },
    "norm-oscillator": {
        r"v": "momentum's buffer",
        r"A": "⟨w, v⟩, v with the step's gradient in it",
        r"\gamma": "damping of the published oscillator",
        r"\omega": "its frequency",
    },
    "coupled-equilibrium": {r"d": "square of a step's length, over η²", r"o": "the step over −η"},
    "muon-polynomial": {
        **_DECAYED,
        r"W": "a matrix of weights",
        r"c": "correlation of steps",
        r"k": "steps between two of them",
        r"m": "the smaller of W's two sizes",
        r"q": "E |O|²/m",
        r"O": "what the polynomial makes of the momentum",
        r"S": "sum of the correlations over the memory",
        r"p": "Jordan's polynomial",
        r"s": "a singular value",
    },
    "later-relaxation": {
        **_DECAYED,
        r"t": "time in steps",
        r"o": "an optimizer's direction",
        r"q": "|w| over its limit",
    },
    "fast-equilibrium": {
        r"G": "|w|⁴; with the index 0 at the start, ∞ at equilibrium",
        r"L": "the loss; with the index ∞ at equilibrium",
        r"\lambda": "with the index e η λ₂, the intrinsic rate",
        r"h": "curvature of the loss across its minimum on the sphere",
        r"v": "distance from the minimum",
        r"\xi": "noise of the gradient",
        r"t": "time in steps",
        r"e": "Euler's number",
        r"O": "of the order of",
    },
    "effective-damping": {r"\mu": "damping", r"I": "the identity matrix"},
    "sgd-as-adam": {
        r"\tilde": "|w| times the gradient",
        r"\beta": "(1 − x)⁴, the memory of v",
        r"v": "second moment of the group",
        r"N": "puts w to the length 1",
        r"u": "w/|w|, the direction",
    },
    "translation-oscillator": {
        r"s": "sum over the classes of an input's weights",
        r"v": "the same sum of momentum's buffer",
        r"k": "a class",
        r"\gamma": "damping of the published oscillator",
        r"\omega": "its frequency",
    },
    "hessian-indefinite": {r"u": "w/|w|, the direction", r"h": "the curvature along g"},
    "translation-law": {r"h": "inputs of the layer", r"k": "a unit"},
    "lion-norm": _SIGN_WALK,
    "lion-turn": _SIGN_WALK,
    "projected-norm": {**_DECAYED, r"P": "a factor that decay and memory set"},
    "muon-norm": {**_MATRIX_WALK, r"m": "the smaller of W's two sizes"},
    "muon-turn": _MATRIX_WALK,
    "adamw-covariance": {**_DECAYED, r"m": "Adam's first moment, over the root of the second"},
    "intrinsic-rate": {
        **_DECAYED,
        r"G": "|w|⁴",
        r"d": "differential",
        r"t": "time in steps",
        r"e": "Euler's number",
    },
    "momentum-sum": {r"v": "momentum's buffer", r"k": "a step of the past"},
    "projected-angle": {
        r"\varphi": "angle of a step",
        r"N": "puts w back to its length",
        r"u": "w/|w|, the direction",
    },
    "gain-and-matrix": {
        r"W": "the matrix behind a gain γ and ReLU; i: a row",
        r"D": "the difference that is followed",
        r"h": "ReLU's outputs",
    },
    "rescale-law": {
        r"W": "the matrix that leads into the units",
        r"V": "the matrix that leads out of them",
        r"D": "the difference that is followed, of each unit j",
        r"h": "ReLU's outputs",
        r"\partial": "partial derivative",
    },
    "homogeneous-network": {
        r"\theta": "all weights",
        r"M": "number of layers",
        r"f": "the network's outputs",
        r"J": "derivative of the outputs by the weights",
    },
    "layers-share-product": {
        r"W": "the weights of a layer",
        r"l": "a layer",
        r"f": "the network's outputs",
        r"J": "derivative of the outputs by a layer's weights",
        r"\partial": "partial derivative",
    },
}
# Numbers of examples, units, weights and steps; names of a set; what is set and means nothing
_PASSED_BY = {
    *("i", "j", "k", "n", "t", "T"),
    *(rf"\{name}" for name in "frac tfrac sqrt left right quad qquad sum to text cos log".split()),
    *(rf"\{name}" for name in "rangle propto mapsto Rightarrow iff ne approx ldots cdot".split()),
    *(rf"\{name}" for name in "lim inf infty bar hat arctan arccos arcsin tan ll gg".split()),
    *(rf"\{name}" for name in "le ge min max pi prod".split()),
}


# How symbols are shown that are nothing alone
_SHOWN = {r"\dot": r"\dot y", r"\overline": r"\overline g", r"\tilde": r"\tilde w"}
_SHOWN |= {r"\bar": r"\bar s", r"\hat": r"\hat w"}
_SHOWN[r"\langle"] = r"\langle a, b \rangle"


def shown(symbol):
    """Return a symbol in letters."""
    return letters.set_(_SHOWN.get(symbol, symbol))


def symbols_of(latex):
    """Return the symbols of a formula: letters and commands, with an index where it has a name."""
    latex = re.sub(r"\\(?:text|mathrm|operatorname|begin|end)\{[^{}]*\}", " ", latex)
    latex = re.sub(r"(?<![\\A-Za-z])[A-Za-z]{4,}", " ", latex)  # words
    latex = latex.replace(r"\eta_{ }", r"\eta_{eff}")
    named = "|".join(re.escape(symbol) for symbol in sorted(SYMBOLS, key=len, reverse=True))
    return list(dict.fromkeys(re.findall(rf"(?:{named})(?![A-Za-z])|\\[A-Za-z]+|[A-Za-z]", latex)))


def meanings(claim):
    """Return {symbol in LaTeX: what it means} for the statement and derivation of a claim."""
    own = OWN.get(claim.id, {})
    formulas = [claim.statement, *claim.derivation.split("$")[1::2]]
    found = set(symbols_of(" ; ".join(formulas)))
    return {key: text for key, text in {**SYMBOLS, **own}.items() if key in found}


def unexplained(claim):
    """Return the symbols of a claim's statement whose meaning is not told."""
    return set(symbols_of(claim.statement)) - set(meanings(claim)) - _PASSED_BY
