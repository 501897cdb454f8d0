"""Training steps: ours, and those of PyTorch."""

import time

import numpy as np

from benchmarks.gpu import cases
from benchmarks.gpu.timing import noting
from minimal_nn import BatchNorm, Conv2d, Dense, Flatten, MaxPool2d, Momentum, Network, ReLU
from minimal_nn.cuda import plan
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, to_host
from minimal_nn.cuda.device.current import current


def networks():
    """Return the networks of the training steps: name, layers, input shape, batch."""

    def block(channels):
        return [Conv2d(channels, bias=False), BatchNorm(), ReLU()]

    # The paper: "a convolutional network with four convolution layers", batch norm, on CIFAR-10.
    paper = [*block(64), MaxPool2d(2), *block(128), MaxPool2d(2), *block(256), MaxPool2d(2)]
    paper += [*block(256), MaxPool2d(2), Flatten(), Dense(10)]
    wide = [Dense(512, bias=False), BatchNorm(), ReLU()]
    return [
        ("paper's network", paper, (32, 32, 3), 128, 1.0),
        ("MLP", [*wide, *wide, Dense(10)], (3072,), 128, 2.0),
    ]


def recorded_step(rng, network):
    """Return the launches of a training step; nothing is run."""
    with launch.simulation(), launch.recorded(run=False) as records:
        loop, arguments = _loop(rng, network, 1)
        loop.run(*arguments)
    return records


def _loop(rng, network, steps):
    """Return the training loop of an entry of `networks`, and what its `run` takes."""
    _, layers, shape, batch, _ = network
    network, optimizer = Network(layers, input_shape=shape, backend="cuda"), Momentum(0.01)
    X = rng.standard_normal((batch * 8, *shape)).astype(np.float32)
    labels = rng.integers(0, 10, len(X))
    loop = plan.plan(network.program(), optimizer, batch)
    batches = np.stack([rng.permutation(len(X))[:batch] for _ in range(steps)])
    return loop, (network, optimizer, asarray(X), asarray(labels), batches)


def torch_network(torch, layers, input_shape):
    """Return the same network as a torch module (channels last), without its numbers."""
    nn, modules, shape = torch.nn, [], input_shape
    for layer in layers:
        output, kind = layer.output_shape(shape), type(layer).__name__
        if kind == "Conv2d":
            make = nn.Conv2d(shape[-1], output[-1], layer.kernel, layer.stride, layer.padding)
            make.bias = make.bias if layer.bias else None
        elif kind == "Dense":
            make = nn.Linear(shape[0], output[0], bias=layer.bias)
        elif kind == "BatchNorm":
            make = (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(shape[-1])
        elif kind == "MaxPool2d":
            make = nn.MaxPool2d(layer.size)
        else:
            make = {"ReLU": nn.ReLU, "Flatten": nn.Flatten}[kind]()
        modules.append(make)
        shape = output
    return nn.Sequential(*modules).to(cases.DEVICE).to(memory_format=torch.channels_last)


def training_step(rng, torch, network, steps=256):
    """Return a row of the table: seconds for a step, ours and PyTorch's, SGD with momentum.

    network: an entry of `networks`.  Both take the same batches from data on the device.
    """
    name, layers, shape, _, aim = network
    loop, (*arguments, batches) = _loop(rng, network, steps)
    loop.run(*arguments, batches[:4])
    start = time.perf_counter()
    loop.run(*arguments, batches)
    current().synchronize()
    ours = (time.perf_counter() - start) / steps
    row = {"name": f"training step, {name}", "seconds": ours, "aim": aim, "peers": {}}
    if torch is not None:
        X, labels = (to_host(array) for array in arguments[2:])
        given = torch, layers, shape, X, labels, batches
        for peer, taking in PEERS.items():
            noting(row, peer, lambda t=taking: _torch_step(t, *given))
    return row


def _finish(torch):
    if cases.DEVICE == "cuda":
        torch.cuda.synchronize()


# What takes a step of PyTorch's: (torch, module, optimizer, the first batch) -> take(X, labels).


def _eagerly(torch, module, optimizer, X, labels):
    def take(X, labels):
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(module(X), labels).backward()
        optimizer.step()

    return take


def _compiled(torch, module, *given):
    """The network as PyTorch compiles it, each pass a CUDA graph."""
    return _eagerly(torch, torch.compile(module, mode="reduce-overhead"), *given)


def _as_a_graph(torch, module, optimizer, X, labels):
    """The whole step as one CUDA graph, as PyTorch's documentation of graphs has it."""
    eager, graph = _eagerly(torch, module, optimizer, X, labels), torch.cuda.CUDAGraph()
    X, labels = X.clone(), labels.clone()  # what the graph reads
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            eager(X, labels)
    torch.cuda.current_stream().wait_stream(aside)
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        eager(X, labels)

    def take(given, its_labels):
        X.copy_(given)
        labels.copy_(its_labels)
        graph.replay()

    return take


PEERS = {"torch": _eagerly, "torch.compile": _compiled, "torch.graph": _as_a_graph}


def _torch_step(taking, torch, layers, shape, X, labels, batches):
    module = torch_network(torch, layers, shape)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, fused=True)
    X, labels, batches = (torch.as_tensor(a, device=cases.DEVICE) for a in (X, labels, batches))
    if len(shape) == 3:
        X = X.permute(0, 3, 1, 2)
    take = taking(torch, module, optimizer, X[batches[0]], labels[batches[0]])
    for rows in batches[:10]:
        take(X[rows], labels[rows])
    _finish(torch)
    start = time.perf_counter()
    for rows in batches:
        take(X[rows], labels[rows])
    _finish(torch)
    return (time.perf_counter() - start) / len(batches)
