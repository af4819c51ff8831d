"""The figures of the pages on axes of your own.

Each function draws on `ax`, by default on those of a new pyplot figure, and returns the axes. Text and lines are in the
style of your rcParams, the main colours the first ones of its cycle ("C0", "C1", ...). No title is set. A record that
lacks the numbers for a figure is refused with a `SdkerasError` that says which, a record or `ax` of another type with
an `ArgumentTypeError`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from sdkeras.errors import ArgumentTypeError, SdkerasError, instance
from sdkeras.reporting import figures, loss_figures
from sdkeras.reporting.drawing import Colours
from sdkeras.reporting.report import Figure
from sdkeras.reporting.track_figures import track_figures
from sdkeras.results.answers import Analysis, LandscapeRun, LyapunovRun
from sdkeras.results.log import RunLog, read_run_log, trajectory
from sdkeras.results.lyapunov import LyapunovSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "compare",
    "convergence",
    "cumulative_exponents",
    "exponents",
    "landscape",
    "layers",
    "lyapunov_convergence",
    "lyapunov_exponents",
    "lyapunov_windows",
    "snapshots",
    "spectral_density",
    "track",
]


def spectral_density(run: Analysis, ax: Axes | None = None) -> Axes:
    """Eigenvalues of a minibatch's operator in bins, with its stability threshold where that is in sight."""
    missing = "a spectrum of the Hessian: the map 'full' has none, and a limit may leave it out"
    return _drawn(figures.spectral_density(instance(run, "run", Analysis)), ax, missing)


def exponents(run: Analysis, ax: Axes | None = None) -> Axes:
    """RDS sharpness exponents lambda_k over k, with SD and the threshold exponent t*."""
    missing = "exponents and a sharpness dimension: both need a learning rate, and room within the limits"
    return _drawn(figures.rds_exponents(instance(run, "run", Analysis)), ax, missing)


def cumulative_exponents(run: Analysis, ax: Axes | None = None) -> Axes:
    """The exponents added up, largest first; the sum crosses 0 at SD."""
    missing = "the exponents of its spectrum: they need a learning rate, and files of version 0.1 have none"
    return _drawn(figures.cumulative_sum(instance(run, "run", Analysis)), ax, missing)


def convergence(run: Analysis, ax: Axes | None = None) -> Axes:
    """SD and its interval as the runs accumulate."""
    missing = "a history of the sharpness dimension, of at least two checks of the interval"
    return _drawn(figures.convergence(instance(run, "run", Analysis)), ax, missing)


def layers(run: Analysis, ax: Axes | None = None) -> Axes:
    """The largest eigenvalue of each layer's block in the Hessian."""
    return _drawn(
        figures.layer_sharpness(instance(run, "run", Analysis)), ax, "layers: measure them with `per_layer=True`"
    )


def snapshots(run: Analysis, ax: Axes | None = None) -> Axes:
    """SD at each snapshot of a continued training, and the supremum over them."""
    supremum = instance(run, "run", Analysis).supremum
    figure = None if supremum is None else figures.supremum_figure(supremum)
    return _drawn(figure, ax, "a supremum over two snapshots or more: measure it with `snapshots=N, every=M`")


def lyapunov_exponents(run: Analysis | LyapunovRun, ax: Axes | None = None) -> Axes:
    """Lyapunov exponents along training with their standard errors."""
    return _drawn(figures.lyapunov_exponents(_along(run)), ax, "finite Lyapunov exponents")


def lyapunov_convergence(run: Analysis | LyapunovRun, ax: Axes | None = None) -> Axes:
    """Running means of the leading Lyapunov exponents over the steps."""
    return _drawn(figures.lyapunov_convergence(_along(run)), ax, "running means over two blocks of steps or more")


def lyapunov_windows(run: Analysis | LyapunovRun, ax: Axes | None = None) -> Axes:
    """SD of m steps taken as one over m, beside D_s."""
    missing = "a dimension of several steps taken as one: measure it with `sdkeras.lyapunov(..., windows=(1, 2, 4))`"
    return _drawn(figures.window_dimensions(_along(run)), ax, missing)


def landscape(run: LandscapeRun, ax: Axes | None = None) -> Axes:
    """The loss along a line with its quadratic model, or its contours in a plane with the path of a trajectory."""
    return _drawn(loss_figures.landscape_figure(instance(run, "run", LandscapeRun)), ax, "three finite losses or more")


def track(log: RunLog | str | os.PathLike[str], ax: Axes | None = None, *, what: str = "edge") -> Axes:
    """A training over time.

    Args:
        log: What `sdkeras.track` returns, or the folder (`log_dir`) in which it or the callback keeps it.
        ax: The axes.
        what: One of the page's figures by name: 'edge' is the sharpness against the threshold, others are
            'sharpness-codimension', 'sharpness-dimension' and 'bound'.

    Raises:
        SdkerasError: The log cannot be read, or has no numbers for this figure.
    """
    record = read_run_log(log) if isinstance(log, (str, os.PathLike)) else instance(log, "log", RunLog)
    known = {figure.name: figure for figure in track_figures(trajectory(record))}
    return _drawn(known.get(what), ax, f"numbers for the figure {what!r}; it has: {', '.join(known) or 'none'}")


def compare(
    runs: Sequence[Analysis],
    ax: Axes | None = None,
    *,
    what: Literal["spectrum", "exponents"] = "spectrum",
    names: Sequence[str] | None = None,
) -> Axes:
    """Spectra or RDS sharpness exponents of several analyses on the same axes, in the colours "C0", "C1", ...

    Args:
        runs: Analyses of the same operator (spectrum), or of the same map, coordinates and size of the state.
        ax: The axes.
        what: 'spectrum' or 'exponents'.
        names: Of the runs, for the legend; default those of the models, or A, B, ... where these are the same.

    Raises:
        SdkerasError: One of the runs lacks these numbers, or they cannot be compared.
        ArgumentTypeError: `runs` is no list.
    """
    if what not in _SINGLE:
        raise SdkerasError(f"what is {what!r}; it must be one of {', '.join(_SINGLE)}.")
    if isinstance(runs, (Analysis, str)) or not isinstance(runs, Sequence):
        raise ArgumentTypeError(f"runs is of type {type(runs).__name__}; give a list of analyses, for example [a, b].")
    listed = [instance(run, f"runs[{place}]", Analysis) for place, run in enumerate(runs)]
    names = _names(listed) if names is None else names
    if not listed or len(names) != len(listed):
        raise SdkerasError(f"there are {len(listed)} runs and {len(names)} names; give as many, and at least one.")
    _check_alike(listed, what)
    shades = [f"C{k}" for k in range(len(listed))]
    if what == "spectrum":
        figure = figures.overlaid_spectra([run.spectrum for run in listed], names, shades)
    else:
        sizes = [run.sharpness_dimension.state_size for run in listed if run.sharpness_dimension is not None]
        exponents_of = [run.rds_sharpness for run in listed]
        figure = figures.overlaid_exponents(exponents_of, sizes[0] if sizes else 0, names, shades)
    return _drawn(figure, ax, f"the numbers of each run that `sdkeras.plot.{_SINGLE[what]}` draws")


# The function that draws the same of one run.
_SINGLE = {"spectrum": "spectral_density", "exponents": "exponents"}


def _names(runs: Sequence[Analysis]) -> list[str]:
    models = [run.model.name for run in runs]
    return models if len(set(models)) == len(models) else [chr(ord("A") + k % 26) for k in range(len(models))]


def _check_alike(runs: Sequence[Analysis], what: str) -> None:
    """Refuses numbers of different operators or maps, which no axis can hold together."""
    of_spectra = {run.spectrum.operator for run in runs if run.spectrum is not None}
    estimates = [run.sharpness_dimension for run in runs if run.sharpness_dimension is not None]
    kinds = {f"map {each.map} of {each.state_size:,} dimensions ({each.coordinates})" for each in estimates}
    different = of_spectra if what == "spectrum" else kinds
    if len(different) > 1:
        raise SdkerasError(f"the runs cannot be compared: {' against '.join(sorted(different))}; draw each by itself.")


def _along(run: object) -> LyapunovSummary:
    summary = instance(run, "run", Analysis, LyapunovRun).lyapunov
    if summary is None:
        raise SdkerasError("the run has no Lyapunov exponents: measure them with `lyapunov=K`, or `sdkeras.lyapunov`.")
    return summary


def _drawn(figure: Figure | None, ax: Axes | None, missing: str) -> Axes:
    if figure is None:
        raise SdkerasError(f"there is nothing to draw: the record lacks {missing}.")
    import matplotlib
    from matplotlib.axes import Axes

    style = matplotlib.rcParams
    colours = Colours(style["text.color"], style["axes.labelcolor"], style["axes.edgecolor"], "C0", "C1")
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots()
    figure.draw(instance(ax, "ax", Axes), colours)
    return ax


def __dir__() -> list[str]:
    return sorted(__all__)
