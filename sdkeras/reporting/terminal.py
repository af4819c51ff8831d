"""The report and the plan in a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from sdkeras.reporting.comparison import Comparison
from sdkeras.reporting.explanations import (
    ERRORS_IN_WORDS,
    is_limited,
    known_in_words,
    supremum_headline,
    trajectory_in_words,
)
from sdkeras.reporting.numbers import batch_size_in_words, headline, rate_in_words, taken_for_granted, undetermined
from sdkeras.reporting.tables import (
    Table,
    attractor_dimension,
    difference_groups,
    layer_rows,
    not_comparable,
    printable,
    sharpest,
    tables,
)
from sdkeras.results.answers import Analysis, LyapunovRun
from sdkeras.results.plans import LyapunovPlan, Plan

_BAR_WIDTH = 12
_MORE = ", more if the tolerance asks for more runs"


def render(run: Analysis | LyapunovRun | Comparison) -> RenderableType:
    """The whole report: verdict first, then the dimension, the warnings and the tables."""
    if isinstance(run, Comparison):
        return _comparison(run)
    first: list[RenderableType] = [Text(printable(line), style=style) for line, style in _verdict(run)]
    if taken_for_granted(run):
        first.append(Text(taken_for_granted(run), style="yellow"))
    if run.partial:
        first.append(Text("Interrupted: what the runs so far say.", style="bold yellow"))
    if not _verified(run):
        first.append(Text("UNVERIFIED: the operator failed its check; do not trust these numbers.", style="bold red"))
    parts: list[RenderableType] = [Panel(Group(*first), title=escape(printable(run.model.name)))]
    for warning in run.warnings:
        parts.append(Text.assemble((f"{printable(warning.code)}: ", "yellow"), printable(warning.message)))
    if isinstance(run, Analysis) and run.layers:
        parts += [Text(""), _layers(run)]
    for table in _without_empty_bounds(run):
        grid = RichTable(title=escape(table.title), title_justify="left", title_style="bold", box=None, pad_edge=False)
        grid.add_column(min_width=22)
        grid.add_column(overflow="fold")
        grid.add_column(style="dim", overflow="fold")
        grid.show_header = False
        for row in table.rows:
            grid.add_row(*(Text(printable(cell)) for cell in row))
        parts += [Text(""), grid]
    return Group(*parts)


def _verdict(run: Analysis | LyapunovRun) -> list[tuple[str, str]]:
    """Lines and their styles."""
    if isinstance(run, LyapunovRun):
        lines = [(trajectory_in_words(run.lyapunov), "bold")]
        if run.lyapunov.dimension.interval is not None:
            value, remark = attractor_dimension(run.lyapunov)
            lines.append((f"Attractor dimension D_s {value} ({remark}).", ""))
        if run.lyapunov.windows:
            lines.append((f"Sharpest dimension over the same steps: {sharpest(run.lyapunov)[0]}.", ""))
        return lines
    lines = [(run.edge_of_stability.verdict, "bold")]
    if run.sharpness_dimension is not None:
        lines.append((f"{headline(run.sharpness_dimension, is_limited(run))}.", ""))
    elif is_limited(run):
        lines.append((f"Sharpness dimension not determined ({undetermined(0, True)}).", ""))
    if run.sharpness_dimension is None or run.sharpness_dimension.interval is None:
        lines += [(f"Known all the same: {known}.", "") for known in [known_in_words(run)] if known]
    if run.supremum is not None:
        lines.append((supremum_headline(run.supremum), ""))
    if run.lyapunov is not None:
        lines.append((trajectory_in_words(run.lyapunov), ""))
    return lines


def _comparison(comparison: Comparison) -> RenderableType:
    """What differs: the settings first, since they say what the numbers may mean; then the numbers by group."""
    a, b = comparison.a, comparison.b
    parts: list[RenderableType] = [Panel(Text(printable(comparison.summary), style="bold"), title="B minus A")]
    for name, side in (("A", a), ("B", b)):
        parts.append(Text(printable(f"{name}: {side.name} ({side.model}, {side.created})"), style="bold"))
        parts.append(Text(printable(f"   {side.verdict}")))
        if not side.verified:
            parts.append(Text(f"   {name} is UNVERIFIED: do not trust its numbers.", style="bold red"))
        if side.partial:
            parts.append(Text(f"   {name} was interrupted.", style="bold yellow"))
    if comparison.identical:
        return Group(*parts)
    if comparison.settings:
        rows = [(each.label, each.a, each.b) for each in comparison.settings]
        parts += [Text(""), _columns("Settings that differ", ("", "A", "B"), rows)]
    for line in not_comparable(comparison):
        parts.append(Text(printable(line), style="bold yellow"))
    for note in comparison.notes:
        parts.append(Text.assemble(("note: ", "yellow"), printable(note)))
    for title, numbers in difference_groups(comparison):
        lines = [(row.label, row.a, row.b, row.verdict) for row in numbers]
        parts += [Text(""), _columns(title, ("", "A", "B", "B minus A"), lines)]
    if comparison.numbers:
        parts += [Text(""), Text(ERRORS_IN_WORDS, style="dim")]
    return Group(*parts)


def _columns(title: str, names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> RenderableType:
    """A table with headed columns under a title, which may be wider; the first column is the row's label."""
    grid = RichTable(box=None, pad_edge=False, header_style="dim")
    for name in names:
        grid.add_column(name, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    return Group(Text(printable(title), style="bold"), grid)


def _verified(run: Analysis | LyapunovRun) -> bool:
    return run.verification.passed and (run.lyapunov is None or run.lyapunov.verification.passed)


def _without_empty_bounds(run: Analysis | LyapunovRun) -> list[Table]:
    """The tables; where no input of a bound is known, a line in place of terms that are all missing."""
    shown = list(tables(run))
    bounds = run.bounds if isinstance(run, Analysis) else ()
    if not bounds or any(term.value is not None for bound in bounds for term in bound.terms):
        return shown
    how = "give inputs: `bound_inputs={'NAME': VALUE}`, `estimate_bound_inputs=True`"
    rows = tuple((bound.theorem, bound.verdict, how) for bound in bounds)
    known = [table for table in shown if table.about not in ("bound", "inputs")]
    known.insert([table.about for table in known].index("assumptions"), Table("bound", "Generalization bounds", rows))
    return known


def _layers(run: Analysis) -> RichTable:
    """Where the sharpness sits: a bar for each layer's largest eigenvalue beside its numbers."""
    grid = RichTable(
        title="Each layer's diagonal block of the Hessian" + (" (interrupted: not all layers)" if run.partial else ""),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    grid.add_column("layer (parameters)", overflow="fold")
    grid.add_column("largest eigenvalue", justify="right")
    grid.add_column("", width=_BAR_WIDTH)
    grid.add_column("trace", justify="right")
    grid.add_column("codimension", overflow="fold")
    for row in layer_rows(run):
        bar = "#" * max(1, round(_BAR_WIDTH * row.eigenvalue_share)) if row.eigenvalue_share else ""
        name = f"{printable(row.name)} ({row.size})"
        cells = (row.eigenvalue, bar, row.trace, row.codimension)
        grid.add_row(Text(name), *map(Text, cells))
    return grid


def render_plan(plan: Plan | LyapunovPlan) -> RenderableType:
    """The plan of an analysis or of a trajectory as a table."""
    grid = RichTable(title="Plan", title_justify="left", title_style="bold", box=None, pad_edge=False)
    grid.add_column(min_width=22)
    grid.add_column()
    grid.show_header = False
    for label, value in (
        *_planned_step(plan),
        *(_planned_trajectory(plan) if isinstance(plan, LyapunovPlan) else _planned_analysis(plan)),
        ("products", _planned_products(plan)),
        ("peak memory", f"about {plan.peak_memory / 1e9:.2f} GB"),
        ("one gradient", f"{1e3 * plan.seconds_per_gradient:.3g} ms"),
        ("time", f"about {plan.seconds:.3g} s" + ("" if isinstance(plan, LyapunovPlan) else _MORE)),
    ):
        grid.add_row(label, value)
    return grid


def _planned_products(plan: Plan | LyapunovPlan) -> str:
    if isinstance(plan, LyapunovPlan):
        return f"about {plan.num_hvps:,}"
    fixed = plan.num_hvps - plan.num_hvps_pilot
    most = "as many as the tolerance asks for"
    if plan.num_hvps_most is not None:
        most = f"{max(plan.num_hvps_pilot, plan.num_hvps_most - fixed):,}, as the tolerance asks"
    return f"about {plan.num_hvps:,}: {fixed:,}, and for the runs {plan.num_hvps_pilot:,} to {most}"


def _planned_step(plan: Plan | LyapunovPlan) -> list[tuple[str, str]]:
    rows = []
    if plan.optimizer is not None:
        rows.append(("optimizer", f"{printable(plan.optimizer.name)}, {rate_in_words(plan.optimizer)}"))
        if plan.optimizer.learning_rate_missing:
            rows.append(("not computed", f"what needs a learning rate: {plan.optimizer.learning_rate_missing}"))
    if plan.data is not None:
        rows.append(("minibatches", batch_size_in_words(plan.data.batch_size, plan.data.batch_size_source)))
    return rows


def _planned_analysis(plan: Plan) -> list[tuple[str, str]]:
    steps = "" if plan.num_steps is None else f" of {plan.num_steps} steps"
    return [
        ("parameters analysed", f"{plan.num_parameters:,}"),
        ("state of the map", f"{plan.state_size:,} ({plan.map})"),
        ("data-set Hessian", f"{plan.num_batches:,} batches"),
        ("runs to start with", f"{plan.num_runs:,}{steps}"),
        *_snapshots(plan),
    ]


def _planned_trajectory(plan: LyapunovPlan) -> list[tuple[str, str]]:
    lengths = ", ".join(map(str, plan.windows))
    dense = [("windows", f"of {lengths} steps, from dense Jacobians")] if plan.windows else []
    slots = plan.state_size - plan.num_parameters
    return [
        ("state", f"{plan.state_size:,} ({plan.num_parameters:,} weights, {slots:,} of the optimizer)"),
        ("exponents", f"{plan.num_exponents:,}"),
        ("steps", f"{plan.num_steps:,} after {plan.transient:,}"),
        *dense,
    ]


def _snapshots(plan: Plan) -> list[tuple[str, str]]:
    if plan.num_snapshots is None or plan.every is None:
        return []
    steps = (plan.num_snapshots - 1) * plan.every
    return [("supremum", f"over {plan.num_snapshots:,} snapshots, {plan.every:,} steps apart ({steps:,} steps)")]


def as_text(run: Analysis | LyapunovRun | Comparison, width: int = 100) -> str:
    """The report as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(render(run))
    text = console.file.getvalue() if isinstance(console.file, io.StringIO) else ""
    return text.rstrip("\n")
