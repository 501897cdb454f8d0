"""Data sets: the digits inside the package; readers for MNIST's family and CIFAR; a fetcher.

sets       digits, and the door to all readers
idx        mnist, read_idx: MNIST, Fashion-MNIST, Kuzushiji-MNIST, EMNIST
cifar      cifar10, cifar100: binary files, or Python pickles (pickled) that run nothing
dataset    what the readers share: a file as it is found, pixels, the refusals
fetch      downloads a set whole and verified, or not at all: `python -m minimal_nn.data`
"""

from minimal_nn.data.sets import DataError, Dataset, cifar10, cifar100, digits, mnist, read_idx

__all__ = ["DataError", "Dataset", "cifar10", "cifar100", "digits", "mnist", "read_idx"]
