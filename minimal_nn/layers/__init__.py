"""Layers: what a network is made of.

A layer is an immutable description.  It draws initial parameters, calls its wing's operations
forward and backward, and knows what becomes of a rescaling that travels through it; arrays live in
the network (network.py), formulas in the wings (reference/, cpu/, cuda/).

base.py             the class Layer
linear.py           Dense, Conv2d, WeightNorm
normalization.py    BatchNorm, LayerNorm, RMSNorm, GroupNorm
elementwise.py      ReLU, Tanh, Dropout
images.py           MaxPool2d, AveragePool2d, Flatten
composites.py       Sequential, Residual

Local names: W, b (Dense, Conv2d), v, g, b (WeightNorm), gamma, beta with the running statistics
mean, var (BatchNorm), gamma, beta (LayerNorm, GroupNorm), gamma (RMSNorm), the state seed
and step (Dropout).
"""

from minimal_nn.layers.base import BUILT_IN, Layer
from minimal_nn.layers.composites import Residual, Sequential
from minimal_nn.layers.elementwise import Dropout, ReLU, Tanh, _Activation
from minimal_nn.layers.images import AveragePool2d, Flatten, MaxPool2d
from minimal_nn.layers.linear import CONVOLUTION_ALGORITHMS, Conv2d, Dense, WeightNorm
from minimal_nn.layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm

__all__ = [
    "BUILT_IN",
    "CONVOLUTION_ALGORITHMS",
    "AveragePool2d",
    "BatchNorm",
    "Conv2d",
    "Dense",
    "Dropout",
    "Flatten",
    "GroupNorm",
    "Layer",
    "LayerNorm",
    "MaxPool2d",
    "RMSNorm",
    "ReLU",
    "Residual",
    "Sequential",
    "Tanh",
    "WeightNorm",
    "_Activation",
]
