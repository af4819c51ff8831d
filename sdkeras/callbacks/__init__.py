"""Callbacks for `Model.fit`."""

from sdkeras.callbacks.sharpness_dimension import SharpnessDimension

__all__ = ["SharpnessDimension"]
