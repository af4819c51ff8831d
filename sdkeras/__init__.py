"""sdkeras: the geometry of the place in weight space that a Keras training has found.

Importing the package loads neither TensorFlow nor Keras; the names that need them load them on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sdkeras.errors import SdkerasError

if TYPE_CHECKING:
    from sdkeras import callbacks as callbacks
    from sdkeras.analysis import analyze
    from sdkeras.dimension.sharpness import sharpness_dimension
    from sdkeras.kinds import (
        eigenpairs_estimator,
        lyapunov_estimator,
        singular_values_estimator,
        spectrum_estimator,
        trace_estimator,
    )
    from sdkeras.lyapunov_run import lyapunov
    from sdkeras.operators.base import LinearMap, SymmetricOperator, TangentFlow
    from sdkeras.operators.hessian import HessianOperator
    from sdkeras.operators.loss import EmpiricalLoss
    from sdkeras.operators.training_flow import TrainingFlow
    from sdkeras.operators.update_map import UpdateMap
    from sdkeras.records import Eigenpairs, LyapunovExponents, SingularValues, Spectrum, TraceEstimate
    from sdkeras.registry import get_estimator
    from sdkeras.reporting.compare import compare
    from sdkeras.reporting.comparison import Comparison
    from sdkeras.reporting.schema import Analysis, LyapunovRun
    from sdkeras.tracking import track

__version__ = "0.2.0.dev0"

__all__ = [
    "Analysis",
    "Comparison",
    "Eigenpairs",
    "EmpiricalLoss",
    "HessianOperator",
    "LinearMap",
    "LyapunovExponents",
    "LyapunovRun",
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
    "eigenpairs_estimator",
    "get_estimator",
    "lyapunov",
    "lyapunov_estimator",
    "sharpness_dimension",
    "singular_values_estimator",
    "spectrum_estimator",
    "trace_estimator",
    "track",
]

_HOME = {
    "Analysis": "sdkeras.reporting.schema",
    "Comparison": "sdkeras.reporting.comparison",
    "Eigenpairs": "sdkeras.records",
    "EmpiricalLoss": "sdkeras.operators.loss",
    "HessianOperator": "sdkeras.operators.hessian",
    "LinearMap": "sdkeras.operators.base",
    "LyapunovExponents": "sdkeras.records",
    "LyapunovRun": "sdkeras.reporting.schema",
    "SingularValues": "sdkeras.records",
    "Spectrum": "sdkeras.records",
    "SymmetricOperator": "sdkeras.operators.base",
    "TangentFlow": "sdkeras.operators.base",
    "TraceEstimate": "sdkeras.records",
    "TrainingFlow": "sdkeras.operators.training_flow",
    "UpdateMap": "sdkeras.operators.update_map",
    "analyze": "sdkeras.analysis",
    "compare": "sdkeras.reporting.compare",
    "eigenpairs_estimator": "sdkeras.kinds",
    "get_estimator": "sdkeras.registry",
    "lyapunov": "sdkeras.lyapunov_run",
    "lyapunov_estimator": "sdkeras.kinds",
    "sharpness_dimension": "sdkeras.dimension.sharpness",
    "singular_values_estimator": "sdkeras.kinds",
    "spectrum_estimator": "sdkeras.kinds",
    "trace_estimator": "sdkeras.kinds",
    "track": "sdkeras.tracking",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name == "callbacks":  # a package, which the import puts into this one
        return importlib.import_module("sdkeras.callbacks")
    raise AttributeError(f"module 'sdkeras' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "callbacks"})
