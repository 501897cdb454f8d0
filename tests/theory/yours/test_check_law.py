"""check_law: right laws hold on the walk, those that are in use and wrong do not."""

import numpy as np
import pytest

from theory import check_law, laws


def words(formula, quantity="norm", **options):
    return [verdict.word for verdict in check_law(formula, quantity, **options)]


def test_the_laws_of_the_house_hold_and_show_their_interval():
    def norm(learning_rate, weight_decay, s):
        return laws.equilibrium("SGD", learning_rate, weight_decay, s=s).norm

    verdicts = check_law(norm, s=3.0)
    assert all(verdicts) and len(verdicts) == 2
    for verdict in verdicts:
        details, how = verdict.measurement.details, verdict.measurement.how
        low, high = details["interval"]
        assert low <= details["law"] <= high and "(99.9 %)" in how
        assert details["learning_rate"] == 0.1 and details["s"] == 3.0
        assert verdict.measurement.bound == 0.01 and verdict.measurement.control > 0.1


def test_turn_and_rate():
    assert words(lambda learning_rate, weight_decay: learning_rate * weight_decay, "turn") == [
        "holds",
        "holds",
    ]
    assert words(
        lambda learning_rate, weight_decay, s: np.sqrt(2 * learning_rate * weight_decay) / s, "rate"
    ) == ["holds", "FAILS"]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["Momentum", "Nesterov", "AdamW"])
def test_other_optimizers(optimizer):
    def norm(learning_rate, weight_decay, s, dims, memory):
        hyper = {"s": s, "dims": dims, "memory": memory}
        return laws.equilibrium(optimizer, learning_rate, weight_decay, **hyper).norm

    assert words(norm, optimizer=optimizer) == ["holds", "holds"]
    if optimizer == "Nesterov":  # momentum's law, which is right at small steps alone
        assert words(
            lambda learning_rate, weight_decay, memory: (
                laws.equilibrium("Momentum", learning_rate, weight_decay, memory=memory).norm
            ),
            optimizer="Nesterov",
        ) == ["holds", "FAILS"]


def test_a_law_that_is_in_circulation_is_excluded():
    def printed(learning_rate, weight_decay, dims, memory):
        kappa = (1 - memory) / (1 + memory)
        return (learning_rate * dims / (2 * weight_decay) * kappa) ** 0.5

    at = {"learning_rate": 0.1, "weight_decay": 3.0}
    assert words(printed, optimizer="AdamW", **at) == ["FAILS"]


def test_a_constant_that_is_one_percent_off_is_caught():
    at = {"learning_rate": 0.1, "weight_decay": 3.0}

    def law(factor):
        return lambda learning_rate, weight_decay: (
            factor * laws.equilibrium("SGD", learning_rate, weight_decay).norm
        )

    assert words(law(1.0), **at) == ["holds"]
    assert words(law(1.01**0.5), **at) == ["FAILS"]  # 2 % of |w|^4


def test_what_cannot_be_told_is_refused():
    assert words(lambda learning_rate: 1.0 + 0 * learning_rate) == ["refused", "refused"]
    at = {"learning_rate": 0.1, "weight_decay": 3.0}
    short = check_law(lambda weight_decay: 0.3742 * (3.0 / weight_decay) ** 0.4, longer=0.001, **at)
    assert "the run is too short" in short[0].refused


@pytest.mark.parametrize(
    ("argument", "value"),
    (
        *(("s", value) for value in (0, -1.0, "1", np.nan)),
        *(("longer", value) for value in (0, -1, np.inf)),
        *(("memory", value) for value in (-0.5, 1.0, None)),
        *(("dims", value) for value in (0, 1, 2.5)),
        *(("seed", value) for value in (-1, None)),
    ),
)
def test_numbers_that_cannot_be_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"{argument}: got {value!r}, expected a"):
        check_law(lambda s: s, optimizer="Adam", **{argument: value})


@pytest.mark.parametrize("value", ("x", None, 1j, [1.0]), ids=repr)
def test_a_law_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="formula: it gave .*, expected a positive number"):
        check_law(lambda s: value)
    with pytest.raises(TypeError, match="formula: got .*, whose arguments Python does not tell"):
        check_law(max)


def test_arguments_that_do_not_fit():
    with pytest.raises(TypeError, match="it takes eta, expected some of learning_rate"):
        check_law(lambda eta: eta)
    with pytest.raises(TypeError, match="formula: got float, expected a function"):
        check_law(0.5)
    with pytest.raises(ValueError, match="quantity: got 'length', expected one of norm, turn"):
        check_law(lambda s: s, "length")
    with pytest.raises(ValueError, match="optimizer: got 'LARS', expected one of SGD"):
        check_law(lambda s: s, optimizer="LARS")
    with pytest.raises(ValueError, match="got one of them, expected both or neither"):
        check_law(lambda s: s, learning_rate=0.1)
    with pytest.raises(ValueError, match="expected a positive number"):
        check_law(lambda s: -s)
