"""The contestants: ours, and PyTorch and JAX in each one's best documented form for the same work.

A contestant is a function (configuration, threads) -> run, where run(steps) trains that many more
steps of every copy and returns the loss of the last step (summed over copies).  Each is run in a
process of its own.
PyTorch: fused optimizers, channels_last, torch.compile of the loss, and of a whole functional step.
JAX: jit of a step with donated buffers, lax.scan over steps, vmap over copies.
"""

import numpy as np

from benchmarks.cpu.configurations import (
    BATCH,
    BATCHES,
    CHANNELS,
    CLASSES,
    EPS,
    MOMENTUM,
    WEIGHT_DECAY,
    data,
    learning_rates,
    weights,
)

ADAM = (0.9, 0.999, 1e-8)


# --- ours -----------------------------------------------------------------------------------------


def _our_network(configuration, copy=0):
    from minimal_nn import BatchNorm, Conv2d, Dense, Flatten, MaxPool2d, Network, ReLU

    layers = []
    if configuration.sizes:
        for size in configuration.sizes[1:-1]:
            layers += [Dense(size, bias=False), BatchNorm(EPS), ReLU()]
        shape = (configuration.sizes[0],)
    else:
        for index, channels in enumerate(CHANNELS[1:]):
            algorithm = configuration.algorithm if index else "direct"
            layers += [Conv2d(channels, bias=False, algorithm=algorithm), BatchNorm(EPS), ReLU()]
            layers += [MaxPool2d(2)] if index % 2 else []
        layers.append(Flatten())
        shape = (32, 32, 3)
    network = Network([*layers, Dense(CLASSES)], input_shape=shape, backend="cpu")
    named = dict(zip(network.weights(), weights(configuration, copy), strict=True))
    return network.with_parameters(named)


def _our_optimizer(configuration, rate):
    from minimal_nn import Adam, Nesterov

    if configuration.optimizer == "adam":
        return Adam(learning_rate=rate, weight_decay=WEIGHT_DECAY)
    return Nesterov(learning_rate=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def ours(configuration, threads):
    """This project: the compiled training loop; copies in threads, one for each core."""
    from minimal_nn.cpu.machine.threads import one_per_core, set_num_threads

    set_num_threads(threads)
    X, labels = data(configuration)
    X, labels = X.reshape(-1, *X.shape[2:]), labels.reshape(-1)
    rows = np.arange(BATCHES * BATCH).reshape(BATCHES, BATCH)
    several = configuration.copies > 1
    executor = one_per_core(threads)

    def prepare(copy, rate):
        network, optimizer = _our_network(configuration, copy), _our_optimizer(configuration, rate)
        plan = network.backend.plan(network.program(), optimizer, BATCH)
        return plan, network, optimizer

    pairs = enumerate(learning_rates(configuration))
    if several:
        jobs = list(executor.map(lambda pair: prepare(*pair), pairs))
    else:
        jobs = [prepare(*pair) for pair in pairs]
    done = [0]

    def run(steps):
        batches = rows[(done[0] + np.arange(steps)) % BATCHES]
        done[0] += steps

        def train(job):
            plan, network, optimizer = job
            return plan.run(network, optimizer, X, labels, batches)[-1]

        return float(sum(executor.map(train, jobs) if several else map(train, jobs)))

    return run


# --- PyTorch --------------------------------------------------------------------------------------


def _torch(threads):
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    return torch


def _torch_network(torch, configuration, channels_last, copy=0):
    from torch import nn

    layers, values = [], weights(configuration, copy)
    if configuration.sizes:
        for d, k in zip(configuration.sizes[:-2], configuration.sizes[1:-1], strict=False):
            layers += [nn.Linear(d, k, bias=False), nn.BatchNorm1d(k, eps=EPS), nn.ReLU()]
        layers.append(nn.Linear(configuration.sizes[-2], CLASSES))
    else:
        for index, (c, k) in enumerate(zip(CHANNELS, CHANNELS[1:], strict=False)):
            layers += [nn.Conv2d(c, k, 3, padding=1, bias=False), nn.BatchNorm2d(k, eps=EPS)]
            layers += [nn.ReLU(), *([nn.MaxPool2d(2)] if index % 2 else [])]
        layers += [nn.Flatten(), nn.Linear(64 * CHANNELS[-1], CLASSES)]
        # The features of a channels-first image come in another order.
        features = values[-1].reshape(8, 8, -1, CLASSES).transpose(2, 0, 1, 3)
        values[-1] = features.reshape(-1, CLASSES)
    network = nn.Sequential(*layers)
    with torch.no_grad():
        linear = [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d)]
        for layer, value in zip(linear, values, strict=True):
            axes = (3, 2, 0, 1) if value.ndim == 4 else (1, 0)
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(value.transpose(axes))))
            if layer.bias is not None:
                layer.bias.zero_()
    return network.to(memory_format=torch.channels_last) if channels_last else network


def _torch_optimizer(torch, configuration, parameters, rate):
    if configuration.optimizer == "adam":
        beta1, beta2, eps = ADAM
        return torch.optim.Adam(
            parameters, rate, (beta1, beta2), eps, weight_decay=WEIGHT_DECAY, fused=True
        )
    return torch.optim.SGD(
        parameters, rate, MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY, fused=True
    )


def _torch_data(torch, configuration, channels_last):
    X, labels = data(configuration)
    images = X.ndim == 5
    X = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy() if images else x) for x in X]
    if channels_last:
        X = [x.contiguous(memory_format=torch.channels_last) for x in X]
    return X, [torch.from_numpy(y) for y in labels]


def torch_eager(configuration, threads, compiled=False, channels_last=False):
    """PyTorch modules and a fused optimizer; optionally the loss compiled."""
    torch = _torch(threads)
    X, labels = _torch_data(torch, configuration, channels_last)
    trainings = []
    for copy, rate in enumerate(learning_rates(configuration)):
        network = _torch_network(torch, configuration, channels_last, copy)
        optimizer = _torch_optimizer(torch, configuration, network.parameters(), rate)

        def loss(x, y, network=network):
            return torch.nn.functional.cross_entropy(network(x), y)

        trainings.append((torch.compile(loss) if compiled else loss, optimizer))
    done = [0]

    def run(steps):
        total = 0.0
        for function, optimizer in trainings:
            for step in range(done[0], done[0] + steps):
                optimizer.zero_grad(set_to_none=True)
                value = function(X[step % BATCHES], labels[step % BATCHES])
                value.backward()
                optimizer.step()
            total += float(value.detach())
        done[0] += steps
        return total

    return run


def torch_compiled(configuration, threads):
    """PyTorch with the loss compiled."""
    return torch_eager(configuration, threads, compiled=True)


def torch_channels_last(configuration, threads):
    """PyTorch eager with images in channels_last."""
    return torch_eager(configuration, threads, channels_last=True)


def torch_compiled_channels_last(configuration, threads):
    """PyTorch compiled with images in channels_last."""
    return torch_eager(configuration, threads, compiled=True, channels_last=True)


def _initial(configuration):
    """Return parameters and running statistics of all copies, stacked, as dicts of arrays."""
    copies = [weights(configuration, copy) for copy in range(configuration.copies)]
    parameters = {f"W{i}": np.stack(ws) for i, ws in enumerate(zip(*copies, strict=True))}
    running, n = {}, configuration.copies
    last = len(copies[0]) - 1
    for i, w in enumerate(copies[0]):
        width = w.shape[-1]
        if i < last:
            parameters[f"gamma{i}"] = np.ones((n, width), np.float32)
            parameters[f"beta{i}"] = np.zeros((n, width), np.float32)
            running[f"mean{i}"] = np.zeros((n, width), np.float32)
            running[f"var{i}"] = np.ones((n, width), np.float32)
    parameters[f"b{last}"] = np.zeros((n, CLASSES), np.float32)
    if n == 1:
        parameters, running = (
            {k: v[0] for k, v in arrays.items()} for arrays in (parameters, running)
        )
    return parameters, running, last


def torch_whole_step(configuration, threads):
    """PyTorch: gradient and optimizer, functional, in one compiled graph; vmap over copies."""
    torch = _torch(threads)
    parameters, running, last = _initial(configuration)
    P, R = ({k: torch.from_numpy(v) for k, v in arrays.items()} for arrays in (parameters, running))
    M = {k: torch.zeros_like(v) for k, v in P.items()}
    V = {k: torch.zeros_like(v) for k, v in P.items()}
    t = torch.zeros(())
    rates = torch.tensor(np.asarray(learning_rates(configuration), dtype=np.float32))
    several = configuration.copies > 1

    def loss(P, x, y):
        statistics = []
        for i in range(last):
            z = x @ P[f"W{i}"]
            mean = z.mean(0)
            c = z - mean
            var = (c * c).mean(0)
            statistics.append((mean.detach(), var.detach()))
            x = torch.relu(c * torch.rsqrt(var + EPS) * P[f"gamma{i}"] + P[f"beta{i}"])
        scores = x @ P[f"W{last}"] + P[f"b{last}"]
        return torch.nn.functional.cross_entropy(scores, y), statistics

    gradient = torch.func.grad_and_value(loss, has_aux=True)
    if several:
        gradient = torch.func.vmap(gradient, in_dims=(0, None, None))
    scale = {k: rates.view(-1, *[1] * (v.dim() - 1)) if several else rates[0] for k, v in P.items()}
    beta1, beta2, eps = ADAM

    def step(P, R, M, V, t, x, y):
        G, (value, statistics) = gradient(P, x, y)
        t.add_(1)
        for i, (mean, var) in enumerate(statistics):
            R[f"mean{i}"].lerp_(mean, 0.1)
            R[f"var{i}"].lerp_(var * (BATCH / (BATCH - 1)), 0.1)
        for k in P:
            g = G[k] + WEIGHT_DECAY * P[k]
            if configuration.optimizer == "adam":
                M[k].mul_(beta1).add_((1 - beta1) * g)
                V[k].mul_(beta2).add_((1 - beta2) * g * g)
                root = V[k].sqrt() / (1 - beta2**t).sqrt() + eps
                P[k].sub_(scale[k] / (1 - beta1**t) * M[k] / root)
            else:
                M[k].mul_(MOMENTUM).add_(g)
                P[k].sub_(scale[k] * (g + MOMENTUM * M[k]))
        return value.sum()

    compiled = torch.compile(step, fullgraph=True)
    X, labels = _torch_data(torch, configuration, False)
    done = [0]

    def run(steps):
        with torch.no_grad():
            for index in range(done[0], done[0] + steps):
                value = compiled(P, R, M, V, t, X[index % BATCHES], labels[index % BATCHES])
        done[0] += steps
        return float(value)

    return run


def torch_process_pool(configuration, threads):
    """PyTorch eager, copies shared out to one process for each core."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    pipes = []
    for worker in range(threads):
        here, there = context.Pipe()
        process = context.Process(
            target=_pool_worker, args=(there, configuration, worker, threads), daemon=True
        )
        process.start()
        pipes.append(here)

    def run(steps):
        for pipe in pipes:
            pipe.send(steps)
        return sum(pipe.recv() for pipe in pipes)

    return run


def _pool_worker(pipe, configuration, worker, workers):
    torch = _torch(1)
    X, labels = _torch_data(torch, configuration, False)
    rates = learning_rates(configuration)
    trainings = []
    for copy in range(worker, configuration.copies, workers):
        network = _torch_network(torch, configuration, False, copy)
        optimizer = _torch_optimizer(torch, configuration, network.parameters(), rates[copy])
        trainings.append((network, optimizer))
    done = 0
    while True:
        steps = pipe.recv()
        total = 0.0
        for network, optimizer in trainings:
            for step in range(done, done + steps):
                optimizer.zero_grad(set_to_none=True)
                scores = network(X[step % BATCHES])
                value = torch.nn.functional.cross_entropy(scores, labels[step % BATCHES])
                value.backward()
                optimizer.step()
            total += float(value.detach())
        done += steps
        pipe.send(total)


# --- JAX ------------------------------------------------------------------------------------------


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

    beta1, beta2, eps = ADAM

    def step(state, x, y, rate):
        P, R, M, V, t = state
        (value, R), G = jax.value_and_grad(loss, has_aux=True)(P, R, x, y)
        G = jax.tree.map(lambda g, p: g + WEIGHT_DECAY * p, G, P)
        t = t + 1
        if configuration.optimizer == "adam":
            M = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, M, G)
            V = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, V, G)
            c1, c2 = 1 - beta1**t, jnp.sqrt(1 - beta2**t)
            P = jax.tree.map(
                lambda p, m, v: p - rate / c1 * m / (jnp.sqrt(v) / c2 + eps), P, M, V
            )
        else:
            M = jax.tree.map(lambda m, g: MOMENTUM * m + g, M, G)
            P = jax.tree.map(lambda p, g, m: p - rate * (g + MOMENTUM * m), P, G, M)
        return (P, R, M, V, t), value

    return step


def _jax(configuration, scan):
    import jax
    import jax.numpy as jnp

    parameters, running, last = _initial(configuration)
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
        step = jax.vmap(step, in_axes=((0, 0, 0, 0 if second else None, 0), None, None, 0),
                        out_axes=((0, 0, 0, 0 if second else None, 0), 0))  # fmt: skip
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


def contestants(configuration):
    """Return the contestants for a configuration, ours first."""
    if configuration.copies > 1:
        return (ours, torch_whole_step, torch_process_pool, jax_jit, jax_scan)
    if configuration.sizes is None:
        return (
            ours, torch_eager, torch_channels_last, torch_compiled, torch_compiled_channels_last,
            jax_jit,
        )  # fmt: skip
    return (ours, torch_eager, torch_compiled, torch_whole_step, jax_jit, jax_scan)


