"""Invariance: which rescalings of parameters a later normalization makes invisible.

A layer says what becomes of a rescaling that travels through it (`Layer.rescaled`), which of its
parameters rescale its output (`Layer.sources`) and which ones it normalizes itself
(`Layer.normalized`); `groups` derives from that what the loss of a whole network is invariant to.
"""

from typing import NamedTuple


class Rescaling(NamedTuple):
    """A positive rescaling of parameters, seen at some point of the network.

    per_unit: every unit (last axis) has a factor of its own; else one factor for all of them.
    offset: a term that is constant over the batch is not rescaled along (a bias).
    """

    per_unit: bool
    offset: bool


class Absorbed(NamedTuple):
    """The end of a rescaling: a normalization at eps = 0 makes it invisible."""

    eps: float
    training_only: bool  # batch norm with running statistics does not absorb anything


class Source(NamedTuple):
    """Parameters whose rescaling rescales the layer's output: `scale`, with `shift` or without."""

    scale: str
    shift: str | None


class InvarianceGroup(NamedTuple):
    """Parameters under whose common positive rescaling the loss does not change.

    parameters: their names; they are rescaled jointly.  per_unit: each unit (last axis) may have a
    factor of its own, so that each is a group by itself; else one factor for all of them.
    absorbed_by: the layer whose normalization makes the rescaling invisible.  eps: that layer's;
    the invariance is exact at 0.  training_only: lost with running statistics.
    """

    parameters: tuple
    per_unit: bool
    absorbed_by: str
    eps: float
    training_only: bool


def groups(names, layers):
    """Return the `InvarianceGroup`s of a sequence of layers with these names.

    For each layer's scale parameters the finest rescaling that a later normalization absorbs is
    taken: of each unit by itself or of the layer as a whole, without its shift (bias, beta) or
    jointly with it.
    """
    found = []
    for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
        for local, eps in layer.normalized():
            found.append(InvarianceGroup((f"{name}.{local}",), True, name, eps, False))
        after = tuple(zip(names[index + 1 :], layers[index + 1 :], strict=True))
        for source in layer.sources():
            group = _finest(name, source, after)
            if group is not None:
                found.append(group)
    return tuple(found)


def _finest(name, source, after):
    for per_unit in (True, False):
        for joint in (False, True) if source.shift else (False,):
            offset = source.shift is not None and not joint
            end = _follow(Rescaling(per_unit, offset), after)
            if end is not None:
                by, absorbed = end
                locals_ = (source.scale, source.shift) if joint else (source.scale,)
                parameters = tuple(f"{name}.{local}" for local in locals_)
                return InvarianceGroup(
                    parameters, per_unit, by, absorbed.eps, absorbed.training_only
                )
    return None


def _follow(rescaling, after):
    """Follow a rescaling through the layers after it; return (layer name, Absorbed) or None."""
    for name, layer in after:
        rescaling = layer.rescaled(rescaling)
        if isinstance(rescaling, Absorbed):
            return name, rescaling
        if rescaling is None:
            return None
    return None


def describe(group):
    """Return what a group is invariant under, as a few words of a table."""
    locals_ = ", ".join(name.split(".")[1] for name in group.parameters)
    joint = f"({locals_}) " if len(group.parameters) > 1 else ""
    extent = "a factor per unit" if group.per_unit else "one factor"
    eps = "" if group.eps == 0 else f" up to eps = {group.eps:g}"
    return f"{joint}{extent}, by {group.absorbed_by}{eps}"
