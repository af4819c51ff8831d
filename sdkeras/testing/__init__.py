"""For authors of estimators: operators with known spectra, and the check that every estimator must pass.

Importing this package loads neither TensorFlow nor Keras.
"""

from sdkeras.testing.contract import check_estimator
from sdkeras.testing.operators import CountingOperator, MatrixFlow, MatrixMap, dense_operator, rotation

__all__ = ["CountingOperator", "MatrixFlow", "MatrixMap", "check_estimator", "dense_operator", "rotation"]
