"""How much memory there is, how much was used, and what is on disk in its place."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import attrs
import numpy as np
import psutil

from sdkeras.errors import SdkerasError
from sdkeras.results.arrays import Array, DType

# Share of the free memory that bases and dense matrices may take when no limit is given.
_MEMORY_SHARE = 0.6


def available_memory() -> int:
    """Bytes of memory that are free or can be freed."""
    return int(psutil.virtual_memory().available)


def memory_limit(gigabytes: float | None, free: float | None = None) -> float:
    """Bytes that bases and dense matrices may take: what is given, or a share of what is `free`, here by default."""
    if gigabytes is not None:
        return gigabytes * 1e9
    return _MEMORY_SHARE * (available_memory() if free is None else free)


@attrs.frozen
class Scratch:
    """A folder for arrays that do not fit the memory, and the bytes beyond which one goes there."""

    folder: str
    beyond: float


# Of the analysis under way, for all of its threads; the last one counts.
_scratch: list[Scratch] = []
# Share of what is free on the disk that an analysis may take.
_DISK_SHARE = 0.9


def free_on_disk(folder: str) -> float:
    """Bytes of a folder's disk that bases may take."""
    return _DISK_SHARE * shutil.disk_usage(folder).free


@contextlib.contextmanager
def large_arrays_in(scratch: Scratch | None) -> Iterator[None]:
    """Scope in which `allocated` makes large arrays on disk."""
    if scratch is None:
        yield
        return
    _scratch.append(scratch)
    try:
        yield
    finally:
        _scratch.remove(scratch)


def allocated(shape: tuple[int, int], dtype: DType) -> Array:
    """An array, not initialised: in memory, or where it is large and there is a scratch folder, a file mapped into it.

    The file has no name, and is gone with the array.

    Raises:
        SdkerasError: It does not fit the disk.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    if not _scratch or size <= _scratch[-1].beyond:
        # The system touches pages only as they are written.
        return np.empty(shape, dtype)
    folder = _scratch[-1].folder
    try:
        with tempfile.TemporaryFile(dir=folder, prefix="sdkeras-") as file:
            # Whole at once: a disk that is full when a page is written would end the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(file, dtype, "w+", shape=shape))
    except OSError as error:
        raise SdkerasError(
            f"a basis of {size / 1e9:.3g} GB cannot be kept in {folder!r} ({error.strerror or error}); give a folder "
            "on a larger disk (`scratch`), or leave it out."
        ) from error


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
