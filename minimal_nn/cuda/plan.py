"""A network's training loop on the device: the step is prepared once and replayed as one CUDA
graph.

`plan` writes the step down as the launches of the same kernels that the pure functions of this wing
use, over arrays allocated once:

    gather      the step's batch out of X and the targets, which lie on the device
    forward     every layer; a ReLU is taken by the kernel before it, and pooling behind that by
                batch norm's
    loss        its value and the gradient of the scores
    backward    every layer, into the gradients of all parameters, flat arrays by group
    update      one launch for each group of parameters with the same hyper-parameters; where units
                are stepped or normalized as a whole, one for each width of their loads
    advance     the loss goes into the list of losses, and the number of the step is raised

What changes from step to step, the rows of the batch and the optimizer's numbers, stands in tables
on the device with one row for each of CHUNK steps, so that a step has no arguments: the host
launches one graph for it, and looks at the losses and at the status word once in CHUNK steps.

Where the status word then says that a step failed, the chunk starts again from a copy of what was
before it, step by step; what the failed step would have changed is left as it was, and the step is
taken once more layer by layer, which raises the exception that names what was wrong.
"""

import math

import numpy as np
from numba import uint32

from minimal_nn.cuda import (
    activation,
    affine,
    batchnorm,
    convolution,
    layernorm,
    loss,
    pooling,
    update,
    weightnorm,
)
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import (
    address,
    asarray,
    contiguous,
    copy,
    duplicate,
    empty,
    fill_from_host,
    to_host,
)
from minimal_nn.cuda.device.language import cuda, kernel
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.parts.units import Units
from minimal_nn.errors import NonFiniteError

CHUNK = 256


@kernel(threads=256)
def gather(source, batches, place, rows, columns, out):
    """out (rows, columns) = the rows of source that the step's row of batches names."""
    row, column = cuda.blockIdx.x, cuda.threadIdx.x
    start = uint32(batches[place[0] * rows + row]) * columns
    while column < columns:
        out[row * columns + column] = source[start + column]
        column += 256


@kernel(threads=32)
def advance(value, losses, place):
    """Note the loss of the step, and go on to the next."""
    if cuda.threadIdx.x == 0:
        losses[place[0]] = value[0]
        place[0] = place[0] + 1


def plan(program, optimizer, batch_size, **options):
    """Return the training loop of a network and an optimizer, or None where there is none.

    program: a network's `Program`; optimizer: an `Optimizer`; batch_size: examples in most batches;
    options: what else a step is made of, for which there is no loop.
    """
    if options:
        return None
    if np.dtype(program.dtype) not in (np.float32, np.float64):
        return None
    if optimizer.formula not in update.FORMULAS | update.BY_UNIT:
        return None
    if not all(hasattr(Step, f"_{operation.module}") for operation in program.operations):
        return None
    if len(program.operations[-1].output_shape) != 1:
        return None
    for operation in program.operations:
        for name in operation.parameters.values():
            if any(np.ndim(number) for number in optimizer.hyper_parameters(name).values()):
                return None
    return Plan(program)


class Placed:
    """Data that lie on the device, and on the host as they were given."""

    def __init__(self, host):
        # A copy of its own, where an array of the host looks like one of the device.
        self.host, self.device = host, duplicate(asarray(np.ascontiguousarray(host)))

    def __len__(self):
        return len(self.host)

    def __getitem__(self, rows):
        return self.host[rows]


def _on_host(data):
    return data.host if isinstance(data, Placed) else to_host(data)


class Plan:
    """A network's training loop for batches of any size, each prepared on first use."""

    def __init__(self, program):
        self.program = program
        self._steps, self._memory = {}, {}

    def place(self, array):
        """Return data for `run` that are copied to the device once, and do not change."""
        on_device = isinstance(array, Placed) or hasattr(array, "__cuda_array_interface__")
        return array if on_device else Placed(np.asarray(array))

    def run(self, network, optimizer, X, targets, batches):
        """Train on X[rows], targets[rows] for each row of `batches`; return the losses, (steps,).

        X, targets: arrays, or what `place` made of them.  Parameters, running statistics and
        optimizer state are replaced by those after the last step that succeeded.  Raises
        NonFiniteError, ZeroVarianceError or ZeroNormError.
        """
        batches = np.ascontiguousarray(batches)
        if batches.size and (batches.min() < 0 or batches.max() >= len(X)):
            raise IndexError(
                f"batches: got row numbers from {batches.min()} to {batches.max()}, expected 0 to "
                f"{len(X) - 1}"
            )
        data = self._on_device("X", X), self._on_device("targets", targets)
        step = self._step(network, optimizer, batches.shape[1], data)
        return step.run(network, optimizer, X, targets, batches)

    def _step(self, network, optimizer, rows, data):
        """Return the step for a batch size and data; the last two are kept, whole and rest."""
        key = (rows, *(address(array) for array in data))
        step = self._steps.pop(key, None)
        self._steps[key] = step or Step(self.program, network, optimizer, rows, *data)
        for old in list(self._steps)[:-2]:
            del self._steps[old]
        return self._steps[key]

    def _on_device(self, name, array):
        """Return the data on the device; an array that may change goes into the same memory."""
        if isinstance(array, Placed):
            return array.device
        if hasattr(array, "__cuda_array_interface__"):
            return contiguous(asarray(array))
        array = np.asarray(array)
        key = (name, array.shape, array.dtype)
        if key in self._memory:
            fill_from_host(self._memory[key], array)
        else:
            self._memory[key] = Placed(array).device
        return self._memory[key]


def _taken(operation, following, rows):
    """Return which of the operations that follow an operation's kernels take: ReLU, pooling."""
    relu = following and following[0].module == "activation" and following[0].options["kind"]
    if operation.module not in ("affine", "convolution", "batchnorm") or relu != "relu":
        return []
    pools = operation.module == "batchnorm" and following[1:] and following[1].module == "pooling"
    pixels = rows * math.prod(operation.input_shape[:-1])
    if pools and pixels > reduction.SHORT and following[1].options["size"] <= 16:
        return following[:2]
    return following[:1]


class Group:
    """Parameters with the same hyper-parameters, with gradients and state, each in one flat array.

    Every parameter begins at a multiple of four numbers, so that its rows can be read as vectors;
    what lies between is 0 and stays 0.
    """

    def __init__(self, hyper, fixed_norm, slots, dtype):
        self.hyper, self.fixed_norm, self.slots, self.dtype = hyper, fixed_norm, slots, dtype
        self.places, self.size = {}, 0

    def add(self, name, shape):
        self.places[name] = (self.size, shape)
        self.size += -(-math.prod(shape) // 4) * 4

    def allocate(self, numbers):
        self.arrays = [_zeros(self.size, self.dtype) for _ in range(1 + len(self.slots))]
        self.gradient = _zeros(self.size, self.dtype)
        self.table = _zeros(CHUNK * numbers, self.dtype)

    def launch_update(self, formula, place, status):
        """Launch a step, and the normalization after it."""
        w, *states = self.arrays
        units = self._units()
        if formula in update.FORMULAS:
            update.launch_step(formula, w, self.gradient, states, self.table, place)
        else:
            for one in units:
                one.launch_step(formula, w, self.gradient, w, self.table, place)
        for one in units if self.fixed_norm is not None else ():
            norms = asarray(np.full(one.count, self.fixed_norm, self.dtype))
            one.launch_norms(w, w, norms, status)

    def _units(self):
        """Return the `Units` of the parameters, by the width that each has alone.

        So the order of the sums is that of a parameter alone, and with it the bits.
        """
        by_width = {}
        for start, shape in self.places.values():
            width = Units.widest([shape], [start], self.gradient)
            by_width.setdefault(width, []).append((start, shape))
        return [
            Units([shape for _, shape in places], width, [start for start, _ in places])
            for width, places in by_width.items()
        ]

    def part(self, flat, name):
        start, shape = self.places[name]
        return flat[start : start + math.prod(shape)].reshape(shape)

    def load(self, network, optimizer):
        for name in self.places:
            state = optimizer.state.get(name)
            if state is None:
                state = optimizer.initial_state(network.parameters[name], network.backend)
            sources = [network.parameters[name], *(state[slot] for slot in self.slots)]
            for flat, source in zip(self.arrays, sources, strict=True):
                copy(self.part(flat, name), contiguous(source))

    def save(self, network, optimizer):
        for name in self.places:
            w, *state = (duplicate(self.part(flat, name)) for flat in self.arrays)
            network.parameters[name] = w
            optimizer.state[name] = dict(zip(self.slots, state, strict=True))


def _zeros(size, dtype):
    return asarray(np.zeros(size, dtype))


class Step:
    """One training step for one batch size and one place of the data, and the loop over it."""

    def __init__(self, program, network, optimizer, rows, X, targets):
        self.program, self.rows = program, rows
        self.dtype = np.dtype(program.dtype)
        self.formula = optimizer.formula
        self.groups, self.state = {}, {}
        self.status = asarray(np.zeros(reduction.STATUS_SIZE, np.uint32))
        self.place = asarray(np.zeros(1, np.uint32))
        self.batches = asarray(np.zeros((CHUNK, rows), np.uint32))
        self.losses = _zeros(CHUNK, self.dtype)
        self._arrange(network, optimizer)
        with launch.recorded(run=False) as records:
            self._gradients(X, targets)
            for group in self.groups.values():
                group.launch_update(self.formula, self.place, self.status)
            launch.launch(advance, 1, 32, (self.value, self.losses, self.place))
        self._calls = [record.prepare() for record in records]
        self._graph = None

    def _arrange(self, network, optimizer):
        self._group_of = {}
        for operation in self.program.operations:
            for name in operation.parameters.values():
                hyper = optimizer.hyper_parameters(name)
                fixed_norm = hyper.pop("fixed_norm")
                key = fixed_norm, *sorted(hyper.items())
                if key not in self.groups:
                    self.groups[key] = Group(hyper, fixed_norm, optimizer.slots, self.dtype)
                self.groups[key].add(name, tuple(network.parameters[name].shape))
                self._group_of[name] = self.groups[key]
            for name in operation.state.values():
                self.state[name] = _zeros(operation.input_shape[-1], self.dtype)
        steps = {"t": 1} if optimizer.counts_steps else {}
        for group in self.groups.values():
            group.allocate(len(update.scalars(self.formula, **group.hyper, **steps)))
        self.counts_steps = optimizer.counts_steps

    # The launches of a step

    def _gradients(self, X, targets):
        operations = self.program.operations
        x = self._gathered(X, operations[0].input_shape)
        t = self._gathered(targets, targets.shape[1:])
        backward = []
        for index, operation in enumerate(operations):
            if index == len(backward):
                taken = _taken(operation, operations[index + 1 : index + 3], self.rows)
                kind = operation.module if len(taken) < 2 else "pooled"
                x, back = getattr(self, f"_{kind}")(operation, x, taken)
                backward += [back, *(None for _ in taken)]
        self.value, cache = loss.on_device(x, t, self.program.loss, self.status)
        dy = cache.dscores
        learning = [index for index, operation in enumerate(operations) if operation.parameters]
        first = min(learning, default=len(operations))
        for index in range(len(operations) - 1, first - 1, -1):
            if backward[index] is not None:
                dy = backward[index](dy, index > first)

    def _gathered(self, source, shape):
        columns = math.prod(shape)
        out = empty((self.rows, *shape), source.dtype)
        flat = source.reshape(source.size), self.batches.reshape(CHUNK * self.rows)
        args = (*flat, self.place, self.rows, columns, out.reshape(out.size))
        launch.launch(gather, self.rows, 256, args)
        return out

    def _parameter(self, operation, local):
        """Return a parameter and the place of its gradient's sums, or None twice.

        Where a normalization cancels the parameter that is a place apart: its gradient stays 0.
        """
        if local not in operation.parameters:
            return None, None
        name = operation.parameters[local]
        group = self._group_of[name]
        w, gradient = group.part(group.arrays[0], name), group.part(group.gradient, name)
        return w, _zeros(w.size, self.dtype) if name in self.program.cancelled else gradient

    # Each of these launches an operation's forward pass, and returns y and what launches the way
    # back: (dy, whether dx is needed) -> dx.

    def _weights(self, operation):
        """Return W, the array for its gradient, and what is to be done with that."""
        eps = operation.options.get("weightnorm_eps")
        if eps is None:
            return *self._parameter(operation, "W"), lambda dW: None
        (v, dv), (g, dg) = self._parameter(operation, "v"), self._parameter(operation, "g")
        W, cache = weightnorm.forward(v, g, eps, status=self.status)
        return W, None, lambda dW: weightnorm.backward(dW, cache, out=(dv, dg))

    def _linear(self, operation, x, taken, wing, *options):
        W, dW, weights_backward = self._weights(operation)
        b, db = self._parameter(operation, "b")
        y, cache = wing.forward(x, W, b, *options, activation="relu" if taken else "identity")

        def backward(dy, needed):
            if taken:
                dy = activation.backward(dy, activation.Cache("relu", y))
            dx, found, _ = wing.backward(dy, cache, out=(dW, db), needed=needed)
            weights_backward(found)
            return dx

        return y, backward

    def _affine(self, operation, x, taken):
        return self._linear(operation, x, taken, affine)

    def _convolution(self, operation, x, taken):
        options = operation.options["stride"], operation.options["padding"]
        return self._linear(operation, x, taken, convolution, *options)

    def _batchnorm(self, operation, z, taken, *size):
        (gamma, dgamma), (beta, dbeta) = (self._parameter(operation, n) for n in ("gamma", "beta"))
        eps, momentum = operation.options["eps"], operation.options["momentum"]
        running = *(self.state[operation.state[local]] for local in ("mean", "var")), momentum
        relu, out, wing = len(taken) > 0, (dgamma, dbeta), batchnorm
        forward, backward = wing.forward, wing.backward
        if size:
            forward, backward = wing.forward_pooled, wing.backward_pooled
        options = {"running": running, "relu": relu, "status": self.status}
        y, cache = forward(z, gamma, beta, eps, *size, **options)
        return y, lambda dy, needed: backward(dy, cache, relu=relu, out=out)[0]

    def _pooled(self, operation, z, taken):
        """Batch norm, ReLU and pooling."""
        return self._batchnorm(operation, z, taken, taken[1].options["size"])

    def _layernorm(self, operation, z, taken):
        (gamma, dgamma), (beta, dbeta) = (self._parameter(operation, n) for n in ("gamma", "beta"))
        eps = operation.options["eps"]
        y, cache = layernorm.forward(z, gamma, beta, eps, status=self.status)
        return y, lambda dy, needed: layernorm.backward(dy, cache, out=(dgamma, dbeta))[0]

    def _activation(self, operation, z, taken):
        y, cache = activation.forward(z, operation.options["kind"])
        return y, lambda dy, needed: activation.backward(dy, cache)

    def _pooling(self, operation, x, taken):
        y, cache = pooling.forward(x, operation.options["size"])
        return y, lambda dy, needed: pooling.backward(dy, cache)

    def _flatten(self, operation, x, taken):
        return x.reshape(self.rows, x.size // self.rows), lambda dy, needed: dy.reshape(x.shape)

    # The loop

    def run(self, network, optimizer, X, targets, batches):
        for group in self.groups.values():
            group.load(network, optimizer)
        for name, array in self.state.items():
            copy(array, contiguous(network.state[name]))
        losses = []
        try:
            for start in range(0, len(batches), CHUNK):
                part = batches[start : start + CHUNK]
                losses.extend(self._chunk(network, optimizer, X, targets, part))
        finally:
            self._save(network, optimizer)
        return np.array(losses, dtype=self.dtype)

    def _save(self, network, optimizer):
        for group in self.groups.values():
            group.save(network, optimizer)
        for name, array in self.state.items():
            network.state[name] = duplicate(array)

    def _arrays(self):
        flat = [array for group in self.groups.values() for array in group.arrays]
        return flat + list(self.state.values())

    def _chunk(self, network, optimizer, X, targets, batches):
        """Take up to CHUNK steps and return their losses."""
        before = [duplicate(array) for array in self._arrays()]
        self._reset(optimizer, batches)
        for _ in batches:
            self._take()
        if to_host(self.status).any():
            self._take_until_failure(network, optimizer, X, targets, batches, before)
        optimizer.t += len(batches)
        return to_host(self.losses)[: len(batches)].tolist()

    def _reset(self, optimizer, batches):
        rows = np.zeros((CHUNK, self.rows), np.uint32)
        rows[: len(batches)] = batches
        fill_from_host(self.batches, rows)
        fill_from_host(self.place, np.zeros(1, np.uint32))
        fill_from_host(self.status, np.zeros(reduction.STATUS_SIZE, np.uint32))
        for group in self.groups.values():
            table = []
            for t in range(optimizer.t + 1, optimizer.t + 1 + CHUNK):
                steps = {"t": t} if self.counts_steps else {}
                table.append(update.scalars(self.formula, **group.hyper, **steps))
            fill_from_host(group.table, np.array(table, self.dtype).ravel())

    def _take(self):
        if self._graph is not None:
            self._graph()
            return
        self._take_once()
        # Now every kernel has run once, as a capture requires.
        self._graph = launch.capture(self._calls)

    def _take_once(self):
        for call in self._calls:
            call()

    def _take_until_failure(self, network, optimizer, X, targets, batches, before):
        """Take the chunk's steps again, up to the one that fails, and raise what it raises."""
        self._restore(before)
        self._reset(optimizer, batches)
        for rows in batches:
            before = [duplicate(array) for array in self._arrays()]
            self._take_once()
            if to_host(self.status).any():
                self._restore(before)
                self._save(network, optimizer)
                part = (_on_host(data)[rows] for data in (X, targets))
                gradients = network.step_gradients(*part).gradients
                optimizer.step(network, gradients)
                raise NonFiniteError("loss: got NaN or infinity, expected a finite number")
            optimizer.t += 1

    def _restore(self, copies):
        for array, before in zip(self._arrays(), copies, strict=True):
            copy(array, before)
