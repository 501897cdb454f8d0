"""Arrays in pickles, read without running anything that a pickle names.

A pickle is a program: it may call whatever it imports.  Here every import is refused, but for the
few names that NumPy writes to rebuild an array, and these stand for the harmless functions below,
not for NumPy's: what comes out are dicts, lists, numbers, texts, and arrays of uint8.
"""

import io
import math
import pickle

import numpy as np

from minimal_nn.data.dataset import DataError


class _Dtype:
    """What a pickle says of a dtype; only that of bytes is accepted."""

    def __init__(self, name, *_):
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state):
        pass  # byte order, fields, alignment: a byte has none


class _Array:
    """What a pickle says of an array."""

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or dtype.name not in ("u1", "|u1", "uint8"):
            raise pickle.UnpicklingError(f"an array of {getattr(dtype, 'name', dtype)}, not uint8")
        if isinstance(content, str):  # bytes as Python 2 writes them
            content = content.encode("latin1")
        if not isinstance(content, (bytes, bytearray)) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array without bytes or without a shape")
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) != len(content):
            raise pickle.UnpicklingError(f"an array of shape {shape} in {len(content)} bytes")
        flat = np.frombuffer(bytes(content), np.uint8)
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_):
    return _Array()


def _from_buffer(content, dtype, shape, order, *_):
    array = _Array()
    array.__setstate__((1, shape, dtype, order in ("F", b"F"), content))
    return array


def _encode(text, *_):
    return text.encode("latin1")


class _Name:
    """What a pickle may name: it can be called, and nothing else."""

    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes what it names")


_ALLOWED = {
    ("numpy", "ndarray"): _Name(_reconstruct),
    ("numpy", "dtype"): _Name(_Dtype),
    ("_codecs", "encode"): _Name(_encode),
    **{(f"numpy.{c}.multiarray", "_reconstruct"): _Name(_reconstruct) for c in ("core", "_core")},
    **{(f"numpy.{c}.numeric", "_frombuffer"): _Name(_from_buffer) for c in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data need")
        return _ALLOWED[module, name]


def unpickled(path, content):
    """Return what a pickle holds; path: for messages.

    Raises DataError where it names anything but NumPy's reconstruction of an array of uint8, and
    where it is damaged.
    """
    try:
        return _with_arrays(_Reader(io.BytesIO(content), encoding="bytes").load())
    except Exception as error:  # whatever a damaged or hostile byte leads to
        raise DataError(
            f"{path} cannot be read as a pickle ({error}), expected a dict with arrays of uint8, "
            "lists and texts: fetch the set again, or take its binary files"
        ) from None


def _with_arrays(value):
    if isinstance(value, _Array):
        return value.array
    if type(value) is dict:
        return {key: _with_arrays(entry) for key, entry in value.items()}
    return value
