"""The contract of estimators, checked where a class is declared and at each of its runs."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import numpy as np

from sdkeras.errors import PluginError
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.results.arrays import WEIGHT_SUM_TOLERANCE
from sdkeras.results.estimates import SingularValues, Spectrum

if TYPE_CHECKING:
    from sdkeras.estimators.kinds import Capabilities, Estimator, Kind, Result, Source


def origin(cls: type[Estimator]) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def check_class(kind: Kind, name: str, cls: type[Estimator]) -> None:
    """Refuses a class that is not an estimator of this kind.

    Raises:
        PluginError: See above; the message says what is wrong with it.
    """
    who = f"{kind.name} plugin '{name}' ({origin(cls)})"
    if not attrs.has(cls):
        raise PluginError(f"{who} is not an attrs class; put @attrs.frozen under the decorator.")
    estimate = getattr(cls, "estimate", None)
    if not callable(estimate):
        raise PluginError(f"{who} has no estimate(self, source, *, seed) method.")
    parameters = inspect.signature(estimate).parameters
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    if list(parameters)[1:] != ["source", "seed"] or parameters["seed"].kind is not keyword_only:
        raise PluginError(
            f"{who}: estimate has the parameters ({', '.join(parameters)}), expected (self, source, *, seed)."
        )
    try:
        hints = typing.get_type_hints(estimate)
    except (NameError, TypeError) as error:
        raise PluginError(f"{who}: the annotations of estimate cannot be read: {error}.") from error
    result = hints.get("return")
    if not (isinstance(result, type) and issubclass(result, kind.result)):
        raise PluginError(
            f"{who}: estimate() is annotated to return {_type_name(result)}, expected {kind.result.__name__}."
        )
    source = hints.get("source")
    if not (isinstance(source, type) and source in (*kind.source.__mro__, kind.source)):
        raise PluginError(
            f"{who}: estimate() takes a {_type_name(source)}, but a {kind.name} estimator gets a "
            f"{kind.source.__name__}."
        )


def check_capabilities(kind: Kind, name: str, cls: type[Estimator], can: Capabilities) -> None:
    """Refuses capabilities whose field or method the class lacks.

    Raises:
        PluginError: See above.
    """
    needed = {
        "exact": (can.exact, "memory_gb"),
        "steps": (can.steps is not None, can.steps),
        "needs_basis": (can.needs_basis, "reorthogonalize"),
        "own_rate": (can.own_rate, "learning_rate"),
        **{f"in_analysis[{field!r}]": (True, field) for field in can.in_analysis},
    }
    fields = attrs.fields_dict(cls)
    for capability, (claimed, field) in needed.items():
        if claimed and field not in fields:
            raise PluginError(
                f"{kind.name} plugin '{name}' ({origin(cls)}) declares {capability} and has no field {field}."
            )
    if can.many and not callable(getattr(cls, "estimate_many", None)):
        raise PluginError(f"{kind.name} plugin '{name}' ({origin(cls)}) declares many and has no estimate_many method.")


def _type_name(hint: object) -> str:
    return "nothing (no annotation)" if hint is None else getattr(hint, "__name__", str(hint))


def checked(kind: Kind, name: str, estimate: Callable[..., Result]) -> Callable[..., Result]:
    """The estimate method with its contract checked on every call."""

    @functools.wraps(estimate)
    def run(self: Estimator, source: Source, *, seed: int) -> Result:
        if kind.source is SymmetricOperator and not isinstance(source, SymmetricOperator):
            raise PluginError(
                f"{kind.name} plugin '{name}' got a {type(source).__name__} as its source, expected a "
                f"{kind.source.__name__} (for a Keras model: sdkeras.HessianOperator(loss))."
            )
        result = estimate(self, source, seed=seed)
        if not isinstance(result, kind.result):
            raise PluginError(
                f"{kind.name} plugin '{name}': estimate() returns {type(result).__name__}, "
                f"expected {kind.result.__name__} (from {origin(type(self))})."
            )
        if isinstance(result, (Spectrum, SingularValues)) and not _weights_sum_to(result, source.size):
            raise PluginError(
                f"{kind.name} plugin '{name}': the weights sum to {result.size:g}, expected the operator's size "
                f"{source.size} (from {origin(type(self))})."
            )
        return result

    return run


def _weights_sum_to(result: Spectrum | SingularValues, size: int) -> bool:
    return bool(np.isclose(result.size, size, rtol=WEIGHT_SUM_TOLERANCE))
