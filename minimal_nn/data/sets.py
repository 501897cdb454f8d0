"""Data sets: the digits inside the package; the MNIST family and CIFAR-10 from a folder.

    digits()          1,797 images of 8 x 8 pixels, no download
    mnist(folder)     MNIST, Fashion-MNIST, Kuzushiji-MNIST: four IDX files
    cifar10(folder)   CIFAR-10 in its binary layout
    read_idx(path)    any IDX file, plain or .gz

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

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

FETCH = "`python -m minimal_nn.data`"

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR10_RECORDS = 10_000  # in each of the six files
CIFAR10_TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
CIFAR10_TEST = "test_batch.bin"
CIFAR10_FOLDER = "cifar-10-batches-bin"

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

# The third byte of an IDX file names the type of its numbers, all big-endian.
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class DataError(ValueError):
    """A data file is missing, truncated, corrupt or of another kind than its reader expects."""


class Dataset(NamedTuple):
    """A training and a test set: images X_* (N, H, W, C) or (N, H*W*C), labels y_* (N,) int64."""

    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]


def digits(dtype=np.float32, flat=True):
    """The UCI handwritten digits, split once and for all: 1,352 to train, 445 to test.

    Every fourth image of each class, in the order of the file, is a test image: the split is
    stratified, depends on no seed and is the same with every version of NumPy.

    Arguments: dtype, a floating type (pixels scaled to [0, 1]) or uint8 (as stored, 0 to 16);
        flat, whether images come as (N, 64) or as (N, 8, 8, 1).
    Returns: Dataset. Raises: TypeError for another dtype, DataError for a damaged digits.npz.
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
    X = _pixels(images[..., None], 16, dtype, flat)
    return Dataset(X[~test], labels[~test], X[test], labels[test], tuple("0123456789"))


def mnist(folder, dtype=np.float32, flat=False):
    """MNIST, or a set in the same layout (Fashion-MNIST, Kuzushiji-MNIST), from four IDX files.

    Arguments: folder with train-images-idx3-ubyte, train-labels-idx1-ubyte,
        t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each plain or .gz; dtype, a floating
        type (pixels scaled to [0, 1]) or uint8 (as stored); flat, (N, 784) for (N, 28, 28, 1).
    Returns: Dataset. Raises: DataError, TypeError.
    Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits".
    """
    arrays = []
    for images_name, labels_name in (MNIST_FILES[:2], MNIST_FILES[2:]):
        images_path, labels_path = (_plain_or_gz(folder, n) for n in (images_name, labels_name))
        images, labels = read_idx(images_path), read_idx(labels_path)
        for path, array, ndim, what in (
            (images_path, images, 3, "images (N, H, W)"),
            (labels_path, labels, 1, "labels (N,)"),
        ):
            if array.ndim != ndim or array.dtype != np.uint8:
                raise DataError(
                    f"{path} holds {array.dtype} of shape {array.shape}, expected uint8 {what}: "
                    f"another file has its name; fetch it again with {FETCH}"
                )
        if len(images) != len(labels):
            raise DataError(
                f"{images_path} holds {len(images)} images and {labels_path} {len(labels)} labels, "
                f"expected as many of one as of the other: fetch both again with {FETCH}"
            )
        _check_labels(labels_path, labels)
        arrays += [_pixels(images[..., None], 255, dtype, flat), labels.astype(np.int64)]
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise DataError(
            f"{folder}: training images are {arrays[0].shape[1:]}, test images "
            f"{arrays[2].shape[1:]}, expected one shape: the files belong to different sets"
        )
    return Dataset(*arrays, classes=tuple("0123456789"))


def cifar10(folder, dtype=np.float32, flat=False):
    """CIFAR-10 from its binary layout: 50,000 training and 10,000 test images.

    A file holds 10,000 records of 3,073 bytes: the label, then the red, green and blue plane of
    a 32 x 32 image, row by row.

    Arguments: folder, cifar-10-batches-bin or the folder that it lies in; dtype, a floating type
        (pixels scaled to [0, 1]) or uint8 (as stored); flat, (N, 3072) for (N, 32, 32, 3).
    Returns: Dataset. Raises: DataError, TypeError.
    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    folder = Path(folder)
    if (folder / CIFAR10_FOLDER).is_dir():
        folder = folder / CIFAR10_FOLDER
    train = np.concatenate([_cifar10_records(folder / name) for name in CIFAR10_TRAIN])
    arrays = []
    for records in (train, _cifar10_records(folder / CIFAR10_TEST)):
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays += [_pixels(images, 255, dtype, flat), records[:, 0].astype(np.int64)]
    return Dataset(*arrays, classes=CIFAR10_CLASSES)


def read_idx(path):
    """The array in an IDX file, plain or .gz: two zero bytes, type, rank, sizes, numbers.

    Arguments: path; a name that ends in .gz is decompressed.
    Returns: array of the file's shape and type, in the machine's byte order.
    Raises: DataError unless the file is whole and ends where its own header says.
    Source: the page of the MNIST database, "The IDX file format".
    """
    path = Path(path)
    content = _read(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES or not content[3]:
        raise DataError(
            f"{path} starts with {content[:4].hex(' ') or 'nothing'}, expected 00 00, a type of "
            f"{', '.join(f'{code:02x}' for code in IDX_TYPES)} and a rank from 01: "
            f"not an IDX file, or damaged; fetch it again with {FETCH}"
        )
    dtype, rank = np.dtype(IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise DataError(
            f"{path} is {'truncated' if len(content) < expected else 'too long'}: "
            f"{len(content)} bytes, expected {expected} for {dtype.name} {shape}; "
            f"fetch it again with {FETCH}"
        )
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _cifar10_records(path):
    content = _read(path)
    expected = CIFAR10_RECORDS * 3073
    if len(content) != expected:
        raise DataError(
            f"{path} is {'truncated' if len(content) < expected else 'too long'}: {len(content)} "
            f"bytes, expected {expected} ({CIFAR10_RECORDS} records of 3073); "
            f"fetch it again with {FETCH}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    _check_labels(path, records[:, 0])
    return records


def _check_labels(path, labels):
    wrong = np.flatnonzero(labels > 9)
    if wrong.size:
        raise DataError(
            f"{path} is corrupt: the label of record {wrong[0]} is {labels[wrong[0]]}, "
            f"expected 0 to 9; fetch it again with {FETCH}"
        )


def _plain_or_gz(folder, name):
    path = Path(folder) / name
    return path if path.exists() else path.with_name(name + ".gz")


def _read(path):
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: fetch it with {FETCH}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is truncated or corrupt ({error}), expected a whole gzip file: "
            f"fetch it again with {FETCH}"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _pixels(images, largest, dtype, flat):
    """Images (N, H, W, C) uint8 as dtype, scaled to [0, 1] when dtype is a floating type."""
    dtype = np.dtype(dtype)
    if dtype != np.uint8 and dtype.kind != "f":
        raise TypeError(
            f"dtype is {dtype}, expected a floating type (pixels scaled to [0, 1]) "
            f"or uint8 (pixels as stored)"
        )
    X = images.astype(dtype, order="C")
    if dtype.kind == "f":
        X /= dtype.type(largest)
    return X.reshape(len(X), -1) if flat else X
