"""The claims on PyTorch's modules and optimizers.

    audit(module, loss, X, y, optimizer)    which parameters are scale-invariant, and what follows
    verify(module, loss, X, y)              the claims on its normalizing layers, bit for bit
    problem_of(module, loss, X, y)          the module as what theory.check_optimizer runs on
    NormMonitor(module, optimizer, audit)   norms, rates and angles while it trains

Optional: needs the package torch (extra `torch`).
"""

from collections.abc import Callable
from typing import Any

try:
    import torch
except ImportError as error:
    raise ImportError(
        "theory.torch needs the package torch, which is not installed; install it with: pip "
        "install torch"
    ) from error

from minimal_nn.optimizers import SGD, Optimizer
from theory.yours import rates
from theory.yours.auditing import Audit, audit_model
from theory.yours.evaluation import Model
from theory.yours.layer_verdict import EPS_NAMES, LayerVerdict
from theory.yours.modules import (
    arrays_of,
    called,
    loss_and_gradients,
    mode_of,
    one_thread,
    optimizer_of,
    rules_of,
)
from theory.yours.optimizers.modules import module_problem
from theory.yours.optimizers.problems import Problem
from theory.yours.real_layers import layer_verdicts
from theory.yours.torch_monitor import NormMonitor

__all__ = [
    "LayerVerdict",
    "NormMonitor",
    "audit",
    "loss_and_gradients",
    "optimizer_of",
    "problem_of",
    "verify",
]


def audit(
    module: torch.nn.Module, loss: Callable[..., Any], X: Any, y: Any, optimizer: Any = None
) -> Audit:
    """Return the Audit of a PyTorch module on one batch: see theory.audit.

    module: a torch.nn.Module in the mode that is meant (train or eval), on any device; it is
    evaluated in float64 where its parts allow it, else in float32, and not changed.  loss:
    (outputs, y) -> a scalar tensor.  X: a tensor, a tuple of inputs or a dict of named ones.  y:
    what the loss takes.  optimizer: a torch.optim SGD, Adam or AdamW, of which each parameter's own
    group counts, or a minimal_nn optimizer; SGD(0.1) by default.

    Raises TypeError and ValueError for what it cannot treat.

    >>> module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    >>> X, y = torch.randn(16, 3), torch.randn(16, 4)
    >>> [row.invariant for row in audit(module, torch.nn.functional.mse_loss, X, y).rows]
    ['per unit', 'cancelled', 'no', 'no']
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.Module")
    with one_thread():
        model = Model(loss_and_gradients(module, loss, X, y), arrays_of(module))
        if isinstance(optimizer, torch.optim.Optimizer):
            rules, text = rules_of(optimizer, module), _text(optimizer)
        else:
            optimizer = SGD(0.1) if optimizer is None else optimizer
            if not isinstance(optimizer, Optimizer):
                raise TypeError(
                    f"optimizer: got {type(optimizer).__name__}, expected torch.optim.SGD, Adam or "
                    "AdamW, or an optimizer of minimal_nn"
                )
            rules, text = rates.rules_of(optimizer, model.parameters), repr(optimizer)
            frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
            rules = {name: rule for name, rule in rules.items() if name not in frozen}
        return audit_model(model, rules, text, 0, mode_of(module))


def verify(
    module: torch.nn.Module, loss: Callable[..., Any], X: Any, y: Any
) -> tuple[LayerVerdict, ...]:
    r"""Return the LayerVerdict of each normalizing layer of a PyTorch module, true where it holds.

    y(2^k z; 4^k eps) = y(z; eps) bit for bit, dz 2^k times the same, and <z, dz> = -2 eps dL/deps:
    of batch, layer, group, instance and RMS norm, of weight norm (whose v has no eps), and of
    layers of your own with a number `eps`, `epsilon` or `variance_epsilon`.  Each is asked on the
    input that it has in the module, with a random cotangent; what goes through float32 is judged as
    float32.

    module: in the mode that is meant; it is not changed.  loss: (outputs, y) -> a scalar.  X, y: as
    for audit.  Raises TypeError and ValueError for what has no normalizing layer.  Source: the
    claim eps-rescaling.

    >>> module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    >>> X, y = torch.randn(16, 3), torch.randn(16, 4)
    >>> [bool(verdict) for verdict in verify(module, torch.nn.functional.mse_loss, X, y)]
    [True]
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.Module")
    with one_thread():
        found = layer_verdicts(module, lambda copied: loss(called(copied, X), y))
    if not found:
        raise ValueError(
            f"module: got {type(module).__name__} without a normalizing layer, expected one with a "
            f"number {', '.join(EPS_NAMES)}, or with weight_norm"
        )
    return found


def problem_of(module: torch.nn.Module, loss: Callable[..., Any], X: Any, y: Any) -> Problem:
    """Return a PyTorch module on one batch as the Problem that theory.check_optimizer runs on.

    Its scale-invariant parameters are found bit by bit, alone or as one layer's pair (W, b): the
    loss stays at 2^k times them, with the eps of the layer that normalizes them times 4^k.  Only
    they, and that eps, are rescaled; all other parameters keep their hyper-parameters.

    module: in the mode that is meant, as a copy in float64; it is not changed.  loss, X, y: as for
    audit.  Raises TypeError for what is no module, ValueError where nothing is scale-invariant.

    >>> module = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.BatchNorm1d(4))
    >>> X, y = torch.randn(16, 3), torch.randn(16, 4)
    >>> problem_of(module, torch.nn.functional.mse_loss, X, y).absorbed
    {'0.weight': '1'}
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.Module")
    with one_thread():
        return module_problem(module, loss, X, y)


def _text(optimizer):
    """Return an optimizer's groups in a line each."""
    name = type(optimizer).__name__
    left_out = ("params", "foreach", "fused", "capturable", "differentiable")
    lines = []
    for group in optimizer.param_groups:
        options = {k: v for k, v in group.items() if k not in left_out and v not in (None, False)}
        options = ", ".join(f"{key}={value}" for key, value in options.items())
        lines.append(f"{name}({options}): {len(group['params'])} parameters")
    return "\n".join(lines)
