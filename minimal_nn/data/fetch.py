"""Fetching data sets: `python -m minimal_nn.data SET ...`, whole and verified or not at all.

A file is downloaded into NAME.part, compared with its SHA-256 and only then given its name, so a
file under its own name is always whole. A transfer that breaks leaves its .part, and the next
run goes on from there. Pooch does the transfer and the hashing; it is imported on first use.
"""

import argparse
import errno
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from minimal_nn.command import suggestion
from minimal_nn.data.cifar import CIFAR10_FOLDER, CIFAR10_TEST, CIFAR10_TRAIN
from minimal_nn.data.sources import SOURCES
from minimal_nn.typing import PathLike

COMMAND = "`python -m minimal_nn.data`"
EXTRA = "python -m pip install pooch"
MEMBERS = (*CIFAR10_TRAIN, CIFAR10_TEST, "batches.meta.txt")
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
CHUNK = 1 << 16  # bytes written at a time: at most so many are lost when a transfer breaks


class FetchError(RuntimeError):
    """A data set could not be fetched: one sentence that says why, and what to do."""


def fetch(
    name: str,
    folder: PathLike = "data",
    report: Callable[[str], object] = print,
    progress: bool = False,
) -> Path:
    """Bring one data set into a folder, verify it, and leave what is there and whole alone.

    name: a key of SOURCES.  folder: made if need be.  report: called with one sentence for each
    file.  progress: whether a bar is drawn.  Returns the path that minimal_nn.data's reader takes.
    Raises FetchError (no network, no space, wrong checksum, ...), KeyError for another name.
    """
    source = SOURCES[name]
    folder = Path(folder).expanduser() / source.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(source, folder)
        for file in source.files:
            report(f"{file.name}: {_ensure(file, source.addresses, folder, progress)}")
            if file.name.endswith(".tar.gz"):
                report(f"{file.name}: {_unpack(folder / file.name, folder / CIFAR10_FOLDER)}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(
                f"no space left in {folder}: free some and run the command again"
            ) from error
        raise FetchError(f"{error.filename or folder} cannot be written: {error}") from error
    return folder


def _check_space(source, folder):
    sizes = [source.unpacked] if not (folder / CIFAR10_FOLDER).exists() else []
    for file in source.files:
        part = folder / f"{file.name}.part"
        if not (folder / file.name).exists():
            sizes.append(file.size - (part.stat().st_size if part.exists() else 0))
    free = shutil.disk_usage(folder).free
    if free < sum(sizes):
        raise FetchError(
            f"{source.title} needs {sum(sizes):,} bytes and {folder} has {free:,} left: "
            f"free some, or choose another place with --folder"
        )


def _ensure(file, addresses, folder, progress):
    """Make folder/NAME the whole file; say what had to be done."""
    target, part = folder / file.name, folder / f"{file.name}.part"
    done = "fetched"
    if target.exists():
        if _sha256(target) == file.sha256:
            return "there already, checksum verified"
        done = "the copy there was damaged; fetched again"
    resumed = part.stat().st_size if part.exists() else 0
    if resumed > file.size:
        part.unlink()
    elif resumed:
        done = f"resumed at byte {resumed:,} of {file.size:,}"
    _download(file, addresses, part, progress)
    found = _sha256(part)
    if found != file.sha256 and resumed:
        # What an earlier run left may be the damaged half: once more, from the first byte.
        part.unlink()
        done = "what an earlier run had left was damaged; fetched from the first byte"
        _download(file, addresses, part, progress)
        found = _sha256(part)
    if found != file.sha256:
        part.unlink()
        raise FetchError(
            f"{file.name}: the checksum is wrong (sha256 {found}, expected {file.sha256}), nothing "
            f"was kept: try again later, or bring the file into {folder} from elsewhere"
        )
    os.replace(part, target)
    return f"{done}, checksum verified"


def _download(file, addresses, part, progress):
    """Bring part up to its full size, from the first address that serves it."""
    for address in addresses:
        try:
            return _download_from(address + file.name, part, file.size, progress)
        except FetchError as error:
            last = error
    raise last


def _download_from(url, part, size, progress):
    try:
        import pooch
        import requests
    except ImportError as error:
        raise FetchError(f"fetching needs pooch: {EXTRA}") from error
    host = urlsplit(url).netloc
    responses = []
    try:
        with open(part, "ab") as out:
            have = out.tell()
            if have == size:
                return

            def answered(response, **_):
                responses.append(response)
                # A server that does not know ranges answers 200 and sends the file from its start.
                if have and response.status_code == 200:
                    out.truncate(0)

            # "identity": a .gz file must come as it is, not decompressed on the way.
            headers = {"Accept-Encoding": "identity"}
            if have:
                headers["Range"] = f"bytes={have}-"
            pooch.HTTPDownloader(
                progressbar=progress,
                chunk_size=CHUNK,
                headers=headers,
                timeout=TIMEOUT,
                hooks={"response": answered},
            )(url, out, None)
    except requests.HTTPError as error:
        if error.response.status_code == 416:
            part.unlink()  # more is there than the server has: the next run begins anew
        raise FetchError(
            f"{host} answered {error.response.status_code} {error.response.reason} for {url}: "
            f"try again later, or bring the file into {part.parent} from elsewhere"
        ) from error
    except requests.RequestException as error:
        if part.stat().st_size == have:
            raise FetchError(
                f"no connection to {host} for {url}: check the network and run the command again"
            ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            part.unlink()
        raise
    finally:
        for response in responses:
            response.close()
        if part.exists() and not part.stat().st_size:
            part.unlink()
    have = part.stat().st_size if part.exists() else 0
    if have < size:
        raise FetchError(
            f"{host} broke off after {have:,} of {size:,} bytes of {part.stem}: "
            f"run the command again, it goes on from there"
        )


def _unpack(archive, folder):
    """Write the seven members that the reader needs; leave those alone that are whole."""
    folder.mkdir(exist_ok=True)
    written = 0
    with tarfile.open(archive) as tar:
        for name in MEMBERS:
            content = tar.extractfile(f"{CIFAR10_FOLDER}/{name}").read()
            target, part = folder / name, folder / f"{name}.part"
            if target.exists() and target.read_bytes() == content:
                continue
            try:
                part.write_bytes(content)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
            written += 1
    return f"{written} of {len(MEMBERS)} files unpacked into {folder}, the others were whole"


def _sha256(path):
    try:
        import pooch
    except ImportError as error:
        raise FetchError(f"fetching needs pooch: {EXTRA}") from error
    return pooch.file_hash(str(path), alg="sha256")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 when every named set is there and whole, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m minimal_nn.data",
        description="Fetch data sets from their official addresses and verify their checksums.",
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(SOURCES))
    parser.add_argument("--folder", default="data", help="where they go (default: data)")
    parser.add_argument("--list", action="store_true", help="list the sets and stop")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sets if name not in SOURCES]
    if unknown:
        near = suggestion(unknown[0], SOURCES)
        parser.error(f"unknown SET {unknown[0]!r}{near}, expected one of {', '.join(SOURCES)}")
    if options.list or not options.sets:
        for name, source in SOURCES.items():
            size = sum(file.size for file in source.files) / 1e6
            print(f"{name:14} {source.title:25} {size:6.1f} MB  {source.addresses[0]}")
        return 0
    for name in options.sets:
        try:
            print(f"{name}: in {fetch(name, options.folder, progress=sys.stderr.isatty())}")
        except FetchError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"{name}: interrupted; {COMMAND} goes on from there", file=sys.stderr)
            return 130
    return 0
