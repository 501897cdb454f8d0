"""Unroll loops of a kernel in its source text, where the compiler would not.

NVVM leaves a loop alone whose body is as long as 64 fused multiply-adds, and then every step waits
for its own loads.  Written out, `ptxas` moves the loads of the next step between the products of
this one.

    def factory(BK):
        def kernel(x):
            for k in unroll(BK):
                ...
        return unrolled(kernel)

`unrolled` returns the function with every `for name in unroll(N)` written out N times, `name`
replaced by the numbers 0, 1, ..., N - 1.  N is a name that the function can see.
"""

import ast
import copy
import inspect
import itertools
import linecache
import textwrap

_count = itertools.count()


def unroll(n):
    """Mark a loop for `unrolled`; without it, an ordinary range."""
    return range(n)


class _Number(ast.NodeTransformer):
    def __init__(self, name, value):
        self.name, self.value = name, value

    def visit_Name(self, node):
        return ast.Constant(self.value) if node.id == self.name else node


class _Unroll(ast.NodeTransformer):
    def __init__(self, scope):
        self.scope = scope

    def visit_For(self, node):
        self.generic_visit(node)
        call = node.iter
        if not (isinstance(call, ast.Call) and getattr(call.func, "id", None) == "unroll"):
            return node
        times = int(eval(ast.unparse(call.args[0]), self.scope))
        return [
            _Number(node.target.id, value).visit(copy.deepcopy(statement))
            for value in range(times)
            for statement in node.body
        ]


def unrolled(function):
    """Return `function` with its loops over `unroll(N)` written out."""
    closed = inspect.getclosurevars(function)
    scope = {**function.__globals__, **closed.nonlocals}
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    tree.body[0].decorator_list = []
    text = ast.unparse(ast.fix_missing_locations(_Unroll(scope).visit(tree)))
    return made(text, function.__name__, scope)


def made(text, name, scope):
    """Return the function `name` that the text defines, its names taken from `scope`.

    The text is known to `linecache`, so that tracebacks, Numba's messages and the simulator see it.
    """
    filename = f"<{name} {next(_count)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(compile(text, filename, "exec"), scope)
    return scope[name]
