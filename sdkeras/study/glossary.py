"""What the measures and coefficients of a study are, a sentence or two for each."""

from __future__ import annotations

from collections.abc import Iterable

from sdkeras.study.measures import OF_TRAJECTORIES, parts_of_column

_SD = "the largest dimension whose volumes training steps do not contract on average"
_MEASURES = {
    "sd": f"Sharpness dimension, {_SD}; from all eigenvalues of the Hessians of single minibatches.",
    "sd-slq": "Sharpness dimension by the paper's SD-SLQ: Lanczos quadrature of minibatch Hessians, with the exponents "
    "in bins of one width. Bins that are wide beside |t*| can make it anything.",
    "sd-kde": "Sharpness dimension by the paper's SD-KDE: the same quadrature, with the exponents smoothed by a "
    "Gaussian of one bandwidth.",
    "sd-ps": "Sharpness dimension by the paper's SD-PS: the smoothed spectrum cut into pseudo-eigenvalues of equal "
    "mass.",
    "slq": "Sharpness dimension by Lanczos quadrature of minibatch Hessians as it is, without bins or smoothing.",
    "lambda_1": "The leading RDS-sharpness exponent: the mean over minibatches of the logarithm of the largest factor "
    "by which a training step stretches a small distance; above 0 it stretches. Not the largest eigenvalue of the "
    "Hessian, which is sharpness.",
    "sharpness": "The algebraically largest eigenvalue of the Hessian of the loss over the training data. The paper's "
    "tables have the largest absolute value, which is another one where negative curvature is steeper.",
    "trace": "The trace of that Hessian, the sum of all its eigenvalues.",
    "e_alpha": "Total length of the minimum spanning tree of the iterates, each edge to the power alpha. It grows with "
    "their number, which is the same in all runs of a study.",
    "ph_dimension": "Persistent homology dimension of the iterates: alpha / (1 - s), where s is how fast ln e_alpha "
    "grows with ln of the number of iterates. Its standard error is that of the regression; gaps in the set that come "
    "at regular scales move it by more.",
}
_PARTS = {
    "forward": "Of iterates that were simulated from the end of training on.",
    "backward": "Of the last iterates of training itself.",
    "euclidean": "The distance of two iterates is that of their weights.",
    "data": "The distance of two iterates is the mean absolute difference of their losses, over training examples.",
}
_COEFFICIENTS = {
    "gap": "The absolute value of training minus test, |train - test|. An untrained run whose test accuracy is above "
    "its training accuracy, by chance, has a gap too, and may have a large one.",
    "tau-b": "Kendall's rank correlation over all runs: the pairs of runs that measure and gap put in the same order "
    "minus those that they put in opposite order, as a share of the pairs, with a correction for ties. 1: the same "
    "order; 0: none; -1: the opposite one.",
    "psi": "The granulated coefficient of a setting: the mean of tau-b over groups of runs that differ in this setting "
    "alone. It shows whether a measure correlates with the gap while everything else stays the same.",
}


def measures_in_words(columns: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Name and meaning of each measure, trajectory and distance that the columns of a table hold."""
    names: dict[str, None] = {}
    parts: dict[str, None] = {}
    for column in columns:
        measure, *of = parts_of_column(column) if column.startswith(OF_TRAJECTORIES) else (column,)
        names[measure] = None
        parts |= dict.fromkeys(of)
    return (*((name, _MEASURES[name]) for name in names), *((name, _PARTS[name]) for name in _PARTS if name in parts))


def coefficients_in_words() -> tuple[tuple[str, str], ...]:
    """Name and meaning of the gap and of the coefficients."""
    return tuple(_COEFFICIENTS.items())
