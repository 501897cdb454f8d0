"""Training: `fit` runs an optimizer over batches, keeps a history, can be stopped and resumed.

The same arguments and the same `rng` give the same bits, in one go or resumed from a checkpoint
after any epoch.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import sys

import numpy as np

from minimal_nn.errors import CheckpointError, NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.files import whole_file
from minimal_nn.network import random_generator
from minimal_nn.optimizers import Optimizer

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


class StepByStep:
    """The plan that every wing has: each step is a forward pass, a backward pass and an update."""

    def run(self, network, optimizer, X, targets, batches):
        """Train on X[rows], targets[rows] for rows in `batches`; return the losses, (steps,)."""
        losses = np.empty(len(batches))
        for step, rows in enumerate(batches):
            loss, gradients, state = network.step_gradients(X[rows], targets[rows])
            optimizer.step(network, gradients)
            network.state = state
            losses[step] = loss
        return losses


def fit(
    network,
    optimizer,
    X,
    targets,
    *,
    epochs,
    batch_size=32,
    rng=0,
    augment=None,
    validation=None,
    observe=None,
    progress=True,
    checkpoint=None,
    resume=False,
):
    """Train `network` in place and return its `History`.

    Each epoch visits the examples in a new random order, in batches of `batch_size`; the last batch
    is smaller where the numbers do not divide, and dropped where it would hold a single example
    (batch norm has no variance there).

    X (N, *input_shape) and targets: arrays as for `Network.loss_and_gradients`.  epochs: passes
    over the data.  rng: a seed or numpy.random.Generator for the order.  augment: a function
    (X, rng) -> changed X, such as `augmentation.flip_and_shift`, called on the whole of X at the
    beginning of each epoch; its result takes X's place there.  validation: (X, labels) whose error
    is recorded after each epoch.  observe: a function network -> dict of numbers, recorded too.
    progress: show a bar.  checkpoint: a path, written whole after every epoch.  resume: continue
    from it if it exists; the result is bit for bit that of an uninterrupted run.

    Raises ValueError and TypeError for arguments that do not fit; NonFiniteError, ZeroVarianceError
    or ZeroNormError, with the step, where training ends in one; CheckpointError for a file that is
    damaged, or that another run wrote.  An existing checkpoint is never overwritten without resume.

    >>> from minimal_nn import Dense, Network, SGD, fit
    >>> X = np.eye(4, dtype=np.float32)
    >>> network = Network([Dense(2)], input_shape=(4,), rng=0)
    >>> history = fit(network, SGD(0.5), X, np.array([0, 1, 0, 1]), epochs=20, progress=False)
    >>> history.loss[-1] < history.loss[0]
    True
    """
    for argument, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{argument}: got {value!r}, expected an integer >= 1")
    network.check_inputs(X)
    network.check_targets(targets, len(X))
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: got {optimizer!r}, expected an optimizer such as SGD(0.1)")
    optimizer.check(network)
    if augment is not None and not callable(augment):
        raise TypeError(
            f"augment: got {type(augment).__name__}, expected a function (X, rng) -> X, or None"
        )
    if validation is not None:
        if not isinstance(validation, (tuple, list)) or len(validation) != 2:
            raise TypeError(
                f"validation: got {type(validation).__name__}, expected a pair (X, labels)"
            )
        try:
            network.check_inputs(validation[0])
            network.check_labels(validation[1], len(validation[0]))
        except (ValueError, TypeError) as error:
            raise type(error)(f"validation: {error}") from None
    rng = random_generator(rng)
    history = History()
    if batch_size == 1 or len(X) == 1:
        batchnorms = [name for name in network.names if name.startswith("batchnorm")]
        if batchnorms and len(network.input_shape) == 1:
            raise ValueError(
                f"batch_size: got batches of 1 example, expected at least 2 for {batchnorms[0]} "
                "(the variance of one number is 0)"
            )
    threads = _blas_threads()
    fingerprint = None
    if checkpoint is not None:
        checkpoint = pathlib.Path(checkpoint)
        fingerprint = _fingerprint(network, optimizer, X, targets, batch_size, augment)
        if checkpoint.exists() and not resume:
            raise CheckpointError(
                f"checkpoint: {checkpoint} exists already; expected a new path, or resume=True to "
                "continue from it"
            )
        if not checkpoint.parent.is_dir():
            raise CheckpointError(
                f"checkpoint: the folder {checkpoint.parent} does not exist; create it first"
            )
        if checkpoint.exists():
            history, threads = load_checkpoint(
                checkpoint, network, optimizer, rng, fingerprint, epochs
            )
    plan = network.backend.plan(network.program(), optimizer, batch_size) or StepByStep()
    place = getattr(plan, "place", lambda array: array)  # what does not change goes there once
    targets, X = place(targets), place(X) if augment is None else X
    with _pinned_blas(threads), _bar(progress, epochs, len(history.epochs)) as bar:
        for epoch in range(len(history.epochs) + 1, epochs + 1):
            shown = X if augment is None else _augmented(network, X, augment, rng)
            _epoch(plan, network, optimizer, shown, targets, batch_size, rng, history, epoch)
            record = history.epochs[-1]
            if validation is not None:
                record["error"] = network.error(*validation)
            if observe is not None:
                record.update(_observed(observe(network)))
            if checkpoint is not None:
                save_checkpoint(checkpoint, network, optimizer, rng, history, fingerprint, threads)
            bar.set_postfix({k: f"{v:.4g}" for k, v in record.items() if k in ("loss", "error")})
            bar.update()
    return history


def _augmented(network, X, augment, rng):
    shown = augment(X, rng)
    try:
        network.check_inputs(shown)
    except (ValueError, TypeError) as error:
        raise type(error)(f"augment: its result as {error}") from None
    if len(shown) != len(X):
        raise ValueError(
            f"augment: got {len(shown)} examples back, expected {len(X)}, one for each target"
        )
    return shown


def _epoch(plan, network, optimizer, X, targets, batch_size, rng, history, epoch):
    order = rng.permutation(len(X))
    full = len(order) // batch_size * batch_size
    parts = [order[:full].reshape(-1, batch_size)] if full else []
    rest = order[full:]
    if len(rest) > 1 or (len(rest) == 1 and not full):
        parts.append(rest[None])
    losses = []
    for batches in parts:
        try:
            losses.extend(plan.run(network, optimizer, X, targets, batches).tolist())
        except (NonFiniteError, ZeroVarianceError, ZeroNormError) as error:
            raise type(error)(f"epoch {epoch}, step {optimizer.t + 1}: {error}") from None
    for name, array in network.parameters.items():
        if not np.all(np.isfinite(network.backend.to_numpy(array))):
            raise NonFiniteError(
                f"epoch {epoch}, step {optimizer.t}: {name} got NaN or infinite in an update; "
                "expected finite numbers: a smaller learning rate keeps them finite"
            )
    history.loss.extend(losses)
    history.epochs.append({"epoch": epoch, "loss": float(np.mean(losses))})


def _observed(numbers):
    """Return what `observe` returned with Python numbers, which a checkpoint can hold."""
    if not isinstance(numbers, dict):
        raise TypeError(f"observe: got {numbers!r}, expected a dict of numbers")
    record = {}
    for name, value in numbers.items():
        if np.ndim(value) or np.asarray(value).dtype.kind not in "biuf":
            got = type(value).__name__
            raise TypeError(f"observe: got {name!r} = a {got}, expected a dict of numbers")
        record[name] = np.asarray(value).item()
    return record


@contextlib.contextmanager
def _bar(progress, epochs, done):
    from tqdm import tqdm  # on first use: importing minimal_nn stays fast

    with tqdm(total=epochs, initial=done, unit="epoch", disable=not progress) as bar:
        yield bar


# Checkpoints


def _blas_threads():
    """Return how many threads NumPy's BLAS uses: its results' last bits depend on it."""
    from threadpoolctl import threadpool_info

    libraries = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    return max((lib["num_threads"] for lib in libraries), default=1)


def _pinned_blas(threads):
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=threads, user_api="blas")


def _fingerprint(network, optimizer, X, targets, batch_size, augment):
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
