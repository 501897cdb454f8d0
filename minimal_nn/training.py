"""Training: `fit` runs an optimizer over batches, keeps a history, can be stopped and resumed.

The same arguments and the same `rng` give the same bits, in one go or resumed from a checkpoint
after any epoch.
"""

import contextlib
import pathlib

import numpy as np

from minimal_nn import checkpoint as checkpoints
from minimal_nn.arguments import random_generator
from minimal_nn.checkpoint import History
from minimal_nn.errors import CheckpointError, NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.optimizers import Optimizer


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
    least, layer = network.least_examples()
    if min(batch_size, len(X)) < least:
        raise ValueError(
            f"batch_size: got batches of {min(batch_size, len(X))} example, expected at least "
            f"{least} for {layer} (the variance of one number is 0)"
        )
    threads = checkpoints.blas_threads()
    fingerprint = None
    if checkpoint is not None:
        checkpoint = pathlib.Path(checkpoint)
        fingerprint = checkpoints.fingerprint(network, optimizer, X, targets, batch_size, augment)
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
            history, threads = checkpoints.load_checkpoint(
                checkpoint, network, optimizer, rng, fingerprint, epochs
            )
    plan = network.backend.plan(network.program(), optimizer, batch_size) or StepByStep()
    with checkpoints.pinned_blas(threads), _bar(progress, epochs, len(history.epochs)) as bar:
        for epoch in range(len(history.epochs) + 1, epochs + 1):
            shown = X if augment is None else _augmented(network, X, augment, rng)
            _epoch(plan, network, optimizer, shown, targets, batch_size, rng, history, epoch)
            record = history.epochs[-1]
            if validation is not None:
                record["error"] = network.error(*validation)
            if observe is not None:
                record.update(_observed(observe(network)))
            if checkpoint is not None:
                checkpoints.save_checkpoint(
                    checkpoint, network, optimizer, rng, history, fingerprint, threads
                )
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
