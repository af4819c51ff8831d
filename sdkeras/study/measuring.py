"""The measures of one trained run: one analysis for all that are of it, one trajectory for all that are of that."""

from __future__ import annotations

import math
import time
from typing import Any

from sdkeras.errors import MapError, SdkerasError
from sdkeras.linalg.memory import memory_limit
from sdkeras.results.answers import Analysis, OptimizerInfo
from sdkeras.runs.analyze import analyze
from sdkeras.study import trajectory_measures
from sdkeras.study.grid import GridRun, Study
from sdkeras.study.measures import ESTIMATOR_OF, OF_ANALYSES, READ, analysis_options, columns, parts_of_column
from sdkeras.study.recorder import simulate
from sdkeras.study.run_files import Measured, RunFolder, Value
from sdkeras.study.training import StudyData
from sdkeras.study.trajectory import Trajectory

# Value, error and, without a value, the reason.
_Found = tuple[float | None, float | None, str]


def measure(
    study: Study, run: GridRun, model: Any, data: StudyData, folder: RunFolder, wanted: tuple[str, ...], share: int
) -> Measured:
    """Takes the measures of the columns and writes run.json, if an analysis is among them, and last measures.json.

    Args:
        study: The study.
        run: The run.
        model: Its trained model.
        data: The study's.
        folder: Files of the run.
        wanted: Columns to measure; what was measured of others stays.
        share: Processes that share the memory.

    Raises:
        SdkerasError: The analysis or the trajectory failed.
    """
    started = time.monotonic()
    before = folder.measured()
    of = columns(study.measures)
    found: dict[str, _Found] = {}
    analysed = tuple(name for name in wanted if of[name] in OF_ANALYSES)
    if analysed:
        there = _made_before(study, before, folder) if all(name in READ for name in analysed) else None
        if there is not None:
            found |= {name: _read(there, name) for name in analysed}
        else:
            found |= _analysed(study, run, model, data, folder, analysed, share)
    for kind in ("backward", "forward"):
        of_kind = [column for column in wanted if column not in analysed and f"-{kind}-" in column]
        if of_kind:
            found |= _of_trajectory(study, _trajectory(study, run, model, data, folder, kind), of_kind, share)
    values = {} if before is None else dict(before.values)
    values |= {column: Value(*found[column], study.measured_by(column)) for column in wanted}
    ordered = {column: values[column] for column in (*of, *values)}
    spent = time.monotonic() - started
    measured = Measured(ordered, spent + (0.0 if before is None else before.seconds))
    folder.write(folder.measures, measured)
    return measured


def _analysed(
    study: Study, run: GridRun, model: Any, data: StudyData, folder: RunFolder, names: tuple[str, ...], share: int
) -> dict[str, _Found]:
    measures, unfit = dict(study.measures), {}
    while True:
        try:
            answer = analyze(
                model,
                data.train,
                batch_size=run.settings.get("batch_size"),
                seed=run.settings["seed"],
                memory_gb=memory_limit(None) / share / 1e9,
                workers=1,
                class_weight=study.weights_by_class,
                **{**analysis_options(measures), **study.analysis},
            )
            break
        except MapError as error:  # before any work; the other measures can be taken
            name = next(name for name, estimator in ESTIMATOR_OF.items() if estimator == error.estimator)
            unfit[name] = str(error)
            del measures[name]
            if not any(name in measures for name in names):
                raise
    answer.save(folder.analysis, follow_links=False)
    return {name: (None, None, unfit[name]) if name in unfit else _read(answer, name) for name in names}


def _made_before(study: Study, before: Measured | None, folder: RunFolder) -> Analysis | None:
    """The analysis on file, if measures of it were taken with the study's settings."""
    known, of = {} if before is None else before.values, columns(study.measures)
    taken = [name for name in known if of.get(name) in OF_ANALYSES]
    if not any(known[name].by == study.measured_by(name) for name in taken):
        return None
    try:
        return Analysis.load(folder.analysis)
    except SdkerasError:
        return None


def _read(answer: Analysis, name: str) -> _Found:
    """One measure of an analysis."""
    if name in ESTIMATOR_OF:
        estimates = [each for each in answer.estimates if each.estimator == ESTIMATOR_OF[name]]
        if not estimates:
            return None, None, without_a_rate(answer.optimizer) or "the budget of the analysis ended before it"
        # Definition 4.1 where the spectra are exact.
        value = estimates[0].value if estimates[0].definition_value is None else estimates[0].definition_value
        span = estimates[0].interval
        return value, None if span is None else 0.5 * (span[1] - span[0]), ""
    if name == "lambda_1":
        sharpness = answer.rds_sharpness
        if sharpness is None or not len(sharpness.leading):
            return None, None, without_a_rate(answer.optimizer) or "the analysis has no exponents"
        return float(sharpness.leading[0]), None, ""
    found = answer.hessian.largest if name == "sharpness" else answer.hessian.trace
    if found is None:
        return None, None, "the analysis has none"
    return found.value, found.residual if found.stderr is None else found.stderr, ""


def without_a_rate(optimizer: OptimizerInfo) -> str:
    """Why an analysis could take no measure that needs a learning rate; "" where it had one."""
    rate = optimizer.learning_rate
    if math.isnan(rate):
        return f"{optimizer.name} has no single learning rate; add learning_rate = NUMBER under [analysis]"
    if rate > 0:
        return ""
    after = "" if optimizer.iterations is None else f" after {optimizer.iterations:,} steps"
    return f"the learning rate is {rate:g}{after}; add learning_rate = 'peak' under [analysis]"


def _trajectory(study: Study, run: GridRun, model: Any, data: StudyData, folder: RunFolder, kind: str) -> Trajectory:
    if kind == "backward":
        if not folder.trajectory.exists():
            raise SdkerasError(
                "its recorded trajectory has been removed after the measures were taken; delete the run's folder to "
                "train it again"
            )
        return Trajectory.load(folder.trajectory)
    asked = study.trajectory
    with_losses = any("-forward-data" in column for column in columns(study.measures))
    return simulate(
        model,
        data.train,
        steps=asked.steps,
        batch_size=run.settings.get("batch_size"),
        every=asked.every,
        projection=asked.projection,
        seed=run.settings["seed"],
        losses_on=data.examples(asked.examples) if with_losses else None,
        class_weight=study.weights_by_class,
    )


def _of_trajectory(study: Study, trajectory: Trajectory, wanted: list[str], share: int) -> dict[str, _Found]:
    """E_alpha and the dimension in each metric that is wanted."""
    if trajectory.stopped_at is not None:
        return dict.fromkeys(wanted, (None, None, f"the trajectory diverged at step {trajectory.stopped_at:,}"))
    memory = memory_limit(None) / share / 1e9
    of = trajectory_measures.measure(trajectory, study.trajectory.alpha, memory_gb=memory)
    found: dict[str, _Found] = {}
    for column in wanted:
        measure, _, metric = parts_of_column(column)
        trees = of.euclidean if metric == "euclidean" else of.data
        if trees is None:
            raise SdkerasError("its recorded trajectory has no losses; delete the run's folder to train it again")
        dimension = trees.ph_dimension
        if measure == "ph_dimension":
            found[column] = dimension.value, dimension.stderr, dimension.reason
        elif trees.e_alpha == 0:
            found[column] = None, None, "all iterates are equal; at a learning rate of 0 training does not move"
        elif math.isfinite(trees.e_alpha):
            found[column] = trees.e_alpha, None, ""
        else:
            found[column] = None, None, f"float64 does not hold it at alpha = {study.trajectory.alpha:g}"
    return found
