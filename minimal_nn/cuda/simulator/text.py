"""The text of a kernel, rewritten so that one run does the work of a block.

Each statement and each expression becomes one under a mask `_m`, in calls of what lockstep.py puts
into the scope: `_merged`, `_where`, `_load`, ...
"""

import ast
import copy
import functools
import linecache


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
def rewritten_text(text, wanting):
    """Return the code that defines the function of a text for all threads of a block, `_threads`.

    wanting: the names of what it calls that wants the mask.
    """
    (tree,) = ast.parse(text).body
    parameters = [argument.arg for argument in tree.args.args]
    rewriter = _Rewriter(wanting)
    lines = rewriter.block(_last_returns(tree.body))
    fresh = ["_result", *sorted(rewriter.assigned - set(parameters))]
    text = [
        f"def _threads({', '.join(['_m', *parameters])}):",
        *_indented([f"{name} = None" for name in fresh] + lines),
        "    return _result",
    ]
    filename, whole = f"<{tree.name} in lockstep>", "\n".join(text) + "\n"
    linecache.cache[filename] = (len(whole), None, whole.splitlines(True), filename)
    return compile(whole, filename, "exec")
