"""sdkeras: the geometry of the place in weight space that a Keras training has found.

Importing the package loads neither TensorFlow nor Keras; the names that need them load them on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sdkeras._version import __version__ as __version__
from sdkeras.errors import SdkerasError

if TYPE_CHECKING:
    from sdkeras import callbacks as callbacks
    from sdkeras import datasets as datasets
    from sdkeras import plot as plot
    from sdkeras import study as study
    from sdkeras import testing as testing
    from sdkeras.dimension.sharpness import sharpness_dimension
    from sdkeras.estimators.kinds import (
        eigenpairs_estimator,
        lyapunov_estimator,
        singular_values_estimator,
        spectrum_estimator,
        trace_estimator,
    )
    from sdkeras.estimators.registry import get_estimator
    from sdkeras.linalg.diagonal import diagonal
    from sdkeras.linalg.operators import LinearMap, OperatorBatch, SymmetricOperator, TangentFlow
    from sdkeras.operators.fisher import FisherOperator
    from sdkeras.operators.gauss_newton import GaussNewtonOperator
    from sdkeras.operators.hessian import HessianOperator
    from sdkeras.operators.loss import EmpiricalLoss
    from sdkeras.reporting.compare import compare
    from sdkeras.reporting.comparison import Comparison
    from sdkeras.results.answers import Analysis, CriticalRun, LandscapeRun, LyapunovRun
    from sdkeras.results.estimates import (
        DiagonalEstimate,
        Eigenpairs,
        LyapunovExponents,
        SingularValues,
        Spectrum,
        TraceEstimate,
    )
    from sdkeras.runs.analyze import analyze
    from sdkeras.runs.critical import critical
    from sdkeras.runs.landscape import landscape
    from sdkeras.runs.laplace import laplace
    from sdkeras.runs.lyapunov import lyapunov
    from sdkeras.runs.posterior import Laplace
    from sdkeras.runs.track import track
    from sdkeras.training_step.flow import TrainingFlow
    from sdkeras.training_step.map import UpdateMap


__all__ = [
    "Analysis",
    "Comparison",
    "CriticalRun",
    "DiagonalEstimate",
    "Eigenpairs",
    "EmpiricalLoss",
    "FisherOperator",
    "GaussNewtonOperator",
    "HessianOperator",
    "LandscapeRun",
    "Laplace",
    "LinearMap",
    "LyapunovExponents",
    "LyapunovRun",
    "OperatorBatch",
    "SdkerasError",
    "SingularValues",
    "Spectrum",
    "SymmetricOperator",
    "TangentFlow",
    "TraceEstimate",
    "TrainingFlow",
    "UpdateMap",
    "analyze",
    "compare",
    "critical",
    "diagonal",
    "eigenpairs_estimator",
    "get_estimator",
    "landscape",
    "laplace",
    "lyapunov",
    "lyapunov_estimator",
    "sharpness_dimension",
    "singular_values_estimator",
    "spectrum_estimator",
    "trace_estimator",
    "track",
]

_HOME = {
    "Analysis": "sdkeras.results.answers",
    "Comparison": "sdkeras.reporting.comparison",
    "CriticalRun": "sdkeras.results.answers",
    "DiagonalEstimate": "sdkeras.results.estimates",
    "Eigenpairs": "sdkeras.results.estimates",
    "EmpiricalLoss": "sdkeras.operators.loss",
    "FisherOperator": "sdkeras.operators.fisher",
    "GaussNewtonOperator": "sdkeras.operators.gauss_newton",
    "HessianOperator": "sdkeras.operators.hessian",
    "LandscapeRun": "sdkeras.results.answers",
    "Laplace": "sdkeras.runs.posterior",
    "LinearMap": "sdkeras.linalg.operators",
    "LyapunovExponents": "sdkeras.results.estimates",
    "LyapunovRun": "sdkeras.results.answers",
    "OperatorBatch": "sdkeras.linalg.operators",
    "SingularValues": "sdkeras.results.estimates",
    "Spectrum": "sdkeras.results.estimates",
    "SymmetricOperator": "sdkeras.linalg.operators",
    "TangentFlow": "sdkeras.linalg.operators",
    "TraceEstimate": "sdkeras.results.estimates",
    "TrainingFlow": "sdkeras.training_step.flow",
    "UpdateMap": "sdkeras.training_step.map",
    "analyze": "sdkeras.runs.analyze",
    "compare": "sdkeras.reporting.compare",
    "critical": "sdkeras.runs.critical",
    "diagonal": "sdkeras.linalg.diagonal",
    "eigenpairs_estimator": "sdkeras.estimators.kinds",
    "get_estimator": "sdkeras.estimators.registry",
    "landscape": "sdkeras.runs.landscape",
    "laplace": "sdkeras.runs.laplace",
    "lyapunov": "sdkeras.runs.lyapunov",
    "lyapunov_estimator": "sdkeras.estimators.kinds",
    "sharpness_dimension": "sdkeras.dimension.sharpness",
    "singular_values_estimator": "sdkeras.estimators.kinds",
    "spectrum_estimator": "sdkeras.estimators.kinds",
    "trace_estimator": "sdkeras.estimators.kinds",
    "track": "sdkeras.runs.track",
}
# Public, and imported when they are first used.
_PACKAGES = ("callbacks", "datasets", "plot", "study", "testing")


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _PACKAGES:  # which the import puts into this one
        return importlib.import_module(f"sdkeras.{name}")
    raise AttributeError(f"module 'sdkeras' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES, "__version__", "errors"])
