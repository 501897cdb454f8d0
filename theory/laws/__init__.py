r"""The laws of scale-invariant weights: powers, rates, norms, angles and thresholds, each once.

Claims test them, figures draw them, audits predict with them; a constant stands here and nowhere
else.

Conventions.  `weight_decay` = 2 l2, as the frameworks write it: the paper's loss is L + l2 |w|^2,
of which the gradient gets 2 l2 w.  AdamW's is decoupled.  x = learning_rate * weight_decay.  An
optimizer is named as in minimal_nn ("SGD", "Momentum", ..., "LARS"); `memory` is its momentum, or
its beta1.  w is one invariance group of `dims` weights, |w| its norm, g the loss's gradient at w,
and s the root of E |w|^2 |g|^2: the gradient's length where |w| = 1, which the loss sets and |w|
does not.  Times are steps.  No quantity has a unit but the powers of w's that `powers` tells.

    scaling       degree, powers of the symmetry, effective rate, steps on one gradient
    balance       |w| and the angle between successive w, where growth and decay balance
    motion        growth without decay, and how fast |w| comes to its equilibrium
    finite        what a beta2 below 1 adds to Adam's and AdamW's
    memory        what gradients that remember put in the place of s^2
    remedies      |w| held at 1: the rate that is left, and the threshold
    later         Lion, Muon, SGDP, AdamP, Hyperball: the optimizers after the paper
    schedules     schedules that are decay, and how decay and schedule move the effective rate
    sphere        the period of decay without noise, the mean loss with it
    batch         what becomes of hyper-parameters where the batch's size changes

Every formula is made of + - * /, np.sqrt, np.log and np.abs, so that it takes floats, arrays, balls
and symbols (theory.numbers), unless it says otherwise.
"""

from theory.laws.balance import (
    BALANCES,
    TURNS,
    Equilibrium,
    adam_balance,
    adam_root,
    adam_shares,
    adam_shift,
    adam_turn,
    adamw_balance,
    adamw_turn,
    balanced,
    equilibrium,
    equilibrium_rate,
    limit,
    momentum_balance,
    momentum_turn,
    nesterov_balance,
    nesterov_turn,
    norm_exponent,
    rate_exponents,
    sgd_fourth_moment,
)
from theory.laws.batch import batch_powers
from theory.laws.finite import Correction, adam_correction, adamw_correction
from theory.laws.later import (
    correlation_sum,
    coupled_equilibrium,
    directions_balance,
    directions_turn,
    hyperball_turn,
    later_equilibrium,
    lion_correlation,
    lion_published,
    projected_balance,
    projected_clock,
    projected_correction,
)
from theory.laws.memory import (
    MEMORIES,
    STORES,
    Store,
    adam_memory,
    adam_store,
    adam_weighted,
    adamw_mean_square,
    adamw_store,
    adamw_weighted,
    momentum_memory,
    momentum_store,
    nesterov_memory,
    nesterov_store,
    sgd_store,
)
from theory.laws.motion import (
    SHRINKS,
    adam_clock,
    adam_relaxation,
    buffered_clock,
    finite_clock,
    growth,
    momentum_shrink,
    nesterov_shrink,
    norm_power,
    power_clock,
    relaxation_rate,
)
from theory.laws.remedies import (
    circle_angle,
    fixed_norm_adam_share,
    fixed_norm_rate,
    fixed_norm_share,
    reversed_by_decay,
)
from theory.laws.scaling import (
    DEGREES,
    adam_exponent,
    direction_rate,
    effective_rate,
    powers,
    rate_power,
    repeated_step,
    response,
)
from theory.laws.schedules import (
    equivalent_rate,
    momentum_schedule,
    next_rate,
    next_sphere_moment,
    schedule_growth,
    sphere_moment,
)
from theory.laws.sphere import decay_period, dilogarithm, jump_rate, loss_near_minimum

__all__ = [
    "BALANCES",
    "Correction",
    "DEGREES",
    "Equilibrium",
    "MEMORIES",
    "SHRINKS",
    "STORES",
    "Store",
    "TURNS",
    "adam_balance",
    "adam_clock",
    "adam_correction",
    "adam_exponent",
    "adam_memory",
    "adam_relaxation",
    "adam_root",
    "adam_shares",
    "adam_shift",
    "adam_store",
    "adam_turn",
    "adam_weighted",
    "adamw_balance",
    "adamw_correction",
    "adamw_mean_square",
    "adamw_store",
    "adamw_turn",
    "adamw_weighted",
    "balanced",
    "batch_powers",
    "buffered_clock",
    "circle_angle",
    "correlation_sum",
    "coupled_equilibrium",
    "decay_period",
    "dilogarithm",
    "direction_rate",
    "directions_balance",
    "directions_turn",
    "effective_rate",
    "equilibrium",
    "equilibrium_rate",
    "equivalent_rate",
    "finite_clock",
    "fixed_norm_adam_share",
    "fixed_norm_rate",
    "fixed_norm_share",
    "growth",
    "hyperball_turn",
    "jump_rate",
    "later_equilibrium",
    "limit",
    "lion_correlation",
    "lion_published",
    "loss_near_minimum",
    "momentum_balance",
    "momentum_memory",
    "momentum_schedule",
    "momentum_shrink",
    "momentum_store",
    "momentum_turn",
    "nesterov_balance",
    "nesterov_memory",
    "nesterov_shrink",
    "nesterov_store",
    "nesterov_turn",
    "next_rate",
    "next_sphere_moment",
    "norm_exponent",
    "norm_power",
    "power_clock",
    "powers",
    "projected_balance",
    "projected_clock",
    "projected_correction",
    "rate_exponents",
    "rate_power",
    "relaxation_rate",
    "repeated_step",
    "response",
    "reversed_by_decay",
    "schedule_growth",
    "sgd_fourth_moment",
    "sgd_store",
    "sphere_moment",
]
