"""Every kernel against the reference wing, and what runs beside that."""

import importlib
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu.timing import attempted
from minimal_nn.cuda.device.arrays import asarray, poisoned, to_host
from minimal_nn.cuda.products import rounded
from minimal_nn.gradcheck import gamma, unit_roundoff
from theory.numbers.bounded import running

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 480  # for the tests and for the claims, each in a process of its own


def correctness(rng):
    """Check every operation on the device; return one line for each, with "failed" where wrong."""
    lines = []
    for case in checks(rng):
        for kind in (np.float32, np.float64):
            lines.append(attempted(f"{case[0]} {np.dtype(kind)}", check, *case, kind, rng))
    return [*lines, attempted("correctly rounded product", _rounded_product, rng)]


def checks(rng, small=False):
    """Return what `check` takes: name, operation, its arguments in float64, and its options."""

    def draw(*shapes):
        return [rng.standard_normal(shape) for shape in shapes]

    cases = []
    products = [(1, 1, 1), (7, 13, 5)]
    images = [((2, 4, 5, 3), 5, (1, 1))]
    rows = [(2, 3), (33, 17)]
    if not small:
        products += [(128, 3072, 10), (300, 257, 129), (512, 512, 512)]
        images += [((4, 16, 16, 16), 32, (1, 1)), ((3, 9, 9, 4), 8, (2, 0))]
        rows += [(128, 512), (5000, 64), (9, 3000)]
    for n, d, k in products:
        cases.append((f"affine {n}x{d}x{k}", "affine", draw((n, d), (d, k), k), ()))
    for shape, units, options in images:
        arrays = draw(shape, (3, 3, shape[-1], units), units)
        cases.append((f"convolution {shape} {options}", "convolution", arrays, options))
    for shape in rows:
        for name in ("batchnorm", "layernorm"):
            cases.append((f"{name} {shape}", name, draw(shape, shape[-1], shape[-1]), (1e-5,)))
        cases.append((f"weightnorm {shape}", "weightnorm", draw(shape, shape[-1]), (1e-5,)))
    return cases


def check(name, operation, arrays, options, kind, rng):
    """Compare an operation, forward and backward, with the reference wing within derived bounds."""
    ours = importlib.import_module(f"minimal_nn.cuda.{operation}")
    given = [a.astype(kind) for a in arrays]
    bound = convolution_bounds if operation == "convolution" else running_error_bounds
    dy, expected = bound(operation, given, options, kind, rng)
    with poisoned():
        mine, cache = ours.forward(*(asarray(a) for a in given), *options)
        found = [mine, *ours.backward(asarray(dy), cache)]
    worst = 0.0
    for index, (got, (value, error)) in enumerate(zip(found, expected, strict=True)):
        difference = np.abs(to_host(got).astype(np.longdouble) - value)
        ratio = float(np.max(difference / np.maximum(error, np.finfo(kind).tiny)))
        if not ratio <= 1:
            raise AssertionError(
                f"{name} {np.dtype(kind)}: result {index} differs by {ratio:.3g} times its bound"
            )
        worst = max(worst, ratio)
    return {"name": f"{name} {np.dtype(kind)}", "share_of_bound": worst}


def running_error_bounds(operation, given, options, kind, rng):
    """Return a random dy, and the results with the bounds of the reference's running error."""
    reference = importlib.import_module(f"minimal_nn.reference.{operation}")
    y, cache = reference.forward(*(running(a, kind) for a in given), *options)
    dy = rng.standard_normal(y.shape).astype(kind)
    results = [y, *reference.backward(running(dy, kind), cache)]
    return dy, [(result.value, result.error) for result in results]


def convolution_bounds(operation, given, options, kind, rng):
    """Return a random dy, and the results with gamma_n sum |terms|, n the most terms of a sum."""

    def results(arrays, dy):
        y, cache = reference.forward(*arrays, *options)
        return [y, *reference.backward(dy, cache)]

    reference = importlib.import_module(f"minimal_nn.reference.{operation}")
    dy = rng.standard_normal(reference.forward(*given, *options)[0].shape).astype(kind)
    exact = results([a.astype(np.longdouble) for a in given], dy.astype(np.longdouble))
    sizes = [np.abs(a).astype(np.longdouble) for a in given]
    sizes = results(sizes, np.abs(dy).astype(np.longdouble))
    W = given[1]
    terms = max(W.size // W.shape[3] + 1, W.size // W.shape[2], dy.size // W.shape[3])
    bound = gamma(terms, unit_roundoff(kind)) + gamma(terms, unit_roundoff(np.longdouble))
    return dy, [(value, bound * size) for value, size in zip(exact, sizes, strict=True)]


def _rounded_product(rng):
    a, b = (rng.standard_normal((300, 300)).astype(np.float32) for _ in range(2))
    host, _ = rounded.rounded_on_host(a, b)
    device = rounded.rounded(asarray(a), asarray(b))
    if not np.array_equal(to_host(device.product), host) or device.open:
        raise AssertionError("the correctly rounded product: device and host differ")
    return {"name": "correctly rounded product 300^3", "recomputed": device.recomputed}


# What runs beside the checks: the tests (exact integers, pooling, loss, optimizers, plans) and the
# claims.
BESIDE = {
    "tests": ["pytest", "-q", "-m", "gpu", "-n", "8", "-p", "no:cacheprovider", "tests/cuda"],
    "theory": ["theory", "--backend", "cuda"],
}


class Beside:
    """A Python module that runs in a process of its own while others work."""

    def __init__(self, arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # with what it starts, to be ended together
        )
        self.name, self.started = " ".join(arguments), time.perf_counter()

    def result(self):
        """Wait for the end, at most SECONDS from the start; return status and output."""
        left = SECONDS - (time.perf_counter() - self.started)
        try:
            said, _ = self.process.communicate(timeout=max(1, left))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            said, _ = self.process.communicate()
            said += f"\nnot finished in {SECONDS} seconds"
        return {
            "name": self.name,
            "status": self.process.returncode,
            "seconds": time.perf_counter() - self.started,
            "output": said.replace(f"{ROOT}/", "").splitlines()[-200:],
        }
