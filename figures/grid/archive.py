"""Results of many runs in one file, small enough to be kept with the code."""

import hashlib
import json
import lzma
import pathlib

from figures.grid.records import canonical, defect, run_key, run_record, sealed
from minimal_nn.files import whole_file


def write_archive(path, store, configurations):
    """Write the results of these configurations into one file, sorted by key, and return how many.

    Compressed (xz); the first line is the checksum of the rest, each further line one run: small
    enough to be kept with the code.  Missing runs are left out.
    """
    lines = {}
    for configuration in configurations:
        result = store.get(configuration)
        if result is not None:
            body = run_record(store.code, configuration, result.status, result.values)
            lines[store.key(configuration)] = canonical(body)
    path = pathlib.Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(lzma.compress(sealed("\n".join(lines[key] for key in sorted(lines)))))
    return len(lines)


def read_archive(path):
    """Return an archive's runs, parsed, by key.  Raises ValueError when it is damaged."""
    content = pathlib.Path(path).expanduser().read_bytes()
    try:
        checksum, _, body = lzma.decompress(content).partition(b"\n")
    except (lzma.LZMAError, EOFError):
        checksum, body = b"", b""
    if hashlib.sha256(body[:-1]).hexdigest().encode() != checksum:
        raise ValueError(f"path: {path} is damaged (its checksum is wrong); expected it as written")
    runs = [json.loads(line) for line in body.decode().splitlines()]
    for run in runs:
        wrong = defect(run)
        if wrong:
            raise ValueError(f"path: a run in {path} {wrong}")
    return {run_key(run["code"], run["configuration"]): run for run in runs}
