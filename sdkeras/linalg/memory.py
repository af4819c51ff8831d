"""How much memory there is, and how much was used."""

from __future__ import annotations

import sys

import psutil

# Share of the free memory that bases and dense matrices may take when no limit is given.
_MEMORY_SHARE = 0.6


def available_memory() -> int:
    """Bytes of memory that are free or can be freed."""
    return int(psutil.virtual_memory().available)


def memory_limit(gigabytes: float | None) -> float:
    """Bytes that bases and dense matrices may take: what is given, or a share of what is free now."""
    return _MEMORY_SHARE * available_memory() if gigabytes is None else gigabytes * 1e9


def used_memory() -> int:
    """Bytes this process has resident now."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Bytes this process had resident at most so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
