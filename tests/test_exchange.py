"""Exchange with PyTorch: the same functions and gradients, both ways."""

import sys

import numpy as np
import pytest
from agreement import assert_same_bits

from minimal_nn import (
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GroupNorm,
    LayerNorm,
    MaxPool2d,
    Network,
    ReLU,
    Residual,
    RMSNorm,
    Sequential,
    Tanh,
    WeightNorm,
)
from minimal_nn.exchange import from_torch, to_torch

torch = pytest.importorskip("torch", reason="PyTorch is what is exchanged with")


def module_of(network):
    """Return a torch.nn.Sequential of the same layers, with numbers of its own."""
    return _sequence(network.layers, network.input_shape)


def _sequence(layers, shape):
    found = []
    for layer in layers:
        found.append(_module(layer, tuple(shape)))
        shape = layer.output_shape(shape)
    return torch.nn.Sequential(*found)


class Block(torch.nn.Module):
    """A residual block as it is usually written."""

    def __init__(self, layer, shape):
        super().__init__()
        self.layers = _sequence(layer.layers, shape)
        self.shortcut = _sequence(layer.shortcut, shape)

    def forward(self, x):
        return self.layers(x) + self.shortcut(x)


def _module(layer, shape):
    nn, units = torch.nn, shape[-1]
    images = len(shape) == 3
    if isinstance(layer, WeightNorm):
        return nn.utils.parametrizations.weight_norm(_module(layer.layer, shape))
    if isinstance(layer, Dense):
        return nn.Linear(units, layer.units, bias=layer.bias)
    if isinstance(layer, Conv2d):
        options = layer.kernel, layer.stride, layer.padding
        return nn.Conv2d(units, layer.channels, *options, bias=layer.bias)
    if isinstance(layer, BatchNorm):
        return (nn.BatchNorm2d if images else nn.BatchNorm1d)(units, eps=layer.eps)
    if isinstance(layer, LayerNorm):
        return nn.LayerNorm(units, eps=layer.eps)
    if isinstance(layer, RMSNorm):
        return nn.RMSNorm(units, eps=layer.eps)
    if isinstance(layer, GroupNorm):
        return nn.GroupNorm(layer.groups, units, eps=layer.eps)
    if isinstance(layer, MaxPool2d):
        return nn.MaxPool2d(layer.size)
    if isinstance(layer, AveragePool2d):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if isinstance(layer, Sequential):
        return _sequence(layer.layers, shape)
    if isinstance(layer, Residual):
        return Block(layer, shape)
    return {"relu": nn.ReLU, "tanh": nn.Tanh, "flatten": nn.Flatten, "dropout": nn.Identity}[
        layer.kind
    ]()


NETWORKS = {
    "vectors": (
        [
            *(Dense(7), BatchNorm(), ReLU(), Dense(6, bias=False), LayerNorm(), Tanh()),
            *(WeightNorm(Dense(6)), RMSNorm(), GroupNorm(2), Dropout(0.0), Dense(3)),
        ],
        (5,),
    ),
    "convolutions": (
        [
            *(Conv2d(4), BatchNorm(), ReLU(), MaxPool2d(2), GroupNorm(2)),
            *(WeightNorm(Conv2d(3, stride=2, bias=False)), Flatten(), Dense(5), Tanh(), Dense(3)),
        ],
        (8, 12, 2),
    ),
    "norms of flattened pixels": (
        [
            *(Conv2d(3, kernel=2, padding=0), Flatten(), BatchNorm(), ReLU(), LayerNorm()),
            *(WeightNorm(Dense(4)), Dense(3)),
        ],
        (3, 4, 2),
    ),
    "residual": (
        [
            *(Conv2d(4, bias=False), BatchNorm(), ReLU()),
            Residual([Conv2d(4), BatchNorm(), ReLU(), Conv2d(4), BatchNorm()]),
            ReLU(),
            Residual(
                [Sequential([Conv2d(6, stride=2), GroupNorm(3), ReLU()]), Conv2d(6)],
                [Conv2d(6, kernel=1, stride=2, padding=0, bias=False), BatchNorm()],
            ),
            *(ReLU(), AveragePool2d(), Dense(3)),
        ],
        (8, 6, 1),
    ),
    "blocks behind Flatten": (
        [Flatten(), Residual([Dense(5), ReLU()], [BatchNorm(), Dense(5)]), Dense(3)],
        (2, 3, 2),
    ),
}


def built(name, dtype=np.float64):
    layers, shape = NETWORKS[name]
    return Network(layers, shape, rng=4, dtype=dtype)


def tensor_of(X):
    return torch.tensor(X if X.ndim == 2 else np.ascontiguousarray(X.transpose(0, 3, 1, 2)))


def shaken(module, seed):
    """Give a module random parameters and statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.dtype.is_floating_point:
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(noise + 0.5 if "running_var" in name else noise - 0.3)
    return module


def assert_same_function(network, module, rng):
    """Compare scores in evaluation and training, and the gradients of the loss."""
    X = rng.standard_normal((6, *network.input_shape))
    labels = rng.integers(0, 3, 6)
    module.eval()
    scores = module(tensor_of(X)).detach().numpy()
    np.testing.assert_allclose(network.forward(X), scores, rtol=1e-9, atol=1e-10)
    module.train()
    loss = torch.nn.functional.cross_entropy(module(tensor_of(X)), torch.tensor(labels))
    loss.backward()
    found = network.loss_and_gradients(X, labels)
    assert abs(found.loss - loss.item()) < 1e-10
    gradients = {name: p.grad for name, p in module.named_parameters()}
    expected = to_torch(network.with_parameters(found.gradients))
    for name, gradient in gradients.items():
        np.testing.assert_allclose(expected[name], gradient, rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("name", NETWORKS)
def test_pytorch_computes_what_the_network_computes(name, rng):
    network = built(name)
    module = module_of(network).double()
    network = from_torch(network, shaken(module_of(network).double(), 1).state_dict())
    module.load_state_dict(to_torch(network), strict=True)
    assert_same_function(network, module, rng)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_computes_what_pytorch_computes(name, rng):
    network = built(name)
    module = shaken(module_of(network).double(), 2)
    before = {key: array.copy() for key, array in network.parameters.items()}
    assert_same_function(from_torch(network, module.state_dict()), module, rng)
    assert all(np.array_equal(network.parameters[key], before[key]) for key in before)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back_no_bit_is_lost(name, dtype):
    network = built(name, dtype)
    other = from_torch(Network(network.layers, network.input_shape, dtype=dtype), to_torch(network))
    for key, array in {**network.parameters, **network.state}.items():
        if not key.startswith("dropout"):
            assert np.array_equal({**other.parameters, **other.state}[key], array), key


def test_names_of_ones_own(rng):
    network = Network([Dense(4), BatchNorm(), Dense(3)], (5,), dtype=np.float64)
    names = {"dense1": "fc1", "batchnorm1": "net.bn", "dense2": "head"}
    theirs = to_torch(network, names)
    assert list(theirs) == [
        *("fc1.weight", "fc1.bias", "net.bn.weight", "net.bn.bias", "net.bn.running_mean"),
        *("net.bn.running_var", "net.bn.num_batches_tracked", "head.weight", "head.bias"),
    ]
    X = rng.standard_normal((2, 5))
    assert np.array_equal(from_torch(network, theirs, names).forward(X), network.forward(X))
    with pytest.raises(ValueError, match="names: got batchnorm1, dense2 unknown or missing, expec"):
        to_torch(network, {"dense1": "fc1"})
    with pytest.raises(ValueError, match="names: got dense7 unknown or missing, expected a path"):
        to_torch(network, {**names, "dense7": "fc7"})


def test_what_does_not_fit_is_refused():
    network = Network([Dense(4), Dense(3)], (5,), dtype=np.float64)
    theirs = to_torch(network)
    without = {name: a for name, a in theirs.items() if name != "1.bias"}
    with pytest.raises(ValueError, match="1.bias missing and none left over, expected those of"):
        from_torch(network, without)
    with pytest.raises(ValueError, match="none missing and 2.weight left over, expected those of"):
        from_torch(network, {**theirs, "2.weight": theirs["1.weight"]})
    message = r"state_dict\['0.weight'\]: got shape \(5, 4\), expected \(4, 5\)"
    with pytest.raises(ValueError, match=message):
        from_torch(network, {**theirs, "0.weight": theirs["0.weight"].T})
    with pytest.raises(TypeError, match=r"state_dict\['0.bias'\]: got dtype float32, expe"):
        from_torch(network, {**theirs, "0.bias": theirs["0.bias"].float()})


class Half(Dense):
    """A layer of one's own."""

    def forward(self, wing, parameters, state, x, train):
        y, cache, state = super().forward(wing, parameters, state, x, train)
        return y / 2, cache, state


def test_what_pytorch_cannot_hold_is_refused():
    for layers in ([Half(4)], [Sequential([Half(4)])]):
        with pytest.raises(TypeError, match=r"dense1: got a layer of one's own \(Half\), whose"):
            to_torch(Network(layers, (5,)))
    layers = [Conv2d(4), Flatten(), GroupNorm(2), Dense(3)]
    with pytest.raises(ValueError, match="groupnorm1: got groups of flattened pixels, which are"):
        to_torch(Network(layers, (2, 2, 1)))
    layers = [Conv2d(2), Flatten(), Residual([Dense(8)]), Dense(3)]
    with pytest.raises(ValueError, match="residual1: got branches whose units lie in different"):
        to_torch(Network(layers, (2, 2, 1)))


def test_without_pytorch_the_command_that_mends_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="to_torch: needs PyTorch, .* pip install"):
        to_torch(Network([Dense(4)], (5,)))


def test_what_is_no_state_dict_is_refused():
    network = Network([Dense(4)], (5,))
    module = torch.nn.Sequential(torch.nn.Linear(5, 4))
    for theirs in (module, module.named_parameters(), None, [1], {1: np.ones(4)}):
        with pytest.raises(
            TypeError, match="state_dict: got .*, expected a dict of arrays by name"
        ):
            from_torch(network, theirs)
    for names in (["fc"], "fc", {"dense1": 1}, {"dense1": None}):
        with pytest.raises(TypeError, match="names: got .*, expected a dict of paths in PyTorch"):
            to_torch(network, names)
        with pytest.raises(TypeError, match="names: got .*, expected a dict of paths in PyTorch"):
            from_torch(network, module.state_dict(), names)
    for call in (lambda: to_torch(module), lambda: from_torch(module, module.state_dict())):
        with pytest.raises(TypeError, match="network: got Sequential, expected a Network"):
            call()


@pytest.mark.parametrize("dtype", (np.longdouble, object))
def test_a_dtype_that_pytorch_does_not_have_is_refused(dtype):
    with pytest.raises(TypeError, match="network: got dtype .*, which PyTorch does not have"):
        to_torch(Network([Dense(4)], (5,)).astype(dtype))


@pytest.mark.parametrize("shape", ((5, 4), (1, 4), (5, 1)))
def test_a_module_that_trains_on_changes_no_network(shape):
    inputs, outputs = shape
    module = torch.nn.Sequential(torch.nn.Linear(inputs, outputs))
    network = Network([Dense(outputs)], (inputs,))
    found = from_torch(network, module.state_dict())
    before = {name: array.copy() for name, array in found.parameters.items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    for name, array in before.items():
        assert_same_bits(found.parameters[name], array, name)


def test_a_layer_may_be_the_module_itself():
    module, norm = torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(5)
    found = from_torch(Network([Dense(4)], (5,)), module.state_dict(), {"dense1": ""})
    assert np.array_equal(found.parameters["dense1.W"].T, module.weight.detach().numpy())
    module.load_state_dict(to_torch(found, {"dense1": ""}))
    network = Network([BatchNorm()], (5,))
    norm.load_state_dict(to_torch(network, {"batchnorm1": ""}))
    from_torch(network, norm.state_dict(), {"batchnorm1": ""})


def test_layers_that_share_a_path_have_the_same_numbers():
    names = {"dense1": "fc", "dense2": "fc"}
    network = Network([Dense(4), Dense(4)], (4,))
    with pytest.raises(ValueError, match="names: got 'fc.weight' for two arrays that differ, exp"):
        to_torch(network, names)
    shared = from_torch(
        network, torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 4)}).state_dict(), names
    )
    assert_same_bits(shared.parameters["dense1.W"], shared.parameters["dense2.W"], "W")
    assert set(to_torch(shared, names)) == {"fc.weight", "fc.bias"}
