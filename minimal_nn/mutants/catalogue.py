"""Named faults in forward passes, backward passes and optimizers, each an edit of the source."""

from minimal_nn.mutants.loading import Mutant


def _mutant(module, name, *edits):
    return Mutant(name, module, edits)


MUTANTS = (
    # affine
    _mutant("affine", "bias-forgotten", ("        y = y + b\n", "        y = y + 0 * b\n")),
    _mutant("affine", "weight-gradient-is-a-mean", ("cache.x.T @ dy", "cache.x.T @ dy / len(dy)")),
    _mutant(
        "affine", "bias-gradient-is-a-mean", ("dy.sum(axis=0) if", "dy.sum(axis=0) / len(dy) if")
    ),
    # convolution
    _mutant(
        "convolution",
        "kernel-turned-in-the-forward-pass",
        ("@ W[a, bb]", "@ W[kh - 1 - a, kw - 1 - bb]"),
    ),
    _mutant(
        "convolution",
        "kernel-turned-in-the-input-gradient",
        ("dy @ W[a, b].T", "dy @ W[kh - 1 - a, kw - 1 - b].T"),
    ),
    _mutant(
        "convolution",
        "windows-overwrite-each-other",
        ("dpadded[met] = dpadded[met] + dy", "dpadded[met] = dy"),
    ),
    _mutant(
        "convolution",
        "bias-gradient-is-a-mean",
        ("dy.sum(axis=(0, 1, 2))", "dy.mean(axis=(0, 1, 2))"),
    ),
    _mutant(
        "convolution",
        "weight-gradient-without-the-stride",
        (
            "dW[a, b] = padded[met]",
            "dW[a, b] = padded[_met(a, b, 1, height, width)]",
        ),
    ),
    # batchnorm
    _mutant(
        "batchnorm",
        "variance-term-missing",
        ("(dy - dbeta / n - normalized * (dgamma / n))", "(dy - dbeta / n)"),
    ),
    _mutant(
        "batchnorm",
        "mean-term-missing",
        ("(dy - dbeta / n - normalized", "(dy - normalized"),
    ),
    _mutant("batchnorm", "gamma-forgotten", ("(gamma / std) * (dy", "(1 / std) * (dy")),
    _mutant(
        "batchnorm",
        "variance-unbiased",
        (
            "(centered * centered).sum(axis=axes) / n",
            "(centered * centered).sum(axis=axes) / (n - 1)",
        ),
    ),
    _mutant("batchnorm", "n-1-for-n-in-the-gradient", ("(dgamma / n))", "(dgamma / (n - 1)))")),
    _mutant(
        "batchnorm", "n+1-for-n-in-the-mean-term", ("(dy - dbeta / n", "(dy - dbeta / (n + 1)")
    ),
    _mutant(
        "batchnorm",
        "eps-outside-the-root",
        ("return np.sqrt(var + eps)", "return np.sqrt(var) + eps"),
    ),
    _mutant("batchnorm", "eps-forgotten", ("return np.sqrt(var + eps)", "return np.sqrt(var)")),
    _mutant(
        "batchnorm",
        "second-moment-for-variance",
        ("var = (centered * centered)", "var = (z * z)"),
    ),
    _mutant(
        "batchnorm",
        "one-pass-variance",
        (
            "var = (centered * centered).sum(axis=axes) / n",
            "var = (z * z).sum(axis=axes) / n - mean * mean",
        ),
    ),
    _mutant(
        "batchnorm",
        "cache-shows-the-unbiased-variance",
        (
            "Cache(normalized, gamma, std, mean, var)",
            "Cache(normalized, gamma, std, mean, var * n / (n - 1))",
        ),
    ),
    _mutant(
        "batchnorm",
        "gamma-gradient-of-the-centered-input",
        ("dgamma = (dy * normalized)", "dgamma = (dy * normalized * std)"),
    ),
    _mutant(
        "batchnorm",
        "every-pixel-its-own-statistics",
        (
            "return tuple(range(z.ndim - 1)), z.size // z.shape[-1]",
            "return (0,), z.shape[0]",
        ),
    ),
    _mutant(
        "batchnorm",
        "evaluation-gradient-without-gamma",
        ("dz = (cache.gamma / cache.std) * dy", "dz = dy / cache.std"),
    ),
    _mutant(
        "batchnorm",
        "evaluation-gradient-of-the-training-mode",
        (
            "    dz = (cache.gamma / cache.std) * dy\n",
            "    n = dy.size // dy.shape[-1]\n"
            "    dz = (cache.gamma / cache.std) * (dy - dy.sum(axis=axes) / n)\n",
        ),
    ),
    _mutant(
        "batchnorm",
        "running-variance-biased",
        ("unbiased = var * count / (count - 1)", "unbiased = var"),
    ),
    _mutant(
        "batchnorm",
        "running-variance-corrected-the-wrong-way",
        ("var * count / (count - 1)", "var * (count - 1) / count"),
    ),
    _mutant(
        "batchnorm",
        "running-momentum-reversed",
        (
            "running_mean + momentum * (mean - running_mean)",
            "running_mean + (1 - momentum) * (mean - running_mean)",
        ),
    ),
    _mutant(
        "batchnorm",
        "mean-of-equal-numbers-rounds",
        ("mean = first + (z - first).sum(axis=axes) / n", "mean = z.sum(axis=axes) / n"),
    ),
    _mutant("batchnorm", "overflow-unseen", ("    check_variance(var + eps, eps, what)\n", "")),
    _mutant(
        "batchnorm",
        "running-statistics-never-updated",
        ("running_mean + momentum * (mean - running_mean)", "running_mean"),
        ("running_var + momentum * (unbiased - running_var)", "running_var"),
    ),
    # layernorm
    _mutant(
        "layernorm",
        "gradient-means-over-the-batch",
        ("mean_a = a.sum(axis=-1, keepdims=True) / units", "mean_a = a.sum(axis=0) / len(a)"),
    ),
    _mutant(
        "layernorm",
        "variance-term-missing",
        ("(a - mean_a - normalized * mean_ah)", "(a - mean_a)"),
    ),
    _mutant("layernorm", "mean-term-missing", ("(a - mean_a - normalized", "(a - normalized")),
    _mutant(
        "layernorm",
        "gamma-outside-the-means",
        ("a = cache.gamma * dy", "a = dy"),
        ("dz = (a - mean_a", "dz = cache.gamma * (a - mean_a"),
    ),
    _mutant("layernorm", "gamma-forgotten", ("a = cache.gamma * dy", "a = dy")),
    _mutant(
        "layernorm",
        "n-1-for-n-in-the-gradient",
        (
            "(a * normalized).sum(axis=-1, keepdims=True) / units",
            "(a * normalized).sum(axis=-1, keepdims=True) / (units - 1)",
        ),
    ),
    _mutant(
        "layernorm",
        "eps-outside-the-root",
        ('standard_deviation(var, eps, "examples")', 'standard_deviation(var, 0, "") + eps'),
    ),
    _mutant(
        "layernorm",
        "variance-unbiased",
        (
            "(centered * centered).sum(axis=-1, keepdims=True) / units",
            "(centered * centered).sum(axis=-1, keepdims=True) / (units - 1)",
        ),
    ),
    _mutant(
        "layernorm",
        "mean-of-equal-numbers-rounds",
        (
            "mean = first + (z - first).sum(axis=-1, keepdims=True) / units",
            "mean = z.sum(axis=-1, keepdims=True) / units",
        ),
    ),
    # rmsnorm
    _mutant("rmsnorm", "projection-missing", ("(a - normalized * mean_ah)", "a")),
    _mutant("rmsnorm", "gamma-forgotten", ("a = cache.gamma * dy", "a = dy")),
    _mutant(
        "rmsnorm",
        "gamma-outside-the-mean",
        ("a = cache.gamma * dy", "a = dy"),
        ("dz = (a - normalized", "dz = cache.gamma * (a - normalized"),
    ),
    _mutant(
        "rmsnorm",
        "n-1-for-n-in-the-gradient",
        ("keepdims=True) / dy.shape[-1]", "keepdims=True) / (dy.shape[-1] - 1)"),
    ),
    _mutant(
        "rmsnorm",
        "sum-for-the-mean-of-squares",
        ("keepdims=True) / z.shape[-1] + eps", "keepdims=True) + eps"),
    ),
    _mutant(
        "rmsnorm",
        "squares-of-the-batch",
        ("(z * z).sum(axis=-1, keepdims=True)", "(z * z).sum(keepdims=True)"),
    ),
    _mutant(
        "rmsnorm",
        "eps-outside-the-root",
        (" / z.shape[-1] + eps", " / z.shape[-1]"),
        ("root = np.sqrt(square)", "root = np.sqrt(square) + eps"),
    ),
    _mutant("rmsnorm", "root-missing", ("root = np.sqrt(square)", "root = square")),
    _mutant(
        "rmsnorm",
        "overflow-unseen",
        ('    check_variance(square, eps, "examples", MEAN_SQUARE)\n', ""),
    ),
    # weightnorm
    _mutant(
        "weightnorm",
        "projection-missing",
        ("(dW - cache.direction * dg)", "dW"),
    ),
    _mutant(
        "weightnorm",
        "projection-on-v",
        ("(dW - cache.direction * dg)", "(dW - cache.direction * cache.norm * dg)"),
    ),
    _mutant("weightnorm", "squares-unscaled", ("a = power_of_two(v, axes, eps)", "a = 1")),
    _mutant("weightnorm", "g-forgotten", ("(cache.g / cache.norm)", "(1 / cache.norm)")),
    _mutant("weightnorm", "root-missing", ("np.sqrt(square + eps)", "square + eps")),
    _mutant(
        "weightnorm", "eps-outside-the-root", ("np.sqrt(square + eps)", "np.sqrt(square) + eps")
    ),
    _mutant("weightnorm", "eps-forgotten", ("np.sqrt(square + eps)", "np.sqrt(square)")),
    _mutant(
        "weightnorm",
        "norm-of-the-whole-matrix",
        ("square = (v * v).sum(axis=axes)", "square = (v * v).sum()"),
    ),
    # activation
    _mutant("activation", "relu-derivative-at-zero", ("~(z.real <= 0)", "~(z.real < 0)")),
    _mutant(
        "activation",
        "relu-mask-of-the-cotangent",
        ("np.where(cache.saved, dy, 0)", "np.where(dy > 0, dy, 0)"),
    ),
    _mutant(
        "activation",
        "tanh-derivative-without-the-square",
        ("(1 - cache.saved * cache.saved)", "(1 - cache.saved)"),
    ),
    _mutant("activation", "relu-hides-nan", ("~(z.real <= 0)", "z.real > 0")),
    _mutant("activation", "relu-leaks", ("np.where(mask, z, 0)", "np.where(mask, z, z / 128)")),
    # pooling
    _mutant(
        "pooling",
        "gradient-to-all-ties",
        ("Cache(winner, size)", "Cache(windows == best[..., None, :], size)"),
        ("cache.winner[..., None, :] == positions", "cache.winner"),
        ('    expect_shape("dy", dy, cache.winner.shape)\n', ""),
    ),
    _mutant("pooling", "last-of-ties-wins", ("(a.real > b.real)", "(a.real >= b.real)")),
    _mutant(
        "pooling",
        "gradient-to-the-first-entry",
        ("cache.winner[..., None, :] == positions", "0 * cache.winner[..., None, :] == positions"),
    ),
    # loss
    _mutant(
        "loss",
        "cross-entropy-is-a-sum",
        ("shifted[rows, targets]).sum() / n", "shifted[rows, targets]).sum()"),
    ),
    _mutant("loss", "cross-entropy-gradient-of-the-sum", ("Cache(dscores / n)", "Cache(dscores)")),
    _mutant(
        "loss",
        "target-not-subtracted",
        ("dscores[rows, targets] = dscores[rows, targets] - 1", "pass"),
    ),
    _mutant(
        "loss",
        "scores-not-shifted",
        ("0 if scores.dtype == object else scores.real.max(axis=1, keepdims=True)", "0"),
    ),
    _mutant(
        "loss", "squared-error-gradient-without-2", ("Cache(2 * difference", "Cache(difference")
    ),
    _mutant(
        "loss",
        "squared-error-mean-over-the-batch-alone",
        (
            "(difference * difference).sum() / scores.size",
            "(difference * difference).sum() / len(scores)",
        ),
    ),
    _mutant("loss", "cotangent-ignored", ("return dvalue * cache.dscores", "return cache.dscores")),
    _mutant(
        "loss", "cross-entropy-gradient-twice", ("Cache(dscores / n)", "Cache(2 * dscores / n)")
    ),
    _mutant(
        "loss",
        "gradient-of-another-label",
        (
            "dscores[rows, targets] = dscores[rows, targets] - 1",
            "dscores[rows, targets - 1] = dscores[rows, targets - 1] - 1",
        ),
    ),
    # update
    _mutant(
        "update",
        "adam-without-bias-correction",
        ("m / (1 - beta1**t)", "m"),
        ("v / (1 - beta2**t)", "v"),
    ),
    _mutant(
        "update",
        "adam-without-the-power-t",
        ("m / (1 - beta1**t)", "m / (1 - beta1)"),
        ("v / (1 - beta2**t)", "v / (1 - beta2)"),
    ),
    _mutant("update", "adam-corrects-the-first-moment-alone", ("v / (1 - beta2**t)", "v")),
    _mutant("update", "adam-corrects-the-second-moment-alone", ("m / (1 - beta1**t)", "m")),
    _mutant(
        "update",
        "adam-eps-inside-the-root",
        ("np.sqrt(corrected_v) + eps", "np.sqrt(corrected_v + eps)"),
    ),
    _mutant(
        "update",
        "adam-second-moment-of-the-mean",
        ("(1 - beta2) * (g * g)", "(1 - beta2) * (m * m)"),
    ),
    _mutant(
        "update",
        "decoupled-decay-without-the-learning-rate",
        ("(1 - learning_rate * decoupled_weight_decay)", "(1 - decoupled_weight_decay)"),
    ),
    _mutant(
        "update",
        "decoupled-decay-after-the-step",
        ("decoupled_weight_decay) * w - step", "decoupled_weight_decay) * (w - step)"),
    ),
    _mutant(
        "update",
        "nesterov-without-look-ahead",
        ("learning_rate * (g + momentum * buffer)", "learning_rate * buffer"),
    ),
    _mutant(
        "update",
        "nesterov-looks-twice",
        ("(g + momentum * buffer)", "(g + momentum * (momentum * buffer + g))"),
    ),
    _mutant(
        "update",
        "momentum-damped",
        (
            "buffer = momentum * buffer + g\n    return w - learning_rate * buffer",
            "buffer = momentum * buffer + (1 - momentum) * g\n"
            "    return w - learning_rate * buffer",
        ),
    ),
    _mutant(
        "update",
        "rmsprop-eps-inside-the-root",
        (
            "(g * g)\n    return w - learning_rate * _ratio(g, np.sqrt(square) + eps)",
            "(g * g)\n    return w - learning_rate * _ratio(g, np.sqrt(square + eps))",
        ),
    ),
    _mutant(
        "update",
        "rmsprop-without-the-root",
        (
            "(g * g)\n    return w - learning_rate * _ratio(g, np.sqrt(square) + eps)",
            "(g * g)\n    return w - learning_rate * _ratio(g, square + eps)",
        ),
    ),
    _mutant(
        "update",
        "rmsprop-step-twice",
        (
            "(g * g)\n    return w - learning_rate * _ratio(g, np.sqrt(square) + eps)",
            "(g * g)\n    return w - 2 * learning_rate * _ratio(g, np.sqrt(square) + eps)",
        ),
    ),
    _mutant(
        "update",
        "rmsprop-decay-squared",
        (
            "square = decay * square + (1 - decay) * (g * g)\n    return",
            "square = decay**2 * square + (1 - decay**2) * (g * g)\n    return",
        ),
    ),
    _mutant("update", "adagrad-forgets", ("square = square + g * g", "square = g * g")),
    _mutant(
        "update",
        "adadelta-accumulates-gradients-for-steps",
        ("(1 - decay) * (delta * delta)", "(1 - decay) * (g * g)"),
    ),
    _mutant(
        "update",
        "adadelta-with-one-eps",
        ("np.sqrt(square + eps_denominator)", "np.sqrt(square + eps_numerator)"),
    ),
    _mutant(
        "update",
        "adadelta-forgets-its-steps",
        ("decay * delta_square + (1 - decay) * (delta", "(1 - decay) * (delta"),
    ),
    _mutant("update", "sign-step-twice", ("* np.sign(g)", "* 2 * np.sign(g)")),
    _mutant(
        "update",
        "normalized-by-the-sum-of-magnitudes",
        (
            "    _, g, length = _scaled_norm(g)\n",
            "    _, g, length = _scaled_norm(g)\n"
            "    axes = tuple(range(g.ndim - 1)) if g.ndim > 1 else None\n"
            "    length = (g * np.sign(g)).sum(axis=axes)\n",
        ),
    ),
    _mutant("update", "penalty-twice", ("g + weight_decay * w\n", "g + 2 * weight_decay * w\n")),
    _mutant(
        "update",
        "norm-of-the-whole-matrix",
        ("axes = tuple(range(w.ndim - 1)) if w.ndim > 1 else None", "axes = None"),
    ),
    _mutant(
        "update",
        "lars-without-the-norm",
        ("norm * _ratio(scaled_g, g_length))", "_ratio(scaled_g, g_length))"),
    ),
    _mutant("update", "lars-stays-at-zero", ("np.where(norm == 0, g", "np.where(norm < 0, g")),
    _mutant(
        "update",
        "lars-climbs",
        ("w - learning_rate * np.where(norm", "w + learning_rate * np.where(norm"),
    ),
    _mutant(
        "update",
        "lars-with-the-largest-weight",
        (
            "norm = w_length / a",
            "norm = np.sqrt((w * w).max(axis=tuple(range(w.ndim - 1)) if w.ndim > 1 else None))",
        ),
    ),
    _mutant(
        "update",
        "clip-each-parameter-by-itself",
        (
            "{name: factor * g for name, g in gradients.items()}",
            "{name: min(1, limit / _length(g)) * g for name, g in gradients.items()}",
        ),
    ),
    _mutant("update", "clip-scales-up", ("if length.real > most else 1", "if length != 0 else 1")),
    _mutant(
        "update",
        "clip-by-the-sum-of-norms",
        ("np.sqrt((a * lengths * (a * lengths)).sum())", "(a * lengths).sum()"),
    ),
    _mutant("update", "clip-norms-unscaled", ("a = power_of_two(lengths, None)", "a = 1")),
    _mutant("update", "clip-squares-unscaled", ("a = power_of_two(g, None)", "a = 1")),
    _mutant("update", "squares-unscaled", ("a = power_of_two(w, axes)", "a = 1")),
    _mutant(
        "update",
        "normalized-to-the-inverse-norm",
        ("w * (norm / length)", "w * (norm / length**2)"),
    ),
    _mutant(
        "update",
        "zero-over-zero-is-not-guarded",
        (
            "np.where(zero, 0, numerator / np.where(zero, 1, denominator))",
            "numerator / denominator",
        ),
    ),
    # optimizers
    _mutant("optimizers", "l2-without-2", ("return 2 * l2\n", "return l2\n")),
    _mutant("optimizers", "adam-beta2-of-0.99", ('"beta2": 0.999, "eps"', '"beta2": 0.99, "eps"')),
    _mutant(
        "optimizers",
        "l2-after-the-adaptive-scaling",
        ("g = update.add_penalty(g, w, for_parameter(weight_decay, w))", "pass"),
        (
            "            w, *new = result if self.slots else (result,)\n",
            "            decay = hyper['learning_rate'] * weight_decay * w\n"
            "            w, *new = result if self.slots else (result,)\n"
            "            w = w - decay\n",
        ),
    ),
)
