"""What the readers of data sets share: the set itself, files as they are found, pixels."""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimal_nn.typing import Array, DTypeLike

FETCH = "with `python -m minimal_nn.data`"
GZIP = b"\x1f\x8b"  # the first two bytes of a gzip file
LISTED = 12  # names in a message


class DataError(ValueError):
    """A data file is missing, truncated, corrupt or of another kind than its reader expects."""


class Dataset(NamedTuple):
    """A training and a test set: images X_* (N, H, W, C) or (N, H*W*C), labels y_* (N,) int64.

    classes: the name of each label, or () where it is not known.
    """

    X_train: Array
    y_train: Array
    X_test: Array
    y_test: Array
    classes: tuple[str, ...]


def read(path):
    """Return a file's bytes, decompressed where its first bytes say that it is a gzip file.

    Not its name: browsers unpack a .gz and leave it its name, or take the suffix from a packed one.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == GZIP else content
    except FileNotFoundError as error:
        raise missing(path) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is truncated or corrupt ({error}), expected a whole gzip file: "
            f"fetch it again {FETCH}"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def missing(path, fetch=FETCH):
    """Return the error for a file that is not there; it says what is, and how to fetch the file."""
    path = Path(path)
    return DataError(f"{path} does not exist: fetch it {fetch}; {path.parent} {_holds(path)}")


def _holds(path):
    """Return "holds ...", the names of what is in the folder of `path`, in words."""
    names = names_in(path.parent)
    if names is None:
        return "does not exist either"
    if not names:
        return "is empty"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"holds {', '.join(names[:LISTED])}{more}"


def names_in(folder):
    """Return the names of what a folder holds, sorted, or None if there is no such folder."""
    try:
        return sorted(entry.name for entry in Path(folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error


def pixels(images: Array, largest: int, dtype: DTypeLike, flat: bool) -> Array:
    """Return images (N, H, W, C) uint8 as dtype, scaled to [0, 1] when dtype is a floating type."""
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
