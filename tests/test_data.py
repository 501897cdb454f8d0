"""The data sets and their readers: what is read is what was written, and nothing less."""

import gzip
import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minimal_nn.data import sets

# What the UCI repository calls optdigits.tes.
DIGITS_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
IDX_CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D}
IDX_CODES["float64"] = 0x0E


def idx(array):
    """The bytes of an IDX file that holds this array."""
    header = bytes([0, 0, IDX_CODES[array.dtype.name], array.ndim])
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def mnist_arrays():
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": rng.integers(0, 10, 20, np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (7, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, 7, np.uint8),
    }


@pytest.fixture
def mnist_folder(tmp_path, mnist_arrays):
    for name, array in mnist_arrays.items():
        (tmp_path / (name + ".gz")).write_bytes(gzip.compress(idx(array)))
    return tmp_path


@pytest.fixture
def cifar10_folder(tmp_path, monkeypatch):
    """Six files of four records instead of ten thousand."""
    monkeypatch.setattr(sets, "CIFAR10_RECORDS", 4)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name in (*sets.CIFAR10_TRAIN, sets.CIFAR10_TEST):
        records = rng.integers(0, 256, (4, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    return folder


class TestDigits:
    def test_the_file_is_the_uci_test_set_to_the_last_byte(self):
        with np.load(sets.__file__.replace("sets.py", "digits.npz")) as archive:
            rows = np.column_stack([archive["images"].reshape(-1, 64), archive["labels"]])
            text = "".join(",".join(map(str, row)) + "\n" for row in rows.tolist())
            assert hashlib.sha256(text.encode()).hexdigest() == DIGITS_SHA256
            assert archive["sha256"].item() == DIGITS_SHA256
            assert "optdigits.tes" in archive["source"].item()
            assert "CC BY 4.0" in archive["licence"].item()
            assert "Alpaydin" in archive["citation"].item()

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
    def test_pixels_are_sixteenths_in_any_precision(self, dtype):
        scaled, stored = sets.digits(dtype), sets.digits(np.uint8)
        assert scaled.X_train.dtype == dtype and scaled.y_train.dtype == np.int64
        assert np.array_equal(scaled.X_train * 16, stored.X_train)
        assert scaled.X_train.min() == 0 and scaled.X_train.max() == 1

    def test_shapes(self):
        flat, images = sets.digits(), sets.digits(flat=False)
        assert flat.X_train.shape == (1352, 64) and flat.X_test.shape == (445, 64)
        assert images.X_train.shape == (1352, 8, 8, 1)
        assert np.array_equal(images.X_test.reshape(445, 64), flat.X_test)
        assert flat.classes == tuple("0123456789")

    def test_the_split_is_stratified_and_complete(self):
        d = sets.digits(np.uint8)
        train, test = np.bincount(d.y_train), np.bincount(d.y_test)
        assert np.array_equal(test, (train + test) // 4)
        with np.load(sets.__file__.replace("sets.py", "digits.npz")) as archive:
            original = np.sort(archive["images"].reshape(-1, 64), axis=0)
        assert np.array_equal(np.sort(np.concatenate([d.X_train, d.X_test]), axis=0), original)

    def test_the_split_never_changes(self):
        # Published errors refer to this split; a seed must not reach it.
        labels = sets.digits().y_test.astype(np.uint8).tobytes()
        assert hashlib.sha256(labels).hexdigest() == (
            "312924a2845c9ed4dc2ac4796180cf57c2b581b6cee404511d7d864fe6574bb5"
        )

    def test_arrays_are_the_callers_own(self):
        sets.digits().X_train[:] = -1
        assert sets.digits().X_train.min() == 0

    def test_another_dtype_is_refused(self):
        message = (
            "dtype is int32, expected a floating type (pixels scaled to [0, 1]) "
            "or uint8 (pixels as stored)"
        )
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            sets.digits(np.int32)

    @pytest.mark.parametrize(
        "damage", [lambda b: b[:2000], lambda b: b"", lambda b: b[:-9] + b[:9]]
    )
    def test_a_damaged_package_is_told(self, damage, tmp_path, monkeypatch):
        with open(sets.__file__.replace("sets.py", "digits.npz"), "rb") as file:
            (tmp_path / "digits.npz").write_bytes(damage(file.read()))
        monkeypatch.setattr(sets, "__file__", str(tmp_path / "sets.py"))
        with pytest.raises(sets.DataError, match="digits.npz .* install the package again"):
            sets.digits()


class TestIdx:
    @given(
        array=st.sampled_from(sorted(IDX_CODES)).flatmap(
            lambda name: arrays(np.dtype(name), array_shapes(max_dims=4, max_side=4))
        ),
        compressed=st.booleans(),
    )
    def test_round_trip(self, array, compressed, tmp_path_factory):
        path = tmp_path_factory.mktemp("idx") / ("a.gz" if compressed else "a")
        path.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
        found = sets.read_idx(path)
        assert found.dtype == array.dtype and found.dtype.isnative
        assert found.shape == array.shape and found.tobytes() == array.tobytes()

    @given(cut=st.integers(1, 27), compressed=st.booleans())
    def test_every_truncation_is_refused(self, cut, compressed, tmp_path_factory):
        path = tmp_path_factory.mktemp("idx") / ("a.gz" if compressed else "a")
        content = idx(np.arange(4, dtype=np.int32).reshape(2, 2))
        path.write_bytes(gzip.compress(content[:-cut]) if compressed else content[:-cut])
        with pytest.raises(sets.DataError, match=re.escape(str(path))):
            sets.read_idx(path)

    def test_every_truncation_of_a_gz_file_is_refused(self, tmp_path):
        path = tmp_path / "a.gz"
        whole = gzip.compress(idx(np.arange(6, dtype=np.uint8)))
        for length in range(1, len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(sets.DataError, match="is truncated or corrupt .* whole gzip file"):
                sets.read_idx(path)

    @pytest.mark.parametrize(
        "content, message",
        [
            (b"", "starts with nothing, expected 00 00, a type of 08, 09, 0b, 0c, 0d, 0e and"),
            (b"\x89PNG", "starts with 89 50 4e 47, expected 00 00"),
            (b"\0\0\x0a\1\0\0\0\0", "starts with 00 00 0a 01, expected 00 00"),
            (b"\0\0\x08\0", "starts with 00 00 08 00, expected 00 00, a type .* a rank from 01"),
            (b"\0\0\x08\1\0\0\0\4abc", r"is truncated: 11 bytes, expected 12 for uint8 \(4,\)"),
            (b"\0\0\x08\1\0\0\0\2abc", r"is too long: 11 bytes, expected 10 for uint8 \(2,\)"),
            (b"\0\0\x0e\3" + b"\xff" * 12, "is truncated: 16 bytes, expected "),
        ],
    )
    def test_messages(self, content, message, tmp_path):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(sets.DataError, match=f"a {message}.*python -m minimal_nn.data"):
            sets.read_idx(tmp_path / "a")

    def test_a_bit_flipped_in_a_gz_file_is_refused(self, tmp_path):
        whole = bytearray(gzip.compress(idx(np.arange(100, dtype=np.uint8))))
        whole[len(whole) // 2] ^= 1
        (tmp_path / "a.gz").write_bytes(whole)
        with pytest.raises(sets.DataError, match="is truncated or corrupt"):
            sets.read_idx(tmp_path / "a.gz")

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(sets.DataError, match="cannot be read"):
            sets.read_idx(tmp_path)


class TestMnist:
    def test_reads_gz_and_plain_files(self, mnist_folder, mnist_arrays):
        name = "train-images-idx3-ubyte"
        (mnist_folder / (name + ".gz")).unlink()
        (mnist_folder / name).write_bytes(idx(mnist_arrays[name]))
        d = sets.mnist(mnist_folder, np.uint8)
        assert np.array_equal(d.X_train[..., 0], mnist_arrays[name])
        assert np.array_equal(d.y_train, mnist_arrays["train-labels-idx1-ubyte"])
        assert np.array_equal(d.X_test[..., 0], mnist_arrays["t10k-images-idx3-ubyte"])
        assert np.array_equal(d.y_test, mnist_arrays["t10k-labels-idx1-ubyte"])

    def test_scaling_and_shapes(self, mnist_folder, mnist_arrays):
        d = sets.mnist(mnist_folder, np.float64, flat=True)
        assert d.X_train.shape == (20, 784) and d.y_train.dtype == np.int64
        expected = mnist_arrays["t10k-images-idx3-ubyte"].reshape(7, 784) / 255
        assert np.array_equal(d.X_test, expected)
        assert sets.mnist(mnist_folder).X_train.shape == (20, 28, 28, 1)
        assert sets.mnist(mnist_folder).X_train.dtype == np.float32

    @pytest.mark.parametrize(
        "name, array, message",
        [
            (
                "train-images-idx3-ubyte",
                np.zeros(20, np.uint8),
                r"train-images-idx3-ubyte.gz holds uint8 of shape \(20,\), "
                r"expected uint8 images \(N, H, W\): another file has its name",
            ),
            (
                "train-images-idx3-ubyte",
                np.zeros((20, 28, 28), np.float32),
                "holds float32 of shape .* expected uint8 images",
            ),
            ("t10k-labels-idx1-ubyte", np.zeros((7, 1), np.uint8), r"expected uint8 labels \(N,\)"),
            (
                "t10k-labels-idx1-ubyte",
                np.zeros(6, np.uint8),
                "holds 7 images and .* 6 labels, expected as many",
            ),
            (
                "train-labels-idx1-ubyte",
                np.full(20, 11, np.uint8),
                "is corrupt: the label of record 0 is 11, expected 0 to 9",
            ),
            (
                "t10k-images-idx3-ubyte",
                np.zeros((7, 8, 8), np.uint8),
                r"training images are \(28, 28, 1\), test images \(8, 8, 1\), expected one shape",
            ),
        ],
    )
    def test_messages(self, mnist_folder, name, array, message):
        (mnist_folder / (name + ".gz")).write_bytes(gzip.compress(idx(array)))
        with pytest.raises(sets.DataError, match=message):
            sets.mnist(mnist_folder)

    def test_a_missing_file_is_named_with_the_command_that_fetches_it(self, mnist_folder):
        (mnist_folder / "t10k-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(
            sets.DataError,
            match="t10k-labels-idx1-ubyte.gz does not exist: fetch it with `python -m minimal_nn.",
        ):
            sets.mnist(mnist_folder)


class TestCifar10:
    def test_channels_come_last(self, cifar10_folder):
        d = sets.cifar10(cifar10_folder, np.uint8)
        record = np.frombuffer((cifar10_folder / "data_batch_2.bin").read_bytes(), np.uint8)[:3073]
        image = d.X_train[4]
        assert d.y_train[4] == record[0]
        for channel in range(3):
            plane = record[1 + 1024 * channel : 1 + 1024 * (channel + 1)].reshape(32, 32)
            assert np.array_equal(image[..., channel], plane)

    def test_scaling_shapes_and_order(self, cifar10_folder):
        d = sets.cifar10(cifar10_folder, np.float64)
        assert d.X_train.shape == (20, 32, 32, 3) and d.X_test.shape == (4, 32, 32, 3)
        assert d.X_train.flags.c_contiguous and d.y_test.dtype == np.int64
        assert np.array_equal(d.X_train, sets.cifar10(cifar10_folder, np.uint8).X_train / 255)
        assert sets.cifar10(cifar10_folder, flat=True).X_train.shape == (20, 3072)
        assert d.classes[0] == "airplane" and len(d.classes) == 10

    def test_the_parent_folder_will_do(self, cifar10_folder):
        assert len(sets.cifar10(cifar10_folder.parent).X_train) == 20

    @pytest.mark.parametrize(
        "name, damage, message",
        [
            ("data_batch_3.bin", lambda b: b[:-1], "is truncated: 12291 bytes, expected 12292"),
            ("data_batch_5.bin", lambda b: b[:3073], "is truncated: 3073 bytes, expected 12292"),
            ("test_batch.bin", lambda b: b + b"x", "is too long: 12293 bytes, expected 12292"),
            ("test_batch.bin", lambda b: b[:3073] + b"\x0a" + b[3074:], "label of record 1 is 10"),
        ],
    )
    def test_messages(self, cifar10_folder, name, damage, message):
        path = cifar10_folder / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(sets.DataError, match=f"{name} .*{message}.*python -m minimal_nn.data"):
            sets.cifar10(cifar10_folder)

    def test_a_missing_file_is_named(self, cifar10_folder):
        (cifar10_folder / "data_batch_1.bin").unlink()
        with pytest.raises(sets.DataError, match="data_batch_1.bin does not exist: fetch it with"):
            sets.cifar10(cifar10_folder)

    def test_the_true_size_is_asked_for(self, tmp_path):
        (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073))
        with pytest.raises(sets.DataError, match="3073 bytes, expected 30730000"):
            sets.cifar10(tmp_path)


def test_importing_the_package_loads_nothing_heavy():
    heavy = ["scipy", "numba", "matplotlib", "tqdm", "pooch", "requests", "dask", "torch"]
    code = (
        "import sys, time; start = time.perf_counter(); import numpy; middle = time.perf_counter();"
        "import minimal_nn, minimal_nn.data; end = time.perf_counter();"
        f"print([name for name in {heavy} if name in sys.modules], end - middle)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, seconds = found.stdout.rsplit(" ", 1)
    assert loaded == "[]"
    assert float(seconds) < 0.5
