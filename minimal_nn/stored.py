"""Networks in files: `save`, `load`, and `load_parameters`, which reads checkpoints too.

A file is an npz archive of the arrays, under "parameter/NAME" and "state/NAME", and of a text in
JSON that says which layers they belong to.  Reading one executes nothing: layers are looked up by
name among the built-in ones, and NumPy is not let unpickle.
"""

import dataclasses
import json
import warnings
from typing import Any, NamedTuple

import numpy as np

from minimal_nn import files
from minimal_nn.backend import Backend
from minimal_nn.errors import CheckpointError
from minimal_nn.layers import BUILT_IN, Layer
from minimal_nn.network import Network
from minimal_nn.typing import Arrays, PathLike

__all__ = ["Weights", "load", "load_parameters", "save"]

_FORMAT = "network 1"  # of files


class Weights(NamedTuple):
    """What `load_parameters` returns, in the order in which `Network.with_parameters` takes it."""

    parameters: Arrays
    state: Arrays


def save(network: Network, path: PathLike) -> None:
    """Write a network into a file, whole or not at all: layers, loss, dtype, and every number.

    network: a `Network` of built-in layers, in any wing.  path: taken as it is, ~ is the home
    folder; a file that is there already is replaced.  Raises TypeError for classes of one's own,
    which a file cannot hold, and for numbers that are Python objects; OSError where no file can be
    written there.

    >>> import os, tempfile, minimal_nn as nn
    >>> network = nn.Network([nn.Dense(8), nn.BatchNorm(), nn.ReLU(), nn.Dense(3)], (4,), rng=7)
    >>> path = os.path.join(tempfile.mkdtemp(), "network.npz")
    >>> nn.save(network, path)
    >>> again = nn.load(path)
    >>> bool(np.all(again.parameters["dense1.W"] == network.parameters["dense1.W"]))
    True
    """
    path = files.path_of("path", path)
    if type(network) is not Network:
        raise TypeError(
            f"network: got {type(network).__name__}, expected a Network itself, whose class a file "
            "need not hold: write the arrays of another one with numpy.savez(path, "
            "**network.parameters)"
        )
    if network.dtype == object:
        raise TypeError(
            "network: got numbers that are Python objects, expected a floating dtype, such as that "
            "of network.astype('float64')"
        )
    network.check_numbers()
    meta = {
        "format": _FORMAT,
        "layers": [_described(name, layer) for name, layer in network.named_layers()],
        "input_shape": network.input_shape,
        "loss": network.loss_kind,
        "dtype": str(network.dtype),
    }
    arrays: dict[str, Any] = {"meta": np.array(json.dumps(meta))}
    for kind, own in (("parameter", network.parameters), ("state", network.state)):
        arrays.update({f"{kind}/{name}": network.backend.to_numpy(a) for name, a in own.items()})
    files.check_new("path", path)
    with files.whole_file(path) as file:
        np.savez(file, **arrays)


def load(path: PathLike, *, backend: str | Backend = "reference") -> Network:
    """Return the network that `save` wrote, with the same numbers.

    backend: the wing in which it is to work.  Raises CheckpointError, a ValueError, where the file
    is damaged or holds something else, and OSError where it cannot be read.
    """
    meta, arrays = _read(path)
    if meta.get("format") != _FORMAT:
        raise CheckpointError(
            f"path: {path} holds something else than a network of this version (format "
            f"{meta.get('format')!r}, expected {_FORMAT!r}): load_parameters reads checkpoints"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # who made the layers was told
            layers = [_made(described) for described in meta["layers"]]
        network = Network(
            layers,
            tuple(meta["input_shape"]),
            loss=meta["loss"],
            dtype=np.dtype(meta["dtype"]),
        )
        network.parameters = _listed(arrays, "parameter/")
        network.state = _listed(arrays, "state/")
        network.check_numbers()
    except Exception as error:  # whatever a damaged description leads to
        raise _damaged(path, error) from None
    return network.on(backend)


def load_parameters(path: PathLike, *, best: bool = False) -> Weights:
    """Return the weights and running statistics in a checkpoint of `fit`, or a file of `save`.

    best: of a run with `fit(best=...)`, those of the best epoch so far, not of the last.  Returns
    `Weights`, dicts of arrays by name, for `network.with_parameters(*weights)`.  Raises
    CheckpointError where the file is damaged or holds neither, ValueError where there is no best
    epoch, and OSError where the file cannot be read.

    >>> import os, tempfile, minimal_nn as nn
    >>> X, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
    >>> network, path = nn.Network([nn.Dense(2)], (4,)), os.path.join(tempfile.mkdtemp(), "run.npz")
    >>> history = nn.fit(network, nn.SGD(), X, labels, epochs=2, checkpoint=path, progress=False)
    >>> other = nn.Network([nn.Dense(2)], (4,), rng=5).with_parameters(*nn.load_parameters(path))
    >>> bool(np.all(other.parameters["dense1.W"] == network.parameters["dense1.W"]))
    True
    """
    if not isinstance(best, (bool, np.bool_)):
        raise TypeError(
            f"best: got {best!r}, expected True or False: the number by which epochs are compared "
            "was named in fit(best=...)"
        )
    _, arrays = _read(path)
    if best:
        arrays = _listed(arrays, "best/")
        if not arrays:
            raise ValueError(
                f"best: got True for {path}, which has no best epoch, expected a checkpoint of a "
                "run with fit(best=...)"
            )
    found = Weights(_listed(arrays, "parameter/"), _listed(arrays, "state/"))
    if not found.parameters:
        raise _damaged(path, "it has no parameters")
    return found


def _read(path):
    """Return a file's description and arrays, or say that it has none."""
    path = files.path_of("path", path)
    try:
        with open(path, "rb") as file:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(str(arrays.pop("meta")))
        if not isinstance(meta, dict):
            raise ValueError("its description is none")
        return meta, arrays
    except OSError:
        raise
    except Exception as error:  # whatever a damaged byte leads to, NumPy's or zipfile's
        raise _damaged(path, error) from None


def _damaged(path, error):
    told = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return CheckpointError(
        f"path: {path} is damaged, or neither a network nor a checkpoint ({told})"
    )


def _listed(arrays, prefix):
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


def _described(name, layer):
    """Return a built-in layer as JSON can hold it: its class's name and its options."""
    if not layer.built_in:
        raise TypeError(
            f"network: layer {name} is of a class of one's own ({type(layer).__name__}), which a "
            "file cannot hold, expected built-in layers: write its arrays with numpy.savez(path, "
            "**network.parameters)"
        )
    options = {f.name: _option(name, getattr(layer, f.name)) for f in dataclasses.fields(layer)}
    return {"layer": type(layer).__name__, "options": options}


def _option(name, value):
    if isinstance(value, Layer):
        return _described(name, value)
    if isinstance(value, (tuple, list)):
        return [_option(name, each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _made(described):
    """Return the layer that a description says."""
    classes = {cls.__name__: cls for cls in BUILT_IN}
    return classes[described["layer"]](**{k: _value(v) for k, v in described["options"].items()})


def _value(option):
    if isinstance(option, dict):
        return _made(option)
    return tuple(map(_value, option)) if isinstance(option, list) else option
