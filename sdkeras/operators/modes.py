"""Names of what an analysis may choose, for signatures and the command line; nothing here needs TensorFlow."""

MODES = ("train", "inference")
DTYPES = ("float32", "float64")
PRODUCT_MODES = ("auto", "reverse-over-reverse", "forward-over-reverse", "finite-differences")
