r"""<w, grad L> of an invariance group, what eps leaves of it, and what rounding may leave of it."""

from typing import NamedTuple

import numpy as np

from minimal_nn import backend
from minimal_nn.layers.base import local
from minimal_nn.network import LayerTrace
from theory.measures.closest import Closest
from theory.measures.groups import group_sum
from theory.measures.measurement import Refused
from theory.numbers.bounded import Bounded, gamma, unit_roundoff


def _in_a_row(prefix, sequence):
    """Yield (full name, layer) of a sequence, with the parts of what is a sequence itself."""
    for name, layer in sequence:
        branches = layer.branches()
        if layer.composite and len(branches) == 1:
            yield from _in_a_row(f"{prefix}{name}.", branches[0])
        else:
            yield f"{prefix}{name}", layer


def _sequences(prefix, sequence):
    """Yield a sequence of layers, (full name, layer) pairs, and those of the branches in them."""
    row = list(_in_a_row(prefix, sequence))
    yield row
    for name, layer in row:
        for branch in layer.branches():
            yield from _sequences(f"{name}.", branch)


def between(network, group):
    """Return the (name, layer) pairs from a group's source to the layer that absorbs it.

    That is a normalization, or a layer each of whose branches has one (group.by).
    """
    source = group.parameters[0].rpartition(".")[0]
    for row in _sequences("", network.named_layers()):
        names = [name for name, _ in row]
        if {source, group.absorbed_by} <= set(names):
            return row[names.index(source) : names.index(group.absorbed_by) + 1]
    raise Refused(
        f"{source} and the normalization in {group.absorbed_by} that absorbs its scale do not "
        "stand in one sequence of layers, which a pass that carries bounds could follow"
    )


def _to_absorbing(name, branch, group):
    """Return the layers of a branch of the layer `name` up to the one that absorbs a group."""
    row = list(_in_a_row(f"{name}.", branch))
    ends = [
        any(leaf == full or leaf.startswith(f"{full}.") for leaf in group.by) for full, _ in row
    ]
    return row[: ends.index(True) + 1]


def layer_traces(network, trace):
    """Return a trace's layers by name, and those of the layers within them, by path."""
    found = dict(trace.layers)

    def within(name, layer):
        for branch in layer.branches():
            x, dy, passed = found[name].x, found[name].dy, []
            for part_name, part in branch:
                full = f"{name}.{part_name}"
                own = local(network.parameters, full), local(network.state, full)
                y, cache, _ = part.forward(network.backend, *own, x, True)
                passed.append((full, part, x, y, cache))
                x = y
            for full, part, x, y, cache in reversed(passed):
                dx, _ = part.backward(network.backend, dy, cache)
                found[full] = LayerTrace(full, x, y, dx, dy)
                dy = dx
                within(full, part)

    for name, layer in network.named_layers():
        within(name, layer)
    return found


def _leaking(name, layer, x, y, own):
    """Return y - beta of an absorbing layer, and v, beside which its eps stands."""
    if not hasattr(layer, "beside_eps"):
        raise Refused(
            f"{name} has an eps and no method beside_eps(x, parameters) that returns what it is "
            "added to, by which its leak is measured"
        )
    shifts = [own[source.shift] for source in layer.sources() if source.shift in own]
    for shift in shifts:
        y = y - shift
    return y, layer.beside_eps(x, own)


class _Absorbed(NamedTuple):
    """What a pass to the absorbing layers and back gives, all with their rounding errors.

    cotangent: at the first layer's input.  gradients: of the first layer, given the dz at the
    absorbing layers' inputs.  through: arrays that add up to the part of the residual's bound that
    the errors of z and dz cause.  leaks: (dy, y - beta, v, eps) of each absorbing layer with an eps
    > 0, v the variance or squared norm that it stands beside.
    """

    cotangent: Bounded
    gradients: dict
    through: list
    leaks: list


def _bounded_group_pass(network, group, trace):
    """Run the layers from the group's to the absorbing ones on `Bounded` numbers, and back."""
    path, traces = between(network, group), layer_traces(network, trace)
    x = Bounded(network.backend.to_numpy(traces[path[0][0]].x))
    return _to_and_back(network, group, traces, path, x)


def _own(network, name):
    """Return a layer's parameters as `Bounded` arrays, and its state."""
    parameters, state = (
        {key: network.backend.to_numpy(array) for key, array in local(arrays, name).items()}
        for arrays in (network.parameters, network.state)
    )
    return {key: Bounded(array) for key, array in parameters.items()}, state


def _to_and_back(network, group, traces, path, x, previous=None):
    """Return the `_Absorbed` of a path with the input x; previous: the layer before it."""
    *before, (end, absorbing) = path
    wing, caches = backend.get("reference"), []
    for name, layer in before:
        x, cache, _ = layer.forward(wing, *_own(network, name), x, True)
        caches.append((layer, cache))
        previous = name
    if absorbing.composite:
        each = [
            _to_and_back(network, group, traces, _to_absorbing(end, branch, group), x, previous)
            for branch in absorbing.branches()
        ]
        cotangent, gradients = sum((a.cotangent for a in each[1:]), each[0].cotangent), {}
        through, leaks = (sum((a[field] for a in each), []) for field in (2, 3))
    else:
        cotangent, gradients, through, leaks = _at_the_end(
            network, group, traces, (end, absorbing), x, previous
        )
    for layer, cache in reversed(caches):
        cotangent, gradients = layer.backward(wing, cotangent, cache)
    return _Absorbed(cotangent, gradients, through, leaks)


def _at_the_end(network, group, traces, named, x, previous):
    """Return the `_Absorbed` of one normalization, which is the group's own without a previous."""
    (name, layer), (own, state) = named, _own(network, named[0])
    wing, dy = backend.get("reference"), Bounded(network.backend.to_numpy(traces[named[0]].dy))
    # The identity holds for the computed z: its error meets dz in <w, grad L> alone.
    z = x if previous is None else Bounded(x.value)
    y, cache, _ = layer.forward(wing, own, state, z, True)
    eps = layer.eps if group.by else group.eps
    leaks = [(dy, *_leaking(name, layer, z, y, own), eps)] if eps > 0 else []
    # Likewise the error of dz, the cotangent of z, meets z alone, and is not sent on through |W|.
    cotangent, gradients = layer.backward(wing, dy, cache)
    if previous is None:
        return _Absorbed(cotangent, gradients, [], leaks)
    size, bias = np.abs(z.value) + x.error, f"{previous}.b"
    if bias in network.parameters and bias not in group.parameters:  # it is not rescaled with z
        size = size + np.abs(network.backend.to_numpy(network.parameters[bias]))
    through = size * cotangent.error + x.error * np.abs(cotangent.value)
    return _Absorbed(Bounded(cotangent.value), {}, [through], leaks)


def _per_unit_sum(array, per_unit, units):
    """Sum an array over everything, or for each unit (a flattened channel's lie `units` apart)."""
    if not getattr(array, "ndim", 0):
        return array
    return array.reshape(-1, units).sum(axis=0) if per_unit else array.reshape(-1).sum()


def orthogonality(network, group, X, targets, trace=None):
    """Return residual, leak, size and bound of <w, grad L> for a group, each (groups,) float64.

    residual: <w, grad L> for each unit, or one number for the group as a whole, from the network's
    own gradients, summed in longdouble.  leak: what eps > 0 must leave, the sum over what the
    absorbing layers normalize of eps / (v + eps) <dy, y - beta>.  size: |w| |grad L|.  bound: the
    running error bound (bounded.py) on residual - leak.
    """
    trace = network.trace(X, targets) if trace is None else trace
    weights = [network.backend.to_numpy(network.parameters[name]) for name in group.parameters]
    grads = [network.backend.to_numpy(trace.gradients[name]) for name in group.parameters]
    wide = np.longdouble
    products = [w.astype(wide) * g for w, g in zip(weights, grads, strict=True)]
    residual = group_sum(products, group.per_unit)
    size = np.sqrt(
        group_sum([w.astype(wide) ** 2 for w in weights], group.per_unit)
        * group_sum([g.astype(wide) ** 2 for g in grads], group.per_unit)
    )
    found = _bounded_group_pass(network, group, trace)
    errors = [found.gradients[name.rpartition(".")[2]].error for name in group.parameters]
    bound = group_sum([np.abs(w) * e for w, e in zip(weights, errors, strict=True)], group.per_unit)
    # The sum itself is in longdouble, which counts when the network is too.
    terms = sum(w.size for w in weights) // residual.size + 1
    products = [np.abs(w.astype(wide) * g) for w, g in zip(weights, grads, strict=True)]
    bound = bound + gamma(terms, unit_roundoff(wide)) * group_sum(products, group.per_unit)
    for through in found.through:
        bound = bound + _per_unit_sum(through, group.per_unit, residual.size)
    leak = np.zeros_like(residual)
    for dy, y, v, eps in found.leaks:
        share = Bounded(v.value.astype(wide), v.error)
        share = eps / (share + eps)
        product = Bounded(dy.value.astype(wide)) * Bounded(y.value.astype(wide), y.error) * share
        law = _per_unit_sum(product, group.per_unit, residual.size)
        leak, bound = leak + np.atleast_1d(law.value), bound + np.atleast_1d(law.error)
    return tuple(a.astype(np.float64) for a in (residual, leak, size, bound))


def worst_orthogonality(network, X, targets):
    """Return the Closest of |residual - leak| to its bound, and that of |residual|.

    Each is relative to |w| |grad L|.
    """
    trace = network.trace(X, targets)
    closest, leaking = Closest(), Closest()
    for group in network.invariance_groups():
        residual, leak, size, bound = orthogonality(network, group, X, targets, trace)
        # A gradient that is rounding alone has any angle: no bound of 1 can be exceeded.
        alive = (size > 0) & (bound < size)
        if not alive.any():
            continue
        relative = bound[alive] / size[alive]
        closest.offer(np.abs(residual - leak)[alive] / size[alive], relative)
        leaking.offer(np.abs(residual[alive]) / size[alive], relative)
    return closest, leaking


# The same in balls and symbols, where nothing is left by rounding


def product_of(network, group, gradients):
    """Return <w, grad L> of a group, one for each unit or one for all."""
    terms = [network.parameters[name] * gradients[name] for name in group.parameters]
    return group_sum(terms, group.per_unit)


def leak_of(network, group, trace):
    """Return what eps leaves of <w, grad L>: the sum of eps/(v + eps) dy (y - beta)."""
    name, absorbing = between(network, group)[-1]
    layer, own = layer_traces(network, trace)[name], local(network.parameters, name)
    y, v = _leaking(name, absorbing, layer.x, layer.y, own)
    return group_sum([group.eps / (v + group.eps) * layer.dy * y], group.per_unit)
