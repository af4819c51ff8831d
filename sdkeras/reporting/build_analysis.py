"""The report of an analysis."""

from __future__ import annotations

import math
from typing import Literal

import attrs

from sdkeras.dimension.exponents import FULL
from sdkeras.dimension.noise_limit import NoiseLimit, noise_limit
from sdkeras.errors import counted
from sdkeras.reporting import words
from sdkeras.reporting.build_lyapunov import trajectory_section
from sdkeras.reporting.build_operators import operators_section
from sdkeras.reporting.figures import analysis_figures, supremum_figure
from sdkeras.reporting.numbers import (
    bar_lengths,
    dimension,
    estimated,
    headline,
    interval,
    measured,
    number,
    root_ratio,
    share_of_state,
    undetermined,
    with_error,
)
from sdkeras.reporting.report import Card, Cell, Gauge, Paragraph, Report, Row, Section, Table, plots, present
from sdkeras.reporting.tables import frame, optimizer_in_words, provenance_table, sharpness_name, verification_table
from sdkeras.results.answers import Analysis, AtInit, Draws
from sdkeras.results.bounds import Bound, BoundInput
from sdkeras.results.dimension import (
    EdgeOfStability,
    GradientNoise,
    MeanSquareStability,
    Plateau,
    RdsSharpness,
    Sampled,
    SharpnessDimension,
    Supremum,
)
from sdkeras.results.earlier import Earlier
from sdkeras.results.measured import Measured

_MOST_SNAPSHOTS = 12
_NOT_ESTIMATED = "not estimated"
_HEADROOM = "of the learning rate before full-batch steps overshoot here; the noise of minibatches can lower it"


# The caveat that a next step says with what to do about it.
_SAID_BY = {"narrower-interval": "wide-interval"}


def analysis_report(run: Analysis) -> Report:
    """Report of an analysis."""
    report = frame(run, run.edge_of_stability.verdict, "operator", "runs")
    said = {_SAID_BY.get(step.code) for step in run.next_steps}
    return attrs.evolve(
        report,
        eyebrow="What kind of place training has found",
        notes=tuple(note for note in report.notes if note.code not in said),
        lines=_lines(run),
        gauge=_gauge(run.edge_of_stability),
        cards=_cards(run),
        paragraphs=_paragraphs(run),
        next_steps=run.next_steps,
        sections=_sections(run),
        formulas=True,
    )


def _lines(run: Analysis) -> tuple[str, ...]:
    estimate, limited, known = run.sharpness_dimension, words.is_limited(run), words.known_in_words(run)
    not_determined = f"Sharpness dimension not determined ({undetermined(0, True)})." if limited else None
    return present(
        run.edge_of_stability.verdict,
        not_determined if estimate is None else f"{headline(estimate, limited)}.",
        f"Still known: {known}." if known and (estimate is None or estimate.interval is None) else None,
        words.since_then(run),
        None if run.supremum is None else words.supremum_headline(run.supremum),
        None if run.lyapunov is None else words.trajectory_in_words(run.lyapunov),
    )


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
    verified = ("✓ Verified", "verified") if run.verification.passed else ("✗ Not verified", "failed")
    return present(
        Paragraph("The edge of stability", words.edge_in_words(run.edge_of_stability, _noise(run))),
        Paragraph("The sharpness dimension", about_dimension) if about_dimension else None,
        Paragraph(verified[0], words.trust_in_words(run), verified[1]),
    )


def _cards(run: Analysis) -> tuple[Card, ...]:
    """The main numbers; without an interval of the dimension, what else is known: no number without its evidence."""
    estimate, hessian, edge = run.sharpness_dimension, run.hessian, run.edge_of_stability
    limited = words.is_limited(run)
    if estimate is not None and estimate.interval is not None:
        return _dimension_cards(run, estimate)
    asked, batch = estimate is not None or limited, None
    why = undetermined(0 if estimate is None else estimate.num_runs, limited)
    steepest = "the steepest curvature of the loss: the largest eigenvalue of the Hessian"
    total = "sum of the Hessian's eigenvalues: all curvature together"
    if asked and edge.batch_sharpness is not None and edge.batch_sharpness_stderr is not None:
        along = "curvature along a minibatch's own gradient"
        value = with_error(edge.batch_sharpness, edge.batch_sharpness_stderr)
        batch = Card("Batch sharpness", *_parted(value), along)
    return present(
        *_edge_cards(run),
        Card("Sharpness dimension", "not determined", why, "a value without an interval says nothing")
        if asked
        else None,
        None if hessian.largest is None else Card("Sharpness", *measured(hessian.largest), steepest),
        None
        if hessian.trace is None
        else Card("Trace", *_parted(with_error(hessian.trace.value, hessian.trace.stderr)), total),
        batch,
        None if asked else _leading_exponent(run.rds_sharpness),
    )


def _parted(text: str) -> tuple[str, str]:
    """A number and its error, "± ..." or "[...]"."""
    value, _, evidence = text.partition(" ")
    return value, evidence


def _dimension_cards(run: Analysis, estimate: SharpnessDimension) -> tuple[Card, ...]:
    value, span = _parted(estimated(estimate.value, estimate.interval))
    codimension = estimated(estimate.codimension, estimate.codimension_interval)
    largest = "largest dimension whose volumes steps do not contract on average"
    rest = words.CODIMENSION
    if estimate.frozen_lyapunov is not None:
        rest = "what SD leaves of the state; with momentum about half of it even where the loss is flat"
    return present(
        *_edge_cards(run),
        Card("Codimension", share_of_state(estimate), codimension, rest),
        Card("Sharpness dimension", value, f"{span} of {estimate.state_size:,}", largest),
    )


def _edge_cards(run: Analysis) -> tuple[Card, ...]:
    """The sharpness on the scale of its threshold, and what that leaves of the learning rate."""
    edge, rate, headroom = run.edge_of_stability, run.optimizer.learning_rate, None
    if edge.ratio is None or math.isnan(edge.ratio):
        return ()
    name = f"{sharpness_name(edge.operator).capitalize()} / threshold"
    evidence = f"{number(edge.sharpness)} / {number(edge.threshold)}"
    if 0 < edge.ratio < math.inf and rate > 0:
        share, meaning, limit = edge.ratio, _HEADROOM, _noise(run)
        alone = f"full-batch steps alone: {_times(1 / edge.ratio)}"
        if limit is not None:
            share, meaning = limit.share[1], f"before {limit.event}; {alone}"
        headroom = Card("Headroom", _times(1 / share), f"learning rate up to about {number(rate / share, 2)}", meaning)
        if limit is not None and limit.between:
            headroom = Card("Headroom", "not known", alone, limit.reason)
    return present(Card(name, number(edge.ratio, 3), evidence, "1 is the edge of stability"), headroom)


def _noise(run: Analysis) -> NoiseLimit | None:
    """The limit of minibatch noise; None where full-batch steps grow first."""
    limit, ratio = noise_limit(run), run.edge_of_stability.ratio
    return None if limit is None or ratio is None or not limit.share[1] > ratio else limit


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if 10 <= factor < 1e6 else f"{number(factor, 2)} times"


def _leading_exponent(rds: RdsSharpness | None) -> Card | None:
    if rds is None or not len(rds.leading):
        return None
    meaning = "the fastest stretching of distances, as a logarithm; 0 is neutral"
    return Card("RDS sharpness λ₁", number(float(rds.leading[0]), 3), "per step", meaning)


def _sections(run: Analysis) -> tuple[Section, ...]:
    blocks = "The diagonal block of each layer's parameters in the Hessian, as if the other layers stood still."
    if run.partial:
        blocks += " Interrupted: not all layers are here."
    evidence = (
        "The residual of an eigenvalue bounds its error; ± is one standard error; brackets are 95 % intervals unless "
        "they say something else."
    )
    vacuous = (
        "Term by term. A bound above the range of the loss says nothing (vacuous); one with missing terms cannot be "
        f"judged (undetermined). {words.BOUND_INPUTS}"
    )
    numbers = present(
        _hessian(run),
        _edge(run),
        *(_dimension(estimate, run.data.num_samples) for estimate in run.estimates),
        *(_then(run, each) for each in (run.at_init, run.earlier) if each is not None),
        None if run.rds_sharpness is None else _exponents(run.rds_sharpness),
    )
    checks = (verification_table(run), provenance_table(run))
    return present(
        plots(analysis_figures(run)),
        Section("Where the sharpness sits", "layers", "Layers", blocks, tables=(_layers(run),)) if run.layers else None,
        None if run.supremum is None else _snapshots(run.supremum),
        None if run.lyapunov is None else trajectory_section(run.lyapunov),
        Section("Every number, with its evidence", "numbers", "Numbers", evidence, tables=numbers),
        operators_section(run),
        Section("Bounds on the generalization gap", "bounds", "Bounds", vacuous, tables=_bounds(run))
        if run.bounds
        else None,
        Section("What they rest on", "verification", "Verification", tables=checks),
    )


def _snapshots(supremum: Supremum) -> Section:
    lede, figures = words.supremum_in_words(supremum), present(supremum_figure(supremum))
    table = _supremum(supremum)
    return Section("The supremum over snapshots", "snapshots", "Snapshots", lede, figures=figures, tables=(table,))


def _layers(run: Analysis) -> Table:
    """Where the sharpness sits: bars of each layer's largest eigenvalue and trace beside the numbers."""
    eigenvalues = bar_lengths([None if layer.largest is None else layer.largest.value for layer in run.layers])
    traces = bar_lengths([None if layer.trace is None else layer.trace.value for layer in run.layers])
    rows = []
    for layer, eigenvalue, trace in zip(run.layers, eigenvalues, traces, strict=True):
        value, evidence = measured(layer.largest)
        total = _NOT_ESTIMATED if layer.trace is None else with_error(layer.trace.value, layer.trace.stderr)
        codimension = _NOT_ESTIMATED
        if layer.codimension is not None:
            codimension = estimated(layer.codimension, layer.codimension_interval)
        if layer.largest is not None and not layer.largest.converged:
            value, evidence = f"{value} (not converged)", evidence.removesuffix(", not converged")
        name = f"{layer.name} ({layer.num_parameters:,})"
        rows.append(
            (name, Cell(value, remark=evidence, share=eigenvalue), Cell(total, "soft", share=trace), codimension)
        )
    title = "Each layer's diagonal block of the Hessian" + (" (interrupted: not all layers)" if run.partial else "")
    return Table(title, tuple(rows), ("layer (parameters)", "largest eigenvalue", "trace", "codimension"))


def _hessian(run: Analysis) -> Table:
    hessian, absolute = run.hessian, None
    if hessian.steepest_is_negative and hessian.largest_absolute is not None:
        value, evidence = measured(hessian.largest_absolute)
        meaning = "the smallest eigenvalue's; the sharpness in the paper's tables"
        absolute = ("largest in absolute value", value, f"{evidence}; {meaning}")
    rows = present(
        ("largest eigenvalue", *measured(hessian.largest)),
        ("smallest eigenvalue", *measured(hessian.smallest)),
        absolute,
        ("trace", *measured(hessian.trace)),
        None if run.data.draws is None else _draws(run.data.draws),
        *(() if run.edge_of_stability.operator == "H" else _batch_sharpness(run.edge_of_stability)),
    )
    return Table(f"Hessian of the loss over {run.data.num_samples_hessian:,} samples", rows)


def _draws(draws: Draws) -> Row:
    """The largest eigenvalue of each draw, of whose mean the other numbers are."""
    of = "passes over the data" if draws.of == "passes" else "draws of the masks"
    spread = f"standard deviation {number(draws.spread, 3)}"
    return f"largest of {draws.count} draws", ", ".join(map(number, draws.largest)), f"{of}, each alone; {spread}"


def _edge(run: Analysis) -> Table:
    edge = run.edge_of_stability
    largest = f"algebraically largest eigenvalue of {edge.operator}"
    if edge.operator != "H" and edge.sharpness_residual is not None:  # that of H is in the table of the Hessian
        _, evidence = measured(Measured(math.nan, edge.sharpness_converged, residual=edge.sharpness_residual))
        largest += f", {evidence}"
    rows = (
        (sharpness_name(edge.operator), number(edge.sharpness), largest),
        ("threshold", number(edge.threshold), optimizer_in_words(run)),
        ("ratio", number(edge.ratio, 3), "1 is the edge"),
        # The threshold of another operator says nothing about it.
        *(_batch_sharpness(edge) if edge.operator == "H" else ()),
        *_mean_square_stability(edge.mean_square_stability),
        *_gradient_noise(edge.gradient_noise),
    )
    return Table("Edge of stability", rows, brief=4)


def _mean_square_stability(stability: MeanSquareStability | None) -> tuple[Row, ...]:
    """Kappa with its interval, and the learning rate at which noise destabilises; or why there is none."""
    if stability is None:
        return ()
    name, found, rate = "mean-square stability", stability.kappa, stability.max_learning_rate
    if found is None or rate is None:
        return ((name, _NOT_ESTIMATED, stability.reason),)
    where = f"within {stability.num_directions} directions, from {stability.num_minibatches} minibatches"
    ends = [number(end, 3) for end in found.interval or ()]
    span = f", 95 % interval {' to '.join(ends)}" if ends else ""
    highest = "above it the noise of minibatches makes SGD unstable; kappa is a lower bound, so perhaps below it too"
    return (
        (name, number(found.value, 3), f"kappa{span}; above 1 the noise of minibatches makes SGD unstable; {where}"),
        ("largest stable learning rate by noise", number(rate, 3), highest),
    )


def _gradient_noise(noise: GradientNoise | None) -> tuple[Row, ...]:
    if noise is None:
        return ()
    mean, deviation, share = noise.mean, noise.deviation, noise.share
    along = f"u'g has mean {with_error(mean.value, mean.stderr)} and standard deviation"
    return (
        (
            "gradient noise on the top eigenvector",
            with_error(share.value, share.stderr),
            f"share along u of the minibatch gradients' variance, tr Cov(g); {along} "
            f"{with_error(deviation.value, deviation.stderr)}",
        ),
    )


def _batch_sharpness(edge: EdgeOfStability) -> tuple[Row, ...]:
    """Both forms with their standard errors, and whether that of the mean met its target, where this is known."""
    count, skipped = edge.batch_sharpness_minibatches, edge.batch_sharpness_skipped
    over = "over minibatches" if count is None else f"over {counted(count, 'minibatch', 'minibatches')}"

    def form(label: str, value: float | None, error: float | None, meaning: str, target: float | None = None) -> Row:
        if count and value and error is not None:
            relative = error / abs(value)
            meaning += f"; standard error {100 * relative:.3g} %"
            if target is not None:
                meaning += f", target {100 * target:g} % {'met' if relative <= target else 'not met'}"
        return label, with_error(value, error), meaning

    mean = edge.batch_sharpness, edge.batch_sharpness_stderr, f"mean of g'Hg/|g|² {over} (gradient g, Hessian H)"
    quotient = edge.batch_sharpness_ratio_of_means, edge.batch_sharpness_ratio_of_means_stderr
    return present(
        form("batch sharpness", *mean, edge.batch_sharpness_target),
        None if quotient[0] is None else form("ratio of means", *quotient, "mean of g'Hg over mean of |g|²"),
        *(_plateau(edge.batch_sharpness, plateau) for plateau in edge.plateaus if edge.batch_sharpness is not None),
        ("skipped", f"{skipped:.2%}", "minibatches whose gradient is 0") if skipped else None,
    )


def _plateau(batch_sharpness: float, plateau: Plateau) -> Row:
    """A level at which the batch sharpness settles, and its share of it."""
    where = "" if plateau.minibatches == "any" else f" in {plateau.minibatches} minibatches"
    share = f"batch sharpness is {batch_sharpness / plateau.level:.2g} times {plateau.formula}"
    return f"settles{where} at", number(plateau.level), f"{share}, as reported"


def _dimension(estimate: SharpnessDimension, num_samples: int) -> Table:
    bracket, exact = estimate.definition_interval, estimate.definition_value
    definition = ("definition's value", interval(bracket), "Def. 4.1, which lies in here")
    if exact is not None:
        definition = ("definition's value", estimated(exact, bracket), "Def. 4.1, exponents averaged rank by rank")
    negative, unstable = estimate.expansion_negative_curvature, estimate.expansion_unstable
    by = f"{number(negative, 3)} by negative curvature, {number(unstable, 3)} by overshooting"
    expansion = f"sum of the positive exponents: {by}"
    leading = ""
    step_map, frozen = estimate.map, estimate.frozen_lyapunov
    if estimate.map == FULL:
        expansion = "a singular value does not identify the curvature it comes from"
        step_map = "full (the optimizer's whole step)"
    if frozen is not None:
        expansion += f", {number(estimate.expansion - negative - unstable, 3)} for a step or two by momentum"
        leading = (
            "SD if every step were this same one: by ln |μ|, μ the eigenvalues of the step; the largest is "
            f"{number(frozen.leading, 3)}"
        )
    threshold = number(estimate.threshold_exponent, 3)
    margin = "infinite" if estimate.neutral_mass == 0 else number(estimate.margin, 3)
    settings = ", ".join(
        f"{name} {value:g}"
        for name, value in estimate.settings.items()
        if isinstance(value, (int, float)) and name not in ("num_steps", "reorthogonalize", "learning_rate")
    )
    rows = present(
        (
            "pooled value",
            estimated(estimate.value, estimate.interval),
            "95 % interval; minibatches pooled",
        ),
        ("codimension", estimated(estimate.codimension, estimate.codimension_interval), _of_state(estimate)),
        definition,
        ("j*", dimension(estimate.j_star), f"where the sum turns negative, at exponent t* = {threshold}"),
        ("E+", number(estimate.expansion), expansion),
        ("neutral directions", dimension(estimate.neutral_mass), f"a step hardly changes them; margin {margin}"),
        ("map", step_map, f"coordinates: {estimate.coordinates}"),
        None if frozen is None else ("frozen Lyapunov", dimension(frozen.dimension), leading),
        ("cost", f"{estimate.num_hvps:,} HVPs", f"Hessian-vector products, in {words.runs_in_words(estimate)}"),
        None if estimate.sampled is None else _sampled(estimate.sampled),
        # Of an estimator with a scale of its own, on which its value depends.
        ("settings", settings, f"of {estimate.estimator}") if "learning_rate" in estimate.settings else None,
        ("sqrt(SD/n)", number(root_ratio(estimate.value, num_samples)), "to compare runs by, on the same data"),
    )
    return Table(f"Sharpness dimension ({estimate.estimator})", rows, brief=3)


def _of_state(estimate: SharpnessDimension) -> str:
    return f"{share_of_state(estimate)} of d = {estimate.state_size:,}"


def _then(run: Analysis, then: AtInit | Earlier) -> Table:
    """The same net at another time beside the checkpoint."""
    at, now, rate, dimensions = then.codimension, run.sharpness_dimension, run.optimizer.learning_rate, None
    if at is not None and now is not None:
        dimensions = (
            "codimension",
            estimated(at.value, at.interval),
            estimated(now.codimension, now.codimension_interval),
        )
    earlier = then.learning_rate if isinstance(then, Earlier) else rate
    rows = present(
        ("largest eigenvalue of H", measured(then.sharpness)[0], measured(run.hessian.largest)[0]),
        None if then.ratio is None else ("ratio", number(then.ratio, 3), number(run.edge_of_stability.ratio, 3)),
        dimensions,
        ("learning rate", number(earlier), number(rate)) if number(earlier) != number(rate) else None,
        ("not compared", "dimension", then.reason) if then.reason else None,
    )
    return Table(f"The same net {then.when}", rows, ("", then.when, "now"))


def _sampled(sampled: Sampled) -> Row:
    """What the interval rests on."""
    probes = "" if sampled.num_probes == 1 else f" x {sampled.num_probes:.3g} probes"
    words = f"no controls: {sampled.no_controls}" if sampled.no_controls else "no controls"
    if sampled.num_controls and sampled.residual_variance is not None and sampled.raw_variance:
        left = sampled.residual_variance / sampled.raw_variance
        controls = "1 control leaves" if sampled.num_controls == 1 else f"{sampled.num_controls} controls leave"
        words = f"{controls} {left:.0%} of the variance"
    if sampled.audit is not None:
        words += (
            f"; {counted(sampled.num_audits, 'run')} of all steps correct those of {sampled.num_steps} by "
            f"{number(sampled.audit, 2)} dimensions"
        )
    return "minibatches", f"{sampled.num_minibatches:,}{probes}", words


def _supremum(supremum: Supremum) -> Table:
    """The supremum beside each snapshot's own value; snapshots in the middle of many are left to the figure."""
    each = list(zip(supremum.steps, supremum.per_snapshot_values, supremum.learning_rates, strict=True))
    shown = each if len(each) <= _MOST_SNAPSHOTS else [*each[: _MOST_SNAPSHOTS - 1], each[-1]]
    kind = "approximate, from quadrature" if supremum.approximate else "from exact spectra"
    asked = supremum.num_snapshots_asked
    of = "" if supremum.num_snapshots == asked else f" of {asked:,}"
    stopped = f"at step {supremum.stopped_at or 0:,}", "the trajectory diverged"
    probes = "" if supremum.num_probes == 1 else f" x {supremum.num_probes} probes"
    cost = (
        f"{supremum.num_minibatches:,} minibatches{probes}",
        f"{supremum.num_hvps:,} more HVPs ({supremum.estimator})",
    )
    bias = "" if supremum.probe_bias is None else f"; about {number(supremum.probe_bias, 2)} too high by probes' noise"
    rows = present(
        ("supremum", estimated(supremum.value, supremum.interval), f"95 % interval over minibatches; {kind}{bias}"),
        ("codimension", dimension(supremum.codimension), f"d = {supremum.state_size:,}"),
        *(
            (f"after {step:,} steps" if step else "checkpoint alone", dimension(value), f"learning rate {rate:.4g}")
            for step, value, rate in shown
        ),
        ("snapshots", f"{supremum.num_snapshots:,}{of}", f"{supremum.every:,} steps apart"),
        None if supremum.stopped_at is None else ("stopped", *stopped),
        ("map", supremum.map, f"coordinates: {supremum.coordinates}"),
        ("cost", *cost),
    )
    return Table("Supremum over snapshots (Def. 4.1)", rows)


def _exponents(rds: RdsSharpness) -> Table:
    leading = ", ".join(f"{value:.4g}" for value in rds.leading[:6])
    last = rds.values[-1] if len(rds.values) else None
    return Table(
        "RDS sharpness exponents (per step)",
        (("lambda_1 ...", leading, "largest"), ("lambda_d", number(last), "smallest")),
        brief=1,
    )


def _bounds(run: Analysis) -> tuple[Table, ...]:
    """The terms of each bound; then all inputs and all assumptions, once.

    Where no input of a bound is known the terminal has, if asked for everything, a line for each bound in place of
    terms that are all missing, and the assumptions.
    """
    known = any(entry.value is not None for bound in run.bounds for entry in bound.inputs)
    on_page: Literal["", "page"] = "" if known else "page"
    brief = None if known else 0
    listed = tuple(
        (bound.theorem, bound.verdict, "" if k else words.BOUND_INPUTS) for k, bound in enumerate(run.bounds)
    )
    inputs = {entry.name: _input(entry) for bound in run.bounds for entry in bound.inputs}
    assumed = {
        each.name: (each.name, Cell(each.status, each.status.split(" ")[0]), each.remark)
        for bound in run.bounds
        for each in bound.assumptions
    }
    reasons = [(bound, [other.dimension_reason for other in run.bounds[:k]]) for k, bound in enumerate(run.bounds)]
    return present(
        None if known else Table("Generalization bounds", listed, only="terminal", brief=brief),
        *(_terms(bound, on_page, bound.dimension_reason not in said) for bound, said in reasons),
        Table("Inputs of the bounds", tuple(inputs.values()), only=on_page, folded=True) if inputs else None,
        Table("Assumptions of the bounds", tuple(assumed.values()), folded=True, brief=brief) if assumed else None,
    )


def _terms(bound: Bound, only: Literal["", "page"], explained: bool) -> Table:
    """The terms of a bound; `explained`: with the reason for its dimension, which is said once."""
    rows = (
        *(
            (term.formula, number(term.value), "" if term.value is not None else "an input is missing")
            for term in bound.terms
        ),
        ("dimension", bound.dimension_name, bound.dimension_reason if explained else ""),
        ("sum of the known terms", number(bound.partial_sum), "the bound is at least this"),
        ("bound", number(bound.total), bound.verdict),
    )
    return Table(f"Generalization bound, {bound.theorem}: {bound.verdict}", rows, only=only)


def _input(entry: BoundInput) -> tuple[str, str, str]:
    source = "missing" if entry.value is None else "estimated, a lower bound" if entry.estimated else "given"
    return entry.name, number(entry.value), f"{entry.symbol}: {entry.meaning}; {source}"
