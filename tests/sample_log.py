"""Records as the callback leaves them in its log, for the tests of the log and its reports."""

import math

from sdkeras.results.log import Header, Measurement
from sdkeras.results.measured import Measured

HEADER = Header("0.1.0", "2.21", "3.15", "net", 2000, "SGD", 100, 64, 32, "ab12", 0, ("sharpness", "sharpness_ratio"))
FOUND = Measurement(
    source="fit",
    step=10,
    epoch=1,
    time="2026-01-01T00:00:00+00:00",
    seconds=1.5,
    num_hvps=40,
    learning_rate=0.1,
    threshold=20.0,
    operator="H",
    map="sgd",
    state_size=2000,
    values={
        "sharpness": Measured(12.0, True, residual=0.01),
        "sharpness_ratio": Measured(0.6, True, residual=5e-4),
        "sharpness_dimension": Measured(1530.0, True, interval=(1520.0, 1540.0)),
        "sharpness_codimension": Measured(470.0, True, interval=(460.0, 480.0)),
        "hessian_trace": Measured(math.nan, False, stderr=2.0),
    },
    metrics={"loss": 0.5, "val_loss": 0.75},
    notes=("a note",),
)
