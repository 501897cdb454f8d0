"""Parameters as people keep them: a dict of arrays, or nested dicts, lists and tuples of them."""

import numpy as np


def flatten(tree, name="parameters"):
    """Return {path: leaf} of a tree; keys and positions of a path are joined by '/'.

    >>> flatten({"Dense_0": {"kernel": 1, "bias": 2}, "scales": [3]})
    {'Dense_0/kernel': 1, 'Dense_0/bias': 2, 'scales/0': 3}
    """
    leaves = {}
    for path, leaf in _leaves(tree, ()):
        path = "/".join(map(str, path))
        if path in leaves:
            raise ValueError(f"{name}: got the path {path!r} twice, expected each once")
        leaves[path] = leaf
    return leaves


def _leaves(tree, path):
    if tree is None:
        return
    if isinstance(tree, dict) or hasattr(tree, "items"):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        yield path, tree
        return
    for key, child in items:
        yield from _leaves(child, (*path, key))


def rebuild(tree, leaves):
    """Return a tree of the same structure with other leaves, given {path: leaf}."""
    return _rebuilt(tree, leaves, ())


def _rebuilt(tree, leaves, path):
    if tree is None:
        return None
    if isinstance(tree, dict) or hasattr(tree, "items"):
        children = {key: _rebuilt(child, leaves, (*path, key)) for key, child in tree.items()}
        return children if type(tree) is dict else type(tree)(children)
    if isinstance(tree, (list, tuple)):
        children = [_rebuilt(child, leaves, (*path, i)) for i, child in enumerate(tree)]
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    return leaves["/".join(map(str, path))]


def finite_floats(leaves, name="parameters"):
    """Refuse leaves that are not arrays of finite floats, by name; return {path: NumPy array}."""
    if not leaves:
        raise ValueError(f"{name}: got none, expected {{name: array}}")
    arrays = {}
    for path, leaf in leaves.items():
        array = np.asarray(leaf)
        if array.dtype.kind != "f" or not np.all(np.isfinite(array)):
            raise ValueError(
                f"{name}[{path!r}]: got dtype {array.dtype} or numbers that are not finite, "
                "expected an array of finite floats"
            )
        if not array.size:
            raise ValueError(
                f"{name}[{path!r}]: got the shape {array.shape}, expected some numbers: leave out "
                "what is empty"
            )
        arrays[path] = array
    return arrays
