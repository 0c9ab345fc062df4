"""Files that are there in full or not at all: written beside, then renamed."""

import errno
import os
from contextlib import ExitStack
from pathlib import Path

from bedsit.ipc.errors import BedsitError, error


def write_atomically(path: Path, data: bytes, mode: int = 0o600, gid: int | None = None) -> None:
    """Put *data* at *path*. Survives a crash of the process, not of the box: run files need no fsync.

    Raises ``disk.full`` or ``folder.unusable``; the old file is then untouched.
    """
    beside = path.with_name(f".{path.name}.new")
    with ExitStack() as undo:
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            undo.callback(beside.unlink, missing_ok=True)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                if gid is not None:
                    os.fchown(file.fileno(), 0, gid)
                os.fchmod(file.fileno(), mode)
            beside.replace(path)
        except OSError as e:
            raise disk_error(path, e) from e
        undo.pop_all()


def remove_unfinished(folder: Path) -> None:
    """Remove what a crash left of files that were being written to *folder*. For who starts, before anything is."""
    for left in folder.glob(".*.new"):
        left.unlink()


def disk_error(path: Path, e: OSError) -> BedsitError:
    """An OSError from writing below *path*, as the error that the operator sees."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return error("disk.full", f"{path}: {e.strerror}", "free space on this file system; nothing was changed")
    return error("folder.unusable", f"{path}: {e.strerror}", "choose another folder or mend this one")
