"""Names of what an analysis may choose, for signatures and the command line; nothing here needs TensorFlow."""

MODES = ("train", "inference")
DTYPES = ("float32", "float64")
# Beside those: activations in bfloat16, weights, gradients, products and their sums in float32.
MIXED = "mixed_bfloat16"
PRECISIONS = (*DTYPES, MIXED)
JIT = ("auto", "on", "off")
PRODUCT_MODES = ("auto", "linearized", "reverse-over-reverse", "forward-over-reverse", "finite-differences")
# What the option `device` takes: a kind, or one or several devices of any.
DEVICE = r"auto|cpu|gpu|tpu|(cpu|gpu|tpu):\d{1,3}(,(cpu|gpu|tpu):\d{1,3})*"
