"""The pages: self-contained, well-formed, safe whatever the names are, and their figures show the records' numbers."""

import html
import html.parser
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure as Canvas

import sdkeras
from sample_log import FOUND, HEADER
from sample_runs import ALONE, EMPTY, PLAUSIBLE, RUN, with_edge, with_estimate
from sdkeras.dimension.exponents import ExponentMap, rds_sharpness
from sdkeras.dimension.stability import plateaus
from sdkeras.reporting.build import Reported, report_of
from sdkeras.reporting.drawing import as_svg, asinh_axis
from sdkeras.reporting.figures import cumulative_exponents
from sdkeras.reporting.html import as_html, save_html
from sdkeras.reporting.numbers import bar_lengths, dimension, estimated, interval, number
from sdkeras.reporting.report import Cell, Figure
from sdkeras.reporting.terminal import as_text
from sdkeras.reporting.words import dimension_in_words, edge_in_words
from sdkeras.results import answers, measured
from sdkeras.results.bounds import Assumption, Bound
from sdkeras.results.dimension import EdgeOfStability, FrozenLyapunov, RdsSharpness, SharpnessDimension
from sdkeras.results.log import RunLog
from sdkeras.results.note import Note

HOSTILE = '"><script>alert(1)</script>{{ 7 * 7 }}</style>&amp;<svg onload=x>'


RECORDS: dict[str, Reported] = {
    "analysis": PLAUSIBLE,
    "nothing": EMPTY,
    "unverified": attrs.evolve(RUN, verification=attrs.evolve(RUN.verification, passed=False)),
    "trajectory": ALONE,
    "comparison": sdkeras.compare(RUN, attrs.evolve(PLAUSIBLE, partial=True)),
    "log": RunLog(HEADER, (FOUND, attrs.evolve(FOUND, step=20))),
    "empty log": RunLog(HEADER, ()),
}


@pytest.fixture(scope="module")
def page() -> str:
    """The page of PLAUSIBLE."""
    return as_html(PLAUSIBLE)


@pytest.fixture(scope="module")
def text() -> str:
    """The same in the terminal."""
    return as_text(PLAUSIBLE, width=200, verbose=True)


def figure(run: answers.Analysis, name: str) -> Figure | None:
    """The figure of this name, where the run has one."""
    return next((each for each in report_of(run).figures if each.name == name), None)


def svgs(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)


class _Tags(html.parser.HTMLParser):
    """Every tag and attribute of a page, and whether open tags are closed in order."""

    VOID = frozenset({"meta", "br", "img", "use", "path", "rect"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("name", RECORDS)
def test_a_page_is_well_formed_and_loads_nothing(name: str) -> None:
    page = as_html(RECORDS[name])
    found = _Tags(page)
    assert not found.open
    assert not {tag for tag, _ in found.tags} & {"link", "iframe", "object", "embed", "img", "form"}
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert scripts == ([{}] if report_of(RECORDS[name]).figures else [])  # ours, inline: see test_plotted.py
    attributes = [pair for _, each in found.tags for pair in each.items()]
    assert not [key for key, _ in attributes if key.startswith("on")]
    ids = [value for key, value in attributes if key == "id"]
    assert len(ids) == len(set(ids))
    links = [str(value) for key, value in attributes if key in ("src", "href", "xlink:href", "srcset", "action")]
    assert all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= set(ids)
    for absent in ("url(h", "@import", "None"):
        assert absent not in page
    assert "default-src 'none'" in page
    assert len(page) < 200_000
    assert set(re.findall(r"var\((--[a-z]+)\)", page)) <= set(re.findall(r"(--[a-z]+):", page))
    for svg in svgs(page):
        ElementTree.fromstring(svg)
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg), "a colour that is right in light or in dark only"
        assert "var(--accent)" in svg


@pytest.mark.parametrize("name", RECORDS)
def test_page_and_terminal_hold_the_report(name: str) -> None:
    """So that other tests may ask the report alone."""
    report = report_of(RECORDS[name])
    page, text = html.unescape(as_html(report)), as_text(report, width=1000, verbose=True)
    assert max(len(line) for line in as_text(report, width=80).splitlines()) <= 80
    assert page.count("<svg") == len(report.figures)
    in_page = [report.headline, report.detail, report.about, report.footer, report.eyebrow]
    in_text = [line.strip() for line in report.lines]
    in_both = [report.name, report.assumed, *report.alarms, *(note.message for note in report.notes)]
    in_page += [part for each in (*report.cards, *report.paragraphs) for part in attrs.astuple(each)[:4]]
    in_page += [part for figure in report.figures for part in (figure.title, figure.caption)]
    in_page += [part for section in report.sections for part in (section.title, section.lede, section.link)]
    for table in report.tables:
        cells = [cell.text if isinstance(cell, Cell) else cell for row in table.rows for cell in row]
        {"page": in_page, "terminal": in_text, "": in_both}[table.only].extend([*cells, *table.columns])
    assert not [words for words in (*in_page, *in_both) if words not in page]
    assert not [words for words in (*in_text, *in_both) if words not in text]
    verdict, notes = text.index(report.lines[0]), [text.index(note.message) for note in report.notes]
    tables = [text.index(table.title) for table in report.tables if table.only != "page"]
    assert all(verdict < place for place in (*notes, *tables))
    assert not notes or not tables or max(notes) < max(tables)


def test_the_figures_mark_threshold_dimension_and_j_star() -> None:
    density, exponents, cumulative, convergence = map(as_svg, report_of(PLAUSIBLE).figures)
    value = PLAUSIBLE.sharpness_dimension.value
    assert "threshold 20" in density
    assert f"SD {value:,.1f}" in exponents
    assert "t* = -0.02" in exponents
    assert f"j* = {math.floor(value):,}" in cumulative
    assert "runs" in convergence


def crossing(run: answers.Analysis) -> float:
    """Where the cumulative sum of the exponents turns negative."""
    mass, total = cumulative_exponents(run.spectrum)
    after = int(np.flatnonzero(total < 0)[0])
    return float(np.interp(0.0, [-total[after - 1], -total[after]], [mass[after - 1], mass[after]]))


def test_the_cumulative_curve_crosses_zero_at_the_dimension() -> None:
    assert crossing(PLAUSIBLE) == pytest.approx(PLAUSIBLE.sharpness_dimension.value, abs=1e-6)


def test_a_file_without_exponents_has_no_cumulative_curve() -> None:
    run = attrs.evolve(PLAUSIBLE, spectrum=attrs.evolve(PLAUSIBLE.spectrum, exponents=None))
    assert [each.name for each in report_of(run).figures] == ["density", "exponents", "convergence"]


@pytest.mark.parametrize("name", ["heavy-ball", "nesterov", "adam", "rmsprop"])
def test_the_cumulative_curve_of_a_momentum_map_is_drawn_from_the_file_alone(name: str, text: str) -> None:
    exponent_map = ExponentMap(name, 0.1, 0.01, 0.9)
    nodes, weights = PLAUSIBLE.spectrum.nodes, PLAUSIBLE.spectrum.weights
    z = exponent_map(nodes)
    value = sdkeras.sharpness_dimension(z, np.tile(weights, 2))
    frozen = FrozenLyapunov(12.5, 0.25)
    run = attrs.evolve(
        with_estimate(PLAUSIBLE, value=value, map=name, state_size=4000, frozen_lyapunov=frozen),
        spectrum=attrs.evolve(PLAUSIBLE.spectrum, exponents=z, log_moduli=exponent_map.log_eigenvalues(nodes)),
        optimizer=attrs.evolve(PLAUSIBLE.optimizer, momentum=0.9, weight_decay=0.01),
    )
    run = answers.Analysis.from_json(run.to_json())
    assert cumulative_exponents(run.spectrum)[0][-1] == pytest.approx(4000)
    assert crossing(run) == pytest.approx(value, abs=1e-6)
    assert [each.name for each in report_of(run).figures] == [
        "density", "exponents", "blocks", "cumulative", "convergence",
    ]  # fmt: skip
    ElementTree.fromstring(as_svg(figure(run, "blocks")))
    assert "velocity, can move in 4,000 directions" in dimension_in_words(run)
    assert re.search("frozen Lyapunov .*the largest is 0.25", as_text(run, width=200, verbose=True))
    assert "frozen Lyapunov" not in text


def test_the_density_names_its_operator_and_marks_that_operators_threshold() -> None:
    operator = "P^-1/2 H P^-1/2"
    spectrum = attrs.evolve(PLAUSIBLE.spectrum, operator=operator)
    run = with_edge(attrs.evolve(PLAUSIBLE, spectrum=spectrum), operator=operator)
    svg = as_svg(figure(run, "density"))
    assert "eigenvalue of the preconditioned Hessian" in svg
    assert "threshold 20" in svg
    assert "preconditioned" not in as_svg(figure(PLAUSIBLE, "density"))
    for other in (
        attrs.evolve(run, edge_of_stability=PLAUSIBLE.edge_of_stability),
        attrs.evolve(PLAUSIBLE, edge_of_stability=run.edge_of_stability),
    ):
        assert "threshold" not in as_svg(figure(other, "density"))


@pytest.mark.parametrize(("threshold", "drawn"), [(20.0, True), (1e6, False), (1e300, False), (0.0, True)])
def test_a_threshold_out_of_sight_is_said_in_words(threshold: float, drawn: bool) -> None:
    density = figure(with_edge(PLAUSIBLE, threshold=threshold), "density")
    assert ("threshold" in as_svg(density)) == drawn
    assert ("far to the right" in density.caption) != drawn


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_states_have_a_page(size: int) -> None:
    nodes = np.linspace(-1, 5, size)
    z = ExponentMap("sgd", 0.1)(nodes)
    run = attrs.evolve(
        with_estimate(PLAUSIBLE, value=0.5 * size, state_size=size, interval=(0.0, size)),
        spectrum=answers.SpectrumSummary(nodes, np.ones(size), exponents=z),
        rds_sharpness=rds_sharpness(np.sort(z)[::-1], np.ones(size)),
    )
    for each in report_of(run).figures:
        ElementTree.fromstring(as_svg(each))


def hostile_analysis() -> answers.Analysis:
    bound = Bound(HOSTILE, (), (), 0.0, None, HOSTILE, (Assumption(HOSTILE, HOSTILE, HOSTILE),))
    run = with_estimate(PLAUSIBLE, estimator=HOSTILE, coordinates=HOSTILE)
    return attrs.evolve(
        with_edge(run, operator=HOSTILE, verdict=HOSTILE),
        layers=tuple(attrs.evolve(layer, name=HOSTILE) for layer in PLAUSIBLE.layers),
        warnings=(Note(HOSTILE, HOSTILE),),
        provenance=attrs.evolve(PLAUSIBLE.provenance, device=HOSTILE, created=HOSTILE, data_digest=HOSTILE),
        bounds=(bound,),
        model=attrs.evolve(PLAUSIBLE.model, name=HOSTILE, loss=HOSTILE),
        optimizer=attrs.evolve(PLAUSIBLE.optimizer, name=HOSTILE),
        verification=attrs.evolve(PLAUSIBLE.verification, mode=HOSTILE, details=HOSTILE),
    )


HOSTILE_RECORDS = {
    "analysis": (hostile_analysis(), 15),
    "comparison": (sdkeras.compare(RUN, hostile_analysis(), names=(HOSTILE, "b.json")), 8),
    "log": (
        RunLog(
            attrs.evolve(HEADER, model=HOSTILE, optimizer=HOSTILE, data_digest=HOSTILE),
            (attrs.evolve(FOUND, source=HOSTILE, notes=(HOSTILE,), metrics={HOSTILE: 1.0, f"val_{HOSTILE}": 2.0}),),
            (HOSTILE,),
        ),
        6,
    ),
}


@pytest.mark.parametrize("name", HOSTILE_RECORDS)
def test_hostile_names_stay_text_everywhere(name: str, page: str) -> None:
    record, places = HOSTILE_RECORDS[name]
    hostile = as_html(record)
    found = _Tags(hostile)
    assert not found.open
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in _Tags(page).tags} | {"details", "summary"}
    assert not [key for _, attributes in found.tags for key in attributes if key.startswith("on")]
    assert hostile.count("alert(1)") == hostile.count("/script&gt;{{") >= places  # no template was filled in
    assert "alert(1)" in as_text(record)


def test_names_that_cannot_be_shown_are_marked_and_markup_is_none(tmp_path: Path) -> None:
    name = "a\x1b[31mred\ud800\u202eb\nc[bold]"
    run = with_edge(RUN, verdict=name)
    hostile = attrs.evolve(run, model=attrs.evolve(RUN.model, name=name, loss=name), warnings=(Note(name, name),))
    save_html(hostile, tmp_path / "report.html")
    hostile.save(tmp_path / "run.json")
    assert answers.Analysis.load(tmp_path / "run.json").model.name == name
    for report in (as_text(hostile, verbose=True), (tmp_path / "report.html").read_text(encoding="utf-8")):
        assert not set("\x1b\ud800\u202e") & set(report)
        # Every place it stands: title or kicker, verdict, warning's code and message, model and loss.
        assert report.count("a\ufffd[31mred\ufffd\ufffdb c[bold]") >= 6


def check_page(value: float, half: float, nodes: list[float], rate: float, ratio: float | None) -> None:
    numbers = {
        field.name: value
        for field in attrs.fields(SharpnessDimension)
        if isinstance(getattr(PLAUSIBLE.sharpness_dimension, field.name), float)
    }
    array = np.array(nodes, np.float64)
    twice = np.tile(array, 2)
    run = attrs.evolve(
        with_estimate(PLAUSIBLE, **numbers, interval=(value - half, value + half)),
        spectrum=answers.SpectrumSummary(array, np.abs(array), exponents=twice, log_moduli=twice),
        rds_sharpness=RdsSharpness(array, np.linspace(0, 1, len(array)), array),
        optimizer=attrs.evolve(PLAUSIBLE.optimizer, learning_rate=rate, momentum=0.9),
        edge_of_stability=EdgeOfStability("H", value, value, ratio, value, value, "No verdict."),
    )
    read = answers.Analysis.from_json(run.to_json())
    assert max(len(line) for line in as_text(read, width=80).splitlines()) <= 80
    page = as_html(read)
    assert page.rstrip().endswith("</html>")
    for svg in svgs(page):
        ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("value", "half", "nodes", "rate", "ratio"),
    [
        (4e16, math.inf, [-2.8e15, -2.4e16], 0.0, None),  # all exponents far below momentum's
        (math.nan, 1e308, [math.nan, math.inf, 5e-324, -0.0], math.nan, math.nan),
        (-math.inf, 5e-324, [], 5e-324, math.inf),
        (1.7e308, -1.7e308, [1.7e308, -1.7e308, -1.7e308], -1.7e308, -5e-324),
        (1.75e308, 0.0, [], 0.0, None),
        (-1.0, 0.0, [], 0.0, None),
    ],
)
def test_the_worst_numbers_of_a_run_json_do_not_break_the_page(
    value: float, half: float, nodes: list[float], rate: float, ratio: float | None
) -> None:
    check_page(value, half, nodes, rate, ratio)


@pytest.mark.slow
@given(
    value=st.floats(),
    half=st.floats(),
    nodes=st.lists(st.floats(), max_size=6),
    rate=st.floats(),
    ratio=st.floats() | st.none(),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_no_number_of_a_run_json_breaks_the_page(
    value: float, half: float, nodes: list[float], rate: float, ratio: float | None
) -> None:
    check_page(value, half, nodes, rate, ratio)


@pytest.mark.parametrize(
    ("ratio", "words", "gauge"),
    [
        (0.25, "about 4 times as large", "12.5%"),
        (1.0, "sits at that limit", "50.0%"),
        (1.5, "beyond it", "75.0%"),
        (90.0, "beyond it", "100.0%"),
        (-0.1, "nothing curves upwards", "0.0%"),
        (None, "could not be compared", None),
    ],
)
def test_the_edge_is_said_in_words_and_shown_on_the_gauge(ratio: float | None, words: str, gauge: str | None) -> None:
    run = with_edge(RUN, ratio=ratio)
    assert words in edge_in_words(run.edge_of_stability)
    shown = re.findall(
        r'class="fill[ a-z]*" style="width: ([^"]*)"', as_html(attrs.evolve(report_of(run), sections=()))
    )
    assert shown == ([] if gauge is None else [gauge])


@pytest.mark.parametrize(("linear", "low", "high"), [(0.005, -0.3, 150.0), (1e-6, -1e-5, 2.0), (0.1, -0.2, 0.2)])
def test_ticks_on_both_sides_of_0_do_not_run_into_each_other(linear: float, low: float, high: float) -> None:
    axes = Canvas().subplots()
    asinh_axis(axes, "x", linear, low, high)
    at = [axes.transAxes.inverted().transform(axes.transData.transform((tick, 0)))[0] for tick in axes.get_xticks()]
    assert 0.0 in axes.get_xticks()
    assert 3 <= len(at) <= 11
    assert min(np.diff(at)) >= 0.1 - 1e-9


@pytest.mark.parametrize(("ratio", "left"), [(1e-4, "0.01%"), (1e4, "100.0%"), (-0.3, "0.0%"), (1.0, "50.0%")])
def test_the_number_on_the_gauge_stays_above_its_scale(ratio: float, left: str) -> None:
    """Its left end is at 0, its right end at 2, however long it is: it is moved back by the share it is moved on."""
    page = as_html(attrs.evolve(report_of(with_edge(RUN, ratio=ratio)), sections=()))
    assert f'class="now" style="left: {left}; transform: translateX(-{left})"' in page


def test_the_first_screen_says_verdict_dimension_and_trust(page: str) -> None:
    first = page[page.index("<main>") : page.index('id="notes"')]
    assert "<h1>Below the edge of stability</h1>" in first
    assert "The weights can move in 2,000 directions" in first
    assert "largest dimension whose volumes" in first
    assert "Verified" in first
    failed = report_of(RECORDS["unverified"])
    assert failed.alarms[0].startswith("UNVERIFIED")
    assert failed.paragraphs[-1].mark == "failed"
    assert "no number here can be trusted" in failed.paragraphs[-1].text
    assert report_of(EMPTY).alarms[0].startswith("Interrupted")


def test_words_for_a_point_and_for_everything() -> None:
    for value, words in ((0.0, "would be a point"), (2000.0, "at its upper bound")):
        assert words in dimension_in_words(with_estimate(PLAUSIBLE, value=value, codimension=2000 - value))


@pytest.mark.parametrize("name", ["sgd", "heavy-ball", "adam", "full"])
def test_no_page_says_more_of_sd_than_it_is(name: str) -> None:
    """SD is no number of directions, and bounds nothing at one checkpoint; with P frozen it is not of training."""
    momentum = name in ("heavy-ball", "adam")
    size, frozen = (4000, FrozenLyapunov(1990.0, 0.1)) if momentum else (2000, None)
    run = attrs.evolve(with_estimate(PLAUSIBLE, map=name, state_size=size, frozen_lyapunov=frozen), spectrum=None)
    page = re.sub(r"\s+", " ", as_html(run))
    for wrong in (
        r"counts the directions",
        r"pinned down",
        r"(?<!not the )number of (the )?directions (that|which) (a step|steps)",
        r"directions that contract on average",
        r"smaller bound",
    ):
        assert not re.search(wrong, page), wrong
    assert "bounds nothing by itself" in page
    assert "It is not the number of directions that a step does not contract" in page
    frozen_words = "so this SD does not describe training itself"
    assert (frozen_words in page) == (name == "adam")


def test_both_forms_of_batch_sharpness_with_their_errors(text: str) -> None:
    run = with_edge(
        RUN,
        batch_sharpness=10.0,
        batch_sharpness_stderr=0.125,
        batch_sharpness_ratio_of_means=16.0,
        batch_sharpness_ratio_of_means_stderr=0.5,
        batch_sharpness_minibatches=1200,
        batch_sharpness_skipped=0.125,
    )
    shown = as_text(run, width=200, verbose=True)
    over = "over 1,200 minibatches (gradient g, Hessian H); standard error 1.25 %"
    for words in ("10.00 ± 0.12", over, "16.00 ± 0.50", "standard error 3.12 %", "12.50%"):
        assert words in shown
    assert "target" not in shown  # of a file that does not say what it was
    for target, words in {0.08: "target 8 % met", 0.0125: "target 1.25 % met", 0.01: "target 1 % not met"}.items():
        shown = as_text(with_edge(run, batch_sharpness_target=target), width=200, verbose=True)
        assert f"{over}, {words}" in shown
        assert shown.count("target") == 1  # the ratio of means has none
    assert "batch sharpness" in text  # a file of version 0.1 has neither the count nor the other form
    assert "ratio of means" not in text
    assert " met" not in text


def test_the_plateaus_of_the_batch_sharpness_stand_beside_it() -> None:
    levels = plateaus("SGD", 0.1, momentum=0.9)
    run = with_edge(RUN, batch_sharpness=1.9, batch_sharpness_stderr=0.02, ratio=0.2, plateaus=levels)
    shown = " ".join(as_text(run, width=200, verbose=True).split())
    for words in ("settles in small minibatches at", "0.95 times 2(1-beta)/eta", "0.05 times 2(1+beta)/eta"):
        assert words in shown
    assert "Minibatches leave none: " in " ".join(as_html(run).split())
    assert "Minibatches leave none: " not in as_html(with_edge(run, batch_sharpness=5.0))
    assert "settles" not in as_text(RUN, width=200, verbose=True)
    assert answers.Analysis.from_json(run.to_json()) == run


@pytest.mark.parametrize(("smallest", "shown"), [(-9.0, False), (-15.0, True)])
def test_the_largest_absolute_eigenvalue_is_named_where_it_is_another(smallest: float, shown: bool) -> None:
    top = PLAUSIBLE.hessian.largest
    low = measured.Measured(smallest, True, residual=1e-4)
    absolute = attrs.evolve(low, value=-smallest) if shown else top
    hessian = answers.HessianSummary(top, low, PLAUSIBLE.hessian.trace, absolute)
    run = attrs.evolve(PLAUSIBLE, hessian=hessian)
    assert hessian.steepest_is_negative == shown
    text = as_text(run, width=200)
    assert ("largest in absolute value" in text) == shown
    assert "algebraically largest eigenvalue of H" in text
    assert answers.Analysis.from_json(run.to_json()).hessian.largest_absolute == absolute


def test_layers_are_bars_of_their_share_in_page_and_terminal(page: str, text: str) -> None:
    layers = next(table for table in report_of(PLAUSIBLE).tables if "layer (parameters)" in table.columns)
    assert [row[1].share for row in layers.rows] == [0.25, 1.0, 0.0]
    assert "width: 25.00%" in page
    lines = {
        name: next(line for line in text.splitlines() if line.startswith(name)) for name in ("stem", "head", "dead")
    }
    assert [lines[name].count("#") for name in lines] == [3, 12, 0]
    assert "3.00 ± 0.25" in lines["stem"]
    assert "4.0 [3.0, 5.0]" in lines["head"]


def test_bar_lengths() -> None:
    assert bar_lengths([1.0, 4.0, -2.0, None, math.nan, math.inf]) == (0.25, 1.0, 0.0, 0.0, 0.0, 0.0)
    assert bar_lengths([]) == ()
    assert bar_lengths([0.0]) == (0.0,)


def test_numbers_follow_their_uncertainty() -> None:
    assert dimension(1234.5678, 12.0) == "1,235"
    assert dimension(1234.5678, 0.012) == "1,234.568"
    assert interval((1.0, 2.0)) == "[1.00, 2.00]"
    assert estimated(1530.25, (1520.5, 1540.0)) == "1,530.2 [1,520.5, 1,540.0]"
    assert number(1234567.0) == "1,234,567"
    assert number(0.00012345) == "0.0001234"
    assert number(None) == number(math.nan) == "-"


def sentences(page: str) -> list[str]:
    """The sentences of a page's text, longer than a label."""
    shown = re.sub(r"<(svg|pre|script)\b.*?</\1>", "", page[page.index("<main>") :], flags=re.DOTALL)
    shown = re.sub(r"</?(?:b|sub|sup|i)\b[^>]*>", "", shown)
    parts = [part for block in re.split(r"<[^>]*>", shown) for part in re.split(r"(?<=[.;:?]) ", html.unescape(block))]
    return [words for part in parts if len(words := part.strip(" .;:\n").lower()) > 40]


@pytest.mark.parametrize("name", RECORDS)
def test_no_page_says_a_sentence_twice(name: str) -> None:
    found = sentences(as_html(RECORDS[name]))
    assert not [sentence for sentence in set(found) if found.count(sentence) > 1]


def test_severe_caveats_come_first_and_footnotes_stand_apart() -> None:
    codes = ("interval-scope", "new-code", "not-converged", "negative-curvature", "unverified")
    report = report_of(attrs.evolve(PLAUSIBLE, warnings=tuple(Note(code, f"About {code}.") for code in codes)))
    expected = ["not-converged", "unverified", "new-code", "negative-curvature", "interval-scope"]
    assert [note.code for note in report.notes] == expected
    page = as_html(report)
    assert [page.index(f"About {code}") for code in expected] == sorted(
        page.index(f"About {code}") for code in expected
    )
    assert page.index("About negative-curvature") < page.index("<h2") + page.index('id="plots"')
    assert page.index('id="footnotes"') < page.index("About interval-scope")
    assert page.count('<li class="severe">') == 2


def test_the_cards_lead_with_what_has_an_anchor() -> None:
    cards = report_of(PLAUSIBLE).cards
    names = ["Sharpness / threshold", "Headroom", "Codimension", "Sharpness dimension"]
    assert [card.name for card in cards] == names
    edge, rate = PLAUSIBLE.edge_of_stability, PLAUSIBLE.optimizer.learning_rate
    # The noise of minibatches limits it first: the batch sharpness over 2/eta, at the upper end of its interval.
    noise = rate / 2 * (edge.batch_sharpness + 1.96 * edge.batch_sharpness_stderr)
    for run, used in ((PLAUSIBLE, noise), (with_edge(PLAUSIBLE, batch_sharpness=None), edge.ratio)):
        headroom = report_of(run).cards[1]
        assert float(headroom.value.removesuffix(" times")) == pytest.approx(1 / used, rel=0.05)
        assert float(headroom.evidence.rpartition(" ")[2]) == pytest.approx(rate / used, rel=0.05)
    assert noise > edge.ratio
    # Between momentum's levels, 2 and 38 at a rate of 0.1, no number is the headroom.
    moving = attrs.evolve(PLAUSIBLE, optimizer=attrs.evolve(PLAUSIBLE.optimizer, momentum=0.9, learning_rate=0.1))
    for batch, known in ((0.4, True), (2.1, True), (2.3, False), (34.0, False), (35.0, True)):
        run = with_edge(moving, batch_sharpness=batch, batch_sharpness_stderr=0.01, ratio=0.2)
        headroom, page = report_of(run).cards[1], " ".join(as_html(run).split())
        assert ("times" in headroom.value, headroom.value == "not known") == (known, not known)
        assert (headroom.evidence == "full-batch steps alone: 5 times") != known
        assert ("lies between the levels of small and large minibatches, 19 times apart" in headroom.meaning) != known
        assert ("may set in earlier, which is not known here (headroom)." in page) != known
        assert ("the noise of minibatches sets in earlier (headroom)." in page) == known
    share = PLAUSIBLE.sharpness_dimension.codimension / PLAUSIBLE.sharpness_dimension.state_size
    assert float(cards[2].value.removesuffix(" %")) == pytest.approx(100 * share, rel=0.05)
    assert [card.name for card in report_of(with_edge(PLAUSIBLE, ratio=-0.5)).cards] == [names[0], *names[2:]]
    assert [card.name for card in report_of(with_edge(PLAUSIBLE, ratio=None)).cards] == names[2:]


def test_the_density_marks_the_largest_eigenvalue_of_all_data() -> None:
    density = figure(PLAUSIBLE, "density")
    assert f"all data {number(PLAUSIBLE.edge_of_stability.sharpness, 3)}" in as_svg(density)
    assert "bars are of single minibatches" in density.caption
    for lacking in ({"operator": "P^-1/2 H P^-1/2"}, {"sharpness": None}, {"sharpness": 1e101}):
        other = figure(with_edge(PLAUSIBLE, **lacking), "density")
        assert "all data" not in as_svg(other) + other.caption
