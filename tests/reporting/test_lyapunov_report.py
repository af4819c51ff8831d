"""The reports of a trajectory, alone and within an analysis."""

import math

import attrs
import numpy as np
import pytest

from sample_runs import RUN
from sdkeras.reporting import figures
from sdkeras.reporting.build import report_of
from sdkeras.reporting.compare import compare
from sdkeras.reporting.drawing import as_svg
from sdkeras.reporting.html import as_html
from sdkeras.reporting.terminal import as_text
from sdkeras.results import answers, lyapunov, verification
from sdkeras.results.lyapunov import LyapunovDimension, MStepSharpness, SharpestDimension

FOUND = lyapunov.LyapunovSummary(
    values=np.array([0.0125, -0.25, -0.5]),
    stderr=np.array([0.0015, 0.002, 0.004]),
    rounding=np.array([1e-7, 1e-7, 1e-6]),
    num_resolved=2,
    history=tuple(np.linspace(2.0, 1.0, 20) * value for value in (0.0125, -0.25, -0.5)),
    block_size=5,
    num_steps=102,
    num_steps_asked=200,
    transient=10,
    stopped_at=None,
    log_det=None,
    dimension=LyapunovDimension("determined", 1.05, (1.03, 1.07), "", 1, -0.25, 40, 3, 102),
    num_weights=20,
    verification=verification.StepVerification(math.nan, 1e-9, "map", 1e-7, 1e-9, True, "no copy"),
)
ALONE = answers.LyapunovRun(
    provenance=RUN.provenance,
    model=attrs.evolve(RUN.model, name="<b>net"),
    data=RUN.data,
    optimizer=RUN.optimizer,
    verification=RUN.verification,
    lyapunov=FOUND,
    warnings=RUN.warnings,
    partial=True,
)
WITHIN = attrs.evolve(RUN, lyapunov=FOUND)
UNKNOWN = attrs.evolve(
    FOUND,
    dimension=LyapunovDimension(
        "undetermined", None, None, "the trajectory diverged at step 113", None, None, 40, 3, 102
    ),
    stopped_at=113,
    history=tuple(np.zeros((3, 1))),
)


def window(m: int, dimension: float | None, reason: str = "") -> MStepSharpness:
    return MStepSharpness(m, 96, np.array([0.5, -0.25]), 2, 40, dimension, "explicit products", reason)


WINDOWED = attrs.evolve(
    FOUND,
    windows=(window(1, 6.5), window(2, 4.25), window(3, 3.5), window(8, None, "rounding hides them")),
    sharpest=SharpestDimension("D_s", 1.05, "the Lyapunov exponents determine it"),
    coordinates="balanced",
    log_det=-3.5,
    log_det_stderr=0.25,
)


def test_the_reports_hold_the_numbers_and_their_evidence() -> None:
    for run in (ALONE, WITHIN):
        text, page = as_text(run, verbose=True), as_html(run)
        for words in ("0.0125 ± 0.0015", "1.050 [1.030, 1.070]", "102 of 200", "an upper bound, by rounding"):
            assert words in text, words
        assert "The training wanders: nearby trajectories come apart" in " ".join(text.replace("│", "").split())
        assert len(report_of(run).figures) >= len(figures.lyapunov_figures(FOUND)) == 2
        assert 'id="training"' in page
        assert 'href="#training"' in page
    assert "<b>net" not in as_html(ALONE)
    assert "Interrupted" in as_text(ALONE)
    assert "training" not in [section.anchor for section in report_of(RUN).sections]


def test_windows_have_a_table_a_figure_and_a_line_of_their_own() -> None:
    run = attrs.evolve(ALONE, lyapunov=WINDOWED)
    text = as_text(run)
    for words in ("SD^(2)", "4.2", "mean over 48 windows", "rounding hides them", "balanced", "-3.50 ± 0.25"):
        assert words in text, words
    assert "Sharpest dimension over the same steps: D_s 1.1." in text
    assert "sum of all" not in text  # three exponents of 40
    assert len(report_of(run).figures) == 3
    assert "Dimensions over the same" not in as_text(ALONE)
    assert "none is determined" in as_text(attrs.evolve(ALONE, lyapunov=attrs.evolve(WINDOWED, sharpest=None)))


OVER_FORKS = attrs.evolve(
    FOUND,
    num_resolved=None,
    forks=lyapunov.Forks(
        count=4,
        seeds=(0, 5, 6, 7),
        r_hat=np.array([1.0023, 1.0004, 1.0312]),
        effective_steps=np.array([312.4, 408.0, math.nan]),
        alignment=np.array([0.00012, 0.0, 0.034]),
        half_widths=np.array([0.0031, 0.004, 0.04]),
        sum_stderr=np.array([0.0015, 0.0025, 0.005]),
        dimension_stderr=0.0091,
        dimension_r_hat=1.0017,
        dimension_effective_steps=377.0,
    ),
)


def test_exponents_over_forks_have_r_hat_ess_and_alignment_beside_them() -> None:
    run = attrs.evolve(ALONE, lyapunov=OVER_FORKS)
    text, page = " ".join(as_text(run, verbose=True, width=200).replace("│", " ").split()), as_html(run)
    for words in (
        "0.0125 ± 0.0015 R-hat 1.002, ESS 312, alignment 0.00012",
        "R-hat 1.031, alignment 0.034",
        "its standard error 0.0091 R-hat 1.002, ESS 377",
        "102 of 200 of each of 4 forks",
    ):
        assert words in text, words
    assert "R-hat 1.002, ESS 312, alignment 0.00012" in page
    unframed = attrs.evolve(OVER_FORKS, forks=attrs.evolve(OVER_FORKS.forks, alignment=None, dimension_r_hat=None))
    text = as_text(attrs.evolve(ALONE, lyapunov=unframed), verbose=True)
    assert "alignment" not in text
    assert "its standard error" not in text
    assert "R-hat" not in as_text(ALONE, verbose=True)
    assert answers.LyapunovRun.from_json(run.to_json()) == run


def test_compared_exponents_have_the_intervals_of_the_forks() -> None:
    changed = compare(attrs.evolve(ALONE, lyapunov=OVER_FORKS), attrs.evolve(ALONE, lyapunov=OVER_FORKS))
    (first,) = [row for row in changed.numbers if row.path == "lyapunov.values.0"]
    assert first.a.interval == pytest.approx((0.0125 - 0.0031, 0.0125 + 0.0031), abs=1e-6)
    assert first.a.evidence == "interval"


def test_the_figure_of_windows() -> None:
    *_, figure = figures.lyapunov_figures(WINDOWED)
    assert figure.title == "SD of several steps taken as one"
    assert "band its 95 % interval" in figure.caption
    assert "not drawn: m = 8" in figure.caption
    assert "var(--warn)" in as_svg(figure)
    assert ">D_s<" in as_svg(figure)
    for length in (1, 2, 3):
        assert f">{length}<" in as_svg(figure)
    unknown = figures.window_dimensions(attrs.evolve(WINDOWED, dimension=UNKNOWN.dimension))
    assert "D_s is undetermined here" in unknown.caption
    assert "var(--warn)" not in as_svg(unknown)
    bracket = LyapunovDimension("bracketed", None, (2.0, 3.0), "take more steps", 1, None, 40, 3, 96)
    bracketed = figures.window_dimensions(attrs.evolve(WINDOWED, dimension=bracket))
    assert "D_s lies in the band" in bracketed.caption
    assert "fill: var(--warn); opacity: 0.2" in as_svg(bracketed)
    assert figures.window_dimensions(FOUND) is None
    assert figures.window_dimensions(attrs.evolve(WINDOWED, windows=(window(2, None, "hidden"),))) is None
    # One window, and windows that all say the same: the axes still have a height.
    same = attrs.evolve(WINDOWED, windows=(window(1, 6.0), window(2, 6.0)), dimension=UNKNOWN.dimension)
    assert figures.window_dimensions(same) is not None
    assert figures.window_dimensions(attrs.evolve(WINDOWED, windows=(window(1, 0.0),), dimension=UNKNOWN.dimension))


def test_many_exponents_are_a_line_with_a_band() -> None:
    many = attrs.evolve(
        FOUND,
        values=np.linspace(0.1, -1.0, 200),
        stderr=np.full(200, 0.01),
        rounding=None,
        history=tuple(np.zeros((200, 0))),
        num_resolved=150,
    )
    figure = figures.lyapunov_exponents(many)
    assert len(as_svg(figure)) < 60_000
    assert "var(--soft)" in as_svg(figure)


def test_a_divergence_and_a_failed_check_are_told_first() -> None:
    failed = attrs.evolve(UNKNOWN, verification=attrs.evolve(FOUND.verification, passed=False))
    for run in (attrs.evolve(ALONE, lyapunov=failed), attrs.evolve(WITHIN, lyapunov=failed)):
        text = as_text(run)
        assert "NaN or infinity at step 113" in text
        assert "UNVERIFIED" in text
        assert "no standard error" in text


def test_figures_with_error_bars_and_running_means() -> None:
    exponents, convergence = figures.lyapunov_figures(FOUND)
    for figure in (exponents, convergence):
        assert "var(--accent)" in as_svg(figure)
        assert "#0" not in as_svg(figure).replace("#0e", "")
        assert "currentColor" in as_svg(figure)
    assert "var(--soft)" in as_svg(exponents)
    assert "grey" in exponents.caption
    assert "grey" not in figures.lyapunov_exponents(attrs.evolve(FOUND, num_resolved=None)).caption
    assert figures.lyapunov_convergence(UNKNOWN) is None
    assert figures.lyapunov_exponents(attrs.evolve(FOUND, values=np.array([math.inf, 0.0, 0.0]))) is None
