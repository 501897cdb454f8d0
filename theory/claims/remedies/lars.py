r"""LARS: a first-order method that removes the effect of |w|."""

import dataclasses

import minimal_nn as nn
from theory.claim import EXPRESSIONS, UNDERFLOWS, claim
from theory.measures.bits import bit_exact, limits
from theory.measures.exact_runs import symmetry_identity
from theory.measures.runs import differing_runs, factors_of, run, scaled_start, without_zeros

_LARS = {"learning_rate": 0.05}


@claim(
    id="lars-removes-scale",
    statement=r"w' = w - \eta |w| \frac{\nabla L}{|\nabla L|}: \quad a w_0 \mapsto a \cdot "
    r"\mathrm{run}(w_0, \eta), \; \eta_{eff} = \eta \text{ for every } |w|",
    source="against van Laarhoven 2017, discussion; You, Gitman & Ginsburg 2017",
    cite="vL17 s7",
    assumptions=("no decay", "the step's length is eta |w| > 0, unit by unit: no w is all 0"),
    control="SGD and Adam with the same hyper-parameters at 2 w_0: other runs",
    derivation=r"""
At $a w$ the gradient is divided by $a$ and its direction is the same, so the step is multiplied by
$a$, as $w$ is: $\nu = -1$ in $\eta/|w|^{1+\nu}$. The method uses first derivatives alone, and no
hyper-parameter is changed with $a$. SGD with $\eta |w|^2$ does the same. (With decay the step
depends on $\lambda |w|^2$: $(a w_0, \lambda/a^2)$, see optimizer-symmetry.) Measured: runs from
$2^k w_0$ must be $2^k$ times the original, bit by bit.
""",
    erratum='"We know of no first order gradient method that can fully eliminate this effect" '
    "(discussion): this one does; LARS appeared two months after the paper.",
    unfit=(
        (UNDERFLOWS, "float16"),
        (EXPRESSIONS, "symbol"),
    ),
)
def lars_removes_scale(subject):
    """Numbers of LARS runs from 2^k w_0, nothing else changed, that are not those of the plain
    run.
    """
    least, _ = limits(subject)
    wrong, controls = 0, []
    for network in map(without_zeros, subject.states):

        def compared(make, *powers, network=network):
            original, differ = run(subject, network, make()), 0
            for k in powers:
                factors = factors_of(network, 2.0**k)
                scaled = run(subject, scaled_start(network, factors), make())
                differ += differing_runs(network, original, scaled, factors)
            return differ

        wrong += compared(lambda: nn.LARS(**_LARS), -least, -1, 1, least)
        controls += [compared(lambda: nn.SGD(0.25), 1), compared(lambda: nn.Adam(0.01), 1)]
    return bit_exact(wrong, min(controls), {"tried at k": [-least, -1, 1, least]})


@lars_removes_scale.exactly
def _(subject):
    lars = (nn.LARS, _LARS, {})
    others = [(nn.SGD, {"learning_rate": 0.25}, {}), (nn.Adam, {"learning_rate": 0.01}, {})]
    trained = dataclasses.replace(subject, states=subject.states[-1:])  # no bias is 0 any more
    return symmetry_identity(trained, [lars], others, per_unit=False)
