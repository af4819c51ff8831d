"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from sdkeras.errors import SdkerasError


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Writes a file through a temporary one and a rename, so that no half-written file is left.

    It keeps the permissions of the file that it replaces; a new one has those that the umask gives.

    Args:
        path: File to write. Devices and pipes are written to directly.
        write: Writes the content into a file open for it.

    Raises:
        SdkerasError: The file cannot be written.
    """
    target = Path(path)
    try:
        if is_stream(target):
            content = io.BytesIO()  # a .npz seeks while it is written
            write(content)
            target.write_bytes(content.getvalue())
            return
        target = target.resolve()  # what a link points to is written, not the link
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                # The rename must not reach the disk before the data do.
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException:  # Ctrl-C as well must leave nothing behind
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        raise SdkerasError(f"{os.fspath(path)} cannot be written: {reason_of(error)}; choose another place.") from error


def is_stream(target: Path) -> bool:
    """Whether the path is a device or a pipe, which is written to and never replaced by a file."""
    return target.parts[:2] == ("/", "dev") or (target.exists() and not target.is_file())


def reason_of(error: OSError | ValueError) -> str:
    """Why a file cannot be read or written, without its name."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
