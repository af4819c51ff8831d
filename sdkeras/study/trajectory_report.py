"""The report of E_alpha and PH dimension of a trajectory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sdkeras.reporting.drawing import Colours, usable, value_axis
from sdkeras.reporting.numbers import ABSENT, number, with_error
from sdkeras.reporting.report import Card, Figure, Report, Section, Series, Table, present
from sdkeras.reporting.tables import footer, provenance_table, setting_in_words, training_table
from sdkeras.results.note import Note, by_severity
from sdkeras.study.topology import TrajectoryMeasures, TreeMeasures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRICS = {
    "euclidean": ("Euclidean", "distance of the weights"),
    "data": ("data-dependent", "mean absolute difference of the losses of single examples"),
}


def trajectory_report(measures: TrajectoryMeasures) -> Report:
    """Report on the size of a trajectory."""
    simulation = measures.simulation
    trees = {metric: tree for metric in _METRICS if (tree := getattr(measures, metric)) is not None}
    dimensions = [f"{_dimension(tree) or 'undetermined'} ({_METRICS[metric][0]})" for metric, tree in trees.items()]
    headline = f"PH dimension {', '.join(dimensions)}"
    training = "a recorded trajectory"
    if simulation is not None:
        training = f"{simulation.num_steps:,} simulated steps from the checkpoint on"
    detail = f"{measures.num_iterates:,} iterates of {training}, {_span(measures, 'iterations', 'steps')}."
    figures = present(*(_scaling(metric, tree) for metric, tree in trees.items()))
    tables = [*(_tree(metric, tree) for metric, tree in trees.items()), _iterates(measures)]
    name, about, notes, made_by = "Trajectory", "", measures.warnings, f"Made by sdkeras {measures.sdkeras}."
    if simulation is not None:
        name, about, made_by = simulation.model.name, setting_in_words(simulation), footer(simulation)
        tables += [training_table(simulation), provenance_table(simulation)]
        failed = Note("unverified", "the simulated step failed its check against the optimizer's own.")
        notes = (*(() if simulation.verified else (failed,)), *simulation.warnings, *notes)
    plots = Section("Plots", "plots", "Plots", figures=figures)
    return Report(
        name=name,
        about=about,
        eyebrow="How large the trajectory is",
        headline=headline,
        detail=detail,
        lines=(f"{headline}.", detail),
        cards=tuple(card for metric, tree in trees.items() for card in _cards(metric, tree)),
        notes=by_severity(notes),
        sections=(
            *([plots] if figures else []),
            Section(
                "What they rest on",
                "numbers",
                "Numbers",
                "E_alpha is the sum of the edges of a minimum spanning tree, each to the power alpha; the PH dimension "
                "is alpha / (1 - slope) of ln E_alpha against ln n (Birdal et al. 2021). The standard error is that of "
                "the subsamples: it does not include the bias of few iterates. Compare only trajectories with equally "
                "many iterates, equally far apart in training.",
                tables=tuple(tables),
            ),
        ),
        footer=made_by,
    )


def _dimension(tree: TreeMeasures) -> str:
    fit = tree.ph_dimension
    return "" if fit.value is None else with_error(fit.value, fit.stderr)


def _span(measures: TrajectoryMeasures, recorded: str, simulated: str) -> str:
    """From the first iterate to the last, in words for iterations of a recorded and steps of a simulated training."""
    unit = recorded if measures.simulation is None else simulated
    return f"{unit} {measures.first_iteration:,} to {measures.last_iteration:,}"


def _cards(metric: str, tree: TreeMeasures) -> tuple[Card, Card]:
    fit, name = tree.ph_dimension, _METRICS[metric][0]
    return (
        Card(
            f"PH dimension, {name}",
            number(fit.value, 3),
            fit.reason if fit.stderr is None else f"± {fit.stderr:.2g} (standard error)",
            "how fast the spanning tree grows with the number of iterates",
        ),
        Card(
            f"E_alpha, {name}",
            number(tree.e_alpha, 3),
            f"alpha = {fit.alpha:g}",
            f"length of the spanning tree of {fit.num_points:,} iterates",
        ),
    )


def _tree(metric: str, tree: TreeMeasures) -> Table:
    fit = tree.ph_dimension
    formula = "alpha / (1 - slope), with the standard error of the regression"
    rows = [
        ("E_alpha", number(tree.e_alpha), f"alpha = {fit.alpha:g}; of {fit.num_points:,} distinct iterates"),
        ("PH dimension", _dimension(tree) or ABSENT, fit.reason or formula),
    ]
    if fit.slope is not None and fit.residual is not None:
        sizes = f"n from {int(fit.sizes[0]):,} to {int(fit.sizes[-1]):,}, seed {fit.seed}"
        rows += [
            ("slope", with_error(fit.slope, fit.slope_stderr), "of ln E_alpha against ln n"),
            ("distance from the line", f"{fit.residual:.2g}", "root mean square, of ln E_alpha"),
            ("subsamples", f"{fit.num_repeats} of each size", sizes),
        ]
    name, distance = _METRICS[metric]
    return Table(f"{name[:1].upper()}{name[1:]}: {distance}", tuple(rows))


def _iterates(measures: TrajectoryMeasures) -> Table:
    simulation, distortion = measures.simulation, measures.distortion
    rows = [
        ("iterates", f"{measures.num_iterates:,}", _span(measures, "iteration", "step")),
        ("weights", f"{measures.num_parameters:,}", ""),
    ]
    if distortion is not None:
        error, bound = distortion.measured, distortion.bound
        observed = ABSENT if error is None else f"{error:.2g} on {distortion.num_pairs} pairs"
        off = "squared distances off by at most {:.2g} with high probability"
        promised = "no bound" if bound is None else off.format(bound)
        rows.append(("projected to", f"{measures.num_columns:,}", f"distances off by up to {observed}; {promised}"))
    losses = (ABSENT, "not recorded")
    if measures.num_examples:
        losses = (f"{measures.num_examples:,} examples", "inference mode, without regularisers")
    rows.append(("losses", *losses))
    if simulation is not None:
        label = "step verified" if simulation.verified else "step NOT verified"
        rows.append((label, f"{simulation.step_error:.1e}", "against the optimizer's own"))
    return Table("Trajectory", tuple(rows))


def _scaling(metric: str, tree: TreeMeasures) -> Figure | None:
    """ln E_alpha against ln n, where the regression has points."""
    fit = tree.ph_dimension
    if fit.slope is None or not usable(fit.sizes, fit.log_e_alpha):
        return None
    slope, x, y = fit.slope, np.log(fit.sizes), fit.log_e_alpha
    line = y.mean() + slope * (x - x.mean())

    def draw(axes: Axes, colours: Colours) -> None:
        axes.plot(x, line, color=colours.warn, linewidth=1.6)
        axes.plot(x, y, "o", color=colours.accent, markersize=6)
        ticks = np.unique(fit.sizes[:: max(1, len(x) // 4)])
        axes.set_xticks(np.log(ticks), [f"{int(size):,}" for size in ticks])
        axes.set_xlabel("iterates n (logarithmic)")
        value_axis(axes, "ln E_alpha")

    answer = f"the dimension is undetermined: {fit.reason}"
    if fit.value is not None:
        answer = f"the dimension is {fit.alpha:g} / (1 - {slope:.3g}) = {_dimension(tree)}."
    return Figure(
        f"scaling-{metric}",
        f"Growth of E_alpha, {_METRICS[metric][0]}",
        f"Means over random subsamples of n iterates, and the line of slope {with_error(slope, fit.slope_stderr)} "
        f"through them; {answer}",
        draw,
        series=(Series("", "iterates n", "ln E_alpha", fit.sizes.astype(np.float64), y, at=(x, y)),),
    )
