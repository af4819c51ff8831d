"""Real data that come with the package, read without TensorFlow and without a download."""

from __future__ import annotations

from sdkeras.datasets.digits import load_digits

__all__ = ["load_digits"]
