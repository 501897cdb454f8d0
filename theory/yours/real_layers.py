r"""The claims on PyTorch's normalizing layers as they are, eps and all.

Real layers refuse eps = 0, under which weights would be scale-invariant to the last bit.  They need
not have it: L(a z; a^2 eps) = L(z; eps) holds exactly, and for a = 2^k bit by bit, with gradients
divided by a.  By Euler's rule <z, dL/dz> = -2 eps dL/deps then, which a backward pass that forgets
a path through the statistics breaks, though it rescales well.
"""

import copy
import functools
import math
import numbers
from typing import Any

import torch
from torch.nn.utils.parametrizations import _WeightNorm

from theory.yours.layer_verdict import (
    NARROW,
    POWERS,
    STEPS,
    WIDE,
    LayerVerdict,
    eps_name,
    shortened,
)


def layer_verdicts(module: torch.nn.Module, call: Any) -> tuple[LayerVerdict, ...]:
    """Return the LayerVerdict of each normalizing layer of a module.

    A layer normalizes if it has an eps (None, as RMSNorm's default, is one) and no layer in it
    does, or if its weight is parametrized by torch's weight_norm.  call: module -> anything, which
    runs it on a batch.
    """
    try:
        module = copy.deepcopy(module)
    except RuntimeError as error:
        raise ValueError(
            f"module: it cannot be copied ({error}), expected one that can: "
            "torch.nn.utils.parametrizations.weight_norm in place of torch.nn.utils.weight_norm, "
            "say"
        ) from None
    layers = normalizing_layers(module)
    inputs: dict[str, tuple] = {}
    handles = [
        part.register_forward_pre_hook(_keeper(inputs, name), with_kwargs=True)
        for name, part in layers.items()
    ]
    with torch.no_grad():
        call(module)
    for handle in handles:
        handle.remove()
    return tuple(_verdict(name, part, inputs.get(name)) for name, part in layers.items())


def normalizing_layers(module):
    """Return {name: layer} of the layers of a module that normalize."""
    return {
        name or type(part).__name__: part for name, part in module.named_modules() if _found(part)
    }


def _keeper(inputs, name):
    def keep(part, args, kwargs):
        given = (*args, *kwargs.values())
        copied = (x.detach().clone() if isinstance(x, torch.Tensor) else x for x in given)
        inputs.setdefault(name, tuple(copied))

    return keep


def _found(part):
    within = (inner for inner in part.modules() if inner is not part)
    return _weight_normed(part) or (eps_name(part) is not None and not any(map(_found, within)))


def _weight_normed(part):
    chain = getattr(getattr(part, "parametrizations", None), "weight", ())
    return any(isinstance(step, _WeightNorm) for step in chain)


def _refused(name, kind, reason):
    return LayerVerdict(name, kind, 0, 0, 0.0, 0.0, reason)


def _verdict(name, part, given):
    kind = "weight_norm" if _weight_normed(part) else type(part).__name__

    refused = functools.partial(_refused, name, kind)
    if given is None:
        return refused("the module did not run it")
    if len(given) != 1 or not isinstance(given[0], torch.Tensor):
        return refused(f"it is called with {len(given)} arguments, expected one tensor")
    if not part.training and getattr(part, "running_mean", None) is not None:
        return refused("it normalizes with running statistics: module.train()")
    # Half precision as float32, exactly: 2^k and 4^k eps would leave its range.
    half = given[0].dtype in (torch.float16, torch.bfloat16)
    z = given[0].float() if half else given[0]
    if kind == "weight_norm":
        v = part.parametrizations.weight.original1.detach()
        function, z, eps = _of_weights(part, z), v.float() if half else v, 0.0
    else:
        eps = getattr(part, eps_name(part))
        eps = torch.finfo(given[0].dtype).eps if eps is None else eps
        if not isinstance(eps, numbers.Real) or not 0 <= eps < math.inf:
            return refused(f"its eps is {shortened(eps)}, expected a finite number >= 0")
        function, eps = _of_inputs(part), float(eps)
    try:
        return _judged(name, kind, function, z, eps)
    except Exception as error:  # what a foreign layer raises for other numbers
        return refused(f"it does not run on a rescaled input: {type(error).__name__}: {error}")


def _of_inputs(part):
    """Return the function z, eps -> output of a layer with eps."""

    def function(z, eps):
        layer = copy.deepcopy(part).to(z.dtype)
        setattr(layer, eps_name(layer), eps)
        return layer(z.clone())  # which a layer may change in place

    return function


def _of_weights(part, x):
    """Return the function v, eps -> output of a layer with weight norm, which has no eps."""

    def function(v, eps):
        layer = copy.deepcopy(part).to(v.dtype)
        name = "parametrizations.weight.original1"
        return torch.func.functional_call(layer, {name: v}, (x.to(v.dtype),))

    return function


def _judged(name, kind, function, z, eps):
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        shape = function(z, eps).shape
        cotangent = torch.randn(shape, generator=generator, dtype=torch.float64)
        output, gradient = _both(function, z, eps, cotangent)
        if not (torch.isfinite(output).all() and torch.isfinite(gradient).all()):
            return _refused(name, kind, "its output or gradient is not finite on this input")
        if not (z.any() and gradient.any()):
            return _refused(name, kind, "its input or gradient is 0, which has no scale")
        differing = compared = 0
        for k in POWERS:
            other, turned = _both(function, z * 2.0**k, eps * 4.0**k, cotangent)
            differing += int((other != output).sum() + (turned * 2.0**k != gradient).sum())
            compared += output.numel() + gradient.numel()
        radial, bound = _radial(function, z, eps, cotangent)
    return LayerVerdict(name, kind, differing, compared, radial, bound)


def _both(function, z, eps, cotangent):
    z = z.detach().clone().requires_grad_(True)
    output = function(z, eps)
    (gradient,) = torch.autograd.grad((output * cotangent.to(output.dtype)).sum(), z)
    return output.detach(), gradient


def _radial(function, z, eps, cotangent):
    """Return how far <z, dz> is off its law, and what may be left, both in |z| |dz|.

    In float64, where an input that is off by 2^-40 is felt; else the layer goes through float32.
    """
    wide, signs = z.double(), torch.sign(cotangent.new_empty(z.shape).uniform_(-1, 1))
    try:
        felt = not torch.equal(function(wide * (1 + 2.0**-40 * signs), eps), function(wide, eps))
    except RuntimeError:  # of a layer that takes no float64
        felt = False
    u, z = (WIDE, wide) if felt else (NARROW, z.float())
    _, dz = _both(function, z, eps, cotangent)
    product, size = wide * dz, float(wide.norm() * dz.double().norm())
    left = 32 * u * (float(product.abs().sum()) + size * cotangent.numel() ** 0.5)
    near = far = 0.0
    if eps:
        h = STEPS[u]
        steps = (h, -h, 2 * h, -2 * h)
        losses = [(function(z, eps * (1 + s)) * cotangent).detach() for s in steps]
        near = float((losses[0] - losses[1]).sum()) / h
        far = float((losses[2] - losses[3]).sum()) / (2 * h)
        left += abs(far - near) + 32 * u * float(losses[0].abs().sum()) / h
    return abs(float(product.sum()) + near) / size, left / size
