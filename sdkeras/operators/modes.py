"""Names of what an analysis may choose, for signatures and the command line; nothing here needs TensorFlow."""

from typing import Literal, TypeAlias, get_args

# The type of each choice, which editors complete, and its values, which are checked.
Mode: TypeAlias = Literal["train", "inference"]
Dtype: TypeAlias = Literal["float32", "float64"]
# Beside those: activations in bfloat16, weights, gradients, products and their sums in float32.
Precision: TypeAlias = Literal[Dtype, "mixed_bfloat16"]
Jit: TypeAlias = Literal["auto", "on", "off"]
ProductMode: TypeAlias = Literal[
    "auto", "linearized", "reverse-over-reverse", "forward-over-reverse", "finite-differences"
]
MODES: tuple[Mode, ...] = get_args(Mode)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
MIXED = PRECISIONS[-1]
JIT: tuple[Jit, ...] = get_args(Jit)
PRODUCT_MODES: tuple[ProductMode, ...] = get_args(ProductMode)
# What the option `device` takes: a kind, or one or several devices of any.
DEVICE = r"auto|cpu|gpu|tpu|(cpu|gpu|tpu):\d{1,3}(,(cpu|gpu|tpu):\d{1,3})*"
