"""The compiled training loop of a network: `plan`, which `minimal_nn.backend` asks for.

reasons.py  which networks and optimizers have one, and why others have none
loop.py     the loop: its arrays, its phases, running it
dense.py    the phases of layers on vectors
images.py   the phases of convolutional layers; graph.py says what comes of what
norms.py    normalizations of images
branches.py kernels for where the branches of a residual block meet
updates.py  the optimizer's step
layouts.py  how parameters and their optimizer state lie in memory during a run
gather.py   kernels that fetch a step's batch
"""

from minimal_nn.cpu.plan.loop import plan
from minimal_nn.cpu.plan.reasons import why_not

__all__ = ["plan", "why_not"]
