r"""Memory: what stands in the place of s^2 where successive gradients are correlated.

In training a gradient knows something of those before it.  Buffers add that up, and growth is fed
by L = E |w|^2 (|g|^2 + c <buffer before, g>) in the place of s^2 = E |w|^2 |g|^2, with the buffer
as it was before g came in (v for momentum, the uncorrected m for Adam).  Where gradients have no
memory the second term is 0 in the mean.
"""


def momentum_memory(x, memory):
    r"""Return c = 2 rho for momentum rho, exact at any x.  Source: Wan et al. 2021, theorem 2.

    >>> momentum_memory(0.1, 0.75)
    1.5
    """
    return 2 * memory


def nesterov_memory(x, memory):
    r"""Return c for Nesterov: 2 rho^2 (1 + rho)/(1 + rho + rho x + 2 rho^2 x), exact; 2 rho^2 at 0.

    Source: ours, by the recursion of the second moments.

    >>> nesterov_memory(0.0, 0.5)
    0.5
    """
    square = memory * memory
    return 2 * square * (1 + memory) / (1 + memory + memory * x + 2 * square * x)


def adam_memory(x, memory):
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


def adam_weighted(learning_rate, weight_decay, drive):
    r"""Return |w|^3 under Adam with L2 where weights have gradients of different size.

    (learning_rate/(2 weight_decay)) sum_i s_i, s_i the root of E |w|^2 g_i^2; with memory, and
    p_i = g_i + weight_decay w_i: the sum of E |w|^2 (p_i^2 + c m_i p_i)/s_i, s_i^2 = E |w|^2 p_i^2.
    It is sum_i s_i w_i^2 that has a balance: sqrt(v_i) = s_i/|w|, and sum_i sqrt(v_i) w_i
    g_i/sqrt(v_i) = <w, g> = 0, whatever the mean gradient is.  Equal s_i = s/sqrt(dims) give r_0
    of equilibrium.

    drive: that sum, a number or an array.  To first order in x_e, beta2 -> 1.  Source: ours.

    >>> adam_weighted(1e-2, 1e-3, 8.0)
    40.0
    """
    return learning_rate / (2 * weight_decay) * drive


def adamw_weighted(learning_rate, weight_decay):
    r"""Return sum_i s_i w_i^2/sum_i s_i under AdamW: learning_rate/(2 weight_decay), x -> 0.

    The mean of w_i^2 alone is that less Cov_i(s_i, w_i^2)/mean_i s_i: weights with small gradients
    grow.  Source: ours.

    >>> adamw_weighted(0.01, 0.5)
    0.01
    """
    return learning_rate / (2 * weight_decay)
