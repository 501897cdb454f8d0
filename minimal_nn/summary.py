"""A network as a table: outputs, parameters, and what each parameter is invariant to."""

from minimal_nn import invariance


def table(network):
    """Return the table that `Network.summary` shows, a row for each parameter."""
    by_parameter = {name: g for g in network.invariance_groups() for name in g.parameters}
    rows = [("layer", "output", "parameters", "numbers", "invariant under")]
    for name, shape in zip(network.names, network.shapes[1:], strict=True):
        size = "x".join(map(str, shape))
        prefix = f"{name}."
        own = {k: a for k, a in network.parameters.items() if k.startswith(prefix)}
        if not own:
            rows.append((name, size, "", "", ""))
        for position, (full, array) in enumerate(own.items()):
            group = by_parameter.get(full)
            rows.append(
                (
                    name if position == 0 else "",
                    size if position == 0 else "",
                    f"{full.removeprefix(prefix)} {'x'.join(map(str, array.shape))}",
                    f"{array.size:,}",
                    "" if group is None else invariance.describe(group),
                )
            )
    total = sum(array.size for array in network.parameters.values())
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(
        [*lines, f"{total:,} parameters, {network.dtype}, {network.backend.name} wing"]
    )
