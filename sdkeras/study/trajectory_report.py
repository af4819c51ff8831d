"""E_alpha and PH dimension of a trajectory in the terminal and as a page."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from sdkeras.reporting.drawing import ACCENT, WARN, Figure, plain_ticks, svg, usable
from sdkeras.reporting.html import Card, environment
from sdkeras.reporting.numbers import ABSENT, number, with_error
from sdkeras.reporting.tables import Table, printable, simulation_tables
from sdkeras.results.document import write_atomically
from sdkeras.results.note import Note
from sdkeras.study.topology import TrajectoryMeasures, TreeMeasures

_NAMES = {"euclidean": "Euclidean", "data": "data-dependent"}
_DISTANCES = {
    "euclidean": "distance of the weights",
    "data": "mean absolute difference of the losses of single examples",
}


def measured_in(found: TrajectoryMeasures) -> dict[str, TreeMeasures]:
    """What was measured, by the name of the distance."""
    both = {"euclidean": found.euclidean, "data": found.data}
    return {name: measured for name, measured in both.items() if measured is not None}


def headline(found: TrajectoryMeasures) -> str:
    """The dimensions in one line."""
    parts = []
    for name, measured in measured_in(found).items():
        value, error = measured.ph_dimension.value, measured.ph_dimension.stderr
        parts.append(f"{'undetermined' if value is None else with_error(value, error)} ({_NAMES[name]})")
    return f"PH dimension {', '.join(parts)}"


def what(found: TrajectoryMeasures) -> str:
    """Which iterates they are."""
    made = found.simulation
    training = "a recorded trajectory" if made is None else f"{made.num_steps:,} simulated steps from the checkpoint on"
    unit = "iterations" if made is None else "steps"
    return (
        f"{found.num_iterates:,} iterates of {training}, {unit} {found.first_iteration:,} to {found.last_iteration:,}"
    )


def notes(found: TrajectoryMeasures) -> tuple[Note, ...]:
    """What to know of the numbers: of the training first."""
    made = found.simulation
    if made is None:
        return found.warnings
    failed = (Note("unverified", "the simulated step failed its check against the optimizer's own."),)
    return (*(() if made.verified else failed), *made.warnings, *found.warnings)


def tables(found: TrajectoryMeasures) -> tuple[Table, ...]:
    """All numbers with what they rest on."""
    made = [_tree(name, measured, found.alpha) for name, measured in measured_in(found).items()]
    made.append(_iterates(found))
    return tuple(made) if found.simulation is None else (*made, *simulation_tables(found.simulation))


def _tree(name: str, found: TreeMeasures, alpha: float) -> Table:
    fit = found.ph_dimension
    rows = [
        ("E_alpha", number(found.e_alpha), f"alpha = {alpha:g}; of {fit.num_points:,} distinct iterates"),
        (
            "PH dimension",
            ABSENT if fit.value is None else with_error(fit.value, fit.stderr),
            fit.reason or "alpha / (1 - slope), with the standard error of the regression",
        ),
    ]
    if fit.slope is not None and fit.residual is not None:
        rows += [
            ("slope", with_error(fit.slope, fit.slope_stderr), "of ln E_alpha against ln n"),
            ("distance from the line", f"{fit.residual:.2g}", "root mean square, of ln E_alpha"),
            (
                "subsamples",
                f"{fit.num_repeats} of each size",
                f"n from {int(fit.sizes[0]):,} to {int(fit.sizes[-1]):,}, seed {fit.seed}",
            ),
        ]
    return Table("trees", f"{_NAMES[name][:1].upper()}{_NAMES[name][1:]}: {_DISTANCES[name]}", tuple(rows))


def _iterates(found: TrajectoryMeasures) -> Table:
    unit = "iteration" if found.simulation is None else "step"
    rows = [
        ("iterates", f"{found.num_iterates:,}", f"{unit} {found.first_iteration:,} to {found.last_iteration:,}"),
        ("weights", f"{found.num_parameters:,}", ""),
    ]
    if found.distortion is not None:
        error, bound = found.distortion.measured, found.distortion.bound
        seen = ABSENT if error is None else f"{error:.2g} on {found.distortion.num_pairs} pairs"
        promised = (
            "no bound" if bound is None else f"squared distances off by at most {bound:.2g} with high probability"
        )
        rows.append(("projected to", f"{found.num_columns:,}", f"distances off by up to {seen}; {promised}"))
    examples = f"{found.num_examples:,} examples" if found.num_examples else ABSENT
    rows.append(("losses", examples, "inference mode, without regularisers" if found.num_examples else "not recorded"))
    if found.simulation is not None:
        error_text = f"{found.simulation.step_error:.1e}"
        rows.append(
            (
                "step verified" if found.simulation.verified else "step NOT verified",
                error_text,
                "against the optimizer's own",
            )
        )
    return Table("iterates", "Trajectory", tuple(rows))


def figures(found: TrajectoryMeasures) -> tuple[Figure, ...]:
    """ln E_alpha against ln n in each distance, where the regression has points."""
    made = (_scaling(name, measured) for name, measured in measured_in(found).items())
    return tuple(figure for figure in made if figure is not None)


def _scaling(name: str, found: TreeMeasures) -> Figure | None:
    fit = found.ph_dimension
    if fit.slope is None or not usable(fit.sizes, fit.log_e_alpha):
        return None
    slope, x, y = fit.slope, np.log(fit.sizes), fit.log_e_alpha
    line = y.mean() + slope * (x - x.mean())

    def draw(axes: Any) -> None:
        axes.plot(x, line, color=WARN, linewidth=1.6)
        axes.plot(x, y, "o", color=ACCENT, markersize=6)
        ticks = np.unique(fit.sizes[:: max(1, len(x) // 4)])
        axes.set_xticks(np.log(ticks), [f"{int(size):,}" for size in ticks])
        axes.set_xlabel("iterates n (logarithmic)")
        axes.set_ylabel("ln E_alpha")
        plain_ticks(axes)

    answer = (
        f"the dimension is undetermined: {fit.reason}"
        if fit.value is None
        else f"the dimension is {fit.alpha:g} / (1 - {slope:.3g}) = {with_error(fit.value, fit.stderr)}."
    )
    return Figure(
        f"Growth of E_alpha, {_NAMES[name]}",
        svg(f"scaling-{name}", f"ln E_alpha against the number of iterates, {_NAMES[name]}", draw),
        f"Means over random subsamples of n iterates, and the line of slope {with_error(slope, fit.slope_stderr)} "
        f"through them; {answer}",
    )


def cards(found: TrajectoryMeasures) -> tuple[Card, ...]:
    """The large numbers."""
    made = []
    for name, measured in measured_in(found).items():
        fit = measured.ph_dimension
        made.append(
            Card(
                f"PH dimension, {_NAMES[name]}",
                ABSENT if fit.value is None else number(fit.value, 3),
                fit.reason if fit.stderr is None else f"± {fit.stderr:.2g} (standard error)",
                "how fast the spanning tree grows with the number of iterates",
            )
        )
        made.append(
            Card(
                f"E_alpha, {_NAMES[name]}",
                number(measured.e_alpha, 3),
                f"alpha = {found.alpha:g}",
                f"length of the spanning tree of {measured.ph_dimension.num_points:,} iterates",
            )
        )
    return tuple(made)


def render(found: TrajectoryMeasures) -> RenderableType:
    """The numbers in a terminal."""
    first = [Text(f"{headline(found)}.", style="bold"), Text(f"{what(found)}.")]
    title = "trajectory" if found.simulation is None else found.simulation.model.name
    parts: list[RenderableType] = [Panel(Group(*first), title=escape(printable(title)))]
    for note in notes(found):
        parts.append(Text.assemble((f"{printable(note.code)}: ", "yellow"), printable(note.message)))
    for table in tables(found):
        parts += [Text(""), rows_of(table.title, table.rows)]
    return Group(*parts)


def rows_of(title: str, rows: Sequence[Sequence[str]]) -> RichTable:
    """A table of labels, values and remarks."""
    grid = RichTable(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    grid.add_column(min_width=22)
    grid.add_column(overflow="fold")
    grid.add_column(style="dim", overflow="fold")
    grid.show_header = False
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    return grid


def as_text(found: TrajectoryMeasures, width: int = 100) -> str:
    """The numbers as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, highlight=False).print(render(found))
    return stream.getvalue().rstrip("\n")


def as_html(found: TrajectoryMeasures) -> str:
    """The page; whatever came from a model or a data file is escaped."""
    return (
        environment()
        .get_template("trajectory_measures.html.j2")
        .render(
            found=found,
            headline=headline(found),
            detail=f"{what(found)}.",
            name="Trajectory" if found.simulation is None else found.simulation.model.name,
            cards=cards(found),
            notes=notes(found),
            figures=figures(found),
            tables=tables(found),
        )
    )


def save_html(found: TrajectoryMeasures, path: str | os.PathLike[str]) -> None:
    """Writes the page, all of it or nothing.

    Raises:
        SdkerasError: The file cannot be written.
    """
    write_atomically(path, as_html(found))
