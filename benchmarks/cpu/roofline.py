"""What a training step has to do at least, in operations and bytes, and the roof that follows.

    roof = max(flops / peak, bytes / bandwidth)

the shortest time of a step on a machine that multiplies and moves at the same time, each at the
rate measured beside the step.  flops are those of our products.  bytes are what passes between
operations, each array once for every pass that cannot be fused with another (pooling and loss,
which are small beside them, are left out):

    product         reads its input, writes z                                I + O
    normalization   reads z, writes y; its statistics come with the product  2 O
    its backward    two sums of dy and y, then dz: dy and z twice            5 O
    gradients       of W: input and dz; of the input: dz, written dx         I + O, O + I
    parameters      read forward, read backward, gradient, update: 1 + 1 + 2 + 2 (1 + states)

with I and O numbers in a layer's input and output.  The bandwidth is that of as many bytes as are
in use at a time, so that arrays which stay in a cache are measured in the cache.
"""

from benchmarks.cpu.configurations import BATCH, CHANNELS, CLASSES, IMAGE

NUMBER = 4  # bytes, float32
BEYOND_CACHE = 3 * 2**26  # bytes: arrays of so many together lie in no cache
STATES = {"nesterov": 1, "adam": 2}  # arrays that the optimizer keeps for each parameter
# Multiplications for a pixel, an input and an output channel: Winograd's method takes (m + 2)^2
# for m x m pixels in place of 9 m^2.
MULTIPLICATIONS = {"direct": 9, "winograd2": 4**2 / 2**2, "winograd4": 6**2 / 4**2}


def products(configuration):
    """Return (multiply-adds, inputs, outputs, weights) of each layer's product, for one example."""
    if configuration.sizes:
        pairs = zip(configuration.sizes, configuration.sizes[1:], strict=False)
        return [(d * k, d, k, d * k) for d, k in pairs]
    found = []
    pixels = (IMAGE**2, IMAGE**2, IMAGE**2 // 4, IMAGE**2 // 4)
    for index, (p, c, k) in enumerate(zip(pixels, CHANNELS, CHANNELS[1:], strict=False)):
        each = MULTIPLICATIONS[configuration.algorithm] if index else MULTIPLICATIONS["direct"]
        found.append((each * p * c * k, p * c, p * k, 9 * c * k))
    features = (IMAGE // 4) ** 2 * CHANNELS[-1]
    return [*found, (features * CLASSES, features, CLASSES, features * CLASSES)]


def flops(configuration):
    """Return the floating-point operations of our products in one step of all copies."""
    # forward, gradient of the weights, and, but for the first layer, gradient of the input
    each = [
        2 * BATCH * size * (3 if index else 2)
        for index, (size, *_) in enumerate(products(configuration))
    ]
    return configuration.copies * sum(each)


def traffic(configuration):
    """Return the bytes that one step of all copies moves at least (see the module's text)."""
    layers = products(configuration)
    total = 0
    for index, (_, inputs, outputs, weights) in enumerate(layers):
        normalized = index < len(layers) - 1
        activations = 2 * (inputs + outputs) + (outputs + inputs if index else 0)
        activations += 7 * outputs if normalized else 0
        parameters = 1 + (1 if index else 0) + 2 + 2 * (1 + STATES[configuration.optimizer])
        total += BATCH * activations + parameters * weights
    return configuration.copies * NUMBER * total


def in_use(configuration, threads):
    """Return the bytes that a step moves of the copies that train at a time, one on each core."""
    copies = configuration.copies
    return traffic(configuration) // copies * min(copies, threads)


def roof(configuration, peak_gflops, bandwidth_gb):
    """Return the roof in seconds a step, and what sets it: "products" or "memory"."""
    multiply = flops(configuration) / (peak_gflops * 1e9)
    move = traffic(configuration) / (bandwidth_gb * 1e9)
    return (multiply, "products") if multiply >= move else (move, "memory")
