"""What is graded of a file: its functions and classes, with the imports and constants they use.

A notebook trains, draws and prints; none of that is run.
"""

import ast
import json
from pathlib import Path

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def definitions(path):
    """Return the syntax tree of a .py or .ipynb file without what is not graded.

    Raises ValueError, with the line, where the file is not Python.
    """
    path = Path(path)
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(source)["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        # Lines of IPython alone: magics and shell commands.
        lines = [
            line for line in "\n".join(code).splitlines() if line.lstrip()[:1] not in ("%", "!")
        ]
        source = "\n".join(lines)
    try:
        tree = ast.parse(source, filename=str(path))
    except SyntaxError as error:
        raise ValueError(f"{path.name}: is not Python: {error.msg} (line {error.lineno})") from None
    defined = [node for node in tree.body if isinstance(node, _DEFINITIONS)]
    used = {n.id for node in defined for n in ast.walk(node) if isinstance(n, ast.Name)}
    tree.body = [node for node in tree.body if _is_kept(node, used)]
    return tree


def load(path):
    """Run the definitions of a file and return their namespace."""
    namespace = {"__name__": "submission", "__file__": str(path)}
    exec(compile(definitions(path), str(path), "exec"), namespace)
    return namespace


def _is_kept(node, used):
    if isinstance(node, _DEFINITIONS):
        return True
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        bound = {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        return bool(bound & (used | {"*"})) or getattr(node, "module", "") == "__future__"
    if isinstance(node, ast.Assign):
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        return bool(names & used) and _is_literal(node.value)
    return False


def _is_literal(node):
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True
