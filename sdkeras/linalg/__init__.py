"""Numerical kernels: arrays in, arrays out; no model, no files, no global random state."""
