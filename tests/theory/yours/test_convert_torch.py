"""theory.convert against torch.optim: real runs by one convention and by another, from a w_0."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

import torch
from foreign_models import GroupNet, ResNet
from torch.nn import functional as F

from theory import convert, laws
from theory.yours.conversion import DECAYS

# minimal_nn's name: torch's class, options of its own, and its names of what convert gives
OURS = {"learning_rate": "lr", "weight_decay": "weight_decay", "eps": "eps"}
MOMENTUM = OURS | {"momentum": "momentum"}
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {}, OURS),
    "Momentum": (torch.optim.SGD, {}, MOMENTUM),
    "Nesterov": (torch.optim.SGD, {"nesterov": True, "momentum": 0.5}, MOMENTUM),
    "RMSprop": (torch.optim.RMSprop, {}, OURS | {"decay": "alpha"}),
    "Adagrad": (torch.optim.Adagrad, {}, OURS),
    "Adam": (torch.optim.Adam, {}, OURS),
    "AdamW": (torch.optim.AdamW, {}, OURS | {"decoupled_weight_decay": "weight_decay"}),
}
WEIGHTS = {ResNet: {"stem.weight": "bn"}, GroupNet: {"up.weight": "bn"}}


def drawn(name, seed):
    """Hyper-parameters of an optimizer, at random, without decay."""
    rng = np.random.default_rng([seed, *map(ord, name)])
    hyper = {"learning_rate": 10 ** rng.uniform(-3, -1)}
    own = OPTIMIZERS[name][2]
    hyper |= {key: rng.uniform(0.3, 0.99) for key in ("momentum", "decay") if key in own}
    if laws.DEGREES[name] != 1:
        hyper["eps"] = 10 ** rng.uniform(-8, -4)
    return hyper, 10 ** rng.uniform(-3, -1), float(np.exp(rng.uniform(-1.5, 1.5)))


def run(kind, name, hyper, a=1.0, decay_by_hand=None, steps=8):
    """The invariant weights, divided by a, after a run of torch.optim from a w_0.

    The eps of the layer behind them follows a.  decay_by_hand: (name, value) of a decay that no
    option gives; other parameters have hyper-parameters of their own.
    """
    optimizer_class, options, names = OPTIMIZERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind().double()
        X, y = torch.randn(12, 3, 6, 6).double(), torch.randint(0, 4, (12,))
    ((weights, layer),) = WEIGHTS[kind].items()
    w = model.get_parameter(weights)
    with torch.no_grad():
        w.mul_(a)
    model.get_submodule(layer).eps *= a * a
    others = [p for p in model.parameters() if p is not w]
    own = {names[key]: value for key, value in hyper.items()}
    optimizer = optimizer_class([{"params": others}, {"params": [w], **own}], lr=0.01, **options)
    convention, value = decay_by_hand or ("", 0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), y)
        if convention == "l2":
            loss = loss + value * w.square().sum()
        loss.backward()
        with torch.no_grad():
            if convention == "decoupled_weight_decay":
                w.mul_(1 - hyper["learning_rate"] * value)
            elif convention == "independent_weight_decay":
                w.mul_(1 - value)
        optimizer.step()
    return w.detach().numpy() / a


def apart(one, other):
    return np.linalg.norm(one - other) / np.linalg.norm(one)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rescaled_run_of_torch_optim_is_the_run_before(name, seed):
    hyper, decay, a = drawn(name, seed)
    hyper["decoupled_weight_decay" if name == "AdamW" else "weight_decay"] = decay
    kind = (ResNet, GroupNet)[seed]
    before = run(kind, name, hyper)
    assert apart(before, run(kind, name, convert(name, rescale=a, **hyper), a)) < 1e-9
    assert apart(before, run(kind, name, hyper, a)) > 1e-5  # control


def by(name, rate_and_more, convention, value):
    """A run with the decay of a convention: torch's own option where it is that, else by hand."""
    if OPTIMIZERS[name][2].get(convention) == "weight_decay":
        return run(ResNet, name, {**rate_and_more, convention: value})
    none = {"decoupled_weight_decay": 0.0} if name == "AdamW" else {}
    return run(ResNet, name, {**rate_and_more, **none}, decay_by_hand=(convention, value))


def pairs():
    """Each optimizer with pairs of the conventions that are the same kind of decay for it."""
    for name in OPTIMIZERS:
        kinds = DECAYS if name == "SGD" else DECAYS[2:] if name == "AdamW" else DECAYS[:2]
        yield from ((name, old, new) for old in kinds for new in kinds if old < new)


@pytest.mark.parametrize("name, old, new", tuple(pairs()))
def test_conventions_of_decay_are_runs_of_torch_optim(name, old, new):
    hyper, decay, _ = drawn(name, 7)
    before = by(name, hyper, old, decay)
    found = convert(name, decay_as=new, **hyper, **{old: decay})
    assert apart(before, by(name, hyper, new, found[new])) < 1e-9
    assert apart(before, by(name, hyper, new, 2.5 * found[new])) > 1e-6  # control
    assert convert(name, decay_as=old, **found)[old] == pytest.approx(decay, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_penalty_and_a_decoupled_decay_are_different_runs_of_adam(seed):
    """What convert refuses: no number makes one of the other."""
    hyper, decay, _ = drawn("Adam", seed)
    coupled = run(ResNet, "Adam", {**hyper, "weight_decay": decay})
    decoupled = [
        run(ResNet, "AdamW", {**hyper, "decoupled_weight_decay": factor * decay})
        for factor in np.geomspace(1e-3, 1e3, 13)
    ]
    assert min(apart(coupled, other) for other in decoupled) > 1e-5
    with pytest.raises(ValueError, match="no number makes one of the other"):
        convert("Adam", weight_decay=decay, decay_as="decoupled_weight_decay", **hyper)
