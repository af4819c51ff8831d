"""What the reports show, as titled rows of text: one content for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from sdkeras.dimension.exponents import FULL
from sdkeras.dimension.stability import BATCH_SHARPNESS_ERROR
from sdkeras.errors import counted
from sdkeras.reporting.advice import rendered
from sdkeras.reporting.comparison import Comparison
from sdkeras.reporting.numbers import (
    ABSENT,
    bar_lengths,
    batch_size_in_words,
    dimension,
    estimated,
    interval,
    measured,
    number,
    rate_in_words,
    root_ratio,
)
from sdkeras.results.answers import Analysis, LyapunovRun, Simulation
from sdkeras.results.bounds import BoundInput
from sdkeras.results.dimension import EdgeOfStability, FrozenLyapunov, SharpnessDimension, Supremum
from sdkeras.results.lyapunov import LyapunovSummary
from sdkeras.results.measured import Measured

# Exponents in a table of their own rows; the figure has them all.
_MOST_EXPONENTS = 12
_MOST_SNAPSHOTS = 12


@attrs.frozen
class Table:
    """Rows of (label, value, remark) under a title; `about` says where in the page they belong."""

    about: str
    title: str
    rows: tuple[tuple[str, str, str], ...]


def printable(text: str) -> str:
    """The text in one line, with a mark for what no report can show, and arguments as the caller writes them.

    Names come from model files: escape sequences would reach the terminal, and lone surrogates cannot be encoded.
    """
    shown = (" " if c.isspace() else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return rendered("".join(shown))


@attrs.frozen
class LayerRow:
    """A layer in the bar chart: its numbers with their evidence, and their shares of the largest layer's."""

    name: str
    size: str
    eigenvalue: str
    residual: str
    eigenvalue_share: float
    trace: str
    trace_share: float
    codimension: str


def layer_rows(run: Analysis) -> tuple[LayerRow, ...]:
    """The diagonal block of each layer; empty where they were not asked for."""
    eigenvalues = bar_lengths([None if layer.largest is None else layer.largest.value for layer in run.layers])
    traces = bar_lengths([None if layer.trace is None else layer.trace.value for layer in run.layers])
    return tuple(
        LayerRow(
            layer.name,
            f"{layer.num_parameters:,}",
            *measured(layer.largest),
            eigenvalue,
            "not estimated" if layer.trace is None else _with_stderr(layer.trace),
            trace,
            "not estimated" if layer.codimension is None else estimated(layer.codimension, layer.codimension_interval),
        )
        for layer, eigenvalue, trace in zip(run.layers, eigenvalues, traces, strict=True)
    )


def _with_stderr(found: Measured) -> str:
    return number(found.value) + ("" if found.stderr is None else f" ± {found.stderr:.2g}")


def tables(run: Analysis | LyapunovRun) -> tuple[Table, ...]:
    """All tables of a report, in order."""
    if isinstance(run, LyapunovRun):
        return (*_along(run.lyapunov), _training(run), _verification(run), _provenance(run))
    made = [_hessian(run), _edge(run)]
    made += [_dimension(estimate, run.data.num_samples) for estimate in run.estimates]
    if run.supremum is not None:
        made.append(_supremum(run.supremum))
    if run.rds_sharpness is not None:
        leading = ", ".join(f"{value:.4g}" for value in run.rds_sharpness.leading[:6])
        last = run.rds_sharpness.values[-1] if len(run.rds_sharpness.values) else None
        made.append(
            Table(
                "exponents",
                "RDS sharpness exponents (per step)",
                (("lambda_1 ...", leading, "leading"), ("lambda_d", number(last), "last")),
            )
        )
    if run.lyapunov is not None:
        made += _along(run.lyapunov)
    return (*made, *_bounds(run), _verification(run), _provenance(run))


def simulation_tables(found: Simulation) -> tuple[Table, ...]:
    """The training that a simulated trajectory goes on with."""
    return _training(found), _provenance(found)


@attrs.frozen
class DifferenceRow:
    """A number of both runs in a table: `outcome` as in `NumberDifference`, and what to say of the difference."""

    label: str
    a: str
    b: str
    verdict: str
    outcome: str


def difference_groups(comparison: Comparison) -> tuple[tuple[str, tuple[DifferenceRow, ...]], ...]:
    """The numbers of a comparison under their titles; of the exponents the leading ones.

    Why numbers are not comparable is said once, by `not_comparable`, unless it is of one row alone.
    """
    unseen = {f"lyapunov.values.{k}" for k in range(_MOST_EXPONENTS, len(comparison.numbers))}
    said = {f"not comparable: {entry.reason}" for entry in comparison.incomparable}
    groups: dict[str, list[DifferenceRow]] = {}
    for row in comparison.numbers:
        if row.path not in unseen:
            verdict = row.outcome if row.verdict in said else row.verdict
            groups.setdefault(row.group, []).append(
                DifferenceRow(row.label, str(row.a), str(row.b), verdict, row.outcome)
            )
    return tuple((title, tuple(rows)) for title, rows in groups.items())


def not_comparable(comparison: Comparison) -> tuple[str, ...]:
    """What has no difference among the numbers, and why, in sentences."""
    rows = {row.verdict for row in comparison.numbers if row.outcome == "not comparable"}
    return tuple(
        f"Not comparable: {entry.what}: {entry.reason}."
        for entry in comparison.incomparable
        if f"not comparable: {entry.reason}" in rows
    )


def exponent(found: LyapunovSummary, position: int) -> str:
    """An exponent with its standard error, where there are blocks enough for one."""
    value = number(found.values[position], 3)
    if len(found.history[position]) < 2:
        return f"{value} (no standard error)"
    return f"{value} ± {found.stderr[position]:.2g}"


def attractor_dimension(found: LyapunovSummary) -> tuple[str, str]:
    """D_s, as far as it is known, and why it is not known better."""
    answer = found.dimension
    if answer.value is not None:
        return estimated(answer.value, answer.interval), f"d = {answer.size:,}"
    if answer.interval is not None:
        return f"in {interval(answer.interval)}", f"d = {answer.size:,}; {answer.reason}"
    return "undetermined", answer.reason


def sharpest(found: LyapunovSummary) -> tuple[str, str]:
    """The smallest dimension that is determined over the same steps, and why it may be taken."""
    if found.sharpest is None:
        return "none is determined", ""
    return f"{found.sharpest.name} {dimension(found.sharpest.value)}", found.sharpest.reason


def _along(found: LyapunovSummary) -> list[Table]:
    return [_lyapunov(found), *([_windows(found)] if found.windows else [])]


def _windows(found: LyapunovSummary) -> Table:
    rows = []
    for window in found.windows:
        count = window.num_steps // window.num_window_steps
        remark = f"mean over {count:,} windows; {window.method}" if window.num_window_steps > 1 else "of single steps"
        if window.dimension is None:
            rows.append((window.name, "undetermined", window.reason))
        else:
            rows.append((window.name, dimension(window.dimension), remark))
    rows += [("D_s", *attractor_dimension(found)), ("sharpest", *sharpest(found))]
    rows.append(("coordinates", found.coordinates or ABSENT, "of the singular values, and of the exponents above"))
    if found.log_det is not None and found.log_det_stderr is not None:
        rows.append(("mean of ln |det J|", f"{number(found.log_det)} ± {found.log_det_stderr:.2g}", "per step"))
    return Table("windows", f"Dimensions over the same {found.num_steps:,} steps", tuple(rows))


def _lyapunov(found: LyapunovSummary) -> Table:
    shown = min(len(found.values), _MOST_EXPONENTS)
    resolved = len(found.values) if found.num_resolved is None else found.num_resolved
    rows = [
        (f"ell_{k + 1}", exponent(found, k), "" if k < resolved else "an upper end, by rounding") for k in range(shown)
    ]
    if shown < len(found.values):
        last = len(found.values)
        rows.append((f"ell_{last}", exponent(found, last - 1), f"the last of {last:,}"))
    rows.append(("D_s", *attractor_dimension(found)))
    if found.log_det is not None and len(found.values) == found.dimension.size:
        rows.append(("sum of all", number(found.log_det), "mean of ln |det J|"))
    slots = found.dimension.size - found.num_weights
    rows.append(("state", f"{found.dimension.size:,}", f"{found.num_weights:,} weights, {slots:,} of the optimizer"))
    averaged = (
        f"after {found.transient:,}; standard errors from {len(found.history[0]):,} blocks of {found.block_size:,}"
    )
    rows.append(("steps", f"{found.num_steps:,} of {found.num_steps_asked:,}", averaged))
    if found.stopped_at is not None:
        rows.append(("stopped", f"at step {found.stopped_at:,}", "the trajectory diverged: NaN or infinity"))
    check = found.verification
    rows.append(
        (
            "step verified" if check.passed else "step NOT verified",
            f"{check.step_error:.1e}",
            f"against the optimizer's own; its Jacobian {check.finite_difference_error:.1e} against differences",
        )
    )
    return Table("lyapunov", "Lyapunov exponents along training (per step)", tuple(rows))


def _training(run: LyapunovRun | Simulation) -> Table:
    return Table(
        "training",
        "The training that was followed",
        (
            ("optimizer", run.optimizer.name, _optimizer(run)),
            ("iteration", number(run.optimizer.iterations), "where it starts"),
            ("minibatches", f"of {run.data.batch_size:,}", f"from {run.data.num_samples:,} samples"),
        ),
    )


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
    return Table("hessian", f"Hessian of the loss over {run.data.num_samples_hessian:,} samples", tuple(rows))


def _edge(run: Analysis) -> Table:
    edge = run.edge_of_stability
    rows = [
        (
            sharpness_name(edge.operator),
            number(edge.sharpness),
            f"algebraically largest eigenvalue of {edge.operator}",
        ),
        ("threshold", number(edge.threshold), f"{_optimizer(run)}"),
        ("ratio", number(edge.ratio, 3), "1 is the edge"),
    ]
    if edge.operator == "H":  # it is no multiple of another operator's threshold
        rows += _batch_sharpness(edge)
    return Table("edge", "Edge of stability", tuple(rows))


def sharpness_name(operator: str) -> str:
    """What the largest eigenvalue of a threshold's operator is called."""
    return "sharpness" if operator == "H" else "preconditioned sharpness"


def _batch_sharpness(edge: EdgeOfStability) -> list[tuple[str, str, str]]:
    """Both forms with their standard errors, and whether these met what was aimed at."""
    count = edge.batch_sharpness_minibatches
    over = "over minibatches" if count is None else f"over {counted(count, 'minibatch', 'minibatches')}"
    rows = [("batch sharpness", edge.batch_sharpness, edge.batch_sharpness_stderr, f"mean of g'Hg/|g|² {over}, of H")]
    if edge.batch_sharpness_ratio_of_means is not None:
        quotient, error = edge.batch_sharpness_ratio_of_means, edge.batch_sharpness_ratio_of_means_stderr
        rows.append(("ratio of means", quotient, error, "mean of g'Hg over mean of |g|²"))
    made = []
    for label, value, error, meaning in rows:
        shown = number(value) if error is None else f"{number(value)} ± {error:.2g}"
        made.append((label, shown, meaning + (_relative_error(value, error) if count else "")))
    if edge.batch_sharpness_skipped:
        made.append(("skipped", f"{edge.batch_sharpness_skipped:.2%}", "minibatches whose gradient is 0"))
    return made


def _relative_error(value: float | None, error: float | None) -> str:
    """Whether the standard error is as small as was aimed at."""
    if not value or error is None:
        return ""
    relative = error / abs(value)
    met = "met" if relative <= BATCH_SHARPNESS_ERROR else "not met"
    return f"; standard error {100 * relative:.3g} %, aim of {100 * BATCH_SHARPNESS_ERROR:g} % {met}"


def _optimizer(run: Analysis | LyapunovRun | Simulation) -> str:
    optimizer = run.optimizer
    parts = [f"{optimizer.name}, {rate_in_words(optimizer)}"]
    if optimizer.momentum:
        parts.append(f"{'Nesterov ' if optimizer.nesterov else ''}momentum {optimizer.momentum:g}")
    if optimizer.weight_decay:
        parts.append(f"weight decay {optimizer.weight_decay:g}")
    return ", ".join(parts)


def _dimension(estimate: SharpnessDimension, num_samples: int) -> Table:
    steps = "" if estimate.num_steps is None else f" of {estimate.num_steps} steps"
    rows = [
        ("pooled value", estimated(estimate.value, estimate.interval), "95 % interval; SD of the mixture"),
        ("codimension", estimated(estimate.codimension, estimate.codimension_interval), f"d = {estimate.state_size:,}"),
    ]
    if estimate.definition_value is not None:
        text = estimated(estimate.definition_value, estimate.definition_interval)
        rows.append(("definition's value", text, "Def. 4.1, average of order statistics"))
    else:
        rows.append(("definition's value in", interval(estimate.definition_interval), "Def. 4.1, bracketed"))
    negative, unstable = estimate.expansion_negative_curvature, estimate.expansion_unstable
    split = f"{number(negative, 3)} negative curvature, {number(unstable, 3)} unstable"
    if estimate.map == FULL:
        split = "a singular value does not tell the curvature it comes from"
    frozen = estimate.frozen_lyapunov
    if frozen is not None:
        split += f", {number(estimate.expansion - negative - unstable, 3)} transient"
    margin = "infinite" if estimate.neutral_mass == 0 else number(estimate.margin, 3)
    rows += [
        ("j*", dimension(estimate.j_star), f"threshold exponent {number(estimate.threshold_exponent, 3)}"),
        ("E+ (sum of z > 0)", number(estimate.expansion), split),
        ("neutral directions", dimension(estimate.neutral_mass), f"margin {margin}"),
        ("map", _map(estimate), f"coordinates: {estimate.coordinates}"),
        *_frozen(frozen),
        ("cost", f"{estimate.num_runs:,} runs{steps}", f"{estimate.num_hvps:,} products"),
        *_settings(estimate),
        ("sqrt(SD/n)", number(root_ratio(estimate.value, num_samples)), "to compare runs by, on the same data"),
    ]
    return Table("dimension", f"Sharpness dimension ({estimate.estimator})", tuple(rows))


def _settings(estimate: SharpnessDimension) -> list[tuple[str, str, str]]:
    """The estimator's fields, where it is one with a scale of its own, on which its value depends."""
    if "learning_rate" not in estimate.settings:
        return []
    values = [
        f"{name} {value:g}"
        for name, value in estimate.settings.items()
        if isinstance(value, (int, float)) and name not in ("num_steps", "reorthogonalize", "learning_rate")
    ]
    return [("settings", printable(", ".join(values)), f"of {estimate.estimator}")]


def _map(estimate: SharpnessDimension) -> str:
    return "full (the optimizer's whole step)" if estimate.map == FULL else estimate.map


def _supremum(found: Supremum) -> Table:
    """The supremum beside each snapshot's own value; snapshots in the middle of many are left to the figure."""
    steps = list(zip(found.steps, found.per_snapshot_values, found.learning_rates, strict=True))
    shown = steps if len(steps) <= _MOST_SNAPSHOTS else [*steps[: _MOST_SNAPSHOTS - 1], steps[-1]]
    kind = "approximate, from quadrature" if found.approximate else "from exact spectra"
    rows = [
        ("supremum", estimated(found.value, found.interval), f"95 % interval over minibatches; {kind}"),
        ("codimension", dimension(found.codimension), f"d = {found.state_size:,}"),
        *(
            (
                "checkpoint alone" if step == 0 else f"after {step:,} steps",
                dimension(float(value)),
                f"learning rate {rate:.4g}",
            )
            for step, value, rate in shown
        ),
    ]
    asked = "" if found.num_snapshots == found.num_snapshots_asked else f" of {found.num_snapshots_asked:,}"
    rows.append(("snapshots", f"{found.num_snapshots:,}{asked}", f"{found.every:,} steps apart"))
    if found.stopped_at is not None:
        rows.append(("stopped", f"at step {found.stopped_at:,}", "the trajectory diverged"))
    rows += [
        ("map", found.map, f"coordinates: {found.coordinates}"),
        ("cost", f"{found.num_minibatches:,} minibatches", f"{found.num_hvps:,} products more ({found.estimator})"),
    ]
    return Table("supremum", "Supremum over snapshots (Def. 4.1)", tuple(rows))


def _frozen(frozen: FrozenLyapunov | None) -> list[tuple[str, str, str]]:
    if frozen is None:
        return []
    leading = f"SD's formula on ln |μ|, as if every step were the same; leading {number(frozen.leading, 3)}"
    return [("frozen Lyapunov", dimension(frozen.dimension), leading)]


def _bounds(run: Analysis) -> list[Table]:
    """The terms of each bound; then all inputs and all assumptions, once."""
    made = []
    for bound in run.bounds:
        rows = [
            (term.formula, number(term.value), "" if term.value is not None else "an input is missing")
            for term in bound.terms
        ]
        rows.append(("dimension", bound.dimension_name, bound.dimension_reason))
        rows.append(("sum of the known terms", number(bound.partial_sum), "a lower end of the bound"))
        rows.append(("bound", number(bound.total), bound.verdict))
        made.append(Table("bound", f"Generalization bound, {bound.theorem}: {bound.verdict}", tuple(rows)))
    inputs = {entry.name: _input(entry) for bound in run.bounds for entry in bound.inputs}
    assumed = {each.name: (each.name, each.status, each.remark) for bound in run.bounds for each in bound.assumptions}
    if inputs:
        made.append(Table("inputs", "Inputs of the bounds (`bound_inputs={'NAME': VALUE}`)", tuple(inputs.values())))
    if assumed:
        made.append(Table("assumptions", "Assumptions of the bounds", tuple(assumed.values())))
    return made


def _input(entry: BoundInput) -> tuple[str, str, str]:
    source = "missing" if entry.value is None else "estimated, a lower end" if entry.estimated else "given"
    return entry.name, number(entry.value), f"{entry.symbol}: {entry.meaning}; {source}"


def _verification(run: Analysis | LyapunovRun) -> Table:
    check = run.verification
    return Table(
        "verification",
        "Verification: " + ("passed" if check.passed else "FAILED"),
        (
            (
                "against finite differences",
                f"{check.finite_difference_error:.1e}",
                f"in {check.finite_difference_dtype}",
            ),
            ("rounding of a product", f"{check.hvp_relative_error:.1e}", f"mode {check.mode}"),
            ("symmetry", f"{check.symmetry_error:.1e}", ""),
            ("repeatability", f"{check.repeatability_error:.1e}", check.details),
        ),
    )


def class_weights_in_words(weights: Mapping[str, float] | None) -> str:
    """Class weights for a reader, or nothing."""
    if not weights:
        return ""
    return "class weights " + ", ".join(f"{label}: {weight:g}" for label, weight in weights.items())


def _provenance(run: Analysis | LyapunovRun | Simulation) -> Table:
    made, model = run.provenance, run.model
    analysed = f"{model.num_trainable_analysed:,} of {model.num_parameters:,} trainable parameters"
    return Table(
        "provenance",
        "Provenance",
        (
            ("model", model.name, f"{analysed}; {model.mode} mode"),
            ("loss", model.loss, class_weights_in_words(run.data.class_weight)),
            (
                "data",
                f"{run.data.num_samples:,} samples",
                f"{batch_size_in_words(run.data.batch_size, run.data.batch_size_source)}; {made.data_digest}",
            ),
            ("cost", f"{made.seconds:.1f} s", f"{made.num_hvps:,} products in {made.dtype}, seed {made.seed}"),
            ("made with", f"sdkeras {made.sdkeras}", f"TensorFlow {made.tensorflow}, Keras {made.keras}"),
            ("on", made.device, f"Python {made.python}, {made.created}"),
        ),
    )
