"""The plugin contract: the kinds of estimators, what one declares, and the decorators that declare it.

A kind fixes the source and the result. `estimate` raises NonFiniteError where a product holds NaN or infinity, and lets
a BudgetError of the source pass or returns what it has by then. The decorators are typed, so that mypy rejects a wrong
source or result where the plugin is defined; it is rejected again when the class is made and when it runs.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypedDict, TypeVar, Unpack

import attrs
import numpy as np

from sdkeras.errors import PluginError
from sdkeras.linalg.operators import LinearMap, OperatorBatch, SymmetricOperator, TangentFlow
from sdkeras.results.arrays import WEIGHT_SUM_TOLERANCE, Value
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
    """One kind: its name (entry-point group `sdkeras.<name>`), the type of its source and of its result.

    `steps` is the field that raises the resolution of its estimators, where they declare none.
    """

    name: str
    source: type
    result: type
    steps: str = "num_steps"

    @property
    def group(self) -> str:
        return f"sdkeras.{self.name}"


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("eigenpairs", SymmetricOperator, Eigenpairs),
        Kind("spectrum", SymmetricOperator, Spectrum),
        Kind("trace", SymmetricOperator, TraceEstimate, steps="num_probes"),
        Kind("singular_values", LinearMap, SingularValues),
        Kind("lyapunov", TangentFlow, LyapunovExponents),
    )
}

# An instance of a declared class, and what it returns; of which class, only the registry knows.
Estimator: TypeAlias = Any
Source: TypeAlias = SymmetricOperator | LinearMap | TangentFlow
Result: TypeAlias = Any

E = TypeVar("E", bound=EigenpairsEstimator)
S = TypeVar("S", bound=SpectrumEstimator)
T = TypeVar("T", bound=TraceEstimator)
V = TypeVar("V", bound=SingularValuesEstimator)
L = TypeVar("L", bound=LyapunovEstimator)


class Declarable(TypedDict, total=False):
    """The arguments of a decorator beside the name: the fields of `Capabilities`."""

    exact: bool
    steps: str | None
    needs_basis: bool
    own_rate: bool
    many: bool
    in_analysis: Mapping[str, Value]


@attrs.frozen
class Capabilities:
    """Capabilities of an estimator, as its decorator declares them. The core asks for nothing else.

    Attributes:
        exact: It returns the values themselves, to rounding, from a dense matrix that takes one product per dimension.
            Its field `memory_gb` limits that matrix; None leaves the limit to the analysis.
        steps: Field that raises the resolution and the cost: steps, with one basis vector for each, or a trace's
            probes; None if there is none. Default: 'num_steps', of a trace 'num_probes', where the class has it.
        needs_basis: A run keeps one vector per step, unless its field `reorthogonalize` is False. Default: whether the
            class has that field.
        own_rate: It works on the map |1 - eta * alpha|: the analysis sets its field `learning_rate`, and refuses the
            estimator where the map is another one. Fields `bin_width`, `bandwidth`, `offset` and `num_quantiles` are in
            units of eta * alpha. Default: whether the class has the field `learning_rate`.
        many: It has estimate_many(source: OperatorBatch, *, seeds) -> tuple of results, that of each operator with its
            seed as `estimate` gives it, to rounding. Default: whether it has.
        in_analysis: Values that its fields take in an analysis, where the user sets none.
    """

    exact: bool = False
    steps: str | None = None
    needs_basis: bool = False
    own_rate: bool = False
    many: bool = False
    in_analysis: Mapping[str, Value] = attrs.field(factory=dict)


@attrs.frozen
class Declaration:
    """Record that a decorator attaches to a class."""

    kind: str
    name: str
    capabilities: Capabilities


def eigenpairs_estimator(name: str, **capabilities: Unpack[Declarable]) -> Callable[[type[E]], type[E]]:
    """Declares an estimator of eigenpairs, SymmetricOperator -> Eigenpairs, and its `Capabilities`."""
    return lambda cls: _declare(KINDS["eigenpairs"], name, cls, capabilities)


def spectrum_estimator(name: str, **capabilities: Unpack[Declarable]) -> Callable[[type[S]], type[S]]:
    """Declares an estimator of the whole spectrum, SymmetricOperator -> Spectrum, and its `Capabilities`."""
    return lambda cls: _declare(KINDS["spectrum"], name, cls, capabilities)


def trace_estimator(name: str, **capabilities: Unpack[Declarable]) -> Callable[[type[T]], type[T]]:
    """Declares an estimator of the trace, SymmetricOperator -> TraceEstimate, and its `Capabilities`."""
    return lambda cls: _declare(KINDS["trace"], name, cls, capabilities)


def singular_values_estimator(name: str, **capabilities: Unpack[Declarable]) -> Callable[[type[V]], type[V]]:
    """Declares an estimator of singular values, LinearMap -> SingularValues, and its `Capabilities`."""
    return lambda cls: _declare(KINDS["singular_values"], name, cls, capabilities)


def lyapunov_estimator(name: str, **capabilities: Unpack[Declarable]) -> Callable[[type[L]], type[L]]:
    """Declares an estimator of Lyapunov exponents, TangentFlow -> LyapunovExponents, and its `Capabilities`."""
    return lambda cls: _declare(KINDS["lyapunov"], name, cls, capabilities)


_declared: dict[tuple[str, str], type[Estimator]] = {}


def declared() -> dict[tuple[str, str], type[Estimator]]:
    """Estimator classes that were declared in this process, by (kind, name)."""
    return dict(_declared)


def forget_since(known: Mapping[tuple[str, str], type[Estimator]]) -> None:
    """Takes back every declaration made since `declared()` returned `known`, such as those of a broken plugin."""
    for key in set(_declared) - set(known):
        del _declared[key]


def _declare(kind: Kind, name: str, cls: type[Estimator], capabilities: Declarable) -> type[Estimator]:
    _check_class(kind, name, cls)
    taken = _declared.get((kind.name, name))
    if taken is not None and _origin(taken) != _origin(cls):
        raise PluginError(
            f"{kind.name} plugin '{name}' is declared twice, by {_origin(taken)} and {_origin(cls)}; "
            "a name is taken once, so give one of them another name."
        )
    fields = attrs.fields_dict(cls)
    by_field = Capabilities(
        steps=kind.steps if kind.steps in fields else None,
        needs_basis="reorthogonalize" in fields,
        own_rate="learning_rate" in fields,
        many=hasattr(cls, "estimate_many"),
    )
    can = attrs.evolve(by_field, **capabilities)
    _check_capabilities(kind, name, cls, can)
    cls.estimate = _checked(kind, name, cls.estimate)
    if can.many:
        cls.estimate_many = _checked_many(kind, name, cls.estimate_many)
    cls.__sdkeras__ = Declaration(kind.name, name, can)
    _declared[kind.name, name] = cls
    return cls


# Checks where a class is declared and at each of its runs


def _origin(cls: type[Estimator]) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _check_class(kind: Kind, name: str, cls: type[Estimator]) -> None:
    """Refuses a class that is not an estimator of this kind."""
    who = f"{kind.name} plugin '{name}' ({_origin(cls)})"

    def named(hint: object) -> str:
        return "nothing (no annotation)" if hint is None else getattr(hint, "__name__", str(hint))

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
        raise PluginError(f"{who}: estimate() is annotated to return {named(result)}, expected {kind.result.__name__}.")
    source = hints.get("source")
    if not (isinstance(source, type) and source in (*kind.source.__mro__, kind.source)):
        raise PluginError(
            f"{who}: estimate() takes a {named(source)}, but a {kind.name} estimator gets a {kind.source.__name__}."
        )


def _check_capabilities(kind: Kind, name: str, cls: type[Estimator], can: Capabilities) -> None:
    """Refuses capabilities whose field or method the class lacks."""
    needed = {
        "exact": (can.exact, "memory_gb"),
        "steps": (can.steps is not None, can.steps),
        "needs_basis": (can.needs_basis, "reorthogonalize"),
        "own_rate": (can.own_rate, "learning_rate"),
        **{f"in_analysis[{field!r}]": (True, field) for field in can.in_analysis},
    }
    fields, who = attrs.fields_dict(cls), f"{kind.name} plugin '{name}' ({_origin(cls)})"
    for capability, (claimed, field) in needed.items():
        if claimed and field not in fields:
            raise PluginError(f"{who} declares {capability} and has no field {field}.")
    if not can.many:
        return
    many = getattr(cls, "estimate_many", None)
    if not callable(many) or list(inspect.signature(many).parameters)[1:] != ["source", "seeds"]:
        raise PluginError(f"{who} declares many and has no method estimate_many(self, source, *, seeds).")
    if kind.source is not SymmetricOperator:
        raise PluginError(f"{who} declares many, which estimators of a {kind.source.__name__} cannot.")


def _checked(kind: Kind, name: str, estimate: Callable[..., Result]) -> Callable[..., Result]:
    """The estimate method with its contract checked on every call."""

    @functools.wraps(estimate)
    def run(self: Estimator, source: Source, *, seed: int) -> Result:
        if kind.source is SymmetricOperator and not isinstance(source, SymmetricOperator):
            raise PluginError(
                f"{kind.name} plugin '{name}' got a {type(source).__name__} as its source, expected a "
                f"{kind.source.__name__} (for a Keras model: sdkeras.HessianOperator(loss))."
            )
        result = estimate(self, source, seed=seed)
        _check_result(kind, name, type(self), "estimate", result, source.size)
        return result

    return run


def _checked_many(kind: Kind, name: str, estimate_many: Callable[..., Sequence[Result]]) -> Callable[..., Result]:
    """The estimate_many method with its contract checked on every call."""

    @functools.wraps(estimate_many)
    def run(self: Estimator, source: OperatorBatch, *, seeds: Sequence[int]) -> tuple[Result, ...]:
        results = tuple(estimate_many(self, source, seeds=seeds))
        if len(results) != source.count:
            raise PluginError(
                f"{kind.name} plugin '{name}': estimate_many() returns {len(results)} results for {source.count} "
                f"operators (from {_origin(type(self))})."
            )
        for result in results:
            _check_result(kind, name, type(self), "estimate_many", result, source.size)
        return results

    return run


def _check_result(kind: Kind, name: str, cls: type[Estimator], method: str, result: Result, size: int) -> None:
    if not isinstance(result, kind.result):
        raise PluginError(
            f"{kind.name} plugin '{name}': {method}() returns {type(result).__name__}, expected "
            f"{kind.result.__name__} (from {_origin(cls)})."
        )
    if isinstance(result, (Spectrum, SingularValues)) and not np.isclose(result.size, size, rtol=WEIGHT_SUM_TOLERANCE):
        raise PluginError(
            f"{kind.name} plugin '{name}': the weights sum to {result.size:g}, expected the operator's size "
            f"{size} (from {_origin(cls)})."
        )
