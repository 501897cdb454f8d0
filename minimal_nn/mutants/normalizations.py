"""Named faults of the normalizations."""

NORMALIZATIONS = {
    "batchnorm": {
        "variance-term-missing": (
            "(dy - dbeta / n - normalized * (dgamma / n))",
            "(dy - dbeta / n)",
        ),
        "mean-term-missing": ("(dy - dbeta / n - normalized", "(dy - normalized"),
        "gamma-forgotten": ("(gamma / std) * (dy", "(1 / std) * (dy"),
        "variance-unbiased": (
            "(centered * centered).sum(axis=axes) / n",
            "(centered * centered).sum(axis=axes) / (n - 1)",
        ),
        "n-1-for-n-in-the-gradient": ("(dgamma / n))", "(dgamma / (n - 1)))"),
        "n+1-for-n-in-the-mean-term": ("(dy - dbeta / n", "(dy - dbeta / (n + 1)"),
        "eps-outside-the-root": ("return np.sqrt(var + eps)", "return np.sqrt(var) + eps"),
        "eps-forgotten": ("return np.sqrt(var + eps)", "return np.sqrt(var)"),
        "second-moment-for-variance": ("var = (centered * centered)", "var = (z * z)"),
        "one-pass-variance": (
            "var = (centered * centered).sum(axis=axes) / n",
            "var = (z * z).sum(axis=axes) / n - mean * mean",
        ),
        "cache-shows-the-unbiased-variance": (
            "Cache(normalized, gamma, std, mean, var)",
            "Cache(normalized, gamma, std, mean, var * n / (n - 1))",
        ),
        "gamma-gradient-of-the-centered-input": (
            "dgamma = (dy * normalized)",
            "dgamma = (dy * normalized * std)",
        ),
        "every-pixel-its-own-statistics": (
            "return tuple(range(z.ndim - 1)), z.size // z.shape[-1]",
            "return (0,), z.shape[0]",
        ),
        "evaluation-gradient-without-gamma": (
            "dz = (cache.gamma / cache.std) * dy",
            "dz = dy / cache.std",
        ),
        "evaluation-gradient-of-the-training-mode": (
            "    dz = (cache.gamma / cache.std) * dy\n",
            "    n = dy.size // dy.shape[-1]\n"
            "    dz = (cache.gamma / cache.std) * (dy - dy.sum(axis=axes) / n)\n",
        ),
        "running-variance-biased": ("unbiased = var * count / (count - 1)", "unbiased = var"),
        "running-variance-corrected-the-wrong-way": (
            "var * count / (count - 1)",
            "var * (count - 1) / count",
        ),
        "running-momentum-reversed": (
            "running_mean + momentum * (mean - running_mean)",
            "running_mean + (1 - momentum) * (mean - running_mean)",
        ),
        "mean-of-equal-numbers-rounds": (
            "mean = first + (z - first).sum(axis=axes) / n",
            "mean = z.sum(axis=axes) / n",
        ),
        "overflow-unseen": ("    check_variance(var + eps, eps, what)\n", ""),
        "running-statistics-never-updated": (
            ("running_mean + momentum * (mean - running_mean)", "running_mean"),
            ("running_var + momentum * (unbiased - running_var)", "running_var"),
        ),
    },
    "layernorm": {
        "gradient-means-over-the-batch": (
            "mean_a = a.sum(axis=-1, keepdims=True) / units",
            "mean_a = a.sum(axis=0) / len(a)",
        ),
        "variance-term-missing": ("(a - mean_a - normalized * mean_ah)", "(a - mean_a)"),
        "mean-term-missing": ("(a - mean_a - normalized", "(a - normalized"),
        "gamma-outside-the-means": (
            ("a = cache.gamma * dy", "a = dy"),
            ("dz = (a - mean_a", "dz = cache.gamma * (a - mean_a"),
        ),
        "gamma-forgotten": ("a = cache.gamma * dy", "a = dy"),
        "n-1-for-n-in-the-gradient": (
            "(a * normalized).sum(axis=-1, keepdims=True) / units",
            "(a * normalized).sum(axis=-1, keepdims=True) / (units - 1)",
        ),
        "eps-outside-the-root": (
            'standard_deviation(var, eps, "examples")',
            'standard_deviation(var, 0, "") + eps',
        ),
        "variance-unbiased": (
            "(centered * centered).sum(axis=-1, keepdims=True) / units",
            "(centered * centered).sum(axis=-1, keepdims=True) / (units - 1)",
        ),
        "mean-of-equal-numbers-rounds": (
            "mean = first + (z - first).sum(axis=-1, keepdims=True) / units",
            "mean = z.sum(axis=-1, keepdims=True) / units",
        ),
    },
    "rmsnorm": {
        "projection-missing": ("(a - normalized * mean_ah)", "a"),
        "gamma-forgotten": ("a = cache.gamma * dy", "a = dy"),
        "gamma-outside-the-mean": (
            ("a = cache.gamma * dy", "a = dy"),
            ("dz = (a - normalized", "dz = cache.gamma * (a - normalized"),
        ),
        "n-1-for-n-in-the-gradient": (
            "keepdims=True) / dy.shape[-1]",
            "keepdims=True) / (dy.shape[-1] - 1)",
        ),
        "sum-for-the-mean-of-squares": (
            "keepdims=True) / z.shape[-1] + eps",
            "keepdims=True) + eps",
        ),
        "squares-of-the-batch": (
            "(z * z).sum(axis=-1, keepdims=True)",
            "(z * z).sum(keepdims=True)",
        ),
        "eps-outside-the-root": (
            (" / z.shape[-1] + eps", " / z.shape[-1]"),
            ("root = np.sqrt(square)", "root = np.sqrt(square) + eps"),
        ),
        "root-missing": ("root = np.sqrt(square)", "root = square"),
        "overflow-unseen": ('    check_variance(square, eps, "examples", MEAN_SQUARE)\n', ""),
    },
    "groupnorm": {
        "variance-term-missing": ("(a - _mean(a) - h * _mean(a * h))", "(a - _mean(a))"),
        "mean-term-missing": ("(a - _mean(a) - h", "(a - h"),
        "gamma-forgotten": ("(cache.gamma * dy, cache", "(dy, cache"),
        "gamma-outside-the-means": (
            ("(cache.gamma * dy, cache", "(dy, cache"),
            ("return dz.reshape(dy.shape)", "return cache.gamma * dz.reshape(dy.shape)"),
        ),
        "every-pixel-its-own-statistics": (
            "array.sum(axis=(1, 3), keepdims=True) / (array.shape[1] * array.shape[3])",
            "array.sum(axis=3, keepdims=True) / array.shape[3]",
        ),
        "groups-of-units-far-apart": (
            "array.reshape(array.shape[0], -1, groups, array.shape[-1] // groups)",
            "array.reshape(array.shape[0], -1, array.shape[-1] // groups, groups).swapaxes(2, 3)",
        ),
        "variance-unbiased": (
            "var = _mean(centered * centered)",
            "n = parts.shape[1] * parts.shape[3]\n"
            "        var = _mean(centered * centered) * n / (n - 1)",
        ),
        "mean-of-equal-numbers-rounds": (
            "parts - (first + _mean(parts - first))",
            "parts - _mean(parts)",
        ),
    },
    "weightnorm": {
        "projection-missing": ("(dW - cache.direction * dg)", "dW"),
        "projection-on-v": (
            "(dW - cache.direction * dg)",
            "(dW - cache.direction * cache.norm * dg)",
        ),
        "squares-unscaled": ("a = power_of_two(v, axes, eps)", "a = 1"),
        "g-forgotten": ("(cache.g / cache.norm)", "(1 / cache.norm)"),
        "root-missing": ("np.sqrt(square + eps)", "square + eps"),
        "eps-outside-the-root": ("np.sqrt(square + eps)", "np.sqrt(square) + eps"),
        "eps-forgotten": ("np.sqrt(square + eps)", "np.sqrt(square)"),
        "norm-of-the-whole-matrix": ("square = (v * v).sum(axis=axes)", "square = (v * v).sum()"),
    },
}
