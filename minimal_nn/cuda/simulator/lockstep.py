"""The fast half of the simulator: the threads of a block in lockstep, as NumPy arrays.

Where `simulator` runs a kernel once for each thread, here its text is rewritten so that one run
does the work of a block.  A value is a number, where all threads have the same, or an array with an
entry for each thread; a mask says which threads are there:

    if c: A                 A under the mask and c, if there is anybody; else likewise
    while c: A              under the mask and c, until nobody is left
    x = e                   the new entries under the mask, the old ones elsewhere
    a[i], a[i] = e          for the threads of the mask alone
    a if c else b, p and q  each side for the threads that need it
    return e                in the last place of its branch, collected under the mask

The bits are those of the other schedules (tests hold every kernel to that), some ten times sooner.
It sees poison, indices out of range, vectors off their alignment, and barriers or operations of a
warp that not everybody reaches; a race it cannot see: that takes other orders than one.
"""

import ast
import collections
import copy
import functools
import linecache

import numpy as np
from numba import types
from numba.np.numpy_support import as_dtype

from minimal_nn.cuda.simulator import engine
from minimal_nn.cuda.simulator.engine import WARP, DivergentBarrierError, SimulationError

NOBODY = False  # a mask: None is everybody, an array says who


class _Block:
    """The block that runs at present: its number of threads and their places."""

    def __init__(self, index, size, shared_bytes):
        self.index = index
        self.threads = size.x * size.y * size.z
        number = np.arange(self.threads, dtype=np.int32)
        self.place = engine.Index(
            number % size.x, number // size.x % size.y, number // (size.x * size.y)
        )
        self.number = number
        self.dynamic = engine.poison(np.empty(shared_bytes, np.uint8))


_block = None


# What the rewritten text calls


def is_each(value):
    """Return whether every thread has a value of its own."""
    return isinstance(value, np.ndarray)


def _where(mask, condition):
    """Return the mask of the threads for which the condition holds."""
    if not is_each(condition):
        return mask if condition else NOBODY
    condition = condition if condition.dtype == bool else condition != 0
    if mask is not None:
        condition = condition & mask
    elif condition.all():
        return None
    return condition if condition.any() else NOBODY


def _otherwise(mask, condition):
    return _where(mask, _not(condition))


def _not(condition):
    return condition == 0 if is_each(condition) else not condition


def _merged(mask, old, new):
    """Return the new value under the mask, and the old one, if there is one, elsewhere.

    A value of another kind (a vector, where there was a number) is another one of the same name.
    """
    if mask is None or old is None:
        return new
    if isinstance(new, tuple):
        if not isinstance(old, tuple) or len(old) != len(new):
            return new
        return tuple(_merged(mask, a, b) for a, b in zip(old, new, strict=True))
    if isinstance(old, tuple):
        return new
    if old is new or not isinstance(new, np.ndarray | np.generic | bool | int | float):
        return new
    return np.where(mask, new, old)


def _choose(mask, condition, yes, no):
    chosen, others = _where(mask, condition), _otherwise(mask, condition)
    if others is NOBODY:
        return yes(chosen)
    if chosen is NOBODY:
        return no(others)
    return _merged(chosen, no(others), yes(chosen))


def _and(mask, *terms):
    result = True
    for term in terms:
        mask = _where(mask, result)
        if mask is NOBODY:
            return result
        value = term(mask)
        result = value if result is True else np.logical_and(result, value)
    return result


def _or(mask, *terms):
    result = False
    for term in terms:
        mask = _otherwise(mask, result)
        if mask is NOBODY:
            return result
        value = term(mask)
        result = value if result is False else np.logical_or(result, value)
    return result


class Local(dict):
    """A thread's own array: the threads' numbers by index, which must be the same for all."""

    def __init__(self, shape, dtype):
        super().__init__()
        self.fresh = engine.poison(np.empty(1, dtype))[0]
        self.shape = shape if isinstance(shape, tuple) else (shape,)

    def __missing__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        if len(index) != len(self.shape) or not all(
            0 <= i < n for i, n in zip(index, self.shape, strict=True)
        ):
            raise IndexError(f"index {index} is out of bounds for a local array of {self.shape}")
        return self.fresh


def active(mask, index):
    """Return the index with 0 for threads that are not there."""
    if isinstance(index, tuple):
        return tuple(active(mask, i) for i in index)
    return index if mask is None or not is_each(index) else np.where(mask, index, 0)


def _load(mask, array, index):
    if mask is None or type(array) is Local:
        try:
            return array[index]
        except TypeError:  # an array cannot be looked up
            raise _differs() from None
    return array[active(mask, index)]


def _differs():
    return SimulationError(
        "a local array has an index that differs between threads: it would not stay in registers"
    )


def _store(mask, array, index, value):
    if type(array) is Local:
        try:
            array[index] = value if mask is None else _merged(mask, array[index], value)
        except TypeError:
            raise _differs() from None
        return
    each = any(map(is_each, index)) if isinstance(index, tuple) else is_each(index)
    if each and mask is not None:
        if isinstance(index, tuple):
            index = tuple(i[mask] if is_each(i) else i for i in index)
        else:
            index = index[mask]
        value = value[mask] if is_each(value) else value
    elif is_each(value) and not each:  # the last thread's number remains
        value = value[-1 if mask is None else np.flatnonzero(mask)[-1]]
    array[index] = value


def _leave(mask, loop):
    """A `break`: everybody who is in the loop must take it."""
    if mask is not loop and not np.array_equal(mask, loop):
        raise SimulationError("some threads leave a loop by break, and others stay")


def _least(a, b):
    return np.minimum(a, b) if is_each(a) or is_each(b) else min(a, b)


def _largest(a, b):
    return np.maximum(a, b) if is_each(a) or is_each(b) else max(a, b)


_RUNTIME = {
    "_where": _where,
    "_otherwise": _otherwise,
    "_not": _not,
    "_merged": _merged,
    "_choose": _choose,
    "_and": _and,
    "_or": _or,
    "_load": _load,
    "_store": _store,
    "_leave": _leave,
    "_NOBODY": NOBODY,
}


def masked(function):
    """Mark a function of the simulated device that wants the mask as its first argument."""
    function.takes_mask = True
    return function


def whole_warps(mask, lanes=engine.FULL_MASK):
    """Refuse a mask with which some lanes of a warp meet, and others never come."""
    if mask is None:
        return
    needed = (np.int64(lanes) >> (_block.number % WARP)) & 1 == 1
    for start in range(0, _block.threads, WARP):
        here = mask[start : start + WARP]
        if here.any() and not here[needed[start : start + WARP]].all():
            raise engine.DeadlockError(
                f"block {engine.place_of(_block)}: threads wait for lanes that never come"
            )


def spread(value):
    """Return a value as an array with an entry for each thread."""
    return value if is_each(value) else np.broadcast_to(np.asarray(value), _block.threads)


def by_warp(values):
    """Return the threads' values as an array (warps, 32)."""
    return spread(values).reshape(-1, WARP)


# The module `cuda`, as kernels see it


class _Shared:
    @staticmethod
    def array(shape, dtype, alignment=None):
        dtype = engine.as_numpy(dtype)
        if shape == 0:
            usable = len(_block.dynamic) // dtype.itemsize * dtype.itemsize
            return _block.dynamic[:usable].view(dtype)
        return engine.poison(np.empty(shape, dtype))


class _Own:
    @staticmethod
    def array(shape, dtype, alignment=None):
        return Local(shape, engine.as_numpy(dtype))


def _shuffle(source):
    @masked
    def shuffle(mask, lanes, value, argument):
        whole_warps(mask, lanes)
        lane = _block.number % WARP
        there = source(lane, int(argument))
        other = _block.number - lane + there
        exists = (there >= 0) & (there < WARP) & (other < _block.threads)
        value = spread(value)
        return np.where(exists, value[np.where(exists, other, 0)], value)

    return staticmethod(shuffle)


def _vote(combine):
    @masked
    def vote(mask, lanes, predicate):
        whole_warps(mask, lanes)
        values = spread(predicate) != 0
        result = [combine(values[i : i + WARP]) for i in range(0, len(values), WARP)]
        return np.array(result)[_block.number // WARP]

    return staticmethod(vote)


class _Cuda:
    warpsize = WARP
    shared, local = _Shared(), _Own()
    const = engine.ConstantMemory()

    @property
    def threadIdx(self):
        return _block.place

    @property
    def blockIdx(self):
        return _block.index

    @property
    def blockDim(self):
        return engine.fake_cuda.blockDim

    @property
    def gridDim(self):
        return engine.fake_cuda.gridDim

    @property
    def laneid(self):
        return _block.number % WARP

    def grid(self, ndim):
        index, size, place = _block.index, self.blockDim, _block.place
        places = tuple(
            getattr(index, axis) * getattr(size, axis) + getattr(place, axis).astype(np.int64)
            for axis in "xyz"
        )
        return places[0] if ndim == 1 else places[:ndim]

    def gridsize(self, ndim):
        return engine.fake_cuda.gridsize(ndim)

    @staticmethod
    @masked
    def syncthreads(mask):
        if mask is not None and not mask.all():
            raise DivergentBarrierError(
                f"block {engine.place_of(_block)}: some threads wait at a barrier that others "
                "do not reach"
            )

    @staticmethod
    @masked
    def syncwarp(mask, lanes=engine.FULL_MASK):
        whole_warps(mask, lanes)

    def threadfence(self):
        pass

    shfl_sync = _shuffle(lambda lane, source: np.full_like(lane, source % WARP))
    shfl_up_sync = _shuffle(lambda lane, delta: lane - delta)
    shfl_down_sync = _shuffle(lambda lane, delta: lane + delta)
    shfl_xor_sync = _shuffle(lambda lane, bits: lane ^ bits)
    all_sync, any_sync = _vote(np.all), _vote(np.any)
    ballot_sync = _vote(lambda bits: sum(1 << i for i, bit in enumerate(bits) if bit))

    @staticmethod
    def fma(a, b, c):
        return fma(a, b, c)


def fma(a, b, c):
    """Return a b + c with one rounding, of numbers or arrays, in the dtype of a."""
    if not (is_each(a) or is_each(b) or is_each(c)):
        return engine.fma(a, b, c)
    return _fma32(a, b, c) if a.dtype == np.float32 else _fma64(a, b, c)


def _two_sum(a, b):
    s = a + b
    back = s - a
    return s, (a - (s - back)) + (b - back)


def _to_odd(sum_and_rest):
    """Return a rounded sum, changed to its odd neighbour where bits were lost."""
    s, rest = sum_and_rest
    even = s.view(np.uint64) & np.uint64(1) == 0
    towards = np.nextafter(s, np.where(rest > 0, np.inf, -np.inf))
    return np.where((rest != 0) & even & np.isfinite(s), towards, s)


def _fma32(a, b, c):
    """a b is exact in float64; the sum rounded to odd there rounds to float32 as if at once."""
    a, b, c = (np.asarray(x) for x in (a, b, c))
    product, wide = a.astype(np.float64) * b, c.astype(np.float64)
    product, wide = np.broadcast_arrays(product, wide)
    return _to_odd(_two_sum(product, wide)).astype(np.float32)


def _fma64(a, b, c):
    """Boldo & Melquiond (2008), where nothing over- or underflows; by fractions elsewhere."""
    a, b, c = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (a, b, c)))
    sizes = np.abs(np.stack([a, b, c]))
    ordinary = np.all((sizes == 0) | ((sizes > 2.0**-300) & (sizes < 2.0**300)), axis=0)
    result = np.empty(a.shape)
    for i in np.flatnonzero(~ordinary):
        result[i] = engine.fma(a[i], b[i], c[i])
    x, y, z = a[ordinary], b[ordinary], c[ordinary]
    high = x * y
    (x1, x2), (y1, y2) = _halves(x), _halves(y)
    low = ((x1 * y1 - high) + x1 * y2 + x2 * y1) + x2 * y2
    t, t_rest = _two_sum(z, low)
    v, v_rest = _two_sum(high, t)
    result[ordinary] = v + _to_odd(_two_sum(t_rest, v_rest))
    return result


def _halves(x):
    """Split float64 into two halves of 26 bits (Veltkamp)."""
    scaled = x * (2.0**27 + 1)
    first = scaled - (scaled - x)
    return first, x - first


_cuda = _Cuda()


# The text of a kernel, rewritten


def _source(code):
    """Return the parameters and the statements of a function or lambda, from the text of its
    file.
    """
    found = [n for n in _functions(code.co_filename)[code.co_firstlineno] if _describes(n, code)]
    if len({ast.dump(node) for node in found}) != 1:
        raise SimulationError(
            f"{code.co_name}: found {len(found)} texts in line {code.co_firstlineno} of "
            f"{code.co_filename}, expected one: give it a name, or a line, of its own"
        )
    node = copy.deepcopy(found[0])
    body = [ast.Return(node.body)] if isinstance(node, ast.Lambda) else node.body
    return [argument.arg for argument in node.args.args], body


@functools.cache
def _functions(filename):
    """Return the functions and lambdas of a file by their first line."""
    found = collections.defaultdict(list)
    for node in ast.walk(ast.parse("".join(linecache.getlines(filename)))):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[first].append(node)
        elif isinstance(node, ast.Lambda):
            found[node.lineno].append(node)
    return found


def _describes(node, code):
    names = tuple(argument.arg for argument in node.args.args)
    if names != code.co_varnames[: code.co_argcount]:
        return False
    if isinstance(node, ast.FunctionDef):
        return node.name == code.co_name
    if code.co_name != "<lambda>":
        return False
    alone = compile(ast.Expression(node), code.co_filename, "eval").co_consts[0]
    names = {*code.co_names, *code.co_freevars}  # a name that is free here is global alone
    return names == set(alone.co_names) and set(alone.co_consts) == set(code.co_consts)


def _last_returns(body):
    """Return the statements with what follows a branch that returns moved into its other side."""
    for place, statement in enumerate(body):
        if isinstance(statement, ast.Return):
            return body[: place + 1]
        if isinstance(statement, ast.If) and any(
            isinstance(node, ast.Return) for node in ast.walk(statement)
        ):
            rest = body[place + 1 :]
            statement.body = _last_returns(statement.body + _unless_returning(statement.body, rest))
            statement.orelse = _last_returns(
                statement.orelse + _unless_returning(statement.orelse, rest)
            )
            return body[: place + 1]
    return body


def _unless_returning(branch, rest):
    return [] if branch and isinstance(branch[-1], ast.Return) else copy.deepcopy(rest)


def _names(target):
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]


class _Rewriter:
    """Rewrites the statements of a function; wanting: what it calls that wants the mask."""

    def __init__(self, wanting):
        self.wanting, self.assigned, self.count = wanting, set(), 0

    def new(self, prefix):
        self.count += 1
        return f"_{prefix}{self.count}"

    # Statements

    def block(self, statements, loop=None):
        lines = [line for statement in statements for line in self.statement(statement, loop)]
        return lines or ["pass"]

    def statement(self, node, loop):
        return getattr(self, "_" + type(node).__name__.lower())(node, loop)

    def _expr(self, node, loop):
        return [] if isinstance(node.value, ast.Constant) else [self.value(node.value)]

    def _pass(self, node, loop):
        return []

    def _return(self, node, loop):
        value = "None" if node.value is None else self.value(node.value)
        return [f"_result = _merged(_m, _result, {value})"]

    def _break(self, node, loop):
        return [f"_leave(_m, {loop})", "break"]

    def _assign(self, node, loop):
        (target,) = node.targets
        return self.into(target, self.value(node.value))

    def _augassign(self, node, loop):
        read = copy.deepcopy(node.target)
        read.ctx = ast.Load()
        return self.into(node.target, self.value(ast.BinOp(read, node.op, node.value)))

    def into(self, target, text):
        if isinstance(target, ast.Name):
            self.assigned.add(target.id)
            return [f"{target.id} = _merged(_m, {target.id}, {text})"]
        if isinstance(target, ast.Subscript):
            array, index = self.value(target.value), self.value(target.slice)
            return [f"_store(_m, {array}, {index}, {text})"]
        parts = self.new("parts")
        lines = [f"{parts} = {text}"]
        for place, part in enumerate(target.elts):
            lines += self.into(part, f"{parts}[{place}]")
        return lines

    def _if(self, node, loop):
        saved, condition = self.new("mask"), self.new("condition")
        lines = [
            f"{saved} = _m",
            f"{condition} = {self.value(node.test)}",
            f"_m = _where({saved}, {condition})",
            "if _m is not _NOBODY:",
            *_indented(self.block(node.body, loop)),
        ]
        if node.orelse:
            lines += [
                f"_m = _otherwise({saved}, {condition})",
                "if _m is not _NOBODY:",
                *_indented(self.block(node.orelse, loop)),
            ]
        return [*lines, f"_m = {saved}"]

    def _while(self, node, loop):
        saved, inner = self.new("mask"), self.new("loop")
        return [
            f"{saved} = _m",
            "while True:",
            *_indented(
                [
                    f"_m = {inner} = _where(_m, {self.value(node.test)})",
                    "if _m is _NOBODY:",
                    "    break",
                    *self.block(node.body, inner),
                ]
            ),
            f"_m = {saved}",
        ]

    def _for(self, node, loop):
        saved = self.new("mask")
        head = f"for {ast.unparse(node.target)} in {self.value(node.iter)}:"
        return [
            f"{saved} = _m",
            head,
            *_indented(self.block(node.body, saved)),
            f"_m = {saved}",
        ]

    # Expressions

    def value(self, node):
        return ast.unparse(self.visit(node))

    def visit(self, node):
        rewrite = getattr(self, "_value_" + type(node).__name__.lower(), None)
        if rewrite is not None:
            return rewrite(node)
        for name, field in ast.iter_fields(node):
            if isinstance(field, ast.expr):
                setattr(node, name, self.visit(field))
            elif isinstance(field, list):
                kept = [self.visit(item) if isinstance(item, ast.expr) else item for item in field]
                setattr(node, name, kept)
        return node

    def later(self, node):
        """Return the text of a function that evaluates the expression under a mask."""
        return f"lambda _m: {self.value(node)}"

    def text(self, text):
        return ast.parse(text, mode="eval").body

    def _value_subscript(self, node):
        return self.text(f"_load(_m, {self.value(node.value)}, {self.value(node.slice)})")

    def _value_ifexp(self, node):
        sides = f"{self.later(node.body)}, {self.later(node.orelse)}"
        return self.text(f"_choose(_m, {self.value(node.test)}, {sides})")

    def _value_boolop(self, node):
        name = "_and" if isinstance(node.op, ast.And) else "_or"
        return self.text(f"{name}(_m, {', '.join(self.later(value) for value in node.values)})")

    def _value_unaryop(self, node):
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            return self.text(f"_not({value})")
        return self.text(ast.unparse(ast.UnaryOp(node.op, self.text(value))))

    def _value_call(self, node):
        arguments = [self.value(argument) for argument in node.args]
        called = ast.unparse(node.func)
        if called in self.wanting:
            arguments.insert(0, "_m")
        return self.text(f"{called}({', '.join(arguments)})")


def _indented(lines):
    return ["    " + line for line in lines]


def _meaning(value, rewritten):
    from numba import cuda as real_cuda

    if value is real_cuda:
        return _cuda
    if value is min:
        return _least
    if value is max:
        return _largest
    if isinstance(value, types.Number | types.Boolean):
        return as_dtype(value).type
    if hasattr(value, "py_func"):
        return _rewritten(value.py_func, rewritten)
    return engine.meaning(value, each=True)


def _takes_mask(value):
    return getattr(value, "takes_mask", False)


_OF_CUDA = [name for name in dir(_Cuda) if _takes_mask(getattr(_Cuda, name))]


def _rewritten(function, rewritten):
    """Return the function for all threads of a block: (mask, arguments ...) -> result."""
    if function in rewritten:
        return rewritten[function]
    code = function.__code__
    closed = dict(
        zip(code.co_freevars, (c.cell_contents for c in function.__closure__ or ()), strict=True)
    )
    known = {"min": min, "max": max, **function.__globals__, **closed}
    used = {*code.co_names, *code.co_freevars} & known.keys()
    scope = {name: _meaning(known[name], rewritten) for name in used}
    wanting = {name for name, value in scope.items() if _takes_mask(value)}
    wanting |= {f"{name}.{of}" for name in scope if scope[name] is _cuda for of in _OF_CUDA}
    scope |= _RUNTIME
    exec(_compiled(code, frozenset(wanting)), scope)
    rewritten[function] = masked(scope["_threads"])
    return rewritten[function]


@functools.cache
def _compiled(code, wanting):
    """Return the code that defines the rewritten function."""
    parameters, body = _source(code)
    rewriter = _Rewriter(wanting)
    lines = rewriter.block(_last_returns(body))
    fresh = ["_result", *sorted(rewriter.assigned - set(parameters))]
    text = [
        f"def _threads({', '.join(['_m', *parameters])}):",
        *_indented([f"{name} = None" for name in fresh] + lines),
        "    return _result",
    ]
    filename, whole = f"<{code.co_name} in lockstep>", "\n".join(text) + "\n"
    linecache.cache[filename] = (len(whole), None, whole.splitlines(True), filename)
    return compile(whole, filename, "exec")


_everything = {}


def run(function, grid, block, args, shared):
    """Run a kernel over the grid, block by block in the order of their numbers."""
    global _block
    body = _rewritten(function, _everything)
    blocks = [
        engine.Index(x, y, z)
        for z in range(grid[2])
        for y in range(grid[1])
        for x in range(grid[0])
    ]
    size = engine.Index(*block)
    try:
        with np.errstate(all="ignore"):
            for index in blocks:
                _block = _Block(index, size, shared)
                body(None, *args)
    finally:
        _block = None
