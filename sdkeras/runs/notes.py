"""Warnings about the model, the data and the optimizer that an analysis' numbers rest on."""

from __future__ import annotations

from collections.abc import Iterator

import keras

from sdkeras.operators import precision
from sdkeras.operators.hessian import HessianOperator
from sdkeras.results.note import Note
from sdkeras.runs import assumptions
from sdkeras.runs.problem import Problem
from sdkeras.training_step import settings


def findings(problem: Problem, hessian: HessianOperator) -> Iterator[Note]:
    """Caveats that come before any number."""
    check, options, optimizer = hessian.verification, problem.options, problem.optimizer
    if not check.passed:
        yield Note(
            "unverified",
            f"the operator FAILED its verification (error {check.finite_difference_error:.2g} against finite "
            f"differences, symmetry error {check.symmetry_error:.2g}) and was used anyway: no number here "
            "can be trusted.",
        )
    if check.mode == "finite-differences" and options.dtype == "float32":
        yield Note(
            "finite-differences",
            f"Hessian-vector products are differences of float32 gradients, good to "
            f"{check.finite_difference_error:.1g}; analyse in float64 for better ones (`dtype='float64'`).",
        )
    clipped = None if problem.loss_fn is not None else assumptions.logits_as_probabilities(problem.loss)
    if clipped is not None:
        yield Note("logits-as-probabilities", clipped)
    reduced = precision.reduced_policies(problem.compiled_as)
    if reduced:
        yield Note(
            "reduced-precision",
            f"the model computes in {', '.join(reduced)}; it was analysed in {options.dtype} throughout, at "
            "the same weights: training itself rounds more coarsely than these products.",
        )
    for note in problem.loss.notes:
        yield Note("data", f"{note}.")
    unconnected = problem.loss.engine(options.product_mode).unconnected
    if unconnected:
        yield Note(
            "unconnected",
            f"the loss does not depend on {', '.join(unconnected)}; these parameters count as flat directions.",
        )
    if problem.loss_fn is None and type(problem.model).train_step not in (
        keras.Model.train_step,
        keras.Sequential.train_step,
    ):
        yield Note(
            "train-step",
            "the model has its own train_step; compute_loss was analysed instead of it. If it trains another loss, "
            "give that as a loss_fn(model, batch) (`loss='FILE.py:FUNCTION'`).",
        )
    if optimizer is not None and options.map != "full":  # whose step is the optimizer's own, with notes of its own
        yield from (Note(code, message) for code, message in optimizer.notes)
        yield from _about_decay(problem, optimizer)
        if problem.rate is not None and problem.exponents.preconditioned:
            yield Note(
                "frozen-preconditioner",
                f"SD and its exponents are of a step with P, from the second moments of {optimizer.name} as the last "
                "step left them, held fixed. Training moves P, so that they are not of training's own random dynamical "
                "system: neither D_s <= SD nor the bounds apply to them (`map='full'` or `lyapunov` take that).",
            )


def _about_decay(problem: Problem, optimizer: settings.OptimizerSettings) -> Iterator[Note]:
    decay = problem.decay
    if problem.rate is None:
        return
    if decay and problem.exponents.name == "hessian":
        yield Note(
            "weight-decay-ignored",
            f"the weight decay {decay:g} of {optimizer.name} is not in the map |1 - eta*alpha|: "
            f"with it, neutral directions contract by {problem.rate * decay:.2g} a step.",
        )
    excluded = problem.excluded
    if excluded and problem.shift is None and problem.exponents.name != "hessian":
        yield Note(
            "weight-decay-exclusions",
            f"the optimizer excludes {len(excluded)} variables from weight decay ({', '.join(excluded[:4])}); "
            "the 2x2 blocks of momentum apply it to all.",
        )
