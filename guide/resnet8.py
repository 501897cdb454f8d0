"""A residual network of eight layers (a ResNet-8; He et al., 2016), on the digits or on CIFAR-10.

    python guide/resnet8.py
    python guide/resnet8.py --data cifar10 --folder data --epochs 20

`python -m minimal_nn.data cifar10` fetches CIFAR-10 into the folder data.

>>> network, history, error = train(epochs=2)
>>> error < 0.06
True
"""

import argparse

import minimal_nn as nn
from minimal_nn.augmentation import flip_and_shift
from minimal_nn.data import cifar10, digits
from minimal_nn.schedules import Cosine


def block(channels, stride=1):
    """Return a residual block and what follows it: with a stride, of half as many pixels a row."""
    body = [
        *(nn.Conv2d(channels, stride=stride, bias=False), nn.BatchNorm(), nn.ReLU()),
        *(nn.Conv2d(channels, bias=False), nn.BatchNorm()),
    ]
    projection = nn.Conv2d(channels, kernel=1, stride=stride, padding=0, bias=False)
    shortcut = [projection, nn.BatchNorm()] if stride > 1 else []
    return [nn.Residual(body, shortcut), nn.ReLU()]


def resnet8(input_shape, width, **options):
    """Return the network for ten classes; width: its channels before the first stride."""
    layers = [nn.Conv2d(width, bias=False), nn.BatchNorm(), nn.ReLU(), *block(width)]
    layers += [*block(2 * width, stride=2), *block(4 * width, stride=2)]
    return nn.Network([*layers, nn.AveragePool2d(), nn.Dense(10)], input_shape, **options)


def standardized(data):
    """Return the images to train and to test with, each color of mean 0 and variance 1."""
    mean, std = (f(axis=(0, 1, 2)) for f in (data.X_train.mean, data.X_train.std))
    return (data.X_train - mean) / std, (data.X_test - mean) / std


def train(data="digits", folder="data", epochs=2, backend="cpu", progress=False):
    """Train on a data set by name; return the network, its history and its error on the test set.

    folder: where CIFAR-10 is.
    """
    on_cifar = data == "cifar10"
    examples = cifar10(folder) if on_cifar else digits(flat=False)
    X, X_test = standardized(examples)
    network = resnet8(X.shape[1:], width=16 if on_cifar else 8, rng=0, backend=backend)
    steps = epochs * -(-len(X) // 64)
    history = nn.fit(
        network,
        nn.Nesterov(0.05, weight_decay=1e-3),
        X,
        examples.y_train,
        epochs=epochs,
        batch_size=64,
        schedule=Cosine(steps, final=0.01),
        augment=flip_and_shift if on_cifar else None,
        progress=progress,
    )
    return network, history, network.error(X_test, examples.y_test)


def main(arguments=None):
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--data", choices=("digits", "cifar10"), default="digits")
    p.add_argument("--folder", default="data", help="where CIFAR-10 is")
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--backend", choices=("cpu", "reference"), default="cpu")
    options = vars(p.parse_args(arguments))
    network, history, error = train(**options, progress=True)
    print(network.plan_report(nn.Nesterov(0.05)))
    print(f"loss {history.epochs[-1]['loss']:.3f}, error on the test set {error:.1%}")


if __name__ == "__main__":
    main()
