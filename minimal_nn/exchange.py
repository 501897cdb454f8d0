"""Exchange of weights with PyTorch: `to_torch` makes a state_dict, `from_torch` reads one.

    layer       here                   in PyTorch
    Dense       W (D, K)               weight (K, D)
    Conv2d      W (kh, kw, C, K)       weight (K, C, kh, kw)
    WeightNorm  v, g (K,)              parametrizations.weight.original1, original0 (K, 1, ...)
    BatchNorm   gamma, beta, mean, var weight, bias, running_mean, running_var, num_batches_tracked
    others      gamma, beta            weight, bias

Flatten lays images out channel by channel in PyTorch and pixel by pixel here: the weights behind it
are put in order.  Settings (eps, momentum, stride, ...) are in no state_dict: they have to agree,
as have the layers.  What Dropout draws stays here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from minimal_nn import arguments
from minimal_nn.layers import (
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    GroupNorm,
    LayerNorm,
    Residual,
    RMSNorm,
    Sequential,
    WeightNorm,
)
from minimal_nn.network import Network
from minimal_nn.typing import Array

__all__ = ["from_torch", "to_torch"]


class _Entry(NamedTuple):
    """One array: its name here and in PyTorch, and how it is laid out there."""

    name: str
    torch_name: str
    there: Callable[[Array], Array]
    here: Callable[[Array], Array]


def to_torch(network: Network, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a network's numbers as a PyTorch state_dict, for `module.load_state_dict`.

    names: the module's path in PyTorch of each layer with parameters, {"conv1": "stem.conv",
    "residual1.shortcut.conv1": "layer1.0.downsample.0"}; without them the paths are positions, as
    in a torch.nn.Sequential of the same layers ("0", "1", ...), a Residual block's those in its
    attributes `layers` and `shortcut` ("3.layers.0"); "" is the module itself.  Raises TypeError
    for a layer of one's own or a dtype that PyTorch does not have, ValueError where names are
    missing, two different arrays would get one name, or the order of units cannot be PyTorch's.
    """
    try:
        import torch  # on first use: it is an extra, and slow to import
    except ModuleNotFoundError:
        raise ImportError(
            "to_torch: needs PyTorch, which is not installed; install it with: python -m pip "
            "install torch"
        ) from None
    _check(network, names)
    if np.dtype(network.dtype).char not in "efdFD":
        raise TypeError(
            f"network: got dtype {network.dtype}, which PyTorch does not have, expected one such "
            "as that of network.astype('float64')"
        )
    arrays = {**network.parameters, **network.state}
    found: dict[str, Any] = {}
    for entry in _entries(network, names):
        array = entry.there(network.backend.to_numpy(arrays[entry.name]))
        tensor = torch.tensor(np.ascontiguousarray(array))
        if entry.torch_name in found and not torch.equal(found[entry.torch_name], tensor):
            raise ValueError(
                f"names: got {entry.torch_name!r} for two arrays that differ, expected a path of "
                "its own for each layer"
            )
        found[entry.torch_name] = tensor
        if entry.torch_name.endswith("running_var"):
            stem = entry.torch_name.removesuffix("running_var")
            found[f"{stem}num_batches_tracked"] = torch.tensor(0)
    return found


def from_torch(
    network: Network, state_dict: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> Network:
    """Return the network with the numbers of a PyTorch state_dict; nothing in `network` changes.

    state_dict: tensors on the CPU, or arrays, of the network's dtype.  names: as for `to_torch`.
    Raises ValueError for names that are missing or left over and for shapes that do not fit,
    TypeError for another dtype.

    >>> from minimal_nn import Dense, ReLU
    >>> network = Network([Dense(2), ReLU(), Dense(1)], (3,), loss="mean_squared_error")
    >>> theirs = {"0.weight": np.ones((2, 3)), "0.bias": np.zeros(2)}
    >>> theirs |= {"2.weight": np.ones((1, 2)), "2.bias": np.zeros(1)}
    >>> from_torch(network.astype("float64"), theirs).forward(np.eye(3)[:1]).tolist()
    [[2.0]]
    """
    _check(network, names)
    entries = list(_entries(network, names))
    if not isinstance(state_dict, Mapping) or not all(isinstance(k, str) for k in state_dict):
        raise TypeError(
            f"state_dict: got {type(state_dict).__name__}, expected a dict of arrays by name: use "
            "module.state_dict()"
        )
    given = {k for k in state_dict if k.split(".")[-1] != "num_batches_tracked"}
    odd = sorted(given ^ {entry.torch_name for entry in entries})
    if odd:
        missing = [name for name in odd if name not in given]
        raise ValueError(
            f"state_dict: got {len(given)} arrays, with {', '.join(missing) or 'none'} missing and "
            f"{', '.join(n for n in odd if n in given) or 'none'} left over, expected those of "
            "these layers: give names={layer: path in PyTorch} where the paths are others"
        )
    new: tuple[dict, dict] = ({}, {})
    for entry in entries:
        what = f"state_dict[{entry.torch_name!r}]"
        array = np.asarray(arguments.array(what, state_dict[entry.torch_name]))
        own = network.parameters if entry.name in network.parameters else network.state
        expected = entry.there(np.empty(own[entry.name].shape)).shape
        arguments.check_replacement(what, array, expected, network.dtype)
        # A copy: PyTorch goes on changing its own numbers in place.
        new[own is network.state][entry.name] = np.array(entry.here(array), order="C")
    return network.with_parameters(*new)


def _check(network, names):
    if not isinstance(network, Network):
        raise TypeError(f"network: got {type(network).__name__}, expected a Network")
    if names is not None and (
        not isinstance(names, Mapping) or not all(isinstance(p, str) for p in names.values())
    ):
        raise TypeError(
            f"names: got {names!r}, expected a dict of paths in PyTorch by layer, such as "
            "{'dense1': 'fc1'}"
        )


def _entries(network: Network, names: Mapping[str, str] | None) -> Iterator[_Entry]:
    """Yield the entries of all layers, with their names in PyTorch."""
    found, pixels, shape = [], None, network.input_shape
    for position, (name, layer) in enumerate(network.named_layers()):
        each, pixels = _of(layer, name, str(position), shape, pixels)
        found += each
        shape = layer.output_shape(shape)
    if names is not None:
        stems = {stem for _, stem, _ in found}
        if unknown := sorted(names.keys() - stems) or sorted(stems - names.keys()):
            raise ValueError(
                f"names: got {', '.join(unknown)} unknown or missing, expected a path for each "
                f"layer with parameters: {', '.join(sorted(stems))}"
            )
    for path, stem, entry in found:
        path = path if names is None else names[stem]
        torch_name = f"{path}.{entry.torch_name}" if path else entry.torch_name
        yield entry._replace(name=f"{stem}.{entry.name}", torch_name=torch_name)


def _of(layer, name, path, shape, pixels):
    """Return (path in PyTorch, name, entry) of a layer's arrays, and `pixels` behind it.

    pixels: the image's shape, where the units of the input are its flattened pixels.
    """
    if not layer.built_in and not layer.composite:
        raise TypeError(
            f"{name}: got a layer of one's own ({type(layer).__name__}), whose counterpart in "
            "PyTorch is not known; expected built-in layers: convert its arrays by hand"
        )
    if isinstance(layer, Flatten):
        several = len(shape) == 3 and shape[0] * shape[1] > 1 and shape[2] > 1
        return [], tuple(shape) if several else pixels
    if isinstance(layer, (Sequential, Residual)):
        return _of_branches(layer, name, path, shape, pixels)
    entries = [(path, name, entry) for entry in _of_one(layer, name, pixels)]
    inner = layer.layer if isinstance(layer, WeightNorm) else layer
    return entries, None if isinstance(inner, (Dense, AveragePool2d)) else pixels


def _of_branches(layer, name, path, shape, pixels):
    found, ends = [], set()
    attributes = ("",) if isinstance(layer, Sequential) else ("layers.", "shortcut.")
    for attribute, branch in zip(attributes, layer.branches(), strict=True):
        here, order = shape, pixels
        for position, (part_name, part) in enumerate(branch):
            part_path = f"{path}.{attribute}{position}"
            each, order = _of(part, f"{name}.{part_name}", part_path, here, order)
            found += each
            here = part.output_shape(here)
        ends.add(order)
    if len(ends) > 1:
        raise ValueError(
            f"{name}: got branches whose units lie in different orders in PyTorch, where Flatten "
            "goes channel by channel; expected a Dense layer between Flatten and the block"
        )
    return found, ends.pop()


def _of_one(layer, name, pixels):
    """Yield the entries of a layer that holds no others, with local names."""
    units = _in_order(pixels) if pixels else (_same, _same)
    if isinstance(layer, GroupNorm) and pixels and layer.groups > 1:
        raise ValueError(
            f"{name}: got groups of flattened pixels, which are no neighbours in PyTorch, where "
            "Flatten goes channel by channel; expected GroupNorm before Flatten"
        )
    if isinstance(layer, WeightNorm):
        kernel = isinstance(layer.layer, Conv2d)
        ones = (1, 1, 1) if kernel else (1,)
        prefix = "parametrizations.weight.original"
        yield _Entry("g", f"{prefix}0", lambda g: g.reshape(-1, *ones), lambda g: g.reshape(-1))
        yield _Entry("v", f"{prefix}1", *(_KERNEL if kernel else _matrix(units)))
        layer = layer.layer
    elif isinstance(layer, Dense):
        yield _Entry("W", "weight", *_matrix(units))
    elif isinstance(layer, Conv2d):
        yield _Entry("W", "weight", *_KERNEL)
    elif isinstance(layer, (BatchNorm, LayerNorm, GroupNorm, RMSNorm)):
        yield _Entry("gamma", "weight", *units)
        if not isinstance(layer, RMSNorm):
            yield _Entry("beta", "bias", *units)
        if isinstance(layer, BatchNorm):
            yield _Entry("mean", "running_mean", *units)
            yield _Entry("var", "running_var", *units)
    if isinstance(layer, (Dense, Conv2d)) and layer.bias:
        yield _Entry("b", "bias", _same, _same)


def _same(array):
    return array


_KERNEL = (lambda W: W.transpose(3, 2, 0, 1)), (lambda W: W.transpose(2, 3, 1, 0))


def _in_order(pixels):
    """Return how units that are flattened pixels (first axis) go there, and back."""
    height, width, channels = pixels

    def there(a):
        images = a.reshape(height, width, channels, -1).transpose(2, 0, 1, 3)
        return images.reshape(a.shape)

    def here(a):
        images = a.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
        return images.reshape(a.shape)

    return there, here


def _matrix(units):
    """Return how a matrix (D, K), whose inputs lie as `units` says, goes there, and back."""
    there, here = units
    return (lambda W: there(W).T), (lambda W: here(np.ascontiguousarray(W.T)))
