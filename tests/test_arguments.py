"""Array-likes at every door: the same bits as a plain array, or refused in a sentence."""

import importlib.util

import numpy as np
import pytest
import wings

import minimal_nn as nn
from minimal_nn import arguments
from minimal_nn.augmentation import flip_and_shift

EVERY_WING = pytest.mark.parametrize("wing", wings.names("affine"))
X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
LABELS = np.arange(12) % 3
TARGETS = np.random.default_rng(1).standard_normal((12, 3)).astype(np.float32)


class Series:
    """What counts of a pandas Series or DataFrame: indexing goes by label, np.asarray by position.

    The labels are those that a shuffling split leaves behind.
    """

    def __init__(self, values):
        self.values = np.asarray(values)
        self.index = np.random.default_rng(2).permutation(len(self.values))

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, labels):
        place = np.argsort(self.index)
        return self.values[place[np.asarray(labels)]]

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Import what draws from NumPy's global state while it is imported, before a test watches."""
    for name in ("torch", "jax"):
        if importlib.util.find_spec(name):
            importlib.import_module(name)


def torch_tensor(array):
    torch = pytest.importorskip("torch", reason="converts PyTorch's tensors")
    tensor = torch.tensor(array)
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


def jax_array(array):
    jax = pytest.importorskip("jax", reason="converts JAX's arrays")
    return jax.numpy.asarray(array)


def strided(array):
    larger = np.zeros([2 * n for n in array.shape], array.dtype)
    view = larger[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


def backwards(array):
    return array[::-1].copy()[::-1]


def byteswapped(array):
    return array.astype(array.dtype.newbyteorder())


def unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


def memory_map(array, folder):
    path = folder / f"{array.dtype}.bin"
    array.tofile(path)
    return np.memmap(path, array.dtype, "r", shape=array.shape)


def nothing_masked(array):
    return np.ma.MaskedArray(array, mask=False)


KINDS = (
    Series,
    torch_tensor,
    jax_array,
    np.asfortranarray,
    strided,
    backwards,
    byteswapped,
    unaligned,
    read_only,
    nothing_masked,
)


def network(wing="reference", loss="cross_entropy"):
    layers = [nn.Dense(5), nn.BatchNorm(), nn.ReLU(), nn.Dense(3)]
    return nn.Network(layers, (4,), rng=3, backend=wing, loss=loss)


def everything(X, targets, wing, loss):
    """Return all that public calls say of the data, in bytes."""
    net = network(wing, loss)
    results = [net.loss(X, targets), net.forward(X), net.predict(X)]
    results += net.loss_and_gradients(X, targets).gradients.values()
    results.append(net.trace(X, targets).layers["dense1"].y)
    results += net.evaluate(X, targets).values()
    if loss == "cross_entropy":
        results.append(net.error(X, targets))
    history = nn.fit(
        net,
        nn.Adam(0.02),
        X,
        targets,
        epochs=2,
        batch_size=4,
        validation=(X, targets),
        progress=False,
    )
    results += [history.loss, history.epochs[-1]["validation_loss"], *net.parameters.values()]
    return [np.asarray(result).tobytes() for result in results]


@pytest.mark.parametrize("loss", ("cross_entropy", "mean_squared_error"))
@EVERY_WING
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_public_call_takes_it_for_the_array_that_it_is(kind, wing, loss):
    targets = LABELS if loss == "cross_entropy" else TARGETS
    expected = everything(X, targets, wing, loss)
    assert everything(kind(X), kind(targets), wing, loss) == expected
    assert everything(X, kind(targets), wing, loss) == expected


@EVERY_WING
def test_a_matrix_is_an_array(wing):
    """Products of np.matrix are others than those of arrays: it is not computed with."""
    expected = everything(X, TARGETS, wing, "mean_squared_error")
    given = X.view(np.matrix), TARGETS.view(np.matrix)
    assert everything(*given, wing, "mean_squared_error") == expected


@EVERY_WING
def test_a_memory_map_is_an_array(wing, tmp_path):
    given = memory_map(X, tmp_path), memory_map(LABELS, tmp_path)
    assert everything(*given, wing, "cross_entropy") == everything(X, LABELS, wing, "cross_entropy")


@pytest.mark.parametrize("dtype", (np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.uint64))
@EVERY_WING
def test_labels_of_every_integer_type(wing, dtype):
    expected = everything(X, LABELS, wing, "cross_entropy")
    assert everything(X, LABELS.astype(dtype), wing, "cross_entropy") == expected


def masked(array):
    array = np.ma.MaskedArray(array, mask=False)
    array[1] = np.ma.masked
    return array


class Sparse:
    """What counts of SciPy's sparse matrices."""

    shape, dtype = X.shape, X.dtype

    def toarray(self):
        return X


MATRIX = LABELS[None].view(np.matrix)
REFUSED = {  # case: (X, labels, exception, message)
    "masked examples": (masked(X), LABELS, ValueError, "X: got a masked array with 4 masked val"),
    "masked labels": (X, masked(LABELS), ValueError, "targets: got a masked array with 1 masked"),
    "a sparse matrix": (Sparse(), LABELS, TypeError, r"X: got a Sparse, .* use X.toarray\(\)"),
    "a matrix of labels": (X, MATRIX, ValueError, r"targets: got shape \(1, 12\)"),
    "a column of labels": (X, LABELS[:, None], ValueError, r"targets: got shape \(12, 1\)"),
    "words": (X, np.array(["a"] * 12), TypeError, "targets: got dtype <U1, expected integer lab"),
    "objects": (X.astype(object), LABELS, TypeError, "X: got dtype object, expected the networ"),
    "nothing": (None, LABELS, TypeError, "X: got NoneType, expected an array"),
    "nested lists": (X.tolist(), LABELS, TypeError, r"X: got list, .* np.asarray\(X, dtype='fl"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_everywhere(case):
    data, labels, kind, message = REFUSED[case]
    net = network()
    calls = [
        lambda: net.loss(data, labels),
        lambda: net.loss_and_gradients(data, labels),
        lambda: net.evaluate(data, labels),
        lambda: nn.fit(net, nn.SGD(), data, labels, epochs=1, progress=False),
    ]
    for call in calls:
        with pytest.raises(kind, match=message):
            call()
    with pytest.raises(kind, match=f"validation: {message.replace('targets', 'labels')}"):
        nn.fit(net, nn.SGD(), X, LABELS, epochs=1, validation=(data, labels), progress=False)


def test_tensors_that_numpy_cannot_hold_are_refused():
    torch = pytest.importorskip("torch", reason="refuses some of PyTorch's tensors")
    dense = torch.tensor(X)
    for tensor in (dense.bfloat16(), dense.to_sparse(), dense.to("meta")):
        with pytest.raises(TypeError, match="X: got a tensor .*: use X.(float|cpu)"):
            network().forward(tensor)
    with pytest.raises(TypeError, match="X: got dtype float64, expected the network's float32"):
        network().forward(torch.tensor(X).double())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_parameters_can_come_from_anywhere(kind):
    W = np.random.default_rng(4).standard_normal((4, 5)).astype(np.float32)
    taken = network().with_parameters({"dense1.W": kind(W)}).parameters["dense1.W"]
    assert type(taken) is np.ndarray and np.array_equal(taken, W)


def test_a_tensor_that_is_trained_on_does_not_change_the_network():
    torch = pytest.importorskip("torch", reason="converts PyTorch's tensors")
    W = torch.ones(4, 5)
    net = network().with_parameters({"dense1.W": W})
    W += 1
    assert np.all(net.parameters["dense1.W"] == 1)


def test_masked_parameters_are_refused():
    W = masked(network().parameters["dense1.W"])
    with pytest.raises(ValueError, match=r"parameters\['dense1.W'\]: got a masked array with 5"):
        network().with_parameters({"dense1.W": W})


@pytest.mark.parametrize("kind", (Series, torch_tensor, jax_array))
def test_gradients_and_rates_can_come_from_anywhere(kind):
    net, other = network(), network()
    gradients = net.loss_and_gradients(X, LABELS).gradients
    rates = np.linspace(0.1, 0.5, 5, dtype=np.float32)
    group = nn.Group(["dense1.W"], learning_rate=kind(rates))
    nn.SGD(groups=[group]).step(net, {name: kind(g) for name, g in gradients.items()})
    nn.SGD(groups=[nn.Group(["dense1.W"], learning_rate=rates)]).step(other, gradients)
    for name, w in other.parameters.items():
        assert np.array_equal(net.parameters[name], w), name


def test_an_augmentation_may_return_tensors_and_take_images_of_any_kind():
    images = np.random.default_rng(5).standard_normal((3, 4, 4, 2)).astype(np.float32)
    expected = flip_and_shift(images, 0, shift=1)
    for kind in (torch_tensor, jax_array, Series):
        assert np.array_equal(flip_and_shift(kind(images), 0, shift=1), expected)
    histories = [
        nn.fit(network(), nn.SGD(), X, LABELS, epochs=2, progress=False, augment=augment).loss
        for augment in (lambda X, rng: X + 1, lambda X, rng: torch_tensor(X + 1))
    ]
    assert histories[0] == histories[1]
    with pytest.raises(ValueError, match="X: got a masked array with 32 masked values"):
        flip_and_shift(masked(images), 0, shift=1)


# Parameters and statistics that were put into the dicts

PLACED = {
    "a shape": ("dense1.W", lambda w: w[:, :3], r"got shape \(4, 3\) and dtype float32, expected"),
    "a row less": ("dense1.W", lambda w: w[:3], r"got shape \(3, 5\)"),
    "a dtype": ("dense1.W", lambda w: w.astype(float), ".* and dtype float64, expected shape"),
    "a list": ("dense1.W", lambda w: w.tolist(), "got shape None and dtype None, expected"),
    "a tensor": ("dense1.W", torch_tensor, ".* dtype torch.float32, expected"),
    "masked": ("dense1.b", masked, "got a masked array, expected shape"),
    "a statistic": ("batchnorm1.mean", lambda a: a[:3], r"got shape \(3,\)"),
}


@EVERY_WING
@pytest.mark.parametrize("case", PLACED)
def test_what_was_placed_into_a_network_is_checked_at_every_door(case, wing):
    name, change, message = PLACED[case]
    net = network(wing)
    arrays = net.parameters if name in net.parameters else net.state
    before = {name: a.copy() for name, a in net.parameters.items()}
    arrays[name] = change(arrays[name])
    kept = "parameters" if arrays is net.parameters else "state"
    for call in (
        lambda: net.forward(X),
        lambda: net.predict(X),
        lambda: net.error(X, LABELS),
        lambda: net.loss(X, LABELS),
        lambda: net.loss_and_gradients(X, LABELS),
        lambda: nn.fit(net, nn.SGD(), X, LABELS, epochs=1, progress=False),
    ):
        with pytest.raises(ValueError, match=rf"{kept}\['{name}'\]: {message}"):
            call()
    for other, array in before.items():
        if other != name:
            assert np.array_equal(net.parameters[other], array)


def test_missing_and_unknown_names_are_refused():
    net = network()
    net.parameters["dense9.W"] = net.parameters.pop("dense1.W")
    with pytest.raises(ValueError, match="parameters: got 6 names, with dense1.W, dense9.W missin"):
        net.forward(X)


def test_what_observe_places_is_checked_before_the_next_epoch():
    net = network("cpu")

    def observe(network):
        network.parameters["dense1.W"] = np.zeros((4, 3), np.float32)
        return {}

    with pytest.raises(ValueError, match=r"parameters\['dense1.W'\]: got shape \(4, 3\)"):
        nn.fit(net, nn.SGD(), X, LABELS, epochs=2, progress=False, observe=observe)


def test_whole_numbers():
    assert arguments.whole_number("n", np.int64(3)) == 3
    for value in (True, 2.0, "3", None):
        with pytest.raises(TypeError, match="n: got .*, expected an integer >= 1"):
            arguments.whole_number("n", value)
    for call in (network().predict, lambda X, **o: network().error(X, LABELS, **o)):
        with pytest.raises(ValueError, match="batch_size: got 0, expected an integer >= 1"):
            call(X, batch_size=0)
