"""Invariance: which rescalings of parameters a later normalization makes invisible.

A layer says what becomes of a rescaling that travels through it (`Layer.rescaled`), which of its
parameters rescale its output (`Layer.sources`) and which ones it normalizes itself
(`Layer.normalized`); `groups` derives from that what the loss of a whole network is invariant to.
A layer made of others names them (`Layer.parts`) and says what it is to its own output that they
are rescaled together at their end (`Layer.leaving`).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from minimal_nn.typing import Shape


class Rescaling(NamedTuple):
    """A positive rescaling of parameters, seen at some point of the network.

    per_unit: every unit (last axis) has a factor of its own; else one factor for all of them.
    offset: a term that is constant over the batch is not rescaled along (a bias).

    What only a layer with `sees_pixels` is shown, of that term: by_pixel, it differs from pixel to
    pixel, as a bias does after a convolution whose borders are 0; even, it is one number for all
    units, as the bias of a single channel is after Flatten.
    """

    per_unit: bool
    offset: bool
    by_pixel: bool = False
    even: bool = False


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

    parameters: tuple[str, ...]
    per_unit: bool
    absorbed_by: str
    eps: float
    training_only: bool


def groups(
    names: Sequence[str], layers: Sequence[Any], input_shape: Shape
) -> tuple[InvarianceGroup, ...]:
    """Return the `InvarianceGroup`s of a sequence of layers with these names.

    For each layer's scale parameters the finest rescaling that a later normalization absorbs is
    taken: of each unit by itself or of the layer as a whole, without its shift (bias, beta) or
    jointly with it.
    """
    parts = tuple(zip(names, layers, strict=True))
    return tuple(_groups("", parts, input_shape, lambda rescaling: None))


def _groups(prefix, parts, shape, beyond):
    """Yield the groups of layers one after the other.

    beyond: a function that follows a rescaling from the last of them to (layer name, Absorbed), or
    None.
    """
    for index, (name, layer) in enumerate(parts):
        full, output = prefix + name, layer.output_shape(shape)

        def after(rescaling, rest=parts[index + 1 :], shape=output):
            return _follow(rescaling, prefix, rest, shape, beyond)

        for local, eps in layer.normalized():
            yield InvarianceGroup((f"{full}.{local}",), True, full, eps, False)
        for source in layer.sources():
            yield from _finest(full, source, after)

        def leaving(rescaling, layer=layer, after=after):
            rescaling = layer.leaving(rescaling)
            return None if rescaling is None else after(rescaling)

        yield from _groups(f"{full}.", layer.parts(), shape, leaving)
        shape = output


def _finest(name, source, after):
    """Yield the finest group of a layer's source, if it has one."""
    for per_unit in (True, False):
        for joint in (False, True) if source.shift else (False,):
            end = after(Rescaling(per_unit, offset=source.shift is not None and not joint))
            if end is not None:
                by, absorbed = end
                locals_ = (source.scale, source.shift) if joint else (source.scale,)
                parameters = tuple(f"{name}.{local}" for local in locals_)
                yield InvarianceGroup(
                    parameters, per_unit, by, absorbed.eps, absorbed.training_only
                )
                return


def _follow(rescaling, prefix, parts, shape, beyond):
    """Follow a rescaling at an output of this shape through the layers; return where it ends."""
    for name, layer in parts:
        rescaling = _seen(rescaling, shape)
        if not layer.sees_pixels:
            if rescaling.by_pixel:
                return None
            rescaling = rescaling._replace(even=False)
        rescaling = layer.rescaled(rescaling)
        if isinstance(rescaling, Absorbed):
            return prefix + name, rescaling
        if rescaling is None:
            return None
        shape = layer.output_shape(shape)
    return beyond(_seen(rescaling, shape))


def _seen(rescaling, shape):
    """Return a rescaling as it is at an output of this shape, of one pixel, say, or one unit."""
    per_unit, offset, by_pixel, even = rescaling
    by_pixel = by_pixel and offset and math.prod(shape[:-1]) > 1
    even = offset and not by_pixel and (even or shape[-1] == 1)
    return Rescaling(per_unit and shape[-1] > 1, offset, by_pixel, even)


def describe(group: InvarianceGroup) -> str:
    """Return what a group is invariant under, as a few words of a table."""
    locals_ = ", ".join(name.split(".")[-1] for name in group.parameters)
    joint = f"({locals_}) " if len(group.parameters) > 1 else ""
    extent = "a factor per unit" if group.per_unit else "one factor"
    eps = "" if group.eps == 0 else f" up to eps = {group.eps:g}"
    return f"{joint}{extent}, by {group.absorbed_by}{eps}"
