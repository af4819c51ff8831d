"""From spectra to exponents, the sharpness dimension and stability thresholds. NumPy and SciPy only."""
