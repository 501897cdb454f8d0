# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Scale does nothing
#
# *About 35 minutes.  You need: matrix products, the derivative of a function of many variables.*
#
# A layer with batch normalization computes, for each unit, $y = \gamma (z - \mu)/\sigma + \beta$
# with $z = X w$, where $\mu$ and $\sigma$ are the mean and the standard deviation of $z$ over the
# batch.
#
# **Predict first.**  What becomes of $y$ when all weights are doubled, $w \to 2 w$?  Write your
# prediction down, as a number: $y(2w)/y(w) = \ldots$

# %%
import matplotlib.pyplot as plt
import numpy as np

from minimal_nn import lab
from minimal_nn.data import digits
from minimal_nn.reference import batchnorm

X = digits().X_train[:100].astype(np.float64)
rng = np.random.default_rng(0)
w = rng.standard_normal((64, 3))
gamma, beta = np.ones(3), np.zeros(3)


def layer(w, eps=0.0):
    y, _ = batchnorm.forward(X @ w, gamma, beta, eps)
    return y


print("largest |y(2w) - y(w)|:", np.abs(layer(2 * w) - layer(w)).max())
print("largest |y(3w) - y(w)|:", np.abs(layer(3 * w) - layer(w)).max())

# %% [markdown]
# The first number is exactly 0, the second only nearly.  Why?  (Think of how a computer stores
# $2 x$ and $3 x$.)
#
# With $\epsilon > 0$ under the root the statement is not quite true.  Predict: at which factor $a$
# is $y(a w)$ visibly different from $y(w)$ if $\epsilon = 10^{-2}$, small or large?

# %%
for a in (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0):
    apart = np.abs(layer(a * w, eps=1e-2) - layer(w, eps=1e-2)).max()
    print(f"a = {a:7g}: largest |y(aw) - y(w)| = {apart:.1e}")

# %% [markdown]
# ## What the gradient must then look like
#
# Let $L(a w) = L(w)$ for all $a > 0$.  Differentiate by $a$ at $a = 1$:
# $\langle w, \nabla L(w) \rangle = 0$.  Differentiate by $w$: $\nabla L(a w) = \nabla L(w)/a$.
# So the gradient is orthogonal to $w$, and shorter where $w$ is longer.
#
# Look at it in two dimensions: a loss of two weights, constant along every ray.

# %%
pixels = X[:, [20, 43]]
target = np.sin(np.arange(len(pixels)))[:, None]


def loss_and_gradient(w):
    """A normalized unit of two weights, and a smooth loss of its outputs."""
    y, cache = batchnorm.forward(pixels @ w[:, None], np.ones(1), np.zeros(1), 0.0)
    difference = y - target
    dz, _, _ = batchnorm.backward(2 * difference / len(y), cache)
    return np.mean(difference**2), (pixels.T @ dz)[:, 0]


def picture(path=None):
    side = np.linspace(-2, 2, 60)
    values = [[loss_and_gradient(np.array([a, b]))[0] for a in side] for b in side]
    _, axes = plt.subplots(figsize=(5, 5))
    axes.contourf(side, side, values, 30, cmap="cividis")
    for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False):
        for radius in (0.6, 1.5):
            at = radius * np.array([np.cos(angle), np.sin(angle)])
            g = 0.4 * loss_and_gradient(at)[1]
            axes.arrow(*at, *-g, width=0.015, color="white")
    if path is not None:
        axes.plot(*path.T, "o-", color="#D55E00", ms=3)
        axes.annotate("start", path[0], color="#D55E00", xytext=(4, 4), textcoords="offset points")
    axes.set_aspect("equal")
    axes.set_xlim(-2, 2)
    axes.set_ylim(-2, 2)
    axes.set_xlabel("first weight")
    axes.set_ylabel("second weight")
    axes.set_title("loss (dark: small), and -gradient")


picture()

# %% [markdown]
# **Predict.**  Gradient descent starts at $|w| = 0.7$ without weight decay.  Does $|w|$ grow,
# shrink, or stay?  (A step is orthogonal to $w$: think of Pythagoras.)


# %%
def descend(start, eta, weight_decay, steps=60):
    path = [np.array(start)]
    for _ in range(steps):
        w = path[-1]
        path.append(w - eta * (loss_and_gradient(w)[1] + weight_decay * w))
    return np.array(path)


start = 0.7 * np.array([np.cos(0.3), np.sin(0.3)])
path = descend(start, eta=0.6, weight_decay=0.0)
print("|w| from", np.linalg.norm(path[0]).round(3), "to", np.linalg.norm(path[-1]).round(3))
picture(path)

# %% [markdown]
# Now with weight decay.  **Predict** whether the run comes to rest.

# %%
path = descend(start, eta=2, weight_decay=0.06)
print("|w|:", np.linalg.norm(path, axis=1)[::6].round(2))
picture(path)

# %% [markdown]
# Decay pulls $w$ inwards along its ray, where the loss does not change but the gradient grows as
# $1/|w|$.  At some point a step is so large that it leaves the valley, and carries $w$ outwards
# again: growth and decay hold each other.

# %% [markdown]
# ## Exercise: is_scale_invariant
#
# Write a function that says whether a loss is invariant under $w \to a w$ for all $a > 0$.  You
# may call `loss(w)` as often as you like, and draw from `rng`.  Beware: the loss of a network
# without normalization may change very little; a loss may be invariant under $a = 2$ alone; and
# numbers are rounded.


# %%
def is_scale_invariant(loss, w, rng):
    """Return whether loss(a w) = loss(w) for every a > 0, as far as draws can tell."""
    raise NotImplementedError("write me")


# %% [markdown]
# The check asks your function about a dozen losses whose answer is known, in a process of its own,
# and says at once what is wrong with it, as far as it knows the fault.

# %%
lab.check(is_scale_invariant)

# %% [markdown]
# ## What to take along
#
# * With normalization a loss feels the direction of $w$ alone.
# * Its gradient is orthogonal to $w$, and $1/|w|$ long.
# * So every step of gradient descent makes $w$ longer, and weight decay is all that makes it
#   shorter.  What that does to training is the third notebook.
#
# The same as claims that can be run: `python -m theory --only scale-invariance
# gradient-orthogonality gradient-scaling`.
