"""Answers from measurements: the parts that are written alike whoever measured, and a monitor's measurement as one."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import attrs
import numpy as np

from sdkeras.dimension.exponents import Exponents
from sdkeras.dimension.sampling import Outcome
from sdkeras.operators.hessian import HessianOperator
from sdkeras.results.answers import Analysis, HessianSummary, ModelInfo, SpectrumSummary
from sdkeras.results.arrays import Array, Value
from sdkeras.results.dimension import EdgeOfStability
from sdkeras.results.log import Measurement
from sdkeras.results.measured import Measured
from sdkeras.results.note import Note
from sdkeras.runs.budget import Notes
from sdkeras.runs.edge import edge_of_stability
from sdkeras.runs.notes import findings
from sdkeras.runs.problem import Problem
from sdkeras.runs.provenance import data_info, provenance

_MAX_NODES = 2000
# Whose exponents the map full takes.
OPERATOR = "singular values of J"


def without_a_rate(problem: Problem) -> str:
    """Names the results that need a learning rate, and why they are missing."""
    supremum = " and its supremum" if problem.options.snapshots is not None else ""
    return (
        f"threshold, ratio, exponents, sharpness dimension{supremum} and bounds need a learning rate and are missing: "
        f"{problem.no_rate}"
    )


def model_info(problem: Problem, product_mode: str) -> ModelInfo:
    """The model and its loss."""
    trainable = problem.model.trainable_variables
    return ModelInfo(
        name=str(problem.model.name),
        num_parameters=int(sum(np.prod(v.shape, dtype=np.int64) for v in trainable)),
        num_trainable_analysed=problem.loss.size,
        mode=problem.options.mode,
        loss=problem.loss_words,
        unconnected=problem.loss.engine(product_mode).unconnected,
    )


def compressed(nodes: Array, weights: Array, operator: str, exponents: Exponents | None = None) -> SpectrumSummary:
    """At most 2,000 nodes: neighbours of about equal mass share are merged into their mean; with their exponents."""
    if len(nodes) > _MAX_NODES:
        edges = np.unique(np.linspace(0, len(nodes), _MAX_NODES + 1).astype(int)[:-1])
        mass = np.add.reduceat(weights, edges)
        moment = np.add.reduceat(weights * nodes, edges)
        means = np.add.reduceat(nodes, edges) / np.diff(np.append(edges, len(nodes)))
        nodes = np.where(mass > 0, moment / np.where(mass > 0, mass, 1.0), means)
        weights = mass
    nodes, weights = np.asarray(nodes, np.float64), np.asarray(weights, np.float64)
    if exponents is None:
        return SpectrumSummary(nodes, weights, operator)
    moduli = exponents.log_eigenvalues(nodes) if exponents.branches == 2 else None
    return SpectrumSummary(nodes, weights, operator, exponents(nodes), moduli)


@attrs.frozen
class LastMeasurement:
    """A measurement of a monitor, and what a report of it needs beside its numbers.

    `outcome` is None where SD was not measured.
    """

    measurement: Measurement
    problem: Problem
    notes: Notes
    hessian: HessianOperator
    outcome: Outcome | None


def joined(
    problem: Problem,
    operator: HessianOperator,
    outcomes: Sequence[Outcome],
    exponents: Exponents | None,
    *,
    cost: tuple[int, float],
    **measured: Value,
) -> Analysis:
    """One answer from estimates of SD, and fields of it that were measured beside them.

    `exponents` is the map of the first estimate, if there is one; `cost` the number of products and the time of the
    start; `measured` are the other fields of `Analysis`.
    """
    options, first = problem.options, outcomes[0] if outcomes else None
    if first is not None:
        name = OPERATOR if problem.is_full else problem.operator
        measured["spectrum"] = compressed(first.nodes, first.weights, name, exponents)
    num_hvps, started = cost
    return Analysis(
        provenance=provenance(
            problem.source, seed=options.seed, dtype=options.dtype, num_hvps=num_hvps, started=started
        ),
        model=model_info(problem, options.product_mode),
        data=data_info(problem.source, problem.loss.num_examples),
        optimizer=problem.optimizer_info(),
        verification=operator.verification,
        sharpness_dimension=None if first is None else first.sharpness_dimension,
        estimates=tuple(outcome.sharpness_dimension for outcome in outcomes),
        rds_sharpness=None if first is None else first.rds_sharpness,
        **measured,
    )


def answer_of(last: LastMeasurement, about: str) -> Analysis:
    """A measurement as an analysis, and when it was measured."""
    measurement, problem, outcomes = last.measurement, last.problem, [last.outcome] if last.outcome else []
    notes = [*findings(problem, last.hessian), *last.notes, *(note for one in outcomes for note in one.warnings)]
    if problem.rate is None:
        notes.append(Note("no-learning-rate", without_a_rate(problem)))
    return joined(
        problem,
        last.hessian,
        outcomes,
        problem.exponents if outcomes else None,
        cost=(measurement.num_hvps, time.monotonic() - measurement.seconds),
        hessian=HessianSummary(
            largest=_known(measurement.values.get("sharpness")),
            smallest=None,
            trace=_known(measurement.values.get("hessian_trace")),
        ),
        edge_of_stability=_edge(last),
        bounds=measurement.bounds,
        spectrum=None,
        warnings=(*dict.fromkeys(notes), Note("while-training", about)),
    )


def _known(reading: Measured | None) -> Measured | None:
    return None if reading is None or math.isnan(reading.value) else reading


def _edge(last: LastMeasurement) -> EdgeOfStability:
    """The verdict on the sharpness that the ratio is of; on H's where that is the threshold's own operator."""
    problem, numerator = last.problem, last.measurement.value("sharpness_preconditioned")
    if numerator is None and not problem.preconditioned:
        numerator = last.measurement.value("sharpness")
    known = numerator is not None and math.isfinite(numerator)
    reason = problem.unscaled or ("" if known else "its sharpness was not measured")
    return edge_of_stability(problem, numerator if known else None, reason)
