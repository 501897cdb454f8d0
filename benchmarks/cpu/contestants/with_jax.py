"""JAX: jit of a step with donated buffers, lax.scan over steps, vmap over copies."""

import numpy as np

from benchmarks.cpu.configurations import (
    ADAM_BETAS_EPS,
    BATCHES,
    EPS,
    MOMENTUM,
    WEIGHT_DECAY,
    data,
    initial,
    learning_rates,
)


def _jax_step(configuration, last):
    import jax
    import jax.numpy as jnp

    convolutional = configuration.sizes is None

    def loss(P, R, x, y):
        new = {}
        for i in range(last):
            if convolutional:
                order = ("NHWC", "HWIO", "NHWC")
                x = jax.lax.conv_general_dilated(
                    x, P[f"W{i}"], (1, 1), "SAME", dimension_numbers=order
                )
            else:
                x = x @ P[f"W{i}"]
            axes = tuple(range(x.ndim - 1))
            n = x.size // x.shape[-1]
            mean = x.mean(axes)
            c = x - mean
            var = (c * c).mean(axes)
            new[f"mean{i}"] = 0.9 * R[f"mean{i}"] + 0.1 * mean
            new[f"var{i}"] = 0.9 * R[f"var{i}"] + 0.1 * (var * (n / (n - 1)))
            x = jax.nn.relu(c * jax.lax.rsqrt(var + EPS) * P[f"gamma{i}"] + P[f"beta{i}"])
            if convolutional and i % 2:
                window = (1, 2, 2, 1)
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        scores = x.reshape(x.shape[0], -1) @ P[f"W{last}"] + P[f"b{last}"]
        picked = jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], 1)
        return -picked.mean(), new

    beta1, beta2, eps = ADAM_BETAS_EPS

    def step(state, x, y, rate):
        P, R, M, V, t = state
        (value, R), G = jax.value_and_grad(loss, has_aux=True)(P, R, x, y)
        G = jax.tree.map(lambda g, p: g + WEIGHT_DECAY * p, G, P)
        t = t + 1
        if configuration.optimizer == "adam":
            M = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, M, G)
            V = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, V, G)
            c1, c2 = 1 - beta1**t, jnp.sqrt(1 - beta2**t)
            P = jax.tree.map(lambda p, m, v: p - rate / c1 * m / (jnp.sqrt(v) / c2 + eps), P, M, V)
        else:
            M = jax.tree.map(lambda m, g: MOMENTUM * m + g, M, G)
            P = jax.tree.map(lambda p, g, m: p - rate * (g + MOMENTUM * m), P, G, M)
        return (P, R, M, V, t), value

    return step


def _jax(configuration, scan):
    import jax
    import jax.numpy as jnp

    parameters, running, last = initial(configuration)
    P, R = (jax.tree.map(jnp.asarray, arrays) for arrays in (parameters, running))
    zeros = jax.tree.map(jnp.zeros_like, P)
    second = jax.tree.map(jnp.zeros_like, P) if configuration.optimizer == "adam" else {}
    several = configuration.copies > 1
    t = jnp.zeros((configuration.copies,) if several else ())
    state = [(P, R, zeros, second, t)]
    rates = jnp.asarray(np.asarray(learning_rates(configuration), dtype=np.float32))
    rates = rates if several else rates[0]
    step = _jax_step(configuration, last)
    if several:
        step = jax.vmap(
            step,
            in_axes=((0, 0, 0, 0 if second else None, 0), None, None, 0),
            out_axes=((0, 0, 0, 0 if second else None, 0), 0),
        )
    X, labels = data(configuration)
    done = [0]
    if scan:
        X, labels = jnp.asarray(X), jnp.asarray(labels)

        def several_steps(state, order):
            def body(state, index):
                return step(state, X[index], labels[index], rates)

            state, values = jax.lax.scan(body, state, order)
            return state, values[-1].sum()

        many = jax.jit(several_steps, donate_argnums=0)

        def run(steps):
            value = 0.0
            first = done[0]
            while first < done[0] + steps:  # whole rounds of the data: one compiled length
                count = min(BATCHES, done[0] + steps - first)
                order = np.arange(first, first + count) % BATCHES
                state[0], value = many(state[0], order)
                first += count
            done[0] += steps
            jax.block_until_ready(state[0])
            return float(value)

        return run
    X, labels = [jnp.asarray(x) for x in X], [jnp.asarray(y) for y in labels]
    one = jax.jit(step, donate_argnums=0)

    def run(steps):
        for index in range(done[0], done[0] + steps):
            state[0], value = one(state[0], X[index % BATCHES], labels[index % BATCHES], rates)
        done[0] += steps
        jax.block_until_ready(state[0])
        return float(value.sum())

    return run


def jax_jit(configuration, threads):
    """JAX: a jitted step with donated buffers; vmap over copies."""
    return _jax(configuration, scan=False)


def jax_scan(configuration, threads):
    """JAX: lax.scan over 16 steps in one jitted call; vmap over copies."""
    return _jax(configuration, scan=True)
