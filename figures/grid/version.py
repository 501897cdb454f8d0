"""The version of code: what results were computed with, as a hash of its sources."""

import hashlib
import pathlib


def sources(*paths, without=()):
    """Return the Python files at these paths: files, and folders with everything below them.

    without: files and folders that are left out, named relative to the path given.
    """
    found = []
    for path in map(pathlib.Path, paths):
        left_out = {path / name for name in without}
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        files = [file for file in files if left_out.isdisjoint((file, *file.parents))]
        if not files:
            raise ValueError(f"paths: got {path}, expected a Python file or a folder with some")
        found += files
    return found


def code_version(*paths, without=()):
    """Return a hash of Python sources (see `sources`).

    Names enter relative to the path given, so that the same sources at another place agree.
    """
    digest = hashlib.sha256()
    for path in map(pathlib.Path, paths):
        for file in sources(path, without=without):
            name = file.relative_to(path.parent).as_posix()
            content = file.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()[:16]
