"""Data sets: the digits inside the package; readers and a fetcher for MNIST's family and CIFAR-10.

    sets    digits, mnist, cifar10, read_idx: what is read, and how each is refused
    fetch   downloads a set whole and verified, or not at all: `python -m minimal_nn.data`
"""

from minimal_nn.data.sets import DataError, Dataset, cifar10, digits, mnist, read_idx

__all__ = ["DataError", "Dataset", "cifar10", "digits", "mnist", "read_idx"]
