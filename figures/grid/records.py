"""How a run is written: canonical JSON under a checksum, and the key that names it."""

import hashlib
import json
import math

import numpy as np

FORMAT = 1


def canonical(value):
    """Return a configuration as canonical JSON text: sorted keys, no spaces, finite numbers only.

    >>> canonical({"eta": 0.1, "batch": 32})
    '{"batch":32,"eta":0.1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_key(code, configuration):
    """Return a run's name: a hash of its configuration and of the code version."""
    text = canonical({"code": code, "configuration": configuration})
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def plain(value):
    """Return value as JSON's types: float32 by its own shortest digits, NaN and inf as null."""
    if isinstance(value, np.ndarray):
        return [plain(entry) for entry in value] if value.ndim else plain(value[()])
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (np.float32, np.float16)):
        return float(str(value)) if np.isfinite(value) else None
    if isinstance(value, np.longdouble) and np.dtype(np.longdouble).itemsize > 8:
        raise TypeError(
            "values: got a longdouble, whose digits JSON's float64 cannot hold; expected "
            "float64 or narrower"
        )
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    return value


def array(value):
    """Return lists of numbers as arrays again, null as NaN."""
    if isinstance(value, dict):
        return {name: array(entry) for name, entry in value.items()}
    if value is None:
        return math.nan
    if isinstance(value, list) and not any(isinstance(e, (str, dict)) for e in value):
        entries = [array(entry) for entry in value]
        if len({np.shape(entry) for entry in entries}) <= 1:
            return np.array(entries)
    return value


def sealed(body):
    """Return the bytes of a file: the checksum of the body, a line end, the body."""
    body = body.encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body + b"\n"


def opened(content):
    """Return the parsed body of a sealed file, or None where it is cut short or changed."""
    checksum, _, body = content.partition(b"\n")
    if not body.endswith(b"\n") or hashlib.sha256(body[:-1]).hexdigest().encode() != checksum:
        return None
    try:
        return json.loads(body)
    except ValueError:  # sealed, but not by this module
        return None


def run_record(code, configuration, status, values):
    """Return what is written of a finished run."""
    return {
        "format": FORMAT,
        "code": code,
        "configuration": configuration,
        "status": status,
        "values": plain(values),
    }


def defect(body):
    """Return why a parsed file is no record of a run, in words, or None where it is one."""
    if body is None:
        return "is damaged (cut short or changed)"
    if not isinstance(body, dict) or not {"code", "configuration", "status", "values"} <= set(body):
        return "is no result of a run"
    if body.get("format") != FORMAT:
        return f"is written in format {body.get('format')}, expected {FORMAT}"
    return None
