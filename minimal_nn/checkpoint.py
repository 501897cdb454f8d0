"""Checkpoints: where a run stands, and what another call of `fit` must agree with to continue it.

A file (npz) holds

    what the run is     layers, optimizer, data, augmentation, ... as `identity.describe` says them
    how it began        a hash of the initial weights, the state and the seed of the generator
    where it stands     weights, running statistics, optimizer state, generator, history, and the
                        factors that a schedule gave so far

A schedule is known by its factors at the steps taken: whatever says the same of these is the same.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from minimal_nn import files
from minimal_nn.errors import CheckpointError
from minimal_nn.identity import Indescribable, describe, difference, digest

_FORMAT = 2  # of checkpoint files


class History:
    """What `fit` recorded: `loss`, one number a step, and `epochs`, a dict for each epoch.

    An epoch's dict has `epoch` (from 1), `loss` (the mean over its steps, whatever their sizes),
    where validation data were given `validation_loss` and, for labels, `error`, whatever `observe`
    returned, and with `fit(best=...)` `best_epoch`, the best until then.
    """

    def __init__(self, loss: Iterable[float] = (), epochs: Iterable[dict[str, Any]] = ()) -> None:
        self.loss = list(loss)
        self.epochs = list(epochs)

    def __repr__(self) -> str:
        last = f", last {self.epochs[-1]}" if self.epochs else ""
        return f"History({len(self.epochs)} epochs, {len(self.loss)} steps{last})"


class Best:
    """The weights and statistics of the epoch whose record has the least value of `key` so far.

    data: the arrays that the value is measured on, beside those of the training.
    """

    def __init__(self, key: str, data: Iterable[Any] = ()) -> None:
        self.key, self.epoch, self.value = key, 0, np.nan  # no epoch yet
        self.data = tuple(data)
        self.arrays: dict[str, np.ndarray] = {}  # by "parameter/name" and "state/name"

    def see(self, record: dict[str, Any], network: Any) -> None:
        """Compare an epoch with the best one before; note in its record which one is the best."""
        if self.key not in record:
            raise ValueError(
                f"best: got {self.key!r}, which the epoch's record does not have, expected one of "
                f"{', '.join(record)}"
            )
        value = record[self.key]
        if np.isnan(self.value) or value < self.value:
            self.epoch, self.value = record["epoch"], value
            self.arrays = {name: array.copy() for name, array in _arrays(network).items()}
        record["best_epoch"] = self.epoch

    def load(self, arrays: dict[str, np.ndarray], epochs: list[dict[str, Any]]) -> None:
        """Take up again what a checkpoint holds after these epochs."""
        if epochs:
            self.epoch = epochs[-1]["best_epoch"]
            self.value = epochs[self.epoch - 1][self.key]
            self.arrays = arrays

    def restore(self, network: Any) -> None:
        """Give a network these weights and statistics."""
        if self.epoch:
            _take(network, self.arrays)


class Checkpoint:
    """The file of one run, from its beginning or resumed.

    path: where it is written; ~ is the home folder.  network, optimizer, X, targets, batch_size,
    augment: as `fit` has them.  rng: the Generator of the run.  factors: the `Factors` of its
    schedule, or None.  best: the run's `Best`, or None.  steps: other options of `fit` that say
    what a step is.
    """

    def __init__(
        self, path, network, optimizer, X, targets, batch_size, augment, rng, factors, best, steps
    ):
        self.path = path
        self.network, self.optimizer, self.augment = network, optimizer, augment
        self.factors, self.best = factors, best
        self.run = {
            **self._settings(),
            "input_shape": repr(network.input_shape),
            "loss": network.loss_kind,
            "dtype": str(network.dtype),
            "backend": network.backend.name,
            "batch_size": int(batch_size),
            "schedule": factors and factors.targets(),
            "clip_norm": steps.get("clip_norm"),
            "accumulate": steps.get("part_size"),
            "frozen": list(steps.get("frozen", ())) or None,
            "best": best and best.key,
            "data": self._digest(X, targets),
            "validation": self._digest(*best.data) if best and best.data else None,
        }
        self.start = {"weights": _weights(network), "rng": _chance(rng)}

    def _digest(self, *arrays):
        return digest(*(self.network.backend.to_numpy(array) for array in arrays))

    def _settings(self):
        """Describe what could be an object of one's own."""
        network = self.network
        parts = {
            "network": (type(network), network.settings()),
            "layers": network.layers,
            "optimizer": (type(self.optimizer), self.optimizer.settings()),
            "augment": self.augment,
        }
        found = {}
        for key, part in parts.items():
            try:
                found[key] = describe(part)
            except Indescribable as error:
                raise CheckpointError(
                    f"checkpoint: {key} has or is {error}; expected settings that a resumed run "
                    "can be compared with: keep them in attributes"
                ) from None
        return found

    def save(self, rng, history, threads):
        """Write where the run stands, whole or not at all."""
        for key, now in self._settings().items():
            changed = difference(self.run[key], now)
            if changed:
                raise CheckpointError(
                    f"checkpoint: {key} changed from {changed[0]} to {changed[1]} while the run "
                    "went on, which a resumed run could not repeat; expected settings that stay: "
                    "what changes belongs in an optimizer's state, and chance in the rng"
                )
        network, optimizer = self.network, self.optimizer
        to_numpy = network.backend.to_numpy
        arrays = _arrays(network)
        if self.best is not None:
            arrays.update({f"best/{name}": array for name, array in self.best.arrays.items()})
        for name, slots in optimizer.state.items():
            arrays.update({f"optimizer/{name}/{slot}": to_numpy(a) for slot, a in slots.items()})
        meta = {
            "format": _FORMAT,
            "run": self.run,
            "start": self.start,
            "individual": network.individual.name,
            "t": optimizer.t,
            "rng": _chance(rng),
            "epochs": history.epochs,
            "blas_threads": threads,
        }
        arrays["history/loss"] = np.asarray(history.loss)
        for key, values in self._schedule(len(history.loss)).items():
            arrays[f"schedule/{key}"] = values
        arrays["meta"] = np.array(json.dumps(meta))
        with files.whole_file(self.path) as file:
            np.savez(file, **arrays)

    def _schedule(self, steps):
        """Return the schedule's factors of the first steps, by what they are of."""
        if self.factors is None:
            return {}
        self.factors.extend(steps)
        return {key: values[:steps] for key, values in self.factors.values.items()}

    def load(self, rng, given, epochs):
        """Put network and optimizer where the file stands; return rng, history and BLAS threads.

        given: the argument that rng was made from; None agrees with any.  Everything is read and
        checked before anything is changed.
        """
        saved = _read(self.path)
        meta = saved["meta"]
        self._check_run(meta["run"])
        own = meta["individual"] == self.network.individual.name
        self._check_start(meta, own, given)
        self._check_schedule(saved)
        if len(saved["history"].epochs) > epochs:
            raise CheckpointError(
                f"checkpoint: {self.path} has {len(saved['history'].epochs)} epochs behind it, "
                f"expected at most epochs = {epochs}"
            )
        rng = _restored(rng, given, meta["rng"])
        self.start = meta["start"]
        network, optimizer = self.network, self.optimizer
        asarray = network.backend.asarray
        _take(network, saved["arrays"])
        if self.best is not None:
            self.best.load(saved["best"], saved["history"].epochs)
        still = network.parameters_of(self.run["frozen"] or ())
        optimizer.state = {
            name: {slot: asarray(array) for slot, array in own.items()}
            for name, own in saved["optimizer"].items()
            if own or name not in still
        }
        optimizer.t = meta["t"]
        optimizer.belong(network)
        return rng, saved["history"], meta["blas_threads"]

    def _check_run(self, other):
        for key, value in self.run.items():
            differs = difference(other.get(key), value)
            if differs:
                raise _other(self.path, key, *differs)

    def _check_start(self, meta, own, given):
        """Refuse other initial weights and another seed, but for the run's own network."""
        begun, this = meta["start"]["rng"], self.start["rng"]
        if given is not None:
            if this["bit_generator"] != begun["bit_generator"]:
                raise _other(self.path, "rng", begun["bit_generator"], this["bit_generator"])
            if this not in (begun, meta["rng"]) and not (own and _same_seed(this, begun)):
                mend = " (rng=None takes the checkpoint's)"
                raise _other(self.path, "rng", _seed(begun), _seed(this), mend)
        weights = meta["start"]["weights"], self.start["weights"]
        if not own and weights[0] != weights[1]:
            raise _other(self.path, "initial weights", *(text[:8] for text in weights))

    def _check_schedule(self, saved):
        for key, values in self._schedule(len(saved["history"].loss)).items():
            steps = np.flatnonzero(saved["schedule"][key] != values)
            if steps.size:
                old, new = (float(x[steps[0]]) for x in (saved["schedule"][key], values))
                raise _other(self.path, "schedule", f"{key} times {old} at step {steps[0]}", new)


def _other(path, key, old, new, mend=""):
    return CheckpointError(
        f"checkpoint: {path} was written by a run with {key} = {old}, this run has {new}; "
        f"expected the same{mend}: use another path"
    )


def path_of(checkpoint, resume):
    """Return the path of a checkpoint, with ~ expanded; refuse one that would be overwritten."""
    path = files.path_of("checkpoint", checkpoint)
    if path.exists() and not resume:
        raise CheckpointError(
            f"checkpoint: {path} exists already; expected a new path, or resume=True to continue "
            "from it"
        )
    if not path.parent.is_dir():
        raise CheckpointError(
            f"checkpoint: the folder {path.parent} does not exist; create it first"
        )
    return path


def _arrays(network):
    """Return a network's weights and statistics as NumPy arrays, by their names in a file."""
    to_numpy = network.backend.to_numpy
    arrays = {f"parameter/{name}": to_numpy(a) for name, a in network.parameters.items()}
    arrays.update({f"state/{name}": to_numpy(a) for name, a in network.state.items()})
    return arrays


def _take(network, arrays):
    """Give a network the weights and statistics of a file."""
    asarray = network.backend.asarray
    network.parameters = {k: asarray(arrays[f"parameter/{k}"]) for k in network.parameters}
    network.state = {k: asarray(arrays[f"state/{k}"]) for k in network.state}


def _weights(network):
    arrays = {**network.parameters, **network.state}
    return digest(*(network.backend.to_numpy(arrays[name]) for name in sorted(arrays)))


def _read(path):
    """Return what a checkpoint file holds, or say that it is none."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(str(arrays["meta"]))
        if meta["format"] != _FORMAT:
            raise _other(path, "format", meta["format"], _FORMAT)
        for key in ("format", "run", "start", "individual", "t", "rng", "epochs", "blas_threads"):
            meta[key]
        meta["start"]["rng"]["seed"], meta["start"]["weights"], meta["rng"]["bit_generator"]
        slots = {name: {} for name in _listed(arrays, "parameter/")}
        for key, array in _listed(arrays, "optimizer/").items():
            name, slot = key.rsplit("/", 1)
            slots[name][slot] = array
        history = History(arrays["history/loss"].tolist(), meta["epochs"])
        schedule = _listed(arrays, "schedule/")
        for key in meta["run"].get("schedule") or ():
            if schedule[key].shape != (len(history.loss),):
                raise ValueError(f"{len(history.loss)} steps and {schedule[key].shape} factors")
        return {
            "meta": meta,
            "arrays": arrays,
            "best": _listed(arrays, "best/"),
            "optimizer": slots,
            "schedule": schedule,
            "history": history,
        }
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged byte leads to, NumPy's or zipfile's
        raise CheckpointError(
            f"checkpoint: {path} is damaged or not a checkpoint ({type(error).__name__}: {error}); "
            "it was left as it is: move it away to start anew"
        ) from None


def _listed(arrays, prefix):
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


# Generators


def _chance(rng):
    """Return a Generator's state, its seed and how often it has spawned, as JSON can hold them."""
    bits = rng.bit_generator
    seed = bits.seed_seq if isinstance(bits.seed_seq, np.random.SeedSequence) else None
    return {
        "bit_generator": type(bits).__name__,
        "state": _encoded(bits.state),
        "seed": seed and {key: _encoded(value) for key, value in seed.state.items()},
    }


def _same_seed(one, other):
    if None in (one["seed"], other["seed"]):
        return False
    keys = ("entropy", "spawn_key", "pool_size")
    return all(one["seed"][key] == other["seed"][key] for key in keys)


def _seed(chance):
    """Return a few words on a generator: its seed, or its state where it has none."""
    seed = chance["seed"]
    if seed is None:
        return f"{chance['bit_generator']} without a seed"
    child = f", child {seed['spawn_key']}" if seed["spawn_key"] else ""
    used = "" if chance["state"] == _fresh_state(chance) else ", used before"
    return f"seed {seed['entropy']}{child}{used}"


def _fresh_state(chance):
    return _encoded(_generator(chance).bit_generator.state)


def _generator(chance):
    """Return a new Generator of this kind, seed and number of children."""
    seed = {key: _decoded(value) for key, value in chance["seed"].items()}
    kind = getattr(np.random, chance["bit_generator"])
    return np.random.Generator(kind(np.random.SeedSequence(**seed)))


def _restored(rng, given, chance):
    """Return the run's Generator as the checkpoint has it: the one given, if it can go there."""
    seed = rng.bit_generator.seed_seq
    behind = 0
    if chance["seed"] is not None and isinstance(seed, np.random.SeedSequence):
        behind = chance["seed"]["n_children_spawned"] - seed.n_children_spawned
    if chance["seed"] is not None and (given is None or behind < 0):
        rng = _generator(chance)
    elif behind:
        seed.spawn(behind)
    rng.bit_generator.state = _decoded(chance["state"])
    return rng


def _encoded(value):
    """Return a bit generator's state with its arrays as lists."""
    if isinstance(value, dict):
        return {key: _encoded(x) for key, x in value.items()}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, (list, tuple)):
        return [_encoded(x) for x in value]
    return value.item() if isinstance(value, np.generic) else value


def _decoded(value):
    if isinstance(value, dict) and value.keys() == {"array", "dtype"}:
        return np.array(value["array"], dtype=value["dtype"])
    if isinstance(value, dict):
        return {key: _decoded(x) for key, x in value.items()}
    return value
