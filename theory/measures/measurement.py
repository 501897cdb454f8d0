"""What a measurement gives: a residual, the bound that it must keep, and the negative control."""

from dataclasses import dataclass, field


class Refused(Exception):
    """Nothing can be concluded, for instance from a statistical run that is too short; says why."""


@dataclass(frozen=True)
class Measurement:
    """What a claim's measurement on one subject gives.

    measured: the residual.  bound: what it may be at most, 0 for bit-exact statements.  how: how
    the bound is derived.  control: the residual of the negative control; None where a subject
    allows none. control_least: the control fails as predicted if it is at least this.
    control_as_predicted: and if its law, where it has one, holds.  details: further figures by
    name, for --json and --explain.  smallest: the smallest fault that is caught, relative to what
    report/reach.py names: the least bound over residual per unit of it.  None: the bound, and of a
    statement about bits the last one.  estimated: the bound rests on an estimate (callables).
    leak: the residual is that of an eps > 0.
    refused: why nothing can be concluded, "" if something can.
    """

    measured: float
    bound: float
    how: str
    control: float | None
    control_least: float
    control_as_predicted: bool = True
    details: dict = field(default_factory=dict)
    estimated: bool = False
    leak: bool = False
    refused: str = ""
    smallest: float | None = None
