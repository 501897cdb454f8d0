"""Which networks and optimizers have a compiled loop."""

import numpy as np

from minimal_nn.cpu import activation, update
from minimal_nn.cpu.plan.graph import NORMS

BRANCHES = ("fork", "shortcut", "sum")
DENSE = ("affine", "batchnorm", "layernorm", "rmsnorm", "activation", "flatten", *BRANCHES)
IMAGES = ("convolution", *NORMS, "activation", "pooling", "averagepooling", *BRANCHES)


def parts(operations):
    """Return the operations on images, up to a flatten, and those on vectors."""
    depth = 0  # of blocks within blocks
    for index, operation in enumerate(operations):
        depth += (operation.module == "fork") - (operation.module == "sum")
        if depth:
            continue
        if len(operation.output_shape) == 1:
            if len(operations[0].input_shape) == 3 and index > 0:
                return operations[: index + 1], operations[index + 1 :]
            return (), operations
    return operations, ()


def is_part_of(name, layers):
    """Return whether a layer, or a parameter, given by its path is one of `layers` or in one."""
    return name.split(".")[0] in layers


def why_not(program, optimizer, **options):
    """Return why a network and an optimizer have no compiled loop, as a sentence; None if they do.

    program: a network's `Program`; optimizer: an `Optimizer`; options: as `plan` takes them.

    >>> from minimal_nn import SGD, Dense, Dropout, Network
    >>> why_not(Network([Dropout(0.5), Dense(2)], (8,)).program(), SGD())
    'dropout1: there are no kernels for dropout on vectors in a loop'
    >>> why_not(Network([Dense(2)], (8,)).program(), SGD()) is None
    True
    """
    if np.dtype(program.dtype) not in (np.float32, np.float64):
        return f"loops are compiled for float32 and float64, not {np.dtype(program.dtype)}"
    if optimizer.formula not in {*update.KERNELS, *update.NORMALIZED}:
        return f"there is no kernel for the optimizer's formula {optimizer.formula!r}"
    on_images, dense = parts(program.operations)
    for operations, reason in ((on_images, _not_on_images), (dense, _not_dense)):
        for index, operation in enumerate(operations):
            found = reason(operations, index)
            if found:
                return f"{operation.layer}: {found}"
    if on_images and on_images[-1].module != "flatten":
        return f"{on_images[-1].layer}: loops are compiled for outputs that are vectors"
    if not any(op.parameters for op in program.operations):
        return "there is nothing to train"
    return None


def _not_dense(operations, index):
    operation = operations[index]
    if operation.module not in DENSE:
        return f"there are no kernels for {operation.module} on vectors in a loop"
    if len(operation.output_shape) != 1:
        return f"loops are compiled for vectors, not outputs of shape {operation.output_shape}"
    return _no_activation(operation)


def _no_activation(operation):
    kind = operation.options.get("kind")
    if operation.module == "activation" and kind not in activation.KINDS:
        return f"there is no kernel for the activation {kind!r}"
    return None


def _not_on_images(operations, index):
    operation, options = operations[index], operations[index].options
    if operation.module == "flatten" and index == len(operations) - 1:
        return None
    if operation.module == "averagepooling" and options["size"] is None:
        return "loops are compiled for global average pooling of square images"
    if len(operation.output_shape) != 3:
        return "loops are compiled for blocks whose branches are images to their ends"
    if operation.module not in IMAGES:
        return f"there are no kernels for {operation.module} on images in a loop"
    if index == 0 and operation.module != "convolution":
        return "loops on images begin with a convolution"
    if operation.module != "convolution":
        return _no_activation(operation)
    if options["algorithm"] != "direct" and options["padding"] != 1:
        return "loops are compiled for Winograd's method with padding 1"
    if "weightnorm_eps" in options:
        return "loops are not compiled for weight norm of a convolution"
    return None
