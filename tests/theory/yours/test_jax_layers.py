"""theory.jax.verify: JAX's own layers hold bit for bit, under vmap or not; mutated ones do not."""

import contextlib
import functools

import pytest

pytest.importorskip("jax", reason="the package jax is not installed")

import jax
import jax.numpy as jnp
import numpy as np

import theory.jax

with contextlib.suppress(ImportError):
    import flax.linen  # noqa: F401  here, as it draws from the global states when it is imported

Z = np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32)
FAULTS = ("detached variance", "eps outside the root", "detached mean")


def normalize(z, eps, axis, fault=""):
    mean = z.mean(axis, keepdims=True)
    mean = jax.lax.stop_gradient(mean) if fault == "detached mean" else mean
    centered = z - mean
    var = (centered * centered).mean(axis, keepdims=True)
    var = jax.lax.stop_gradient(var) if fault == "detached variance" else var
    s = jnp.sqrt(var) + eps if fault == "eps outside the root" else jnp.sqrt(var + eps)
    return centered / s


def asked(function, dtype=np.float32, eps=1e-2):
    """The verdict on a function, whose loss gives a normalization no cotangent of its own."""
    (verdict,) = theory.jax.verify(function, lambda f: jnp.sum(f(jnp.asarray(Z, dtype), eps)))
    return verdict


@pytest.mark.parametrize("axis", (0, -1))
def test_a_function_holds_with_no_differing_bit(axis):
    def norm(z, eps):
        return normalize(z, eps, axis)

    verdict = asked(norm)
    assert verdict and verdict.differing == 0 and verdict.compared == 4 * 2 * Z.size, str(verdict)
    assert verdict.kind == "norm" and verdict.bound < 1e-10  # in float64


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mutated_function_is_told_apart(fault):
    verdict = asked(lambda z, eps: normalize(z, eps, 0, fault))
    assert not verdict and "FAILS" in str(verdict)
    if fault != "eps outside the root":  # they rescale well: the radial law sees them
        assert verdict.differing == 0 and verdict.radial > 1000 * verdict.bound


def test_what_rounds_inside_and_half_precision_are_judged_as_float32():
    def inside(z, eps):
        return normalize(z.astype(jnp.float32), eps, 0).astype(z.dtype)

    for verdict in (asked(inside), asked(lambda z, eps: normalize(z, eps, 0), jnp.bfloat16)):
        assert verdict, str(verdict)
    assert 1e-7 < asked(inside).bound < 1e-3


def test_a_partial_function_is_a_function():
    for fault in ("", FAULTS[0]):
        verdict = asked(functools.partial(normalize, axis=0, fault=fault))
        assert verdict.kind == "normalize" and bool(verdict) == (not fault), str(verdict)


class Layer:
    """Layer norm of one example: an object with an eps."""

    def __init__(self, eps=1e-3, fault=""):
        self.eps, self.fault = eps, fault

    def __call__(self, z):
        return normalize(z, self.eps, -1, self.fault)


class Named:
    """The same, its eps by another name."""

    def __init__(self, name, fault):
        setattr(self, name, 1e-3)
        self.name, self.fault = name, fault

    def __call__(self, z):
        return normalize(z, getattr(self, self.name), -1, self.fault)


@pytest.mark.parametrize("name", ("eps", "epsilon", "variance_epsilon"))
def test_an_eps_is_found_by_any_of_its_names(name):
    for fault in ("", FAULTS[0]):
        (verdict,) = theory.jax.verify(
            Named(name, fault), lambda layer: jnp.sum(layer(jnp.asarray(Z)))
        )
        assert bool(verdict) == (not fault) and not verdict.refused, str(verdict)


class Model:
    """Two layers, one of them in a list, and what is jitted."""

    def __init__(self, **options):
        self.first, self.rest = Layer(), [Layer(**options)]

    def __call__(self, z):
        return self.rest[0](jnp.sin(3 * self.first(z)))


@jax.jit
def jitted(model_input):
    return Model()(model_input)


def test_layers_are_found_in_objects_and_asked_under_vmap():
    def loss(model):
        return jnp.sum(jax.vmap(model)(jnp.asarray(Z)))

    found = theory.jax.verify(Model(), loss)
    assert [verdict.layer for verdict in found] == ["first", "rest.0"] and all(found)
    assert [verdict.compared for verdict in found] == [4 * 2 * 6] * 2  # sums over the examples
    found = theory.jax.verify(Model(fault="detached variance"), loss)
    assert [bool(verdict) for verdict in found] == [True, False]
    calls = Layer.__call__
    theory.jax.verify(Model(), loss)
    assert Layer.__call__ is calls  # as it was


def test_what_was_compiled_before_is_asked_all_the_same():
    jitted(jnp.asarray(Z))
    found = theory.jax.verify(Model(), lambda model: jnp.sum(jax.jit(model)(jnp.asarray(Z))))
    assert len(found) == 2 and all(found)


@pytest.mark.parametrize(
    "layer, words",
    (
        (Layer(eps=-1.0), "its eps is -1.0, expected a finite number >= 0"),
        (Layer(eps="1"), "its eps is '1'"),
        (Layer(eps=np.ones(6)), "its eps is an array of shape (6,), expected a finite number"),
    ),
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(layer, words):
    if isinstance(layer.eps, str):
        layer.__class__ = type("Text", (Layer,), {"__call__": lambda self, z: z})
    (verdict,) = theory.jax.verify(layer, lambda layer: jnp.sum(layer(jnp.asarray(Z))))
    assert not verdict and words in verdict.refused


def test_an_output_that_does_not_reach_the_loss_tells_nothing():
    def loss(layer):
        layer(jnp.asarray(Z))
        return jnp.sum(jnp.asarray(Z))

    (verdict,) = theory.jax.verify(Layer(), loss)
    assert not verdict and "its output does not reach the loss" in verdict.refused


def test_a_call_for_its_shape_alone_is_none():
    """As Flax's scan makes one; a layer of which no call reaches the loss is still refused."""

    def loss(layer):
        jax.eval_shape(layer, jnp.asarray(Z))
        return jnp.sum(layer(jnp.asarray(Z)))

    (verdict,) = theory.jax.verify(Layer(), loss)
    assert verdict, str(verdict)


def test_losses_and_models_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match=r"loss: got \(12, 6\), expected a scalar"):
        theory.jax.verify(Layer(), lambda layer: layer(jnp.asarray(Z)))
    with pytest.raises(TypeError, match="loss: got int, expected a function model"):
        theory.jax.verify(Layer(), 1)
    with pytest.raises(ValueError, match="model: got dict, of which no layer with an eps was"):
        theory.jax.verify({}, lambda model: jnp.sum(jnp.asarray(Z)))


# Real libraries, where they are installed


@pytest.mark.slow
def test_every_layer_of_an_equinox_model_holds():
    eqx = pytest.importorskip("equinox", reason="the package equinox is not installed")

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        group: eqx.nn.GroupNorm
        batch: eqx.nn.BatchNorm
        layers: list

        def __init__(self, key):
            keys = jax.random.split(key, 2)
            self.conv = eqx.nn.Conv2d(3, 4, 3, key=keys[0])
            self.group = eqx.nn.GroupNorm(2, 4)
            self.batch = eqx.nn.BatchNorm(4, "batch", mode="batch")
            linear = eqx.nn.Linear(4, 6, key=keys[1])
            self.layers = [linear, eqx.nn.LayerNorm(6), eqx.nn.RMSNorm(6)]

        def __call__(self, x, state):
            x, state = self.batch(jnp.tanh(self.group(self.conv(x))), state)
            x = x.mean((1, 2))
            for layer in self.layers:
                x = jnp.sin(layer(x))
            return x, state

    net, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    X = jax.random.normal(jax.random.key(1), (6, 3, 4, 4))

    @eqx.filter_jit
    def loss(net):
        axes = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
        return jnp.mean(jax.vmap(net, **axes)(X, state)[0] ** 3)

    loss(net)
    found = theory.jax.verify(net, loss)
    assert [v.kind for v in found] == ["GroupNorm", "BatchNorm", "LayerNorm", "RMSNorm"]
    assert all(found), "\n".join(map(str, found))
    (refused,) = [v for v in theory.jax.verify(eqx.nn.inference_mode(net), loss) if v.refused]
    assert refused.kind == "BatchNorm" and "running statistics" in refused.refused


@pytest.mark.slow
def test_every_layer_of_flax_models_holds():
    linen = pytest.importorskip("flax.linen", reason="the package flax is not installed")
    from flax import nnx

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.BatchNorm(use_running_average=False)(linen.Dense(6)(x))
            x = linen.GroupNorm(2)(linen.Dense(6)(jnp.tanh(x)))
            return linen.RMSNorm()(jnp.tanh(linen.LayerNorm()(jnp.tanh(x))))

    net, X = Net(), jnp.asarray(Z)
    variables = net.init(jax.random.key(0), X)
    found = theory.jax.verify(
        net, lambda net: jnp.mean(net.apply(variables, X, mutable=["batch_stats"])[0] ** 3)
    )
    kinds = ["BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm"]
    assert [v.kind for v in found] == kinds and all(found), "\n".join(map(str, found))
    assert max(v.bound for v in found) < 1e-9

    class Other(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(6, 6, rngs=rngs)
            self.bn, self.ln = nnx.BatchNorm(6, rngs=rngs), nnx.LayerNorm(6, rngs=rngs)

        def __call__(self, x):
            return self.ln(jnp.sin(self.bn(self.linear(x))))

    found = theory.jax.verify(Other(nnx.Rngs(0)), lambda net: jnp.mean(net(X) ** 3))
    assert [v.layer for v in found] == ["bn", "ln"] and all(found), "\n".join(map(str, found))
