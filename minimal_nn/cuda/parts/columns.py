"""Passes over columns: sums over the rows, what is made of them, and a second reading that uses it.

Batch norm, weight norm, and the optimizers that step unit by unit are such passes.  An operation is
a function of a `vector` that returns `Parts`: device functions over `a`, the named tuple of its
arrays and numbers.  With c, t, r, w and x tuples of its own, i the place of a vector, and `first`
whether the thread is the one that stores:

    begin(a, column) -> c                   what is needed before the sums (default: nothing)
    read(a, c, i) -> x                      what is loaded at a place, for either reading
    term(a, c, x, row)                      the vectors that are added up, or the one whose moments
                                            are taken (default: x)
    finish(a, c, t, rows, column, first)    r, of the sums t; the first thread stores it
    recall(a, column) -> r                  the same where another launch has stored it
    ready(a, c, r, rows, column) -> w       what the second reading needs of all that
    write(a, c, w, i, x)                    and what it stores

beside `sums`, how many vectors a term has (0: its moments are taken), how many rows are on
their way at once, `ahead` and `write_ahead` (4), and `blocks` (8), how many must fit on a
multiprocessor while sums are taken.  `kernels` makes of it

    whole           all of it in one launch, a block for its columns: for few rows
    sums, write     the same for chunks of the rows; between them, `finish_kernel`

and `calls` the launches.  An operation without write has sums alone.  Two functions more are for
the launch of `whole`, where an operation has them:

    scales(a, t) -> c                       of sums of squares t that may be out of range, the
                                            powers of two by which numbers are to be multiplied
                                            before they are squared; the sums are taken once more
                                            where one is not 1.  c is these powers, at first and
                                            elsewhere ones
    span(a) -> start, rows, columns, first column     the columns of a block are somewhere else
"""

import functools

from numba import int32

from minimal_nn.cuda.device.arrays import empty
from minimal_nn.cuda.device.language import Parts, cuda, device, kernel, unroll
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.parts.reduction import FINISH_THREADS, THREADS, Cut, finish_geometry
from minimal_nn.cuda.parts.vectors import number_type, vector


@device
def _nothing(a, column):
    return ()


@device
def _itself(a, c, x, row):
    return x


def operation(function):
    """Mark a function of a `vector` as an operation over columns."""

    @functools.cache
    @functools.wraps(function)
    def parts(T, width):
        v = vector(T, width)
        op = Parts(begin=_nothing, term=_itself, ahead=4, write_ahead=4, blocks=8)
        vars(op).update(vars(function(v)))
        if hasattr(op, "scales"):

            @op
            def begin(a, column):
                return (*(v.splat(T(1)) for s in unroll(op.sums)),)

        return op

    parts.is_operation = True
    return parts


def stages(operation):
    """Return the names of the kernels that an operation has."""
    op = operation(number_type("float32"), 1)
    if hasattr(op, "span"):
        return ("whole",)
    return ("whole", "sums", "finish", "write") if hasattr(op, "write") else ("sums", "finish")


@functools.cache
def _parts(operation, T, width, threads=THREADS):
    """Return an operation's functions for one type and width, its kind of reduction and tree."""
    v, op = vector(T, width), operation(T, width)

    @device
    def term(a, c, i, row):
        return op.term(a, c, op.read(a, c, i), row)

    if op.sums:
        kind = reduction.sums(v, op.sums, term, op.ahead, threads)
    else:
        kind = reduction.moments(v, term, threads)
    return v, op, kind, reduction.tree(kind)


def _kernel(operation, function, threads=THREADS, blocks=8):
    """Make a kernel that belongs to the operation's module, and is named after both."""
    function.__name__ = f"{operation.__name__}_{function.__name__}"
    place = operation.__module__, function.__name__
    return kernel(threads=threads, blocks=blocks, place=place)(function)


def _rewriting(op):
    """Return the second reading of a thread's rows."""
    ahead = op.write_ahead

    @device
    def rewrite(a, c, w, columns, column, row, step, end):
        if ahead > 1:
            while row + (ahead - 1) * step < end:
                i = row * columns + column
                x = (*(op.read(a, c, i + k * (step * columns)) for k in unroll(ahead)),)
                for k in unroll(ahead):
                    op.write(a, c, w, i + k * (step * columns), x[k])
                row += ahead * step
        while row < end:
            i = row * columns + column
            op.write(a, c, w, i, op.read(a, c, i))
            row += step

    return rewrite


@functools.cache
def whole_kernel(operation, T, width):
    """Return the kernel that does the whole operation, one block for its columns."""
    _, op, kind, tree = _parts(operation, T, width)
    rewrite = _rewriting(op)
    spans, scaled = hasattr(op, "span"), hasattr(op, "scales")

    def whole(rows, columns, a):
        shared = cuda.shared.array(kind.size, T)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        x_count, y_count = cuda.blockDim.x, cuda.blockDim.y
        if spans:
            start, rows, columns, first = op.span(a)
        else:
            start, first = 0, cuda.blockIdx.x * x_count * width
        column = first + x * width
        if scaled:
            c, fresh, again = op.begin(a, column), True, True
            while again:
                own = kind.zero()
                if column < columns:
                    own = kind.gather(a, c, columns, start + column, y, y_count, rows)
                tree(own, shared, y * x_count + x, x_count, y, y_count)
                found = c
                if fresh and column < columns:
                    found = op.scales(a, kind.get(shared, x))
                again = cuda.syncthreads_or(int32(kind.differ(found, c))) != 0
                c, fresh = found, False
        else:
            own = kind.zero()
            if column < columns:
                c = op.begin(a, column)
                own = kind.gather(a, c, columns, start + column, y, y_count, rows)
            tree(own, shared, y * x_count + x, x_count, y, y_count)
        if column < columns:
            if not scaled:
                c = op.begin(a, column)
            r = op.finish(a, c, kind.get(shared, x), rows, column, y == 0)
            w = op.ready(a, c, r, rows, column)
            rewrite(a, c, w, columns, start + column, y, y_count, rows)

    return _kernel(operation, whole, blocks=op.blocks)


@functools.cache
def sums_kernel(operation, T, width):
    """Return the kernel of the first stage: what each chunk of the rows comes to, `partial`."""
    v, op, kind, tree = _parts(operation, T, width)

    def sums(rows, columns, chunk, a, partial):
        shared = cuda.shared.array(kind.size, T)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        x_count, y_count = cuda.blockDim.x, cuda.blockDim.y
        column = (cuda.blockIdx.x * x_count + x) * width
        row = cuda.blockIdx.y * chunk
        own = kind.zero()
        if column < columns:
            c, end = op.begin(a, column), min(row + chunk, rows)
            own = kind.gather(a, c, columns, column, row + y, y_count, end)
        tree(own, shared, y * x_count + x, x_count, y, y_count)
        if y == 0 and column < columns:
            t = kind.vectors(kind.get(shared, x))
            for s in unroll(kind.count):
                section = s * cuda.gridDim.y + cuda.blockIdx.y
                v.store(partial, section * columns + column, t[s])

    return _kernel(operation, sums, blocks=op.blocks)


@functools.cache
def finish_kernel(operation, T):
    """Return the kernel of the second stage: the chunks' parts are put together and finished."""
    v, op, kind, tree = _parts(operation, T, 1, FINISH_THREADS)

    def finish(rows, columns, chunk, chunks, a, partial):
        shared = cuda.shared.array(kind.size, T)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        x_count, y_count = cuda.blockDim.x, cuda.blockDim.y
        column = cuda.blockIdx.x * x_count + x
        own = kind.zero()
        if column < columns:
            p = y
            while p < chunks:
                i = p * columns + column
                found = (*(v.load(partial, i + s * chunks * columns) for s in unroll(kind.count)),)
                own = kind.merge(own, kind.part(found, min(chunk, rows - p * chunk)))
                p += y_count
        tree(own, shared, y * x_count + x, x_count, y, y_count)
        if y == 0 and column < columns:
            op.finish(a, op.begin(a, column), kind.get(shared, x), rows, column, True)

    return _kernel(operation, finish, threads=FINISH_THREADS, blocks=None)


@functools.cache
def write_kernel(operation, T, width):
    """Return the kernel of the second reading, for chunks of the rows."""
    op = operation(T, width)
    rewrite = _rewriting(op)

    def write(rows, columns, chunk, a):
        y_count = cuda.blockDim.y
        column = (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) * width
        if column < columns:
            # From the last chunk on: what the sums have read last is in the cache still.
            c, row = op.begin(a, column), (cuda.gridDim.y - 1 - cuda.blockIdx.y) * chunk
            w = op.ready(a, c, op.recall(a, column), rows, column)
            end = min(row + chunk, rows)
            rewrite(a, c, w, columns, column, row + cuda.threadIdx.y, y_count, end)

    return _kernel(operation, write)


def whole_call(operation, rows, columns, width, dtype, a):
    """Return the launch of the whole operation."""
    cut = Cut(rows, columns, width, whole=True)
    kernel = whole_kernel(operation, number_type(dtype), width)
    return kernel, cut.grid, cut.block, (rows, columns, a)


def sum_calls(operation, rows, columns, width, dtype, a):
    """Return the launches of the sums, by two stages."""
    T, cut = number_type(dtype), Cut(rows, columns, width)
    partial = empty(max(operation(T, 1).sums, 2) * cut.chunks * columns, dtype)
    args = (rows, columns, cut.rows, a, partial)
    return [
        (sums_kernel(operation, T, width), cut.grid, cut.block, args),
        finish_call(operation, rows, columns, cut.rows, cut.chunks, dtype, a, partial),
    ]


def finish_call(operation, rows, columns, chunk, chunks, dtype, a, partial):
    """Return the launch of the second stage: `partial` has the sums of each chunk of rows."""
    geometry = finish_geometry(columns, chunks)
    args = (rows, columns, chunk, chunks, a, partial)
    return finish_kernel(operation, number_type(dtype)), *geometry, args


def write_call(operation, rows, columns, width, dtype, a):
    """Return the launch of the second reading."""
    cut = Cut(rows, columns, width, blocks=4 * reduction.BLOCKS)
    kernel = write_kernel(operation, number_type(dtype), width)
    return kernel, cut.grid, cut.block, (rows, columns, cut.rows, a)


def calls(*given):
    """Return the launches of an operation: one for few rows, three for many.

    given: the operation, rows, columns, numbers to a load, dtype, and the tuple `a`.
    """
    if given[1] <= reduction.SHORT:
        return [whole_call(*given)]
    return [*sum_calls(*given), write_call(*given)]
