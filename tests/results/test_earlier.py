"""The first measurement of a training beside an analysis of its weights: which one, and what is compared."""

import math

import attrs
import pytest

from sample_log import FOUND, HEADER
from sample_runs import EMPTY, RUN, with_edge, with_estimate
from sdkeras.errors import SdkerasError
from sdkeras.results.answers import Analysis
from sdkeras.results.earlier import about_log, check_size, with_earlier
from sdkeras.results.log import Beginning, RunLog
from sdkeras.results.measured import Measured

CODIMENSION = FOUND.values["sharpness_codimension"]


def log(*steps: int, **fields: object) -> RunLog:
    """A log with measurements at these steps, of a training that has these values."""
    return RunLog(HEADER, tuple(attrs.evolve(FOUND, step=step, **fields) for step in steps))


def test_the_first_of_an_earlier_step_counts() -> None:
    """The run is of step 30; a measurement that failed has nothing to compare."""
    failed = attrs.evolve(FOUND, step=2, values=dict.fromkeys(FOUND.values, Measured(math.nan, False)))
    run = with_earlier(RUN, RunLog(HEADER, (failed, *log(10, 20, 30).measurements)))
    assert (run.earlier.step, run.earlier.epoch, run.earlier.reason) == (10, 1, "")
    assert run.earlier.codimension == CODIMENSION
    assert run.earlier.sharpness_dimension == FOUND.values["sharpness_dimension"]
    assert run.earlier.sharpness == FOUND.values["sharpness"]
    assert (run.earlier.ratio, run.earlier.learning_rate) == (0.6, 0.1)
    assert attrs.evolve(run, earlier=None) == RUN
    assert with_earlier(RUN, log(30, 40)) == RUN


def test_weights_that_training_gave_up_are_not_earlier() -> None:
    given_up = attrs.evolve(FOUND, step=10, values={"sharpness": Measured(99.0, True)})
    again = attrs.evolve(FOUND, step=20, began=Beginning(0, 0))
    assert with_earlier(RUN, RunLog(HEADER, (given_up, again))).earlier.step == 20


@pytest.mark.parametrize(
    ("run", "header", "fields", "reason"),
    [
        (EMPTY, {}, {}, "there is none now"),
        (RUN, {}, {"values": {"sharpness": FOUND.values["sharpness"]}}, "it was not measured then"),
        (with_estimate(RUN, map="full"), {}, {}, "then it was of the map sgd, now of full"),
        (RUN, {}, {"state_size": 1000}, "then the state had 1,000 dimensions, now 2,000"),
        (RUN, {"batch_size": 8}, {}, "then it was of minibatches of 8, now of 32"),
    ],
)
def test_another_dimension_is_left_out_with_the_reason(
    run: Analysis, header: dict[str, int], fields: dict[str, object], reason: str
) -> None:
    found = with_earlier(run, attrs.evolve(log(10, **fields), header=attrs.evolve(HEADER, **header))).earlier
    assert (found.codimension, found.sharpness_dimension, found.reason) == (None, None, reason)
    assert found.sharpness == FOUND.values["sharpness"]


def test_a_ratio_of_another_operator_is_left_out() -> None:
    assert with_earlier(with_edge(RUN, operator="P^-1/2 H P^-1/2"), log(10)).earlier.ratio is None


def test_what_the_reader_must_know_of_a_log() -> None:
    assert about_log(with_earlier(RUN, log(10)), log(10)) == ()
    (note,) = about_log(RUN, log(30))
    assert "no measurement before step 30" in note.message
    other = attrs.evolve(log(10), header=attrs.evolve(HEADER, data_digest="cd34"))
    (note,) = about_log(with_earlier(RUN, other), other)
    assert "other data" in note.message


def test_the_log_of_a_model_of_another_size_is_refused() -> None:
    check_size(log(10), 2000)
    with pytest.raises(SdkerasError, match=r"2,000 parameters of the model 'net', and 33 are analysed here"):
        check_size(log(10), 33)
