"""The kinds of estimators: what each takes, what it gives, and the decorator that declares one.

A kind fixes the source and the result. The decorators are typed, so that mypy rejects a wrong source or
result where the plugin is defined; `_declare` rejects it again when the class is made and when it runs.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import attrs
import numpy as np

from sdkeras.errors import PluginError
from sdkeras.linalg.operators import LinearMap, SymmetricOperator, TangentFlow
from sdkeras.results.arrays import WEIGHT_SUM_TOLERANCE
from sdkeras.results.estimates import Eigenpairs, LyapunovExponents, SingularValues, Spectrum, TraceEstimate


class EigenpairsEstimator(Protocol):
    def estimate(self, source: SymmetricOperator, *, seed: int) -> Eigenpairs: ...


class SpectrumEstimator(Protocol):
    def estimate(self, source: SymmetricOperator, *, seed: int) -> Spectrum: ...


class TraceEstimator(Protocol):
    def estimate(self, source: SymmetricOperator, *, seed: int) -> TraceEstimate: ...


class SingularValuesEstimator(Protocol):
    def estimate(self, source: LinearMap, *, seed: int) -> SingularValues: ...


class LyapunovEstimator(Protocol):
    def estimate(self, source: TangentFlow, *, seed: int) -> LyapunovExponents: ...


@attrs.frozen
class Kind:
    """One kind: its name (entry-point group `sdkeras.<name>`), the type of its source and of its result."""

    name: str
    source: type
    result: type

    @property
    def group(self) -> str:
        return f"sdkeras.{self.name}"


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("eigenpairs", SymmetricOperator, Eigenpairs),
        Kind("spectrum", SymmetricOperator, Spectrum),
        Kind("trace", SymmetricOperator, TraceEstimate),
        Kind("singular_values", LinearMap, SingularValues),
        Kind("lyapunov", TangentFlow, LyapunovExponents),
    )
}

E = TypeVar("E", bound=EigenpairsEstimator)
S = TypeVar("S", bound=SpectrumEstimator)
T = TypeVar("T", bound=TraceEstimator)
V = TypeVar("V", bound=SingularValuesEstimator)
L = TypeVar("L", bound=LyapunovEstimator)


def eigenpairs_estimator(name: str) -> Callable[[type[E]], type[E]]:
    """Declares an estimator of eigenpairs: SymmetricOperator -> Eigenpairs."""
    return lambda cls: _declare(KINDS["eigenpairs"], name, cls)


def spectrum_estimator(name: str) -> Callable[[type[S]], type[S]]:
    """Declares an estimator of the whole spectrum: SymmetricOperator -> Spectrum.

    One with a field `learning_rate` works on the map |1 - eta * alpha|: the analysis sets the field, and refuses the
    estimator where the map is another one. Its fields `bin_width` and `bandwidth` are in units of eta * alpha, and the
    analysis compares them with |t*|.
    """
    return lambda cls: _declare(KINDS["spectrum"], name, cls)


def trace_estimator(name: str) -> Callable[[type[T]], type[T]]:
    """Declares an estimator of the trace: SymmetricOperator -> TraceEstimate."""
    return lambda cls: _declare(KINDS["trace"], name, cls)


def singular_values_estimator(name: str) -> Callable[[type[V]], type[V]]:
    """Declares an estimator of singular values: LinearMap -> SingularValues."""
    return lambda cls: _declare(KINDS["singular_values"], name, cls)


def lyapunov_estimator(name: str) -> Callable[[type[L]], type[L]]:
    """Declares an estimator of Lyapunov exponents: TangentFlow -> LyapunovExponents."""
    return lambda cls: _declare(KINDS["lyapunov"], name, cls)


@attrs.frozen
class Declaration:
    """What a decorator attached to a class: its kind and its name."""

    kind: str
    name: str


_declared: dict[tuple[str, str], type[Any]] = {}


def declared() -> dict[tuple[str, str], type[Any]]:
    """Estimator classes that were declared in this process, by (kind, name)."""
    return dict(_declared)


def forget_since(known: Mapping[tuple[str, str], type[Any]]) -> None:
    """Takes back what was declared since `declared()` gave this: names that a broken plugin took on its way."""
    for key in set(_declared) - set(known):
        del _declared[key]


def _origin(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _declare(kind: Kind, name: str, cls: type[Any]) -> type[Any]:
    _check_class(kind, name, cls)
    taken = _declared.get((kind.name, name))
    if taken is not None and _origin(taken) != _origin(cls):
        raise PluginError(
            f"{kind.name} plugin '{name}' is declared twice, by {_origin(taken)} and {_origin(cls)}; "
            "a name is taken once, so give one of them another name."
        )
    cls.estimate = _checked(kind, name, cls.estimate)
    cls.__sdkeras__ = Declaration(kind.name, name)
    _declared[kind.name, name] = cls
    return cls


def _check_class(kind: Kind, name: str, cls: type[Any]) -> None:
    who = f"{kind.name} plugin '{name}' ({_origin(cls)})"
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


def _type_name(hint: Any) -> str:
    return "nothing (no annotation)" if hint is None else getattr(hint, "__name__", str(hint))


def _checked(kind: Kind, name: str, estimate: Callable[..., Any]) -> Callable[..., Any]:
    """The estimate method with its contract checked on every call."""

    @functools.wraps(estimate)
    def checked(self: Any, source: Any, *, seed: int) -> Any:
        if kind.source is SymmetricOperator and not isinstance(source, SymmetricOperator):
            raise PluginError(
                f"{kind.name} plugin '{name}' got a {type(source).__name__} as its source, expected a "
                f"{kind.source.__name__} (for a Keras model: sdkeras.HessianOperator(loss))."
            )
        result = estimate(self, source, seed=seed)
        if not isinstance(result, kind.result):
            raise PluginError(
                f"{kind.name} plugin '{name}': estimate() returns {type(result).__name__}, "
                f"expected {kind.result.__name__} (from {_origin(type(self))})."
            )
        if isinstance(result, (Spectrum, SingularValues)) and not _weights_sum_to(result, source.size):
            raise PluginError(
                f"{kind.name} plugin '{name}': the weights sum to {result.size:g}, expected the operator's size "
                f"{source.size} (from {_origin(type(self))})."
            )
        return result

    return checked


def _weights_sum_to(result: Spectrum | SingularValues, size: int) -> bool:
    return bool(np.isclose(result.size, size, rtol=WEIGHT_SUM_TOLERANCE))
