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


# What is stored of w and the buffer b: the coefficients of |w|^2, <w, b> and |b|^2 in Y, w in units
# of the learning rate.  Y' = Y + |g|^2 + c <b, g> - |w|^2/(learning_rate^2 balance(x)/x).


def sgd_store(x: Number, memory: Number) -> tuple[Number, Number, Number]:
    r"""Return the coefficients of Y = |w|^2/learning_rate^2 under SGD.

    |w'|^2 = (1 - x)^2 |w|^2 + learning_rate^2 |g|^2: Y grows by |g|^2 and loses x (2 - x) of itself.

    >>> sgd_store(0.5, 0.9)
    (1, 0, 0)
    """
    return 1, 0, 0


def momentum_store(x: Number, memory: Number) -> tuple[Number, Number, Number]:
    r"""Return those of Y = |(1 - rho) w - rho v|^2 + 2 rho x (|w|^2 + <w, v>)/(1 + rho).

    With learning_rate = 1, (1 - rho) w' - rho v' = (1 - rho) w - rho v - g - x w: without decay that
    moves by -g alone, and its square by |g|^2 + 2 rho <v, g>, as <w, g> = 0.  With decay the square
    gains the same less 2 x <(1 - rho) w - rho v, w> - x^2 |w|^2 - 2 x <w, g>, and the second term,
    by |w'|^2 + <w', v'> = <w', (1 - x) w + g>... cancels the <w, v>.  Exact at every step, whatever
    the gradients are.  Source: ours; without decay the first term is Wan et al.'s.

    >>> momentum_store(0.0, 0.5), momentum_store(0.5, 0.0)
    ((0.25, -0.5, 0.25), (1.0, 0.0, 0.0))
    """
    rest = 2 * memory * x / (1 + memory)
    away = 1 - memory
    return away * away + rest, rest - 2 * memory * away, memory * memory


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
