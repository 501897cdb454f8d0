"""python -m benchmarks.cpu.shapes PATH: each operation at random shapes, against another checkout.

For each operation of the cpu wing, forward and backward by its pure functions, or an optimizer's
step, shapes are drawn from a seed, in float32 or float64.  Two processes compute them in turn: the
`minimal_nn` of this checkout and that of the other; all run this checkout's benchmark code.  A time
is the least of several calls' (what disturbs a call only makes it slower), in processor time, which
other programs' shares do not count in, on one thread.  Of each shape the median over the rounds
tells how many times as fast this checkout is.  What comes out below LEAST is measured again, MORE
times as long, before it is called slower.  Whether results are the same bits is said too.
"""

import argparse
import contextlib
import ctypes
import hashlib
import sys
import time

import numpy as np

from benchmarks.cpu.against import only_package
from benchmarks.cpu.compare import quartiles
from benchmarks.cpu.process import ROOT, Process

LEAST = 0.97  # times as fast as before; below this a shape is slower
SECONDS = 0.004  # of one measurement
MORE = 4


def sizes(rng, *most):
    """Return a number from 1 to each of `most`, small ones as often as large ones."""
    return [int(round(np.exp(rng.uniform(0, np.log(largest))))) for largest in most]


def _normal(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def _there_and_back(module, rng, *arguments, **options):
    """Return a function that goes forward and backward through an operation."""
    y, cache = module.forward(*arguments, **options)
    dy = _normal(rng, y.dtype, *y.shape)

    def both():
        y, cache = module.forward(*arguments, **options)
        gradients = module.backward(dy, cache)
        return y, *(gradients if isinstance(gradients, tuple) else (gradients,))

    return both


def _affine(module, rng, dtype):
    n, d, k = sizes(rng, 300, 800, 300)
    arrays = _normal(rng, dtype, n, d), _normal(rng, dtype, d, k), _normal(rng, dtype, k)
    return f"{n} x {d} x {k}", _there_and_back(module, rng, *arrays)


def _convolution(module, rng, dtype):
    n, h, w, c, k = sizes(rng, 8, 24, 24, 40, 40)
    side, stride = int(rng.choice([1, 3, 5])), int(rng.choice([1, 2]))
    x, W = _normal(rng, dtype, n, h, w, c), _normal(rng, dtype, side, side, c, k)
    options = {"stride": stride, "padding": side // 2}
    what = f"{n} x {h} x {w} x {c} to {k}, kernel {side}, stride {stride}"
    if side == 3 and stride == 1:
        options["algorithm"] = str(rng.choice(["direct", "winograd2", "winograd4"]))
        what += f", {options['algorithm']}"
    return what, _there_and_back(module, rng, x, W, **options)


def _vectors_or_images(rng, least=1):
    """Return the shape of a batch of vectors, or of images."""
    if rng.random() < 0.5:
        n, k = sizes(rng, 600, 400)
        return max(2, n), max(least, k)
    n, h, w, k = sizes(rng, 8, 30, 30, 80)
    return max(2, n), h, w, max(least, k)


def _normalization(module, rng, dtype):
    shape = _vectors_or_images(rng, 2)
    z, gamma, beta = (_normal(rng, dtype, *s) for s in (shape, shape[-1:], shape[-1:]))
    return f"{shape}", _there_and_back(module, rng, z, gamma, beta, eps=1e-5)


def _rmsnorm(module, rng, dtype):
    shape = _vectors_or_images(rng)
    z, gamma = _normal(rng, dtype, *shape), _normal(rng, dtype, *shape[-1:])
    return f"{shape}", _there_and_back(module, rng, z, gamma, eps=1e-5)


def _groupnorm(module, rng, dtype):
    n, h, w, each, groups = sizes(rng, 8, 20, 20, 16, 8)
    shape = (n, h, w, groups * (each + 1))
    z, gamma, beta = (_normal(rng, dtype, *s) for s in (shape, shape[-1:], shape[-1:]))
    options = {"groups": groups, "eps": 1e-5}
    return f"{shape}, {groups} groups", _there_and_back(module, rng, z, gamma, beta, **options)


def _weightnorm(module, rng, dtype):
    d, k = sizes(rng, 800, 300)
    v, g = _normal(rng, dtype, d, k), _normal(rng, dtype, k)
    return f"{d} x {k}", _there_and_back(module, rng, v, g, eps=1e-5)


def _activation(module, rng, dtype):
    shape, kind = _vectors_or_images(rng), str(rng.choice(["relu", "tanh"]))
    return f"{shape}, {kind}", _there_and_back(module, rng, _normal(rng, dtype, *shape), kind=kind)


def _windows(rng, dtype):
    """Return images and the side of the windows that they are pooled over."""
    n, h, w, c = sizes(rng, 8, 16, 16, 80)
    size = int(rng.choice([2, 3]))
    return _normal(rng, dtype, n, h * size, w * size, c), size


def _pooling(module, rng, dtype):
    x, size = _windows(rng, dtype)
    return f"{x.shape}, windows of {size}", _there_and_back(module, rng, x, size)


def _averagepooling(module, rng, dtype):
    x, size = _windows(rng, dtype)
    return f"{x.shape}, windows of {size}", _there_and_back(module, rng, x, size, size)


def _loss(module, rng, dtype):
    n, k = sizes(rng, 600, 200)
    scores, kind = _normal(rng, dtype, n, k), str(rng.choice(module.KINDS))
    targets = rng.integers(0, k, n) if kind == "cross_entropy" else _normal(rng, dtype, n, k)

    def both():
        value, cache = module.forward(scores, targets, kind)
        return value, module.backward(1.0, cache)

    return f"{n} x {k}, {kind}", both


UPDATES = {  # states, and the hyper-parameters beside the learning rate
    "sgd": (0, {}),
    "nesterov": (1, {"momentum": 0.9}),
    "adam": (2, {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "t": 3}),
    "lars": (0, {}),
}


def _update(module, rng, dtype):
    d, k = sizes(rng, 800, 300)
    formula = str(rng.choice(list(UPDATES)))
    states, hyper = UPDATES[formula]
    w, g, *kept = (np.abs(_normal(rng, dtype, d, k)) for _ in range(2 + states))
    hyper = {"learning_rate": 0.1, **hyper}

    def step():
        found = module.step(formula, w, g, tuple(kept), **hyper)
        return found if isinstance(found, tuple) else (found,)

    return f"{d} x {k}, {formula}", step


OPERATIONS = {
    "affine": _affine,
    "convolution": _convolution,
    "batchnorm": _normalization,
    "layernorm": _normalization,
    "rmsnorm": _rmsnorm,
    "groupnorm": _groupnorm,
    "weightnorm": _weightnorm,
    "activation": _activation,
    "pooling": _pooling,
    "averagepooling": _averagepooling,
    "loss": _loss,
    "update": _update,
}


def case(operation, seed, number):
    """Return a shape in words and a function that computes it, the same for the same arguments."""
    import importlib

    rng = np.random.default_rng((seed, number))
    dtype = (np.float32, np.float64)[number % 2]
    module = importlib.import_module(f"minimal_nn.cpu.{operation}")
    what, compute = OPERATIONS[operation](module, rng, dtype)
    return f"{what}, {np.dtype(dtype)}", compute


def timed(compute, seconds):
    """Return the least processor time of a call, of those in about so many seconds."""
    times, spent = [], 0.0
    while spent < seconds or len(times) < 3:
        start = time.process_time()
        compute()
        times.append(time.process_time() - start)
        spent += times[-1]
    return min(times)


def keep_memory():
    """Have the C library keep what is freed.

    Whether it gives that back to the system depends on what was allocated before, and having it
    anew may take ten times as long as a call: for the same shape, in one checkout or in the other.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of glibc
            library.mallopt(option, 1 << 30)


def serve(operation, seed, count):
    """Return a greeting with what is computed, and a function that answers [number, seconds]."""
    from minimal_nn import set_num_threads

    set_num_threads(1)
    keep_memory()
    cases, told = [], []
    for number in range(count):
        what, compute = case(operation, seed, number)
        arrays = [np.asarray(each) for each in compute() if each is not None]
        digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays))
        cases.append(compute)
        told.append([what, digest.hexdigest()])
    return {"cases": told}, lambda question: timed(cases[question[0]], question[1])


def compared(this, that, number, rounds, seconds):
    """Return how many times as fast this one is in a shape: median and quartiles."""
    found = []
    for index in range(rounds):
        pair = (this, that) if index % 2 else (that, this)
        times = {each: each.ask([number, seconds]) for each in pair}
        found.append(times[that] / times[this])
    return quartiles(found)


def against(operation, other, count, rounds, seed):
    """Compare one operation; return (what, ratio, whether the bits are the same) of each shape."""
    with contextlib.ExitStack() as stack:
        this, that = (
            stack.enter_context(Process("shapes", operation, seed, count, threads=1, folder=folder))
            for folder in (ROOT, other)
        )
        found = []
        told = zip(this.greeting["cases"], that.greeting["cases"], strict=True)
        for number, ((what, bits), (_, other_bits)) in enumerate(told):
            ratio, *_ = compared(this, that, number, rounds, SECONDS)
            if ratio < LEAST:
                ratio, *_ = compared(this, that, number, MORE * rounds, MORE * SECONDS)
            found.append((what, ratio, bits == other_bits))
    return found


def printed(operation, found):
    """Return the lines of an operation."""
    ratio, low, high = quartiles([each for _, each, _ in found])
    slower = [each for each in found if each[1] < LEAST]
    other_bits = [what for what, _, same in found if not same]
    lines = [
        f"{operation:14} {len(found)} shapes: {ratio:.2f} times as fast ({low:.2f} to {high:.2f}), "
        f"the slowest {min(each for _, each, _ in found):.2f}; "
        f"slower than {LEAST}: {len(slower)}; other bits: {len(other_bits)}"
    ]
    lines += [f"  {ratio:.2f}: {what}" for what, ratio, _ in sorted(slower, key=lambda x: x[1])]
    lines += [f"  other bits: {what}" for what in other_bits[:5]]
    return "\n".join(lines)


def main(arguments=None):
    """Run the command; return 1 where a shape is slower."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.cpu.shapes", description=__doc__)
    p.add_argument("path", metavar="PATH", help="the other checkout")
    p.add_argument("--only", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    p.add_argument("--shapes", type=int, default=50, help="of each operation (default: 50)")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seed", type=int, default=0)
    options = p.parse_args(arguments)
    for name in ("shapes", "rounds"):
        if getattr(options, name) < 1:
            p.error(f"--{name}: got {getattr(options, name)}, expected at least 1")
    slower = False
    with only_package(options.path) as other:
        for operation in options.only:
            found = against(operation, other, options.shapes, options.rounds, options.seed)
            print(printed(operation, found), flush=True)
            slower |= any(ratio < LEAST for _, ratio, _ in found)
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
