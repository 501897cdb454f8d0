"""Layers: what a network is made of.

A layer is an immutable description.  It draws initial parameters, calls its wing's operations
forward and backward, and knows what becomes of a rescaling that travels through it; arrays live in
the network (network.py), formulas in the wings (reference/, cpu/, cuda/).

base.py             the class Layer
linear.py           Dense, Conv2d, WeightNorm
normalization.py    BatchNorm, LayerNorm, RMSNorm
elementwise.py      ReLU, Tanh
images.py           MaxPool2d, Flatten

Local names: W, b (Dense, Conv2d), v, g, b (WeightNorm), gamma, beta with the running statistics
mean, var (BatchNorm), gamma, beta (LayerNorm), gamma (RMSNorm).
"""

from minimal_nn.layers.base import BUILT_IN, Layer
from minimal_nn.layers.elementwise import ReLU, Tanh, _Activation
from minimal_nn.layers.images import Flatten, MaxPool2d
from minimal_nn.layers.linear import CONVOLUTION_ALGORITHMS, Conv2d, Dense, WeightNorm
from minimal_nn.layers.normalization import BatchNorm, LayerNorm, RMSNorm

__all__ = [
    "BUILT_IN",
    "CONVOLUTION_ALGORITHMS",
    "BatchNorm",
    "Conv2d",
    "Dense",
    "Flatten",
    "Layer",
    "LayerNorm",
    "MaxPool2d",
    "RMSNorm",
    "ReLU",
    "Tanh",
    "WeightNorm",
    "_Activation",
]
