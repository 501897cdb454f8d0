"""A network as a table: outputs, eps, parameters, and what each parameter is invariant to."""

from minimal_nn import invariance

_HEAD = ("layer", "output", "eps", "parameters", "numbers", "invariant under")


def table(network):
    """Return the table that `Network.summary` shows, a row for each parameter."""
    groups = {name: g for g in network.invariance_groups() for name in g.parameters}
    rows = [_HEAD]
    for (name, layer), shape in zip(network.named_layers(), network.shapes, strict=False):
        rows += _rows(name, name, layer, shape, network.parameters, groups)
    total = sum(array.size for array in network.parameters.values())
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(
        [*lines, f"{total:,} parameters, {network.dtype}, {network.backend.name} wing"]
    )


def _rows(title, full, layer, shape, parameters, groups):
    """Yield the rows of a layer, and, indented, of the layers in it."""
    size, eps = "x".join(map(str, layer.output_shape(shape))), getattr(layer, "eps", None)
    first = (title, size, f"{eps:g}" if isinstance(eps, (int, float)) else "")
    inner = tuple(f"{full}.{name}." for branch in layer.branches() for name, _ in branch)
    own = [
        (name, array)
        for name, array in parameters.items()
        if name.startswith(f"{full}.") and not name.startswith(inner)
    ]
    if not own:
        yield (*first, "", "", "")
    for name, array in own:
        group = groups.get(name)
        yield (
            *first,
            f"{name.removeprefix(full)[1:]} {'x'.join(map(str, array.shape))}",
            f"{array.size:,}",
            "" if group is None else invariance.describe(group),
        )
        first = ("", "", "")
    indent = " " * (len(title) - len(title.lstrip())) + "  "
    for branch in layer.branches():
        here = shape
        for name, part in branch:
            yield from _rows(f"{indent}{name}", f"{full}.{name}", part, here, parameters, groups)
            here = part.output_shape(here)
