"""Files are written whole or not at all."""

import contextlib
import os
import pathlib
import uuid


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
