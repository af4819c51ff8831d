"""The plan of an analysis or of a trajectory as a table."""

from __future__ import annotations

from sdkeras.reporting.numbers import batch_size_in_words, rate_in_words
from sdkeras.reporting.report import Table
from sdkeras.results.plans import LyapunovPlan, Plan


def plan_table(plan: Plan | LyapunovPlan) -> Table:
    """Every setting that costs time, and the cost."""
    trajectory = isinstance(plan, LyapunovPlan)
    more = "" if trajectory else ", more if the tolerance asks for more runs"
    rows = (
        *_step(plan),
        *(_trajectory(plan) if isinstance(plan, LyapunovPlan) else _analysis(plan)),
        ("products", f"about {plan.num_hvps:,}"),
        ("peak memory", f"about {plan.peak_memory / 1e9:.2f} GB"),
        ("one gradient", f"{1e3 * plan.seconds_per_gradient:.3g} ms"),
        ("time", f"about {plan.seconds:.3g} s{more}"),
    )
    return Table("Plan", rows)


def _step(plan: Plan | LyapunovPlan) -> list[tuple[str, str]]:
    rows = []
    if plan.optimizer is not None:
        rows.append(("optimizer", f"{plan.optimizer.name}, {rate_in_words(plan.optimizer)}"))
        if plan.optimizer.learning_rate_missing:
            rows.append(("not computed", f"what needs a learning rate: {plan.optimizer.learning_rate_missing}"))
    if plan.data is not None:
        rows.append(("minibatches", batch_size_in_words(plan.data.batch_size, plan.data.batch_size_source)))
    return rows


def _analysis(plan: Plan) -> list[tuple[str, str]]:
    steps = "" if plan.num_steps is None else f" of {plan.num_steps} steps"
    rows = [
        ("parameters analysed", f"{plan.num_parameters:,}"),
        ("state of the map", f"{plan.state_size:,} ({plan.map})"),
        ("data-set Hessian", f"{plan.num_batches:,} batches"),
        ("runs to start with", f"{plan.num_runs:,}{steps}"),
    ]
    if plan.num_snapshots is not None and plan.every is not None:
        length = f"{(plan.num_snapshots - 1) * plan.every:,} steps"
        rows.append(("supremum", f"over {plan.num_snapshots:,} snapshots, {plan.every:,} steps apart ({length})"))
    return rows


def _trajectory(plan: LyapunovPlan) -> list[tuple[str, str]]:
    slots = plan.state_size - plan.num_parameters
    rows = [
        ("state", f"{plan.state_size:,} ({plan.num_parameters:,} weights, {slots:,} of the optimizer)"),
        ("exponents", f"{plan.num_exponents:,}"),
        ("steps", f"{plan.num_steps:,} after {plan.transient:,}"),
    ]
    if plan.windows:
        rows.append(("windows", f"of {', '.join(map(str, plan.windows))} steps, from dense Jacobians"))
    return rows
