"""Where the sharpness sits: the diagonal block of each layer's parameters in the Hessian."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import attrs
import numpy as np

from sdkeras.errors import BudgetError
from sdkeras.linalg.operators import RestrictedOperator, SymmetricOperator
from sdkeras.linalg.probes import probes_of
from sdkeras.linalg.vectors import dot
from sdkeras.operators.hessian import HessianOperator
from sdkeras.results.answers import LayerSharpness
from sdkeras.results.dimension import SharpnessDimension
from sdkeras.results.estimates import Eigenpairs
from sdkeras.results.measured import Measured
from sdkeras.results.note import Note
from sdkeras.runs.budget import Budget, Notes
from sdkeras.runs.measure import (
    USUAL_STEPS,
    HessianRuns,
    dimension,
    eigenpairs,
    sampling,
    trace_with_evidence,
    with_evidence,
)
from sdkeras.runs.problem import Problem

# Probes for the traces: each product serves every layer.
_NUM_PROBES = 32
_FEWEST_PROBES = 2


def layers(
    problem: Problem, hessian: HessianOperator, budget: Budget, whole: SharpnessDimension | None
) -> tuple[tuple[LayerSharpness, ...], Notes]:
    """Largest eigenvalue, trace and codimension of each layer's diagonal block, one after the other.

    Whichever of them the budget has no room for is None; after Ctrl-C the layers are those that were done before. The
    dimensions of all blocks share as many products as that of the `whole` took. A block's SD is of the minibatch
    Hessians, as if the others stood still.
    """
    blocks, name = problem.loss.layout.layers, problem.estimators.spectrum[-1] if whole is None else whole.estimator
    budget.tell("traces of the layers")
    first = budget.part(1 / 3)
    traces, _ = budget.measured(
        "traces of the layers",
        lambda: (block_traces(first.watched(hessian), blocks, problem.options.seed), ()),
        tuple[dict[str, Measured], Notes],
    )
    rows: list[LayerSharpness] = []
    notes: list[Note] = []
    stages = 2 * len(blocks)  # left: an eigenvalue and a dimension of each

    def largest(block: slice, share: Budget) -> tuple[Eigenpairs, Notes]:
        return eigenpairs(problem, RestrictedOperator(share.watched(hessian), block), share), ()

    for layer, block in blocks.items():
        budget.tell(f"layer {layer}")
        pairs, _ = budget.measured(
            f"largest eigenvalue of {layer}",
            functools.partial(largest, block, budget.part(1 / stages)),
            tuple[Eigenpairs, Notes],
        )
        share, outcome = budget.part(1 / (stages - 1)), None
        if problem.maps_spectra:
            how = sampling(problem, name, most_products=_share(whole, block, len(blocks)))
            how = attrs.evolve(how, of=f"layer {layer}")
            runs = HessianRuns(problem, hessian, block)
            outcome, more = budget.measured("", functools.partial(dimension, problem, runs, share, how))
            notes += more if outcome is not None else ()
        stages -= 2
        if budget.interrupted:
            break
        estimate = None if outcome is None else outcome.sharpness_dimension
        rows.append(
            LayerSharpness(
                name=layer,
                num_parameters=block.stop - block.start,
                largest=None if pairs is None else with_evidence(pairs, 0),
                trace=None if traces is None else traces[layer],
                codimension=None if estimate is None else estimate.codimension,
                codimension_interval=None if estimate is None else estimate.codimension_interval,
            )
        )
    return tuple(rows), (*notes, *_notes_of_absent(rows, problem.maps_spectra))


def cost_of_layers(problem: Problem, whole: int) -> int:
    """Products of `layers`, whose dimensions share as many as that of the whole takes."""
    blocks, batches = problem.loss.layout.layers.values(), len(problem.loss.batches)
    eigenvalues = sum(min(USUAL_STEPS, block.stop - block.start) * batches for block in blocks)
    return int(_NUM_PROBES * batches + eigenvalues + (whole if problem.maps_spectra else 0))


def _share(whole: SharpnessDimension | None, block: slice, layers: int) -> int | None:
    """Products of a block's dimension at most."""
    if whole is None:
        return None
    if whole.num_steps is None:  # exact: as many minibatches as the whole
        return int(whole.num_runs * (block.stop - block.start))
    return whole.num_hvps // layers


def _notes_of_absent(layers: Sequence[LayerSharpness], mapped: bool) -> Iterator[Note]:
    """Names what the budget left no room for in which layers."""
    for field, words in {"largest": "largest eigenvalue", "trace": "trace", "codimension": "codimension"}.items():
        names = [layer.name for layer in layers if getattr(layer, field) is None]
        if names and (mapped or field != "codimension"):
            few = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            message = (
                f"{words} of {len(names):,} of the {len(layers):,} layers ({few}): the budget left no room for it."
            )
            yield Note("not-measured", message)


def block_traces(hessian: SymmetricOperator, blocks: Mapping[str, slice], seed: int) -> dict[str, Measured]:
    """Traces of diagonal blocks from the same random signs z: E z_b'(H z)_b = trace of block b.

    Off-diagonal blocks add noise but no bias, and every product serves all the blocks. From two probes on the budget
    may end them.

    Raises:
        BudgetError: It has no room for two.
    """
    samples: list[list[float]] = []
    for probe in probes_of(hessian, _NUM_PROBES, seed=seed, stream=1):
        try:
            product = hessian.matvec(probe)
        except BudgetError:
            if len(samples) < _FEWEST_PROBES:
                raise
            break
        samples.append([dot(probe[block], product[block]) for block in blocks.values()])
    measured = {}
    for name, values in zip(blocks, zip(*samples, strict=True), strict=True):
        stderr = float(np.std(values, ddof=1) / np.sqrt(len(values)))
        measured[name] = trace_with_evidence(float(np.mean(values)), stderr)
    return measured
