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
# # 2. Write batchnorm.backward
#
# *About 50 minutes.  You need: the chain rule.*
#
# For one unit, over the $n$ numbers $z_i$ of a batch:
#
# $$ m = \frac1n \sum_i z_i, \quad c_i = z_i - m, \quad v = \frac1n \sum_i c_i^2, \quad
# s = \sqrt{v + \epsilon}, \quad h_i = c_i/s, \quad y_i = \gamma h_i + \beta. $$
#
# Given the cotangent $dy_i = \partial L/\partial y_i$, find $dz_i$, $d\gamma$ and $d\beta$.
#
# Derive it on paper, in this order.  With $a_i = \gamma\, dy_i$:
#
# 1. $d\beta$ and $d\gamma$: sums over the batch.
# 2. $\partial L/\partial c_i$ as if $s$ were constant, then what comes through $s$ (every $c_j$
#    moves it: $\partial s/\partial c_i = h_i/n$).
# 3. $\partial L/\partial z_i$, where $c_i = z_i - m$, and $m$ moves with every $z_j$.
#
# You should find two means that are subtracted.  Each of them is an invariance: which?

# %%
import numpy as np

from minimal_nn import gradcheck, lab
from minimal_nn.reference import batchnorm


# %%
def batchnorm_backward(dy, cache):
    """Return dz (the shape of dy), dgamma (K,) and dbeta (K,).

    dy: (N, K), or images (N, H, W, K), whose pixels count as examples.
    cache.normalized: h.  cache.gamma, cache.std (K,): gamma and s.
    """
    raise NotImplementedError("write me")


# %% [markdown]
# The check runs your function in a process of its own, on several batches and values of
# $\epsilon$, and says at once what is wrong with it, as far as it knows the fault.

# %%
lab.check(batchnorm_backward)

# %% [markdown]
# ## Why a good test is hard to write
#
# Here is a wrong backward pass, which forgets the term that comes through $s$.  A test that takes
# the sum of the outputs, or the sum of their squares, for the loss does not see it: that loss is
# constant, whatever $z$ is.  (Compute $\sum_i y_i$ and $\sum_i y_i^2$.)


# %%
def without_the_variance_term(dy, cache):
    n = len(dy)
    dbeta, dgamma = dy.sum(axis=0), (dy * cache.normalized).sum(axis=0)
    return cache.gamma / cache.std * (dy - dbeta / n), dgamma, dbeta


rng = np.random.default_rng(0)
z, gamma, beta = rng.standard_normal((16, 3)), rng.standard_normal(3), rng.standard_normal(3)
y, cache = batchnorm.forward(z, gamma, beta, 0.0)
for name, dy in (("sum of y", np.ones_like(y)), ("random cotangent", rng.standard_normal(y.shape))):
    right, wrong = (f(dy, cache)[0] for f in (batchnorm.backward, without_the_variance_term))
    print(f"{name}: largest difference {np.abs(right - wrong).max():.1e}")

# %%
lab.check(without_the_variance_term, "batchnorm_backward")


# %% [markdown]
# `gradcheck` needs no right answer: it compares a backward pass with the forward pass, by complex
# steps.


# %%
def forward(z, gamma, beta):
    return batchnorm.forward(z, gamma, beta, 1e-5)


for function in (batchnorm.backward, without_the_variance_term):
    result = gradcheck.check(forward, function, (z, gamma, beta), rng, names=("z", "gamma", "beta"))
    print(function.__name__, "is right" if result.ok else "is wrong")


# %% [markdown]
# ## In evaluation
#
# With running statistics mean and variance are constants.  What is left of $dz$?


# %%
def batchnorm_backward_running(dy, cache):
    """Return dz, dgamma, dbeta where mean and variance are constants.

    cache.normalized, cache.gamma, cache.std as before.
    """
    raise NotImplementedError("write me")


lab.check(batchnorm_backward_running)


# %% [markdown]
# ## Layer normalization
#
# The same with the roles exchanged: the statistics of one example (a row of $z$) run over its $K$
# units, while $\gamma$ still belongs to the units.  What changes in the means?


# %%
def layernorm_backward(dy, cache):
    """Return dz (N, K), dgamma (K,) and dbeta (K,).

    cache.normalized (N, K); cache.gamma (K,); cache.std (N, 1).
    """
    raise NotImplementedError("write me")


lab.check(layernorm_backward)


# %% [markdown]
# ## Weight normalization
#
# $W = g\, v/r$ with $r = \sqrt{|v|^2 + \epsilon}$ for each unit, a column of $v$.  Given $dW$:


# %%
def weightnorm_backward(dW, cache):
    """Return dv (the shape of v) and dg (K,).

    cache.direction: v/r.  cache.g, cache.norm (K,): g and r.  A unit's weights are all entries but
    those of the last axis.
    """
    raise NotImplementedError("write me")


lab.check(weightnorm_backward)


# %% [markdown]
# ## Adam
#
# A step of Adam (Kingma and Ba, 2015): $m \leftarrow \beta_1 m + (1 - \beta_1) g$, $v \leftarrow
# \beta_2 v + (1 - \beta_2) g^2$, both corrected for their start at 0 by $1/(1 - \beta^t)$, and
# $w \leftarrow w - \eta\, m'/(\sqrt{v'} + \epsilon)$.


# %%
def adam(w, g, m, v, t, learning_rate, beta1, beta2, eps):
    """Return the new w, m and v after step t = 1, 2, ..."""
    raise NotImplementedError("write me")


lab.check(adam)

# %% [markdown]
# ## What to take along
#
# * Two means are subtracted in $dz$: adding a constant to $z$ changes nothing, and (at $\epsilon =
#   0$) multiplying it changes nothing either.
# * Test gradients with random cotangents, at a small and at a large $\epsilon$.
#
# Hand in this file.  It is graded by `python -m minimal_nn.lab FILE`, which gives the answers that
# you have seen.
