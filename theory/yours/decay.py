"""The decay linter: parameters whose weight decay does not do what it is there for.

Decay holds the norm of scale-invariant weights, and with it the effective rate; on a gain or a bias
it is an L2 penalty, which pulls what the network computes towards 0.
"""

from typing import NamedTuple

from theory.yours.auditing import Audit

_STEPS = 10_000
_INVARIANT = ("per unit", "in blocks", "partly", "as a whole")


class Finding(NamedTuple):
    """One thing that the linter says of some parameters.

    parameters: their names.  kind: "grows" (scale-invariant, without decay), "penalized" (a gain or
    a bias, with decay), "split" (invariant jointly, with unlike settings) or "timm" (what timm's
    rule would do otherwise).  sentence: the same in words; `str` gives it.
    """

    parameters: tuple
    kind: str
    sentence: str

    def __str__(self):
        return f"{', '.join(self.parameters)}: {self.sentence}"


def lint_decay(report: Audit) -> tuple[Finding, ...]:
    """Return the Findings of an Audit on the weight decay of its optimizer's groups.

    What is frozen, held at a norm, cancelled or unclear is left out, and so is the decay of
    matrices that are not invariant: there it is the penalty that it says it is.  timm's rule: no
    decay for arrays of at most one axis and for names that end in ".bias"
    (timm.optim.param_groups_weight_decay).

    report: what theory.audit or theory.torch.audit returned.

    >>> from minimal_nn import SGD, BatchNorm, Dense, Network
    >>> from theory import audit
    >>> from minimal_nn.data import digits
    >>> data = digits(dtype=float)
    >>> network = Network([Dense(8, bias=False), BatchNorm(0.0), Dense(10)], input_shape=(64,),
    ...                   dtype="float64", rng=0)
    >>> def loss_and_gradients(parameters):
    ...     changed = network.with_parameters(parameters)
    ...     return changed.loss_and_gradients(data.X_train, data.y_train)[:2]
    >>> report = audit(loss_and_gradients, network.parameters, optimizer=SGD(0.1))
    >>> [(finding.parameters, finding.kind) for finding in lint_decay(report)]
    [(('dense1.W',), 'grows')]
    """
    if not isinstance(report, Audit):
        raise TypeError(
            f"report: got {type(report).__name__}, expected what theory.audit or "
            "theory.torch.audit returns"
        )
    found = []
    for row in report.rows:
        own = [report.rules[name] for name in row.parameters if name in report.rules]
        if len(own) < len(row.parameters) or any(rule.fixed_norm is not None for rule in own):
            continue
        if row.invariant in _INVARIANT:
            found += _of_invariant(report, row, own)
        elif row.invariant == "no":
            found += _of_gain(report, row, own[0])
    return tuple(found)


def _of_invariant(report, row, own):
    decays = [rule.decay for rule in own]
    if len(set(own)) > 1:
        settings = ", ".join(
            f"{name} learning rate {rule.learning_rate:g} and decay {rule.decay:g}"
            for name, rule in zip(row.parameters, own, strict=True)
        )
        sentence = f"scale-invariant jointly, with unlike settings ({settings}): one group for both"
        yield Finding(row.parameters, "split", sentence)
    elif decays[0] == 0:
        yield Finding(row.parameters, "grows", _growth(row, own[0]))
    if any(decays) and not any(_timm(name, report.shapes[name]) for name in row.parameters):
        sentence = "scale-invariant, with decay; timm's rule would take it away, and |w| would grow"
        yield Finding(row.parameters, "timm", sentence)


def _growth(row, rule):
    text = "scale-invariant, without weight decay: |w| grows and the effective rate dies"
    if not (row.norm > 0 and row.s > 0):
        return text
    norm = rule.grown(row.norm, _STEPS, row.s, row.dims)
    if rule.hidden_by_eps(norm, row.s, row.dims):
        return text
    fall = rule.effective_rate(row.norm) / rule.effective_rate(norm)
    return (
        f"{text}: in {_STEPS} steps, with gradients as now, |w| goes from {row.norm:.3g} to "
        f"{norm:.3g}, and the rate falls {fall:.3g}-fold"
    )


def _of_gain(report, row, rule):
    (name,) = row.parameters
    shape = report.shapes[name]
    if sum(length > 1 for length in shape) > 1:
        return
    if rule.decay:
        sentence = (
            f"a gain or a bias, with weight decay {rule.decay:g}: it is pulled to 0, which no norm "
            "behind it undoes"
        )
        yield Finding(row.parameters, "penalized", sentence)
    elif _timm(name, shape):
        sentence = (
            f"a gain or a bias of shape {shape}, without decay; timm's rule would decay it, since "
            f"it has {len(shape)} axes"
        )
        yield Finding(row.parameters, "timm", sentence)


def _timm(name, shape):
    """Return whether timm's rule decays a parameter."""
    return len(shape) > 1 and not name.endswith(".bias")
