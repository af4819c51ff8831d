"""Many trainings: grids of them, trajectories of the weights, and which measures correlate with generalization.

Importing this package loads neither TensorFlow nor Keras; the recorder loads them on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdkeras.study.recorder import TrajectoryRecorder
    from sdkeras.study.topology import measure_trajectory
    from sdkeras.study.trajectory import Trajectory

__all__ = ["Trajectory", "TrajectoryRecorder", "measure_trajectory"]

_HOME = {"Trajectory": "trajectory", "TrajectoryRecorder": "recorder", "measure_trajectory": "topology"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'sdkeras.study' has no attribute '{name}'")
    return getattr(importlib.import_module(f"sdkeras.study.{_HOME[name]}"), name)
