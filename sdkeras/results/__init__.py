"""Frozen records of numbers with their evidence. NumPy only; they compute and print nothing."""
