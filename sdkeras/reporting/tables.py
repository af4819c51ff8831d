"""Tables and phrases that several reports share."""

from __future__ import annotations

from sdkeras.errors import counted
from sdkeras.reporting.numbers import batch_size_in_words, number, rate_in_words, taken_for_granted
from sdkeras.reporting.report import Report, Row, Table, present, split
from sdkeras.results.answers import Analysis, CriticalRun, LandscapeRun, LyapunovRun, Simulation
from sdkeras.results.answers import Run as Answered
from sdkeras.results.note import by_severity
from sdkeras.results.plans import LossPlan, LyapunovPlan, Plan

Run = Answered | Simulation


def sharpness_name(operator: str) -> str:
    """The name of the largest eigenvalue of a threshold's operator."""
    return "sharpness" if operator == "H" else "preconditioned sharpness"


def optimizer_in_words(run: Run) -> str:
    """Optimizer, learning rate, momentum and weight decay."""
    optimizer = run.optimizer
    settings = [f"{optimizer.name}, {rate_in_words(optimizer)}"]
    if optimizer.momentum:
        settings.append(f"{'Nesterov ' if optimizer.nesterov else ''}momentum {optimizer.momentum:g}")
    if optimizer.weight_decay:
        settings.append(f"weight decay {optimizer.weight_decay:g}")
    return ", ".join(settings)


def setting_in_words(run: Run) -> str:
    """Optimizer, samples and batch size in a few words."""
    batch_size = batch_size_in_words(run.data.batch_size, run.data.batch_size_source)
    return f"{run.optimizer.name}, {run.data.num_samples:,} samples, {batch_size}"


def footer(run: Run) -> str:
    """The version, date and data behind a report."""
    origin = run.provenance
    return f"Made by sdkeras {origin.sdkeras} on {origin.created} from data {origin.data_digest}."


def is_verified(run: Answered) -> bool:
    """Whether the Hessian-vector products, and the training step if it was followed, passed their checks."""
    if isinstance(run, CriticalRun):
        return run.critical.verified
    if isinstance(run, LandscapeRun):
        return run.verification.passed
    return run.verification.passed and (run.lyapunov is None or run.lyapunov.verification.passed)


def frame(run: Answered, verdict: str, checked: str, measured: str) -> Report:
    """The report of a run without its numbers: the verdict, its setting, alarms and caveats.

    Args:
        run: The run.
        verdict: One sentence.
        checked: What was verified.
        measured: What an interruption left fewer of.
    """
    unverified = f"UNVERIFIED: the {checked} failed its check; do not trust these numbers."
    interrupted = f"Interrupted: only the {measured} so far are in these numbers."
    headline, detail = split(verdict)
    return Report(
        name=run.model.name,
        about=setting_in_words(run),
        headline=headline,
        detail=detail,
        lines=(verdict,),
        assumed=taken_for_granted(run),
        alarms=present(None if is_verified(run) else unverified, interrupted if run.partial else None),
        notes=by_severity(run.warnings),
        sections=(),
        footer=footer(run),
    )


def training_table(run: Run) -> Table:
    """The training that a trajectory continues."""
    return Table(
        "The training that was followed",
        (
            ("optimizer", run.optimizer.name, optimizer_in_words(run)),
            ("iteration", number(run.optimizer.iterations), "where it starts"),
            ("minibatches", f"of {run.data.batch_size:,}", f"from {run.data.num_samples:,} samples"),
        ),
        brief=0,
    )


def verification_table(run: Analysis | LyapunovRun | LandscapeRun) -> Table:
    """Checks of the Hessian-vector products."""
    check = run.verification
    mode = f"mode {check.mode}{', compiled by XLA' if check.jit else ''}"
    difference = f"{check.finite_difference_error:.1e}", f"in {check.finite_difference_dtype}"
    return Table(
        "Verification: " + ("passed" if check.passed else "FAILED"),
        (
            ("against finite differences", *difference),
            ("rounding of an HVP", f"{check.hvp_relative_error:.1e}", mode),
            ("symmetry", f"{check.symmetry_error:.1e}", ""),
            ("repeatability", f"{check.repeatability_error:.1e}", check.details),
        ),
        brief=1,
    )


def provenance_table(run: Run) -> Table:
    """Model, data, cost and versions."""
    origin, model, data = run.provenance, run.model, run.data
    analysed = f"{model.num_trainable_analysed:,} of {model.num_parameters:,} trainable parameters"
    weights = ", ".join(f"{label}: {weight:g}" for label, weight in (data.class_weight or {}).items())
    batch_size = batch_size_in_words(data.batch_size, data.batch_size_source, data.micro_batch)
    seed = f"seed {origin.seed}" + (f", preset {origin.preset}" if origin.preset not in ("", "standard") else "")
    return Table(
        "Provenance",
        (
            ("model", model.name, f"{analysed}; {model.mode} mode"),
            ("loss", model.loss, f"class weights {weights}" if weights else ""),
            ("data", f"{data.num_samples:,} samples", f"{batch_size}; {origin.data_digest}"),
            ("cost", f"{origin.seconds:.1f} s", f"{origin.num_hvps:,} HVPs in {origin.dtype}, {seed}"),
            ("made with", f"sdkeras {origin.sdkeras}", f"TensorFlow {origin.tensorflow}, Keras {origin.keras}"),
            ("on", origin.device, f"Python {origin.python}, {origin.created}"),
        ),
        brief=0,
    )


def plan_table(plan: Plan | LyapunovPlan | LossPlan) -> Table:
    """The plan of an analysis, of a trajectory or of losses: every setting that costs time, and the cost."""
    optimizer, data = plan.optimizer, plan.data
    rate_missing = optimizer is not None and optimizer.learning_rate_missing
    batch_size = data and batch_size_in_words(data.batch_size, data.batch_size_source, data.micro_batch)
    more = ""
    if isinstance(plan, Plan) and plan.most != plan.num_hvps:
        more = f" for the first {plan.num_hvps:,} products"
    rows = present(
        ("optimizer", f"{optimizer.name}, {rate_in_words(optimizer)}") if optimizer else None,
        ("not computed", f"what needs a learning rate: {rate_missing}") if rate_missing else None,
        ("minibatches", batch_size) if batch_size else None,
        *_planned(plan),
        ("peak memory", f"about {plan.peak_memory / 1e9:.2f} GB"),
        _planned_device(plan) if isinstance(plan, Plan) else None,
        ("one gradient", f"{1e3 * plan.seconds_per_gradient:.3g} ms"),
        ("time", f"about {plan.seconds:.3g} s{more}"),
    )
    return Table("Plan", rows)


def _planned(plan: Plan | LyapunovPlan | LossPlan) -> tuple[Row, ...]:
    if isinstance(plan, LossPlan):
        return _planned_losses(plan)
    return _planned_trajectory(plan) if isinstance(plan, LyapunovPlan) else _planned_analysis(plan)


def _planned_losses(plan: LossPlan) -> tuple[Row, ...]:
    gradients = f", and {counted(plan.num_gradients, 'gradient')}" if plan.num_gradients else ""
    batches = counted(plan.num_batches, "batch", "batches")
    return present(
        ("measured", plan.what),
        ("parameters", f"{plan.num_parameters:,}"),
        ("products", f"about {plan.num_hvps:,}") if plan.num_hvps else None,
        ("losses", f"about {plan.num_evaluations:,}{gradients}, each over {batches}"),
    )


def _planned_device(plan: Plan) -> Row | None:
    """Where products are made, and what they take there if that is not the host."""
    if plan.device_memory is None:
        return ("on", plan.device) if plan.device else None
    return "on", f"{plan.device}, about {plan.device_memory / 1e9:.2f} GB of its memory"


def _planned_analysis(plan: Plan) -> tuple[Row, ...]:
    steps = "" if plan.num_steps is None else f" of {plan.num_steps} steps"
    snapshots = None
    if plan.num_snapshots is not None and plan.every is not None:
        length = f"{(plan.num_snapshots - 1) * plan.every:,} steps"
        snapshots = ("supremum", f"over {plan.num_snapshots:,} snapshots, {plan.every:,} steps apart ({length})")
    parts = (
        f"{plan.num_hvps_fixed:,} for the fixed stages",
        f"{_range(plan.num_minibatches, plan.num_minibatches_most)} for the batch sharpness",
        f"{_range(plan.num_hvps_pilot, plan.num_hvps_runs_most)} for the runs",
    )
    adaptive = "" if plan.most == plan.num_hvps else ", as the tolerance asks"
    return present(
        ("preset", plan.preset) if plan.preset else None,
        ("parameters analysed", f"{plan.num_parameters:,}"),
        ("state of the map", f"{plan.state_size:,} ({plan.map})"),
        ("held fixed", plan.held_fixed) if plan.held_fixed else None,
        ("data-set Hessian", counted(plan.num_batches, "batch", "batches")),
        ("runs to start with", f"{plan.num_runs:,}{steps}"),
        snapshots,
        ("products", f"about {_range(plan.num_hvps, plan.most)}: {', '.join(parts)}{adaptive}"),
    )


def _range(fewest: int, most: int | None) -> str:
    """ "320", "320 to 1,000", or "320 or more" without a limit."""
    return f"{fewest:,}{' or more' if most is None else '' if most <= fewest else f' to {most:,}'}"


def _planned_trajectory(plan: LyapunovPlan) -> tuple[Row, ...]:
    slots, lengths = plan.state_size - plan.num_parameters, ", ".join(map(str, plan.windows))
    forks = (
        f"{plan.forks}, and the first once more with another start frame: {plan.forks + 1} times a trajectory's cost"
    )
    return present(
        ("state", f"{plan.state_size:,} ({plan.num_parameters:,} weights, {slots:,} of the optimizer)"),
        ("exponents", f"{plan.num_exponents:,}"),
        ("steps", f"{plan.num_steps:,} after {plan.transient:,}"),
        ("forks", forks) if plan.forks > 1 else None,
        ("windows", f"of {lengths} steps, from dense Jacobians") if lengths else None,
        ("products", f"about {plan.num_hvps:,}"),
    )
