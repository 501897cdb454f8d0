"""The text of a kernel, rewritten so that one run does the work of a block.

Each statement and each expression becomes one under a mask `_m`, in calls of what lockstep.py puts
into the scope: `_merged`, `_where`, `_load`, ...
"""

import ast
import collections
import copy
import functools
import linecache

from minimal_nn.cuda.simulator.memory import SimulationError


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


@functools.cache
def rewritten_text(code, wanting):
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
