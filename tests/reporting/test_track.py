"""A training over time in the terminal and as a page: the log's numbers, safe whatever the names are."""

import math
import re
from typing import Any

import attrs
import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from reporting.test_page import _Tags
from sample_log import FOUND, HEADER
from sdkeras.dimension.bounds import Facts, bounds
from sdkeras.reporting import build_track
from sdkeras.reporting.build import report_of
from sdkeras.reporting.drawing import PRINT
from sdkeras.reporting.html import as_html
from sdkeras.reporting.report import Figure, Table
from sdkeras.reporting.terminal import as_text
from sdkeras.results.log import Measurement, RunLog
from sdkeras.results.measured import Measured

NAN = Measured(math.nan, False)


def measured(step: int, ratio: float, **changes: object) -> Measurement:
    values = {
        **FOUND.values,
        "sharpness_ratio": Measured(ratio, True),
        "rds_sharpness": Measured(0.01, True),
        "hessian_trace": Measured(9.0, step > 10, stderr=1.0),
    }
    metrics = {"loss": 1.0 / step, "val_loss": 1.5 / step, "accuracy": 0.9, "val_accuracy": 0.8}
    return attrs.evolve(FOUND, **{"step": step, "values": values, "metrics": metrics, **changes})


FAILED = measured(40, math.nan, values=dict.fromkeys(FOUND.values, NAN), notes=("the measurement failed: oh",))
LOG = RunLog(HEADER, (measured(10, 0.5), measured(20, 0.95), measured(30, 1.02), FAILED))


def verdict(log: RunLog) -> str:
    return report_of(log).lines[0]


def notes(log: RunLog) -> list[str]:
    return [note.message for note in report_of(log).notes]


def table(log: RunLog) -> Table:
    """All measurements, as the page lists them."""
    return next(table for table in report_of(log).tables if table.only == "page")


def figure(log: RunLog, name: str) -> Figure:
    return next(each for each in report_of(log).figures if each.name == name)


def drawn(log: RunLog, name: str) -> list[Any]:
    """The axes of a figure, in the data's own units."""
    canvas = Canvas()
    figure(log, name).draw(canvas.add_subplot(), PRINT)
    return canvas.axes


@pytest.mark.parametrize("ratio", [0.9, 0.05, 1e-3, 1e-7])
def test_the_axis_of_the_sharpness_has_room_for_its_numbers(ratio: float) -> None:
    (axes,) = drawn(RunLog(HEADER, (measured(10, ratio), measured(20, 0.9))), "edge")
    low, high = axes.get_ylim()
    assert 3 <= sum(low <= tick <= high for tick in axes.get_yticks()) <= 11


def test_the_verdict_is_of_the_last_number_and_tells_when_the_edge_was_reached() -> None:
    assert verdict(LOG) == (
        "At the edge of stability at step 30: sharpness 20.4 is 1.02 times the threshold 20 of SGD at learning rate "
        "0.1. It was at 0.9 or above first at step 20."
    )
    assert verdict(attrs.evolve(LOG, measurements=LOG.measurements[:1])).startswith("Below the edge of stability at")
    assert verdict(attrs.evolve(LOG, measurements=(FAILED,))).startswith("No verdict: ")
    assert "1 of 4 measurements failed, the last one: the measurement failed: oh" in notes(LOG)
    assert notes(LOG)[-1] == "step 30: a note"


def test_the_terminal_shows_each_measurement() -> None:
    shown = as_text(LOG, 80)
    assert max(len(line) for line in shown.splitlines()) <= 80
    rows = [line.split() for line in shown.splitlines() if re.match(r" *\d+ +1 ", line)]
    assert [row[0] for row in rows] == ["10", "20", "30", "40"]
    assert rows[1] == ["20", "1", "12", "20", "0.95", "0.01", "470", "0.05", "0.075"]
    assert rows[3][2:7] == ["-", "20", *["-"] * 3]
    many = attrs.evolve(LOG, measurements=tuple(measured(k, 0.5) for k in range(1, 100)))
    assert "the last 30 of 99" in as_text(many)


@pytest.mark.parametrize(
    ("width", "missing"),
    [
        (60, ["val_accuracy", "accuracy", "SD", "epoch", "val_loss", "λ₁"]),
        (80, ["val_accuracy", "accuracy", "SD"]),
        (100, ["val_accuracy"]),
        (120, []),
    ],
)
def test_a_narrow_terminal_does_without_the_least_important_columns(width: int, missing: list[str]) -> None:
    """All others are in one line, their words whole."""
    columns = ["step", "epoch", "sharpness", "threshold", "ratio", "λ₁", "SD", "codimension", "loss", "val_loss"]
    columns += ["accuracy", "val_accuracy"]
    lines = as_text(LOG, width).splitlines()
    assert max(map(len, lines)) <= width
    headings = [line.split() for line in lines if "sharpness  threshold" in line]
    assert headings == [[name for name in columns if name not in missing]]
    _, *said = " ".join(lines).partition("no room for ")
    assert "".join(said) == (f"no room for {', '.join(missing)}, which the page has" if missing else "")
    assert set(missing) < set(table(LOG).columns)


def test_metrics_of_any_name_are_columns_once() -> None:
    metrics = {"val_f1": 0.5, "f1": 0.75, "loss": 1.0, "sharpness": 3.0, "learning_rate": 0.125}
    columns = table(RunLog(HEADER, (measured(10, 0.5, metrics=metrics),))).columns
    assert columns[-2:] == ("f1", "val_f1")
    assert len(set(columns)) == len(columns)
    assert "learning_rate" not in columns


def test_the_loss_of_fit_and_that_of_a_checkpoint_have_other_names() -> None:
    """Keras' mean while the weights moved, by the name it has in TensorBoard, and the loss at the weights."""
    kept = RunLog(HEADER, tuple(measured(step, 0.5, source=f"{step}.keras") for step in (10, 20)))
    for log, name, other in ((LOG, "epoch_loss", "loss"), (kept, "loss", "epoch_loss")):
        (page,) = [each for each in report_of(log).tables if each.only == "page"]
        assert page.rows[0][page.columns.index(name)].text == "0.1"
        assert other not in page.columns
        assert "val_loss" in table(log).columns


def test_columns_without_a_number_are_left_out() -> None:
    assert "source" not in table(LOG).columns
    assert table(LOG).rows[0][table(LOG).columns.index("trace")].text == "9 ?"
    bare = attrs.evolve(FOUND, values={"sharpness": FOUND.values["sharpness"]}, metrics={}, epoch=None)
    assert table(RunLog(HEADER, (bare,))).columns == (
        "step", "sharpness", "threshold", "learning rate", "seconds",
    )  # fmt: skip
    other = RunLog(HEADER, (attrs.evolve(bare, source="epoch-1.keras"),))
    assert table(other).rows[0][0].text == "epoch-1.keras"


def test_the_figures_in_the_order_of_the_page() -> None:
    assert [each.title for each in report_of(LOG).figures] == [
        "Sharpness against the threshold",
        "Codimension",
        "Sharpness dimension",
        "Generalization gap of the accuracy",
        "Generalization gap of the loss",
    ]


def test_a_log_of_a_failure_makes_a_page() -> None:
    failed = RunLog(HEADER, (FAILED,))
    assert not _Tags(as_html(failed)).open
    assert HEADER.model in as_text(failed)


def test_the_figures_draw_the_numbers() -> None:
    (axes,) = drawn(LOG, "edge")
    thresholds, sharpness = axes.lines
    assert list(thresholds.get_xdata()) == [10, 20, 30]
    assert list(thresholds.get_ydata()) == [20, 20, 20]
    assert np.allclose(sharpness.get_ydata(), [10, 19, 20.4])
    (axes,) = drawn(LOG, "sharpness-codimension")
    assert {tuple(segment[:, 1]) for segment in axes.collections[0].get_segments()} == {(460.0, 480.0)}
    assert set(axes.lines[0].get_ydata()) == {470.0}
    for name, gap in (("gap1", [0.5 / 10, 0.5 / 20, 0.5 / 30, 0.5 / 40]), ("gap0", [0.1] * 4)):
        (axes,) = drawn(LOG, name)
        assert np.allclose(axes.lines[0].get_ydata(), gap)


def test_the_scale_of_the_bounds_is_drawn_beside_the_gap() -> None:
    """Two axes with the log's numbers, and the gap nowhere else; without validation losses only the scale."""
    inputs = {"loss_bound": 1.0, "lipschitz": 1.0, "delta": 0.1, "stability": 1e-3}
    found = bounds(Facts(1530.0, 2000, 100), inputs)

    def at(step: int, scale: float, total: float) -> Measurement:
        own = {"bound_scale": Measured(scale, True, interval=(3.8, 4.0)), "generalization_bound": Measured(total, True)}
        return attrs.evolve(measured(step, 0.5), values={**FOUND.values, **own}, bounds=found)

    log = RunLog(HEADER, (at(10, 3.9, math.nan), at(20, 3.5, found[1].total), FAILED))
    scale, gap = (axes.lines[0] for axes in drawn(log, "bound"))
    assert (list(scale.get_xdata()), list(scale.get_ydata())) == ([10, 20], [3.9, 3.5])
    assert (list(gap.get_xdata()), list(gap.get_ydata())) == ([10, 20, 40], pytest.approx([0.05, 0.025, 0.0125]))
    shown = figure(log, "bound")
    assert f"at step 20 Theorem B.5 comes to {found[1].total:.4g}" in shown.caption
    assert shown.title == "Scale of the bounds and gap of the loss"
    assert "Generalization gap of the loss" not in [each.title for each in report_of(log).figures]
    assert {"sqrt(SD/n)", "bound"} <= set(table(log).columns)
    assert "Scale of the bounds 3.5" in as_text(log)
    first, second = (note for note in notes(log) if note.startswith("Theorem"))
    assert first.startswith("Theorem 4.5 at step 20: ")
    assert first.endswith("; missing zeta, mutual_information, constant")
    assert f"Theorem B.5 at step 20: {found[1].verdict}, total {found[1].total:.4g}; with loss_bound 1," in second
    assert not any(note.startswith("Theorem") for note in notes(LOG))
    alone = attrs.evolve(log, measurements=tuple(attrs.evolve(each, metrics={}) for each in log.measurements))
    assert (len(drawn(alone, "bound")), figure(alone, "bound").title) == (1, "Scale of the bounds")
    assert "bound" not in [each.name for each in report_of(LOG).figures]


def test_a_gap_between_a_weighted_and_an_unweighted_loss_is_called_none() -> None:
    weighted = attrs.evolve(LOG, header=attrs.evolve(HEADER, class_weight={"0": 1.0, "1": 9.0}))
    assert any("their difference is no gap" in note for note in notes(weighted))
    assert not any("their difference is no gap" in note for note in notes(LOG))


def test_the_page_of_a_long_log_draws_some_of_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_track, "_MOST_DRAWN", 50)
    long = RunLog(HEADER, tuple(measured(step, 0.5) for step in range(1, 1001)))
    (axes,) = drawn(long, "edge")
    steps = axes.lines[0].get_xdata()
    assert len(steps) == 50
    assert (steps[0], steps[-1]) == (1, 1000)
    assert set(np.diff(steps)) <= {20, 21}
    assert len(table(long).rows) == 50
    assert "figures and table show 50 of 1,000 measurements, evenly spaced; the log has them all" in notes(long)
    assert f"{1000 * FOUND.num_hvps:,} Hessian-vector products" in report_of(long).sections[-1].lede
    short = attrs.evolve(long, measurements=long.measurements[:50])
    assert not [note for note in notes(short) if "evenly spaced" in note]


def test_a_log_without_measurements_says_so_and_has_no_empty_table() -> None:
    report = report_of(RunLog(HEADER, ()))
    assert not report.tables
    assert "Nothing has been measured yet." in as_html(report)
