"""What the pictures share: their registry, the network that they are about, a range of factors."""

from typing import NamedTuple

import numpy as np

from theory.subjects.networks import matrices, network_subject

PICTURES = {}
FACTORS = np.geomspace(1 / 30, 30, 25)  # of w


class Picture(NamedTuple):
    """An SVG, and what it shows."""

    svg: str
    caption: str


def of(id):
    """Register the decorated function for a claim: it returns SVG, its docstring is the caption."""

    def register(draw):
        PICTURES[id] = draw
        return draw

    return register


def built_in():
    """Return the built-in subject with batch norm."""
    return network_subject("batch", "float64")


def loss_of(network, subject):
    """Return a network's loss on a subject's batch."""
    return float(network.loss_and_gradients(subject.X, subject.targets).loss)


def first_unit(network, arrays):
    """Return the first unit of the first invariant matrix, of parameters or gradients."""
    return np.asarray(arrays[matrices(network)[0]])[:, 0]
