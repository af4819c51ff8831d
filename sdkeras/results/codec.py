"""Records as plain values and back: strict JSON, NaN and infinities as null."""

from __future__ import annotations

import functools
import math
import typing
from typing import TypeVar

import cattrs
import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.files.reading import blamed_on
from sdkeras.results.arrays import BoolArray, FloatArray, Value

_Rec = TypeVar("_Rec")


def as_plain(record: Value) -> Value:
    """A record as what strict JSON can hold: dicts, lists, texts and numbers, null for what is not finite."""
    return _without_nan(converter().unstructure(record))


def from_plain(value: Value, cls: type[_Rec], where: str, advice: str = "write it again.") -> _Rec:
    """The record that `as_plain` has taken apart; refuses all else, from `where` in the message to the advice."""
    with blamed_on(where, advice):
        try:
            return converter().structure(value, cls)
        except Exception as error:  # cattrs groups whatever the fields raised
            reasons = [each if len(each) <= 200 else f"{each[:197]}..." for each in cattrs.transform_error(error)[:3]]
            raise SdkerasError(f"{where}: {'; '.join(reasons)}; {advice}") from error


@functools.cache
def converter() -> cattrs.Converter:
    """Records to plain values and back: arrays as lists, null as NaN where a number must stand."""
    converter = cattrs.Converter()
    converter.register_structure_hook_func(
        lambda cls: cls == FloatArray,
        lambda value, _: np.array([_number(entry) for entry in _only(list, value)], dtype=np.float64),
    )
    converter.register_structure_hook_func(
        lambda cls: cls == BoolArray, lambda value, _: np.array([_only(bool, entry) for entry in value], np.bool_)
    )
    converter.register_structure_hook(float, lambda value, _: _number(value))
    # cattrs would take bool("false"), which is True, and str(None).
    for kind in (bool, int, str):
        converter.register_structure_hook(kind, lambda value, cls: _only(cls, value))

    def structure_tuple(value: Value, cls: Value) -> tuple[Value, ...]:
        kinds = typing.get_args(cls)
        entries = _only(list, value)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(entries)
        return tuple(converter.structure(entry, kind) for entry, kind in zip(entries, kinds, strict=True))

    converter.register_structure_hook_func(lambda cls: getattr(cls, "__origin__", None) is tuple, structure_tuple)
    return converter


def _only(cls: type, value: Value) -> Value:
    if type(value) is not cls:  # not isinstance: True is no int here
        raise ValueError(f"expected {cls.__name__}, got {value!r}")
    return value


def _number(value: Value) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def _without_nan(value: Value) -> Value:
    """Lists, numbers and nulls only: what strict JSON can hold."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
