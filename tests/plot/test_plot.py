"""The figures of the pages on the caller's axes: they hold the record's numbers, in the caller's style."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sample_log import FOUND as MEASUREMENT
from sample_log import HEADER
from sample_runs import ALONE, EMPTY, FOUND, RUN, with_estimate
from sdkeras import plot
from sdkeras.dimension.exponents import ExponentMap, rds_sharpness
from sdkeras.errors import SdkerasError
from sdkeras.results import answers
from sdkeras.results.answers import LandscapeRun
from sdkeras.results.dimension import Supremum
from sdkeras.results.landscape import Axis, Landscape
from sdkeras.results.log import FILE_NAME, RunLog, append
from sdkeras.results.lyapunov import MStepSharpness
from sdkeras.results.measured import Measured

NODES = np.sort(np.concatenate([np.linspace(-0.02, 0.02, 1900), np.geomspace(0.05, 12.0, 100)]))
Z = ExponentMap("sgd", 0.1)(NODES)
LAYERS = tuple(
    answers.LayerSharpness(name, 10, largest and Measured(largest, True, residual=0.25), None, None, None)
    for name, largest in (("stem", 2.0), ("$h_1^$", 8.0), ("not reached", None))
)
SUPREMUM = Supremum(
    1540.0, (1530.0, 1550.0), 460.0, 2, 2, 10, (0, 10), (0.1, 0.1), 8, 1530.0, np.array([1530.0, 1535.0]), False,
    "exact", 100, "sgd", "weights", 2000,
)  # fmt: skip
ALL = attrs.evolve(
    RUN,
    spectrum=answers.SpectrumSummary(NODES, np.ones(2000), exponents=Z),
    rds_sharpness=rds_sharpness(np.sort(Z)[::-1], np.ones(2000)),
    layers=LAYERS,
    supremum=SUPREMUM,
    lyapunov=attrs.evolve(FOUND, windows=(MStepSharpness(1, 60, np.zeros(4), 4, 4, 2.5, "explicit products"),)),
)
LOG = RunLog(HEADER, (MEASUREMENT, attrs.evolve(MEASUREMENT, step=20)))
_TO = np.linspace(-1.0, 1.0, 5)
_ACROSS = Axis("eigenvector 1", 1.0, 0.5, 2.0, None, None, _TO)
LANDSCAPE = LandscapeRun(
    *(RUN.provenance, RUN.model, RUN.data, RUN.optimizer, RUN.verification),
    Landscape("eigenvectors", False, (_ACROSS,), None, 3.0, (3.0 + 0.5 * _TO + _TO**2 + _TO**3,), (0.5, 0.5)),
)
NOTHING = attrs.evolve(LANDSCAPE, landscape=attrs.evolve(LANDSCAPE.landscape, losses=(np.full(5, np.nan),)))
OTHERS = {"track": (LOG, RunLog(HEADER, ())), "landscape": (LANDSCAPE, NOTHING)}
SINGLE: dict[str, Callable[..., Axes]] = {name: getattr(plot, name) for name in plot.__all__ if name != "compare"}


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


@pytest.fixture
def pyplot() -> Iterator[Any]:
    mpl.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def line(ax: Axes, place: int = 0) -> np.ndarray:
    """The points of one of the lines, [2, n]."""
    return np.array(ax.lines[place].get_data(), np.float64)


def rank(position: np.ndarray, size: int = 2000) -> np.ndarray:
    """The rank at a position on the axis ln(k / (d - k))."""
    return size / (1 + np.exp(-position))


@pytest.mark.parametrize("name", SINGLE)
def test_each_figure_is_drawn_on_the_axes_that_it_is_given(name: str, ax: Axes) -> None:
    record, _ = OTHERS.get(name, (ALL, EMPTY))
    assert SINGLE[name](record, ax) is ax
    assert SINGLE[name](record, ax=ax) is ax
    assert ax.has_data()
    assert ax.get_title() == ""
    ax.get_figure().draw_without_rendering()


def test_the_density_counts_the_eigenvalues(ax: Axes) -> None:
    plot.spectral_density(ALL, ax)
    (stairs,) = [each for each in ax.patches if hasattr(each, "get_data")]
    heights, edges, floor = stairs.get_data()
    counted = np.histogram(NODES, edges)[0]
    assert np.array_equal(heights[counted > 0], counted[counted > 0])
    assert np.all(heights[counted == 0] == floor)
    assert counted.sum() == 2000
    assert line(ax)[0][0] == 20.0  # the threshold of RUN


def test_the_exponents_are_those_of_the_run(ax: Axes) -> None:
    """With as many levels as fit, the k-th exponent is the k-th largest of all."""
    plot.exponents(ALL, ax)
    position, values = line(ax)
    inside = rank(position) < 1999.25  # the last one is drawn half a rank inside of the axis
    ranks = np.round(rank(position[inside])).astype(int)
    assert len(ranks) > 300
    assert np.allclose(values[inside], np.sort(Z)[::-1][ranks - 1], rtol=0, atol=1e-12)


def test_the_cumulative_sum_is_a_cumulative_sum(ax: Axes) -> None:
    plot.cumulative_exponents(ALL, ax)
    position, total = line(ax)
    expected = np.cumsum(np.sort(Z)[::-1])
    ranks = np.round(rank(position)).astype(int)
    assert len(ranks) == 1999  # the last lies at the end of the axis
    assert np.allclose(total, expected[ranks - 1], rtol=0, atol=1e-10)


def test_the_other_figures_have_the_numbers_of_the_record() -> None:
    axes = {name: draw(OTHERS.get(name, (ALL,))[0], Figure().subplots()) for name, draw in SINGLE.items()}
    assert line(axes["convergence"]).tolist() == [[24.0, 30.0], [1500.0, 1530.25]]
    bars = [patch.get_width() for patch in axes["layers"].patches]
    assert bars == [2.0, 8.0]
    assert [label.get_text() for label in axes["layers"].get_yticklabels()] == ["stem", "$h_1^$"]
    assert line(axes["snapshots"], 1).tolist() == [[0.0, 10.0], [1530.0, 1535.0]]
    assert line(axes["lyapunov_exponents"])[1].tolist() == [0.5, -0.25]
    assert line(axes["lyapunov_convergence"])[0].tolist() == [5.0 * k for k in range(1, 13)]
    assert line(axes["lyapunov_windows"]).tolist() == [[1.0], [2.5]]
    assert line(axes["track"]).tolist() == [[10.0, 20.0], [20.0, 20.0]]
    assert line(axes["track"], 1).tolist() == [[10.0, 20.0], [12.0, 12.0]]
    assert line(axes["landscape"]).tolist() == [_TO.tolist(), LANDSCAPE.landscape.losses[0].tolist()]
    assert np.allclose(line(axes["landscape"], 1)[1], 3.0 + 0.5 * _TO + _TO**2)


def test_a_lyapunov_run_and_the_folder_of_a_log_are_taken_as_well(ax: Axes, tmp_path: Path) -> None:
    assert line(plot.lyapunov_exponents(ALONE, ax))[1].tolist() == [0.5, -0.25]
    for record in (HEADER, *LOG.measurements):
        append(tmp_path / FILE_NAME, record)
    drawn = plot.track(tmp_path, Figure().subplots(), what="sharpness-codimension")
    assert line(drawn).tolist() == [[10.0, 20.0], [470.0, 470.0]]


def test_several_runs_are_drawn_in_the_same_bins_each_in_a_colour_of_its_own(ax: Axes) -> None:
    half = attrs.evolve(ALL, spectrum=attrs.evolve(ALL.spectrum, nodes=0.5 * NODES))
    assert plot.compare([ALL, half, ALL], ax, names=["a", "b", "c"]) is ax
    curves = [each for each in ax.patches if hasattr(each, "get_data")]
    data = [each.get_data() for each in curves]
    for nodes, (heights, edges, _) in zip((NODES, 0.5 * NODES, NODES), data, strict=True):
        counted = np.histogram(nodes, edges)[0]
        assert np.array_equal(edges, data[0][1])
        assert np.array_equal(heights[counted > 0], counted[counted > 0])
    assert [to_hex(each.get_edgecolor()) for each in curves] == [to_hex(f"C{k}") for k in range(3)]
    assert [each.get_text() for each in ax.get_legend().get_texts()] == ["a", "b", "c"]
    exponents = plot.compare([ALL, ALL], Figure().subplots(), what="exponents")
    alone = plot.exponents(ALL, Figure().subplots())
    for place in range(2):
        assert np.array_equal(line(exponents, place), line(alone))
    assert [each.get_text() for each in exponents.get_legend().get_texts()] == ["A", "B"]


@pytest.mark.parametrize("what", ["spectrum", "exponents"])
def test_names_stand_in_the_legend_as_they_are(what: Any, ax: Axes) -> None:
    plot.compare([ALL, ALL], ax, what=what, names=["_under", r"$\frac{$"])
    ax.figure.canvas.draw()
    assert [each.get_text().strip() for each in ax.get_legend().get_texts()] == ["_under", r"$\frac{$"]


@pytest.mark.parametrize("name", SINGLE)
def test_numbers_that_are_not_there_are_named(name: str, ax: Axes) -> None:
    _, record = OTHERS.get(name, (ALL, EMPTY))
    with pytest.raises(SdkerasError, match=r"there is nothing to draw: the record lacks \w+|has no Lyapunov exponents"):
        SINGLE[name](record, ax)
    with pytest.raises(SdkerasError, match=r"of type (Analysis|RunLog), got Comparison|cannot be read|of type"):
        SINGLE[name](object(), ax)
    assert not ax.has_data()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": [ALL, EMPTY]}, "lacks the numbers of each run that `sdkeras.plot.spectral_density` draws"),
        ({"runs": [ALL, EMPTY], "what": "exponents"}, "lacks the numbers of each run"),
        ({"runs": []}, "0 runs"),
        ({"runs": [ALL], "names": ["a", "b"]}, "1 runs and 2 names"),
        ({"runs": [ALL, ALONE]}, "of type Analysis, got LyapunovRun"),
        ({"runs": [ALL, with_estimate(ALL, map="hessian")], "what": "exponents"}, "map hessian of 2,000.* against map"),
        ({"runs": [ALL, attrs.evolve(ALL, spectrum=attrs.evolve(ALL.spectrum, operator="P"))]}, "H against P"),
        ({"runs": [ALL], "what": "traces"}, "one of spectrum, exponents"),
        ({"runs": ALL}, r"give a list of analyses, for example \[a, b\]"),
        ({"runs": None}, "of type NoneType; give a list"),
    ],
)
def test_runs_that_cannot_be_compared(arguments: dict[str, Any], message: str, ax: Axes) -> None:
    with pytest.raises(SdkerasError, match=message):
        plot.compare(**arguments, ax=ax)
    assert not ax.has_data()


def test_the_callers_style_is_what_is_drawn_in() -> None:
    own = {"axes.prop_cycle": mpl.cycler(color=["#123456", "#654321"]), "font.size": 23.0}
    with mpl.rc_context(own):
        ax = plot.exponents(ALL, Figure().subplots())
        assert to_hex(ax.lines[0].get_color()) == "#123456"
        assert to_hex(ax.lines[-1].get_color()) == "#654321"
        assert {text.get_fontsize() for text in ax.texts} == {23.0}
        before = dict(mpl.rcParams)
        plot.cumulative_exponents(ALL, Figure().subplots())
        assert dict(mpl.rcParams) == before


def test_without_axes_a_pyplot_figure_is_made(pyplot: Any) -> None:
    ax = plot.spectral_density(ALL)
    assert pyplot.gca() is ax
    assert plot.exponents(ALL) is not ax
    assert len(pyplot.get_fignums()) == 2
    with pytest.raises(SdkerasError):
        plot.layers(EMPTY)
    assert len(pyplot.get_fignums()) == 2


def test_with_axes_nothing_of_pyplot_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.delattr(mpl, "pyplot", raising=False)
    for name, draw in SINGLE.items():
        draw(OTHERS.get(name, (ALL,))[0], Figure().subplots())
    with pytest.raises(ImportError):
        plot.exponents(ALL)
