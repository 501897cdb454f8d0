"""What is timed as a product is that product, ours and MKL's, and how it is told."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import table
from benchmarks.cpu import compare, products
from benchmarks.cpu.configurations import BATCH
from minimal_nn.cpu.machine import workspace

SMALL = [
    products.Product(kind, *sizes)
    for kind in products.KINDS
    for sizes in ((9, 40, 50), (8, 33, 10), (17, 5, 3))
]


def integers(product):
    """Return operands whose products are exact in any order."""
    rng = np.random.default_rng(1)
    kind, rows, depth, columns = product
    right = depth if kind == "forward" else rows
    x, w = (rng.integers(-3, 4, shape) for shape in ((rows, depth), (right, columns)))
    expected = x @ w if kind == "forward" else x.T @ w
    return x.astype(np.float32), w.astype(np.float32), expected


@pytest.mark.parametrize("product", SMALL, ids=str)
def test_ours_is_the_product(product):
    x, right, expected = integers(product)
    program, panels = products.our_program(product, x, right, 1)
    assert program.run() == 0
    assert np.array_equal(workspace.unpack(panels, *expected.shape), expected)


@pytest.mark.parametrize("product", SMALL, ids=str)
def test_mkls_is_the_product(product):
    torch = pytest.importorskip("torch")
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        call = products._sgemm(library)
    except (OSError, AttributeError):
        pytest.skip("this PyTorch brings no sgemm along")
    x, right, expected = integers(product)
    out = np.full(expected.shape, np.nan, np.float32)
    products.mkl_product(product, x, right, out, call)(2)
    assert np.array_equal(out, expected)


def test_every_layer_of_a_benchmarked_mlp_is_multiplied():
    found = products.products()
    assert len(found) == len(set(found)) == 12
    for kind in products.KINDS:
        for depth, columns in ((784, 256), (256, 256), (256, 10), (64, 64), (64, 10)):
            assert products.Product(kind, BATCH, depth, columns) in found
    assert found[0].flops == 2 * BATCH * 784 * 256


@pytest.fixture
def answers(monkeypatch):
    """Let the processes answer with the rates of three rounds."""
    count = len(products.products())
    rates = {
        "ours": iter([[80.0] * count, [90.0] * count, [100.0] * count]),
        "mkl": iter([[100.0] * count, [90.0] * count, [125.0] * count]),
        "rates": iter([{"peak_gflops": 100.0}] * 3),
    }

    class Answering:
        session = 0

        def __init__(self, kind, whose, *_, threads):
            self.key = whose if kind == "products" else kind

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def ask(self, _):
            return next(rates[self.key])

    monkeypatch.setattr(compare, "Process", Answering)
    monkeypatch.setattr(compare.quiet, "idle_check", lambda: 0.0)
    monkeypatch.setattr(compare.quiet.Watch, "others", lambda self: 0.0)


def test_ratios_are_of_one_round(answers):
    found = compare.products_beside_mkl(1, 3)
    row = found["rows"][0]
    assert (row["ratio"], row["of_peak"], row["gflops"]) == (0.8, 0.9, 90.0)
    assert row["ratio_quartiles"] == [0.8, 0.9] and row["verdict"] == "missed"
    told = table.printed_products(found).splitlines()
    assert len(told) == 1 + len(products.products())
    assert told[1] == (
        "  x W 128 x 784 x 256       90 GFLOP/s, 0.80 times MKL's (0.80 to 0.90), 0.90 of the "
        "peak, aim 1.0 and 0.8: missed"
    )


@pytest.mark.parametrize(
    "ours, mkl, verdict", [(90.0, 90.0, "met"), (79.0, 70.0, "missed"), (95.0, 96.0, "missed")]
)
def test_a_product_has_two_aims(ours, mkl, verdict):
    row = compare._product(SMALL[0], [(100.0, ours, mkl)] * 3, 0.0, 0.0)
    assert row["verdict"] == verdict


def test_no_verdict_on_products_beside_other_work():
    row = compare._product(SMALL[0], [(100.0, 90.0, 80.0)] * 3, 0.5, 0.0)
    assert row["verdict"] is None and "other work" in row["disturbed"]
