"""What the script of a page is given: the record's own numbers, at the places where the SVG has them."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import attrs
import numpy as np
import pytest

from sample_log import FOUND, HEADER
from sample_runs import ALONE, PLAUSIBLE
from sdkeras.reporting.build import report_of
from sdkeras.reporting.drawing import as_plot
from sdkeras.reporting.html import as_html
from sdkeras.reporting.report import Figure, Report, Section, Series
from sdkeras.results.log import RunLog

TRACK = RunLog(HEADER, tuple(attrs.evolve(FOUND, step=step, epoch=None) for step in (10, 20, 40)))
FIGURES = {each.name: each for record in (PLAUSIBLE, ALONE, TRACK) for each in report_of(record).figures}
SVG = "{http://www.w3.org/2000/svg}"


def numbers(figure: Figure) -> dict:
    return json.loads(as_plot(figure).numbers)


def vertices(figure: Figure) -> np.ndarray:
    """Markers and lines inside the axes of the figure's SVG, as points along them."""
    tree = ElementTree.fromstring(as_plot(figure).svg)
    points = [np.array([[float(use.get("x")), float(use.get("y"))] for use in tree.iter(f"{SVG}use")])]
    for path in (path.get("d") for path in tree.iter(f"{SVG}path") if path.get("clip-path")):
        ends = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path), np.float64)
        along = np.linspace(0, len(ends) - 1, 500 * (len(ends) - 1) + 1)
        points.append(np.stack([np.interp(along, np.arange(len(ends)), side) for side in ends.T], axis=1))
    return np.concatenate(points)


@pytest.mark.parametrize("name", FIGURES)
def test_the_page_has_the_numbers_of_the_figure_unchanged(name: str) -> None:
    found = numbers(FIGURES[name])["series"]
    assert found
    assert len(found) == len(FIGURES[name].series)
    for given, series in zip(found, FIGURES[name].series, strict=True):
        assert given["of"] == len(series.x) == len(series.y)
        known = {(float(x), float(y)) for x, y in zip(series.x, series.y, strict=True)}
        assert set(zip(given["x"], given["y"], strict=True)) <= known
        assert len(given["x"]) == len(given["at"]) > 0
        if len(known) <= 300:
            assert len(given["x"]) == len(series.x)
        assert (given["x"][0], given["x"][-1]) == (series.x[0], series.x[-1])


@pytest.mark.parametrize("name", ["exponents", "cumulative", "convergence", "lyapunov", "edge", "sharpness-dimension"])
def test_a_number_is_where_the_svg_draws_it(name: str) -> None:
    """At a marker, or on a line, which is simplified when drawn."""
    drawn = vertices(FIGURES[name])
    for series in numbers(FIGURES[name])["series"]:
        for at in series["at"][:: 1 + len(series["at"]) // 20]:
            assert np.min(np.max(np.abs(drawn - at), axis=1)) < (0.06 if len(series["at"]) < 50 else 0.5), at


def test_bars_are_given_at_their_tops_and_in_their_middle() -> None:
    """The bins are equally wide on the axis, whose scale is neither linear nor logarithmic."""
    given = numbers(FIGURES["density"])["series"][0]
    at, (left, top, right, bottom) = np.array(given["at"]), numbers(FIGURES["density"])["boxes"][0]
    assert np.ptp(np.diff(at[:, 0])) < 0.25  # coordinates are rounded to 0.1
    assert at[0, 0] - left == pytest.approx(0.5 * (right - left) / len(at), abs=0.1)
    assert given["x"][1:] == given["end"][:-1]
    assert sum(given["y"]) == pytest.approx(2000)
    drawn = vertices(FIGURES["density"])
    assert np.all([np.min(np.abs(drawn[:, 1] - y)) < 0.06 for y in at[:, 1]])
    assert top < at[:, 1].min() < at[:, 1].max() <= bottom + 0.1


def figure_of(series: Series) -> Figure:
    return Figure("one", "One", "", lambda axes, _: axes.plot(*(series.at or (series.x, series.y))), series=(series,))


def test_numbers_survive_json_and_what_is_none_is_null() -> None:
    x = np.array([0.1, 1 / 3, 5e-324, 4.0, 2.0**60])
    y = np.array([1e300, -0.0, np.nan, 0.1 + 0.2, 7.0])
    at = np.arange(5.0), np.array([0.0, 1.0, np.nan, 3.0, 4.0])
    series = Series("a", "x", "y", x, y, lower=np.full(5, -np.inf), at=at)
    given = numbers(figure_of(series))["series"][0]
    assert given["x"] == [0.1, 1 / 3, 4, 2**60]  # the third has no place
    assert given["y"] == [1e300, 0, 0.1 + 0.2, 7]
    assert given["lower"] == [None] * 4


def test_points_that_cannot_be_told_apart_are_one() -> None:
    x = np.linspace(0, 1, 20_000)
    given = numbers(figure_of(Series("", "x", "y", x, np.sin(x))))["series"][0]
    assert given["of"] == 20_000
    assert 300 < len(given["x"]) < 700
    assert given["x"][-1] == 1
    assert len(numbers(figure_of(Series("", "x", "y", x[:300], x[:300])))["series"][0]["x"]) == 300


def test_names_cannot_leave_the_attribute() -> None:
    name = '"><script>alert(1)</script>'
    line = Series(name, name, name, (name, "b"), np.ones(2), at=(np.arange(2.0), np.ones(2)))
    page = as_html(Report("", "", (), (Section("", "", figures=(figure_of(line),)),)))
    assert page.count("<script") == 1
    assert "alert(1)" in page
    held = json.loads(html.unescape(re.search(r'data-numbers="([^"]*)"', page)[1]))
    assert held["series"][0]["x"] == [name, "b"]


def test_the_only_script_is_the_one_that_the_policy_names() -> None:
    page = as_html(PLAUSIBLE)
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert f'content="{policy}"' in page
    assert not re.search(r"fetch|XMLHttp|import\(|eval|innerHTML|https?:(?!//www.w3.org)", script)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("changed", [False, True])
def test_a_browser_runs_the_script_and_no_other(tmp_path: Path, changed: bool) -> None:
    page = as_html(PLAUSIBLE)
    (tmp_path / "page.html").write_text(page.replace('"use strict";', '"use strict"; ') if changed else page)
    command = [CHROMIUM, "--headless", "--no-sandbox", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command += ["--virtual-time-budget=2000", (tmp_path / "page.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    count = 0 if changed else len(report_of(PLAUSIBLE).figures)
    assert shown.count('class="tools"') == count
    assert shown.count('role="group"') == count
    assert shown.count("<svg") == len(report_of(PLAUSIBLE).figures)
