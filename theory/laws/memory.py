r"""Memory: what stands in the place of s^2 where successive gradients are correlated.

In training a gradient knows something of those before it.  Buffers add that up, and growth is fed
by L = E |w|^2 (|g|^2 + c <buffer before, g>) in the place of s^2 = E |w|^2 |g|^2, with the buffer
as it was before g came in (v for momentum, the uncorrected m for Adam).  Where gradients have no
memory the second term is 0 in the mean.
"""

from theory.laws.balance import balanced
from theory.numbers import Number


def momentum_memory(x: Number, memory: Number) -> Number:
    r"""Return c = 2 rho for momentum rho, exact at any x.  Source: Wan et al. 2021, theorem 2.

    >>> momentum_memory(0.1, 0.75)
    1.5
    """
    return 2 * memory


def nesterov_memory(x: Number, memory: Number) -> Number:
    r"""Return c for Nesterov: 2 rho^2 (1 + rho)/(1 + rho + rho x + 2 rho^2 x), exact; 2 rho^2 at 0.

    Source: ours, by the recursion of the second moments.

    >>> nesterov_memory(0.0, 0.5)
    0.5
    """
    square = memory * memory
    return 2 * square * (1 + memory) / (1 + memory + memory * x + 2 * square * x)


def adam_memory(x: Number, memory: Number) -> Number:
    r"""Return c = 2 beta1/(1 - beta1) for Adam and AdamW, m the uncorrected average, x -> 0.

    Source: ours: momentum's for v = m/(1 - beta1).

    >>> adam_memory(0.0, 0.5)
    2.0
    """
    return 2 * memory / (1 - memory)


MEMORIES = {
    "SGD": lambda x, memory: 0 * x,
    "Momentum": momentum_memory,
    "Nesterov": nesterov_memory,
    "Adam": adam_memory,
    "AdamW": adam_memory,
}


def adam_weighted(learning_rate: Number, weight_decay: Number, drive: Number) -> Number:
    r"""Return E|w|^2 under Adam with L2 where every weight has a v_i of its own, whatever it is.

    learning_rate/(2 weight_decay) times the drive E sum_i (p_i^2 + c m_i p_i)/sqrt(v_i), p_i =
    g_i + weight_decay w_i, m_i before p_i comes in, c of adam_memory.  A step is learning_rate
    m_i'/sqrt(v_i); it is sum_i sqrt(v_i) w_i^2 that is stationary, where 2 <w, m'> = learning_rate
    sum_i m_i'^2/sqrt(v_i), and <w, p> = weight_decay |w|^2, as <w, g> = 0, whatever the mean
    gradient is.
    Where sqrt(v_i) = s_i/|w|: |w|^3 = learning_rate/(2 weight_decay) sum_i s_i, and for equal s_i =
    s/sqrt(dims) that is r_0^3 of `equilibrium`.

    Exact at any x as beta2 -> 1.  drive: a number or an array.  Source: ours.

    >>> adam_weighted(1e-2, 1e-3, 8.0)
    40.0
    """
    return learning_rate / (2 * weight_decay) * drive


def adamw_weighted(
    learning_rate: Number, weight_decay: Number, drive: Number, memory: Number
) -> Number:
    r"""Return E sum_i sqrt(v_i) w_i^2 under AdamW where every weight has a v_i of its own.

    (learning_rate/weight_decay) adamw_balance(x) times the drive E sum_i (g_i^2 + c m_i g_i)/
    sqrt(v_i), m_i before g_i comes in.  The mean of w_i^2 alone is off by -Cov_i(s_i, w_i^2)/mean_i
    s_i: weights with small gradients grow.

    Exact at any x as beta2 -> 1.  drive: a number or an array.  Source: ours.

    >>> round(adamw_weighted(0.01, 0.5, 2.0, 0.9), 6)
    0.019141
    """
    return balanced("AdamW", learning_rate, weight_decay, memory) * drive
