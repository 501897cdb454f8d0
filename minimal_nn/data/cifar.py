"""CIFAR-10 and CIFAR-100 as A. Krizhevsky distributes them: in binary files, or in Python pickles.

A record of a binary file is the label (of CIFAR-100 the coarse label and the fine one), then the
red, green and blue plane of a 32 x 32 image, row by row.  A pickle holds a dict with the same
planes as an array (N, 3072), and lists of labels; it is read without running what it names
(pickled.py).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimal_nn.data.dataset import FETCH, DataError, Dataset, missing, pixels, read
from minimal_nn.data.pickled import unpickled
from minimal_nn.typing import DTypeLike, PathLike

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR10_RECORDS = 10_000  # in each of the six files
CIFAR10_TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
CIFAR10_TEST = "test_batch.bin"
CIFAR10_FOLDER = "cifar-10-batches-bin"
PAGE = "from https://www.cs.toronto.edu/~kriz/cifar.html"

COARSE_CLASSES = tuple(
    """aquatic_mammals fish flowers food_containers fruit_and_vegetables
    household_electrical_devices household_furniture insects large_carnivores
    large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
    medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1
    vehicles_2""".split()
)
FINE_CLASSES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)


class Layout(NamedTuple):
    """One of the two forms of a set.

    train, test: the number of records by file.  labels: how many labels a binary record begins
    with; None for pickles.  fetch: how to get it.
    """

    folder: str
    train: dict
    test: dict
    labels: int | None
    fetch: str


def _layouts10():
    n = CIFAR10_RECORDS
    plain = [name.removesuffix(".bin") for name in (*CIFAR10_TRAIN, CIFAR10_TEST)]
    return (
        Layout(CIFAR10_FOLDER, dict.fromkeys(CIFAR10_TRAIN, n), {CIFAR10_TEST: n}, 1, FETCH),
        Layout("cifar-10-batches-py", dict.fromkeys(plain[:-1], n), {plain[-1]: n}, None, PAGE),
    )


CIFAR100_RECORDS = 50_000, 10_000


def _layouts100():
    train, test = CIFAR100_RECORDS
    return (
        Layout("cifar-100-binary", {"train.bin": train}, {"test.bin": test}, 2, PAGE),
        Layout("cifar-100-python", {"train": train}, {"test": test}, None, PAGE),
    )


def cifar10(folder: PathLike, dtype: DTypeLike = np.float32, flat: bool = False) -> Dataset:
    """Return CIFAR-10, 50,000 training and 10,000 test images, as a `Dataset`.

    From its binary layout or from pickles.  folder: cifar-10-batches-bin or cifar-10-batches-py, or
    the folder that it lies in.  dtype: a floating type (pixels scaled to [0, 1]) or uint8 (as
    stored).  flat: (N, 3072) for (N, 32, 32, 3).  Raises DataError and TypeError.
    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    return _set(folder, _layouts10(), (0, "labels"), CIFAR10_CLASSES, dtype, flat)


def cifar100(
    folder: PathLike, dtype: DTypeLike = np.float32, flat: bool = False, *, coarse: bool = False
) -> Dataset:
    """Return CIFAR-100, 50,000 training and 10,000 test images, as a `Dataset`.

    From its binary layout or from pickles.  Arguments as for `cifar10`, with cifar-100-binary or
    cifar-100-python.  coarse: the 20 superclasses for the 100 classes.  Raises DataError and
    TypeError.
    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    which = (0, "coarse_labels") if coarse else (1, "fine_labels")
    classes = COARSE_CLASSES if coarse else FINE_CLASSES
    return _set(folder, _layouts100(), which, classes, dtype, flat)


def _set(folder, layouts, which, classes, dtype, flat):
    folder, layout = _located(Path(folder).expanduser(), layouts)
    arrays = []
    for files in (layout.train, layout.test):
        parts = [_records(folder / name, n, layout, which, classes) for name, n in files.items()]
        planes, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays += [pixels(images, 255, dtype, flat), labels.astype(np.int64)]
    return Dataset(*arrays, classes=classes)


def _located(folder, layouts):
    """Return the folder of a set, and in which layout it is there."""
    for layout in layouts:
        for place in (folder / layout.folder, folder):
            if any((place / name).exists() for name in (*layout.train, *layout.test)):
                return place, layout
    places = [(folder / layout.folder, layout) for layout in layouts]
    place, layout = next((p for p in places if p[0].is_dir()), (folder, layouts[0]))
    raise missing(place / next(iter(layout.train)), layout.fetch)


def _records(path, count, layout, which, classes):
    """Return the planes (N, 3072) and the chosen labels (N,) of a file."""
    if not path.exists():
        raise missing(path, layout.fetch)
    content = read(path)
    if layout.labels is None:
        planes, labels = _pickled_records(path, content, count, which[1])
    else:
        size = layout.labels + 3072
        if len(content) != count * size:
            kind = "truncated" if len(content) < count * size else "too long"
            raise DataError(
                f"{path} is {kind}: {len(content)} bytes, expected {count * size} ({count} records "
                f"of {size}); fetch it again {layout.fetch}"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        planes, labels = records[:, layout.labels :], records[:, which[0]]
    wrong = np.flatnonzero(labels >= len(classes))
    if wrong.size:
        raise DataError(
            f"{path} is corrupt: the label of record {wrong[0]} is {labels[wrong[0]]}, "
            f"expected 0 to {len(classes) - 1}; fetch it again {layout.fetch}"
        )
    return planes, labels


def _pickled_records(path, content, count, name):
    batch = unpickled(path, content)
    if not isinstance(batch, dict):
        raise DataError(f"{path} holds a {type(batch).__name__}, expected a dict of a CIFAR batch")
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: batch[key] for key in batch}
    for key in ("data", name):
        if key not in batch:
            raise DataError(
                f"{path} holds {', '.join(map(str, batch))}, expected 'data' and {name!r}: it is "
                "of another set"
            )
    planes, labels = batch["data"], batch[name]
    if not isinstance(planes, np.ndarray) or planes.shape != (count, 3072):
        got = getattr(planes, "shape", type(planes).__name__)
        raise DataError(
            f"{path} holds data of shape {got}, expected {(count, 3072)}: fetch it again {PAGE}"
        )
    if not isinstance(labels, list) or any(type(n) is not int or not 0 <= n < 256 for n in labels):
        raise DataError(f"{path} holds no list of labels as its {name}: fetch it again {PAGE}")
    if len(labels) != count:
        raise DataError(f"{path} holds {count} images and {len(labels)} labels, expected as many")
    return planes, np.array(labels)
