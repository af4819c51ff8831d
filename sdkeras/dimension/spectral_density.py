"""The pooled spectrum of minibatches by itself, where there is no map from eigenvalues to exponents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import attrs
import numpy as np

from sdkeras.results.arrays import FloatArray
from sdkeras.results.estimates import Spectrum

Mapper = Callable[[Callable[[int], Spectrum], Iterable[int]], Iterable[Spectrum]]


@attrs.frozen(eq=False)
class PooledSpectrum:
    """The mean over runs of their measures: total mass n.

    Attributes:
        nodes: Eigenvalues, ascending, shape [k].
        weights: Their masses, shape [k].
        num_runs: Runs pooled, a minibatch and a probe each.
        interrupted: Whether Ctrl-C ended them.
    """

    nodes: FloatArray
    weights: FloatArray
    num_runs: int
    interrupted: bool


def pooled_spectrum(
    run: Callable[[int], Spectrum],
    *,
    num_runs: int,
    max_hvps: int | None = None,
    deadline: float | None = None,
    group: int = 1,
    mapper: Mapper = map,
) -> PooledSpectrum:
    """The spectra of so many runs as one; at least one run is made, and no more than the budget has room for.

    Args:
        run: i -> the spectrum of run i.
        num_runs: Runs to make.
        max_hvps: Budget of Hessian-vector products.
        deadline: `time.monotonic()` after which no run is begun.
        group: Runs handed to the mapper at once.
        mapper: Applies a function to run numbers, in order; a thread pool's map, for example.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first run was complete.
    """
    spectra: list[Spectrum] = []
    spent, interrupted = 0, False
    try:
        while len(spectra) < num_runs:
            count = min(group, num_runs - len(spectra))
            if spectra:
                cost = spent / len(spectra)
                if max_hvps is not None:
                    count = min(count, int((max_hvps - spent) // cost))
                if count < 1 or (deadline is not None and time.monotonic() >= deadline):
                    break
            elif max_hvps is not None:
                count = 1  # its cost is known after the first
            for spectrum in mapper(run, range(len(spectra), len(spectra) + count)):
                spectra.append(spectrum)
                spent += spectrum.num_matvecs
    except KeyboardInterrupt:
        if not spectra:
            raise
        interrupted = True
    nodes = np.concatenate([spectrum.nodes for spectrum in spectra])
    weights = np.concatenate([spectrum.weights for spectrum in spectra]) / len(spectra)
    order = np.argsort(nodes, kind="stable")
    return PooledSpectrum(nodes[order], weights[order], len(spectra), interrupted)
