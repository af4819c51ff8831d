"""The measures of one trained run, and which of them will lack a learning rate."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import attrs

from sdkeras.errors import MapError, SdkerasError, counted
from sdkeras.files.keras_types import Model
from sdkeras.files.reading import Json
from sdkeras.linalg.memory import memory_limit
from sdkeras.results.answers import Analysis, OptimizerInfo
from sdkeras.runs.analyze import analyze
from sdkeras.runs.trajectory import Trajectory
from sdkeras.study.definition import (
    ESTIMATOR_OF,
    OF_ANALYSES,
    READ,
    Study,
    analysis_options,
    parts_of_column,
)
from sdkeras.study.run_files import Measured, Value
from sdkeras.study.simulate import simulate
from sdkeras.study.topology import measure_trajectory
from sdkeras.study.train import StudyData, Trial, fresh_model
from sdkeras.training_step.optimizer import parts_of
from sdkeras.training_step.settings import inner, read_settings, scheduled_rate


def measure(trial: Trial, model: Model, wanted: tuple[str, ...], share: int) -> Measured:
    """Takes the measures of these columns and writes run.json, if an analysis is among them, and last measures.json.

    Other columns keep what was measured; `share` processes share the memory.
    """
    started = time.monotonic()
    study, before = trial.study, trial.folder.measured() or Measured({}, 0.0)
    measure_of, by = study.columns, study.by_column()
    numbers: dict[str, Value] = {}
    analysed = [column for column in wanted if measure_of[column] in OF_ANALYSES]
    for name in study.maps:
        of_map = {column: measure_of[column] for column in analysed if study.map_of(column) == name}
        if of_map:
            # All measures of one analysis, and no others, depend on the same settings.
            of_these = by[next(iter(of_map))]
            made_before = any(value.by == of_these for value in before.values.values())
            values = _of_map(trial, model, name, tuple(of_map.values()), made_before, share)
            numbers |= {column: values[measure] for column, measure in of_map.items()}
    for kind in ("backward", "forward"):
        of_kind = [column for column in wanted if column not in analysed and f"-{kind}-" in column]
        if of_kind:
            numbers |= trajectory_numbers(study, _trajectory(trial, model, kind), of_kind, share)
    values = before.values | {column: attrs.evolve(numbers[column], by=by[column]) for column in wanted}
    ordered = {column: values[column] for column in (*measure_of, *values)}
    measured = Measured(ordered, before.seconds + time.monotonic() - started)
    trial.folder.write(trial.folder.measures, measured)
    return measured


def _of_map(
    trial: Trial, model: Model, name: str, measures: tuple[str, ...], made_before: bool, share: int
) -> dict[str, Value]:
    """These measures by the analysis of one map: the one on file, if `made_before` and it suffices, or a new one."""
    study, folder = trial.study, trial.folder
    file = folder.analysis if name == study.maps[0] else folder.second_analysis
    if name != study.maps[0] and _is_papers(own := _on_file(folder.analysis)):
        return {measure: _read(own, measure) for measure in measures}
    if made_before and all(measure in READ for measure in measures):
        on_file = _on_file(file)
        if on_file is not None:
            return {measure: _read(on_file, measure) for measure in measures}
    return _analysed(trial, model, name, measures, file, share)


def _analysed(
    trial: Trial, model: Model, name: str, names: tuple[str, ...], file: Path, share: int
) -> dict[str, Value]:
    study, settings = trial.study, trial.run.settings
    measures, unfit = dict(study.measures), {}
    while True:
        try:
            answer = analyze(
                model,
                trial.data.train,
                batch_size=settings.get("batch_size"),
                seed=settings["seed"],
                memory_gb=memory_limit(None) / share / 1e9,
                workers=1,
                class_weight=study.weights_by_class,
                **{**analysis_options(measures), **study.analysis_of(name)},
            )
            break
        except MapError as error:  # before any work; the other measures can be taken
            measure = next(measure for measure, estimator in ESTIMATOR_OF.items() if estimator == error.estimator)
            unfit[measure] = Value(None, reason=str(error))
            del measures[measure]
            if not any(measure in measures for measure in names):
                raise
    answer.save(file, follow_links=False)
    return {measure: unfit[measure] if measure in unfit else _read(answer, measure) for measure in names}


def _on_file(path: Path) -> Analysis | None:
    try:
        return Analysis.load(path)
    except SdkerasError:
        return None


def _is_papers(answer: Analysis | None) -> TypeGuard[Analysis]:
    """Whether the optimizer's own map is the paper's, as of SGD alone without momentum and weight decay."""
    estimate = None if answer is None else answer.sharpness_dimension
    if answer is None or estimate is None:
        return False
    return estimate.map == "hessian" or (estimate.map == "sgd" and not answer.optimizer.weight_decay)


def _read(answer: Analysis, name: str) -> Value:
    """One measure of an analysis."""
    if name in ESTIMATOR_OF:
        estimate = next((each for each in answer.estimates if each.estimator == ESTIMATOR_OF[name]), None)
        if estimate is None:
            reason = _without_a_rate(answer.optimizer) or "the budget of the analysis ended before it"
            return Value(None, reason=reason)
        span = estimate.interval
        # Definition 4.1 where the spectra are exact.
        value = estimate.value if estimate.definition_value is None else estimate.definition_value
        return Value(value, None if span is None else 0.5 * (span[1] - span[0]))
    if name == "lambda_1":
        sharpness = answer.rds_sharpness
        if sharpness is None or not len(sharpness.leading):
            return Value(None, reason=_without_a_rate(answer.optimizer) or "the analysis has no exponents")
        return Value(float(sharpness.leading[0]))
    number = answer.hessian.largest if name == "sharpness" else answer.hessian.trace
    if number is None:
        return Value(None, reason="the analysis has none")
    return Value(number.value, number.residual if number.stderr is None else number.stderr)


def _without_a_rate(optimizer: OptimizerInfo) -> str:
    """Reason why an analysis has no measure that needs a learning rate; "" where it has one."""
    rate = optimizer.learning_rate
    if math.isnan(rate):
        return f"{optimizer.name} has no single learning rate; add learning_rate = NUMBER under [analysis]"
    if rate > 0:
        return ""
    after = "" if optimizer.iterations is None else f" after {optimizer.iterations:,} steps"
    return f"the learning rate is {rate:g}{after}; add learning_rate = 'peak' under [analysis]"


def _trajectory(trial: Trial, model: Model, kind: str) -> Trajectory:
    study, settings = trial.study, trial.study.trajectory
    if kind == "backward":
        if not trial.folder.trajectory.exists():
            raise SdkerasError(
                "its recorded trajectory has been removed after the measures were taken; delete the run's folder to "
                "train it again"
            )
        return Trajectory.load(trial.folder.trajectory)
    with_losses = any("-forward-data" in column for column in study.columns)
    return simulate(
        model,
        trial.data.train,
        steps=settings.steps,
        batch_size=trial.run.settings.get("batch_size"),
        every=settings.every,
        projection=settings.projection,
        seed=trial.run.settings["seed"],
        losses_on=trial.data.examples(settings.examples) if with_losses else None,
        class_weight=study.weights_by_class,
    )


def trajectory_numbers(study: Study, trajectory: Trajectory, wanted: list[str], share: int) -> dict[str, Value]:
    """E_alpha and the dimension in each metric that is wanted."""
    if trajectory.stopped_at is not None:
        diverged = Value(None, reason=f"the trajectory diverged at step {trajectory.stopped_at:,}")
        return dict.fromkeys(wanted, diverged)
    memory = memory_limit(None) / share / 1e9
    measures = measure_trajectory(trajectory, study.trajectory.alpha, memory_gb=memory)
    numbers = {}
    for column in wanted:
        measure, _, metric = parts_of_column(column)
        trees = measures.euclidean if metric == "euclidean" else measures.data
        if trees is None:
            raise SdkerasError("its recorded trajectory has no losses; delete the run's folder to train it again")
        dimension = trees.ph_dimension
        if measure == "ph_dimension":
            number = Value(dimension.value, dimension.stderr, dimension.reason)
        elif trees.e_alpha == 0:
            number = Value(None, reason="all iterates are equal; at a learning rate of 0 training does not move")
        elif math.isfinite(trees.e_alpha):
            number = Value(trees.e_alpha)
        else:
            number = Value(None, reason=f"float64 does not hold it at alpha = {study.trajectory.alpha:g}")
        numbers[column] = number
    return numbers


# Seconds after which no more models are built for this check.
_PATIENCE = 20.0


def check_rates(
    study: Study, points: Sequence[Mapping[str, Json]], make: Callable[..., Model], data: StudyData
) -> tuple[str, ...]:
    """A sentence for each reason why measures will have no value for want of a learning rate, or ().

    The model of each grid point is built, and its rate read after the last planned step; points that differ in the
    seed alone are read once.

    Raises:
        SdkerasError: None of the measures could be taken of any run.
    """
    distinct = {tuple((name, value) for name, value in each.items() if name != "seed"): each for each in points}
    reasons: list[str] = []
    started = time.monotonic()
    for settings in distinct.values():
        if time.monotonic() - started > _PATIENCE:
            break
        try:
            reasons.append(_no_rate(study, settings, make, data))
        except SdkerasError:  # the factory's failure will be that of the run
            reasons.append("")
    counts = collections.Counter(reasons)
    fine = counts.pop("", 0)
    if not counts:
        return ()
    lost = OF_ANALYSES if study.analysis.get("learning_rate") is not None else study.needing_a_rate
    names = [name for name in study.measures if name in lost]
    need = f"{', '.join(names)} {'needs' if len(names) == 1 else 'need'} a learning rate"
    sentences = tuple(
        f"{need}, and in {counted(count, 'setting')} of {len(reasons):,} {reason}" for reason, count in counts.items()
    )
    others = set(study.measures) - set(lost)
    if not fine and not others and not study.stop and len(reasons) == len(distinct):
        raise SdkerasError(f"no measure can be taken of any run: {sentences[0]}")
    return sentences


def _no_rate(study: Study, settings: Mapping[str, Json], make: Callable[..., Model], data: StudyData) -> str:
    """Why there is no learning rate after the last planned step, and what to do.

    "" where there is one, and for data that do not know their number of batches.
    """
    asked = study.analysis.get("learning_rate")
    if isinstance(asked, float | int):
        return ""
    try:
        steps = study.steps or (study.epochs or 0) * data.steps_per_epoch(settings.get("batch_size"))
    except TypeError:
        return ""
    model = fresh_model(study, settings, make)
    if model.built:  # which optimizers of several train variables is known then
        model.optimizer.build(model.trainable_variables)
    optimizer = inner(model.optimizer)
    for each in parts_of(optimizer):
        each._iterations.assign(steps)
    if asked is not None:
        try:
            rate: float | None = scheduled_rate(optimizer, asked)
        except SdkerasError as error:
            return f"[analysis] learning_rate is {asked!r}: {error}"
        where = f"the schedule's {asked} is {rate:g}"
    else:
        rate = read_settings(optimizer).learning_rate  # type: ignore[union-attr]  # there is an optimizer
        if rate is None:
            return f"{type(optimizer).__name__} has no single one; add learning_rate = NUMBER under [analysis]."
        schedule = type(getattr(optimizer, "_learning_rate", None)).__name__
        where = f"the schedule {schedule} ends at {rate:g} after {steps:,} steps"
    if rate is not None and 0 < rate < math.inf:
        return ""
    return f"{where}; add learning_rate = 'peak' under [analysis] ('peak', 'mean', 'step:N' or a number)."
