"""The images that runs train on, scaled as training.py says, their fingerprint, and batches."""

import functools
import hashlib

import numpy as np

from minimal_nn import data as datasets

CLASSES = 10


@functools.lru_cache(maxsize=2)
def load(name, train, test, flat, folder=None):
    """Return (X_train, y_train, X_test, y_test), standardized float64 pixels.

    name: "digits" or "cifar10".  train, test: how many, the first ones; None: all.  folder: where
    CIFAR-10 lies.
    """
    if name == "digits":
        d = datasets.digits(dtype=np.float64, flat=flat)
    elif name == "cifar10":
        if folder is None:
            raise ValueError("data: cifar10 needs a folder: python -m figures --data DIR")
        d = datasets.cifar10(folder, dtype=np.float32, flat=flat)
    else:
        raise ValueError(f"name: got {name!r}, expected digits or cifar10")
    X, X_test = d.X_train[:train], d.X_test[:test]
    axes = None if flat else tuple(range(X.ndim - 1))
    mean, std = X.mean(axis=axes, dtype=np.float64), X.std(axis=axes, dtype=np.float64)
    return (X - mean) / std, d.y_train[:train], (X_test - mean) / std, d.y_test[:test]


def fingerprint(name, train, test, folder=None):
    """Return a hash of the data themselves: other pixels are another configuration."""
    digest = hashlib.sha256()
    for array in load(name, train, test, False, folder):
        digest.update(np.ascontiguousarray(array.astype(np.float32)).tobytes())
    return digest.hexdigest()[:16]


class Batches:
    """An endless stream of row numbers: whole batches, a new permutation for each epoch."""

    def __init__(self, examples, batch_size, rng):
        if batch_size > examples:
            raise ValueError(
                f"batch_size: got {batch_size}, expected at most {examples}, the examples there are"
            )
        self.examples, self.batch_size, self.rng = examples, batch_size, rng
        self.next = np.empty((0, batch_size), dtype=np.int64)

    def peek(self, count):
        """Return the next `count` batches, (count, batch_size), without taking them."""
        while len(self.next) < count:
            order = self.rng.permutation(self.examples)
            whole = self.examples // self.batch_size * self.batch_size
            epoch = order[:whole].reshape(-1, self.batch_size)
            self.next = np.concatenate([self.next, epoch])
        return self.next[:count]

    def take(self, count):
        """Return the next `count` batches and go past them."""
        rows = self.peek(count)
        self.next = self.next[count:]
        return rows
