"""Arguments: what public calls are given, converted once where it comes in, and refused in words.

Below the public calls there are arrays alone.  What is converted: pandas objects (their values, by
position), PyTorch tensors on the CPU, JAX arrays, NumPy's subclasses, arrays of another byte order.
What changes a number is not done in silence: there is no conversion from one dtype to another.
"""

import sys

import numpy as np

from minimal_nn.errors import NonFiniteError


def array(argument, value, device=False):
    """Return an array-like as a plain NumPy array; what is none comes back as it is.

    value: anything; objects with a shape, a dtype and an arithmetic of their own (numbers with an
    error bound) are left to it.  device: whether an array in a GPU's memory is left there too.
    Raises ValueError for masked values, TypeError for tensors that NumPy cannot hold and for sparse
    matrices.
    """
    if device and hasattr(value, "__cuda_array_interface__"):
        return value
    if isinstance(value, np.ndarray):
        return _of_numpy(argument, value)
    if hasattr(value, "detach") and hasattr(value, "resolve_conj"):
        return _of_torch(argument, value)
    if hasattr(value, "toarray"):
        raise TypeError(
            f"{argument}: got a {type(value).__name__}, expected an array: use {argument}.toarray()"
        )
    if hasattr(value, "__array__") and not isinstance(value, type):
        return _of_numpy(argument, np.asarray(value))
    return value


def _of_numpy(argument, value):
    if isinstance(value, np.ma.MaskedArray):
        masked = np.count_nonzero(np.ma.getmaskarray(value))
        if masked:
            raise ValueError(
                f"{argument}: got a masked array with {masked} masked values, expected numbers "
                f"everywhere: fill them, as {argument}.filled(0) does, or leave those examples out"
            )
        value = value.data
    value = np.asarray(value)  # of a subclass, such as np.matrix, the array
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))


def _of_torch(argument, value):
    if value.device.type != "cpu":
        raise TypeError(
            f"{argument}: got a tensor on {value.device}, expected one on the CPU: use "
            f"{argument}.cpu()"
        )
    try:
        return value.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{argument}: got a tensor that NumPy cannot hold ({error}), expected a dense one of "
            f"float32 or float64: use {argument}.float() or {argument}.to_dense()"
        ) from None


def check_finite(argument, value):
    """Refuse a NumPy array with numbers that are NaN or infinite."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fc":
        return
    if not np.all(np.isfinite(value)):
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        count = int(np.sum(~np.isfinite(value)))
        raise NonFiniteError(
            f"{argument}: got {count} numbers that are NaN or infinite, the first at {index}; "
            "expected finite numbers: remove or replace them"
        )


def examples(value, shape, dtype, device=False):
    """Return X, examples of this shape and dtype, as an array; refuse what does not fit."""
    X = array("X", value, device)
    got, kind = getattr(X, "shape", None), getattr(X, "dtype", None)
    if got is None or kind is None:
        raise TypeError(
            f"X: got {type(X).__name__}, expected an array (N, *{shape}): use "
            f"np.asarray(X, dtype='{dtype}')"
        )
    if len(got) == 0 or tuple(got[1:]) != shape:
        raise ValueError(f"X: got shape {tuple(got)}, expected (N, *{shape})")
    if got[0] == 0:
        raise ValueError("X: got no examples, expected at least one")
    if kind != dtype:
        raise TypeError(
            f"X: got dtype {kind}, expected the network's {dtype} (there is no silent conversion): "
            f"use X.astype('{dtype}') or Network(..., dtype='{kind}')"
        )
    check_finite("X", X)
    return X


def numbers(value, shape, dtype, device=False):
    """Return the targets of a regression, of this shape and dtype, as an array."""
    targets = array("targets", value, device)
    if not hasattr(targets, "dtype"):
        raise TypeError(f"targets: got {type(targets).__name__}, expected an array {shape}")
    if tuple(targets.shape) != shape:
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)}, expected {shape} for mean_squared_error"
        )
    if targets.dtype != dtype:
        raise TypeError(
            f"targets: got dtype {targets.dtype}, expected {dtype}: use targets.astype('{dtype}')"
        )
    check_finite("targets", targets)
    return targets


def labels(argument, value, count, classes, to_numpy=np.asarray, device=False):
    """Return one integer label, from 0 to classes - 1, for each of `count` examples."""
    found = array(argument, value, device)
    if not hasattr(found, "dtype"):
        raise TypeError(
            f"{argument}: got {type(found).__name__}, expected an array of integer labels: use "
            f"np.asarray({argument})"
        )
    if found.dtype.kind not in "iu":
        raise TypeError(f"{argument}: got dtype {found.dtype}, expected integer labels")
    if tuple(found.shape) != (count,):
        raise ValueError(
            f"{argument}: got shape {tuple(found.shape)}, expected one label for each of the "
            f"{count} examples"
        )
    least, most = (int(end) for end in (to_numpy(found).min(), to_numpy(found).max()))
    if least < 0 or most >= classes:
        raise ValueError(
            f"{argument}: got labels from {least} to {most}, expected 0 to {classes - 1} for "
            f"{classes} outputs"
        )
    return found


def check_replacement(argument, given, shape, dtype):
    """Refuse an array that cannot take the place of one of this shape and dtype."""
    if given.shape != shape:
        raise ValueError(f"{argument}: got shape {given.shape}, expected {shape}")
    if given.dtype != dtype:
        raise TypeError(
            f"{argument}: got dtype {given.dtype}, expected {dtype}: convert it with "
            f".astype({dtype})"
        )


def check_arrays(argument, arrays, shapes, dtype):
    """Refuse a dict of arrays that has not these names and shapes, and this dtype."""
    if arrays.keys() != shapes.keys():
        odd = ", ".join(sorted(arrays.keys() ^ shapes.keys()))
        raise ValueError(
            f"{argument}: got {len(arrays)} names, with {odd} missing or unknown; expected "
            f"{', '.join(shapes)}"
        )
    for name, found in arrays.items():
        shape, kind = getattr(found, "shape", None), getattr(found, "dtype", None)
        masked = isinstance(found, np.ma.MaskedArray)
        if shape != shapes[name] or kind != dtype or masked:
            got = "a masked array" if masked else f"shape {shape} and dtype {kind}"
            raise ValueError(
                f"{argument}[{name!r}]: got {got}, expected shape {shapes[name]} and dtype "
                f"{dtype}: replace it by with_parameters, which checks what it is given"
            )


def whole_number(argument, value, least=1, wrong_kind=TypeError):
    """Return an integer argument as an int; refuse another kind of number, or a smaller one."""
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or value < least:
        error = ValueError if is_whole else wrong_kind
        raise error(f"{argument}: got {value!r}, expected an integer >= {least}")
    return int(value)


def is_real(value):
    """Return whether this is a real number, of Python or NumPy, that a float can hold."""
    number = value.item() if isinstance(value, np.generic) else value
    real = isinstance(number, (int, float, np.floating)) and not isinstance(number, bool)
    return real and bool(abs(number) <= sys.float_info.max)


def positive_number(argument, value):
    """Return a finite number > 0 as a float; refuse others, and other kinds."""
    if not is_real(value) or not value > 0:
        raise ValueError(f"{argument}: got {value!r}, expected a finite number > 0")
    return float(value)


def random_generator(rng):
    """Return the numpy.random.Generator that a seed names, or the Generator that is given."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"rng: got {rng!r}, expected a seed or a numpy.random.Generator ({error})"
        ) from None
