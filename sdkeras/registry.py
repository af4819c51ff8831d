"""How estimators are found: entry points first (metadata only), the module only when it is used.

Entry-point group `sdkeras.<kind>`, entry name = estimator name. The built-in estimators come in by the same
door. A class declared in this process (a notebook, say) is found as well.
"""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import attrs

from sdkeras import kinds
from sdkeras.errors import PluginError, UnknownEstimatorError

# The kinds an analysis uses; the others serve maps and flows.
ANALYSIS_KINDS = ("spectrum", "eigenpairs", "trace")


@attrs.frozen
class PluginInfo:
    """One installed estimator as `sdkeras plugins list` shows it; problem is None when it loads."""

    kind: str
    name: str
    distribution: str
    version: str
    target: str
    problem: str | None = None


def _entry_points(kind: str) -> list[importlib.metadata.EntryPoint]:
    entries = importlib.metadata.entry_points(group=kinds.KINDS[kind].group)
    return sorted(entries, key=lambda entry: entry.name)


def _source(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist is not None else ("unknown", "?")


def _check_kind(kind: str) -> None:
    if kind not in kinds.KINDS:
        raise UnknownEstimatorError(f"no estimator kind '{kind}'; the kinds are: {', '.join(kinds.KINDS)}.")


def names(kind: str) -> list[str]:
    """The names of one kind's estimators, sorted; reads metadata only."""
    _check_kind(kind)
    local = {name for declared_kind, name in kinds.declared() if declared_kind == kind}
    return sorted(local | {entry.name for entry in _entry_points(kind)})


def get_estimator(kind: str, name: str) -> type[Any]:
    """The class of an estimator.

    Args:
        kind: One of 'eigenpairs', 'spectrum', 'trace', 'singular_values', 'lyapunov'.
        name: Its name, for example 'slq'.

    Returns:
        The estimator's attrs class; its fields are the settings.

    Raises:
        UnknownEstimatorError: No such kind or name; the message has the nearest name.
        PluginError: The plugin cannot be loaded, or two distributions claim the name.
    """
    _check_kind(kind)
    entries = [entry for entry in _entry_points(kind) if entry.name == name]
    # A distribution may be visible twice (an editable install beside a wheel): one target is one claim.
    if len({(_source(entry)[0], entry.value) for entry in entries}) > 1:
        claims = " and ".join(sorted({f"{_source(entry)[0]} {_source(entry)[1]}" for entry in entries}))
        raise PluginError(
            f"{kind} plugin '{name}' is claimed by {claims}; a name is taken once: uninstall or rename one."
        )
    if entries:
        return _load(kind, entries[0])
    local = kinds.declared().get((kind, name))
    if local is not None:
        return local
    raise UnknownEstimatorError(_unknown(name, kind, names(kind)))


def kind_of(name: str, kinds_wanted: Sequence[str]) -> str:
    """The first of these kinds that has an estimator of this name; reads metadata only.

    Raises:
        UnknownEstimatorError: None has; the message has the nearest name.
    """
    for kind in kinds_wanted:
        if name in names(kind):
            return kind
    raise UnknownEstimatorError(_unknown(name, "installed", [known for kind in kinds_wanted for known in names(kind)]))


def _unknown(name: str, kind: str, installed: list[str]) -> str:
    """The message for a name that is not installed, with the nearest one that is."""
    near = difflib.get_close_matches(name, installed, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"no {kind} estimator '{name}'; {hint}Installed: {', '.join(installed) or 'none'}."


def _load(kind: str, entry: importlib.metadata.EntryPoint) -> type[Any]:
    distribution, version = _source(entry)
    who = f"{kind} plugin '{entry.name}' (from {distribution} {version})"
    try:
        cls = entry.load()
    except PluginError:
        raise
    except Exception as error:  # whatever a third party's module raises must stop nothing else
        raise PluginError(f"{who} cannot be loaded: {type(error).__name__}: {error}") from error
    declaration = getattr(cls, "__sdkeras__", None)
    if declaration is None:
        raise PluginError(f"{who}: {entry.value} is not declared with @sdkeras.{kind}_estimator('{entry.name}').")
    if (declaration.kind, declaration.name) != (kind, entry.name):
        raise PluginError(
            f"{who}: {entry.value} declares {declaration.kind} '{declaration.name}'; the entry point's "
            "group and name must be the same."
        )
    loaded: type[Any] = cls
    return loaded


def installed() -> list[PluginInfo]:
    """Every installed estimator, broken ones with their reason; loads each one's module."""
    infos = []
    for kind in kinds.KINDS:
        seen = set()
        for entry in _entry_points(kind):
            distribution, version = _source(entry)
            if (distribution, entry.name, entry.value) in seen:
                continue
            seen.add((distribution, entry.name, entry.value))
            problem = None
            try:
                get_estimator(kind, entry.name)
            except PluginError as error:
                problem = str(error)
            infos.append(PluginInfo(kind, entry.name, distribution, version, entry.value, problem))
    return infos
