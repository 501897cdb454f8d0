"""The audit: what it says of networks whose invariance is known, ours and PyTorch's."""

import numpy as np
import pytest

import minimal_nn as nn
from minimal_nn import backend
from minimal_nn.data import digits
from theory import laws
from theory.numbers.bounded import Bounded
from theory.yours.auditing import audit
from theory.yours.evaluation import Model


def ours(layers, dtype=np.float64, rows=48):
    data = digits(dtype=dtype)
    network = nn.Network(layers, input_shape=(64,), dtype=dtype, rng=1)
    rng = np.random.default_rng(2)
    network = network.with_parameters(
        {
            name: (array + 0.1 * rng.standard_normal(array.shape)).astype(dtype)
            for name, array in network.parameters.items()
        }
    )
    X, y = data.X_train[:rows], data.y_train[:rows]

    def loss_and_gradients(parameters):
        return network.with_parameters(parameters).loss_and_gradients(X, y)[:2]

    return network, loss_and_gradients


LAYERS = {
    "batch": lambda eps: [nn.Dense(8), nn.BatchNorm(eps), nn.ReLU(), nn.Dense(10)],
    "layer": lambda eps: [nn.Dense(8), nn.LayerNorm(eps), nn.Tanh(), nn.Dense(10)],
    "weight": lambda eps: [nn.WeightNorm(nn.Dense(8), eps=eps), nn.Tanh(), nn.Dense(10)],
    "none": lambda eps: [nn.Dense(8), nn.Tanh(), nn.Dense(10)],
    "deep": lambda eps: [
        nn.Dense(8),
        nn.BatchNorm(eps),
        nn.ReLU(),
        nn.Dense(6),
        nn.BatchNorm(eps),
        nn.Tanh(),
        nn.Dense(10),
    ],
}


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("name", LAYERS)
def test_the_audit_finds_the_groups_that_the_layers_imply(name, eps):
    network, function = ours(LAYERS[name](eps))
    found = {
        row.parameters: row.invariant == "per unit"
        for row in audit(function, network.parameters).rows
        if row.invariant in ("per unit", "as a whole")
    }
    expected = {group.parameters: group.per_unit for group in network.invariance_groups()}
    assert found == expected


def test_a_bias_before_batch_norm_is_cancelled():
    network, function = ours(LAYERS["batch"](0.0))
    rows = {row.parameters[0]: row for row in audit(function, network.parameters).rows}
    assert rows["dense1.b"].invariant == "cancelled"
    assert rows["dense2.W"].invariant == "no" and np.isnan(rows["dense2.W"].effective_rate)


def test_the_cosine_of_an_eps_falls_with_the_square_of_the_norm():
    network, function = ours(LAYERS["batch"](1e-5))
    row = audit(function, network.parameters).rows[0]
    assert row.falls == pytest.approx(2, abs=0.01)
    network, function = ours(LAYERS["batch"](0.0))
    assert np.isnan(audit(function, network.parameters).rows[0].falls)


@pytest.mark.parametrize(
    "optimizer, rate",
    [
        (nn.SGD(0.2, weight_decay=1e-3), lambda w: 0.2 / w**2),
        (
            nn.Momentum(0.2, momentum=0.9, l2=5e-4),
            lambda w: 0.2 / 0.1 / w**2,
        ),
        (nn.Adam(0.2, weight_decay=1e-3), lambda w: 0.2 / w),
        (nn.AdamW(0.2, decoupled_weight_decay=1e-3), lambda w: 0.2 / w),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.SGD) else None,
)
def test_rate_and_equilibrium_follow_the_laws(optimizer, rate):
    network, function = ours([nn.Dense(8, bias=False), nn.BatchNorm(0.0), nn.Dense(10)])
    row = audit(function, network.parameters, optimizer=optimizer).rows[0]
    w, g = network.parameters["dense1.W"], function(network.parameters)[1]["dense1.W"]
    norm = np.sqrt(np.mean(np.sum(w * w, axis=0)))
    s = np.sqrt(np.mean(np.sum(w * w, axis=0) * np.sum(g * g, axis=0)))
    assert row.norm == pytest.approx(norm, rel=1e-14)
    assert row.effective_rate == pytest.approx(rate(norm), rel=1e-14)
    rest = laws.equilibrium(type(optimizer).__name__, 0.2, 1e-3, s=s, dims=64, memory=0.9).norm
    assert row.equilibrium == pytest.approx(rest, rel=1e-12)
    without = audit(function, network.parameters, optimizer=type(optimizer)(0.2)).rows[0]
    if not isinstance(optimizer, nn.AdamW):  # which decays by default
        assert np.isnan(without.equilibrium)


def test_bad_input_is_refused():
    network, function = ours(LAYERS["batch"](0.0))
    with pytest.raises(ValueError, match="parameters: got none"):
        audit(function, {})
    with pytest.raises(TypeError, match="optimizer: got Adagrad.*expected one of SGD"):
        audit(function, network.parameters, optimizer=nn.Adagrad())
    with pytest.raises(ValueError, match=r"parameters\['w'\]: got dtype int64"):
        audit(function, {"w": np.arange(3)})
    with pytest.raises(ValueError, match="a loss or gradients that are not finite"):
        audit(lambda p: (np.nan, p), {"w": np.ones(3)})


# PyTorch


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    threads = module.get_num_threads()
    module.set_num_threads(1)  # small tensors: several threads only wait for each other
    yield module
    module.set_num_threads(threads)


def foreign(torch, dtype):
    """A network that this project did not design, with torch's own eps."""
    parts, weight_norm = torch.nn, torch.nn.utils.parametrizations.weight_norm

    class Foreign(parts.Module):
        def __init__(self):
            super().__init__()
            self.conv = parts.Conv2d(3, 8, 3, padding=1)
            self.bn = parts.BatchNorm2d(8)
            self.fc = parts.Linear(8 * 16, 12)
            self.ln = parts.LayerNorm(12)
            self.wn = weight_norm(parts.Linear(12, 10))
            self.out = parts.Linear(10, 4)

        def forward(self, x):
            h = torch.relu(self.bn(self.conv(x))).flatten(1)
            h = torch.tanh(self.ln(self.fc(h)))
            return self.out(torch.tanh(self.wn(h)))

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    module = Foreign().to(dtype)
    X = torch.randn(16, 3, 4, 4, dtype=dtype, generator=generator)
    return module, X, torch.randint(0, 4, (16,), generator=generator)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_pytorch_module_is_audited(torch, dtype):
    import theory.torch

    module, X, y = foreign(torch, getattr(torch, dtype))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    report = theory.torch.audit(module, torch.nn.functional.cross_entropy, X, y, optimizer)
    rows = {row.parameters: row for row in report.rows}
    v = "wn.parametrizations.weight.original1"
    assert rows["conv.weight",].invariant == "per unit" and rows["conv.weight",].units == 8
    assert rows["fc.weight", "fc.bias"].invariant == "as a whole"
    assert rows[v,].invariant == "per unit" and rows[v,].units == 10
    assert rows["conv.bias",].invariant == "cancelled"
    others = [r for r in report.rows if r.invariant == "no"]
    assert {name for r in others for name in r.parameters} == {
        "bn.weight",
        "bn.bias",
        "ln.weight",
        "ln.bias",
        "wn.bias",
        "wn.parametrizations.weight.original0",
        "out.weight",
        "out.bias",
    }
    if dtype == "float64":  # torch's eps, seen through its law; weight norm has none
        assert rows["conv.weight",].falls == pytest.approx(2, abs=0.01)
        assert rows["fc.weight", "fc.bias"].falls == pytest.approx(2, abs=0.01)
        assert np.isnan(rows[v,].falls)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert "conv.weight" in str(report) and "SGD(lr=0.1, momentum=0.9" in str(report)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_the_leak_of_torchs_eps_is_the_law_within_rounding(torch, eps):
    """<w_k, grad> of a Conv2d before BatchNorm2d is eps/(v_k + eps) <dy_k, y_k - beta_k>.

    A convolution is an affine map of the unfolded images, so the reference wing's affine and batch
    norm, run on numbers that carry their rounding error, bound what autograd's rounding may leave.
    """
    import theory.torch

    module, X, y = foreign(torch, torch.float64)
    module.bn.eps = eps
    kept = {}
    module.conv.register_forward_hook(lambda m, x, z: kept.update(x=x[0]))
    module.bn.register_full_backward_hook(lambda m, dx, dy: kept.update(dy=dy[0]))
    torch.nn.functional.cross_entropy(module(X), y).backward()
    w = module.conv.weight.detach().numpy()
    product = (w * module.conv.weight.grad.numpy()).reshape(8, -1).sum(axis=1)

    columns = torch.nn.functional.unfold(kept["x"], 3, padding=1)  # (N, 27, 16)
    columns = columns.transpose(1, 2).reshape(-1, 27).numpy()
    wing = backend.get("reference")
    matrix = Bounded(w.reshape(8, 27).T)
    z, affine_cache = wing.affine.forward(
        Bounded(columns), matrix, Bounded(module.conv.bias.detach().numpy())
    )
    gamma, beta = (Bounded(p.detach().numpy()) for p in (module.bn.weight, module.bn.bias))
    out, cache = wing.batchnorm.forward(z, gamma, beta, eps)
    dy = Bounded(kept["dy"].permute(0, 2, 3, 1).reshape(-1, 8).numpy())
    dz, _, _ = wing.batchnorm.backward(dy, cache)
    _, dW, _ = wing.affine.backward(dz, affine_cache)
    law = (dy * (out - beta)).sum(axis=0) * (eps / (cache.var + eps))
    bound = (np.abs(matrix.value) * dW.error).sum(axis=0) + law.error
    bound += 27 * 2.0**-53 * np.abs(matrix.value * dW.value).sum(axis=0)  # the product itself
    assert np.all(np.abs(product - law.value) <= bound)
    # The control: without the law the same bound is broken, a thousandfold.
    assert np.all(np.abs(product) > 1000 * bound)

    report = theory.torch.audit(module, torch.nn.functional.cross_entropy, X, y)
    g = module.conv.weight.grad.numpy().reshape(8, -1)
    cosine = np.abs(product) / np.linalg.norm(w.reshape(8, -1), axis=1) / np.linalg.norm(g, axis=1)
    assert report.rows[0].cosine == pytest.approx(cosine.max(), rel=1e-6)


def test_torch_optimizers_are_translated(torch):
    from theory.torch import optimizer_of

    weights = [torch.nn.Parameter(torch.ones(2))]
    sgd = optimizer_of(torch.optim.SGD(weights, lr=0.3, weight_decay=0.01))
    assert repr(sgd) == "SGD(learning_rate=0.3, weight_decay=0.01)"
    nesterov = optimizer_of(torch.optim.SGD(weights, lr=0.3, momentum=0.8, nesterov=True))
    assert isinstance(nesterov, nn.Nesterov) and nesterov.hyper["momentum"] == 0.8
    adam = optimizer_of(torch.optim.Adam(weights, lr=0.3, weight_decay=0.1))
    assert isinstance(adam, nn.Adam) and adam.hyper_parameters("w")["weight_decay"] == 0.1
    adamw = optimizer_of(torch.optim.AdamW(weights, lr=0.3, weight_decay=0.1))
    assert adamw.hyper_parameters("w")["decoupled_weight_decay"] == 0.1
    assert adamw.hyper_parameters("w")["weight_decay"] == 0
    with pytest.raises(TypeError, match="got Adagrad, expected torch.optim.SGD"):
        optimizer_of(torch.optim.Adagrad(weights))


WRONG = {
    "twice the gradient": lambda loss, gradients: (loss, {k: 2 * g for k, g in gradients.items()}),
    "its negative": lambda loss, gradients: (loss, {k: -g for k, g in gradients.items()}),
    "a term that the gradient has not": lambda loss, gradients: (
        loss,
        {k: g + 0.1 * np.sin(np.arange(g.size).reshape(g.shape)) for k, g in gradients.items()},
    ),
    "a sum for a mean": lambda loss, gradients: (48 * loss, gradients),
}


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("fault", WRONG)
def test_a_gradient_that_is_not_the_losss_is_refused(fault, dtype):
    network, function = ours([nn.Dense(8), nn.BatchNorm(), nn.ReLU(), nn.Dense(10)], dtype)
    parameters = network.parameters

    def wrong(given):
        return WRONG[fault](*function(given))

    with pytest.raises(ValueError, match="times as fast .* not the gradient of this loss"):
        audit(wrong, parameters)
    model = Model(function, parameters)
    model.check_gradient()


@pytest.mark.parametrize("seed", range(6))
def test_no_right_gradient_is_refused(seed):
    """With kinks, saturation and large eps, in both precisions, at weights of any size."""
    rng = np.random.default_rng(seed)
    norm = (nn.BatchNorm, nn.LayerNorm, nn.RMSNorm)[seed % 3]
    layers = [nn.Dense(24), norm(10.0 ** rng.uniform(-8, -1)), (nn.ReLU, nn.Tanh)[seed % 2]()]
    for dtype in (np.float32, np.float64):
        network, function = ours([*layers, nn.Dense(16), nn.ReLU(), nn.Dense(10)], dtype)
        scale = dtype(10.0 ** rng.uniform(-2, 2))
        parameters = {name: scale * w for name, w in network.parameters.items()}
        Model(function, parameters).check_gradient()
