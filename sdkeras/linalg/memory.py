"""How much memory there is, and how much was used."""

from __future__ import annotations

import os
import resource
import sys

# Share of the free memory that bases and dense matrices may take when no limit is given.
_MEMORY_SHARE = 0.6


def available_memory() -> int:
    """Bytes of memory that are free or can be freed."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit(gigabytes: float | None) -> float:
    """Bytes that bases and dense matrices may take: what is given, or a share of what is free now."""
    return _MEMORY_SHARE * available_memory() if gigabytes is None else gigabytes * 1e9


def used_memory() -> int:
    """Bytes this process has resident now; the most it had so far where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()


def peak_memory() -> int:
    """Bytes this process had resident at most so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
