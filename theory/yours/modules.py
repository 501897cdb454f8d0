"""PyTorch modules and optimizers as the audit takes them: a function of arrays, a rule each."""

import contextlib

import numpy as np
import torch

import minimal_nn as nn
from theory.yours.rates import Rule


@contextlib.contextmanager
def one_thread():
    """Compute on one thread: small tensors' threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def arrays_of(module):
    """Return {name: array} of a module's parameters; half precision as float32, exactly."""
    arrays = {}
    for name, tensor in module.named_parameters():
        if isinstance(tensor, torch.nn.parameter.UninitializedParameter):
            raise ValueError(
                f"module: {name!r} has no shape yet, expected numbers: run the lazy module on a "
                "batch first"
            )
        if tensor.is_meta:
            raise ValueError(
                f"module: {name!r} is on the device meta, expected numbers: module.to_empty(...) "
                "and an initialization give it some"
            )
        tensor = tensor.detach().cpu()
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor = tensor.float()
        arrays[name] = tensor.numpy().copy()
    if not arrays:
        raise ValueError("module: got no parameters, expected some")
    return arrays


def loss_and_gradients(module, loss, X, y):
    """Return the function {name: array} -> (loss, {name: gradient}) of a module on one batch.

    module: a torch.nn.Module, used as it is set (train or eval); its parameters and buffers are not
    changed.  loss: (outputs, y) -> a scalar tensor.  X: the batch, a tensor, a tuple of inputs or a
    dict of named ones.  y: what the loss takes.  Floats of buffers, X and y follow the arrays'
    dtype.  Chance inside (dropout) is drawn from the same seed at every call.
    """
    kinds = dict(module.named_parameters())

    def function(parameters):
        tensors = {
            name: torch.tensor(np.asarray(array), device=kinds[name].device, requires_grad=True)
            for name, array in parameters.items()
        }
        widened = {n: t.dtype for n, t in tensors.items() if t.dtype != kinds[n].dtype}
        dtype = next(iter(widened.values()), None)
        buffers = {n: _cast(t.clone(), dtype) for n, t in module.named_buffers()}
        inputs, targets = _cast(X, dtype), _cast(y, dtype)
        args = (
            inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        )
        kwargs = inputs if isinstance(inputs, dict) else {}
        devices = {t.device for t in tensors.values() if t.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
            torch.manual_seed(0)
            outputs = torch.func.functional_call(module, {**buffers, **tensors}, args, kwargs)
            value = _scalar(loss(outputs, targets))
        gradients = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
        return float(value.detach()), {
            name: np.zeros(tensor.shape, parameters[name].dtype) if g is None else g.cpu().numpy()
            for (name, tensor), g in zip(tensors.items(), gradients, strict=True)
        }

    return function


def _scalar(value):
    """Return a loss; refuse what is no scalar tensor, or has no gradient."""
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(f"loss: got {got}, expected a scalar tensor, such as a mean over examples")
    if not value.requires_grad:
        raise ValueError(
            "loss: got a number that depends on no parameter, expected one with a gradient: is "
            "there a detach(), item() or no_grad() on the way to it?"
        )
    return value


def called(module, X):
    """Return what a module gives for X: a tensor, a tuple of inputs or a dict of named ones."""
    if isinstance(X, dict):
        return module(**X)
    return module(*X) if isinstance(X, tuple) else module(X)


def _cast(value, dtype):
    """Return tensors of floats in another dtype, also in tuples, lists, dicts; None: as it is."""
    if dtype is None:
        return value
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def mode_of(module):
    """Return what is to be known of the mode that a module is in."""
    frozen = [
        name or type(part).__name__
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.modules.batchnorm._NormBase)
        and not part.training
        and part.track_running_stats
    ]
    if not frozen:
        return ()
    one = "normalizes" if len(frozen) == 1 else "normalize"
    return (
        f"in evaluation mode {', '.join(frozen)} {one} with running statistics, under which no "
        "weight is invariant: module.train() asks about training",
    )


_REFUSED = "expected torch.optim.SGD, Adam or AdamW"


def rules_of(optimizer, module):
    """Return {name: Rule} for the parameters that a torch.optim optimizer trains.

    A parameter that it does not hold, or whose requires_grad is off, is frozen and left out.
    Raises TypeError for an optimizer other than SGD, Adam and AdamW, and ValueError for one that
    holds none of the parameters.
    """
    rules = {}
    held = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    if not any(id(tensor) in held for tensor in module.parameters()):
        raise ValueError(
            f"optimizer: got {type(optimizer).__name__} with {len(held)} parameters, none of which "
            "is the module's, expected one of module.parameters(): a copy of a module (deepcopy, "
            "pickle) has parameters of its own"
        )
    for name, tensor in module.named_parameters():
        group = held.get(id(tensor))
        if group is not None and tensor.requires_grad:
            rules[name] = rule_of(optimizer, group)
    return rules


def rule_of(optimizer, group):
    """Return the Rule of one parameter group: every option is used, or said to have no law.

    maximize turns the sign of the gradient alone; foreach, fused, capturable and differentiable are
    ways to compute the same.
    """
    eta, decay = float(group["lr"]), float(group["weight_decay"])
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        decoupled = group.get("decoupled_weight_decay", type(optimizer) is torch.optim.AdamW)
        return Rule(
            "AdamW" if decoupled else "Adam",
            eta,
            decay,
            memory=float(group["betas"][0]),
            without="no law for amsgrad" if group["amsgrad"] else "",
            eps=float(group["eps"]),
        )
    if type(optimizer) is torch.optim.SGD:
        if group["momentum"] == 0:
            return Rule("SGD", eta, decay)
        kind = "Nesterov" if group["nesterov"] else "Momentum"
        return Rule(kind, eta, decay, float(group["momentum"]), float(group["dampening"]))
    raise TypeError(f"optimizer: got {type(optimizer).__name__}, {_REFUSED}")


def optimizer_of(optimizer):
    """Return the minimal_nn optimizer with the hyper-parameters of a torch.optim one.

    SGD (with momentum and nesterov), Adam and AdamW, of one parameter group.  Raises ValueError for
    several groups and for options that minimal_nn does not have.
    """
    if len(optimizer.param_groups) > 1:
        raise ValueError(
            f"optimizer: got {len(optimizer.param_groups)} parameter groups, expected one: "
            "theory.torch.audit takes each parameter's own"
        )
    (group,) = optimizer.param_groups
    rule = rule_of(optimizer, group)
    refused = [n for n in ("amsgrad", "maximize", "dampening") if group.get(n)]
    if refused:
        raise ValueError(
            f"optimizer: got {refused[0]}={group[refused[0]]!r}, which minimal_nn's "
            f"{rule.optimizer} does not have, expected it off"
        )
    kind, eta, decay = getattr(nn, rule.optimizer), rule.learning_rate, rule.decay
    if rule.optimizer == "SGD":
        return kind(eta, weight_decay=decay)
    if rule.optimizer in ("Momentum", "Nesterov"):
        return kind(eta, momentum=rule.memory, weight_decay=decay)
    beta1, beta2 = group["betas"]
    name = "decoupled_weight_decay" if rule.optimizer == "AdamW" else "weight_decay"
    return kind(eta, beta1=beta1, beta2=beta2, eps=group["eps"], **{name: decay})
