"""A spectrum as a histogram."""

from __future__ import annotations

import numpy as np

from sdkeras.results.answers import SpectrumSummary
from sdkeras.results.arrays import FloatArray

_BINS = 64  # TensorBoard draws 30 of them; Weights & Biases takes at most 512


def histogram(spectrum: SpectrumSummary) -> tuple[FloatArray, FloatArray]:
    """Mass of the spectrum's nodes in bins of equal width from the smallest eigenvalue to the largest.

    Returns:
        (masses, edges), of shapes [b] and [b + 1]; the masses sum to that of the spectrum.
    """
    return np.histogram(spectrum.nodes, bins=_BINS, weights=spectrum.weights)
