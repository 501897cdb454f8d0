"""Named faults in forward passes, backward passes and optimizers, each an edit of the source."""

from minimal_nn.mutants.loading import mutants_of
from minimal_nn.mutants.normalizations import NORMALIZATIONS

FAULTS = {
    "affine": {
        "bias-forgotten": ("        y = y + b\n", "        y = y + 0 * b\n"),
        "weight-gradient-is-a-mean": ("cache.x.T @ dy", "cache.x.T @ dy / len(dy)"),
        "bias-gradient-is-a-mean": ("dy.sum(axis=0) if", "dy.sum(axis=0) / len(dy) if"),
    },
    "convolution": {
        "kernel-turned-in-the-forward-pass": ("@ W[a, bb]", "@ W[kh - 1 - a, kw - 1 - bb]"),
        "kernel-turned-in-the-input-gradient": (
            "dy @ W[a, b].T",
            "dy @ W[kh - 1 - a, kw - 1 - b].T",
        ),
        "windows-overwrite-each-other": ("dpadded[met] = dpadded[met] + dy", "dpadded[met] = dy"),
        "bias-gradient-is-a-mean": ("dy.sum(axis=(0, 1, 2))", "dy.mean(axis=(0, 1, 2))"),
        "weight-gradient-without-the-stride": (
            "dW[a, b] = padded[met]",
            "dW[a, b] = padded[_met(a, b, 1, height, width)]",
        ),
    },
    **NORMALIZATIONS,
    "activation": {
        "relu-derivative-at-zero": ("~(z.real <= 0)", "~(z.real < 0)"),
        "relu-mask-of-the-cotangent": ("np.where(cache.saved, dy, 0)", "np.where(dy > 0, dy, 0)"),
        "tanh-derivative-without-the-square": (
            "root * root * dy",
            "root * dy",
        ),
        "relu-hides-nan": ("~(z.real <= 0)", "z.real > 0"),
        "relu-leaks": ("np.where(mask, z, 0)", "np.where(mask, z, z / 128)"),
    },
    "dropout": {
        "not-scaled-up": ("x / (1 - rate)", "x"),
        "scaled-by-the-rate": ("x / (1 - rate)", "x / (0.5 + rate)"),
        "gradient-of-what-is-dropped": (
            "np.where(cache.kept, dy / (1 - cache.rate), 0)",
            "dy / (1 - cache.rate)",
        ),
        "gradient-not-scaled-up": ("dy / (1 - cache.rate)", "dy"),
    },
    "pooling": {
        "gradient-to-all-ties": (
            ("Cache(winner, size)", "Cache(windows == best[..., None, :], size)"),
            ("cache.winner[..., None, :] == positions", "cache.winner"),
            ('    expect_shape("dy", dy, cache.winner.shape)\n', ""),
        ),
        "last-of-ties-wins": ("(a.real > b.real)", "(a.real >= b.real)"),
        "gradient-to-the-first-entry": (
            "cache.winner[..., None, :] == positions",
            "0 * cache.winner[..., None, :] == positions",
        ),
    },
    "averagepooling": {
        "sum-for-the-mean": ("axis=(2, 4)) / (height * width)", "axis=(2, 4))"),
        "mean-over-the-height-alone": ("/ (height * width)", "/ height"),
        "gradient-not-shared-out": (" / (cache.height * cache.width)", ""),
        "gradient-to-other-windows": (
            "np.arange(count * size) // size",
            "np.arange(count * size) % count",
        ),
    },
    "loss": {
        "cross-entropy-is-a-sum": (
            "shifted[rows, targets]).sum() / n",
            "shifted[rows, targets]).sum()",
        ),
        "cross-entropy-gradient-of-the-sum": ("Cache(dscores / n)", "Cache(dscores)"),
        "target-not-subtracted": ("dscores[rows, targets] = dscores[rows, targets] - 1", "pass"),
        "scores-not-shifted": (
            "0 if scores.dtype == object else scores.real.max(axis=1, keepdims=True)",
            "0",
        ),
        "squared-error-gradient-without-2": ("Cache(2 * difference", "Cache(difference"),
        "squared-error-mean-over-the-batch-alone": (
            "(difference * difference).sum() / scores.size",
            "(difference * difference).sum() / len(scores)",
        ),
        "cotangent-ignored": ("return dvalue * cache.dscores", "return cache.dscores"),
        "cross-entropy-gradient-twice": ("Cache(dscores / n)", "Cache(2 * dscores / n)"),
        "gradient-of-another-label": (
            "dscores[rows, targets] = dscores[rows, targets] - 1",
            "dscores[rows, targets - 1] = dscores[rows, targets - 1] - 1",
        ),
    },
    "update": {
        "adam-without-bias-correction": (("m / (1 - beta1**t)", "m"), ("v / (1 - beta2**t)", "v")),
        "adam-without-the-power-t": (
            ("m / (1 - beta1**t)", "m / (1 - beta1)"),
            ("v / (1 - beta2**t)", "v / (1 - beta2)"),
        ),
        "adam-corrects-the-first-moment-alone": ("v / (1 - beta2**t)", "v"),
        "adam-corrects-the-second-moment-alone": ("m / (1 - beta1**t)", "m"),
        "adam-eps-inside-the-root": (
            "_root(corrected_v, eps_inside_root) + eps",
            "_root(corrected_v, eps)",
        ),
        "adam-second-moment-of-the-mean": ("(1 - beta2) * (g * g)", "(1 - beta2) * (m * m)"),
        "decoupled-decay-without-the-learning-rate": (
            "(1 - learning_rate * decoupled_weight_decay)",
            "(1 - decoupled_weight_decay)",
        ),
        "decoupled-decay-after-the-step": (
            "decoupled_weight_decay) * w - step",
            "decoupled_weight_decay) * (w - step)",
        ),
        "nesterov-without-look-ahead": (
            "learning_rate * (g + momentum * buffer)",
            "learning_rate * buffer",
        ),
        "nesterov-looks-twice": (
            "(g + momentum * buffer)",
            "(g + momentum * (momentum * buffer + g))",
        ),
        "momentum-damped": (
            "buffer = momentum * buffer + g\n    return w - learning_rate * buffer",
            "buffer = momentum * buffer + (1 - momentum) * g\n"
            "    return w - learning_rate * buffer",
        ),
        "rmsprop-eps-inside-the-root": (
            "(g * g)\n    return w - learning_rate * _ratio(g, _root(square, eps_inside_root)",
            "(g * g)\n    return w - learning_rate * _ratio(g, _root(square, eps) - eps",
        ),
        "rmsprop-without-the-root": (
            "(g * g)\n    return w - learning_rate * _ratio(g, _root(square, eps_inside_root)",
            "(g * g)\n    return w - learning_rate * _ratio(g, square",
        ),
        "rmsprop-step-twice": (
            "(g * g)\n    return w - learning_rate * _ratio(g, _root(square, eps_inside_root)",
            "(g * g)\n    return w - 2 * learning_rate * _ratio(g, _root(square, eps_inside_root)",
        ),
        "rmsprop-decay-squared": (
            "square = decay * square + (1 - decay) * (g * g)\n    return",
            "square = decay**2 * square + (1 - decay**2) * (g * g)\n    return",
        ),
        "eps-inside-root-beside-it": ("else square + inside)", "else square) + inside"),
        "eps-inside-root-forgotten": ("else square + inside)", "else square)"),
        "adagrad-forgets": ("square = square + g * g", "square = g * g"),
        "adadelta-accumulates-gradients-for-steps": (
            "(1 - decay) * (delta * delta)",
            "(1 - decay) * (g * g)",
        ),
        "adadelta-with-one-eps": (
            "np.sqrt(square + eps_denominator)",
            "np.sqrt(square + eps_numerator)",
        ),
        "adadelta-forgets-its-steps": (
            "decay * delta_square + (1 - decay) * (delta",
            "(1 - decay) * (delta",
        ),
        "sign-step-twice": ("* np.sign(g)", "* 2 * np.sign(g)"),
        "normalized-by-the-sum-of-magnitudes": (
            "    _, g, length = _scaled_norm(g)\n",
            "    _, g, length = _scaled_norm(g)\n"
            "    axes = tuple(range(g.ndim - 1)) if g.ndim > 1 else None\n"
            "    length = (g * np.sign(g)).sum(axis=axes)\n",
        ),
        "penalty-twice": ("g + weight_decay * w\n", "g + 2 * weight_decay * w\n"),
        "norm-of-the-whole-matrix": (
            "axes = tuple(range(w.ndim - 1)) if w.ndim > 1 else None",
            "axes = None",
        ),
        "lars-without-the-norm": (
            "norm * _ratio(scaled_g, g_length))",
            "_ratio(scaled_g, g_length))",
        ),
        "lars-stays-at-zero": ("np.where(norm == 0, g", "np.where(norm < 0, g"),
        "lars-climbs": ("w - learning_rate * np.where(norm", "w + learning_rate * np.where(norm"),
        "lars-with-the-largest-weight": (
            "norm = w_length / a",
            "norm = np.sqrt((w * w).max(axis=tuple(range(w.ndim - 1)) if w.ndim > 1 else None))",
        ),
        "clip-each-parameter-by-itself": (
            "{name: factor * g for name, g in gradients.items()}",
            "{name: min(1, limit / _length(g)) * g for name, g in gradients.items()}",
        ),
        "clip-scales-up": ("if length.real > most else 1", "if length != 0 else 1"),
        "clip-by-the-sum-of-norms": (
            "np.sqrt((a * lengths * (a * lengths)).sum())",
            "(a * lengths).sum()",
        ),
        "clip-norms-unscaled": ("a = power_of_two(lengths, None)", "a = 1"),
        "clip-squares-unscaled": ("a = power_of_two(g, None)", "a = 1"),
        "squares-unscaled": ("a = power_of_two(w, axes)", "a = 1"),
        "normalized-to-the-inverse-norm": ("w * (norm / length)", "w * (norm / length**2)"),
        "zero-over-zero-is-not-guarded": (
            "np.where(zero, 0, numerator / np.where(zero, 1, denominator))",
            "numerator / denominator",
        ),
    },
    "optimizers": {
        "l2-without-2": ("return 2 * l2\n", "return l2\n"),
        "adam-beta2-of-0.99": ('"beta2": 0.999, "eps"', '"beta2": 0.99, "eps"'),
        "l2-after-the-adaptive-scaling": (
            ("g = update.add_penalty(g, w, for_parameter(weight_decay, w))", "pass"),
            (
                "            w, *new = result if self.slots else (result,)\n",
                "            decay = hyper['learning_rate'] * weight_decay * w\n"
                "            w, *new = result if self.slots else (result,)\n"
                "            w = w - decay\n",
            ),
        ),
    },
}
MUTANTS = mutants_of(FAULTS)
