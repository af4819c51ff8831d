"""The report of a critical learning rate: what each outcome says, in both renderings."""

import html
import math
import re

import attrs
import numpy as np
import pytest

from sample_runs import CRITICAL, STEP
from sdkeras.reporting.build import report_of
from sdkeras.reporting.drawing import as_svg
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
    "No critical learning rate was found between 0.1 and 64: the loss rises at none that was tried": with_step(
        outcome="lower", learning_rate=BOUND, ratio=Measured(1 / 640, False)
    ),
    "No critical learning rate was found between 0.01 and 0.1: the loss rises at each that was tried": with_step(
        outcome="upper", learning_rate=Measured(0.01, False), ratio=Measured(10.0, False)
    ),
    "was found between 1 and 1,024 times the update in use: the loss rises at none": with_step(
        outcome="lower", learning_rate=None, ratio=Measured(2.0**-10, False)
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
    assert len(report.figures) == 1
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


def test_minibatches_are_drawn_with_their_median_and_without_those_at_0() -> None:
    ratios = np.array([0.5, math.nan, 0.25, 1e-3])
    run = with_step(num_minibatches=4, ratios=ratios, quartiles=(0.25, math.inf), num_ascents=1, ratio=ratio(0.375))
    (figure,) = report_of(run).figures
    (points,) = figure.series
    rate = run.optimizer.learning_rate
    assert list(points.x) == [1, 3, 4]
    assert points.y == pytest.approx(rate / ratios[[0, 2, 3]])
    assert points.y_name == "critical learning rate"
    assert "1 minibatch at 0, whose update leads uphill" in figure.caption
    text = re.sub("<[^>]*>", " ", as_svg(figure))
    assert "in use" in text
    assert "median" in text
    none = with_step(num_minibatches=1, ratios=np.array([math.nan]), ratio=None, outcome="ascent")
    assert not report_of(none).figures


def test_what_it_means_goes_by_the_optimizer() -> None:
    def meaning(**optimizer: object) -> str:
        run = attrs.evolve(CRITICAL, optimizer=attrs.evolve(CRITICAL.optimizer, **optimizer))
        return report_of(run).paragraphs[0].text

    assert "g'Hg/g'g" in meaning()
    assert "2 (1 + beta)/eta" in meaning(momentum=0.9)
    assert "preconditioned" in meaning(name="AdamW", momentum=0.9)


def test_an_update_that_is_not_the_optimizers_own_is_an_alarm() -> None:
    assert any("UNVERIFIED" in alarm for alarm in report_of(with_step(verified=False, step_error=0.5)).alarms)
