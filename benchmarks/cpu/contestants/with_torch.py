"""PyTorch: fused optimizers, channels_last, torch.compile of the loss and of a whole step."""

import numpy as np

from benchmarks.cpu.configurations import (
    ADAM_BETAS_EPS,
    BATCH,
    BATCHES,
    CHANNELS,
    CLASSES,
    EPS,
    MOMENTUM,
    WEIGHT_DECAY,
    data,
    initial,
    learning_rates,
    weights,
)


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
        beta1, beta2, eps = ADAM_BETAS_EPS
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


def torch_whole_step(configuration, threads):
    """PyTorch: gradient and optimizer, functional, in one compiled graph; vmap over copies."""
    torch = _torch(threads)
    parameters, running, last = initial(configuration)
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
    beta1, beta2, eps = ADAM_BETAS_EPS

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
