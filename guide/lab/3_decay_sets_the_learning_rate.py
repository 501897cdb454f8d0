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
# # 3. Decay sets the learning rate
#
# *About 35 minutes.  You need: the first notebook.*
#
# A scale-invariant loss feels $u = w/|w|$ alone, and its gradient has the length $s/|w|$, where $s$
# is its length at $|w| = 1$.  One step of gradient descent moves $u$ by about
# $\eta\,(s/|w|)/|w|$: the learning rate that is felt is $\eta/|w|^2$.  And what sets $|w|$?
#
# **Derive it.**  With weight decay $\lambda_2$ a step is $w' = (1 - \eta \lambda_2) w - \eta g$,
# with $g$ orthogonal to $w$.  Write $|w'|^2$ in terms of $|w|^2$ and $|g|^2 = s^2/|w|^2$.  Where
# is $|w'| = |w|$, if $\eta \lambda_2$ is small?


# %%
import matplotlib.pyplot as plt
import numpy as np

from minimal_nn import SGD, Adam, lab
from theory import laws
from theory.subjects.walks import walk


# %%
def equilibrium_norm(eta, weight_decay, s):
    """Return |w| where growth and decay balance, for small eta * weight_decay."""
    raise NotImplementedError("write me")


# %% [markdown]
# The check compares with the balance itself, run until it rests; what small steps leave open counts
# as right.

# %%
lab.check(equilibrium_norm)

# %% [markdown]
# ## The walk
#
# A process with nothing but these properties: gradients orthogonal to $w$, of mean square
# $s^2/|w|^2$, otherwise random, in 64 dimensions; the optimizer is the package's.
#
# **Predict.**  Two runs start at $|w| = 0.3$ and $|w| = 5$.  Where do they end?  Which of them
# has the larger effective rate at first, and which in the end?


# %%
def norms(optimizer, start, steps=1500, seed=0):
    return walk(optimizer, [start], dims=64, steps=steps, seed=seed).norms[:, 0]


eta, weight_decay = 0.1, 0.03
law = laws.equilibrium("SGD", eta, weight_decay).norm
for start in (0.3, 5.0):
    plt.plot(norms(SGD(eta, weight_decay=weight_decay), start), label=f"from {start:g}")
plt.axhline(law, ls="--", color="black", label="the law")
plt.yscale("log")
plt.yticks([0.3, 1, 3], ["0.3", "1", "3"])
plt.minorticks_off()
plt.xlabel("steps")
plt.ylabel("|w|")
_ = plt.legend()

# %% [markdown]
# ## Fit the exponent
#
# The law says $|w| \propto (\eta/\lambda_2)^e$.  Measure $e$: the slope of $\log |w|$ over $\log
# (\eta/\lambda_2)$, from runs at equilibrium.  $\eta \lambda_2$ is kept, so that all runs take the
# same time to get there.


# %%
def measured(make, settings, steps=1200):
    """Return the root mean square of |w| over the second half of a run for each (eta, decay)."""
    found = []
    for eta, weight_decay in settings:
        run = norms(make(eta, weight_decay), 1.0, steps)
        found.append(np.sqrt(np.mean(run[steps // 2 :] ** 2)))
    return np.array(found)


factors = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
settings = [(0.1 * f, 0.1 / f) for f in factors]
found = measured(lambda eta, decay: SGD(eta, weight_decay=decay), settings)
ratios = np.array([eta / decay for eta, decay in settings])
slope, _ = np.polyfit(np.log(ratios), np.log(found), 1)
print(f"SGD: measured exponent {slope:.3f}, the law's {laws.norm_exponent('SGD'):.3f}")

# %% [markdown]
# So the effective rate $\eta/|w|^2$ is proportional to $\sqrt{\eta \lambda_2}$: of learning rate
# and decay the **product** counts.  Without decay ($\lambda_2 = 0$), $|w|$ grows for ever and the
# effective rate falls to 0, whatever $\eta$ is.
#
# ## Break it with Adam
#
# Adam divides the gradient by its own root mean square: a step has the same length whatever $|w|$
# is.  **Predict** the exponent before you run the next cell: the growth of $|w|^2$ per step is now
# $\eta^2 C$ ($C$ weights), while decay is divided as well.

# %%
found = measured(lambda eta, decay: Adam(eta, eps=0.0, beta2=0.99, weight_decay=decay), settings)
slope, _ = np.polyfit(np.log(ratios), np.log(found), 1)
print(
    f"Adam: measured exponent {slope:.3f}, the law's for small steps "
    f"{laws.norm_exponent('Adam'):.3f}"
)

# %% [markdown]
# The symmetry of SGD, $(\eta, \lambda_2) \to (2 \eta, \lambda_2/2)$ with $w_0 \to \sqrt2 w_0$,
# leaves the run of directions as it is.  Adam has another one.  Which power of 2 must the decay
# take if $\eta$ and $w_0$ are doubled?  (`laws.powers` knows.)

# %%
for name in ("SGD", "Adam"):
    print(name, {key: laws.powers(name)[key] for key in ("learning_rate", "weight_decay")})

# %% [markdown]
# ## Use the page
#
# `python -m theory --play DIR` writes a page with sliders; open `DIR/play.html`.
#
# 1. Press *double η and λ*.  What happens to $|w|$, and what to the effective rate?
# 2. Press *double η, halve λ*.  And now?  The same with Adam.
# 3. Press *no decay*.  Does a larger learning rate still help, in the end?
# 4. Choose *|w| held fixed*.  What is decay good for now?
#
# ## What to take along
#
# * With normalization weight decay does not regularize; it sets $|w|$, and so the learning rate.
# * $|w|^4 = \eta s^2/(2 \lambda_2)$ for SGD; the effective rate is $\sqrt{2 \eta \lambda_2}/s$.
# * Adam has other exponents, but the effect is the same; fixing $|w|$ removes it.
#
# The same as claims: `python -m theory --only equilibrium-norm equilibrium-exponents`.
