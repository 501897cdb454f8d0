"""Files are written whole or not at all."""

import contextlib
import os
import pathlib
import uuid


def path_of(argument, given):
    """Return what a public call was given as a path, ~ being the home folder."""
    try:
        return pathlib.Path(given).expanduser()
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{argument}: got {given!r}, expected a path ({error})") from None


def check_new(argument, path):
    """Refuse a path that no file can be written to: a folder, or one in a folder that is none."""
    if path.is_dir():
        raise IsADirectoryError(f"{argument}: got the folder {path}, expected a file's path")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{argument}: the folder {path.parent} does not exist; create it first"
        )


@contextlib.contextmanager
def whole_file(path, mode="wb"):
    """Open a file for writing that takes the name `path` only when the block ends without error.

    The text or bytes go to a new file in the same folder, reach the disk, and then replace `path`
    in one step; after an error nothing is left behind and an existing `path` is untouched.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(temporary, mode.replace("w", "x"), encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
