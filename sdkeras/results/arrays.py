"""Arrays in records: their types, and the converters and validators that fields share. NumPy, float64."""

from __future__ import annotations

import numbers
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from sdkeras.errors import NonFiniteError

Array: TypeAlias = NDArray[Any]
DType: TypeAlias = np.dtype[Any]
# What a field of a record holds, as it is or as JSON has it.
Value: TypeAlias = Any

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

# ln(0) has no finite value: singular values and factors of a step below this count as it. An additive epsilon would
# shift every neutral direction instead (+0.8 dimensions at 1e-6).
SMALLEST_FACTOR = 1e-12

# Quadrature weights come from float32 products; their sum is exact to a few times m * eps(float64).
WEIGHT_SUM_TOLERANCE = 1e-6


def is_number(value: object, *, whole: bool = False) -> bool:
    """Whether it is a real number, of Python or NumPy, and if asked a whole one; True and False are not."""
    return isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)


def float_array(value: Value) -> FloatArray:
    return np.asarray(value, dtype=np.float64)


def bool_array(value: Value) -> BoolArray:
    return np.asarray(value, dtype=np.bool_)


def finite(instance: Value, attribute: attrs.Attribute[Value], value: Value) -> None:
    if value is not None and not np.all(np.isfinite(value)):
        raise NonFiniteError(
            f"{type(instance).__name__}.{attribute.name} must be finite, but holds NaN or infinity; check the products "
            "it came from."
        )


def vector(instance: Value, attribute: attrs.Attribute[Value], value: Value) -> None:
    if value is not None and value.ndim != 1:
        raise ValueError(
            f"{type(instance).__name__}.{attribute.name} must be one-dimensional, got shape {value.shape}."
        )


def _equal(a: Value, b: Value) -> bool:
    """By element, NaN equal to NaN; None equals None."""
    if a is None or b is None:
        return a is b
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return np.array_equal(a, b, equal_nan=True)


ARRAYS_EQUAL = attrs.cmp_using(eq=_equal)


def check_same_length(instance: Value, first: str, *others: str) -> None:
    length = len(getattr(instance, first))
    for other in others:
        value = getattr(instance, other)
        if value is not None and len(value) != length:
            raise ValueError(
                f"{type(instance).__name__}.{other} has {len(value)} entries, {first} has {length}; "
                "they must be equally long."
            )


def optional_interval(value: Value) -> tuple[float, float] | None:
    """A pair of floats, or None."""
    return None if value is None else (float(value[0]), float(value[1]))
