"""The language of kernels: what their text says more shortly than Numba takes it.

`rewritten` reads the text of a function, with what its names mean when the kernel is made, and
writes the text that is compiled and simulated:

    THREADS, tile.BM, v.load      known names: numbers become literals, functions of a table (a
                                  NamedTuple or SimpleNamespace) names of their own
    2 * tile.BM + 4               numbers made of known numbers are computed
    a if wide else b, if wide:    a condition that is known leaves one side
    for k in unroll(4): ...       the body four times, k = 0, 1, 2, 3
    f(*(a[k] for k in unroll(4))) four arguments, or four entries of a tuple
    i = row * columns + 3         an integer is a uint32: literals, sizes, the places of threads,
                                  the counters of `range`, and what + - * // % & | ^ << >> make of
                                  integers where it is assigned to a name, returned, or in min and
                                  max; which numbers are integers, the compiler's types say

So no index is checked for being negative.  Numba adds and multiplies uint32 in 64 bits: what is
kept has 32 (64 only within an expression), and within an index the constant part of a sum goes into
the address.

Loops are written out where the compiler would leave them: NVVM does so with a body of 64 fused
multiply-adds, and then every step waits for its own loads.

A literal stays an int where Numba wants one: as an index of its own, `v[0]`, in the shape of an
array, in calls of `cuda`, and in a conversion, `T(0)`.
"""

import ast
import collections
import functools
import itertools
import linecache
import types as python_types

import numpy as np
from numba import types

_count = itertools.count()
_UNKNOWN = object()
_PLACES = ("cuda.threadIdx.", "cuda.blockIdx.", "cuda.blockDim.", "cuda.gridDim.")


def unroll(n):
    """Mark a loop, or the entries of a tuple, to be written out; to Python, an ordinary range."""
    return range(n)


def rewritten(function, unsigned):
    """Return the function that is compiled for the text of `function`; its `text` is what it says.

    unsigned: what makes an integer a uint32, and leaves another number as it is.
    """
    code = function.__code__
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    scope = {**function.__globals__, **dict(zip(code.co_freevars, cells, strict=True))}
    tree = text_of(code)
    tree = _Known(tree, scope).function()
    tree = _Unsigned(tree, scope).function()
    tree.name = "function" if function.__name__ == "<lambda>" else function.__name__
    text = ast.unparse(ast.fix_missing_locations(tree))
    result = made(text, tree.name, {**scope, "_u": unsigned})
    result.text = text
    return result


def made(text, name, scope):
    """Return the function `name` that the text defines, its names taken from `scope`.

    The text is known to `linecache`, so that tracebacks and Numba's messages show it.
    """
    filename = f"<{name} {next(_count)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(compile(text, filename, "exec"), scope)
    return scope[name]


# The text of a function


def text_of(code):
    """Return the definition of a function or lambda, from the text of its file."""
    found = [n for n in _functions(code.co_filename)[code.co_firstlineno] if _describes(n, code)]
    if len(found) != 1 and len({ast.dump(node) for node in found}) != 1:
        raise SyntaxError(
            f"{code.co_name}: found {len(found)} texts in line {code.co_firstlineno} of "
            f"{code.co_filename}, expected one: give it a name, or a line, of its own"
        )
    node = copied(found[0])
    (tree,) = ast.parse("def function(): pass").body
    tree.args = node.args
    tree.body = [ast.Return(node.body)] if isinstance(node, ast.Lambda) else node.body
    if isinstance(tree.body[0], ast.Expr) and isinstance(tree.body[0].value, ast.Constant):
        tree.body = tree.body[1:]  # the docstring
    return ast.fix_missing_locations(tree)


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


# What is known when the kernel is made


class _Known(ast.NodeTransformer):
    """Puts in what is known, computes with it, and writes loops over `unroll` out."""

    def __init__(self, tree, scope):
        self.tree, self.scope, self.counters = tree, scope, {}
        self.locals = {argument.arg for argument in tree.args.args}
        for statement in _statements(tree.body):
            for target in getattr(statement, "targets", [getattr(statement, "target", None)]):
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                self.locals |= {part.id for part in parts if isinstance(part, ast.Name)}

    def function(self):
        return self.generic_visit(self.tree)

    def block(self, statements):
        return self.generic_visit(ast.Module(statements, [])).body

    def value(self, node):
        """Return what a name or an attribute of a table stands for, or _UNKNOWN."""
        if isinstance(node, ast.Name):
            if node.id in self.counters:
                return self.counters[node.id]
            return _UNKNOWN if node.id in self.locals else self.scope.get(node.id, _UNKNOWN)
        if isinstance(node, ast.Attribute):
            table = self.value(node.value)
            if isinstance(table, python_types.SimpleNamespace) or hasattr(table, "_fields"):
                return getattr(table, node.attr)
        return _UNKNOWN

    def visit_Name(self, node):
        return _literal(self.value(node)) or node

    def visit_Attribute(self, node):
        value = self.value(node)
        if value is _UNKNOWN:
            return self.generic_visit(node)
        name = "_" + ast.unparse(node).replace(".", "_")
        self.scope[name] = value
        return _literal(value) or ast.Name(name, ast.Load())

    def visit(self, node):
        """Visit a node; an operation on literals becomes the literal that it makes."""
        node = super().visit(node)
        real = isinstance(getattr(node, "op", None), ast.Div | ast.Pow)
        if real or not isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare):
            return node
        operands = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        known = all(isinstance(operand, ast.Constant) for operand in operands)
        return ast.Constant(eval(ast.unparse(node))) if known else node

    def visit_IfExp(self, node):
        node.test = self.visit(node.test)
        if isinstance(node.test, ast.Constant):  # the other side may not be computed
            return self.visit(node.body if node.test.value else node.orelse)
        return self.generic_visit(node)

    def visit_If(self, node):
        node.test = self.visit(node.test)
        if isinstance(node.test, ast.Constant):
            return self.block(node.body if node.test.value else node.orelse)
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def visit_For(self, node):
        times = self.times(node.iter)
        if times is None:
            return self.generic_visit(node)
        return [s for _ in self.counting(node.target, times) for s in self.block(copied(node.body))]

    def visit_Call(self, node):
        node.func = self.visit(node.func)
        node.args = self.entries(node.args)
        return node

    def visit_Tuple(self, node):
        return ast.Tuple(self.entries(node.elts), node.ctx)

    def entries(self, nodes):
        """Return arguments or entries, those over `unroll` written out."""
        found = []
        for node in nodes:
            if isinstance(node, ast.Starred) and isinstance(node.value, ast.GeneratorExp):
                (loop,) = node.value.generators
                times = self.times(loop.iter)
                one = node.value.elt
                found += [self.visit(copied(one)) for _ in self.counting(loop.target, times)]
            else:
                found.append(self.visit(node))
        return found

    def times(self, node):
        """Return how often a loop over `unroll(...)` runs, or None for another loop."""
        if not (isinstance(node, ast.Call) and self.value(node.func) is unroll):
            return None
        (times,) = (self.visit(copied(argument)) for argument in node.args)
        return times.value

    def counting(self, target, times):
        for number in range(times):
            self.counters[target.id] = number
            yield number
        self.counters.pop(target.id, None)


def _literal(value):
    """Return a number as a literal, or None for what is none."""
    if isinstance(value, bool | int | np.integer):
        return ast.Constant(value if isinstance(value, bool) else int(value))
    return None


def copied(node):
    """Return a copy of a tree, or of a list of trees, to be changed."""
    if isinstance(node, list):
        return [copied(item) for item in node]
    if not isinstance(node, ast.AST) or isinstance(node, ast.expr_context | ast.operator):
        return node
    return type(node)(**{name: copied(field) for name, field in ast.iter_fields(node)})


# Integers


class _Unsigned(ast.NodeTransformer):
    """Makes every integer a uint32, by calls of `_u`, which leave other numbers as they are."""

    def __init__(self, tree, scope):
        self.tree, self.scope = tree, scope
        self.counters = {
            node.target.id
            for node in _statements(tree.body)
            if isinstance(node, ast.For) and _text(getattr(node.iter, "func", None)) == "range"
        }

    def of_the_device(self, node):
        """Return whether an expression is a size, or the place of a thread."""
        if isinstance(node, ast.Subscript):
            return _text(node.value).endswith(".shape")
        return isinstance(node, ast.Attribute) and (
            node.attr == "size" or _text(node).startswith(_PLACES)
        )

    def function(self):
        self.tree.body = [self.visit(statement) for statement in self.tree.body]
        return self.tree

    def kept(self, node):
        """Return a value that is assigned or returned: what is computed of integers as uint32."""
        if isinstance(node, ast.Tuple):
            return ast.Tuple([self.kept(value) for value in node.elts], node.ctx)
        return _u(self.visit(node)) if isinstance(node, ast.BinOp) else self.visit(node)

    def visit_Assign(self, node):
        to_names = isinstance(node.targets[0], ast.Name | ast.Tuple)
        node.value = self.kept(node.value) if to_names else self.visit(node.value)
        node.targets = [self.visit(target) for target in node.targets]
        return node

    def visit_Return(self, node):
        return ast.Return(node.value and self.kept(node.value))

    def visit_Constant(self, node):
        return _u(node) if type(node.value) is int else node

    def visit_Name(self, node):
        counts = node.id in self.counters and isinstance(node.ctx, ast.Load)
        return _u(node) if counts else node  # the counter of a range has 64 bits

    def visit_Attribute(self, node):
        return _u(node) if self.of_the_device(node) else self.generic_visit(node)

    def visit_Subscript(self, node):
        if self.of_the_device(node):
            return _u(node)
        node.value = self.visit(node.value)
        if isinstance(node.slice, ast.Tuple):
            node.slice.elts = [self.place(index) for index in node.slice.elts]
        else:
            node.slice = self.place(node.slice)
        return node

    def place(self, node):
        """Return an index; a literal or a counter of its own is one already."""
        alone = isinstance(node, ast.Constant) or _text(node) in self.counters
        return node if alone else self.visit(node)

    def visit_Call(self, node):
        name = _text(node.func)
        if name.endswith(".array"):
            return node
        converts = isinstance(self.scope.get(name), types.Type | type)
        if name.startswith("cuda.") or converts:
            node.args = [a if isinstance(a, ast.Constant) else self.visit(a) for a in node.args]
            return _u(node) if name in ("cuda.grid", "cuda.gridsize") else node
        compares = name in ("min", "max")
        node.args = [self.kept(a) if compares else self.visit(a) for a in node.args]
        return node

    def visit_AugAssign(self, node):
        if isinstance(node.target, ast.Name):
            read = ast.Name(node.target.id, ast.Load())
            return ast.Assign([node.target], self.kept(ast.BinOp(read, node.op, node.value)))
        return self.generic_visit(node)


def _text(node):
    """Return a name, with dots; "" for what is none."""
    if isinstance(node, ast.Attribute):
        return f"{_text(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _statements(body):
    """Yield every statement, those inside others too."""
    for node in body:
        yield node
        for inside in ("body", "orelse"):
            yield from _statements(getattr(node, inside, ()))


def _u(node):
    return ast.Call(ast.Name("_u", ast.Load()), [node], [])
