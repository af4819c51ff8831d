"""For authors of estimators: operators with known spectra, and the check that every estimator must pass.

`python -m sdkeras.testing.layers` is the other test kept here: every layer of the installed Keras, scanned.
Importing this package loads neither TensorFlow nor Keras; `sdkeras.testing.layers` does.
"""

from sdkeras.testing.contract import check_estimator
from sdkeras.testing.operators import CountingOperator, MatrixFlow, MatrixMap, dense_operator, rotation

__all__ = ["CountingOperator", "MatrixFlow", "MatrixMap", "check_estimator", "dense_operator", "rotation"]
