"""Where the pixels of an image lie: copied into one with a border, flattened, gathered.

Only places change, no numbers: images with the channels of a data set and with those of padding,
with a border of zeros or without, or one after another as the features of a row of panels.
"""

from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.footprints import axis, each, panel_rows, places, reads, steps, writes
from minimal_nn.cpu.machine.vectors import load, pointer_at, store


@inline
def place(source, target, height, width, pitch, channels, source_channels):
    """Copy an image into one with a border, whose rows have `pitch` pixels, from its first pixel
    within; more channels there stay 0."""
    for y in range(height):
        at = source + y * width * source_channels
        to = target + y * pitch * channels
        if source_channels == channels and (width * channels) % source.lanes == 0:
            for i in range(0, width * channels, source.lanes):
                store(to + i, load(at + i))
        else:
            for x in range(width):
                for c in range(source_channels):
                    to[x * channels + c] = at[x * source_channels + c]


def _image_misfit(image, channels):
    """Return what is wrong where an image does not have so many channels."""
    if image.channels not in (0, channels):
        return f"images of {image.channels} channels are taken for such of {channels}"


def _inside_border(k):
    """The inside of an image with a border, of whose `channels` the first `source_channels`."""
    lines = axis(k.height, k.pitch * k.channels)
    if k.source_channels == k.channels:
        return writes(lines, k.width * k.channels)
    return writes(lines, axis(k.width, k.channels), k.source_channels)


@kernel(
    fits=lambda k: (
        _image_misfit(k.source, k.source_channels) or _image_misfit(k.target, k.channels)
    ),
    source=lambda k: reads(each(k.source_step), k.height * k.width * k.source_channels),
    target=_inside_border,
)
def place_kernel(
    step, thread, unit, source, source_step, target, height, width, pitch, channels, source_channels
):
    """Image `unit` into the inside of an image with a border."""
    place(source + unit * source_step, target, height, width, pitch, channels, source_channels)


@kernel(
    fits=lambda k: _image_misfit(k.target, k.channels),
    data=lambda k: reads(1),
    batches=lambda k: reads(steps(k.images), each(1)),
    target=_inside_border,
)
def gather_kernel(
    step,
    thread,
    unit,
    data,
    batches,
    target,
    images,
    height,
    width,
    pitch,
    channels,
    source_channels,
):
    """Image `unit` of the step's batch, from X at address data[0], into one with a border."""
    example = batches[step * images + unit] * (height * width * source_channels)
    source = pointer_at(target, data[0]) + example
    place(source, target, height, width, pitch, channels, source_channels)


def _pixels(mode, k):
    if k.channels == k.padded:
        return mode(k.pixels * k.padded)
    return mode(axis(k.pixels, k.padded), k.channels)


def _features(mode, k, whole):
    return panel_rows(mode, k.x, k.x_step, k.units, k.pixels * k.channels, 1, whole)


@kernel(
    fits=lambda k: _image_misfit(k.image, k.padded),
    image=lambda k: _pixels(reads, k),
    x=lambda k: _features(writes, k, whole=True),
)
def flatten_kernel(step, thread, unit, image, x, x_step, pixels, channels, padded):
    """An image as row `unit` of panels, without the channels of padding; columns of padding 0."""
    row = x + unit * x.row
    if channels == padded and channels % x.row == 0:
        for first in range(0, pixels * channels, x.row):
            for column in range(0, x.row, x.lanes):
                target = row + ((first // x.row) * x_step + column)
                store(target, load(image + (first + column)))
    else:
        for i in range(pixels):
            for c in range(channels):
                feature = i * channels + c
                row[(feature // x.row) * x_step + feature % x.row] = image[i * padded + c]
        features = pixels * channels
        last = row + (features // x.row) * x_step
        for column in range(features % x.row, x.row if features % x.row else 0):
            last[column] = 0.0


@kernel(
    fits=lambda k: _image_misfit(k.image, k.padded),
    x=lambda k: _features(reads, k, whole=False),
    image=lambda k: _pixels(writes, k),
)
def unflatten_kernel(step, thread, unit, x, x_step, image, pixels, channels, padded):
    """Row `unit` of panels as an image; its channels of padding stay 0."""
    row = x + unit * x.row
    if channels == padded and channels % x.row == 0:
        for first in range(0, pixels * channels, x.row):
            for column in range(0, x.row, x.lanes):
                source = row + ((first // x.row) * x_step + column)
                store(image + (first + column), load(source))
    else:
        for i in range(pixels):
            for c in range(channels):
                feature = i * channels + c
                image[i * padded + c] = row[(feature // x.row) * x_step + feature % x.row]


def emit_place(program, source, bordered, border, rows, channels, first=0):
    """Emit `rows` rows of an image of so many channels, into one with a border from row `first`."""
    padded = bordered.row
    program.call(
        place_kernel,
        source,
        bordered.at(border.start(padded, first), row=1),
        rows,
        border.width,
        border.pitch,
        padded,
        channels,
    )


def emit_gather(program, data, batches, bordered, border, images, channels):
    """Emit an image of the step's batch, into one with a border."""
    padded = bordered.row
    program.call(
        gather_kernel,
        data,
        batches,
        bordered.at(border.start(padded), row=1),
        images,
        border.height,
        border.width,
        border.pitch,
        padded,
        channels,
    )


def pixels_of(pixels, channels, padded):
    """Return the spans of the channels of images with more of them, of padding."""
    return (places(axis(pixels, padded), channels),)


def emit_flatten(program, image, x, pixels, channels, padded):
    """Emit an image as a row of panels, without its channels of padding."""
    program.call(flatten_kernel, image.at(row=1), x, pixels, channels, padded)


def emit_unflatten(program, x, image, pixels, channels, padded):
    """Emit a row of panels as an image, whose channels of padding stay 0."""
    program.call(unflatten_kernel, x, image.at(row=1), pixels, channels, padded)
