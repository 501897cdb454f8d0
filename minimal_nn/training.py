"""Training: `fit` runs an optimizer over batches, keeps a history, can be stopped and resumed.

The same arguments and the same `rng` give the same bits, in one go or resumed from a checkpoint
after any epoch.
"""

import contextlib
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from minimal_nn import arguments, blas
from minimal_nn.checkpoint import Best, Checkpoint, History, path_of
from minimal_nn.errors import CheckpointError, NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.network import Network
from minimal_nn.optimizers import Optimizer
from minimal_nn.plans import Plan, StepByStep, step_options
from minimal_nn.schedules import FIRST, Factors, Schedule
from minimal_nn.typing import Array, ArrayLike, PathLike, Seed

__all__ = ["History", "StepByStep", "fit"]


def fit(
    network: Network,
    optimizer: Optimizer,
    X: ArrayLike,
    targets: ArrayLike,
    *,
    epochs: int,
    batch_size: int = 32,
    rng: Seed = 0,
    augment: Callable[[Array, np.random.Generator], ArrayLike] | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    schedule: Schedule | Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
    frozen: Collection[str] = (),
    best: str | None = None,
    stop: Callable[[dict[str, Any]], bool] | None = None,
    observe: Callable[[Network], dict[str, Any]] | None = None,
    progress: bool = True,
    checkpoint: PathLike | None = None,
    resume: bool = False,
) -> History:
    """Train `network` in place and return its `History`.

    Each epoch visits the examples in a new random order, in batches of `batch_size`; the last batch
    is smaller where the numbers do not divide, and dropped where a layer needs more examples than
    it would hold (batch norm has no variance over a single number).  An epoch's loss is the mean
    over its steps, a smaller last one counting as much as the others.

    X (N, *input_shape) and targets: array-likes as for `Network.loss_and_gradients`, which nobody
    changes meanwhile.  epochs: passes over the data.  rng: a seed or numpy.random.Generator for the
    order.  augment: a function (X, rng) -> changed X, such as `augmentation.flip_and_shift`, called
    on the whole of X at the beginning of each epoch; its result takes X's place there.  validation:
    (X, targets) whose loss, and error where they are labels, is recorded after each epoch.
    schedule: a function of the step (0 at the first one) whose value multiplies the learning rate,
    such as `schedules.Cosine`, or a `Schedule` for other hyper-parameters and groups.  clip_norm:
    where the norm of all gradients together is larger, they are scaled to it, before the optimizer
    adds penalties.  accumulate: so many batches make a step, whose gradient and loss are the means
    over their examples.  frozen: the names of layers that compute as in evaluation and keep their
    parameters and statistics.  best: a number of the epoch's record, "validation_loss" say: the
    network ends with the weights and statistics of the epoch where it was least, which the record
    tells as `best_epoch`; the optimizer, and a network whose training an exception ends, stay with
    the last ones.  stop: a function of the epoch's record and of nothing else (a resumed run asks
    it again); training ends where it returns True.  observe: a function network -> dict of numbers,
    recorded too.  progress: show a bar.  checkpoint: a path, written whole after every epoch.
    resume: continue from it if it exists; the result is bit for bit that of an uninterrupted run.

    What `observe` changes (optimizer.hyper, say) holds from the next epoch on, in every wing.
    Where a wing's compiled loop cannot be used, `network.plan_report(optimizer, batch_size)` says
    why, as does the logger "minimal_nn"; the numbers are the same.

    Raises ValueError and TypeError for arguments that do not fit; NonFiniteError, ZeroVarianceError
    or ZeroNormError, with the step, where training ends in one; CheckpointError for a file that is
    damaged, that another run wrote, or that cannot hold what the run depends on.  An existing
    checkpoint is never overwritten without resume.  An exception that ends the training, also one
    of `observe`, has the epochs until then in its attribute `history`.

    >>> from minimal_nn import Dense, Network, SGD, fit
    >>> X = np.eye(4, dtype=np.float32)
    >>> network = Network([Dense(2)], input_shape=(4,), rng=0)
    >>> history = fit(network, SGD(0.5), X, np.array([0, 1, 0, 1]), epochs=20, progress=False)
    >>> history.loss[-1] < history.loss[0]
    True

    With a warm-up over ten steps, and a cosine down to 0 over the rest of them:

    >>> from minimal_nn.schedules import Cosine, Warmup
    >>> history = fit(network, SGD(0.5), X, np.array([0, 1, 0, 1]), epochs=100, progress=False,
    ...               schedule=Warmup(10, Cosine(90)))

    Until the validation loss has not fallen for three epochs, and back to where it was least:

    >>> history = fit(network, SGD(0.5), X, np.array([0, 1, 0, 1]), epochs=100, progress=False,
    ...               validation=(X, np.array([0, 1, 1, 1])), best="validation_loss",
    ...               stop=lambda record: record["epoch"] - record["best_epoch"] >= 3)
    >>> len(history.epochs) < 100
    True
    """
    epochs = arguments.whole_number("epochs", epochs, wrong_kind=ValueError)
    _check_network(network)
    X, targets = network.check_inputs(X), network.check_targets(targets, len(X))
    _check_optimizer(optimizer, network)
    options = network.checked_options(optimizer, batch_size, clip_norm, accumulate, frozen)
    batch_size, clip_norm, accumulate, frozen = options
    size = min(batch_size, len(X))  # no room is made for more examples than there are
    turns = min(accumulate, -(-len(X) // size))
    batches = _Batches(network, size, turns, frozen)
    batches.check(len(X))
    _check_functions(augment=augment, stop=stop, observe=observe)
    validation = _checked_validation(network, validation)
    kept = None if best is None else _checked_best(best, network, validation, observe)
    given, rng = rng, arguments.random_generator(rng)
    factors = None if schedule is None else Factors(schedule, optimizer, network)
    if factors is not None:
        factors.extend(min(batches.count(len(X)) * epochs, FIRST))
    options = step_options(size, clip_norm, turns, frozen)
    history, threads, file = History(), None, None
    if checkpoint is not None:
        path = path_of(checkpoint, resume)
        run = {**options, "part_size": accumulate if accumulate > 1 else None}
        file = Checkpoint(
            path, network, optimizer, X, targets, batch_size, augment, rng, factors, kept, run
        )
        if path.exists():
            rng, history, threads = file.load(rng, given, epochs)
    elif resume:
        raise ValueError("resume: got True without a checkpoint, expected checkpoint=PATH as well")
    if factors is not None:
        options["scheduled"] = True
    fixed = (X, targets) if augment is None else (targets,)
    plan = Plan(network, optimizer, size * turns, fixed, **options)
    with _kept(history), _pinned(threads) as threads, _bar(progress, epochs, history) as bar:
        for epoch in range(len(history.epochs) + 1, epochs + 1):
            if history.epochs and _stops(stop, history.epochs[-1]):
                break
            shown = X if augment is None else _augmented(network, X, augment, rng)
            order = batches.of(rng.permutation(len(X)))
            losses = _epoch(plan, shown, targets, order, epoch, factors, len(history.loss))
            record = {"epoch": epoch, "loss": float(np.mean(losses))}
            history.loss.extend(losses)
            history.epochs.append(record)
            if validation is not None:
                record.update(_validated(network, *validation))
            if observe is not None:
                record.update(_observed(observe(network), record))
            if kept is not None:
                kept.see(record, network)
            if file is not None:
                file.save(rng, history, threads)
            bar(record)
    if kept is not None:
        kept.restore(network)
    return history


def _epoch(plan, X, targets, order, epoch, factors, first):
    """Train on every example once, in the batches of `order`; return the losses of the steps.

    factors: of the run's steps, or None; first: the number of this epoch's first step.
    """
    network, optimizer = plan.network, plan.optimizer
    network.check_numbers()  # `observe` may have replaced some
    optimizer.check(network)
    optimizer.belong(network)
    losses = []
    for batches in order:
        now = None if factors is None else factors.of(first + len(losses), len(batches))
        try:
            losses.extend(plan.run(X, targets, batches, now).tolist())
        except (NonFiniteError, ZeroVarianceError, ZeroNormError) as error:
            raise type(error)(f"epoch {epoch}, step {optimizer.t + 1}: {error}") from None
    for name, array in network.parameters.items():
        if not np.all(np.isfinite(network.backend.to_numpy(array))):
            raise NonFiniteError(
                f"epoch {epoch}, step {optimizer.t}: {name} got NaN or infinite in an update; "
                "expected finite numbers: a smaller learning rate keeps them finite"
            )
    return losses


class _Batches:
    """How an epoch's examples are shared out: `accumulate` batches of `batch_size` to a step."""

    def __init__(self, network, batch_size, accumulate, frozen):
        self.batch_size, self.size = batch_size, batch_size * accumulate
        self.least, self.layer = network.least_examples(frozen)

    def check(self, count):
        """Refuse batches that are too small for a layer."""
        smallest = min(self.batch_size, count)
        if smallest < self.least:
            examples = "1 example" if smallest == 1 else f"{smallest} examples"
            raise ValueError(
                f"batch_size: got batches of {examples}, expected at least {self.least} for "
                f"{self.layer} (the variance of one number is 0)"
            )

    def _taken(self, count):
        """Return how many of the examples are taken: a last batch that is too small is not."""
        last = count % self.batch_size
        return count - last if last < self.least else count

    def count(self, count):
        """Return how many steps so many examples make."""
        return -(-self._taken(count) // self.size)

    def of(self, order):
        """Return the steps' examples: an array (steps, size), and one of the rest if any."""
        order = order[: self._taken(len(order))]
        full = len(order) // self.size * self.size
        parts = [order[:full].reshape(-1, self.size), order[full:][None]]
        return [part for part in parts if part.size]


def _augmented(network, X, augment, rng):
    try:
        shown = network.check_inputs(augment(X, rng))
    except (ValueError, TypeError) as error:
        raise type(error)(f"augment: its result as {error}") from None
    if len(shown) != len(X):
        raise ValueError(
            f"augment: got {len(shown)} examples back, expected {len(X)}, one for each target"
        )
    return shown


def _stops(stop, record):
    """Return whether training ends behind an epoch."""
    if stop is None:
        return False
    found = stop(dict(record))
    if not isinstance(found, (bool, np.bool_)):
        raise TypeError(f"stop: got {found!r} from it, expected True or False")
    return bool(found)


# What is recorded


def _validated(network, X, targets):
    found = network.evaluate(X, targets)
    return {"validation_loss": found.pop("loss"), **found}


def _observed(numbers, record):
    """Return what `observe` returned with Python numbers, which a checkpoint can hold."""
    if not isinstance(numbers, dict):
        raise TypeError(f"observe: got {numbers!r}, expected a dict of numbers")
    found = {}
    for name, value in numbers.items():
        if not isinstance(name, str):
            raise TypeError(f"observe: got the name {name!r}, expected a string")
        if name in record or name == "best_epoch":
            raise ValueError(
                f"observe: got the name {name!r}, which the epoch's record has already; expected "
                f"another than {', '.join(record)}"
            )
        if np.ndim(value) or np.asarray(value).dtype.kind not in "biuf":
            got = type(value).__name__
            raise TypeError(f"observe: got {name!r} = a {got}, expected a dict of numbers")
        found[name] = np.asarray(value).item()
    return found


@contextlib.contextmanager
def _bar(progress, epochs, history):
    """Give a function that shows an epoch's record, and the bar moved on by one."""
    from tqdm.auto import tqdm  # on first use: importing minimal_nn stays fast

    shown = ("loss", "validation_loss", "error")
    done = len(history.epochs)
    with tqdm(total=epochs, initial=done, unit="epoch", disable=not progress) as bar:

        def show(record):
            bar.set_postfix({k: f"{v:.4g}" for k, v in record.items() if k in shown})
            bar.update()

        yield show


@contextlib.contextmanager
def _kept(history):
    """Give an exception that ends the training the history until then."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(AttributeError):  # an exception without room for it
            error.history = history
        raise


@contextlib.contextmanager
def _pinned(threads):
    try:
        with blas.pinned(threads) as number:
            yield number
    except blas.OtherThreadsError as error:
        raise CheckpointError(f"checkpoint: {error}") from None


# What is refused before anything begins


def _check_network(network):
    """Refuse what is no network, and complex numbers: no loss of theirs is the least."""
    if not isinstance(network, Network):
        raise TypeError(f"network: got {type(network).__name__}, expected a Network")
    if network.dtype.kind == "c":
        raise TypeError(
            f"network: got dtype {network.dtype}, whose losses are complex numbers, expected real "
            "ones to train, such as those of network.astype('float64')"
        )


def _check_optimizer(optimizer, network):
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: got {optimizer!r}, expected an optimizer such as SGD(0.1)")
    network.check_numbers()
    optimizer.check(network)
    optimizer.check_belongs(network)


def _check_functions(**functions):
    for argument, function in functions.items():
        if function is not None and not callable(function):
            expected = {
                "augment": "(X, rng) -> X",
                "stop": "record -> bool",
                "observe": "network -> dict of numbers",
            }
            raise TypeError(
                f"{argument}: got {type(function).__name__}, expected a function "
                f"{expected[argument]}, or None"
            )


def _checked_best(best, network, validation, observe):
    """Return `Best` with the name of the number by which epochs are compared."""
    known = ["loss"]
    if validation is not None:
        known += ["validation_loss", *(["error"] if network.loss_kind == "cross_entropy" else [])]
    if not isinstance(best, str) or (best not in known and observe is None):
        raise ValueError(
            f"best: got {best!r}, expected one of {', '.join(known)} or a name that `observe` "
            "records: the number whose least value is the best"
        )
    return Best(best, validation if best in known[1:] else ())


def _checked_validation(network, validation):
    if validation is None:
        return None
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise TypeError(f"validation: got {type(validation).__name__}, expected a pair (X, labels)")
    try:
        X = network.check_inputs(validation[0])
        if network.loss_kind == "cross_entropy":
            return X, network.check_labels(validation[1], len(X))
        return X, network.check_targets(validation[1], len(X))
    except (ValueError, TypeError) as error:
        raise type(error)(f"validation: {error}") from None
