"""Invariance: which rescalings of parameters a later normalization makes invisible.

A layer says what becomes of a rescaling that travels through it (`Layer.rescaled`), which of its
parameters rescale its output (`Layer.sources`) and which ones it normalizes itself
(`Layer.normalized`); `groups` derives from that what the loss of a whole network is invariant to.
A layer made of others names them (`Layer.branches`) and says what it is to its own output that they
are rescaled together at their end (`Layer.leaving`).

What needs the parameters of several layers at once is not derived: that the blocks of a residual
network may be scaled together with what they are added to, say.  Nor is a rescaling followed that a
normalization turns into factors which differ by example, and another one absorbs.
"""

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from minimal_nn.typing import Shape


class Rescaling(NamedTuple):
    """A positive rescaling of parameters, seen at some point of the network.

    per_unit: every unit (last axis) has a factor of its own; else one factor for all of them.
    offset: a term that is constant over the batch is not rescaled along (a bias).

    What only a layer with `sees_pixels` is shown.  Of that term: by_pixel, it differs from pixel to
    pixel, as a bias does after a convolution whose borders are 0; even, it is one number for all
    units, as the bias of a single channel is after Flatten.  Of the factors per unit: blocks, the
    units lie in so many equal blocks, each with one factor; units, so many units there are;
    altered, the factors are not those of the parameters any more.

    alone: it is the offset that is followed, which may be added to anything.
    """

    per_unit: bool
    offset: bool
    by_pixel: bool = False
    even: bool = False
    blocks: int = 0
    units: int = 0
    altered: bool = False
    alone: bool = False


class Absorbed(NamedTuple):
    """The end of a rescaling: a normalization at eps = 0 makes it invisible."""

    eps: float
    training_only: bool  # batch norm with running statistics does not absorb anything
    by: tuple[str, ...] = ()  # where each branch of a layer absorbs it: by these, in the network
    altered: bool = False  # whether the factors were not those of the parameters any more


class Source(NamedTuple):
    """Parameters whose rescaling rescales the layer's output: `scale`, with `shift` or without."""

    scale: str
    shift: str | None


class InvarianceGroup(NamedTuple):
    """Parameters under whose common positive rescaling the loss does not change.

    parameters: their names; they are rescaled jointly.  per_unit: each unit (last axis) may have a
    factor of its own, so that each is a group by itself; else one factor for all of them, or, where
    blocks > 1, one for each of so many equal blocks of neighbouring units.
    absorbed_by: the layer whose normalization makes the rescaling invisible.  eps: that layer's;
    the invariance is exact at 0 (the largest one, where each branch of a layer absorbs by its own).
    training_only: lost with running statistics.  by: the normalizations in that layer's branches,
    where each absorbs the rescaling by its own.
    """

    parameters: tuple[str, ...]
    per_unit: bool
    absorbed_by: str
    eps: float
    training_only: bool
    blocks: int = 1
    by: tuple[str, ...] = ()


class Cancelled(NamedTuple):
    """A parameter that the loss does not depend on: a normalization subtracts what it adds.

    training_only: not so where the normalization takes its running statistics.
    """

    by: str  # the network's layer that subtracts it, or one within which it is subtracted
    training_only: bool

    def applies(self, train: bool, frozen: Collection[str]) -> bool:
        """Return whether it does so, in training but for the layers that are `frozen`, or not."""
        return not self.training_only or (train and self.by not in frozen)


def cancelled(
    names: Sequence[str], layers: Sequence[Any], input_shape: Shape
) -> dict[str, Cancelled]:
    """Return the shifts (bias, beta) that a later normalization cancels, by parameter name.

    A normalization that absorbs a rescaling beside an offset has subtracted the offset, at any eps,
    unless it has entered a deviation on its way (`Absorbed.altered`).  What layers of one's own do
    to an offset is not known: it is followed through built-in ones.
    """
    parts, shape, found = tuple(zip(names, layers, strict=True)), input_shape, {}
    for index, part in enumerate(parts):
        output = part[1].output_shape(shape)
        if part[1].built_in:
            rest = tuple(itertools.takewhile(lambda each: each[1].built_in, parts[index + 1 :]))

            def beyond(rescaling, rest=rest, output=output):
                end = _follow(rescaling, "", rest, output)
                return None if isinstance(end, Rescaling) else end

            for name, layer, _, after in _each("", (part,), shape, beyond):
                for source in layer.sources():
                    shift = Rescaling(per_unit=False, offset=True, alone=True)
                    end = after(shift) if source.shift else None
                    if end is not None and not end[1].altered:
                        by, absorbed = end
                        found[f"{name}.{source.shift}"] = Cancelled(
                            by.split(".")[0], absorbed.training_only
                        )
        shape = output
    return found


def groups(
    names: Sequence[str], layers: Sequence[Any], input_shape: Shape
) -> tuple[InvarianceGroup, ...]:
    """Return the `InvarianceGroup`s of a sequence of layers with these names.

    For each layer's scale parameters the finest rescaling that a later normalization absorbs is
    taken: of each unit by itself, of blocks of units or of the layer as a whole, without its shift
    (bias, beta) or jointly with it.
    """
    parts = tuple(zip(names, layers, strict=True))
    return tuple(
        group
        for name, layer, units, after in _each("", parts, input_shape, lambda rescaling: None)
        for group in _groups(name, layer, units, after)
    )


def _groups(name, layer, units, after):
    """Yield the groups of one layer's own parameters."""
    for local, eps in layer.normalized():
        yield InvarianceGroup((f"{name}.{local}",), True, name, eps, False)
    for source in layer.sources():
        yield from _finest(name, source, units, after)


def _each(prefix, parts, shape, beyond):
    """Yield layers one after the other, those within a layer behind it: each with its name, the
    units of its output, and a function that follows a rescaling from there to (layer name,
    Absorbed), or None.

    beyond: such a function, from the last of the layers.
    """
    for index, (name, layer) in enumerate(parts):
        full, output = prefix + name, layer.output_shape(shape)

        def after(rescaling, rest=parts[index + 1 :], shape=output):
            end = _follow(rescaling, prefix, rest, shape)
            return beyond(end) if isinstance(end, Rescaling) else end

        def leaving(rescaling, layer=layer, after=after):
            rescaling = rescaling if rescaling.alone else layer.leaving(rescaling)
            return None if rescaling is None else after(rescaling)

        yield full, layer, output[-1], after
        for branch in layer.branches():
            yield from _each(f"{full}.", branch, shape, leaving)
        shape = output


def _finest(name, source, units, after):
    """Yield the finest group of a layer's source, if it has one."""
    for blocks in [units, *(b for b in range(units - 1, 1, -1) if units % b == 0), 0]:
        for joint in (False, True) if source.shift else (False,):
            offset = source.shift is not None and not joint
            end = after(Rescaling(blocks > 0, offset, blocks=blocks))
            if end is not None:
                by, absorbed = end
                locals_ = (source.scale, source.shift) if joint else (source.scale,)
                yield InvarianceGroup(
                    tuple(f"{name}.{local}" for local in locals_),
                    blocks == units,
                    by,
                    absorbed.eps,
                    absorbed.training_only,
                    blocks=1 if blocks == units else max(blocks, 1),
                    by=absorbed.by,
                )
                return


def _follow(rescaling, prefix, parts, shape):
    """Follow a rescaling at an output of this shape through layers one after the other.

    Returns the `Rescaling` behind them, or (layer name, Absorbed) where it ends, or None.
    """
    altered = rescaling.altered
    for name, layer in parts:
        end = _through(_seen(rescaling, shape), prefix + name, layer, shape)
        if end is None:
            return None
        if not isinstance(end, Rescaling):
            by, absorbed = end
            return by, absorbed._replace(altered=altered or absorbed.altered)
        altered = altered or end.altered
        output = layer.output_shape(shape)
        # Blocks of channels are none of the units that pixels have become.
        rescaling = end if output[-1] == shape[-1] else end._replace(blocks=0)
        shape = output
    return _seen(rescaling._replace(altered=altered), shape)


def _through(rescaling, name, layer, shape):
    """Follow a rescaling of a layer's input, of this shape; returns what `_follow` does."""
    if layer.composite:
        before = rescaling._replace(altered=False)
        ends = [_follow(before, f"{name}.", branch, shape) for branch in layer.branches()]
        end = ends[0] if len(ends) == 1 else _sum(name, ends)
        if isinstance(end, Rescaling):
            return end._replace(altered=end.altered or rescaling.altered)
        return end
    if not layer.sees_pixels:
        if rescaling.by_pixel:
            return None
        rescaling = Rescaling(rescaling.per_unit, rescaling.offset, alone=rescaling.alone)
    end = layer.rescaled(rescaling)
    return (name, end) if isinstance(end, Absorbed) else end


def _sum(name, ends):
    """Return what a rescaling is in the sum of branches of the layer `name`, given its ends."""
    left = [end for end in ends if isinstance(end, Rescaling)]
    gone = [end for end in ends if end is not None and not isinstance(end, Rescaling)]
    always = not any(absorbed.training_only for _, absorbed in gone)
    if left and all(end.alone for end in left) and None not in ends and always:
        return left[0]._replace(
            by_pixel=any(end.by_pixel for end in left),
            even=all(end.even for end in left),
            altered=any(end.altered for end in left),
        )
    if len(left) == len(ends):
        # A common factor can be taken out of the sum, if it is the same in all of them.
        one = ends[0]
        same = all((e.per_unit, e.blocks) == (one.per_unit, one.blocks) for e in ends)
        if not same or any(end.altered for end in ends):
            return None
        offset = any(end.offset for end in ends)
        return one._replace(
            offset=offset,
            by_pixel=any(end.by_pixel for end in ends),
            even=offset and all(end.even or not end.offset for end in ends),
        )
    if left or None in ends:
        return None
    absorbed = [absorbed for _, absorbed in gone]
    return name, Absorbed(
        max(each.eps for each in absorbed),
        any(each.training_only for each in absorbed),
        tuple(leaf for end, each in ends for leaf in each.by or (end,)),
        any(each.altered for each in absorbed),
    )


def _seen(rescaling, shape):
    """Return a rescaling as it is at an output of this shape, of one pixel, say, or one unit."""
    units, offset = shape[-1], rescaling.offset
    per_unit = rescaling.per_unit and units > 1
    by_pixel = rescaling.by_pixel and offset and math.prod(shape[:-1]) > 1
    even = offset and not by_pixel and (rescaling.even or units == 1)
    blocks = (rescaling.blocks or units) if per_unit else 0
    return rescaling._replace(
        per_unit=per_unit, by_pixel=by_pixel, even=even, blocks=blocks, units=units
    )


def describe(group: InvarianceGroup) -> str:
    """Return what a group is invariant under, as a few words of a table."""
    locals_ = ", ".join(name.split(".")[-1] for name in group.parameters)
    joint = f"({locals_}) " if len(group.parameters) > 1 else ""
    extent = "a factor per unit" if group.per_unit else "one factor"
    if group.blocks > 1:
        extent = f"a factor for each of {group.blocks} blocks of units"
    eps = "" if group.eps == 0 else f" up to eps = {group.eps:g}"
    return f"{joint}{extent}, by {group.absorbed_by}{eps}"
