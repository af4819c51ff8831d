"""One writer at a time for a file or folder that grows over a long run."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import weakref
from collections.abc import Iterator
from pathlib import Path

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import beside, close_and_remove, is_at, lock, open_own, reason_of, remove_leftovers, shown

_HOLDER = re.compile(rb"sdkeras (\d{1,20}) ([ -~]{0,255})\n")
_ENDING = ".lock"
_claims: weakref.WeakValueDictionary[str, Claim] = weakref.WeakValueDictionary()


class Claim:
    """The right to write a file or folder, until `close`, the end of the process, or a later claim in it.

    It is the lock of a hidden file beside the target (in it, if it is a folder), which names its holder and is removed
    at the end. Nothing is locked where the system or the file system has no locks.

    Args:
        target: File or folder to write.
        advice: Remedy if another process is writing it.

    Attributes:
        lost: Whether a later claim of this process has taken its place: a training that was interrupted does not
            keep its log from the next one.

    Raises:
        SdkerasError: Another process writes it, or the hidden file cannot be made.
    """

    def __init__(self, target: str | os.PathLike[str], advice: str) -> None:
        target = Path(target)
        self.lost = False
        self._process = os.getpid()
        self._handle: int | None = None
        self._path = target / _ENDING if os.path.isdir(target) else beside(target, _ENDING)
        key = os.path.join(os.path.realpath(self._path.parent), self._path.name)
        earlier = _claims.get(key)
        self._handle = None if earlier is None else earlier.hand_over()
        try:
            while self._handle is None:
                self._handle = self._locked(target, advice)
        except OSError as error:
            raise SdkerasError(
                f"{shown(self._path)} cannot be written: {reason_of(error)}; choose another place."
            ) from error
        _claims[key] = self
        remove_leftovers(target)

    def hand_over(self) -> int | None:
        """The lock, for a later claim of the same process; None where it has none."""
        if self._process != os.getpid() or self._handle is None:
            return None
        handle, self._handle, self.lost = self._handle, None, True
        return handle

    def close(self) -> None:
        """Lets others write it."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        with contextlib.suppress(OSError):
            if self._process == os.getpid() and is_at(handle, self._path):  # and not a fork of the holder
                close_and_remove(handle, self._path)
            else:
                os.close(handle)

    def __del__(self) -> None:
        self.close()

    def _locked(self, target: Path, advice: str) -> int | None:
        """The open, locked file that names this process; None where its last holder removed it meanwhile."""
        handle = open_own(self._path, os.O_RDWR | os.O_CREAT)
        try:
            content = os.read(handle, 512)
            holder = _HOLDER.fullmatch(content)
            if not lock(handle):
                who = f"process {holder[1].decode()} on {holder[2].decode()}" if holder else "another process"
                raise SdkerasError(f"{shown(target)} is in use by {who}; {advice}.")
            if content and holder is None:
                raise SdkerasError(f"{shown(self._path)} is not an sdkeras lock; rename or remove it.")
            if is_at(handle, self._path):
                host = platform.node().encode("ascii", "replace")[:255]
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, b"sdkeras %d %s\n" % (self._process, host))
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None


@contextlib.contextmanager
def only_writer(target: str | os.PathLike[str], advice: str) -> Iterator[None]:
    """Scope of a `Claim`.

    Raises:
        SdkerasError: Another process writes the target.
    """
    with contextlib.closing(Claim(target, advice)):
        yield
