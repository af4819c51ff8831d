"""The comparison of two runs: errors of differences by hand, what must not be subtracted, and the reports."""

import math
import re

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdkeras
from sample_runs import ALONE, EMPTY, FOUND, PLAUSIBLE, RUN, with_edge, with_estimate
from sdkeras.errors import SdkerasError
from sdkeras.reporting.build import report_of
from sdkeras.reporting.comparison import Comparison, NumberDifference, Quantity, number_difference
from sdkeras.reporting.numbers import dimension, estimated, number, with_error, with_interval
from sdkeras.reporting.terminal import as_text
from sdkeras.reporting.words import edge_in_words
from sdkeras.results import answers, measured
from sdkeras.results.lyapunov import LyapunovDimension, MStepSharpness


def row(found: Comparison, path: str) -> NumberDifference:
    (only,) = [entry for entry in found.numbers if entry.path == path]
    return only


def difference(a: Quantity, b: Quantity) -> NumberDifference:
    return number_difference("x", "X", "x", a, b)


@pytest.mark.parametrize(
    ("a", "b", "change", "error", "outcome"),
    [
        # 3-4-5: sampling errors add in quadrature
        (Quantity(10, (7, 13), "interval"), Quantity(20, (16, 24), "interval"), 10, 5, "rose"),
        (Quantity(20, (17, 23), "interval"), Quantity(10, (6, 14), "standard error"), -10, 5, "fell"),
        (Quantity(10, (7, 13), "interval"), Quantity(14, (10, 18), "interval"), 4, 5, "within the error"),
        # lopsided: the sides that face each other, 3 above A and 4 below B, and 9 and 9 the other way round
        (Quantity(10, (1, 13), "interval"), Quantity(20, (16, 29), "interval"), 10, 5, "rose"),
        (Quantity(20, (16, 29), "interval"), Quantity(10, (1, 13), "interval"), -10, 5, "fell"),
        # bounds add as they are
        (Quantity(10, (7, 13), "residual"), Quantity(20, (16, 24), "residual"), 10, 7, "rose"),
        # brackets: B lies above A by 1 to 21
        (Quantity(None, (0, 9), "bracket"), Quantity(None, (10, 21), "bracket"), 11, 10, "rose"),
        (Quantity(None, (0, 9), "bracket"), Quantity(None, (8, 21), "bracket"), 10, 11, "within the error"),
        (Quantity(10, (7, 13), "interval"), Quantity(20, (16, 24), "residual"), 10, 7, "rose"),
        (Quantity(10, (10, 10), "exact"), Quantity(20, (16, 24), "interval"), 10, 4, "rose"),
        (Quantity(20, (20, 20), "exact"), Quantity(10, (10, 10), "exact"), -10, 0, "fell"),
        (Quantity(20.0), Quantity(10, (9, 11), "interval"), -10, None, "fell"),
        (Quantity(20, (19, 21), "interval"), Quantity(20, (18, 22), "interval"), 0, math.sqrt(5), "within the error"),
        (Quantity(20, (19, 21), "interval"), Quantity(20, (19, 21), "interval"), 0, math.sqrt(2), "equal"),
        (Quantity(20.0), Quantity(20.0), 0, None, "equal"),
    ],
)
def test_the_error_of_a_difference(a, b, change, error, outcome) -> None:
    found = difference(a, b)
    assert found.difference == change
    assert found.error == (None if error is None else pytest.approx(error, rel=1e-12))
    assert found.outcome == outcome


def test_verdicts_in_words() -> None:
    a = Quantity(1530.25, (1526.25, 1534.25), "interval")
    assert difference(a, Quantity(1499.0)).verdict == "fell by 31.25; B has no error bar"
    assert difference(a, Quantity(1499.0, (1499, 1499), "exact")).verdict == "fell by 31.2 [27.2, 35.2]"
    wide = Quantity(1561.25, (1521.45, 1570), "interval")
    assert difference(a, wide).verdict == "no difference beyond the error (31 [-9, 71])"
    assert difference(Quantity(1.0), Quantity(2.0)).verdict == "rose by 1; neither has an error bar"
    loose = Quantity(3.0, (2.0, 4.0), "residual", "did not converge")
    assert difference(Quantity(1.0, (1.0, 1.0), "exact"), loose).verdict == "rose by 2.0 [1.0, 3.0]; B did not converge"
    assert number_difference("x", "X", "x", a, a, incomparable="why").verdict == "not comparable: why"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (31.4, 4.04, "31.4 ± 4.0"),
        (-31.4, 40.0, "-31 ± 40"),
        (1234567.0, 4321.0, "1,234,600 ± 4,300"),
        (0.00123456, 0.000078, "0.001235 ± 0.000078"),
        (1.53e-9, 2e-10, "1.53e-09 ± 2e-10"),
        (0.0, 2e-10, "0 ± 2e-10"),
        (2.5, None, "2.5"),
        (2.5, 0.0, "2.5"),
    ],
)
def test_a_number_with_its_error(value: float, error: float | None, text: str) -> None:
    assert with_error(value, error) == text


@pytest.mark.parametrize("value", [2e15, -3e17, 1.5e300])
def test_no_digits_are_printed_that_a_float_does_not_hold(value: float) -> None:
    low, high = sorted((0.9 * value, 1.1 * value))
    room = edge_in_words(with_edge(RUN, ratio=abs(1 / value)).edge_of_stability)
    for text in (
        *(number(value), dimension(value), dimension(value, abs(value) / 10), estimated(value, (low, high)), room),
        *(with_error(value, 1.0), with_error(1.0, abs(value)), with_interval(value, 1.0)),
    ):
        assert not re.search(r"\d(,\d{3}){5}", text), text
    assert (number(value), dimension(value)) == (f"{value:.4g}",) * 2


@given(st.floats(-1e300, 1e300), st.floats(1e-300, 1e300))
def test_any_number_can_be_shown_with_its_error(value: float, error: float) -> None:
    assert "±" in with_error(value, error)
    assert "[" in with_interval(value, error)


def test_the_error_covers_the_difference_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(0, 3, 4000), generator.normal(10, 4, 4000)
    half = 1.959964
    covered = 0
    for one, other in zip(a, b, strict=True):
        found = difference(
            Quantity(one, (one - 3 * half, one + 3 * half), "interval"),
            Quantity(other, (other - 4 * half, other + 4 * half), "interval"),
        )
        assert found.difference is not None
        assert found.error is not None
        covered += abs(found.difference - 10) <= found.error
    # 5 standard errors of a share of 0.95 among 4,000
    assert covered / 4000 == pytest.approx(0.95, abs=5 * math.sqrt(0.95 * 0.05 / 4000))


def test_identical_runs_do_not_differ() -> None:
    for run in (RUN, EMPTY, ALONE):
        found = sdkeras.compare(run, run)
        assert found.identical
        assert found.summary.startswith("Nothing differs")
        assert not found.settings
        assert not found.incomparable
        assert {entry.outcome for entry in found.numbers} <= {"equal"}
        assert "Nothing differs" in as_text(found)


def test_runs_that_differ_in_time_alone() -> None:
    later = attrs.evolve(RUN, provenance=attrs.evolve(RUN.provenance, created="later", seconds=9.0, num_hvps=5))
    found = sdkeras.compare(RUN, later)
    assert not found.identical
    assert found.summary.startswith("No setting and no number differs")


def test_settings_of_the_estimator_do_not_make_numbers_incomparable() -> None:
    finer = sdkeras.compare(
        with_estimate(RUN, settings={"bins": 1000.0}), with_estimate(RUN, settings={"bins": 2000.0})
    )
    ((setting,), same) = finer.settings, {entry.outcome for entry in finer.numbers}
    assert (setting.path, setting.a, setting.b) == ("sharpness_dimension.settings", "bins 1000", "bins 2000")
    assert same == {"equal"}


def test_the_numbers_of_an_analysis() -> None:
    run = with_estimate(
        RUN,
        value=1500.0,
        interval=(1490.0, 1508.0),
        codimension=500.0,
        codimension_interval=(492.0, 510.0),
        definition_interval=(1300.0, 1400.0),
        expansion=3.0,
    )
    b = attrs.evolve(
        with_edge(run, threshold=10.0, ratio=1.2, batch_sharpness=23.0, batch_sharpness_stderr=2.0),
        optimizer=attrs.evolve(RUN.optimizer, learning_rate=0.2),
        provenance=attrs.evolve(RUN.provenance, tensorflow="2.22"),
    )
    found = sdkeras.compare(RUN, b, names=("old.json", "new.json"))
    assert found.a.name == "old.json"
    assert [(entry.path, entry.a, entry.b) for entry in found.settings] == [
        ("provenance.tensorflow", "2.21", "2.22"),
        ("optimizer.learning_rate", "0.1", "0.2"),
    ]
    for path, change, error, outcome in (
        # A's lower end is 9.75 away, B's upper end 8
        ("sharpness_dimension.value", -30.25, math.hypot(9.75, 8.0), "fell"),
        ("sharpness_dimension.codimension", 30.25, math.hypot(9.75, 8.0), "rose"),
        # brackets [1500, 1540] and [1300, 1400]: 100 to 240 lower
        ("sharpness_dimension.definition_value", -170.0, 70.0, "fell"),
        ("sharpness_dimension.expansion", 0.5, None, "rose"),
        ("edge_of_stability.sharpness", 0.0, 2e-4, "equal"),
        ("edge_of_stability.threshold", -10.0, 0.0, "fell"),
        # the residual of the eigenvalue over the thresholds: 1e-4/20 + 1e-4/10
        ("edge_of_stability.ratio", pytest.approx(0.6), 1.5e-5, "rose"),
        # standard errors 1.5 and 2: 95 % of 2.5
        ("edge_of_stability.batch_sharpness", 10.0, 1.959964 * 2.5, "rose"),
    ):
        entry = row(found, path)
        assert (entry.difference, entry.outcome) == (change, outcome), path
        assert entry.error == (None if error is None else pytest.approx(error, rel=1e-6)), path
    assert row(found, "sharpness_dimension.expansion").verdict == "rose by 0.5; neither has an error bar"
    assert row(found, "edge_of_stability.threshold").verdict == "fell by 10"
    assert not [entry for entry in found.numbers if entry.path in ("hessian.smallest.value", "hessian.trace.value")]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("map", "hessian", "map sgd against hessian"),
        ("coordinates", "balanced", "coordinates weights against balanced"),
        ("state_size", 4000, "state size 2,000 against 4,000"),
    ],
)
def test_dimensions_of_other_maps_are_not_subtracted(field: str, value: object, words: str) -> None:
    found = sdkeras.compare(RUN, with_estimate(RUN, **{field: value}))
    dimensions = [e for e in found.numbers if e.path.startswith(("sharpness_dimension.", "rds_sharpness."))]
    assert len(dimensions) > 8
    for entry in dimensions:
        assert entry.verdict == f"not comparable: {words}"
        assert entry.difference is None
        assert entry.error is None
    for path in ("sharpness_dimension.value", "sharpness_dimension.interval.0", "estimates.0.value"):
        assert found.why_incomparable(path) == words
    assert not found.why_incomparable("edge_of_stability.sharpness")
    assert row(found, "edge_of_stability.sharpness").outcome == "equal"
    assert words in " ".join(as_text(found).split())
    assert f"sharpness_dimension.{field}" in [entry.path for entry in found.settings]


def test_sharpness_of_another_operator_is_not_subtracted_but_the_ratio_is() -> None:
    other = with_edge(RUN, operator="P^-1/2 H P^-1/2", sharpness=38.0, threshold=40.0, ratio=0.95)
    found = sdkeras.compare(RUN, other)
    for name in ("sharpness", "threshold"):
        assert row(found, f"edge_of_stability.{name}").outcome == "not comparable"
    # The residual of H's eigenvalue is none of the other operator's, even where the two values are the same.
    same = with_edge(other, sharpness=12.0)
    assert row(sdkeras.compare(same, same), "edge_of_stability.sharpness").a.evidence == "none"
    own = with_edge(other, sharpness_residual=0.5)
    assert row(sdkeras.compare(own, own), "edge_of_stability.sharpness").a.interval == (37.5, 38.5)
    assert row(sdkeras.compare(own, own), "edge_of_stability.ratio").a.interval == (37.5 / 40, 38.5 / 40)
    ratio = row(found, "edge_of_stability.ratio")
    assert ratio.difference == pytest.approx(0.35)
    assert "B has no error bar" in ratio.verdict


def layer(name: str, size: int, top: float) -> answers.LayerSharpness:
    trace = measured.Measured(3.0, False, stderr=0.25)
    return answers.LayerSharpness(name, size, measured.Measured(top, True, residual=0.5), trace, 4.0, (3.0, 5.0))


def test_layers_are_matched_by_name() -> None:
    a = attrs.evolve(RUN, layers=(layer("stem", 10, 2.0), layer("head", 10, 8.0), layer("old", 10, 1.0)))
    b = attrs.evolve(RUN, layers=(layer("head", 20, 18.0), layer("stem", 10, 2.0), layer("new", 10, 1.0)))
    found = sdkeras.compare(a, b)
    head = row(found, "layers.0.largest.value")
    assert (head.group, head.difference, head.error) == ("Layer head", 10.0, 1.0)
    assert row(found, "layers.1.largest.value").difference == 0
    assert row(found, "layers.0.codimension").verdict == "not comparable: num parameters 10 against 20"
    assert row(found, "layers.1.codimension").outcome == "equal"
    assert not [entry for entry in found.numbers if entry.path.startswith("layers.2")]
    assert any("Only A has: layer old" in note for note in found.notes)
    assert any("Only B has: layer new" in note for note in found.notes)
    assert found.why_incomparable("layers.0.trace.value")


def test_the_numbers_of_a_trajectory() -> None:
    b = attrs.evolve(
        ALONE,
        lyapunov=attrs.evolve(
            FOUND,
            values=np.array([0.1, -0.26]),
            stderr=np.array([0.04, 0.04]),
            rounding=np.array([0.02, 0.0]),
            num_steps=80,
            log_det=-0.16,
            dimension=LyapunovDimension("determined", 3.5, (3.25, 3.75), "", 3, -0.5, 4, 4, 60),
            num_resolved=1,
        ),
    )
    found = sdkeras.compare(ALONE, b)
    assert [entry.path for entry in found.settings] == ["lyapunov.num_steps"]
    first = row(found, "lyapunov.values.0")
    assert first.difference == pytest.approx(-0.4)
    assert first.error == pytest.approx(math.hypot(1.959964 * 0.03, 1.959964 * 0.04 + 0.02), rel=1e-6)
    assert first.outcome == "fell"
    assert "B is an upper bound, by rounding" in row(found, "lyapunov.values.1").verdict
    # bracket [1, 3] against 3.5 [3.25, 3.75]
    dimension = row(found, "lyapunov.dimension.value")
    assert (dimension.difference, dimension.error, dimension.outcome) == (1.5, 1.25, "rose")
    larger = attrs.evolve(FOUND, dimension=attrs.evolve(FOUND.dimension, size=8))
    found = sdkeras.compare(ALONE, attrs.evolve(ALONE, lyapunov=larger))
    assert row(found, "lyapunov.dimension.value").verdict == "not comparable: state size 4 against 8"
    assert row(found, "lyapunov.values.0").outcome == "equal"


def test_windows_of_a_trajectory() -> None:
    def window(m: int, dimension: float | None) -> MStepSharpness:
        return MStepSharpness(m, 60, np.array([0.1, -1.0]), 2, 4, dimension, "explicit products")

    def run(*windows: MStepSharpness, coordinates: str = "weights") -> answers.LyapunovRun:
        return attrs.evolve(ALONE, lyapunov=attrs.evolve(FOUND, windows=windows, coordinates=coordinates))

    a = run(window(1, 3.0), window(5, 2.5), window(10, None))
    found = sdkeras.compare(a, run(window(1, 3.25), window(5, 2.0), window(10, 1.0)))
    differences = [e.difference for e in found.numbers if e.path.startswith("lyapunov.windows.")]
    assert differences == [0.25, -0.5]
    assert row(found, "lyapunov.windows.1.dimension").verdict == "fell by 0.5; neither has an error bar"
    for other, words in (
        (run(window(1, 3.0), window(6, 2.5)), "lengths 1, 5, 10 against 1, 6"),
        (run(*a.lyapunov.windows, coordinates="raw"), "coordinates weights against raw"),
    ):
        found = sdkeras.compare(a, other)
        assert row(found, "lyapunov.windows.1.dimension").verdict == f"not comparable: {words}"
        assert found.why_incomparable("lyapunov.windows.0.exponents.0") == words


def test_many_exponents_are_kept_and_the_leading_ones_shown() -> None:
    many = attrs.evolve(
        FOUND,
        values=np.linspace(1, -1, 40),
        stderr=np.full(40, 0.1),
        rounding=None,
        history=tuple(np.zeros((40, 12))),
    )
    found = sdkeras.compare(attrs.evolve(ALONE, lyapunov=many), attrs.evolve(ALONE, lyapunov=many, partial=True))
    assert row(found, "lyapunov.values.39")
    *_, numbers = report_of(found).tables
    assert [row[0] for row in numbers.rows] == [*(f"ell_{k}" for k in range(1, 13)), "D_s", "sum of all exponents"]


def test_what_to_know_before_the_numbers() -> None:
    b = attrs.evolve(
        EMPTY,
        provenance=attrs.evolve(RUN.provenance, data_digest="ff"),
        model=attrs.evolve(RUN.model, loss="mae"),
        data=attrs.evolve(RUN.data, num_samples=5000),
        verification=attrs.evolve(RUN.verification, passed=False),
    )
    found = sdkeras.compare(RUN, b)
    notes = " ".join(found.notes)
    for words in (
        "The data differ",
        "loss mse against mae",
        "over 100 of 5,000 samples",
        "Only A has: sharpness, of H",
    ):
        assert words in notes
    assert "Warnings only in A: negative-curvature" in notes
    assert not found.numbers
    assert report_of(found).alarms == (
        "B is UNVERIFIED: its operator failed its check; do not trust its numbers.",
        "B was interrupted.",
    )


def test_an_analysis_is_not_compared_with_a_trajectory() -> None:
    with pytest.raises(SdkerasError, match=r"A is an answer of sdkeras analyze, B is an answer of sdkeras lyapunov"):
        sdkeras.compare(RUN, ALONE)


def test_both_runs_are_drawn_over_each_other() -> None:
    """In the same bins and on the same axes; nothing that cannot be compared."""
    spectrum = attrs.evolve(PLAUSIBLE.spectrum, nodes=0.5 * PLAUSIBLE.spectrum.nodes)
    other = attrs.evolve(PLAUSIBLE, spectrum=spectrum)
    comparison = Comparison.from_json(sdkeras.compare(PLAUSIBLE, other).to_json())
    figures = {each.name: each for each in report_of(comparison).figures}
    assert list(figures) == ["spectra", "exponents"]
    first, second = figures["spectra"].series
    assert (first.name, second.name) == ("A", "B")
    assert list(first.x) == list(second.x)
    assert first.y.sum() == pytest.approx(2000)
    assert second.y.sum() == pytest.approx(2000)
    assert np.max(second.x[second.y > 0]) < np.max(first.x[first.y > 0])
    assert figures["exponents"].series[0].y[0] == PLAUSIBLE.rds_sharpness.leading[0]
    apart = with_estimate(attrs.evolve(other, spectrum=attrs.evolve(spectrum, operator="P^-1/2 H P^-1/2")), map="adam")
    assert not report_of(sdkeras.compare(PLAUSIBLE, apart)).figures
