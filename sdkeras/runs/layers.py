"""Where the sharpness sits: the diagonal block of each layer's parameters in the Hessian."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from sdkeras.dimension.sampling import Outcome
from sdkeras.errors import BudgetError
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.linalg.probes import rademacher_probes
from sdkeras.results.answers import LayerSharpness
from sdkeras.results.estimates import Eigenpairs
from sdkeras.results.measured import Measured

# Probes for the traces: each product serves every layer.
_NUM_PROBES = 32
_FEWEST_PROBES = 2
_CONVERGED = 0.05

_T = TypeVar("_T")


def by_layer(
    hessian: SymmetricOperator,
    blocks: Mapping[str, slice],
    *,
    largest: Callable[[slice], Eigenpairs],
    dimension: Callable[[slice], Outcome | None],
    seed: int,
    tell: Callable[[str], None],
) -> Iterator[LayerSharpness]:
    """Largest eigenvalue, trace and codimension of each layer's diagonal block, one after the other.

    Whichever of them the budget has no room for is None.

    Args:
        hessian: The data-set Hessian.
        blocks: Coordinates of each layer, see `Layout.layers`.
        largest: Extreme eigenvalues of a block of it.
        dimension: SD of the block of the minibatch Hessians, as if the others stood still, or None.
        seed: Of the probes.
        tell: Called with what is being done.
    """
    tell("traces of the layers")
    traces = _affordable(lambda: block_traces(hessian, blocks, seed=seed))
    for name, block in blocks.items():
        tell(f"layer {name}")
        pairs = _affordable(functools.partial(largest, block))
        outcome = _affordable(functools.partial(dimension, block))
        estimate = None if outcome is None else outcome.sharpness_dimension
        yield LayerSharpness(
            name=name,
            num_parameters=block.stop - block.start,
            largest=None
            if pairs is None
            else Measured(float(pairs.values[0]), bool(pairs.converged[0]), float(pairs.residuals[0])),
            trace=None if traces is None else traces[name],
            codimension=None if estimate is None else estimate.codimension,
            codimension_interval=None if estimate is None else estimate.codimension_interval,
        )


def _affordable(measure: Callable[[], _T]) -> _T | None:
    """What it measures, or None where the budget has no room for it."""
    try:
        return measure()
    except BudgetError:
        return None


def block_traces(hessian: SymmetricOperator, blocks: Mapping[str, slice], *, seed: int) -> dict[str, Measured]:
    """Traces of diagonal blocks from the same random signs z: E z_b'(H z)_b = trace of block b.

    Off-diagonal blocks add noise but no bias, and every product serves all the blocks. From two probes on the budget
    may end them.
    """
    probes = rademacher_probes(hessian.size, _NUM_PROBES, seed=seed, dtype=hessian.dtype, stream=1)
    samples: dict[str, list[float]] = {name: [] for name in blocks}
    for probe in probes:
        try:
            terms = probe.astype(np.float64) * hessian.matvec(probe)
        except BudgetError:
            if min(map(len, samples.values())) < _FEWEST_PROBES:
                raise
            break
        for name, block in blocks.items():
            samples[name].append(float(terms[block].sum()))
    measured = {}
    for name, values in samples.items():
        value, stderr = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
        measured[name] = Measured(value, stderr <= _CONVERGED * abs(value), stderr=stderr)
    return measured
