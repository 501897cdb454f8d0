"""Where the data sets come from: addresses, sizes and sums of their files."""

from typing import NamedTuple

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class File(NamedTuple):
    name: str
    size: int  # bytes
    sha256: str


class Source(NamedTuple):
    """Where a set comes from: addresses (tried in order) under which its files lie."""

    title: str
    folder: str
    addresses: tuple[str, ...]
    files: tuple[File, ...]
    unpacked: int = 0  # bytes that unpacking writes


def _mnist_files(*sizes_and_sums):
    return tuple(
        File(name + ".gz", size, sha256)
        for name, (size, sha256) in zip(MNIST_FILES, sizes_and_sums, strict=True)
    )


# Sizes and sums: tensorflow_datasets/url_checksums in TensorFlow Datasets, each found in further
# projects. MNIST's own page no longer serves files; its two addresses are long-standing copies.
SOURCES = {
    "cifar10": Source(
        "CIFAR-10, binary version",
        "",
        ("https://www.cs.toronto.edu/~kriz/",),
        (
            File(
                "cifar-10-binary.tar.gz",
                170052171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        unpacked=6 * 30_730_000 + 61,
    ),
    "mnist": Source(
        "MNIST",
        "mnist",
        (
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        _mnist_files(
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "fashion_mnist": Source(
        "Fashion-MNIST",
        "fashion_mnist",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        _mnist_files(
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
    "kmnist": Source(
        "Kuzushiji-MNIST",
        "kmnist",
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        _mnist_files(
            (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
            (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
            (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
            (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
        ),
    ),
}
