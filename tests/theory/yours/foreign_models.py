"""PyTorch models that this project did not design, and what is true of them by brute force."""

import copy
import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from theory.yours.parts import partitions, sums


class Block(nn.Module):
    """A residual block: convolutions, batch norm, ReLU."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(h)))


class ResNet(nn.Module):
    """A stem, a residual block, a head."""

    def __init__(self, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.block = Block(channels)
        self.head = nn.Linear(channels, 4)

    def forward(self, x):
        return self.head(self.block(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


class GroupNet(nn.Module):
    """Group norm, and a transposed convolution before batch norm."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.gn = nn.GroupNorm(3, 12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        h = F.silu(self.gn(self.conv(x)))
        return self.head(F.relu(self.bn(self.up(h))).mean((2, 3)))


class InstanceNet(nn.Module):
    """Instance norm, a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.InstanceNorm2d(6, affine=True)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.norm2 = nn.InstanceNorm2d(6)
        self.head = nn.Linear(6 * 4, 4)

    def forward(self, x):
        h = torch.tanh(self.norm(self.conv(x)))
        h = F.gelu(self.norm2(self.depthwise(h)))
        return self.head(F.adaptive_avg_pool2d(h, 2).flatten(1))


class Attention(nn.Module):
    """Softmax attention with biases; `qk`: RMS norm of queries and keys; `fused`: one matrix."""

    def __init__(self, width, heads, qk, fused):
        super().__init__()
        self.heads, self.qk, self.fused = heads, qk, fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width, bias=False)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o = nn.Linear(width, width)
        if qk:
            self.q_norm, self.k_norm = (nn.RMSNorm(width // heads) for _ in range(2))

    def forward(self, x):
        batch, time, width = x.shape
        parts = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (
            p.view(batch, time, self.heads, width // self.heads).transpose(1, 2) for p in parts
        )
        if self.qk:
            q, k = self.q_norm(q), self.k_norm(k)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(h.transpose(1, 2).reshape(batch, time, width))


class Transformer(nn.Module):
    """A pre-LN transformer with a GELU layer."""

    def __init__(self, width=16, heads=2, qk=False, fused=False, tokens=11):
        super().__init__()
        self.emb = nn.Embedding(tokens, width)
        self.ln1, self.ln2, self.ln = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads, qk, fused)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, tokens, bias=False)

    def forward(self, tokens):
        x = self.emb(tokens)
        x = x + self.attention(self.ln1(x))
        x = x + self.down(F.gelu(self.up(self.ln2(x))))
        return self.head(self.ln(x)).flatten(0, 1)


class PostNorm(nn.Module):
    """Embedding, layer norm, and GELU straight into layer norm: it saturates like 1/a^2."""

    def __init__(self, tokens=11, width=12):
        super().__init__()
        self.emb = nn.Embedding(tokens, width)
        self.ln1 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 24)
        self.ln2 = nn.LayerNorm(24)
        self.head = nn.Linear(24, tokens)

    def forward(self, tokens):
        h = F.gelu(self.up(self.ln1(self.emb(tokens))))
        return self.head(self.ln2(h)).flatten(0, 1)


def mlp(activation, normalize=None, layer=nn.Linear):
    """Two hidden layers of 10 and 8 units with the same norm and activation, four outputs."""
    norms = [[] if normalize is None else [normalize(width)] for width in (10, 8)]
    return nn.Sequential(
        layer(6, 10),
        *norms[0],
        activation(),
        layer(10, 8),
        *norms[1],
        activation(),
        nn.Linear(8, 4),
    )


def normed(inputs, outputs):
    return weight_norm(nn.Linear(inputs, outputs))


VECTORS = {
    "sigmoid": lambda: mlp(nn.Sigmoid),
    "tanh": lambda: mlp(nn.Tanh),
    "gelu": lambda: mlp(nn.GELU),
    "relu": lambda: mlp(nn.ReLU),
    "batch norm": lambda: mlp(nn.ReLU, nn.BatchNorm1d),
    "layer norm": lambda: mlp(nn.Sigmoid, nn.LayerNorm),
    "rms norm": lambda: mlp(nn.GELU, nn.RMSNorm),
    "weight norm": lambda: mlp(nn.Tanh, None, normed),
}
IMAGES = {"residual": ResNet, "group norm": GroupNet, "instance norm": InstanceNet}
TOKENS = {
    "transformer": Transformer,
    "qk norm": lambda: Transformer(qk=True),
    "fused qkv": lambda: Transformer(qk=True, fused=True),
    "gelu into layer norm": PostNorm,
}
NAMES = (*VECTORS, *IMAGES, *TOKENS)


def make(name, seed, dtype=torch.float64):
    """Return (module, loss, X, y) of a model with its batch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name in VECTORS:
            module, X = VECTORS[name](), 2 * torch.randn(48, 6)
            y = torch.randint(0, 4, (48,))
        elif name in IMAGES:
            module, X = IMAGES[name](), torch.randn(12, 3, 6, 6)
            y = torch.randint(0, 4, (12,))
        else:
            module, X = TOKENS[name](), torch.randint(0, 11, (6, 8))
            y = torch.randint(0, 11, (48,))
    X = X.to(dtype) if X.is_floating_point() else X
    return module.to(dtype), F.cross_entropy, X, y


# The truth, without any law of eps: at eps = 1e-30 in float64 a group's radial derivative is 0


class Truth:
    """What is scale-invariant in a module, at random parameters, with eps next to nothing."""

    def __init__(self, module, loss, X, y, seed):
        self.module = copy.deepcopy(module).double()
        for part in self.module.modules():
            if isinstance(getattr(part, "eps", None), float) or part.__class__ is nn.RMSNorm:
                part.eps = 1e-30
        self.loss, self.y = loss, y
        self.X = X.double() if X.is_floating_point() else X
        generator = np.random.default_rng(seed)
        self.points = []
        for _ in range(3):
            arrays = {
                name: generator.standard_normal(p.shape) * 0.3 + p.detach().numpy()
                for name, p in self.module.named_parameters()
            }
            self.points.append((arrays, *self.gradients(arrays)))
        self.shapes = self.points[0][0]

    def gradients(self, arrays):
        tensors = {n: torch.tensor(a, requires_grad=True) for n, a in arrays.items()}
        buffers = {n: b.clone() for n, b in self.module.named_buffers()}
        outputs = torch.func.functional_call(self.module, {**buffers, **tensors}, (self.X,))
        value = self.loss(outputs, self.y)
        grads = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
        return value.item(), {
            n: np.zeros(a.shape) if g is None else g.numpy()
            for (n, a), g in zip(arrays.items(), grads, strict=True)
        }

    def cancelled(self, name):
        """Whether the loss stays where the parameter is drawn anew."""
        rng = np.random.default_rng(1)
        for arrays, loss, _ in self.points:
            for scale in (1, 1000):  # a function that saturates may stay near by
                moved = {**arrays, name: scale * rng.standard_normal(arrays[name].shape)}
                if abs(self.gradients(moved)[0] - loss) > 1e-10 * abs(loss):
                    return False
        return True

    def invariant(self, partition):
        """Which parts have no radial derivative at three random points, and which no gradient."""
        good, dead = np.ones(partition.count, dtype=bool), np.ones(partition.count, dtype=bool)
        for arrays, _, grads in self.points:
            names = partition.parameters
            r = partition.total({n: sums(arrays[n] * grads[n]) for n in names})
            w = partition.total({n: sums(arrays[n] ** 2) for n in names})
            g = partition.total({n: sums(grads[n] ** 2) for n in names})
            good &= np.abs(r) <= 1e-9 * np.sqrt(w * g)
            dead &= g == 0
        return good, dead

    def stays(self, partition, good):
        """Whether the loss stays where the invariant parts get factors of their own."""
        rng = np.random.default_rng(2)
        arrays, loss, _ = self.points[0]
        factors = np.where(good, np.exp(rng.uniform(-2, 3, partition.count)), 1)
        moved = {**arrays, **partition.scaled(arrays, factors)}
        return abs(self.gradients(moved)[0] - loss) <= 1e-9 * abs(loss)

    def groups(self):
        """Return {names: (partition, which parts)} of all that is invariant, None if cancelled."""
        found, left = {}, []
        for name in self.shapes:
            if self.cancelled(name):
                found[name,] = None
                continue
            best = self.finest((name,))
            if best is None:
                left.append(name)
            else:
                found[name,] = best
        for pair in itertools.permutations(left, 2):
            if self.shapes[pair[0]].ndim >= self.shapes[pair[1]].ndim and pair[::-1] not in found:
                best = self.finest(pair)
                if best is not None and best[1].all():
                    found[pair] = best
        return found

    def finest(self, names):
        """Return the finest invariant partition of some arrays and which of its parts, or None."""
        choices = [(p, *self.invariant(p)) for p in partitions(self.shapes, names, 0)]
        for partition, good, dead in choices:
            if good.all() and not dead.all():
                assert self.stays(partition, good), (names, partition)
                return partition, good
        partition, good, dead = max(choices, key=lambda choice: (choice[1] & ~choice[2]).mean())
        good = good & ~dead
        if good.mean() >= 1 / 16 and good.sum() > 1:
            assert self.stays(partition, good), (names, partition)
            return partition, good
        return None
