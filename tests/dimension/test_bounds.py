"""The bounds against numbers worked out by hand from Theorems 4.5 and B.5."""

import math

import pytest

from sdkeras.dimension.bounds import INPUTS, Facts, Training, bounds, facts_along
from sdkeras.errors import SdkerasError
from sdkeras.results.lyapunov import LyapunovDimension

# SD = 25 and delta = 1/e make sqrt(4 SD ln(1/delta)) = 10; n = 400 has the root 20.
FACTS = Facts(dimension=25.0, state_size=100, num_samples=400)
ALL = {
    "loss_bound": 2.0,
    "lipschitz": 3.0,
    "delta": math.exp(-1),
    "zeta": math.exp(-2),
    "mutual_information": 6.0,
    "stability": 1 / 8,
    "constant": 0.5,
}


def test_terms_by_hand() -> None:
    attractor, stable = bounds(FACTS, ALL)
    # 2*3/e; 2*2*10/20; (6 + 2)/20; 0.5*4/20
    assert [term.value for term in attractor.terms] == pytest.approx([6 / math.e, 2.0, 0.4, 0.1])
    assert attractor.total == pytest.approx(6 / math.e + 2.5)
    # 2*2/400; 2*3/e; 2*(1/2); 2*(1/2)*2*10
    assert [term.value for term in stable.terms] == pytest.approx([0.01, 6 / math.e, 1.0, 20.0])
    assert stable.total == stable.partial_sum == pytest.approx(21.01 + 6 / math.e)
    assert (attractor.theorem, stable.theorem) == ("Theorem 4.5", "Theorem B.5")


@pytest.mark.parametrize("missing", list(INPUTS))
def test_a_missing_input_leaves_its_terms_and_the_total_null(missing: str) -> None:
    given = {name: value for name, value in ALL.items() if name != missing}
    for whole, part in zip(bounds(FACTS, ALL), bounds(FACTS, given), strict=True):
        needs = missing in {entry.name for entry in part.inputs}
        assert (part.total is None) == needs
        known = [term.value for term in part.terms if term.value is not None]
        assert part.partial_sum == pytest.approx(sum(known))
        assert any(term.value is None for term in part.terms) == needs
        for one, other in zip(whole.terms, part.terms, strict=True):
            assert other.value is None or other.value == one.value


def test_verdicts() -> None:
    assert bounds(FACTS, ALL)[0].verdict == "vacuous"
    assert bounds(FACTS, {})[0].verdict == "undetermined"
    # The known terms alone already reach B.
    assert bounds(FACTS, {"loss_bound": 2.0, "delta": math.exp(-1)})[0].verdict == "vacuous"
    assert bounds(FACTS, {"loss_bound": 20.0, "lipschitz": 1.0, "delta": math.exp(-1)})[1].verdict == "undetermined"
    small = ALL | {"loss_bound": 1000.0, "constant": 0.0}
    many = Facts(dimension=25.0, state_size=100, num_samples=10**8)
    assert bounds(many, small)[0].verdict == "below B if every assumption holds"
    guessed = bounds(many, small, frozenset({"loss_bound"}))[0]
    assert "estimates" in guessed.verdict
    assert [entry.estimated for entry in guessed.inputs if entry.name == "loss_bound"] == [True]
    assert "estimated" in bounds(FACTS, ALL, frozenset({"loss_bound"}))[0].verdict


def test_assumptions_say_what_is_known() -> None:
    facts = Facts(
        dimension=0.0,
        state_size=100,
        num_samples=400,
        kinks=("relu (dense)",),
        unbounded_loss="mse",
        smallest_exponent=math.log(1e-12),
    )
    status = {each.name: each.status for each in bounds(facts, ALL)[1].assumptions}
    assert status["1 <= j* < d"] == "fails"
    assert status["twice continuously differentiable map"] == "fails"
    assert status["non-singular Jacobian"] == "fails"
    assert status["loss in [0, B]"] == "fails"
    # (1/8)^(-2/3) = 4 divides 400; 1e-3 gives 100, which does, and 1/27 gives 9, which does not.
    for beta, expected in ((1 / 8, "holds"), (1e-3, "holds"), (1 / 27, "fails"), (0.3, "fails")):
        status = {each.name: each.status for each in bounds(FACTS, ALL | {"stability": beta})[1].assumptions}
        assert status["beta_n^(-2/3) an integer divisor of n"] == expected, beta
    plain = {each.name: each.status for each in bounds(FACTS, {})[0].assumptions}
    assert plain["0 < delta < 1"] == "unknown"
    assert plain["1 <= j* < d"] == "holds"
    assert plain["twice continuously differentiable map"] == "not contradicted"


def test_every_assumption_is_listed() -> None:
    attractor, stable = (
        {each.name: (each.status, each.remark) for each in bound.assumptions} for bound in bounds(FACTS, {})
    )
    assert set(attractor) == {
        "unique compact random pullback attractor",
        "integrability on the attractor (4.4.2)",
        "time-homogeneous random dynamical system",
        "the dimension is of training's own step",
        "1 <= j* < d",
        "0 < delta < 1",
        "delta below delta_(n, gamma)",
        "twice continuously differentiable map",
        "non-singular Jacobian",
        "bounded distortion (eq. 13)",
        "loss in [0, B]",
        "loss Lipschitz in the weights",
        "SD over the whole attractor",
    }
    assert set(stable) - set(attractor) == {
        "beta_n-stable training",
        "beta_n^(-2/3) an integer divisor of n",
        "expectation over data sets",
    }
    for status, remark in (*attractor.values(), *stable.values()):
        assert status in ("holds", "fails", "not contradicted", "unknown")
        assert remark or status in ("holds", "not contradicted")


def test_a_frozen_preconditioner_is_not_of_training_but_d_s_is() -> None:
    training = Training(other_map="the map adam holds P", time_dependence="a schedule", kinks=("sign (Lion)",))
    facts = Facts(25.0, 100, 400, training=training)
    frozen = bounds(facts, {})[0]
    known = {each.name: each for each in frozen.assumptions}
    assert known["the dimension is of training's own step"].status == "fails"
    assert "neither D_s <= SD" in known["the dimension is of training's own step"].remark
    assert "not of training's own random dynamical system" in frozen.dimension_reason
    assert known["time-homogeneous random dynamical system"].status == "fails"
    assert known["twice continuously differentiable map"].remark == "kinks of sign (Lion)"
    along = LyapunovDimension("determined", 9.0, (8.0, 10.0), "", 9, -0.5, 200, 200, 1000)
    real = bounds(facts_along(facts, along), {})[0]
    known = {each.name: each for each in real.assumptions}
    assert known["the dimension is of training's own step"].status == "not contradicted"
    assert known["time-homogeneous random dynamical system"].status == "fails"
    assert "own random dynamical system" not in real.dimension_reason


def test_a_dimension_below_one_has_no_j() -> None:
    for dimension, status in ((0.5, "fails"), (1.0, "holds"), (99.5, "holds"), (100.0, "fails")):
        known = {each.name: each.status for each in bounds(Facts(dimension, 100, 400), {})[0].assumptions}
        assert known["1 <= j* < d"] == status


def test_no_verdict_below_b_where_an_assumption_fails() -> None:
    small = ALL | {"loss_bound": 1000.0, "constant": 0.0}
    facts = Facts(25.0, 100, 10**8, unbounded_loss="mse")
    verdict = bounds(facts, small)[0].verdict
    assert verdict.startswith("undetermined")
    assert "loss in [0, B]" in verdict
    assert bounds(facts, ALL)[0].verdict == "vacuous"  # above B whatever the assumptions are


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lipshitz": 1.0}, "lipschitz"),
        ({"delta": 1.0}, "between 0 and 1"),
        ({"zeta": 0.0}, "between 0 and 1"),
        ({"loss_bound": 0.0}, "positive"),
        ({"constant": -1.0}, ">= 0"),
        ({"lipschitz": math.nan}, "finite"),
        ({"mutual_information": math.inf}, "finite"),
    ],
)
def test_bad_inputs(given: dict[str, float], message: str) -> None:
    with pytest.raises(SdkerasError, match=message):
        bounds(FACTS, given)


def test_d_s_where_it_is_determined_and_sd_where_it_is_not() -> None:
    """D_s whichever is smaller: the local SD is no upper bound of the attractor's dimension."""
    facts, inputs = Facts(25.0, 100, 400), {"loss_bound": 1.0, "delta": math.exp(-1)}
    for value in (9.0, 36.0):
        along = LyapunovDimension("determined", value, (value - 1, value + 1), "", int(value), -0.5, 200, 200, 1000)
        for bound in bounds(facts_along(facts, along), inputs):
            assert bound.dimension_name == "D_s"
            assert "25.0 of 100" in bound.dimension_reason
            assert "1,000 steps" in bound.dimension_reason
            assert not any(" SD " in term.formula for term in bound.terms)
            remarks = {each.name: each.remark for each in bound.assumptions}
            assert remarks["1 <= j* < d"] == f"D_s is {value} of 200"
            assert "one trajectory" in remarks["SD over the whole attractor"]
        assert bounds(facts_along(facts, along), inputs)[0].terms[1].value == pytest.approx(
            2 * 2 * math.sqrt(value) / 20
        )
    for status, interval in (("bracketed", (3.0, 9.0)), ("undetermined", None)):
        along = LyapunovDimension(status, None, interval, "take more steps", 3, None, 200, 3, 1000)
        found = bounds(facts_along(facts, along), inputs)
        assert [bound.dimension_name for bound in found] == ["SD", "SD"]
        assert f"D_s is {status}: take more steps" in found[0].dimension_reason
        assert found[0].terms == bounds(facts, inputs)[0].terms
