"""Invariance groups against the truth: on architectures that nobody chose, loss by loss.

The truth about a layer's scale (and its shift) is measured: the first of the rescalings, of each
unit by itself, of blocks of units, larger and larger ones, or of the layer as a whole, without the
shift or jointly with it, under which the loss stays as it is.  Losses are computed in longdouble,
where rounding lies far below a change.
"""

from itertools import product

import numpy as np
import own
import pytest

from minimal_nn import (
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GroupNorm,
    LayerNorm,
    Lion,
    MaxPool2d,
    Network,
    ReLU,
    Residual,
    RMSNorm,
    Sequential,
    Tanh,
    WeightNorm,
    fit,
)

EXAMPLES = 7
SAME, OTHER = 1e-13, 1e-7  # relative to the loss; nothing may lie between


def group_norm(rng, units):
    """Draw a number of groups that divides the units."""
    return GroupNorm(int(rng.choice([g for g in range(1, units + 1) if units % g == 0])), eps=0.0)


def twice_by_group(layers, chosen):
    """Return whether examples would be normalized once more without a linear layer in between.

    Of what another normalization has made, groups may have statistics that are the same in all
    examples, or whose factors differ by example: invariances that are true, and not derived.
    """
    linear = [isinstance(x, (Dense, Conv2d, WeightNorm)) for x in layers]
    behind = layers[len(layers) - linear[::-1].index(True) :] if any(linear) else layers
    by_example = LayerNorm, RMSNorm, GroupNorm, Residual, Sequential, own.Residual
    if isinstance(chosen, GroupNorm):
        return any(isinstance(x, by_example) for x in behind)
    return isinstance(chosen, by_example) and any(isinstance(x, GroupNorm) for x in behind)


def image_block(rng, shape, layer):
    """Draw a composite layer on images around a convolution."""
    pointwise = Conv2d(layer.channels, kernel=1, padding=0, bias=bool(rng.integers(2)))
    norm = [BatchNorm(0.0)] if rng.integers(2) else []
    if rng.integers(2):
        return Sequential([layer, *norm])
    shortcut = [pointwise, *([BatchNorm(0.0)] if rng.integers(2) else [])]
    same = Conv2d(layer.channels, bias=bool(rng.integers(2)))
    if shape[-1] == layer.channels and rng.integers(2):
        shortcut = []
    return Residual([*([BatchNorm(0.0)] if rng.integers(2) else []), same, *norm], shortcut)


def block(rng, width, layer):
    """Draw a composite layer on vectors around a dense one."""
    norms = [BatchNorm(0.0), LayerNorm(0.0), RMSNorm(0.0)]
    tail = [norms[int(rng.integers(3))]] if rng.integers(2) else []
    tail += [ReLU()] if rng.integers(2) else []
    tail += [Dropout(0.2)] if rng.random() < 0.2 else []
    if rng.integers(2):
        return Sequential([layer, *tail])
    head = [norms[int(rng.integers(3))]] if width > 2 and rng.integers(2) else []
    if rng.integers(2):
        return Residual([*head, Dense(width, bias=layer.bias), *tail])
    units = layer.units
    return Residual([*head, layer, *tail], [Dense(units, bias=bool(rng.integers(2))), *tail[:1]])


def image_layers(rng, shape):
    """Draw layers on images, up to a Flatten."""
    layers = []
    for _ in range(int(rng.integers(1, 5))):
        # A single number would be seen by its sign alone, where a normalization follows.
        kernel = int(rng.integers(1 if shape[-1] > 1 else 2, 4))
        padding = int(rng.integers(0, 2)) if kernel > 1 else 0  # no window sees borders alone
        options = {"kernel": kernel, "padding": padding, "stride": int(rng.integers(1, 3))}
        layer = Conv2d(int(rng.integers(2, 5)), bias=bool(rng.integers(2)), **options)
        pool = AveragePool2d(2) if rng.integers(2) else MaxPool2d(2)
        kinds = [layer, WeightNorm(layer), BatchNorm(0.0), ReLU(), Tanh(), pool]
        kinds.append(own.Residual((Conv2d(shape[-1]), BatchNorm(0.0))))
        kinds += [image_block(rng, shape, layer), group_norm(rng, shape[-1])]
        chosen = kinds[int(rng.choice(9, p=[0.3, 0.1, 0.1, 0.1, 0.05, 0.1, 0.05, 0.1, 0.1]))]
        try:
            output = chosen.output_shape(shape)
        except ValueError:
            continue
        if isinstance(chosen, GroupNorm) and np.prod(shape) < 3 * chosen.groups:
            continue
        if twice_by_group(layers, chosen):
            continue
        if np.prod(output) > 2:
            shape = output
            layers.append(chosen)
    return [*layers, AveragePool2d() if shape[-1] > 2 and rng.random() < 0.2 else Flatten()]


def vector_layers(rng, width, images):
    """Draw layers on vectors, behind those on images."""
    layers = []
    for _ in range(int(rng.integers(0, 5))):
        layer = Dense(int(rng.integers(3, 7)), bias=bool(rng.integers(2)))
        kinds = [layer, WeightNorm(layer), BatchNorm(0.0), LayerNorm(0.0), ReLU(), Tanh()]
        kinds.append(own.Residual((Dense(width), BatchNorm(0.0), ReLU())))
        kinds += [RMSNorm(0.0), block(rng, width, layer), group_norm(rng, width)]
        chosen = kinds[int(rng.choice(10, p=[0.2, 0.1, 0.15, 0.1] + 4 * [0.05] + [0.15, 0.1]))]
        if isinstance(chosen, (LayerNorm, RMSNorm)) and width < 3:
            continue  # two numbers become -1 and 1: the loss is constant in pieces
        if isinstance(chosen, GroupNorm) and width < 3 * chosen.groups:
            continue
        if twice_by_group([*images, *layers], chosen):
            continue
        (width,) = chosen.output_shape((width,))
        layers.append(chosen)
    return layers


def drawn(seed):
    """Return a random network with random numbers at eps = 0, and a batch; None if it cannot be."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        shape = (int(rng.integers(1, 6)), int(rng.integers(2, 6)), int(rng.integers(1, 4)))
        layers = image_layers(rng, shape)
    else:
        shape, layers = (int(rng.integers(3, 6)),), []
    try:
        width = Network([*layers, Dense(2)], shape).shapes[-2][0]
        layers = [*layers, *vector_layers(rng, width, layers), Dense(3)]
        network = Network(layers, shape, dtype=np.float64)
    except ValueError:
        return None

    def numbers(array, name):
        if name.split(".")[-1] in ("W", "v"):
            return rng.standard_normal(array.shape)
        return rng.uniform(0.5, 1.5, array.shape)  # shifts that keep units alive through ReLU

    parameters = {k: numbers(a, k) for k, a in network.parameters.items()}
    X = rng.standard_normal((EXAMPLES, *shape))
    network = network.with_parameters(parameters).astype(np.longdouble)
    return network, X.astype(np.longdouble), rng.integers(0, 3, EXAMPLES)


def sources(network):
    """Yield (scale, shift or None) of each layer by full names, looking into layers."""
    names = set(network.parameters)
    for scale in network.parameters:
        stem, _, local = scale.rpartition(".")
        shift = {"W": "b", "g": "b", "gamma": "beta", "v": None}.get(local, 0)
        if shift != 0:
            yield scale, f"{stem}.{shift}" if f"{stem}.{shift}" in names else None


def change(network, X, labels, changes):
    """Return by how much the loss changes, relatively, with these parameters."""
    changes = {name: array.astype(np.longdouble) for name, array in changes.items()}
    loss = network.loss(X, labels)
    try:
        return float(abs(network.with_parameters(changes).loss(X, labels) - loss) / loss)
    except (ValueError, ArithmeticError):
        return np.inf  # a unit died of it


def same(network, X, labels, every):
    """Return whether the loss is the same with each of these parameters."""
    found = 0.0
    for changes in every:  # one of them may change it by little
        found = max(found, change(network, X, labels, changes))
        if found > OTHER:
            return False
    assert found < SAME, f"{list(changes)}: a change of {found:.3g} says nothing"
    return True


class Unfelt(Exception):
    """Whatever is said of the scale is true: all that it reaches is dead, or constant."""


def truth(network, X, labels, scale, shift, rng):
    """Return the finest rescaling that leaves the loss as it is: (names, blocks), or None.

    Raises Unfelt for a scale that the loss does not depend on at all.
    """
    w = network.parameters[scale]
    other = np.abs(rng.standard_normal(w.shape))  # a rescaling would keep the signs
    if same(network, X, labels, ({scale: sign * other} for sign in (-1, 1))):
        raise Unfelt
    units = w.shape[-1]
    blocks = [number for number in range(units, 0, -1) if units % number == 0]
    for number, joint in product(blocks, (False, True)):
        if joint and shift is None:
            continue
        names = (scale, shift) if joint else (scale,)
        if unchanged(network, X, labels, names, number, rng):
            return names, number
    return None


def unchanged(network, X, labels, names, blocks, rng):
    """Return whether the loss stays as it is under a factor for each of so many blocks of units."""
    units = network.parameters[names[0]].shape[-1]
    scaled = ({k: network.parameters[k] * by for k in names} for by in factors(units, blocks, rng))
    return same(network, X, labels, scaled)


def factors(units, blocks, rng):
    """Return factors, some so far from 1 that a ReLU that let everything pass does so no more, and
    a tanh that was saturated no longer is."""
    if blocks == 1:
        return 1.7, 9.0, 0.1, 1e-3
    ends = ((0.6, 1.9), (0.1, 1.2), (0.8, 9.0), (1e-3, 1e-2))
    each = [rng.permutation(np.geomspace(*end, blocks)) for end in ends]
    return [np.repeat(by, units // blocks) for by in each]


def steady(network, X, labels, rng):
    """Return whether rounding does not matter, as it would where a variance is rounding alone."""
    loss = network.loss(X, labels)
    for _ in range(8):
        moved = network.with_parameters(
            {
                name: w * (1 + np.longdouble(1e-17) * rng.standard_normal(w.shape))
                for name, w in network.parameters.items()
            }
        )
        if abs(moved.loss(X, labels) - loss) > SAME / 10 * loss:
            return False
    return True


def has_dead_units(network, X, labels):
    """Return whether a unit of a ReLU is 0 in all examples: what it hides is invisible too."""
    layers = network.trace(X, labels).layers
    outputs = (layers[name].y for name, layer in network.named_layers() if isinstance(layer, ReLU))
    return any(not y.reshape(-1, y.shape[-1]).any(axis=0).all() for y in outputs)


def check(seed, accidents=None):
    """Compare derived groups with measured ones; return how many, or None for no network.

    accidents: a list that takes those groups which are true, and not the finest or not derived, by
    an accident of the network: a feature that is one number, say, and is normalized to its sign.
    """
    found = drawn(seed)
    if found is None:
        return None
    network, X, labels = found
    rng = np.random.default_rng(seed)
    what = f"seed {seed}: {network.input_shape} {list(network.layers)}"
    try:
        if not steady(network, X, labels, rng) or has_dead_units(network, X, labels):
            return None
    except (ValueError, ArithmeticError):
        return None  # a unit or an example died: a variance of 0
    derived = {
        g.parameters[0]: (
            g.parameters,
            network.parameters[g.parameters[0]].shape[-1] if g.per_unit else g.blocks,
        )
        for g in network.invariance_groups()
    }
    count = 0
    for scale, shift in sources(network):
        got = derived.pop(scale, None)
        try:
            expected = truth(network, X, labels, scale, shift, rng)
        except Unfelt:
            continue
        if got != expected:
            found = f"{what}: {scale}: derived {got}, measured {expected}"
            assert accidents is not None, found
            assert got is None or unchanged(network, X, labels, *got, rng), found
            accidents.append(found)
        count += got is not None
    assert not derived, f"{what}: {list(derived)} are no scales of a layer"
    return count


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_derived_groups_are_the_finest_true_ones(first):
    counts = [check(seed) for seed in range(first, first + 40)]
    made = [count for count in counts if count is not None]
    assert len(made) > 15 and sum(made) > 15, f"seeds {first} to {first + 39} make too little"


@pytest.mark.nightly
def test_derived_groups_are_the_finest_true_ones_on_many():
    accidents = []
    made = [check(seed, accidents) for seed in range(10_000, 14_000)]
    count = sum(filter(None, made))
    print(
        count, "groups of", len(made) - made.count(None), "networks,", len(accidents), "accidents"
    )
    print(*accidents[:5], sep="\n")
    assert len(accidents) < 0.02 * count


def cancellations(seed):
    """Return how many shifts are derived to be cancelled, are not although the loss does not feel
    them, and are felt: at an eps that matters, when other shifts are drawn.

    None is derived that the loss feels.  Returns (0, 0, 0) for no network.
    """
    found, counts = drawn(seed), [0, 0, 0]
    if found is None:
        return counts
    network, X, labels = found
    network, rng = network.with_eps(0.25), np.random.default_rng(seed)
    derived = network.cancelled_parameters()
    known = all(layer.built_in for layer in network.layers)
    try:
        for name, b in network.parameters.items():
            if name.endswith((".b", ".beta")):
                moved = (b + 3 * rng.standard_normal(b.shape) for _ in range(3))
                if not same(network, X, labels, ({name: other} for other in moved)):
                    assert name not in derived, f"seed {seed}: {list(network.layers)}: {name}"
                    counts[2] += 1
                elif name in derived or known:
                    counts[name not in derived] += 1
        gradients = network.loss_and_gradients(X, labels).gradients
    except (ValueError, ArithmeticError):
        return [0, 0, 0]  # an activation died
    assert all(not gradients[name].any() for name in derived)
    return counts


def test_derived_cancellations_are_true_and_nearly_all():
    """What is missed is constant by accident, as the pixels' mean behind an instance norm is."""
    cancelled, missed, felt = np.sum([cancellations(seed) for seed in range(240)], axis=0)
    assert cancelled > 10 * missed and felt > 300


@pytest.mark.nightly
def test_derived_cancellations_are_true_and_nearly_all_on_many():
    total = np.sum([cancellations(seed) for seed in range(20_000, 26_000)], axis=0)
    print("{} shifts are cancelled, {} more are not felt, {} are felt".format(*total))
    assert total[0] > 10 * total[1]


def test_statistics_that_stay_cancel_nothing(rng):
    """A batch norm in evaluation, or in a frozen layer, lets a bias through."""
    layers = [Dense(4), Residual([BatchNorm(), ReLU()], [Dense(4)]), LayerNorm(), Dense(3)]
    network = Network([Dense(5), BatchNorm(), *layers], (6,), dtype=np.float64)
    assert network.cancelled_parameters() == ("dense1.b",)
    assert network.cancelled_parameters(train=False) == ()
    assert network.cancelled_parameters(frozen=["batchnorm1"]) == ()
    assert network.cancelled_parameters(frozen=["residual1"]) == ("dense1.b",)
    images = [Conv2d(4), GroupNorm(4), Flatten(), Dense(3)]
    assert Network(images, (4, 4, 2)).cancelled_parameters(train=False) == ("conv1.b",)
    X, t = rng.standard_normal((7, 6)), rng.integers(0, 3, 7)
    for options in ({"train": False}, {"frozen": ["batchnorm1"]}):
        step = network.step_gradients if "frozen" in options else network.loss_and_gradients
        assert np.abs(step(X, t, **options).gradients["dense1.b"]).max() > 1e-4


def test_a_shortcut_whose_statistics_may_stay_cancels_nothing():
    """A frozen block lets the bias through to its ReLU, whatever the norm behind it does."""
    block = Residual([BatchNorm(), ReLU(), Dense(4)])
    assert Network([Dense(4), block, BatchNorm(), Dense(3)], (5,)).cancelled_parameters() == (
        "residual1.dense1.b",
    )
    passed = Residual([Dense(4, bias=False)])
    network = Network([Dense(4), passed, BatchNorm(), Dense(3)], (5,))
    assert network.cancelled_parameters() == ("dense1.b",)


@pytest.mark.parametrize("wing", ("reference", "cpu"))
def test_a_cancelled_bias_is_left_where_it_is(wing, rng):
    """Also by steps that take a gradient's direction alone, compiled or not."""
    layers = [Dense(5), BatchNorm(1e-2), Dense(3)]
    network = Network(layers, (4,), dtype=np.float64, backend=wing)
    b = network.parameters["dense1.b"] = rng.standard_normal(5)
    X, t = rng.standard_normal((24, 4)), rng.integers(0, 3, 24)
    fit(network, Lion(0.01), X, t, epochs=2, batch_size=8, progress=False)
    assert np.array_equal(network.parameters["dense1.b"], b)


def test_a_bias_of_a_layer_of_ones_own_is_not_cancelled():
    class Own(Dense):
        pass

    assert Network([Own(4), BatchNorm(), Dense(3)], (5,)).cancelled_parameters() == ()


def test_layers_of_ones_own_cancel_nothing(rng):
    """What they do to a bias is theirs to say: this batch norm subtracts no mean."""

    class Uncentred(BatchNorm):
        def forward(self, wing, parameters, state, x, train):
            y, cache, state = super().forward(wing, parameters, state, x, train)
            return y + x.mean(axis=0), (cache, len(x)), state

        def backward(self, wing, dy, cache):
            dx, gradients = super().backward(wing, dy, cache[0])
            return dx + dy.sum(axis=0) / cache[1], gradients

    network = Network([Dense(4), Uncentred(), Dense(3)], (5,), dtype=np.float64)
    assert network.cancelled_parameters() == ()
    X, t = rng.standard_normal((7, 5)), rng.integers(0, 3, 7)
    assert np.abs(network.loss_and_gradients(X, t).gradients["dense1.b"]).max() > 1e-3


PIXELS = [
    *(Conv2d(2, kernel=1, padding=0, bias=False), Conv2d(2), Conv2d(2)),
    *(Flatten(), BatchNorm(0.0), Dense(3)),
]


def test_an_offset_that_differs_by_pixel_is_absorbed_after_flatten():
    """A border of zeros makes a bias differ by pixel; flattened, every pixel is a unit."""
    groups = Network(PIXELS, (4, 4, 2)).invariance_groups()
    assert [(group.parameters, group.per_unit) for group in groups] == [
        (("conv1.W",), False),
        (("conv2.W",), False),
        (("conv3.W",), True),
    ]


def test_an_offset_that_differs_by_pixel_is_felt_by_batch_norm_over_pixels():
    layers = [Conv2d(2), Conv2d(2), BatchNorm(0.0), Flatten(), Dense(3)]
    groups = Network(layers, (4, 4, 2)).invariance_groups()
    assert [group.parameters for group in groups] == [("conv1.W", "conv1.b"), ("conv2.W",)]
    one_pixel = Network(layers, (1, 1, 2)).invariance_groups()
    assert [group.parameters for group in one_pixel] == [("conv1.W",), ("conv2.W",)]


# Layers that hold layers


def composite():
    inner = own.Residual((Dense(4), BatchNorm(0.25), ReLU(), Dense(4)))
    return Network([Dense(4), inner, LayerNorm(0.5), Dense(3)], (5,), dtype=np.float64)


def test_weights_and_groups_look_into_composites():
    network = composite()
    inner = "residual1.dense1.W", "residual1.dense4.W"
    assert network.weights() == ("dense1.W", *inner, "dense2.W")
    assert [(g.parameters, g.absorbed_by) for g in network.invariance_groups()] == [
        (("residual1.dense1.W",), "residual1.batchnorm2"),
    ]
    assert "residual1" in network.summary() and "a factor per unit" in network.summary()


def test_eps_is_changed_in_composites(rng):
    network = composite().with_eps(0.0)
    norms = [network.layers[1].layers[1], network.layers[2]]
    assert [layer.eps for layer in norms] == [0.0, 0.0]
    assert {group.eps for group in network.invariance_groups()} == {0.0}
    assert composite().layers[1].layers[1].eps == 0.25
    nested = own.Residual((own.Residual((own.RMSNorm(0.5),)),)).with_eps(0.125)
    assert nested.layers[0].layers[0].eps == 0.125


def test_a_sequence_passes_on_what_leaves_its_last_part():
    class Sequence(own.Residual):
        def leaving(self, rescaling):
            return rescaling

    inner = Sequence((Dense(4, bias=False), ReLU()))
    network = Network([inner, BatchNorm(0.0), Dense(3)], (4,))
    assert [(g.parameters, g.per_unit, g.absorbed_by) for g in network.invariance_groups()] == [
        (("residual1.dense1.W",), True, "batchnorm1")
    ]


def test_layers_say_what_they_normalize_and_need():
    assert WeightNorm(Dense(3), eps=0.5).normalized() == (("v", 0.5),)
    assert [layer.least_examples((4,)) for layer in (Dense(3), BatchNorm())] == [1, 2]
    assert BatchNorm().least_examples((1, 1, 4)) == 2 and BatchNorm().least_examples((2, 1, 4)) == 1
    assert composite().least_examples() == (2, "residual1")


def test_a_factor_and_a_bias_pass_an_average():
    """Also a bias that differs by pixel: its average is one number for each channel."""
    for layers in ([AveragePool2d(2), Flatten()], [AveragePool2d()]):
        net = Network([Conv2d(2), Conv2d(3), *layers, BatchNorm(0.0), Dense(2)], (4, 4, 1))
        assert [(g.parameters, g.per_unit) for g in net.invariance_groups()] == [
            (("conv1.W",), False),
            (("conv2.W",), True),
        ]
