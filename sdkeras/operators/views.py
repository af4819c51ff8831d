"""Views of an operator or a loss: the same compiled functions at other weights, on another batch, with a budget."""

from __future__ import annotations

from typing import TypeVar

import attrs

T = TypeVar("T", bound=attrs.AttrsInstance)


def evolved(instance: T, **changes: object) -> T:
    """`attrs.evolve` for a class whose constructor computes its fields (`attrs.frozen(init=False)`)."""
    fields = {field.alias or field.name: getattr(instance, field.name) for field in attrs.fields(type(instance))}
    view = object.__new__(type(instance))
    view.__attrs_init__(**{**fields, **changes})  # type: ignore[attr-defined]
    return view
