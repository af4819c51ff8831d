"""Curvature operators. `base` is NumPy only; the other modules are the only place that knows TensorFlow."""
