"""minimal_nn: a hand-written network, no autodiff; forward and backward passes that can be read.

network     Network: layers -> loss and gradients by explicit backward passes, invariance groups
layers      Dense, Conv2d, WeightNorm, BatchNorm, LayerNorm, RMSNorm, GroupNorm, ReLU, Tanh,
            Dropout, MaxPool2d, AveragePool2d, Flatten, Sequential, Residual
optimizers  SGD, Momentum, Nesterov, RMSprop, Adagrad, Adadelta, Adam, AdamW and the remedies;
            Lion, SGDP, AdamP, Muon
wrappers    Rotational, Hyperball: another optimizer's update, by which w is turned at a fixed norm
schedules   Cosine, Warmup, ...: hyper-parameters as functions of the step
training    fit: batches, history, progress bar, checkpoint and resume
stored      save, load, load_parameters: networks in files
exchange    to_torch, from_torch: weights as PyTorch's state_dicts
augmentation   flip_and_shift: training images mirrored and moved at random
gradcheck   derivatives checked by complex steps and finite differences
lab/        exercises: write a backward pass, and the fault is named
data        the digits that come with the package; readers for MNIST and CIFAR-10
reference/ cpu/ cuda/   the formulas, in three wings with the same modules
"""

from minimal_nn import moved, schedules
from minimal_nn.cpu.machine.threads import set_num_threads
from minimal_nn.layers import (
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GroupNorm,
    Layer,
    LayerNorm,
    MaxPool2d,
    ReLU,
    Residual,
    RMSNorm,
    Sequential,
    Tanh,
    WeightNorm,
)
from minimal_nn.network import Network
from minimal_nn.optimizers import (
    LARS,
    SGD,
    SGDP,
    Adadelta,
    Adagrad,
    Adam,
    AdamP,
    AdamW,
    Group,
    Lion,
    Momentum,
    Muon,
    Nesterov,
    NormalizedSGD,
    Optimizer,
    RMSprop,
    SignSGD,
)
from minimal_nn.schedules import Schedule
from minimal_nn.stored import load, load_parameters, save
from minimal_nn.training import History, fit
from minimal_nn.wrappers import Hyperball, Rotational

moved.install()

__version__ = "0.2.0"

__all__ = [
    "LARS",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamP",
    "AdamW",
    "AveragePool2d",
    "BatchNorm",
    "Conv2d",
    "Dense",
    "Dropout",
    "Flatten",
    "Group",
    "GroupNorm",
    "History",
    "Hyperball",
    "Layer",
    "LayerNorm",
    "Lion",
    "MaxPool2d",
    "Momentum",
    "Muon",
    "Nesterov",
    "Network",
    "NormalizedSGD",
    "Optimizer",
    "RMSNorm",
    "RMSprop",
    "ReLU",
    "Residual",
    "Rotational",
    "SGD",
    "SGDP",
    "Schedule",
    "Sequential",
    "SignSGD",
    "Tanh",
    "WeightNorm",
    "fit",
    "load",
    "load_parameters",
    "save",
    "schedules",
    "set_num_threads",
]
