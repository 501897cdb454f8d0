"""Checkpoints: everything that `fit` needs to continue, and what a run must agree with to do so."""

import functools
import hashlib
import json
import sys

import numpy as np

from minimal_nn.errors import CheckpointError
from minimal_nn.files import whole_file

_FORMAT = 1  # of checkpoint files


class History:
    """What `fit` recorded: `loss`, one number a step, and `epochs`, a dict for each epoch.

    An epoch's dict has `epoch` (from 1), `loss` (the mean over its steps), `error` (validation, if
    data were given) and whatever `observe` returned.
    """

    def __init__(self, loss=(), epochs=()):
        self.loss = list(loss)
        self.epochs = list(epochs)

    def __repr__(self):
        last = f", last {self.epochs[-1]}" if self.epochs else ""
        return f"History({len(self.epochs)} epochs, {len(self.loss)} steps{last})"


def blas_threads():
    """Return how many threads NumPy's BLAS uses: its results' last bits depend on it."""
    from threadpoolctl import threadpool_info

    libraries = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    return max((lib["num_threads"] for lib in libraries), default=1)


def pinned_blas(threads):
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=threads, user_api="blas")


def fingerprint(network, optimizer, X, targets, batch_size, augment):
    """Return what a checkpoint must agree with: layers, optimizer, data, batch size, wing."""
    data = hashlib.sha256(np.ascontiguousarray(X).tobytes())
    data.update(np.ascontiguousarray(targets).tobytes())
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):  # every digit of arrays
        optimizer_text = repr(optimizer)
    return {
        "layers": repr(network.layers),
        "input_shape": list(network.input_shape),
        "loss": network.loss_kind,
        "dtype": str(network.dtype),
        "backend": network.backend.name,
        "optimizer": optimizer_text,
        "batch_size": int(batch_size),
        "augment": None if augment is None else _named(augment),
        "data": data.hexdigest(),
    }


def _named(function):
    """Return what a function is called, the arguments of a functools.partial included."""
    if isinstance(function, functools.partial):
        return f"{_named(function.func)} {function.args} {function.keywords}"
    return getattr(function, "__qualname__", type(function).__qualname__)


def save_checkpoint(path, network, optimizer, rng, history, fingerprint, threads):
    """Write everything that `fit` needs to continue to `path` (npz), whole or not at all."""
    to_numpy = network.backend.to_numpy
    arrays = {f"parameter/{name}": to_numpy(a) for name, a in network.parameters.items()}
    arrays.update({f"state/{name}": to_numpy(a) for name, a in network.state.items()})
    for name, slots in optimizer.state.items():
        arrays.update({f"optimizer/{name}/{slot}": to_numpy(a) for slot, a in slots.items()})
    meta = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "t": optimizer.t,
        "rng": rng.bit_generator.state,
        "epochs": history.epochs,
        "blas_threads": threads,
    }
    arrays["history/loss"] = np.asarray(history.loss)
    arrays["meta"] = np.array(json.dumps(meta))
    with whole_file(path) as file:
        np.savez(file, **arrays)


def load_checkpoint(path, network, optimizer, rng, fingerprint, epochs):
    """Restore network, optimizer and rng from `path`; return the history and the BLAS threads.

    Everything is read and checked before anything is changed.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(str(arrays["meta"]))
        written_by = {"format": meta["format"], **meta["fingerprint"]}
        parameters = {name: arrays[f"parameter/{name}"] for name in _listed(arrays, "parameter/")}
        state = {name: arrays[f"state/{name}"] for name in _listed(arrays, "state/")}
        slots = {name: {} for name in parameters}
        for key in _listed(arrays, "optimizer/"):
            name, slot = key.rsplit("/", 1)
            slots[name][slot] = arrays[f"optimizer/{key}"]
        history = History(arrays["history/loss"].tolist(), meta["epochs"])
        t, threads, rng_state = meta["t"], meta["blas_threads"], meta["rng"]
        generator = rng_state["bit_generator"]
    except Exception as error:  # whatever a damaged byte leads to, NumPy's or zipfile's
        raise CheckpointError(
            f"checkpoint: {path} is damaged or not a checkpoint ({type(error).__name__}: {error}); "
            "it was left as it is: move it away to start anew"
        ) from None
    written_by["rng"] = generator
    expected = {"format": _FORMAT, **fingerprint, "rng": type(rng.bit_generator).__name__}
    for key, value in expected.items():
        if written_by.get(key) != value:
            raise CheckpointError(
                f"checkpoint: {path} was written by a run with {key} = {written_by.get(key)}, this "
                f"run has {value}; expected the same: use another path"
            )
    if len(history.epochs) > epochs:
        raise CheckpointError(
            f"checkpoint: {path} has {len(history.epochs)} epochs behind it, expected at most "
            f"epochs = {epochs}"
        )
    asarray = network.backend.asarray
    network.parameters = {name: asarray(parameters[name]) for name in network.parameters}
    network.state = {name: asarray(state[name]) for name in network.state}
    optimizer.state = {
        name: {slot: asarray(array) for slot, array in own.items()} for name, own in slots.items()
    }
    optimizer.t, rng.bit_generator.state = t, rng_state
    return history, threads


def _listed(arrays, prefix):
    return [name[len(prefix) :] for name in arrays if name.startswith(prefix)]
