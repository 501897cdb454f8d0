"""A network's training loop on the device: the step is prepared once and replayed as one CUDA
graph.

`plan` writes the step down as the launches of the same kernels that the pure functions of this wing
use, over arrays allocated once:

    gather      the step's batch out of X and the targets, which lie on the device
    forward     every layer; a ReLU is taken by the kernel before it
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
    transposed,
)
from minimal_nn.cuda.device.language import cuda, kernel
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.products import choice
from minimal_nn.errors import NonFiniteError

CHUNK = 256
MODULES = {
    "affine",
    "convolution",
    "batchnorm",
    "layernorm",
    "activation",
    "pooling",
    "flatten",
}


@kernel(threads=256)
def gather(source, batches, place, rows, columns, out):
    """out (rows, columns) = the rows of source that the step's row of batches names."""
    row, column = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    start = uint32(batches[place[0] * rows + row]) * columns
    while column < columns:
        out[row * columns + column] = source[start + column]
        column += uint32(256)


@kernel(threads=32)
def advance(value, losses, place):
    """Note the loss of the step, and go on to the next."""
    if uint32(cuda.threadIdx.x) == uint32(0):
        losses[place[0]] = value[0]
        place[0] = place[0] + uint32(1)


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
    if any(operation.module not in MODULES for operation in program.operations):
        return None
    if len(program.operations[-1].output_shape) != 1:
        return None
    for operation in program.operations:
        for name in operation.parameters.values():
            if any(np.ndim(number) for number in optimizer.hyper_parameters(name).values()):
                return None
    return Plan(program)


class Plan:
    """A network's training loop for batches of any size, each prepared on first use."""

    def __init__(self, program):
        self.program = program
        self._steps = {}
        self._data = {}

    def run(self, network, optimizer, X, targets, batches):
        """Train on X[rows], targets[rows] for each row of `batches`; return the losses, (steps,).

        Parameters, running statistics and optimizer state are replaced by those after the last step
        that succeeded.  Raises NonFiniteError, ZeroVarianceError or ZeroNormError.
        """
        batches = np.ascontiguousarray(batches)
        if batches.size and (batches.min() < 0 or batches.max() >= len(X)):
            raise IndexError(
                f"batches: got row numbers from {batches.min()} to {batches.max()}, expected 0 to "
                f"{len(X) - 1}"
            )
        data = self._placed("X", X), self._placed("targets", targets)
        rows = batches.shape[1]
        key = (rows, *(address(array) for array in data))
        if key not in self._steps:
            self._steps[key] = Step(self.program, network, optimizer, rows, *data)
        return self._steps[key].run(network, optimizer, X, targets, batches)

    def _placed(self, name, array):
        """Return the data on the device; a host array goes into the same memory each time."""
        if hasattr(array, "__cuda_array_interface__"):
            return contiguous(asarray(array))
        array = np.asarray(array)
        key = (name, array.shape, array.dtype)
        if key in self._data:
            fill_from_host(self._data[key], array)
        else:
            # A copy of its own: it is written again in the next run.
            self._data[key] = duplicate(asarray(np.ascontiguousarray(array)))
        return self._data[key]


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

    def update_calls(self, formula, place, status):
        """Return the launches of a step, and of the normalization after it."""
        w, *states = self.arrays
        if formula in update.FORMULAS:
            calls = update.step_calls(formula, w, self.gradient, states, self.table, place)
        else:
            calls = [
                call
                for units, blocks in self._units()
                for call in update.unit_step_calls(
                    formula, w, self.gradient, units, blocks, self.table, place
                )
            ]
        for units, blocks in self._units() if self.fixed_norm is not None else ():
            norms = asarray(np.full(units.count, self.fixed_norm, self.dtype))
            lengths = empty(units.count, self.dtype)
            calls += update.normalize_calls(w, units, blocks, norms, lengths, status)
        return calls

    def _units(self):
        """Return the `Units` of the parameters, by the width that each has alone, and their tables.

        So the order of the sums is that of a parameter alone, and with it the bits.
        """
        by_width = {}
        for start, shape in self.places.values():
            width = update.Units.widest([shape], [start], self.gradient)
            by_width.setdefault(width, []).append((start, shape))
        made = []
        for width, places in by_width.items():
            starts, shapes = zip(*places, strict=True)
            units = update.Units(shapes, width, starts)
            made.append((units, asarray(units.table.ravel())))
        return made

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
                self._launch(group.update_calls(self.formula, self.place, self.status))
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

    def _launch(self, calls):
        for call in calls:
            launch.launch(*call)

    def _new(self, *shape):
        return empty(shape, self.dtype)

    def _parameter(self, operation, local):
        """Return a parameter and its gradient, or None twice."""
        if local not in operation.parameters:
            return None, None
        name = operation.parameters[local]
        group = self._group_of[name]
        return group.part(group.arrays[0], name), group.part(group.gradient, name)

    def _gradients(self, X, targets):
        rows, operations = self.rows, self.program.operations
        x = self._gathered(X, operations[0].input_shape)
        t = self._gathered(targets, targets.shape[1:])
        saved, fused = [], False
        for index, operation in enumerate(operations):
            following = operations[index + 1] if index + 1 < len(operations) else None
            if fused:
                saved.append(None)
                fused = False
                continue
            fused = (
                following is not None
                and following.module == "activation"
                and following.options["kind"] == "relu"
                and operation.module in ("affine", "convolution", "batchnorm")
            )
            x, cache = getattr(self, f"_{operation.module}")(operation, x, fused)
            saved.append(cache)
        self.value, dy = empty(1, self.dtype), self._new(*x.shape)
        self._launch(loss.calls(x, t, self.program.loss, self.value, dy, self.status))
        first = min((i for i, op in enumerate(operations) if op.parameters), default=rows)
        for index in range(len(operations) - 1, first - 1, -1):
            operation, cache = operations[index], saved[index]
            if cache is not None:
                backward = getattr(self, f"_{operation.module}_backward")
                dy = backward(operation, cache, dy, index > first)

    def _gathered(self, source, shape):
        columns = math.prod(shape)
        out = empty((self.rows, *shape), source.dtype)
        flat = source.reshape(source.size), self.batches.reshape(CHUNK * self.rows)
        args = (*flat, self.place, self.rows, columns, out.reshape(out.size))
        launch.launch(gather, self.rows, 256, args)
        return out

    def _weights(self, operation):
        """Return W, the array for its gradient, and what weight norm needs for the way back."""
        eps = operation.options.get("weightnorm_eps")
        if eps is None:
            return *self._parameter(operation, "W"), None
        (v, dv), (g, dg) = self._parameter(operation, "v"), self._parameter(operation, "g")
        W, dW, norm = self._new(*v.shape), self._new(*v.shape), self._new(*g.shape)
        self._launch(weightnorm.forward_calls(v, g, eps, W, norm, self.status))
        return W, dW, (weightnorm.Cache(v, g, norm), dv, dg)

    def _weights_backward(self, dW, normalized):
        if normalized is not None:
            cache, dv, dg = normalized
            self._launch(weightnorm.backward_calls(dW, cache, dv, dg))

    def _flatten(self, operation, x, relu):
        return x.reshape(self.rows, x.size // self.rows), x.shape

    def _flatten_backward(self, operation, shape, dy, needed):
        return dy.reshape(shape)

    def _affine(self, operation, x, relu):
        W, dW, normalized = self._weights(operation)
        b, db = self._parameter(operation, "b")
        y = choice.product(x, W, bias=b, activation="relu" if relu else "identity")
        return y, (x, W, dW, db, normalized, y if relu else None)

    def _affine_backward(self, operation, cache, dy, needed):
        x, W, dW, db, normalized, y = cache
        dy = self._through_relu(dy, y)
        choice.product(transposed(x), dy, out=dW)
        self._weights_backward(dW, normalized)
        if db is not None:
            affine.column_sums(dy, out=db)
        return choice.product(dy, transposed(W)) if needed else None

    def _through_relu(self, dy, y):
        if y is None:
            return dy
        dz = self._new(*dy.shape)
        self._launch(activation.backward_calls(dy, activation.Cache("relu", y), dz))
        return dz

    def _convolution(self, operation, x, relu):
        W, dW, normalized = self._weights(operation)
        b, db = self._parameter(operation, "b")
        geometry = operation.options["stride"], operation.options["padding"]
        kind = "relu" if relu else "identity"
        y, cache = convolution.forward(x, W, b, *geometry, activation=kind)
        return y, (cache, dW, db, normalized, y if relu else None)

    def _convolution_backward(self, operation, cache, dy, needed):
        cache, dW, db, normalized, y = cache
        dy = self._through_relu(dy, y)
        convolution.kernel_gradient(dy, cache, out=dW)
        self._weights_backward(dW, normalized)
        if db is not None:
            affine.column_sums(dy, out=db)
        return convolution.input_gradient(dy, cache) if needed else None

    def _batchnorm(self, operation, z, relu):
        (gamma, dgamma), (beta, dbeta) = (self._parameter(operation, n) for n in ("gamma", "beta"))
        eps, momentum = operation.options["eps"], operation.options["momentum"]
        y, mean, var = self._new(*z.shape), self._new(*gamma.shape), self._new(*gamma.shape)
        running = tuple(self.state[operation.state[local]] for local in ("mean", "var"))
        given = (z, gamma, beta, eps, y, mean, var, self.status, (*running, momentum), relu)
        self._launch(batchnorm.forward_calls(*given))
        return y, (batchnorm.Cache(z, gamma, beta, mean, var, eps), dgamma, dbeta, relu)

    def _batchnorm_backward(self, operation, cache, dy, needed):
        cache, dgamma, dbeta, relu = cache
        dz = self._new(*dy.shape)
        self._launch(batchnorm.backward_calls(dy, cache, dz, dgamma, dbeta, True, relu))
        return dz

    def _layernorm(self, operation, z, relu):
        (gamma, dgamma), (beta, dbeta) = (self._parameter(operation, n) for n in ("gamma", "beta"))
        rows = z.size // z.shape[-1]
        y, mean, inverse = self._new(*z.shape), self._new(rows), self._new(rows)
        eps = operation.options["eps"]
        self._launch(layernorm.forward_calls(z, gamma, beta, eps, y, mean, inverse, self.status))
        return y, (layernorm.Cache(z, gamma, mean, inverse), dgamma, dbeta)

    def _layernorm_backward(self, operation, cache, dy, needed):
        cache, dgamma, dbeta = cache
        dz = self._new(*dy.shape)
        self._launch(layernorm.backward_calls(dy, cache, dz, dgamma, dbeta))
        return dz

    def _activation(self, operation, z, relu):
        kind = operation.options["kind"]
        if kind == "identity":
            return z, activation.Cache(kind, None)
        y = self._new(*z.shape)
        self._launch(activation.forward_calls(z, kind, y))
        return y, activation.Cache(kind, y)

    def _activation_backward(self, operation, cache, dy, needed):
        if cache.kind == "identity":
            return dy
        dz = self._new(*dy.shape)
        self._launch(activation.backward_calls(dy, cache, dz))
        return dz

    def _pooling(self, operation, x, relu):
        size = operation.options["size"]
        n, height, width, channels = x.shape
        y = self._new(n, height // size, width // size, channels)
        winner = empty(y.shape, pooling.position_dtype(size))
        self._launch(pooling.forward_calls(x, size, y, winner))
        return y, (pooling.Cache(winner, size), x.shape)

    def _pooling_backward(self, operation, cache, dy, needed):
        cache, shape = cache
        dx = self._new(*shape)
        self._launch(pooling.backward_calls(dy, cache, dx))
        return dx

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
                gradients = network.step_gradients(X[rows], targets[rows]).gradients
                optimizer.step(network, gradients)
                raise NonFiniteError("loss: got NaN or infinity, expected a finite number")
            optimizer.t += 1

    def _restore(self, copies):
        for array, before in zip(self._arrays(), copies, strict=True):
            copy(array, before)
