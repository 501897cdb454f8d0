"""Random networks, optimizers, dtypes and batch sizes: PyTorch and every way to train say the same.

Each seed draws layers, shapes, loss, dtype, batch size, optimizer, schedules, clipping, frozen
layers and how many batches make a step, and trains for at least 30 batches:

    PyTorch                               autograd and torch.optim, from the same weights
    reference, cpu                        by `fit`, in the cpu wing by its compiled loop
    cpu step by step, on two threads, resumed after a random epoch     the same bits

How far two wings, or PyTorch, may lie apart is measured: a multiple of what one unit of round-off
in the initial weights grows to in the run.  A run in which that becomes large is left out.

A difference is reported for the fewest layers that still make it, with the command that makes it
again.  The suite's seeds are always the same; those of a nightly run are new each time, or begin at
--seed.
"""

import collections
import functools
import secrets

import numpy as np
import pytest

import minimal_nn as nn
from minimal_nn.cpu.machine.threads import get_num_threads
from minimal_nn.errors import NonFiniteError
from minimal_nn.optimizers import ALL, LATER
from minimal_nn.plans import StepByStep

EXAMPLES, STEPS = 24, 30
NAMES = [kind.__name__ for kind in (*ALL, *LATER)]


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    threads = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(threads)


# What is drawn


def activations(rng):
    kinds = [], [nn.ReLU()], [nn.Tanh()], [nn.Tanh(), nn.Tanh()]
    return kinds[int(rng.choice(4, p=[0.3, 0.3, 0.3, 0.1]))]


def composed(rng, layers):
    """Draw what becomes of a few layers: themselves, a sequence, or a residual block."""
    choice, first = rng.random(), layers[0]
    if choice < 0.7:
        return layers
    if choice < 0.85 or not isinstance(first, (nn.Dense, nn.Conv2d)):
        return [nn.Sequential(layers)]
    if isinstance(first, nn.Dense):
        return [nn.Residual(layers, [nn.Dense(first.units, bias=False)])]
    options = {"kernel": first.kernel, "stride": first.stride, "padding": first.padding}
    return [nn.Residual(layers, [nn.Conv2d(first.channels, **options)])]


def image_part(rng, shape):
    """Draw the layers on images, and a Flatten."""
    layers = []
    for _ in range(int(rng.integers(1, 4))):
        plain = rng.random() < 0.6
        others = [(1, 1, 0), (2, 2, 1), (5, 1, 2)]
        kernel, stride, padding = (3, 1, 1) if plain else rng.choice(others)
        algorithm = str(rng.choice(["direct", "winograd2", "winograd4"])) if plain else "direct"
        layer = nn.Conv2d(
            int(rng.choice([1, 3, 4, 8, 17])),
            kernel=int(kernel),
            stride=int(stride),
            padding=int(padding),
            bias=bool(rng.random() < 0.5),
            algorithm=algorithm,
        )
        if rng.random() < 0.1:
            layer = nn.WeightNorm(layer, eps=1e-4)
        few = [layer]
        if rng.random() < 0.5:
            norm = nn.BatchNorm(1e-2, momentum=float(rng.uniform(0, 0.5)))
            channels = getattr(layer, "layer", layer).channels
            few.append(nn.GroupNorm(2, eps=1e-2) if rng.random() < 0.2 * (channels > 3) else norm)
        layers += composed(rng, few + activations(rng))
        if rng.random() < 0.3:
            layers.append(nn.AveragePool2d(2) if rng.random() < 0.3 else nn.MaxPool2d(2))
    kept = []
    for layer in layers:
        try:
            shape = layer.output_shape(shape)
        except ValueError:
            continue
        kept.append(layer)
    return [*kept, nn.AveragePool2d() if rng.random() < 0.2 else nn.Flatten()]


def layers_of(rng):
    """Draw (layers, input shape, loss)."""
    layers, shape = [], (int(rng.choice([1, 3, 8, 20, 33])),)
    if rng.random() < 0.45:
        shape = (int(rng.integers(3, 9)), int(rng.integers(3, 9)), int(rng.choice([1, 2, 3, 5, 8])))
        layers = image_part(rng, shape)
    for _ in range(int(rng.integers(0, 4))):
        layer = nn.Dense(int(rng.choice([3, 5, 16, 17, 33])), bias=bool(rng.random() < 0.6))
        few = [nn.WeightNorm(layer, eps=1e-4) if rng.random() < 0.2 else layer]
        if rng.random() < 0.6:
            norms = nn.BatchNorm(1e-2), nn.LayerNorm(1e-2), nn.RMSNorm(1e-2)
            few.append(norms[int(rng.choice(3, p=[0.5, 0.25, 0.25]))])
            if rng.random() < 0.1:
                few[-1] = nn.GroupNorm(1, eps=1e-2)
        few += activations(rng)
        if rng.random() < 0.1:
            few.append(nn.Dropout(0.3))
        layers += composed(rng, few)
    loss = str(rng.choice(["cross_entropy", "mean_squared_error"]))
    if loss == "cross_entropy" or rng.random() < 0.7 or not layers:
        layers.append(nn.Dense(int(rng.choice([2, 3, 10]))))
    if rng.random() < 0.3:
        layers += activations(rng)
    return layers, shape, loss


def optimizer_of(rng, names):
    """Draw an optimizer for the parameters of these names, some with a rate of their own.

    Returns a function that makes the optimizer, and one that makes PyTorch's.
    """
    name, decay = str(rng.choice(NAMES)), float(rng.choice([0.0, 0.01]))
    eta = {"RMSprop": 1e-3, "Adam": 2e-3, "AdamW": 2e-3, "Adadelta": 0.5}.get(name, 0.01)
    decoupled = "decoupled_weight_decay" in getattr(nn, name).defaults
    own = {"decoupled_weight_decay" if decoupled else "weight_decay": decay}
    torchs = {"weight_decay": decay}
    if name in ("Momentum", "Nesterov"):
        own["momentum"] = torchs["momentum"] = float(rng.choice([0.5, 0.9]))
        torchs["nesterov"] = name == "Nesterov"
    if name == "RMSprop":
        own["decay"] = torchs["alpha"] = 0.9
    if name == "Adadelta":
        own.update(decay=0.9, eps_numerator=1e-3, eps_denominator=1e-3)
        torchs.update(rho=0.9, eps=1e-3)
    if name in ("RMSprop", "Adagrad", "Adam", "AdamW", "AdamP"):
        own["eps"] = torchs["eps"] = 1e-3
    slow = [key for key in names if rng.random() < 0.3] if rng.random() < 0.3 else []
    if slow:
        own["groups"] = [nn.Group(slow, learning_rate=eta / 4)]

    def of_torch(torch, tensors):
        groups = [
            {"params": [tensor], "lr": eta / 4 if key in slow else eta}
            for key, tensor in tensors.items()
        ]
        if name in FORMULAS:
            return Written(torch, groups, FORMULAS[name], decay, decoupled)
        kind = {"Momentum": "SGD", "Nesterov": "SGD"}.get(name, name)
        return getattr(torch.optim, kind)(groups, **torchs)

    return functools.partial(getattr(nn, name), eta, **own), of_torch


def unit_norms(w):
    return (w * w).sum(dim=tuple(range(w.ndim - 1)) if w.ndim > 1 else None).sqrt()


def lion(w, g, state):
    m = state.get("m", 0)
    state["m"] = 0.99 * m + 0.01 * g
    return (0.9 * m + 0.1 * g).sign()


def without_radial_part(w, g, step, state):
    """The rule of Heo et al. (2021), units being columns; notes in `state` what decay is times."""
    state["ratio"] = 1.0
    if w.ndim < 2:
        return step
    for rows in (w.shape[-1], 1):
        u, v, p = (x.reshape(-1, w.shape[-1]).T.reshape(rows, -1) for x in (w, g, step))
        cosines = ((u * v).sum(dim=1) / (unit_norms(u.T) * unit_norms(v.T))).nan_to_num(0.0)
        if cosines.abs().max() < 0.1 / u.shape[1] ** 0.5:
            state["ratio"] = 0.1
            u = (u / unit_norms(u.T)[:, None]).nan_to_num(0.0)
            p = p - u * (u * p).sum(dim=1, keepdim=True)
            return p.reshape(w.shape[-1], -1).T.reshape(w.shape)
    return step


def sgdp(w, g, state):
    state["v"] = 0.9 * state.get("v", 0) + g
    step = without_radial_part(w, g, state["v"], state)
    state["ratio"] /= 0.1
    return step


def adamp(w, g, state):
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g * g
    root = (state["v"] / (1 - 0.999**t)).sqrt() + 1e-3
    return without_radial_part(w, g, state["m"] / (1 - 0.9**t) / root, state)


def muon(w, g, state):
    state["v"] = 0.95 * state.get("v", 0) + g
    v = state["v"].reshape(-1, w.shape[-1] if w.ndim > 1 else 1)
    U, S, V = v.svd()
    rank = S > max(v.shape) * np.finfo(v.numpy().dtype).eps * S[0]
    return ((U * rank) @ V.T).reshape(w.shape)


FORMULAS = {  # the steps of what PyTorch does not have, divided by the learning rate
    "SignSGD": lambda w, g, state: g.sign(),
    "NormalizedSGD": lambda w, g, state: (g / unit_norms(g)).nan_to_num(0.0),
    "LARS": lambda w, g, state: g.where(
        unit_norms(w) == 0, unit_norms(w) * g / unit_norms(g)
    ).nan_to_num(0.0),
    "Lion": lion,
    "SGDP": sgdp,
    "AdamP": adamp,
    "Muon": muon,
}


class Written:
    """An optimizer of PyTorch's tensors by a formula of this file: (w, g, state) -> the step.

    What decoupled decay is multiplied by the formula leaves in the state.
    """

    def __init__(self, torch, groups, formula, decay, decoupled):
        self.torch, self.formula, self.decoupled = torch, formula, decoupled
        self.param_groups = [{**group, "weight_decay": decay, "state": {}} for group in groups]

    def zero_grad(self):
        for group in self.param_groups:
            group["params"][0].grad = None

    def step(self):
        with self.torch.no_grad():
            for group in self.param_groups:
                (w,), decay, state = group["params"], group["weight_decay"], group["state"]
                g = w.grad if self.decoupled else w.grad + decay * w
                step = self.formula(w, g, state)
                if self.decoupled:
                    w *= 1 - group["lr"] * decay * state.get("ratio", 1.0)
                w -= group["lr"] * step


def schedule_of(rng):
    """Draw the schedule of the learning rate, and that of the penalty, or None twice."""
    drawn = (
        nn.schedules.Warmup(int(rng.integers(1, 9)), nn.schedules.Cosine(int(rng.integers(5, 40)))),
        nn.schedules.Steps([int(rng.integers(1, 20))], gamma=float(rng.uniform(0, 1.5))),
        nn.schedules.Exponential(float(rng.uniform(0.8, 1.1))),
        lambda step: 1 + 0.5 * np.sin(step),
    )
    if rng.random() < 0.5:
        return None, None
    return drawn[rng.integers(4)], drawn[rng.integers(4)]


class Impossible(Exception):
    """Layers that do not fit each other were drawn, layer norm of one unit, say; or nothing."""


class Trial:
    """One random network with data, and everything that trains it.

    left_out: the numbers of the layers, counted as they are drawn, that the network is without.
    """

    def __init__(self, seed, left_out=()):
        rng, for_numbers = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        layers, shape, loss = layers_of(rng)
        self.drawn = len(layers)
        layers = [layer for number, layer in enumerate(layers) if number not in left_out]
        self.dtype = np.dtype(np.float64 if rng.random() < 0.7 else np.float32)
        self.batch_size = int(rng.choice([1, 2, 3, 5, 8, 11, 23, 24]))
        at = rng.random()  # of the epochs, when a resumed run was interrupted
        try:
            self.network = nn.Network(layers, shape, loss=loss, rng=seed, dtype=self.dtype)
        except ValueError as error:
            raise Impossible(str(error)) from None
        if not self.network.parameters:
            raise Impossible("nothing to train")
        self.network = self.network.with_parameters(
            {
                name: (w + 0.1 * for_numbers.standard_normal(w.shape)).astype(self.dtype)
                for name, w in self.network.parameters.items()
            }
        )
        self.batch_size = max(self.batch_size, self.network.least_examples()[0])
        self.epochs = -(-STEPS // (EXAMPLES // self.batch_size))
        self.interrupted = 1 + int(at * (self.epochs - 1))
        self.X = for_numbers.standard_normal((EXAMPLES, *shape)).astype(self.dtype)
        outputs = self.network.shapes[-1]
        self.targets = (
            for_numbers.integers(0, outputs[0], EXAMPLES)
            if loss == "cross_entropy"
            else for_numbers.standard_normal((EXAMPLES, *outputs)).astype(self.dtype)
        )
        self.optimizer, self.of_torch = optimizer_of(rng, list(self.network.parameters))
        self.rates, self.decays = schedule_of(rng)
        self.clip_norm = float(rng.choice([0.01, 0.3, 3.0])) if rng.random() < 0.5 else None
        self.accumulate = int(rng.integers(2, 4)) if rng.random() < 0.25 else 1
        self.frozen = self.some_layers(rng) if rng.random() < 0.3 else ()
        self.signs = np.random.default_rng(seed)
        self.text = (
            f"{self.optimizer()!r}, {self.dtype}, batches of {self.batch_size}, {shape}, {loss}, "
            f"schedules {self.rates!r}, {self.decays!r}, clip_norm={self.clip_norm}, "
            f"accumulate={self.accumulate}, frozen={self.frozen}, {layers}"
        )

    def some_layers(self, rng):
        """Draw names of layers to freeze, which leave one to train."""
        names = [name for name in self.network.names if self.network.parameters_of([name])]
        return tuple(rng.choice(names, rng.integers(len(names)), replace=False).tolist())

    def start(self, wing, noise=0):
        """Return the network in a wing, its weights moved by so many units of round-off."""
        u = noise * np.finfo(self.dtype).eps
        parameters = {
            name: (w * (1 + u * self.signs.choice([-1, 1], w.shape))).astype(self.dtype)
            for name, w in self.network.parameters.items()
        }
        return self.network.with_parameters(parameters).on(wing)

    def fit(self, network, optimizer=None, **options):
        options = {"epochs": self.epochs, "batch_size": self.batch_size, "rng": 7, **options}
        optimizer = optimizer or self.optimizer()
        options["clip_norm"], options["frozen"] = self.clip_norm, self.frozen
        options["accumulate"] = self.accumulate
        if self.rates is not None:
            options["schedule"] = nn.Schedule(self.rates, **self.decayed(optimizer))
        history = nn.fit(network, optimizer, self.X, self.targets, progress=False, **options)
        return self.told(history.loss, network)

    def told(self, losses, network):
        """Return all numbers that a training ends in, with the loss in evaluation mode."""
        evaluated = network.loss(self.X, self.targets, train=False)
        return numbers([*losses, evaluated], network.parameters, network.state)

    def decayed(self, optimizer):
        """Return the schedule of a penalty, if there is one."""
        hyper = optimizer.hyper_parameters(next(iter(self.network.parameters)))
        names = ("weight_decay", "decoupled_weight_decay")
        return {name: self.decays for name in names if hyper.get(name)}

    def factors(self, optimizer, step):
        """Return the factors of a step, as plans take them."""
        if self.rates is None:
            return None
        found = {"learning_rate": self.rates, **self.decayed(optimizer)}
        found = {name: np.array([float(f(step))]) for name, f in found.items()}
        return dict.fromkeys(self.network.parameters, found)

    def steps(self):
        """Return the batches of every step of `fit` with the seed 7."""
        rng, least = np.random.default_rng(7), self.network.least_examples(self.frozen)[0]
        for _ in range(self.epochs):
            order = rng.permutation(EXAMPLES)
            starts = range(0, EXAMPLES, self.batch_size)
            batches = [order[start : start + self.batch_size] for start in starts]
            batches = [rows for rows in batches if len(rows) >= least]
            for first in range(0, len(batches), self.accumulate):
                yield batches[first : first + self.accumulate]

    def step_by_step(self, wing):
        network, optimizer, losses = self.start(wing), self.optimizer(), []
        part_size = self.batch_size if self.accumulate > 1 else None
        plan = StepByStep(self.clip_norm, part_size, self.frozen)
        for number, batches in enumerate(self.steps()):
            rows = np.concatenate(batches)[None]
            now = self.factors(optimizer, number)
            losses.extend(plan.run(network, optimizer, self.X, self.targets, rows, now).tolist())
        return self.told(losses, network)

    def resumed(self, wing, folder):
        path = folder / f"{wing}.npz"
        path.unlink(missing_ok=True)
        self.fit(self.start(wing), epochs=self.interrupted, checkpoint=path)
        return self.fit(self.start(wing), checkpoint=path, resume=True)

    def in_torch(self, torch):
        """Train by autograd and torch.optim on the same batches."""
        still = self.network.parameters_of(self.frozen)
        tensors = {
            name: torch.tensor(w, requires_grad=name not in still)
            for name, w in self.start("reference").parameters.items()
        }
        trained = {name: tensor for name, tensor in tensors.items() if name not in still}
        state = {name: torch.tensor(a) for name, a in self.network.state.items()}
        X, targets = torch.tensor(self.X), torch.tensor(self.targets)
        optimizer, losses = self.of_torch(torch, trained), []
        lost = torch.nn.functional.cross_entropy
        if self.network.loss_kind == "mean_squared_error":
            lost = torch.nn.functional.mse_loss

        def forward(x, train=True):
            for name, layer in self.network.named_layers():
                training = train and name not in self.frozen
                x = torch_forward(torch, [(name, layer)], tensors, state, x, training)
            return x

        bases = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        for number, batches in enumerate(self.steps()):
            for group, (rate, decay) in zip(optimizer.param_groups, bases, strict=True):
                if self.rates is not None:
                    group["lr"] = rate * float(self.rates(number))
                    group["weight_decay"] = decay * float(self.decays(number))
            optimizer.zero_grad()
            loss = 0.0
            for rows in batches:
                part = lost(forward(X[rows]), targets[rows]) * len(rows) / sum(map(len, batches))
                part.backward()
                loss += part.item()
            largest = max(each.grad.abs().max() for each in trained.values())
            for name in self.network.cancelled_parameters(frozen=self.frozen):
                # Rounding alone, of which Lion, say, would make whole steps.
                if name in trained:
                    assert trained[name].grad.abs().max() <= 1e3 * np.finfo(self.dtype).eps * (
                        1 + largest
                    ), name
                    trained[name].grad.zero_()
            if self.clip_norm is not None:
                # As clip_grad_norm_, without the 1e-6 that it adds to the norm.
                norm = torch.nn.utils.get_total_norm([each.grad for each in trained.values()])
                for each in trained.values():
                    each.grad *= torch.clamp(self.clip_norm / norm, max=1.0)
            optimizer.step()
            losses.append(loss)
        with torch.no_grad():
            losses.append(lost(forward(X, train=False), targets).item())
        arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
        return numbers(losses, arrays, {name: a.numpy() for name, a in state.items()})


def numbers(losses, *dicts):
    """Return losses and arrays, one after the other."""
    arrays = [np.ravel(array) for each in dicts for array in each.values()]
    return np.concatenate([np.asarray(losses, dtype=float), *arrays]).astype(float)


def named_in(name, branch):
    return [(f"{name}.{local}", part) for local, part in branch]


def torch_forward(torch, parts, parameters, state, x, train):
    """Return what layers with their full names make of x, by PyTorch's own functions."""
    f = torch.nn.functional
    for name, layer in parts:
        if layer.composite:
            ends = [
                torch_forward(torch, named_in(name, branch), parameters, state, x, train)
                for branch in layer.branches()
            ]
            x = sum(ends[1:], ends[0])
            continue
        prefix, inner = f"{name}.", layer
        own = {k.removeprefix(prefix): p for k, p in parameters.items() if k.startswith(prefix)}
        if isinstance(layer, nn.WeightNorm):
            v, inner = own["v"], layer.layer
            square = (v * v).sum(dim=tuple(range(v.ndim - 1)))
            own["W"] = own["g"] * v / torch.sqrt(square + layer.eps)
        if isinstance(inner, nn.Dense):
            x = f.linear(x, own["W"].T, own.get("b"))
        elif isinstance(inner, nn.Conv2d):
            W = own["W"].permute(3, 2, 0, 1).contiguous()
            images = x.permute(0, 3, 1, 2).contiguous()
            x = f.conv2d(images, W, own.get("b"), inner.stride, inner.padding)
            x = x.permute(0, 2, 3, 1)
        elif isinstance(layer, nn.BatchNorm):
            mean, var = state[f"{name}.mean"], state[f"{name}.var"]
            # As a matrix: of images one pixel wide PyTorch's backward pass takes strides amiss.
            rows = x.reshape(-1, x.shape[-1])
            options = own["gamma"], own["beta"], train, layer.momentum, layer.eps
            x = f.batch_norm(rows, mean, var, *options).reshape(x.shape)
        elif isinstance(layer, nn.LayerNorm):
            x = f.layer_norm(x, x.shape[1:], own["gamma"], own["beta"], layer.eps)
        elif isinstance(layer, nn.RMSNorm):
            x = f.rms_norm(x, x.shape[1:], own["gamma"], layer.eps)
        elif isinstance(layer, nn.GroupNorm):
            order = (0, -1, *range(1, x.ndim - 1))
            x = f.group_norm(x.permute(order), layer.groups, own["gamma"], own["beta"], layer.eps)
            x = x.permute(0, *range(2, x.ndim), 1)
        elif isinstance(layer, nn.Dropout):
            if train:
                own = {n: state[f"{name}.{n}"].numpy() for n in ("seed", "step")}
                x = x * torch.tensor(layer.kept(own, tuple(x.shape))) / (1 - layer.rate)
                state[f"{name}.step"] += 1
        elif isinstance(layer, nn.AveragePool2d):
            size = layer.size or tuple(x.shape[1:3])
            x = f.avg_pool2d(x.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
            x = x[:, 0, 0] if layer.size is None else x
        elif isinstance(layer, nn.MaxPool2d):
            x = f.max_pool2d(x.permute(0, 3, 1, 2), layer.size).permute(0, 2, 3, 1)
        elif isinstance(layer, nn.Flatten):
            x = x.reshape(len(x), -1)
        else:
            x = {"relu": torch.relu, "tanh": torch.tanh}[layer.kind](x)
    return x


# What is compared


class Differ(AssertionError):
    """Two ways to train that do not say the same."""


def check(trial, torch, folder):
    """Compare all ways to train; return whether the network is one that can be judged."""
    with np.errstate(all="ignore"):
        try:
            base = trial.fit(trial.start("reference"))
        except NonFiniteError:
            check_that_all_diverge(trial, torch)
            return False
        near = trial.fit(trial.start("reference", noise=1))
        scale, u = np.abs(base) + 1e-2, np.finfo(trial.dtype).eps
        grown = max(np.max(np.abs(near - base) / scale), u)
        if not grown < 1e-2:
            return False  # chaos: rounding decides

        def expect_near(what, found, factor):
            apart = np.max(np.abs(found - base) / scale)
            if not apart <= factor * grown:
                raise Differ(
                    f"{what} and reference lie {apart:.3g} apart, where one unit of round-off "
                    f"grows to {grown:.3g}"
                )

        def expect_same(what, found, expected):
            differ = np.count_nonzero(found != expected)
            if differ:
                raise Differ(f"{what}: {differ} of {found.size} numbers differ")

        winograd = "winograd" in trial.text
        expect_near("PyTorch", trial.in_torch(torch), 3e3)
        compiled = trial.fit(trial.start("cpu"))
        # Winograd's method rounds where the sum is exactly 0, and these make whole steps of that.
        if not (winograd and type(trial.optimizer()).__name__ in FORMULAS):
            expect_near("cpu", compiled, 3e4 if winograd else 3e3)
        expect_same("reference, step by step", trial.step_by_step("reference"), base)
        expect_same("reference, resumed", trial.resumed("reference", folder), base)
        expect_same("cpu, step by step", trial.step_by_step("cpu"), compiled)
        nn.set_num_threads(1)
        expect_same("cpu, one thread", trial.fit(trial.start("cpu")), compiled)
        nn.set_num_threads(2)
        expect_same("cpu, two threads", trial.fit(trial.start("cpu")), compiled)
        expect_same("cpu, resumed", trial.resumed("cpu", folder), compiled)
    return True


def check_that_all_diverge(trial, torch):
    """Where the reference wing has no numbers, PyTorch and the cpu wing have none either."""
    if np.all(np.isfinite(trial.in_torch(torch))):
        raise Differ("the reference wing diverges, PyTorch does not")
    try:
        trial.fit(trial.start("cpu"))
    except NonFiniteError:
        return
    raise Differ("the reference wing diverges, the cpu wing does not")


def attempt(seed, left_out, torch, folder):
    """Return (whether the seed makes a network that can be judged, the difference found or "")."""
    try:
        trial = Trial(seed, left_out)
    except Impossible:
        return False, ""
    try:
        return check(trial, torch, folder), ""
    except Exception as error:  # also of one wing alone
        return True, f"{type(error).__name__}: {error}: {trial.text}"


def judge(seed, torch, folder):
    """As `attempt`, with the difference that the fewest layers still make."""
    (judged, found), left_out = attempt(seed, (), torch, folder), ()
    if not found:
        return judged, ""
    for number in reversed(range(Trial(seed).drawn)):
        smaller = attempt(seed, (*left_out, number), torch, folder)[1]
        if smaller.partition(":")[0] == found.partition(":")[0]:
            found, left_out = smaller, (*left_out, number)
    again = f"pytest {__file__} --nightly -k thousands --seed {seed} --networks 1"
    return True, f"seed {seed}: {found}\nagain: {again}"


@pytest.fixture
def threads():
    before = get_num_threads()
    yield
    nn.set_num_threads(before)


@pytest.mark.parametrize("first", range(0, 24, 8))
def test_all_say_the_same(first, torch, tmp_path, threads):
    results = [judge(seed, torch, tmp_path) for seed in range(first, first + 8)]
    assert not any(found for _, found in results), "\n".join(found for _, found in results)
    judged = sum(judged for judged, _ in results)
    assert judged >= 4, f"seeds {first} to {first + 7} make {judged} networks that can be judged"


def test_what_is_drawn_has_compiled_loops():
    """Blocks, strides and kernels of one pixel among them, on vectors and on images."""
    found = collections.Counter()
    for seed in range(600):
        try:
            trial = Trial(seed)
        except Impossible:
            continue
        network = trial.start("cpu")
        if network.backend.why_not(network.program(), trial.optimizer()).startswith("the cpu wing"):
            found.update(
                kind
                for kind in ("Residual", "GroupNorm", "stride=2", "kernel=1", "kernel=5")
                if kind in trial.text and "Conv2d" in trial.text
            )
            found["dense block"] += "Residual" in trial.text and "Conv2d" not in trial.text
            found["loops"] += 1
    assert found.pop("loops") > 250
    assert len(found) == 6 and min(found.values()) >= 4, found


@pytest.mark.nightly
def test_all_say_the_same_for_thousands(torch, tmp_path, threads, request, capsys):
    seed, wanted = request.config.getoption("--seed"), request.config.getoption("--networks")
    first = seed = secrets.randbelow(2**32) if seed is None else seed
    kinds, wrong = collections.Counter(), []
    while kinds.total() < wanted and seed < first + 3 * wanted:
        judged, found = judge(seed, torch, tmp_path)
        if judged:
            kinds[type(Trial(seed).optimizer()).__name__] += 1
        if found:
            wrong.append(found)
        seed += 1
    with capsys.disabled():
        print(f"\nseeds {first} to {seed - 1}: {kinds.total()} networks, {len(wrong)} differ")
        print(", ".join(f"{count} by {kind}" for kind, count in kinds.most_common()))
    assert not wrong, "\n".join(wrong)
    assert kinds.total() == wanted


def test_a_difference_is_reported_for_the_fewest_layers(torch, tmp_path, threads, monkeypatch):
    """A control: where one kind of layer is wrong, it stands in the report, and hardly another."""
    right = Trial.step_by_step

    def wrong(self, wing):
        found = right(self, wing)
        return found + any(isinstance(layer, nn.LayerNorm) for layer in self.network.layers)

    monkeypatch.setattr(Trial, "step_by_step", wrong)
    seeds = (s for s in range(100) if "LayerNorm" in Trial(s).text and Trial(s).drawn > 4)
    results = ((seed, *judge(seed, torch, tmp_path)) for seed in seeds)
    seed, _, found = next(result for result in results if result[1])
    layers = found.splitlines()[0].rpartition("[")[2]
    assert "reference, step by step" in found and f"--seed {seed} --networks 1" in found
    assert layers.count("LayerNorm") == 1 and layers.count("(") <= 3, found


def test_a_network_that_diverges_in_one_wing_alone_is_reported(torch, tmp_path, monkeypatch):
    """A control: only a network without numbers in PyTorch and both wings is passed over."""
    fit = Trial.fit
    seed = next(s for s in range(100) if attempt(s, (), torch, tmp_path) == (True, ""))

    def diverging(self, network, **options):
        if network.backend.name == "reference":
            raise NonFiniteError("planted")
        return fit(self, network, **options)

    monkeypatch.setattr(Trial, "fit", diverging)
    assert "PyTorch does not" in attempt(seed, (), torch, tmp_path)[1]
    monkeypatch.setattr(Trial, "in_torch", lambda self, torch: np.array([np.nan]))
    assert "the cpu wing does not" in attempt(seed, (), torch, tmp_path)[1]
