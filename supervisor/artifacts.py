"""Artifacts: immutable files named by the SHA-256 of their bytes, stored unread.

An upload is written beside and renamed once its digest is right, so a name in this folder always means those bytes.
The disk is synced every few MiB, so that no single call blocks the daemon for long.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import error
from bedsit.supervisor.atomic import disk_error

_SYNC_BYTES: Final = 16 << 20
_PREFIX: Final = ".upload-"


class Upload:
    """One artifact on its way in."""

    def __init__(self, file: FileIO, path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self._size = size
        self._hash = hashlib.sha256()
        self._unsynced = 0
        self.received = 0

    def write(self, piece: bytes) -> None:
        """Take the next bytes. Raises ``request.invalid`` when there are more than promised, ``disk.full``."""
        self.received += len(piece)
        if self.received > self._size:
            raise error("request.invalid", f"the artifact is longer than the {self._size} bytes that were promised")
        self._hash.update(piece)
        self._unsynced += len(piece)
        try:
            left = memoryview(piece)
            while left:  # a raw file may take a part and say "no space" only to the rest
                left = left[self._file.write(left) :]
            if self._unsynced >= _SYNC_BYTES or self.received == self._size:
                os.fdatasync(self._file.fileno())
                self._unsynced = 0
        except OSError as e:
            raise disk_error(self._path, e) from e

    def finish(self, digest: str) -> None:
        """Check the bytes against *digest*. Raises ``request.invalid``."""
        if self.received != self._size or self._hash.hexdigest() != digest:
            raise error("request.invalid", "the artifact's bytes do not match its digest", "send it again")


class Artifacts:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for left in folder.glob(_PREFIX + "*"):  # uploads that a crash cut short
            left.unlink()

    def has(self, digest: str) -> bool:
        """Whether the bytes are here."""
        return (self._folder / digest).exists()

    @contextmanager
    def receive(self, digest: str, size: int) -> Iterator[Upload]:
        """Take an artifact in: kept when the block ends well, gone without a trace otherwise."""
        beside = self._folder / f"{_PREFIX}{secrets.token_hex(4)}"
        with ExitStack() as undo:
            try:
                fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            except OSError as e:
                raise disk_error(beside, e) from e
            undo.callback(beside.unlink, missing_ok=True)
            with os.fdopen(fd, "wb", buffering=0) as file:
                upload = Upload(file, beside, size)
                yield upload
            upload.finish(digest)
            beside.replace(self._folder / digest)
            undo.pop_all()

    def open(self, digest: str) -> int:
        """A read-only descriptor. Raises ``artifact.missing`` when somebody removed the file."""
        try:
            return os.open(self._folder / digest, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as e:
            hint = "deploy the model again"
            raise error("artifact.missing", f"{self._folder / digest}: {e.strerror}", hint) from e

    def collect(self, keep: set[str]) -> int:
        """Remove every artifact that is not in *keep*; gives how many. Slots that have one open keep its bytes."""
        gone = [path for path in self._folder.iterdir() if path.name not in keep and not path.name.startswith(_PREFIX)]
        for path in gone:
            path.unlink()
        return len(gone)
