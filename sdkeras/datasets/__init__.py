"""Real data that come with a package, and generated ones that are complete; read without TensorFlow or a download."""

from __future__ import annotations

from sdkeras.datasets.digits import load_digits
from sdkeras.datasets.mnist import load_mnist_5k
from sdkeras.datasets.modular import modular_addition
from sdkeras.datasets.text import character_windows, load_documentation_text

__all__ = ["character_windows", "load_digits", "load_documentation_text", "load_mnist_5k", "modular_addition"]
