"""Division of whole numbers by one that the host knows, for places in images."""

from numba import uint32, uint64

from minimal_nn.cuda.device.language import device


def divisor(d):
    """Return (d, multiplier, shift), with which `divide` divides numbers below 2^31 by d.

    floor(n / d) = (n + floor(n multiplier / 2^32)) >> shift, shift = ceil(log2 d) and multiplier =
    floor(2^32 (2^shift - d) / d) + 1 (Granlund & Montgomery, 1994): two instructions for some
    twenty.
    """
    shift = (d - 1).bit_length()
    return d, (2**32 * (2**shift - d)) // d + 1, shift


@device
def divide(n, by, multiplier, shift):
    """Return n // by and n % by, for a triple of `divisor`."""
    high = uint32((uint64(n) * uint64(multiplier)) >> uint64(32))
    quotient = (n + high) >> shift
    return quotient, n - quotient * by
