"""Many trainings: grids of them, trajectories of the weights, and which measures correlate with generalization.

Importing this package loads neither TensorFlow nor Keras; the recorder loads them on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdkeras.runs.trajectory import Trajectory
    from sdkeras.study.recorder import TrajectoryRecorder
    from sdkeras.study.topology import measure_trajectory

__all__ = ["Trajectory", "TrajectoryRecorder", "measure_trajectory"]

_HOME = {
    "Trajectory": "sdkeras.runs.trajectory",
    "TrajectoryRecorder": "sdkeras.study.recorder",
    "measure_trajectory": "sdkeras.study.topology",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'sdkeras.study' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
