"""Audit a PyTorch module: `theory.torch.audit(module, loss, X, y, optimizer)`.

Optional: needs the package torch (extra `torch`).
"""

import numpy as np

import minimal_nn as nn
from theory.yours.auditing import audit as audit_callable


def _torch():
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "theory.torch needs the package torch, which is not installed; install it with: pip "
            "install 'l2-versus-normalization[torch]'"
        ) from error
    return torch


def loss_and_gradients(module, loss, X, y):
    """Return the function {name: array} -> (loss, {name: gradient}) of a module on one batch.

    module: a torch.nn.Module, used as it is set (train or eval); its parameters and buffers are not
    changed.  loss: (outputs, y) -> a scalar tensor.  X, y: the batch, tensors.
    """
    torch = _torch()
    kinds = {name: tensor for name, tensor in module.named_parameters()}

    def function(parameters):
        tensors = {
            name: torch.tensor(np.asarray(array), dtype=kinds[name].dtype, requires_grad=True)
            for name, array in parameters.items()
        }
        buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}
        value = loss(torch.func.functional_call(module, {**buffers, **tensors}, (X,)), y)
        gradients = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
        return float(value.detach()), {
            name: np.zeros(tensor.shape, parameters[name].dtype) if g is None else g.numpy()
            for (name, tensor), g in zip(tensors.items(), gradients, strict=True)
        }

    return function


def optimizer_of(optimizer):
    """Return the minimal_nn optimizer with the hyper-parameters of a torch.optim one.

    SGD (with momentum and nesterov), Adam and AdamW; of several parameter groups the first counts.
    """
    torch = _torch()
    group = optimizer.param_groups[0]
    eta, decay = group["lr"], group["weight_decay"]
    if isinstance(optimizer, torch.optim.AdamW):
        beta1, beta2 = group["betas"]
        return nn.AdamW(
            eta, beta1=beta1, beta2=beta2, eps=group["eps"], decoupled_weight_decay=decay
        )
    if isinstance(optimizer, torch.optim.Adam):
        beta1, beta2 = group["betas"]
        return nn.Adam(eta, beta1=beta1, beta2=beta2, eps=group["eps"], weight_decay=decay)
    if isinstance(optimizer, torch.optim.SGD):
        if group["momentum"] == 0:
            return nn.SGD(eta, weight_decay=decay)
        kind = nn.Nesterov if group["nesterov"] else nn.Momentum
        return kind(eta, momentum=group["momentum"], weight_decay=decay)
    raise TypeError(
        f"optimizer: got {type(optimizer).__name__}, expected torch.optim.SGD, Adam or AdamW"
    )


def audit(module, loss, X, y, optimizer=None):
    """Return the Audit of a PyTorch module on one batch: see theory.yours.auditing.

    module, loss, X, y: as for `loss_and_gradients`.  optimizer: a torch.optim SGD, Adam or AdamW,
    or a minimal_nn optimizer.
    """
    torch = _torch()
    if isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer_of(optimizer)
    parameters = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
    function = loss_and_gradients(module, loss, X, y)
    return audit_callable(function, parameters, optimizer=optimizer, unit_axis=0)
