"""Optimizers of several libraries, driven in one way: hyper-parameters, a start, steps."""

import contextlib
import functools
import inspect
import math
import random
import sys
from types import SimpleNamespace

import numpy as np

from minimal_nn import backend
from minimal_nn.optimizers import Optimizer

RATES = ("lr", "learning_rate", "max_lr", "max_learning_rate")
DECAYS = ("weight_decay", "decoupled_weight_decay", "weight_decay_rate")
_RATE = 2.0**-7  # where a learning rate has no default


def role(site):
    """Return what a hyper-parameter is by its name: rate, decay, eps or other."""
    name = site.partition("[")[0]
    if name in RATES:
        return "rate"
    if name in DECAYS:
        return "decay"
    return "eps" if name.startswith("eps") or name.endswith("_eps") else "other"


def sites_of(hyper):
    """Return {site: number} of hyper-parameters; the numbers of an eps that is a tuple each.

    >>> sites_of({"lr": 0.1, "eps": (None, 1e-3), "betas": (0.9, 0.99), "nesterov": True})
    {'lr': 0.1, 'eps[1]': 0.001}
    """
    sites = {}
    for name, value in hyper.items():
        if role(name) == "eps" and isinstance(value, (tuple, list)):
            sites.update({f"{name}[{i}]": v for i, v in enumerate(value) if _number(v)})
        elif _number(value) and (isinstance(value, float) or role(name) != "other"):
            sites[name] = float(value)
    return sites


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def with_sites(hyper, sites):
    """Return hyper-parameters with other numbers at some sites."""
    hyper = dict(hyper)
    for site, value in sites.items():
        name, bracket, place = site.partition("[")
        if bracket:
            entries = list(hyper[name])
            entries[int(place[:-1])] = value
            hyper[name] = tuple(entries)
        else:
            hyper[name] = value
    return hyper


class Maker:
    """An optimizer's class or function, with its hyper-parameters, ready to be begun anew.

    make: see check_optimizer.  hyper: {name: value} that are given to it.
    """

    def __init__(self, make, hyper):
        if hasattr(make, "init") and hasattr(make, "update"):
            raise TypeError(
                f"make: got a {type(make).__name__}, whose hyper-parameters are fixed, expected "
                "the function that makes it, such as optax.adam"
            )
        if not callable(make):
            raise TypeError(
                f"make: got {type(make).__name__}, expected what makes an optimizer: a class, a "
                "function of hyper-parameters (optax.adam, say), or a function of parameters"
            )
        self.make = make
        self.name = _name(make)
        self.begins, defaults = _kind(make, hyper)
        known = {**defaults, **hyper}
        if not any(role(name) == "rate" for name in known):
            known.update({n: _RATE for n in _required(make) if n in RATES})
        known.update({n: _RATE for n in RATES if n in known and known[n] is None})
        self.hyper = {n: v for n, v in known.items() if n in hyper or n in sites_by_name(known)}
        self.sites = sites_of(self.hyper)
        self.given = sites_of({**getattr(make, "keywords", {}), **hyper})
        self.seed = 0

    def begin(self, sites, arrays, problem):
        """Return the optimizer of some arrays, begun anew with numbers at its sites."""
        random.seed(self.seed)  # what foreign optimizers draw from
        np.random.seed(self.seed)
        if self.begins is _Torch:
            sys.modules["torch"].manual_seed(self.seed)
        return self.begins(self.make, with_sites(self.hyper, sites), arrays, problem)

    @contextlib.contextmanager
    def context(self):
        """Run it within: one thread, float64, chance that is its own."""
        states = random.getstate(), np.random.get_state()
        try:
            with _torch_context() if self.begins is _Torch else _jax_context():
                yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def sites_by_name(hyper):
    """Return the names of the hyper-parameters that hold a site."""
    return {site.partition("[")[0] for site in sites_of(hyper)}


def _name(make):
    if isinstance(make, functools.partial):
        given = ", ".join(f"{name}={value}" for name, value in make.keywords.items())
        return f"{_name(make.func)}({given})"
    return getattr(make, "__name__", type(make).__name__)


def _required(make):
    """Return the names of the arguments without a default."""
    return [
        p.name
        for p in inspect.signature(make).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _defaults(make):
    parameters = inspect.signature(make).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _kind(make, hyper):
    """Return how an optimizer is begun, and its default hyper-parameters."""
    if isinstance(make, type) and issubclass(make, Optimizer):
        decay = {} if "decoupled_weight_decay" in make.defaults else {"weight_decay": 0.0}
        return _own, {**make.defaults, **dict.fromkeys(make.options, 0.0), **decay}
    needed = [name for name in _required(make) if name not in hyper]
    if len(needed) == 3:
        return _Function, _defaults(make)
    if len(needed) == 1 and needed[0] not in RATES:
        defaults = _defaults(make)
        return _Torch, defaults if isinstance(make, type) or defaults else _of_groups(make)
    if set(needed) <= set(RATES):
        return _made, _defaults(make)
    raise TypeError(
        f"make: got {_name(make)} with the arguments {', '.join(needed)}, expected (parameters) as "
        "PyTorch's optimizers, (learning_rate) as optax', or (w, g, state); give other ones by "
        "name, or with functools.partial"
    )


def _of_groups(make):
    """Return the hyper-parameters that an optimizer keeps in its parameter groups."""
    import torch

    made = make([torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))])
    groups = getattr(made, "param_groups", None)
    return dict(groups[0], params=None) if groups else {}


# Each kind: a class with `arrays()`, `place(arrays)` and `step(evaluate)`, evaluate a function
# arrays -> (loss, gradients).


class _Own:
    """An optimizer of minimal_nn."""

    def __init__(self, optimizer, arrays):
        self.optimizer = optimizer
        self.model = SimpleNamespace(parameters={}, backend=backend.get("reference"))
        self.place(arrays)

    def arrays(self):
        return dict(self.model.parameters)

    def place(self, arrays):
        self.model.parameters = {name: array.copy() for name, array in arrays.items()}

    def step(self, evaluate):
        self.optimizer.step(self.model, evaluate(self.arrays())[1])


def _own(make, hyper, arrays, problem):
    return _Own(make(**hyper), arrays)


class _Function:
    """A function (w, g, state, **hyper-parameters) -> (w, state) for each parameter."""

    def __init__(self, make, hyper, arrays, problem):
        self.rule = functools.partial(make, **hyper)
        self.states = dict.fromkeys(arrays)
        self.place(arrays)

    def arrays(self):
        return dict(self.parameters)

    def place(self, arrays):
        self.parameters = {name: array.copy() for name, array in arrays.items()}

    def step(self, evaluate):
        gradients = evaluate(self.arrays())[1]
        for name, w in self.parameters.items():
            result = self.rule(w.copy(), gradients[name].copy(), self.states[name])
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(
                    f"make: it returned {type(result).__name__}, expected a pair (w, state)"
                )
            self.parameters[name], self.states[name] = result


class _Optax:
    """A GradientTransformation."""

    def __init__(self, transformation, arrays):
        import jax.numpy

        self.like = jax.numpy.asarray
        self.place(arrays)
        self.transformation, self.state = transformation, transformation.init(self.parameters)
        self.extra = type(transformation).__name__ == "GradientTransformationExtraArgs"

    def arrays(self):
        return {name: np.array(array) for name, array in self.parameters.items()}

    def place(self, arrays):
        self.parameters = {name: self.like(array) for name, array in arrays.items()}

    def step(self, evaluate):
        loss, gradients = evaluate(self.arrays())
        gradients = {name: self.like(array) for name, array in gradients.items()}
        extra = {"value": loss, "grad": gradients} if self.extra else {}
        updates, self.state = self.transformation.update(
            gradients, self.state, self.parameters, **extra
        )
        self.parameters = {name: w + updates[name] for name, w in self.parameters.items()}


def _made(make, hyper, arrays, problem):
    """Begin what a function of hyper-parameters makes: minimal_nn's or optax'."""
    made = make(**hyper)
    if isinstance(made, Optimizer):
        return _Own(made, arrays)
    if hasattr(made, "init") and hasattr(made, "update"):
        return _Optax(made, arrays)
    raise TypeError(
        f"make: it made a {type(made).__name__}, expected an optimizer of minimal_nn or of optax, "
        "or PyTorch's from a function of parameters"
    )


class _Torch:
    """An optimizer of PyTorch: each step gets the gradients, and a closure that evaluates anew."""

    def __init__(self, make, hyper, arrays, problem):
        import torch

        self.torch = torch
        self.loss_of = None
        self.tensors = {n: torch.nn.Parameter(torch.tensor(a)) for n, a in arrays.items()}
        parameters = inspect.signature(make).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        taken = {n: v for n, v in hyper.items() if n in parameters or open_ended}
        self.optimizer = make(list(self.tensors.values()), **taken)
        if not hasattr(self.optimizer, "param_groups"):
            raise TypeError(
                f"make: it made a {type(self.optimizer).__name__}, expected a torch optimizer"
            )
        first, *others = self.optimizer.param_groups
        if any(group.get(name) != first.get(name) for group in others for name in hyper):
            raise ValueError(
                f"make: it made {1 + len(others)} parameter groups, expected one: each has "
                "hyper-parameters of its own; check one after the other"
            )
        for group in self.optimizer.param_groups:
            group.update({name: value for name, value in hyper.items() if name not in taken})
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # schedule-free ones
        self.problem = problem

    def arrays(self):
        return {name: tensor.detach().numpy().copy() for name, tensor in self.tensors.items()}

    def place(self, arrays):
        with self.torch.no_grad():
            for name, array in arrays.items():
                self.tensors[name].copy_(self.torch.from_numpy(array))

    def step(self, evaluate):
        before = self.arrays()
        try:
            self._step(evaluate, graph=self.loss_of is not None)
        except RuntimeError as error:  # one of second order, which differentiates gradients
            if "grad" not in str(error) or self.problem.loss_of is None or self.loss_of:
                raise
            self.loss_of = self.problem.loss_of
            self.place(before)
            self._step(evaluate, graph=True)

    def _step(self, evaluate, graph):
        def closure():
            if graph:
                loss = self.loss_of(self.tensors)
                grads = self.torch.autograd.grad(loss, self.tensors.values(), create_graph=True)
            else:
                loss, gradients = evaluate(self.arrays())
                loss = self.torch.tensor(loss, dtype=self.torch.float64)
                grads = [self.torch.from_numpy(gradients[name].copy()) for name in self.tensors]
            for tensor, grad in zip(self.tensors.values(), grads, strict=True):
                tensor.grad = grad
            return loss

        with self.torch.enable_grad():
            closure()
        self.optimizer.step(closure)


@contextlib.contextmanager
def _torch_context():
    import torch

    from theory.yours.modules import one_thread

    with one_thread(), torch.random.fork_rng(devices=[]):
        yield


def _jax_context():
    """Return JAX's float64 where JAX is in use: nothing else needs a context."""
    if "jax" not in sys.modules:
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)
