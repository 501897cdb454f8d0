"""Arithmetics: the numbers that a claim can be run in, all through the reference wing's lines.

    floats    float16, float32, float64, longdouble (floats.py)
    balls     enclosures at any precision: proofs that 0 is inside, or that it is not (balls.py)
    symbols   expressions: an identity holds when it simplifies to 0 (symbols.py)

An array of balls or symbols is a NumPy array of objects: np.sqrt calls each object's .sqrt().
"""

from theory.numbers.balls import Balls
from theory.numbers.floats import FLOATS, Floats
from theory.numbers.symbols import Symbols

EXACT = ("ball", "symbol")  # in which nothing is rounded, or every rounding is enclosed
NAMES = (*FLOATS, *EXACT)


def get(name, bits=1000):
    """Return the arithmetic called `name`, one of `NAMES`; `bits` is the precision of balls.

    Raises ValueError for another name or number of bits, and ImportError, with the command that
    mends it, where a package is missing.
    """
    if name in FLOATS:
        return Floats(name)
    if name == "ball":
        return Balls(bits)
    if name == "symbol":
        return Symbols()
    raise ValueError(f"arithmetic: got {name!r}, expected one of {', '.join(NAMES)}")
