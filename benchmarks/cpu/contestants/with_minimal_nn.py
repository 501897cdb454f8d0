"""This project: the compiled training loop, by public names and `Backend.plan` alone.

So the same lines train with the `minimal_nn` of another checkout (see benchmarks.cpu.against).
"""

from concurrent.futures import ThreadPoolExecutor

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


def network_of(configuration, copy=0):
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


def optimizer_of(configuration, rate):
    from minimal_nn import Adam, Nesterov

    if configuration.optimizer == "adam":
        return Adam(learning_rate=rate, weight_decay=WEIGHT_DECAY)
    return Nesterov(learning_rate=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def ours(configuration, threads):
    """This project: the compiled training loop; copies in threads, one for each core."""
    from minimal_nn import set_num_threads

    several = configuration.copies > 1
    set_num_threads(1 if several else threads)
    X, labels = data(configuration)
    X, labels = X.reshape(-1, *X.shape[2:]), labels.reshape(-1)
    rows = np.arange(BATCHES * BATCH).reshape(BATCHES, BATCH)
    executor = ThreadPoolExecutor(threads)

    def prepare(copy, rate):
        network, optimizer = network_of(configuration, copy), optimizer_of(configuration, rate)
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
