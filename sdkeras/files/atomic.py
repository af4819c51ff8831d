"""Files that are written whole or not at all and by one writer at a time; what a path leads to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import platform
import re
import secrets
import stat
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

from sdkeras.errors import SdkerasError

# What file systems allow in a name, in bytes (NAME_MAX of Linux, macOS and the BSDs).
_LONGEST_NAME = 255
_ENDING = ".part"
_LOCK = ".lock"
_RANDOM = 8
# Windows lets nobody read a locked byte, so it is one behind all that is written.
_LOCKED_BYTE = 2**30
_HOLDER = re.compile(rb"sdkeras (\d{1,20}) ([ -~]{0,255})\n")
# One letter before a colon is a drive of Windows.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}


def write_whole(
    path: str | os.PathLike[str], write: Callable[[BinaryIO], object], *, follow_links: bool = False
) -> None:
    """Writes a file through a temporary one and a rename, so that no half-written file is left.

    It keeps the permissions of the file that it replaces; a new one has those that the umask gives. What killed writers
    of the same file have left is removed. Devices and pipes are written to directly. `follow_links` is for a file that
    the user has named; a link in the place of any other file is refused.

    Raises:
        SdkerasError: The file cannot be written.
    """
    target = Path(path)
    try:
        if not follow_links and target.is_symlink() and not _is_in_dev(target):  # where /dev/stdout is a link
            raise SdkerasError(
                f"{shown(target)} is a link, and only the file itself is written; name "
                f"{shown(os.path.realpath(target))}, or remove the link."
            )
        if is_stream(target):
            content = io.BytesIO()  # a .npz seeks while it is written
            write(content)
            target.write_bytes(content.getvalue())
            return
        target = target.resolve()
        with _temporary(target) as file:
            if target.exists():
                os.chmod(file.name, target.stat().st_mode & 0o777)
            write(file)
            file.flush()
            # The rename must not reach the disk before the data do.
            os.fsync(file.fileno())
            if os.name == "nt":  # which renames no open file
                file.close()
            os.replace(file.name, target)
    except (OSError, ValueError) as error:
        raise SdkerasError(f"{shown(path)} cannot be written: {reason_of(error)}; choose another place.") from error


def check_room(target: Path) -> None:
    """Makes and removes a temporary file beside the target, as `write_whole` would; an OSError says why it cannot."""
    with _temporary(target.resolve()):
        pass


def open_own(path: str | os.PathLike[str], flags: int) -> int:
    """A file descriptor of a regular file of one name, opened without following a link and without cutting it.

    Raises:
        SdkerasError: It is a link, has a second name (hard link), or is no regular file.
        OSError: It cannot be opened.
    """
    kind = _kind_of(path)
    if not kind:
        # Between the look and the opening something else may have come: a pipe must not block, a link not be followed.
        careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            handle = os.open(path, flags | careful, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            kind = _kind_of(path) or "a link"
        else:
            status = os.fstat(handle)
            if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
                return handle
            os.close(handle)
            links = f"a file with {status.st_nlink} names (hard links)"
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), links)
    raise SdkerasError(
        f"{shown(path)} is {kind}, and only a file of its own is written to; remove it, or choose another place."
    )


def _kind_of(path: str | os.PathLike[str], *, follow_links: bool = False) -> str:
    """Kind of a path that is no regular file, in words: 'a folder', 'a FIFO', ...; "" for a file or nothing."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path, follow_symlinks=follow_links).st_mode), "")
    except (OSError, ValueError):
        return ""


def check_is_file(path: str | os.PathLike[str], error: type[SdkerasError], advice: str) -> None:
    """Refuses a folder, FIFO, socket or device in the place of an input file; what is missing passes.

    The pipes of the shell (/dev/stdin, /dev/fd/63) pass: they have a writer, which a FIFO may wait for without end.

    Raises:
        SdkerasError: There is one, as `error`.
    """
    kind = "" if _is_in_dev(Path(path)) else _kind_of(path, follow_links=True)
    if kind:
        raise error(f"{shown(path)} is {kind}, not a file; {advice}")


def is_stream(target: Path) -> bool:
    """Whether the path is a device or a pipe, which is written to and never replaced by a file."""
    return _is_in_dev(target) or (target.exists() and not target.is_file())


def _is_in_dev(path: Path) -> bool:
    return path.parts[:2] == ("/", "dev")


def shown(path: str | os.PathLike[str]) -> str:
    """A path as messages name it: quoted, with escapes, where it holds spaces, quotes or what no terminal shows."""
    text = os.fspath(path)
    is_clear = text.isprintable() and not any(c.isspace() or c in "'\"`" for c in text)
    return text if text and is_clear else repr(text)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL (gs://, s3://, file://), which as a path would be a folder called 'gs:'."""
    return _URL.match(os.fspath(path)) is not None


def refuse_url(path: str | os.PathLike[str], what: str = "") -> None:
    """Refuses a URL in the place of a folder; an SdkerasError, which calls it `what`, says so."""
    if is_url(path):
        raise SdkerasError(
            f"{what}{shown(path)} is a URL, and sdkeras writes to folders of this machine only; name one, and copy it "
            "there afterwards."
        )


def make_folder(path: str | os.PathLike[str], what: str = "") -> None:
    """Makes a folder where it is missing; an SdkerasError, which calls it `what`, says why it cannot be made."""
    refuse_url(path, what)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SdkerasError(f"{what}{shown(path)} cannot be made: {reason_of(error)}; choose another place.") from error


def reason_of(error: OSError | ValueError) -> str:
    """Why a file cannot be read or written, without its name."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def beside(target: Path, ending: str) -> Path:
    """The hidden file of the target with this ASCII ending, in its folder; a long name is cut and hashed."""
    name = os.fsencode(target.name)
    room = _LONGEST_NAME - 1 - len(ending)
    if len(name) > room:
        tag = hashlib.sha256(name).hexdigest()[:16].encode()
        name = os.fsencode(os.fsdecode(name[: room - len(tag) - 1]).encode("utf-8", "ignore")) + b"-" + tag
    return target.with_name(f".{os.fsdecode(name)}{ending}")


def _remove_leftovers(target: Path) -> None:
    """Removes the temporary files of this target whose writers are dead."""
    start = beside(target, "." + "x" * _RANDOM + _ENDING).name[: -_RANDOM - len(_ENDING)]
    pattern = re.compile(rf"{re.escape(start)}[0-9a-f]{{{_RANDOM}}}\{_ENDING}")
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(target.parent)):
            if pattern.fullmatch(entry.name):
                with contextlib.suppress(OSError, SdkerasError):
                    handle = open_own(entry.path, os.O_RDWR)
                    if lock(handle):
                        _close_and_remove(handle, entry.path)
                    else:
                        os.close(handle)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[BinaryIO]:
    """A new file beside the target, locked as long as its writer lives; it is gone afterwards, unless renamed."""
    with contextlib.suppress(FileNotFoundError):
        os.lstat(target)  # a name that is too long is reported before anything is written
    _remove_leftovers(target)
    while True:
        temporary = str(beside(target, f".{secrets.token_hex(_RANDOM // 2)}{_ENDING}"))
        with contextlib.suppress(FileExistsError):
            file = open(temporary, "xb")  # noqa: SIM115  # closed below
            lock(file.fileno())
            if _is_at(file.fileno(), temporary):  # and was not removed as a leftover before it was locked
                break
            file.close()
    try:
        yield file
    finally:  # after Ctrl-C as well
        if os.name == "nt":
            file.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        file.close()


def lock(handle: int) -> bool:
    """Takes the lock of an open file at its start, without waiting; False where another process or opening holds it.

    The system lifts it when the process ends. Where there are no such locks, everybody gets it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _close_and_remove(handle: int, path: str | os.PathLike[str]) -> None:
    """Removes a locked file before another process gets its lock; Windows removes only what nobody has open."""
    with contextlib.suppress(OSError):
        if os.name != "nt":
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.close(handle)
        if os.name == "nt":
            os.unlink(path)


def _is_at(handle: int, path: str | os.PathLike[str]) -> bool:
    """Whether the open file is the one that the path names now."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


class InUseError(SdkerasError):
    """Another process writes a file or folder."""


_claims: weakref.WeakValueDictionary[str, Claim] = weakref.WeakValueDictionary()


class Claim:
    """The right to write a file or folder, until `close`, the end of the process, or a later claim in it.

    It is the lock of a hidden file beside the target (in it, if it is a folder), which names its holder and is removed
    at the end. Nothing is locked where the system or the file system has no locks. It is `lost` once a later claim of
    this process has taken its place: a training that was interrupted does not keep its log from the next one.

    Raises:
        InUseError: Another process writes it.
        SdkerasError: The hidden file cannot be made.
    """

    def __init__(self, target: str | os.PathLike[str], advice: str) -> None:
        target = Path(target)
        self.lost = False
        self._process = os.getpid()
        self._handle: int | None = None  # which `close` needs if the next lines fail
        self._path = target / _LOCK if os.path.isdir(target) else beside(target, _LOCK)
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
        _remove_leftovers(target)

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
            if self._process == os.getpid() and _is_at(handle, self._path):  # and not a fork of the holder
                _close_and_remove(handle, self._path)
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
                raise InUseError(f"{shown(target)} is in use by {who}; {advice}.")
            if content and holder is None:
                raise SdkerasError(f"{shown(self._path)} is not an sdkeras lock; rename or remove it.")
            if _is_at(handle, self._path):
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, b"sdkeras %d %s\n" % (self._process, _host().encode()))
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None


def holder_of(target: str | os.PathLike[str]) -> str | None:
    """The process that writes a file or folder, as its `Claim` names it; None where nobody does, or it has died.

    Nothing is locked to find out, which could keep a writer that begins from its claim. Whether a process of another
    host lives is not known: it is taken to.
    """
    target = Path(target)
    try:
        content = (target / _LOCK if target.is_dir() else beside(target, _LOCK)).read_bytes()
    except OSError:
        return None
    holder = _HOLDER.fullmatch(content[:512])
    if holder is None:
        return None
    process, host = int(holder[1]), holder[2].decode()
    if host == _host() and not psutil.pid_exists(process):
        return None
    return f"process {process} on {host}"


def _host() -> str:
    return platform.node().encode("ascii", "replace")[:255].decode()


def only_writer(target: str | os.PathLike[str], advice: str) -> contextlib.closing[Claim]:
    """Scope of a `Claim`."""
    return contextlib.closing(Claim(target, advice))
