"""The report of an analysis."""

from __future__ import annotations

import math
from typing import Literal

from sdkeras.dimension.exponents import FULL
from sdkeras.dimension.stability import BATCH_SHARPNESS_ERROR
from sdkeras.errors import counted
from sdkeras.reporting import words
from sdkeras.reporting.build_lyapunov import trajectory_section
from sdkeras.reporting.numbers import (
    bar_lengths,
    dimension,
    estimated,
    interval,
    measured,
    number,
    root_ratio,
    taken_for_granted,
    undetermined,
)
from sdkeras.reporting.numbers import (
    headline as dimension_headline,
)
from sdkeras.reporting.report import Card, Cell, Gauge, Paragraph, Report, Section, Table, present, split
from sdkeras.reporting.spectrum_figures import spectrum_figures, supremum_figure
from sdkeras.reporting.tables import (
    footer,
    optimizer_in_words,
    provenance_table,
    setting_in_words,
    sharpness_name,
    verification_table,
)
from sdkeras.results.answers import Analysis
from sdkeras.results.bounds import BoundInput
from sdkeras.results.dimension import EdgeOfStability, RdsSharpness, SharpnessDimension, Supremum
from sdkeras.results.measured import Measured

_MOST_SNAPSHOTS = 12
_NOT_ESTIMATED = "not estimated"


def analysis_report(run: Analysis) -> Report:
    """Report of an analysis."""
    alarms = []
    if not run.verification.passed or (run.lyapunov is not None and not run.lyapunov.verification.passed):
        alarms.append("UNVERIFIED: the operator failed its check; do not trust these numbers.")
    if run.partial:
        alarms.append("Interrupted: only the runs so far are in these numbers.")
    headline, detail = split(run.edge_of_stability.verdict)
    return Report(
        name=run.model.name,
        about=setting_in_words(run),
        eyebrow="What kind of place training has found",
        headline=headline,
        detail=detail,
        lines=_lines(run),
        assumed=taken_for_granted(run),
        alarms=tuple(alarms),
        gauge=_gauge(run.edge_of_stability),
        cards=_cards(run),
        paragraphs=_paragraphs(run),
        notes=run.warnings,
        sections=_sections(run),
        footer=footer(run),
        formulas=True,
    )


def _lines(run: Analysis) -> tuple[str, ...]:
    estimate, limited = run.sharpness_dimension, words.is_limited(run)
    lines = [run.edge_of_stability.verdict]
    if estimate is not None:
        lines.append(f"{dimension_headline(estimate, limited)}.")
    elif limited:
        lines.append(f"Sharpness dimension not determined ({undetermined(0, True)}).")
    known = words.known_in_words(run)
    if known and (estimate is None or estimate.interval is None):
        lines.append(f"Still known: {known}.")
    if run.supremum is not None:
        lines.append(words.supremum_headline(run.supremum))
    if run.lyapunov is not None:
        lines.append(words.trajectory_in_words(run.lyapunov))
    return tuple(lines)


def _gauge(edge: EdgeOfStability) -> Gauge | None:
    if edge.ratio is None or math.isnan(edge.ratio):
        return None
    name = sharpness_name(edge.operator)
    return Gauge(
        edge.ratio,
        number(edge.ratio, 3),
        f"{name.capitalize()} {number(edge.sharpness)} over the optimizer's stability threshold "
        f"{number(edge.threshold)}. Left of the edge steps settle, right of it they overshoot.",
    )


def _paragraphs(run: Analysis) -> tuple[Paragraph, ...]:
    about_dimension = words.dimension_in_words(run)
    trusted = run.verification.passed
    return (
        Paragraph("The edge of stability", words.edge_in_words(run.edge_of_stability)),
        *([Paragraph("The sharpness dimension", about_dimension)] if about_dimension else []),
        Paragraph(
            "✓ Verified" if trusted else "✗ Not verified",
            words.trust_in_words(run),
            "verified" if trusted else "failed",
        ),
    )


def _cards(run: Analysis) -> tuple[Card, ...]:
    """The main numbers; without an interval of the dimension, what else is known: no number without its evidence."""
    estimate, hessian, edge = run.sharpness_dimension, run.hessian, run.edge_of_stability
    limited = words.is_limited(run)
    unknown = estimate is not None or limited
    if estimate is not None and estimate.interval is not None:
        return _dimension_cards(run, estimate)
    cards = []
    if unknown:
        why = undetermined(0 if estimate is None else estimate.num_runs, limited)
        meaning = "a value without an interval says nothing"
        cards.append(Card("Sharpness dimension", "not determined", why, meaning))
    if hessian.largest is not None:
        steepest = "the steepest curvature of the loss: the largest eigenvalue of the Hessian"
        cards.append(Card("Sharpness", *measured(hessian.largest), steepest))
    if hessian.trace is not None:
        total = "sum of the Hessian's eigenvalues: all curvature together"
        cards.append(Card("Trace", *measured(hessian.trace), total))
    if unknown and edge.batch_sharpness is not None and edge.batch_sharpness_stderr is not None:
        evidence = f"± {edge.batch_sharpness_stderr:.2g}"
        along = "curvature along a minibatch's own gradient"
        cards.append(Card("Batch sharpness", number(edge.batch_sharpness), evidence, along))
    return (*cards, *(() if unknown else _leading_exponent(run.rds_sharpness)))


def _dimension_cards(run: Analysis, estimate: SharpnessDimension) -> tuple[Card, ...]:
    samples = run.data.num_samples
    value, _, span = estimated(estimate.value, estimate.interval).partition(" ")
    codimension = estimated(estimate.codimension, estimate.codimension_interval).partition(" ")
    remark = "; neutral directions do not change it"
    if estimate.frozen_lyapunov is not None:
        remark = ", the velocity's share in it"
    return (
        Card(
            "Sharpness dimension",
            value,
            f"{span} of {estimate.state_size:,}",
            "largest dimension whose volumes steps do not contract on average",
        ),
        Card(
            "Codimension",
            codimension[0],
            codimension[2],
            f"the rest of the state{remark}",
        ),
        *_leading_exponent(run.rds_sharpness),
        Card(
            "√(SD/n)",
            number(root_ratio(estimate.value, samples)),
            f"n = {samples:,} samples",
            "compares runs on the same data; the bounds grow with it",
        ),
    )


def _leading_exponent(rds: RdsSharpness | None) -> tuple[Card, ...]:
    if rds is None or not len(rds.leading):
        return ()
    meaning = "the fastest stretching of distances, as a logarithm; 0 is neutral"
    return (Card("RDS sharpness λ₁", number(float(rds.leading[0]), 3), "per step", meaning),)


def _sections(run: Analysis) -> tuple[Section, ...]:
    sections = []
    figures = present(*spectrum_figures(run))
    if figures:
        sections.append(Section("Plots", "plots", "Plots", figures=figures))
    if run.layers:
        interrupted = " Interrupted: not all layers are here." if run.partial else ""
        lede = "The diagonal block of each layer's parameters in the Hessian, as if the other layers stood still."
        sections.append(
            Section("Where the sharpness sits", "layers", "Layers", lede + interrupted, tables=(_layers(run),))
        )
    if run.supremum is not None:
        sections.append(
            Section(
                "The supremum over snapshots",
                "snapshots",
                "Snapshots",
                words.supremum_in_words(run.supremum),
                figures=present(supremum_figure(run.supremum)),
                tables=(_supremum(run.supremum),),
            )
        )
    if run.lyapunov is not None:
        sections.append(trajectory_section(run.lyapunov))
    sections.append(
        Section(
            "Every number, with its evidence",
            "numbers",
            "Numbers",
            "Eigenvalues come with their residual, traces with their standard error, dimensions with a 95 % interval.",
            tables=(
                _hessian(run),
                _edge(run),
                *(_dimension(estimate, run.data.num_samples) for estimate in run.estimates),
                *([] if run.rds_sharpness is None else [_exponents(run.rds_sharpness)]),
            ),
        )
    )
    if run.bounds:
        sections.append(
            Section(
                "Bounds on the generalization gap",
                "bounds",
                "Bounds",
                "Term by term. A bound above the range of the loss says nothing (vacuous); one with missing terms "
                f"cannot be judged (undetermined). {words.BOUND_INPUTS}",
                tables=_bounds(run),
            )
        )
    tables = verification_table(run), provenance_table(run)
    return (*sections, Section("What they rest on", "verification", "Verification", tables=tables))


def _layers(run: Analysis) -> Table:
    """Where the sharpness sits: bars of each layer's largest eigenvalue and trace beside the numbers."""
    eigenvalues = bar_lengths([None if layer.largest is None else layer.largest.value for layer in run.layers])
    traces = bar_lengths([None if layer.trace is None else layer.trace.value for layer in run.layers])
    rows = []
    for layer, eigenvalue, trace in zip(run.layers, eigenvalues, traces, strict=True):
        value, evidence = measured(layer.largest)
        rows.append(
            (
                f"{layer.name} ({layer.num_parameters:,})",
                Cell(value, remark=evidence, share=eigenvalue),
                Cell(_with_stderr(layer.trace), "soft", share=trace),
                _NOT_ESTIMATED
                if layer.codimension is None
                else estimated(layer.codimension, layer.codimension_interval),
            )
        )
    return Table(
        "Each layer's diagonal block of the Hessian" + (" (interrupted: not all layers)" if run.partial else ""),
        tuple(rows),
        ("layer (parameters)", "largest eigenvalue", "trace", "codimension"),
    )


def _with_stderr(value: Measured | None) -> str:
    if value is None:
        return _NOT_ESTIMATED
    return number(value.value) + ("" if value.stderr is None else f" ± {value.stderr:.2g}")


def _hessian(run: Analysis) -> Table:
    hessian = run.hessian
    rows = [("largest eigenvalue", *measured(hessian.largest)), ("smallest eigenvalue", *measured(hessian.smallest))]
    if hessian.steepest_is_negative and hessian.largest_absolute is not None:
        value, evidence = measured(hessian.largest_absolute)
        meaning = "the smallest eigenvalue's; the sharpness in the paper's tables"
        rows.append(("largest in absolute value", value, f"{evidence}; {meaning}"))
    rows.append(("trace", *measured(hessian.trace)))
    if run.edge_of_stability.operator != "H":
        rows += _batch_sharpness(run.edge_of_stability)
    return Table(f"Hessian of the loss over {run.data.num_samples_hessian:,} samples", tuple(rows))


def _edge(run: Analysis) -> Table:
    edge = run.edge_of_stability
    largest = f"algebraically largest eigenvalue of {edge.operator}"
    rows = [
        (sharpness_name(edge.operator), number(edge.sharpness), largest),
        ("threshold", number(edge.threshold), optimizer_in_words(run)),
        ("ratio", number(edge.ratio, 3), "1 is the edge"),
    ]
    if edge.operator == "H":  # the threshold of another operator says nothing about it
        rows += _batch_sharpness(edge)
    return Table("Edge of stability", tuple(rows))


def _batch_sharpness(edge: EdgeOfStability) -> list[tuple[str, str, str]]:
    """Both forms with their standard errors, and whether these met the target."""
    count = edge.batch_sharpness_minibatches
    over = "over minibatches" if count is None else f"over {counted(count, 'minibatch', 'minibatches')}"
    forms = [("batch sharpness", edge.batch_sharpness, edge.batch_sharpness_stderr, f"mean of g'Hg/|g|² {over}, of H")]
    if edge.batch_sharpness_ratio_of_means is not None:
        quotient, error = edge.batch_sharpness_ratio_of_means, edge.batch_sharpness_ratio_of_means_stderr
        forms.append(("ratio of means", quotient, error, "mean of g'Hg over mean of |g|²"))
    rows = []
    for label, value, error, meaning in forms:
        shown = number(value) if error is None else f"{number(value)} ± {error:.2g}"
        rows.append((label, shown, meaning + (_relative_error(value, error) if count else "")))
    if edge.batch_sharpness_skipped:
        rows.append(("skipped", f"{edge.batch_sharpness_skipped:.2%}", "minibatches whose gradient is 0"))
    return rows


def _relative_error(value: float | None, error: float | None) -> str:
    if not value or error is None:
        return ""
    relative = error / abs(value)
    met = "met" if relative <= BATCH_SHARPNESS_ERROR else "not met"
    return f"; standard error {100 * relative:.3g} %, aim of {100 * BATCH_SHARPNESS_ERROR:g} % {met}"


def _dimension(estimate: SharpnessDimension, num_samples: int) -> Table:
    steps = "" if estimate.num_steps is None else f" of {estimate.num_steps} steps"
    exact = estimate.definition_value
    definition = (
        ("definition's value in", interval(estimate.definition_interval), "Def. 4.1, bracketed")
        if exact is None
        else (
            "definition's value",
            estimated(exact, estimate.definition_interval),
            "Def. 4.1, average of order statistics",
        )
    )
    negative, unstable = estimate.expansion_negative_curvature, estimate.expansion_unstable
    expansion = f"{number(negative, 3)} negative curvature, {number(unstable, 3)} unstable"
    if estimate.map == FULL:
        expansion = "a singular value does not identify the curvature it comes from"
    frozen_rows = []
    if estimate.frozen_lyapunov is not None:
        frozen = estimate.frozen_lyapunov
        expansion += f", {number(estimate.expansion - negative - unstable, 3)} transient"
        leading = f"SD's formula on ln |μ|, as if every step were the same; leading {number(frozen.leading, 3)}"
        frozen_rows.append(("frozen Lyapunov", dimension(frozen.dimension), leading))
    step_map = "full (the optimizer's whole step)" if estimate.map == FULL else estimate.map
    margin = "infinite" if estimate.neutral_mass == 0 else number(estimate.margin, 3)
    rows = (
        ("pooled value", estimated(estimate.value, estimate.interval), "95 % interval; SD of the mixture"),
        ("codimension", estimated(estimate.codimension, estimate.codimension_interval), f"d = {estimate.state_size:,}"),
        definition,
        ("j*", dimension(estimate.j_star), f"threshold exponent {number(estimate.threshold_exponent, 3)}"),
        ("E+ (sum of z > 0)", number(estimate.expansion), expansion),
        ("neutral directions", dimension(estimate.neutral_mass), f"margin {margin}"),
        ("map", step_map, f"coordinates: {estimate.coordinates}"),
        *frozen_rows,
        ("cost", f"{estimate.num_runs:,} runs{steps}", f"{estimate.num_hvps:,} Hessian-vector products (HVPs)"),
        *_settings(estimate),
        ("sqrt(SD/n)", number(root_ratio(estimate.value, num_samples)), "to compare runs by, on the same data"),
    )
    return Table(f"Sharpness dimension ({estimate.estimator})", rows)


def _settings(estimate: SharpnessDimension) -> list[tuple[str, str, str]]:
    """The fields of an estimator with a scale of its own, on which its value depends."""
    if "learning_rate" not in estimate.settings:
        return []
    values = [
        f"{name} {value:g}"
        for name, value in estimate.settings.items()
        if isinstance(value, (int, float)) and name not in ("num_steps", "reorthogonalize", "learning_rate")
    ]
    return [("settings", ", ".join(values), f"of {estimate.estimator}")]


def _supremum(supremum: Supremum) -> Table:
    """The supremum beside each snapshot's own value; snapshots in the middle of many are left to the figure."""
    each = list(zip(supremum.steps, supremum.per_snapshot_values, supremum.learning_rates, strict=True))
    shown = each if len(each) <= _MOST_SNAPSHOTS else [*each[: _MOST_SNAPSHOTS - 1], each[-1]]
    kind = "approximate, from quadrature" if supremum.approximate else "from exact spectra"
    planned = supremum.num_snapshots_asked
    of = "" if supremum.num_snapshots == planned else f" of {planned:,}"
    stopped = supremum.stopped_at
    rows = (
        ("supremum", estimated(supremum.value, supremum.interval), f"95 % interval over minibatches; {kind}"),
        ("codimension", dimension(supremum.codimension), f"d = {supremum.state_size:,}"),
        *(
            (
                "checkpoint alone" if step == 0 else f"after {step:,} steps",
                dimension(float(value)),
                f"learning rate {rate:.4g}",
            )
            for step, value, rate in shown
        ),
        ("snapshots", f"{supremum.num_snapshots:,}{of}", f"{supremum.every:,} steps apart"),
        *([] if stopped is None else [("stopped", f"at step {stopped:,}", "the trajectory diverged")]),
        ("map", supremum.map, f"coordinates: {supremum.coordinates}"),
        (
            "cost",
            f"{supremum.num_minibatches:,} minibatches",
            f"{supremum.num_hvps:,} more HVPs ({supremum.estimator})",
        ),
    )
    return Table("Supremum over snapshots (Def. 4.1)", rows)


def _exponents(rds: RdsSharpness) -> Table:
    leading = ", ".join(f"{value:.4g}" for value in rds.leading[:6])
    last = rds.values[-1] if len(rds.values) else None
    return Table(
        "RDS sharpness exponents (per step)",
        (("lambda_1 ...", leading, "leading"), ("lambda_d", number(last), "last")),
    )


def _bounds(run: Analysis) -> tuple[Table, ...]:
    """The terms of each bound; then all inputs and all assumptions, once.

    Where no input of a bound is known the terminal has a line for each bound in place of terms that are all missing.
    """
    known = any(term.value is not None for bound in run.bounds for term in bound.terms)
    tables = []
    if not known:
        rows = tuple((bound.theorem, bound.verdict, words.BOUND_INPUTS) for bound in run.bounds)
        tables.append(Table("Generalization bounds", rows, only="terminal"))
    for bound in run.bounds:
        terms = [
            (term.formula, number(term.value), "" if term.value is not None else "an input is missing")
            for term in bound.terms
        ]
        rows = (
            *terms,
            ("dimension", bound.dimension_name, bound.dimension_reason),
            ("sum of the known terms", number(bound.partial_sum), "the bound is at least this"),
            ("bound", number(bound.total), bound.verdict),
        )
        title = f"Generalization bound, {bound.theorem}: {bound.verdict}"
        tables.append(Table(title, rows, only="" if known else "page"))
    inputs = {entry.name: _input(entry) for bound in run.bounds for entry in bound.inputs}
    assumed = {
        each.name: (each.name, Cell(each.status, each.status.split(" ")[0]), each.remark)
        for bound in run.bounds
        for each in bound.assumptions
    }
    if inputs:
        only: Literal["", "page"] = "" if known else "page"
        tables.append(Table("Inputs of the bounds", tuple(inputs.values()), only=only, folded=True))
    if assumed:
        tables.append(Table("Assumptions of the bounds", tuple(assumed.values()), folded=True))
    return tuple(tables)


def _input(entry: BoundInput) -> tuple[str, str, str]:
    source = "missing" if entry.value is None else "estimated, a lower bound" if entry.estimated else "given"
    return entry.name, number(entry.value), f"{entry.symbol}: {entry.meaning}; {source}"
