"""How estimators are found: entry points first (metadata only), the module only when it is used.

Entry-point group `sdkeras.<kind>`, entry name = estimator name. The built-in estimators come in by the same
door. A class declared in this process (a notebook, say) is found as well.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Sequence

import attrs

from sdkeras.errors import PluginError, UnknownEstimatorError, did_you_mean
from sdkeras.estimators import kinds
from sdkeras.estimators.kinds import Estimator
from sdkeras.files.user_code import last_line

# The kinds an analysis uses.
ANALYSIS_KINDS = ("spectrum", "singular_values", "eigenpairs", "trace")

_UNKNOWN = "unknown"


@attrs.frozen
class PluginInfo:
    """One installed estimator as `sdkeras plugins list` shows it; problem is None when it loads.

    A distribution whose list of entry points cannot be read has kind and name '?'.
    """

    kind: str
    name: str
    distribution: str
    version: str
    target: str
    problem: str | None = None


def _entry_points(kind: str) -> list[importlib.metadata.EntryPoint]:
    group = kinds.KINDS[kind].group
    try:
        entries = list(importlib.metadata.entry_points(group=group))
    except Exception:  # one distribution's unreadable list makes this raise for all of them
        entries = [entry for _, listed in _distributions() if isinstance(listed, list) for entry in listed]
    return sorted((entry for entry in entries if entry.group == group), key=lambda entry: entry.name)


def _distributions() -> Iterator[
    tuple[importlib.metadata.Distribution, list[importlib.metadata.EntryPoint] | Exception]
]:
    """Each installed distribution with its entry points, or with what reading them raises.

    Of two with the same name the first on the path counts, as for an import.
    """
    seen = set()
    for distribution in importlib.metadata.distributions():
        name = _source(distribution)[0]
        if name != _UNKNOWN and name in seen:
            continue
        seen.add(name)
        try:
            yield distribution, list(distribution.entry_points)
        except Exception as error:
            yield distribution, error


def _source(distribution: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """Name and version; an installation that was damaged has none."""
    name = version = None
    with contextlib.suppress(Exception):
        if distribution is not None:
            name = distribution.name
            version = distribution.version
    return name or _UNKNOWN, version or "?"


def _check_kind(kind: str) -> None:
    if kind not in kinds.KINDS:
        raise UnknownEstimatorError(f"no estimator kind '{kind}'; the kinds are: {', '.join(kinds.KINDS)}.")


def names(kind: str) -> list[str]:
    """The names of one kind's estimators, sorted; reads metadata only."""
    _check_kind(kind)
    local = {name for declared_kind, name in kinds.declared() if declared_kind == kind}
    return sorted(local | {entry.name for entry in _entry_points(kind)})


def get_estimator(kind: str, name: str) -> type[Estimator]:
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
    if len({(_source(entry.dist)[0], entry.value) for entry in entries}) > 1:
        claims = " and ".join(sorted({" ".join(_source(entry.dist)) for entry in entries}))
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
    """The first of these kinds that has an estimator of this name; reads metadata only."""
    for kind in kinds_wanted:
        if name in names(kind):
            return kind
    raise UnknownEstimatorError(_unknown(name, "installed", [known for kind in kinds_wanted for known in names(kind)]))


def _unknown(name: str, kind: str, installed: list[str]) -> str:
    """The message for a name that is not installed, with the nearest one that is."""
    hint = did_you_mean(name, installed)
    return (
        f"no {kind} estimator '{name}'; {hint}{'Installed' if hint else 'installed'}: {', '.join(installed) or 'none'}."
    )


def _load(kind: str, entry: importlib.metadata.EntryPoint) -> type[Estimator]:
    who = f"{kind} plugin '{entry.name}' (from {' '.join(_source(entry.dist))})"
    known = kinds.declared()
    try:
        cls = _import(entry, who)
        _check_declaration(kind, entry, cls, who)
    except PluginError:
        kinds.forget_since(known)
        raise
    return cls


def _import(entry: importlib.metadata.EntryPoint, who: str) -> type[Estimator]:
    try:
        cls: type[Estimator] = entry.load()
        return cls
    except KeyboardInterrupt:
        raise
    except PluginError as error:
        raise PluginError(f"{who} cannot be loaded: {error}") from error
    except BaseException as error:  # whatever a third party's module raises, SystemExit too, must stop nothing else
        raise PluginError(f"{who} cannot be loaded: {last_line(error)}") from error


def _check_declaration(kind: str, entry: importlib.metadata.EntryPoint, cls: object, who: str) -> None:
    declaration = vars(cls).get("__sdkeras__") if isinstance(cls, type) else None
    if not isinstance(declaration, kinds.Declaration):
        raise PluginError(f"{who}: {entry.value} is not declared with @sdkeras.{kind}_estimator('{entry.name}').")
    if (declaration.kind, declaration.name) != (kind, entry.name):
        raise PluginError(
            f"{who}: {entry.value} declares {declaration.kind} '{declaration.name}'; the entry point's "
            "group and name must be the same."
        )


def installed() -> list[PluginInfo]:
    """Every installed estimator, broken ones with their reason; loads each one's module."""
    infos = list(_misplaced())
    for kind in kinds.KINDS:
        seen = set()
        for entry in _entry_points(kind):
            distribution, version = _source(entry.dist)
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


def _misplaced() -> Iterator[PluginInfo]:
    """Entry points that cannot name an estimator: a group that is no kind, a list that cannot be read."""
    groups = {kind.group for kind in kinds.KINDS.values()}
    for distribution, listed in _distributions():
        if isinstance(listed, list):
            for entry in listed:
                if entry.group.startswith("sdkeras.") and entry.group not in groups:
                    problem = f"there is no group '{entry.group}'; the groups are: {', '.join(sorted(groups))}."
                    yield PluginInfo("?", entry.name, *_source(distribution), entry.value, problem)
        elif _mentions_a_group(distribution):
            problem = f"its entry_points.txt cannot be read: {last_line(listed)}"
            yield PluginInfo("?", "?", *_source(distribution), "entry_points.txt", problem)


def _mentions_a_group(distribution: importlib.metadata.Distribution) -> bool:
    try:
        return "[sdkeras." in (distribution.read_text("entry_points.txt") or "")
    except Exception:  # not even text
        return True
