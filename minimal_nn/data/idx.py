"""IDX files, and the sets that come in four of them: MNIST and those in its layout.

A set is found by what its files are called, with or without a prefix, with a dot or a dash, packed
or not:

    train-images-idx3-ubyte.gz    t10k-labels.idx1-ubyte    emnist-letters-test-images-idx3-ubyte
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from minimal_nn.data.dataset import FETCH, DataError, Dataset, missing, names_in, pixels, read
from minimal_nn.data.sources import MNIST_FILES, SOURCES
from minimal_nn.typing import Array, DTypeLike, PathLike

_NAME = re.compile(
    r"(?P<prefix>(?:.+-)?)(?P<part>train|t10k|test)-(?P<what>images|labels)[-.]idx[13][-.]ubyte"
    r"(?:\.gz)?"
)

EMNIST = "from https://www.nist.gov/itl/products-and-services/emnist-dataset"

# The third byte of an IDX file names the type of its numbers, all big-endian.
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_DIGITS = tuple("0123456789")
_UPPER, _LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
_MERGED = (*_DIGITS, *_UPPER, *"abdefghnqrt")  # other letters look alike in both cases
# The classes by label; EMNIST's letters begin with 1.  Fashion-MNIST: H. Xiao, K. Rasul, R.
# Vollgraf, 2017; Kuzushiji-MNIST: T. Clanuwat et al., 2018; EMNIST: G. Cohen et al., 2017.
CLASSES = {
    "mnist": dict(enumerate(_DIGITS)),
    "fashion_mnist": dict(
        enumerate(
            "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
        )
    ),
    "kmnist": dict(enumerate("o ki su tsu na ha ma ya re wo".split())),
    "emnist-digits": dict(enumerate(_DIGITS)),
    "emnist-mnist": dict(enumerate(_DIGITS)),
    "emnist-letters": dict(enumerate(_LOWER, 1)),
    "emnist-balanced": dict(enumerate(_MERGED)),
    "emnist-bymerge": dict(enumerate(_MERGED)),
    "emnist-byclass": dict(enumerate((*_DIGITS, *_UPPER, *_LOWER))),
}
# The first training labels tell two of the sets, wherever their files lie.
_BEGINNINGS = {
    "mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    "fashion_mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
}


def mnist(
    folder: PathLike,
    dtype: DTypeLike = np.float32,
    flat: bool = False,
    *,
    classes: str | Sequence[str] | Mapping[int, str] | None = None,
) -> Dataset:
    """Return MNIST, or a set in the same layout, from four IDX files, as a `Dataset`.

    Its y count from 0: classes[y] is an example's name.  EMNIST stores its images transposed; they
    are returned as stored.

    folder: with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte, each plain or gzip, also with dots (train-images.idx3-ubyte), or with a
    prefix and "test" for "t10k" as EMNIST has them.  dtype: a floating type (pixels scaled to [0,
    1]) or uint8 (as stored).  flat: (N, 784) for (N, 28, 28, 1).  classes: the set's name in
    `CLASSES` ("fashion_mnist", "kmnist", "emnist-letters", ...), a sequence of names for the labels
    0, 1, ..., or a dict {label: name} where labels begin elsewhere.  By default the prefix of the
    files, their hashes, the folder's name or the first labels tell which set it is; of an unknown
    one with labels 0 to 9 `classes` is ().

    Raises DataError, TypeError, and ValueError for an unknown name of a set.
    Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits".
    """
    names, folder = _given(classes), Path(folder).expanduser()
    prefix, paths = _four_files(folder, classes)
    arrays = []
    for images_path, labels_path in (paths[:2], paths[2:]):
        images, labels = read_idx(images_path), read_idx(labels_path)
        for path, array, ndim, what in (
            (images_path, images, 3, "images (N, H, W)"),
            (labels_path, labels, 1, "labels (N,)"),
        ):
            if array.ndim != ndim or array.dtype != np.uint8:
                raise DataError(
                    f"{path} holds {array.dtype} of shape {array.shape}, expected uint8 {what}: "
                    f"another file has its name; fetch it again {FETCH}"
                )
        if len(images) != len(labels):
            raise DataError(
                f"{images_path} holds {len(images)} images and {labels_path} {len(labels)} labels, "
                f"expected as many of one as of the other: fetch both again {FETCH}"
            )
        arrays += [images, labels]
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise DataError(
            f"{folder}: training images are {(*arrays[0].shape[1:], 1)}, test images "
            f"{(*arrays[2].shape[1:], 1)}, expected one shape: the files belong to different sets"
        )
    if names is None:
        names = _recognized(folder, prefix, paths[1], arrays[1])
    known = names or dict(enumerate(_DIGITS))
    for k, path in ((1, paths[1]), (3, paths[3])):
        arrays[k] = _counted(path, arrays[k], known)
    for k in (0, 2):
        arrays[k] = pixels(arrays[k][..., None], 255, dtype, flat)
    return Dataset._make([*arrays, tuple(names.values())])


def read_idx(path: PathLike) -> Array:
    """Return the array in an IDX file: two zero bytes, type, rank, sizes, numbers.

    It has the file's shape and type, in the machine's byte order.  path: what begins as a gzip file
    is decompressed, whatever its name.  Raises DataError unless the file is whole and ends where
    its own header says.
    Source: the page of the MNIST database, "The IDX file format".
    """
    path = Path(path)
    content = read(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES or not content[3]:
        raise DataError(
            f"{path} starts with {content[:4].hex(' ') or 'nothing'}, expected 00 00, a type of "
            f"{', '.join(f'{code:02x}' for code in IDX_TYPES)} and a rank from 01: "
            f"not an IDX file, or damaged; fetch it again {FETCH}"
        )
    dtype, rank = np.dtype(IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise DataError(
            f"{path} is {'truncated' if len(content) < expected else 'too long'}: "
            f"{len(content)} bytes, expected {expected} for {dtype.name} {shape}; "
            f"fetch it again {FETCH}"
        )
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _given(classes):
    """Return {label: name} for the argument `classes`, None where it is None."""
    if classes is None:
        return None
    if isinstance(classes, str):
        if classes not in CLASSES:
            raise ValueError(
                f"classes: got {classes!r}, expected one of {', '.join(CLASSES)}, a sequence of "
                "names, or a dict {label: name}"
            )
        return CLASSES[classes]
    names = dict(classes) if isinstance(classes, dict) else dict(enumerate(classes))
    numbers = all(type(label) is int and 0 <= label < 256 for label in names)
    if not names or not numbers or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(
            f"classes: got {classes!r}, expected names in the order of their labels, or a dict "
            "{label: name} with labels from 0 to 255"
        )
    return names


def _four_files(folder, classes):
    """Return the prefix of a set's files, and their paths in the order of MNIST_FILES."""
    found = {}
    for name in names_in(folder) or ():
        match = _NAME.fullmatch(name)
        if match:
            part = "train" if match["part"] == "train" else "t10k"
            place = found.setdefault(match["prefix"], {}).setdefault((part, match["what"]), [])
            # Of several copies the plain one of the usual name.
            place.append((name.endswith(".gz"), "." in name.removesuffix(".gz"), name))
    if isinstance(classes, str) and f"{classes}-" in found:
        prefix = f"{classes}-"
    elif "" in found or not found:
        prefix = ""
    elif len(found) == 1:
        (prefix,) = found
    else:
        sets = ", ".join(prefix.removesuffix("-") for prefix in found)
        raise DataError(
            f"{folder} holds files of several sets ({sets}), expected those of one: name it, as in "
            f"classes={next(iter(found)).removesuffix('-')!r}, or give each a folder of its own"
        )
    files = found.get(prefix, {})
    paths = []
    for name in MNIST_FILES:
        part, what = name.split("-")[:2]
        if (part, what) not in files:
            fetch = EMNIST if prefix.startswith("emnist") else FETCH
            raise missing(folder / f"{prefix}{name}.gz", fetch)
        paths.append(folder / min(files[part, what])[2])
    return prefix, paths


def _recognized(folder, prefix, labels_path, labels):
    """Return {label: name} for the set that these are the training labels of, {} if not known."""
    mapping = folder / f"{prefix}mapping.txt"
    if prefix and mapping.exists():  # EMNIST's: label, code of the character, of another form of it
        try:
            lines = mapping.read_text(encoding="ascii").splitlines()
            rows = [[int(number) for number in line.split()] for line in lines if line.strip()]
            return {row[0]: chr(row[1]) for row in sorted(rows)}
        except (ValueError, IndexError, OverflowError, OSError) as error:
            raise DataError(
                f"{mapping} cannot be read ({error}), expected lines of a label and the code of "
                "its character: give classes="
            ) from error
    if prefix.removesuffix("-") in CLASSES:
        return CLASSES[prefix.removesuffix("-")]
    digest = hashlib.sha256(labels_path.read_bytes()).hexdigest()
    for name, source in SOURCES.items():
        if any(file.sha256 == digest for file in source.files):
            return CLASSES.get(name, {})
    plain = re.sub("[^a-z]", "", folder.resolve().name.lower())
    by_name = {name.replace("_", ""): name for name in ("mnist", "fashion_mnist", "kmnist")}
    by_name |= {"kuzushiji": "kmnist", "kuzushijimnist": "kmnist", "fashion": "fashion_mnist"}
    if plain in by_name:
        return CLASSES[by_name[plain]]
    for name, beginning in _BEGINNINGS.items():
        if tuple(labels[: len(beginning)]) == beginning:
            return CLASSES[name]
    return {}


def _counted(path, labels, names):
    """Return labels counted from 0 in the order of `names`, refusing others."""
    place = np.full(256, -1)
    place[list(names)] = np.arange(len(names))
    counted = place[labels]
    wrong = np.flatnonzero(counted < 0)
    if wrong.size:
        first, last = min(names), max(names)
        raise DataError(
            f"{path}: the label of record {wrong[0]} is {labels[wrong[0]]}, expected {first} to "
            f"{last}: the file is damaged (fetch it again {FETCH}), or of a set with other "
            f"classes, such as EMNIST: name it, as in classes='emnist-letters', or give its names"
        )
    return counted
