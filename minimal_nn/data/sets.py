"""Data sets: the digits inside the package; the MNIST family, CIFAR-10 and CIFAR-100 from a folder.

    digits()           1,797 images of 8 x 8 pixels, no download
    mnist(folder)      MNIST, Fashion-MNIST, Kuzushiji-MNIST, EMNIST: four IDX files
    cifar10(folder)    CIFAR-10, the binary layout or that of Python pickles
    cifar100(folder)   CIFAR-100, likewise
    read_idx(path)     any IDX file, plain or gzip

`python -m minimal_nn.data` fetches and verifies the files that a folder needs. A file that is
missing, truncated, too long or of another kind is refused with DataError; nothing is shortened
or filled up in silence.

digits.npz holds the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, 1998, UCI Machine Learning Repository, CC BY 4.0) with its source, licence, citation
and the SHA-256 of the file optdigits.tes that it was made from:

    rows = np.loadtxt("optdigits.tes", delimiter=",", dtype=np.uint8)
    np.savez_compressed("digits.npz", images=rows[:, :64].reshape(-1, 8, 8), labels=rows[:, 64],
                        source=..., licence=..., citation=..., sha256=...)
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from minimal_nn.data.cifar import cifar10, cifar100
from minimal_nn.data.dataset import DataError, Dataset, pixels
from minimal_nn.data.idx import mnist, read_idx
from minimal_nn.typing import DTypeLike

__all__ = ["DataError", "Dataset", "cifar10", "cifar100", "digits", "mnist", "read_idx"]


def digits(dtype: DTypeLike = np.float32, flat: bool = True) -> Dataset:
    """Return the UCI handwritten digits, split once and for all: 1,352 to train, 445 to test.

    Every fourth image of each class, in the order of the file, is a test image: the split is
    stratified, depends on no seed and is the same with every version of NumPy.

    dtype: a floating type (pixels scaled to [0, 1]) or uint8 (as stored, 0 to 16).  flat: whether
    images come as (N, 64) or as (N, 8, 8, 1).  Returns a `Dataset`.  Raises TypeError for another
    dtype, DataError for a damaged digits.npz.
    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.

    >>> data = digits()
    >>> data.X_train.shape, data.X_test.shape, data.X_train.dtype
    ((1352, 64), (445, 64), dtype('float32'))
    """
    path = Path(__file__).with_name("digits.npz")
    try:
        with open(path, "rb") as file, np.load(file) as archive:
            images, labels = archive["images"], archive["labels"].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is part of the package and cannot be read ({error}): install the package again"
        ) from error
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[3::4]] = True
    X = pixels(images[..., None], 16, dtype, flat)
    return Dataset(X[~test], labels[~test], X[test], labels[test], tuple("0123456789"))
