"""The report of a critical learning rate: what each outcome says, in both renderings."""

import html
import math

import attrs
import numpy as np
import pytest

from sample_runs import CRITICAL, STEP
from sdkeras.reporting.build import report_of
from sdkeras.reporting.html import as_html
from sdkeras.results.answers import CriticalRun
from sdkeras.results.measured import Measured


def with_step(**fields: object) -> CriticalRun:
    return attrs.evolve(CRITICAL, critical=attrs.evolve(STEP, **fields))


def ratio(value: float) -> Measured:
    return Measured(value, True, interval=(0.99 * value, 1.01 * value))


BOUND = Measured(64.0, False)
OUTCOMES = {
    "Below the critical learning rate 0.2500 [0.2475, 0.2525]: the rate in use is 0.4000": CRITICAL,
    "Past the critical learning rate": with_step(ratio=ratio(1.5), factors=STEP.factors / 3),
    "At the critical learning rate": with_step(ratio=ratio(1.005)),
    "Below the critical learning rate >= 64: the loss rose at no rate": with_step(
        outcome="lower", learning_rate=BOUND, ratio=Measured(1e-3, False)
    ),
    "Past the critical learning rate <= 64: the loss rose at every rate": with_step(
        outcome="upper", learning_rate=BOUND, ratio=Measured(1e3, False)
    ),
    "The critical learning rate is 0": with_step(outcome="ascent", ratio=None, sharpness=None),
    "No critical learning rate": with_step(outcome="no step", learning_rate=None, ratio=None, sharpness=None),
    "(median over minibatches)": with_step(
        num_minibatches=3, ratios=np.array([0.5, math.nan, 0.25]), quartiles=(0.25, math.inf)
    ),
}


@pytest.mark.parametrize("words", OUTCOMES)
def test_each_outcome_has_its_verdict_and_its_page(words: str) -> None:
    run = OUTCOMES[words]
    report = report_of(run)
    assert words in report.lines[0]
    page = as_html(run)
    assert html.escape(report.headline) in page
    drawn = run.critical.num_minibatches is None
    assert len(report.figures) == drawn
    assert all(np.all(np.isfinite(each.y)) for figure in report.figures for each in figure.series)


def test_without_a_single_rate_the_ratio_is_told_alone() -> None:
    """As of a MultiOptimizer: multiples of the update as a whole."""
    run = attrs.evolve(
        with_step(learning_rate=None, sharpness=None),
        optimizer=attrs.evolve(CRITICAL.optimizer, name="MultiOptimizer", learning_rate=math.nan),
    )
    report = report_of(run)
    assert report.lines == (
        "Below the critical learning rate: the rate in use is 0.4000 [0.3960, 0.4040] times as large.",
    )
    (figure,) = report.figures
    assert figure.series[0].x_name == "multiple of the update in use"
    assert as_html(run)


def test_what_it_means_goes_by_the_optimizer() -> None:
    def meaning(**optimizer: object) -> str:
        run = attrs.evolve(CRITICAL, optimizer=attrs.evolve(CRITICAL.optimizer, **optimizer))
        return report_of(run).paragraphs[0].text

    assert "g'Hg/g'g" in meaning()
    assert "2 (1 + beta)/eta" in meaning(momentum=0.9)
    assert "preconditioned" in meaning(name="AdamW", momentum=0.9)


def test_an_update_that_is_not_the_optimizers_own_is_an_alarm() -> None:
    assert any("UNVERIFIED" in alarm for alarm in report_of(with_step(verified=False, step_error=0.5)).alarms)
