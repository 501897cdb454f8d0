"""What a claim says, drawn: the law, dashed, and runs or measurements on it.

Small runs of their own, ten seconds for all; a verdict rests on its measurement alone.
"""

import numpy as np

from theory.report.pictures import curvature, layers, steps, training, walks
from theory.report.pictures.drawn import PICTURES, Picture

__all__ = ["PICTURES", "Picture", "curvature", "layers", "picture", "steps", "training", "walks"]


def picture(claim):
    """Return the Picture of a claim, None where it has no law that a run could lie on."""
    draw = PICTURES.get(claim.id)
    if draw is None:
        return None
    with np.errstate(all="ignore"):
        svg = draw()
    return Picture(svg, " ".join(draw.__doc__.split()))
