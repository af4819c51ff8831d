"""The estimators of an analysis: which are used, with which settings, and what it means when one fails."""

from __future__ import annotations

import functools
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs
import numpy as np

from sdkeras.dimension.exponents import ExponentMap
from sdkeras.errors import MapError, PluginError, SdkerasError
from sdkeras.estimators import registry
from sdkeras.estimators.kinds import Capabilities, Declaration, Estimator, Result, Source
from sdkeras.files.user_code import USER_ERRORS, last_line
from sdkeras.linalg.operators import OperatorBatch, SymmetricOperator
from sdkeras.results.arrays import Array, Value, is_number

# The estimator of each kind where none is named; of the kinds that give a whole spectrum the one for exact values; and
# the one for a largest eigenvalue where the memory has no room for a Krylov basis.
DEFAULTS = {
    "spectrum": "slq",
    "singular_values": "golub-kahan",
    "eigenpairs": "lanczos",
    "trace": "randomized-trace",
    "lyapunov": "lyapunov-qr",
}
EXACT = {"spectrum": "exact", "singular_values": "dense-svd"}
_WITHOUT_BASIS = "power-iteration"
_OF_KIND = {"spectrum": "spectra of a Hessian", "singular_values": "singular values of a step"}
# Types of fields whose values are checked before the work, and can be written as text.
_PLAIN: dict[type, Callable[[object], bool]] = {
    bool: lambda value: isinstance(value, (bool, np.bool_)),
    int: functools.partial(is_number, whole=True),
    float: is_number,
    str: lambda value: isinstance(value, str),
    types.NoneType: lambda value: value is None,
}
_EIGEN_STEPS = 100
# Fewer Lanczos steps than this do not resolve the ends of a spectrum; it goes without reorthogonalisation then, or,
# where an eigenvector is wanted, power iteration takes over.
_FEWEST_EIGEN_STEPS = 16
# Of a warm start: the old eigenvector takes one dimension of the Krylov space, the random part must find a new outlier
# with the rest; after 10 steps it sees one 1.5 times the bulk's end.
_FEWEST_WARM_STEPS = 10


@attrs.frozen
class Chosen:
    """Names of the estimators to use: those of SD in order, exact first if requested; one of each other kind.

    Attributes:
        spectrum: Estimators of kind `kind`: 'spectrum', or 'singular_values' for the map full.
    """

    spectrum: tuple[str, ...]
    eigenpairs: str = DEFAULTS["eigenpairs"]
    trace: str = DEFAULTS["trace"]
    kind: str = "spectrum"

    def can(self, name: str) -> Capabilities:
        """Capabilities of one of the spectrum estimators."""
        return capabilities(registry.get_estimator(self.kind, name))


class Request(Protocol):
    """Caller's options for estimators; see `sdkeras.analyze`."""

    @property
    def map(self) -> str: ...
    @property
    def estimators(self) -> tuple[str, ...]: ...
    @property
    def settings(self) -> Mapping[str, Mapping[str, Value]]: ...
    @property
    def exact(self) -> bool | None: ...
    @property
    def exact_minibatches(self) -> int | None: ...


def chosen(options: Request) -> Chosen:
    """The estimators that the options name, or the defaults; those that do not serve the map are refused."""
    of_map, other = ("singular_values", "spectrum") if options.map == "full" else ("spectrum", "singular_values")
    names: dict[str, list[str]] = {of_map: [], "eigenpairs": [DEFAULTS["eigenpairs"]], "trace": [DEFAULTS["trace"]]}
    kinds = (*names, other)
    for name in options.estimators:
        kind = registry.kind_of(name, kinds)
        if kind == other:
            raise SdkerasError(
                f"the estimator '{name}' is one of {_OF_KIND[other]}, and the map '{options.map}' takes "
                f"{_OF_KIND[of_map]}: {', '.join(registry.names(of_map))}."
            )
        registry.get_estimator(kind, name)
        names[kind].append(name)
    exact = [name for name in dict.fromkeys(names[of_map]) if capabilities(registry.get_estimator(of_map, name)).exact]
    others = [name for name in names[of_map] if name not in exact] if names[of_map] else [DEFAULTS[of_map]]
    if not exact and (options.exact or options.exact_minibatches is not None):
        exact = [EXACT[of_map]]
    selection = Chosen((*exact, *others), names["eigenpairs"][-1], names["trace"][-1], of_map)
    used = {*selection.spectrum, selection.eigenpairs, selection.trace}
    for name, settings in options.settings.items():
        if name not in used:
            raise SdkerasError(
                f"settings were given for '{name}', which is not used here; used are: {', '.join(sorted(used))}."
            )
        configured(registry.get_estimator(registry.kind_of(name, kinds), name), settings)
    return selection


def configured(cls: type[Estimator], settings: Mapping[str, Value]) -> Estimator:
    """An estimator with the given fields; an unknown one, or a value of another type or out of range, is reported."""
    for name, kinds in plain_types(cls).items():
        if name in settings and not any(_PLAIN[kind](settings[name]) for kind in kinds):
            words = f"{name} is {settings[name]!r}; it must be of type {type_name(kinds)}"
            raise SdkerasError(f"settings of {cls.__name__}: {words}.")
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        fields = ", ".join(field.name for field in attrs.fields(cls)) or "none"
        reason = error.args[0] if error.args else type(error).__name__
        raise SdkerasError(f"settings of {cls.__name__}: {reason}; its fields are: {fields}.") from error


def plain_types(cls: type[Estimator]) -> dict[str, tuple[type, ...]]:
    """Types, one or alternatives, of the fields that are flags, numbers, text or None, as far as they can be read."""
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError):
        return {}
    kinds = {name: typing.get_args(hint) or (hint,) for name, hint in hints.items()}
    return {name: each for name, each in kinds.items() if set(each) <= set(_PLAIN)}


def type_name(kinds: tuple[type, ...]) -> str:
    """The types as they are declared: 'float | None'."""
    return " | ".join("None" if kind is types.NoneType else kind.__name__ for kind in kinds)


def capabilities(estimator: Estimator) -> Capabilities:
    """Capabilities that an estimator, or its class, declares."""
    declared: Declaration = estimator.__sdkeras__
    return declared.capabilities


def for_analysis(kind: str, name: str, settings: Mapping[str, Value]) -> Estimator:
    """An estimator with the user's settings, and for the rest those that it declares for an analysis."""
    cls = registry.get_estimator(kind, name)
    return configured(cls, {**capabilities(cls).in_analysis, **settings})


def steps_of(estimator: Estimator) -> int | None:
    """Value of the field that raises its resolution, or None if it has none."""
    field = capabilities(estimator).steps
    return None if field is None else int(getattr(estimator, field))


def with_steps(estimator: Estimator, steps: int | None, *, basis: bool = True) -> Estimator:
    """The estimator with this many steps, and without a basis in memory where there is no room for one."""
    can = capabilities(estimator)
    if steps is None or can.steps is None:
        return estimator
    changes: dict[str, Value] = {can.steps: steps}
    if can.needs_basis and not basis:
        changes["reorthogonalize"] = False
    return attrs.evolve(estimator, **changes)


def held_to(estimator: Estimator, memory: float) -> Estimator:
    """An exact estimator that sets no limit of its own held to this many bytes; any other as it is."""
    if capabilities(estimator).exact and estimator.memory_gb is None:
        return attrs.evolve(estimator, memory_gb=memory / 1e9)
    return estimator


def estimator_of_extremes(name: str, settings: Mapping[str, Value], *, most_steps: int) -> Estimator:
    """The eigenpairs estimator for both ends of a spectrum, without its basis where the memory has no room for it.

    With the basis it returns eigenvectors too, which take no more products, where it has such a setting.
    """
    estimator = for_analysis("eigenpairs", name, settings)
    can, steps = capabilities(estimator), steps_of(estimator)
    if can.steps is None or steps is None or not can.needs_basis:
        return estimator
    if can.steps not in settings and most_steps >= _FEWEST_EIGEN_STEPS:
        steps = min(steps, most_steps)
    limits = {can.steps: steps, "reorthogonalize": most_steps >= steps}
    if "eigenvectors" in settings_of(estimator):
        limits["eigenvectors"] = most_steps >= steps and settings.get("reorthogonalize") is not False
    return for_analysis("eigenpairs", name, {**limits, **settings})


def estimator_of_spectrum(name: str, settings: Mapping[str, Value], exponents: ExponentMap) -> Estimator:
    """The spectrum estimator; one that works on |1 - eta * alpha| gets the map's eta, if that is the map (MapError)."""
    cls, fields, rate = registry.get_estimator("spectrum", name), dict(settings), exponents.learning_rate
    if capabilities(cls).own_rate:
        if not exponents.is_sgd_like:
            raise MapError(
                name,
                f"the estimator {name} knows only the map |1 - eta*alpha|, and the optimizer's own step is another one "
                f"({exponents.name}, momentum {exponents.momentum:g}, weight decay {exponents.weight_decay:g}); "
                "analyse that map (`map='hessian'`; in a study map = 'hessian' under [analysis]), or take another "
                "estimator.",
            )
        if fields.setdefault("learning_rate", rate) != rate:
            raise SdkerasError(
                f"{name}.learning_rate is {fields['learning_rate']!r}, the analysed step has {rate!r}; leave the "
                "setting out, or change the rate of the whole analysis (`learning_rate`)."
            )
    return for_analysis("spectrum", name, fields)


def settings_of(estimator: Estimator) -> dict[str, Value]:
    """Its fields by name, for the record; a value that is not a number, text or None is abbreviated."""
    values = attrs.asdict(estimator, recurse=False)
    json_types = (bool, int, float, str, type(None))
    return {name: value if isinstance(value, json_types) else reprlib.repr(value) for name, value in values.items()}


def estimator_of_largest(start: Array | None, *, tolerance: float, most_steps: int) -> Estimator:
    """The eigenpairs estimator for the largest eigenvalue alone, from a warm start where there is one."""
    if most_steps < _FEWEST_EIGEN_STEPS:
        # No warm start: power iteration would stay at the old eigenvector until a larger one had outgrown it.
        power_iteration = registry.get_estimator("eigenpairs", _WITHOUT_BASIS)
        return power_iteration(which="largest", num_steps=50, tolerance=tolerance)
    return registry.get_estimator("eigenpairs", DEFAULTS["eigenpairs"])(
        num_largest=1,
        num_smallest=0,
        num_steps=min(_EIGEN_STEPS, most_steps),
        min_steps=0 if start is None else _FEWEST_WARM_STEPS,
        tolerance=tolerance,
        eigenvectors=True,
        start=start,
    )


def estimate(estimator: Estimator, source: Source, seed: int) -> Result:
    """One run of an estimator; unexpected exceptions are reported as the plugin's, not as a bug of the analysis."""
    return _guarded(estimator, source.size, lambda: estimator.estimate(source, seed=seed))


def estimate_many(estimator: Estimator, source: OperatorBatch, seeds: Sequence[int]) -> Sequence[Result]:
    """One run of an estimator on each operator of a batch, likewise."""
    results: Sequence[Result] = _guarded(
        estimator, source.size, lambda: estimator.estimate_many(source, seeds=tuple(seeds))
    )
    return results


def _guarded(estimator: Estimator, size: int, run: Callable[[], Result]) -> Result:
    try:
        return run()
    except (SdkerasError, MemoryError):
        raise
    except USER_ERRORS as error:  # SystemExit too: a plugin must not end the command as if all were well
        declared = type(estimator).__sdkeras__
        raise PluginError(
            f"{declared.kind} estimator '{declared.name}' ({type(estimator).__module__}) failed on "
            f"{size:,} dimensions: {last_line(error).rstrip('.')}; try other settings of it or another one."
        ) from error


class Watched(SymmetricOperator):
    """An operator that reports each product, for the progress line."""

    def __init__(self, operator: SymmetricOperator, tell: Callable[[], None]) -> None:
        self.operator = operator
        self.tell = tell
        self.size = operator.size
        self.dtype = operator.dtype
        self.space = operator.space

    def matvec(self, vector: Array) -> Array:
        product = self.operator.matvec(vector)
        self.tell()
        return product

    def matmat(self, matrix: Array) -> Array:
        product = self.operator.matmat(matrix)
        self.tell()
        return product

    def rows(self, rows: Array) -> Array:
        products = self.operator.rows(rows)
        self.tell()
        return products
