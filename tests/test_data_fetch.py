"""Fetching data sets, tried against a server on this machine; the real addresses are not asked."""

import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import sys
import tarfile
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from processes import python

from minimal_nn import data
from minimal_nn.data import cifar, fetch, sources

pooch = pytest.importorskip("pooch", reason="the extra `data` is not installed")

NAME = "train-images-idx3-ubyte.gz"


class Server(ThreadingHTTPServer):
    """Serves `files`; a test sets how it misbehaves."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = {}, []
        self.ranges = True
        self.status = None  # answer this instead of a file
        self.break_off_after = []  # bytes after which the next answers end, one for each answer

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path[1:], wanted))
        if server.status or self.path[1:] not in server.files:
            self.send_error(server.status or 404)
            return
        content, start = server.files[self.path[1:]], 0
        if wanted and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = server.break_off_after.pop(0) if server.break_off_after else len(content)
        self.wfile.write(content[start : start + end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def declare(monkeypatch, server, name, folder, contents, addresses=None, unpacked=0):
    """Let the server have these files, and the set `name` consist of them."""
    server.files |= contents
    files = tuple(
        sources.File(key, len(value), hashlib.sha256(value).hexdigest())
        for key, value in contents.items()
    )
    source = sources.Source("A set", folder, addresses or (server.address,), files, unpacked)
    monkeypatch.setitem(sources.SOURCES, name, source)


@pytest.fixture
def mnist(server, monkeypatch):
    """The set mnist with small files; returns the images' file."""
    monkeypatch.setattr(fetch, "CHUNK", 500)
    rng = np.random.default_rng(0)
    contents = {}
    for name, count in zip(sources.MNIST_FILES, (500, 500, 7, 7), strict=True):
        array = rng.integers(0, 10, (count, 28, 28) if "images" in name else count, np.uint8)
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        contents[name + ".gz"] = gzip.compress(header + array.tobytes())
    declare(monkeypatch, server, "mnist", "mnist", contents)
    return contents[NAME]


@pytest.fixture
def cifar10(server, monkeypatch):
    """The set cifar10 with ten records a file; returns the records of each."""
    monkeypatch.setattr(cifar, "CIFAR10_RECORDS", 10)
    rng = np.random.default_rng(1)
    records = {}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in (*fetch.MEMBERS, "readme.html"):
            content = rng.integers(0, 10, 10 * 3073, np.uint8).tobytes()
            records[name] = content
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    contents = {"cifar-10-binary.tar.gz": archive.getvalue()}
    declare(monkeypatch, server, "cifar10", "", contents, unpacked=7 * 30730)
    return records


def run(capsys, *arguments):
    """Exit status and the lines of both streams of python -m minimal_nn.data."""
    status = fetch.main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    return status, streams.out.splitlines(), streams.err.splitlines()


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if not path.is_dir())


class TestWhole:
    def test_mnist_is_fetched_and_read(self, mnist, tmp_path, capsys):
        status, out, err = run(capsys, "mnist", "--folder", tmp_path)
        assert status == 0 and not err
        assert out[0] == f"{NAME}: fetched, checksum verified"
        assert out[-1] == f"mnist: in {tmp_path / 'mnist'}"
        assert files_in(tmp_path) == sorted(name + ".gz" for name in sources.MNIST_FILES)
        assert len(data.mnist(tmp_path / "mnist").X_train) == 500

    def test_cifar10_is_fetched_unpacked_and_read(self, cifar10, tmp_path, capsys):
        status, out, _ = run(capsys, "cifar10", "--folder", tmp_path)
        assert status == 0 and out[0] == "cifar-10-binary.tar.gz: fetched, checksum verified"
        assert out[1].startswith("cifar-10-binary.tar.gz: 7 of 7 files unpacked into")
        assert files_in(tmp_path / "cifar-10-batches-bin") == sorted(fetch.MEMBERS)
        labels = np.frombuffer(cifar10["test_batch.bin"], np.uint8).reshape(10, 3073)[:, 0]
        assert np.array_equal(data.cifar10(tmp_path).y_test, labels)

    def test_what_is_whole_is_left_alone(self, mnist, server, tmp_path, capsys):
        run(capsys, "mnist", "--folder", tmp_path)
        server.requests.clear()
        status, out, _ = run(capsys, "mnist", "--folder", tmp_path)
        assert status == 0 and not server.requests
        assert out[0] == f"{NAME}: there already, checksum verified"

    def test_a_damaged_member_is_unpacked_again(self, cifar10, server, tmp_path, capsys):
        run(capsys, "cifar10", "--folder", tmp_path)
        damaged = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
        _, out, _ = run(capsys, "cifar10", "--folder", tmp_path)
        assert out[1].startswith("cifar-10-binary.tar.gz: 1 of 7 files unpacked")
        assert damaged.read_bytes() == cifar10["data_batch_2.bin"]
        assert len(server.requests) == 1

    def test_the_next_address_is_tried(self, mnist, server, tmp_path, monkeypatch):
        source = sources.SOURCES["mnist"]
        addresses = (server.address + "gone/", server.address)
        monkeypatch.setitem(sources.SOURCES, "mnist", source._replace(addresses=addresses))
        fetch.fetch("mnist", tmp_path, report=lambda line: None)
        assert [path for path, _ in server.requests[:2]] == [f"gone/{NAME}", NAME]


class TestResumed:
    @pytest.mark.parametrize("ranges", [True, False])
    def test_a_broken_transfer_goes_on(self, ranges, mnist, server, tmp_path, capsys):
        server.ranges, server.break_off_after = ranges, [1000]
        status, out, err = run(capsys, "mnist", "--folder", tmp_path)
        assert status == 1 and not out
        assert err == [
            f"mnist: {server.address[7:-1]} broke off after 1,000 of {len(mnist):,} bytes of "
            f"{NAME}: run the command again, it goes on from there"
        ]
        assert files_in(tmp_path) == [NAME + ".part"]

        status, out, _ = run(capsys, "mnist", "--folder", tmp_path)
        assert status == 0
        assert out[0] == f"{NAME}: resumed at byte 1,000 of {len(mnist):,}, checksum verified"
        assert server.requests[:2] == [(NAME, None), (NAME, "bytes=1000-")]
        assert (tmp_path / "mnist" / NAME).read_bytes() == mnist
        assert len(files_in(tmp_path)) == 4

    def test_any_number_of_breaks(self, mnist, server, tmp_path, capsys):
        server.break_off_after = [1000, 500, 1500, 99]
        statuses = [run(capsys, "mnist", "--folder", tmp_path)[0] for _ in range(5)]
        assert statuses == [1, 1, 1, 1, 0]
        assert [wanted for _, wanted in server.requests[:5]] == [
            None,
            "bytes=1000-",
            "bytes=1500-",
            "bytes=3000-",
            "bytes=3000-",
        ]

    def test_a_whole_part_is_not_asked_for_again(self, mnist, server, tmp_path, capsys):
        (tmp_path / "mnist").mkdir()
        (tmp_path / "mnist" / (NAME + ".part")).write_bytes(mnist)
        assert run(capsys, "mnist", "--folder", tmp_path)[0] == 0
        assert NAME not in [path for path, _ in server.requests]

    @pytest.mark.parametrize(
        "left, told",
        [
            (1000, "what an earlier run had left was damaged; fetched from the first byte"),
            (10**6, "fetched"),
        ],
    )
    def test_a_damaged_part_is_begun_again(self, left, told, mnist, tmp_path, capsys):
        (tmp_path / "mnist").mkdir()
        (tmp_path / "mnist" / (NAME + ".part")).write_bytes(b"x" * left)
        status, out, _ = run(capsys, "mnist", "--folder", tmp_path)
        assert status == 0 and (tmp_path / "mnist" / NAME).read_bytes() == mnist
        assert out[0] == f"{NAME}: {told}, checksum verified"


class TestRefused:
    def test_a_corrupted_file_is_fetched_again(self, mnist, tmp_path, capsys):
        run(capsys, "mnist", "--folder", tmp_path)
        (tmp_path / "mnist" / NAME).write_bytes(mnist[:-1])
        status, out, _ = run(capsys, "mnist", "--folder", tmp_path)
        assert status == 0
        assert out[0] == f"{NAME}: the copy there was damaged; fetched again, checksum verified"
        assert (tmp_path / "mnist" / NAME).read_bytes() == mnist

    @pytest.mark.parametrize("damage", [lambda b: b[:-1] + b"\1", lambda b: b + b"more"])
    def test_a_wrong_checksum(self, damage, mnist, server, tmp_path, capsys):
        server.files[NAME] = damage(mnist)
        status, out, err = run(capsys, "mnist", "--folder", tmp_path)
        found = hashlib.sha256(server.files[NAME]).hexdigest()
        expected = hashlib.sha256(mnist).hexdigest()
        assert status == 1 and not out and len(err) == 1
        assert (
            f"checksum is wrong (sha256 {found}, expected {expected}), nothing was kept" in err[0]
        )
        assert files_in(tmp_path) == []

    def test_a_wrong_checksum_leaves_the_file_that_was_there(self, mnist, server, tmp_path, capsys):
        (tmp_path / "mnist").mkdir()
        (tmp_path / "mnist" / NAME).write_bytes(b"mine")
        server.files[NAME] = b"theirs"
        assert run(capsys, "mnist", "--folder", tmp_path)[0] == 1
        assert (tmp_path / "mnist" / NAME).read_bytes() == b"mine"
        assert files_in(tmp_path) == [NAME, NAME + ".part"]  # 6 of the bytes: resumable

    def test_no_network(self, mnist, server, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(
            sources.SOURCES,
            "mnist",
            sources.SOURCES["mnist"]._replace(addresses=("http://127.0.0.1:9/",)),
        )
        status, out, err = run(capsys, "mnist", "--folder", tmp_path)
        assert status == 1 and not out
        assert err == [
            f"mnist: no connection to 127.0.0.1:9 for http://127.0.0.1:9/{NAME}: "
            "check the network and run the command again"
        ]
        assert files_in(tmp_path) == []

    @pytest.mark.parametrize("status, reason", [(404, "Not Found"), (503, "Service Unavailable")])
    def test_the_server_refuses(self, status, reason, mnist, server, tmp_path, capsys):
        server.status = status
        code, _, err = run(capsys, "mnist", "--folder", tmp_path)
        assert code == 1 and len(err) == 1
        assert f"answered {status} {reason} for {server.address}{NAME}: try again later" in err[0]
        assert files_in(tmp_path) == []

    def test_a_server_with_a_shorter_file(self, mnist, server, tmp_path, capsys):
        (tmp_path / "mnist").mkdir()
        (tmp_path / "mnist" / (NAME + ".part")).write_bytes(mnist[:1000])
        server.files[NAME] = mnist[:1000]
        _, _, err = run(capsys, "mnist", "--folder", tmp_path)
        assert len(err) == 1 and "answered 416" in err[0]
        assert files_in(tmp_path) == []

    def test_too_little_space_is_told_beforehand(
        self, cifar10, server, tmp_path, capsys, monkeypatch
    ):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 12345, 12345))
        status, _, err = run(capsys, "cifar10", "--folder", tmp_path)
        needed = 7 * 30730 + sources.SOURCES["cifar10"].files[0].size
        assert status == 1 and not server.requests
        assert err == [
            f"cifar10: A set needs {needed:,} bytes and {tmp_path} has 12,345 left: "
            "free some, or choose another place with --folder"
        ]
        assert files_in(tmp_path) == []

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_the_disk_runs_full_during_the_transfer(self, mnist, tmp_path, capsys):
        (tmp_path / "mnist").mkdir()
        (tmp_path / "mnist" / (NAME + ".part")).symlink_to("/dev/full")
        status, _, err = run(capsys, "mnist", "--folder", tmp_path)
        assert status == 1
        folder = tmp_path / "mnist"
        assert err == [f"mnist: no space left in {folder}: free some and run the command again"]
        assert files_in(tmp_path) == []

    def test_a_full_disk_gets_back_what_the_transfer_took(
        self, mnist, tmp_path, capsys, monkeypatch
    ):
        class FullAfter1000Bytes:
            def __init__(self, **_):
                pass

            def __call__(self, url, out, pooch):
                out.write(bytes(1000))
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(pooch, "HTTPDownloader", FullAfter1000Bytes)
        status, _, err = run(capsys, "mnist", "--folder", tmp_path)
        assert status == 1 and len(err) == 1 and "no space left" in err[0]
        assert files_in(tmp_path) == []

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_the_disk_runs_full_while_unpacking(self, cifar10, tmp_path, capsys):
        folder = tmp_path / "cifar-10-batches-bin"
        folder.mkdir()
        (folder / "data_batch_4.bin.part").symlink_to("/dev/full")
        status, _, err = run(capsys, "cifar10", "--folder", tmp_path)
        assert status == 1 and len(err) == 1 and "no space left" in err[0]
        assert files_in(folder) == ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin"]
        assert run(capsys, "cifar10", "--folder", tmp_path)[0] == 0
        assert files_in(folder) == sorted(fetch.MEMBERS)

    def test_a_folder_that_cannot_be_made(self, mnist, tmp_path, capsys):
        (tmp_path / "file").write_text("in the way")
        status, _, err = run(capsys, "mnist", "--folder", tmp_path / "file")
        assert status == 1 and len(err) == 1 and "cannot be written" in err[0]

    def test_without_pooch(self, mnist, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "pooch", None)
        _, _, err = run(capsys, "mnist", "--folder", tmp_path)
        assert err == ["mnist: fetching needs pooch: python -m pip install pooch"]

    def test_ctrl_c(self, mnist, tmp_path, capsys, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(fetch, "_download", interrupted)
        status, _, err = run(capsys, "mnist", "--folder", tmp_path)
        assert status == 130
        assert err == ["mnist: interrupted; `python -m minimal_nn.data` goes on from there"]

    def test_an_unknown_set(self, capsys):
        with pytest.raises(SystemExit) as exit:
            fetch.main(["mnits"])
        assert exit.value.code == 2
        assert (
            "unknown SET 'mnits' (did you mean 'mnist'?), expected one of cifar10, mnist"
            in capsys.readouterr().err
        )


def test_every_source_is_complete():
    assert set(sources.SOURCES) == {"cifar10", "mnist", "fashion_mnist", "kmnist"}
    for source in sources.SOURCES.values():
        assert all(address.endswith("/") for address in source.addresses)
        for file in source.files:
            assert file.size > 0 and re.fullmatch("[0-9a-f]{64}", file.sha256)
    sums = [file.sha256 for source in sources.SOURCES.values() for file in source.files]
    assert len(set(sums)) == len(sums) == 13


def test_the_module_lists_the_sets_without_a_warning():
    found = python("-W", "error", "-m", "minimal_nn.data", "--list")
    assert found.stderr == ""
    assert [line.split()[0] for line in found.stdout.splitlines()] == list(sources.SOURCES)
