"""The estimators of an analysis: which are used, with which settings, and what it means when one fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from sdkeras import registry
from sdkeras.errors import PluginError, SdkerasError
from sdkeras.operators.base import Array, SymmetricOperator, TangentFlow
from sdkeras.options import Options
from sdkeras.user_code import USER_ERRORS, last_line

_DEFAULT_SPECTRUM = "slq"
_EIGEN_STEPS = 100
# Fewer Lanczos steps than this do not resolve the ends of a spectrum; power iteration takes over.
_FEWEST_EIGEN_STEPS = 16


@attrs.frozen
class Chosen:
    """Names of the estimators to use: spectrum ones in order, exact first when asked for; one of each other kind."""

    spectrum: tuple[str, ...]
    eigenpairs: str = "lanczos"
    trace: str = "randomized-trace"


def chosen(options: Options) -> Chosen:
    """The estimators that the options name, or the defaults.

    Raises:
        SdkerasError: An unknown one, or settings of one that is not used or does not have them.
    """
    names: dict[str, list[str]] = {"spectrum": [], "eigenpairs": ["lanczos"], "trace": ["randomized-trace"]}
    for name in options.estimators:
        kind = registry.kind_of(name, registry.ANALYSIS_KINDS)
        registry.get_estimator(kind, name)
        names[kind].append(name)
    spectrum = [name for name in names["spectrum"] if name != "exact"]
    exact = options.exact or options.exact_minibatches is not None or "exact" in names["spectrum"]
    if not names["spectrum"]:
        spectrum = [_DEFAULT_SPECTRUM]
    found = Chosen((*(["exact"] if exact else []), *spectrum), names["eigenpairs"][-1], names["trace"][-1])
    used = {*found.spectrum, found.eigenpairs, found.trace}
    for name, settings in options.settings.items():
        if name not in used:
            raise SdkerasError(
                f"settings were given for '{name}', which is not used here; used are: {', '.join(sorted(used))}."
            )
        kind = registry.kind_of(name, registry.ANALYSIS_KINDS)
        configured(registry.get_estimator(kind, name), settings)
    return found


def configured(cls: type[Any], settings: Mapping[str, Any]) -> Any:
    """An estimator with the given fields.

    Raises:
        SdkerasError: An unknown field, or a value its validator refuses.
    """
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        fields = ", ".join(field.name for field in attrs.fields(cls)) or "none"
        reason = error.args[0] if error.args else type(error).__name__
        raise SdkerasError(f"settings of {cls.__name__}: {reason}; its fields are: {fields}.") from error


def estimator_of_extremes(name: str, settings: Mapping[str, Any], *, most_steps: int) -> Any:
    """The eigenpairs estimator for both ends of a spectrum, with as many steps as the memory has room for."""
    own = dict(settings)
    if name == "lanczos" and most_steps < _FEWEST_EIGEN_STEPS:
        return registry.get_estimator("eigenpairs", "power-iteration")(which="both", num_steps=50)
    if name == "lanczos":
        own.setdefault("num_steps", min(_EIGEN_STEPS, most_steps))
    if name == "power-iteration":
        own.setdefault("which", "both")
    return configured(registry.get_estimator("eigenpairs", name), own)


def estimator_of_trace(name: str, settings: Mapping[str, Any]) -> Any:
    own = dict(settings)
    if name == "randomized-trace":
        own.setdefault("tolerance", 0.02)
    return configured(registry.get_estimator("trace", name), own)


def estimate(estimator: Any, source: SymmetricOperator | TangentFlow, seed: int) -> Any:
    """One run of an estimator, anybody's: what it raises is told as its failure, not as a bug of the analysis.

    Raises:
        PluginError: It raised something that is neither ours nor a shortage of memory.
    """
    try:
        return estimator.estimate(source, seed=seed)
    except (SdkerasError, MemoryError):
        raise
    except USER_ERRORS as error:  # SystemExit too: a plugin must not end the command as if all were well
        declared = type(estimator).__sdkeras__
        raise PluginError(
            f"{declared.kind} estimator '{declared.name}' ({type(estimator).__module__}) failed on "
            f"{source.size:,} dimensions: {last_line(error).rstrip('.')}; try other settings of it or another one."
        ) from error


class Watched(SymmetricOperator):
    """An operator that tells after each product, for the progress line."""

    def __init__(self, operator: SymmetricOperator, tell: Callable[[], None]) -> None:
        self.operator = operator
        self.tell = tell
        self.size = operator.size
        self.dtype = operator.dtype

    def matvec(self, vector: Array) -> Array:
        product = self.operator.matvec(vector)
        self.tell()
        return product

    def matmat(self, matrix: Array) -> Array:
        product = self.operator.matmat(matrix)
        self.tell()
        return product
