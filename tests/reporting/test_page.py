"""The page: self-contained, well-formed, safe whatever the names are, and its figures show the record's numbers."""

import html.parser
import math
import re
from xml.etree import ElementTree

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import sdkeras
from sample_runs import EMPTY, RUN
from sdkeras.dimension.exponents import ExponentMap, rds_sharpness
from sdkeras.reporting.build import report_of
from sdkeras.reporting.drawing import as_svg
from sdkeras.reporting.figures import cumulative_exponents
from sdkeras.reporting.html import as_html
from sdkeras.reporting.numbers import bar_lengths
from sdkeras.reporting.report import Figure
from sdkeras.reporting.terminal import as_text
from sdkeras.reporting.words import dimension_in_words, edge_in_words
from sdkeras.results import answers, measured
from sdkeras.results.dimension import EdgeOfStability, FrozenLyapunov, SharpnessDimension

HOSTILE = '"><script>alert(1)</script>{{ 7 * 7 }}</style>&amp;<svg onload=x>'


def plausible_run() -> answers.Analysis:
    """A record whose spectrum, exponents and dimension belong together."""
    generator = np.random.default_rng(0)
    nodes = np.sort(np.concatenate([generator.normal(0, 0.01, 1900), generator.exponential(1.0, 100)]))
    weights = np.ones(len(nodes))
    z = ExponentMap("sgd", 0.1)(nodes)
    value = sdkeras.sharpness_dimension(z)
    estimate = attrs.evolve(
        RUN.sharpness_dimension,
        value=value,
        interval=(value - 2, value + 2),
        codimension=2000 - value,
        codimension_interval=(1998 - value, 2002 - value),
        j_star=math.floor(value),
        threshold_exponent=-0.02,
    )
    layers = tuple(
        answers.LayerSharpness(
            name,
            10,
            measured.Measured(top, True, residual=1e-6),
            measured.Measured(3.0, True, stderr=0.25),
            4.0,
            (3.0, 5.0),
        )
        for name, top in (("stem", 2.0), ("head", 8.0), ("dead", 0.0))
    )
    return attrs.evolve(
        RUN,
        sharpness_dimension=estimate,
        estimates=(estimate,),
        spectrum=answers.SpectrumSummary(nodes, weights, exponents=z),
        rds_sharpness=rds_sharpness(np.sort(z)[::-1], weights),
        layers=layers,
    )


PLAUSIBLE = plausible_run()


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


def test_the_page_loads_nothing_and_is_well_formed() -> None:
    page = as_html(PLAUSIBLE)
    found = _Tags(page)
    assert not found.open
    assert not {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "embed", "img", "form"}
    for _, attributes in found.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert str(value).startswith("#")
    assert "url(h" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert len(page) < 200_000


@pytest.mark.parametrize("run", [PLAUSIBLE, RUN, EMPTY], ids=["all", "some", "nothing"])
def test_ids_are_unique_and_every_link_has_its_target(run: answers.Analysis) -> None:
    tags = _Tags(as_html(run)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(a[name]) for _, a in tags for name in ("href", "xlink:href") if name in a]
    assert links
    assert {link[1:] for link in links} <= set(ids)


def test_every_figure_takes_its_colours_from_the_page() -> None:
    page = as_html(PLAUSIBLE)
    drawn = svgs(page)
    assert len(drawn) == 4
    for svg in drawn:
        ElementTree.fromstring(svg)
        colours = set(re.findall(r"#[0-9a-fA-F]{6}\b", svg))
        assert not colours, "a colour that is right in light or in dark only"
        assert "var(--accent)" in svg
    defined = set(re.findall(r"(--[a-z]+):", page))
    assert set(re.findall(r"var\((--[a-z]+)\)", page)) <= defined


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
    assert figure(run, "cumulative") is None
    assert len(svgs(as_html(run))) == 3


@pytest.mark.parametrize("name", ["heavy-ball", "nesterov", "adam", "rmsprop"])
def test_the_cumulative_curve_of_a_momentum_map_is_drawn_from_the_file_alone(name: str) -> None:
    exponent_map = ExponentMap(name, 0.1, 0.01, 0.9)
    nodes, weights = PLAUSIBLE.spectrum.nodes, PLAUSIBLE.spectrum.weights
    z = exponent_map(nodes)
    value = sdkeras.sharpness_dimension(z, np.tile(weights, 2))
    estimate = attrs.evolve(
        PLAUSIBLE.sharpness_dimension,
        value=value,
        map=name,
        state_size=4000,
        frozen_lyapunov=sdkeras.results.dimension.FrozenLyapunov(12.5, 0.25),
    )
    run = attrs.evolve(
        PLAUSIBLE,
        sharpness_dimension=estimate,
        estimates=(estimate,),
        spectrum=attrs.evolve(PLAUSIBLE.spectrum, exponents=z, log_moduli=exponent_map.log_eigenvalues(nodes)),
        optimizer=attrs.evolve(PLAUSIBLE.optimizer, momentum=0.9, weight_decay=0.01),
    )
    run = answers.Analysis.from_json(run.to_json())
    assert cumulative_exponents(run.spectrum)[0][-1] == pytest.approx(4000)
    assert crossing(run) == pytest.approx(value, abs=1e-6)
    page, text = as_html(run), as_text(run)
    assert len(svgs(page)) == 5
    assert "Position and velocity" in page
    assert "Position and velocity" not in as_html(PLAUSIBLE)
    assert "velocity, can move in 4,000 directions" in page
    for report in (page, text):
        assert "frozen Lyapunov" in report
        assert "leading 0.25" in report
    assert "frozen Lyapunov" not in as_text(PLAUSIBLE)


def test_the_density_names_its_operator_and_marks_that_operators_threshold() -> None:
    operator = "P^-1/2 H P^-1/2"
    run = attrs.evolve(
        PLAUSIBLE,
        spectrum=attrs.evolve(PLAUSIBLE.spectrum, operator=operator),
        edge_of_stability=attrs.evolve(PLAUSIBLE.edge_of_stability, operator=operator),
    )
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
    edge = attrs.evolve(PLAUSIBLE.edge_of_stability, threshold=threshold)
    density = figure(attrs.evolve(PLAUSIBLE, edge_of_stability=edge), "density")
    assert ("threshold" in as_svg(density)) == drawn
    assert ("far to the right" in density.caption) != drawn


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_states_have_a_page(size: int) -> None:
    nodes = np.linspace(-1, 5, size)
    estimate = attrs.evolve(PLAUSIBLE.sharpness_dimension, value=0.5 * size, state_size=size, interval=(0.0, size))
    run = attrs.evolve(
        PLAUSIBLE,
        sharpness_dimension=estimate,
        spectrum=answers.SpectrumSummary(nodes, np.ones(size), exponents=ExponentMap("sgd", 0.1)(nodes)),
        rds_sharpness=rds_sharpness(np.sort(ExponentMap("sgd", 0.1)(nodes))[::-1], np.ones(size)),
    )
    for svg in svgs(as_html(run)):
        ElementTree.fromstring(svg)


def test_hostile_names_stay_text_everywhere() -> None:
    layers = tuple(attrs.evolve(layer, name=HOSTILE) for layer in PLAUSIBLE.layers)
    warning = sdkeras.results.note.Note(HOSTILE, HOSTILE)
    estimate = attrs.evolve(PLAUSIBLE.sharpness_dimension, estimator=HOSTILE, coordinates=HOSTILE)
    provenance = attrs.evolve(PLAUSIBLE.provenance, device=HOSTILE, created=HOSTILE, data_digest=HOSTILE)
    assumption = sdkeras.results.bounds.Assumption(HOSTILE, HOSTILE, HOSTILE)
    bound = sdkeras.results.bounds.Bound(HOSTILE, (), (), 0.0, None, HOSTILE, (assumption,))
    run = attrs.evolve(
        PLAUSIBLE,
        layers=layers,
        warnings=(warning,),
        estimates=(estimate,),
        sharpness_dimension=estimate,
        provenance=provenance,
        bounds=(bound,),
        model=attrs.evolve(PLAUSIBLE.model, name=HOSTILE, loss=HOSTILE),
        optimizer=attrs.evolve(PLAUSIBLE.optimizer, name=HOSTILE),
        edge_of_stability=attrs.evolve(PLAUSIBLE.edge_of_stability, operator=HOSTILE, verdict=HOSTILE),
        verification=attrs.evolve(PLAUSIBLE.verification, mode=HOSTILE, details=HOSTILE),
    )
    page = as_html(run)
    plain = _Tags(as_html(PLAUSIBLE)).tags
    found = _Tags(page).tags
    assert "<script" not in page
    assert {tag for tag, _ in found} <= {tag for tag, _ in plain} | {"details", "summary"}
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]
    assert page.count("alert(1)") >= 15
    assert "49" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


@given(
    value=st.floats(),
    half=st.floats(),
    nodes=st.lists(st.floats(), max_size=6),
    rate=st.floats(),
    ratio=st.floats() | st.none(),
)
@example(
    value=4e16, half=math.inf, nodes=[-2.8e15, -2.4e16], rate=0.0, ratio=None
)  # all exponents far below momentum's
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_no_number_of_a_run_json_breaks_the_page(
    value: float, half: float, nodes: list[float], rate: float, ratio: float | None
) -> None:
    numbers = {
        field.name: value
        for field in attrs.fields(SharpnessDimension)
        if isinstance(getattr(PLAUSIBLE.sharpness_dimension, field.name), float)
    }
    estimate = attrs.evolve(PLAUSIBLE.sharpness_dimension, **numbers, interval=(value - half, value + half))
    array = np.array(nodes, np.float64)
    twice = np.tile(array, 2)
    run = attrs.evolve(
        PLAUSIBLE,
        sharpness_dimension=estimate,
        estimates=(estimate,),
        spectrum=answers.SpectrumSummary(array, np.abs(array), exponents=twice, log_moduli=twice),
        rds_sharpness=sdkeras.results.dimension.RdsSharpness(array, np.linspace(0, 1, len(array)), array),
        optimizer=attrs.evolve(PLAUSIBLE.optimizer, learning_rate=rate, momentum=0.9),
        edge_of_stability=EdgeOfStability("H", value, value, ratio, value, value, "No verdict."),
    )
    page = as_html(answers.Analysis.from_json(run.to_json()))
    assert page.rstrip().endswith("</html>")
    for svg in svgs(page):
        ElementTree.fromstring(svg)


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
    edge = attrs.evolve(PLAUSIBLE.edge_of_stability, ratio=ratio)
    assert words in edge_in_words(edge)
    page = as_html(attrs.evolve(PLAUSIBLE, edge_of_stability=edge))
    shown = re.findall(r'class="fill[ a-z]*" style="width: ([^"]*)"', page)
    assert shown == ([] if gauge is None else [gauge])


def test_the_first_screen_says_verdict_dimension_and_trust() -> None:
    page = as_html(PLAUSIBLE)
    first = page[page.index("<main>") : page.index('id="notes"')]
    assert "<h1>Below the edge of stability</h1>" in first
    assert "The weights can move in 2,000 directions" in first
    assert "largest dimension whose volumes" in first
    assert "Verified" in first
    failed = attrs.evolve(PLAUSIBLE, verification=attrs.evolve(PLAUSIBLE.verification, passed=False))
    assert "no number here can be trusted" in as_html(failed)
    assert "Verified" not in as_html(failed).partition("</section>")[0]


def test_words_for_a_point_and_for_everything() -> None:
    for value, words in ((0.0, "would be a point"), (2000.0, "at its upper bound")):
        estimate = attrs.evolve(PLAUSIBLE.sharpness_dimension, value=value, codimension=2000 - value)
        assert words in dimension_in_words(attrs.evolve(PLAUSIBLE, sharpness_dimension=estimate))


@pytest.mark.parametrize("name", ["sgd", "heavy-ball", "adam", "full"])
def test_no_page_says_more_of_sd_than_it_is(name: str) -> None:
    """SD is no number of directions, and bounds nothing at one checkpoint; with P frozen it is not of training."""
    momentum = name in ("heavy-ball", "adam")
    estimate = attrs.evolve(
        PLAUSIBLE.sharpness_dimension,
        map=name,
        state_size=4000 if momentum else 2000,
        frozen_lyapunov=FrozenLyapunov(1990.0, 0.1) if momentum else None,
    )
    run = attrs.evolve(PLAUSIBLE, sharpness_dimension=estimate, estimates=(estimate,))
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
    frozen = "so that it is not of training&#39;s own random dynamical system"
    assert (frozen in page) == (name == "adam")


def test_both_forms_of_batch_sharpness_with_their_errors() -> None:
    edge = attrs.evolve(
        PLAUSIBLE.edge_of_stability,
        batch_sharpness=10.0,
        batch_sharpness_stderr=0.125,
        batch_sharpness_ratio_of_means=16.0,
        batch_sharpness_ratio_of_means_stderr=0.5,
        batch_sharpness_minibatches=1200,
        batch_sharpness_skipped=0.125,
    )
    run = attrs.evolve(PLAUSIBLE, edge_of_stability=edge)
    for text in (as_text(run, width=200), as_html(run)):
        assert "10 ± 0.12" in text
        assert "over 1,200 minibatches, of H; standard error 1.25 %, aim of 2 % met" in text
        assert "16 ± 0.5" in text
        assert "standard error 3.12 %, aim of 2 % not met" in text
        assert "12.50%" in text
    old = as_text(PLAUSIBLE, width=200)  # a file of version 0.1 has neither the count nor the other form
    assert "batch sharpness" in old
    assert "ratio of means" not in old
    assert " met" not in old


@pytest.mark.parametrize(("smallest", "shown"), [(-9.0, False), (-15.0, True)])
def test_the_largest_absolute_eigenvalue_is_named_where_it_is_another(smallest: float, shown: bool) -> None:
    top = PLAUSIBLE.hessian.largest
    low = measured.Measured(smallest, True, residual=1e-4)
    absolute = attrs.evolve(low, value=-smallest) if shown else top
    hessian = answers.HessianSummary(top, low, PLAUSIBLE.hessian.trace, absolute)
    run = attrs.evolve(PLAUSIBLE, hessian=hessian)
    assert hessian.steepest_is_negative == shown
    for text in (as_text(run, width=200), as_html(run)):
        assert ("largest in absolute value" in text) == shown
        assert "algebraically largest eigenvalue of H" in text
    assert answers.Analysis.from_json(run.to_json()).hessian.largest_absolute == absolute


def test_layers_are_bars_of_their_share_in_page_and_terminal() -> None:
    layers = next(table for table in report_of(PLAUSIBLE).tables if "layer (parameters)" in table.columns)
    assert [row[1].share for row in layers.rows] == [0.25, 1.0, 0.0]
    page, text = as_html(PLAUSIBLE), as_text(PLAUSIBLE)
    assert "width: 25.00%" in page
    lines = {
        name: next(line for line in text.splitlines() if line.startswith(name)) for name in ("stem", "head", "dead")
    }
    assert [lines[name].count("#") for name in lines] == [3, 12, 0]
    assert "3 ± 0.25" in lines["stem"]
    assert "4.0 [3.0, 5.0]" in lines["head"]


def test_bar_lengths() -> None:
    assert bar_lengths([1.0, 4.0, -2.0, None, math.nan, math.inf]) == (0.25, 1.0, 0.0, 0.0, 0.0, 0.0)
    assert bar_lengths([]) == ()
    assert bar_lengths([0.0]) == (0.0,)
