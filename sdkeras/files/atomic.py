"""Files that are written whole or not at all, their locks, and what a path leads to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sdkeras.errors import SdkerasError

# What file systems allow in a name, in bytes (NAME_MAX of Linux, macOS and the BSDs).
_LONGEST_NAME = 255
_ENDING = ".part"
_RANDOM = 8
# Windows lets nobody read a locked byte, so it is one behind all that is written.
_LOCKED_BYTE = 2**30
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

    It keeps the permissions of the file that it replaces; a new one has those that the umask gives. What killed
    writers of the same file have left is removed.

    Args:
        path: File to write. Devices and pipes are written to directly.
        write: Writes the content into a file open for it.
        follow_links: Write what a symbolic link points to, as for a file that the user has named; a link in the place
            of any other file is refused.

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
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        with _temporary(target) as file:
            write(file)
            file.flush()
            # The rename must not reach the disk before the data do.
            os.fsync(file.fileno())
            os.chmod(file.name, mode)
            if os.name == "nt":  # which renames no open file
                file.close()
            os.replace(file.name, target)
    except (OSError, ValueError) as error:
        raise SdkerasError(f"{shown(path)} cannot be written: {reason_of(error)}; choose another place.") from error


def check_room(target: Path) -> None:
    """Makes and removes a temporary file beside the target, as `write_whole` would.

    Raises:
        OSError: That cannot be done.
    """
    with _temporary(target.resolve()):
        pass


def open_own(path: str | os.PathLike[str], flags: int) -> int:
    """A file descriptor of a regular file of one name, opened without following a link and without cutting it.

    Args:
        path: The file; it is made if `flags` hold O_CREAT.
        flags: Flags of `os.open`.

    Raises:
        SdkerasError: It is a link, has a second name (hard link), or is no regular file.
        OSError: It cannot be opened.
    """
    kind = kind_of(path)
    if not kind:
        # Between the look and the opening something else may have come: a pipe must not block, a link not be followed.
        careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            handle = os.open(path, flags | careful, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            kind = kind_of(path) or "a link"
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


def kind_of(path: str | os.PathLike[str], *, follow_links: bool = False) -> str:
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
    kind = "" if _is_in_dev(Path(path)) else kind_of(path, follow_links=True)
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


def reason_of(error: OSError | ValueError) -> str:
    """Why a file cannot be read or written, without its name."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def beside(target: Path, ending: str) -> Path:
    """The hidden file of this ending that belongs to the target, in its folder; a long name is cut and hashed.

    Args:
        target: A file.
        ending: End of the hidden file's name, in ASCII.
    """
    name = os.fsencode(target.name)
    room = _LONGEST_NAME - 1 - len(ending)
    if len(name) > room:
        tag = hashlib.sha256(name).hexdigest()[:16].encode()
        name = os.fsencode(os.fsdecode(name[: room - len(tag) - 1]).encode("utf-8", "ignore")) + b"-" + tag
    return target.with_name(f".{os.fsdecode(name)}{ending}")


def remove_leftovers(target: Path) -> None:
    """Removes the temporary files of this target whose writers are dead."""
    start = beside(target, "." + "x" * _RANDOM + _ENDING).name[: -_RANDOM - len(_ENDING)]
    pattern = re.compile(rf"{re.escape(start)}[0-9a-f]{{{_RANDOM}}}\{_ENDING}")
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(target.parent)):
            if pattern.fullmatch(entry.name):
                with contextlib.suppress(OSError, SdkerasError):
                    handle = open_own(entry.path, os.O_RDWR)
                    if lock(handle):
                        close_and_remove(handle, entry.path)
                    else:
                        os.close(handle)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[BinaryIO]:
    """A new file beside the target, locked as long as its writer lives; it is gone afterwards, unless renamed."""
    with contextlib.suppress(FileNotFoundError):
        os.lstat(target)  # a name that is too long is reported before anything is written
    remove_leftovers(target)
    while True:
        temporary = str(beside(target, f".{secrets.token_hex(_RANDOM // 2)}{_ENDING}"))
        with contextlib.suppress(FileExistsError):
            file = open(temporary, "xb", opener=_for_the_owner)  # noqa: SIM115  # closed below
            lock(file.fileno())
            if is_at(file.fileno(), temporary):  # and was not removed as a leftover before it was locked
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


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


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


def close_and_remove(handle: int, path: str | os.PathLike[str]) -> None:
    """Removes a locked file before another process gets its lock; Windows removes only what nobody has open."""
    with contextlib.suppress(OSError):
        if os.name != "nt":
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.close(handle)
        if os.name == "nt":
            os.unlink(path)


def is_at(handle: int, path: str | os.PathLike[str]) -> bool:
    """Whether the open file is the one that the path names now."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
