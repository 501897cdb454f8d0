"""What is true of a normalizing layer of another library, eps and all."""

import html
from typing import NamedTuple

POWERS = (-3, 1, 4, 10)  # of two, by which inputs are scaled
EPS_NAMES = ("eps", "epsilon", "variance_epsilon")  # as PyTorch, Flax and Transformers call it
# The rounding of layers that compute in float64, and of those that go through float32, with the
# step in eps, relative, of their difference quotient.
WIDE, NARROW = 2.0**-53, 2.0**-24
STEPS = {WIDE: 2.0**-10, NARROW: 2.0**-3}


def eps_name(layer):
    """Return how a layer calls its eps, None where it has none."""
    return next((name for name in EPS_NAMES if hasattr(layer, name)), None)


def shortened(value):
    """Return how a value prints, in a line: of an array its shape."""
    shape = getattr(value, "shape", ())
    if shape:
        return f"an array of shape {tuple(shape)}"
    return " ".join(f"{value!r}".split())[:60]


class LayerVerdict(NamedTuple):
    """What is true of one normalizing layer, on the inputs that it has in its network.

    layer: its name.  kind: its class.  differing: how many numbers of the output and of the
    gradient differ from the rescaled ones, over all powers of two, of `compared`.  radial: |<z,
    dz> + 2 eps dL/deps| / (|z| |dz|), and `bound` what rounding and the difference quotient may
    leave of it.  refused: why nothing can be told, "" if something can.  True if all holds.
    """

    layer: str
    kind: str
    differing: int
    compared: int
    radial: float
    bound: float
    refused: str = ""

    def __bool__(self):
        return not self.refused and self.differing == 0 and self.radial <= self.bound

    def __repr__(self):
        return f"<{self}>"

    def _repr_html_(self):
        return f"<code>{html.escape(str(self))}</code>"

    def __str__(self):
        if self.refused:
            return f"{self.layer} ({self.kind}): refused: {self.refused}"
        word = "holds" if self else "FAILS"
        return (
            f"{self.layer} ({self.kind}): {word}: under rescaling {self.differing} of "
            f"{self.compared} numbers differ; <z, dz> is off its law by {self.radial:.2g}, bound "
            f"{self.bound:.2g}"
        )
