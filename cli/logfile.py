"""The log files of what ``bedsit up`` starts: bounded, and told on the terminal while somebody looks.

Daemon and router write to files, not to pipes or the terminal of their parent: they must outlive both.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Final

from bedsit.ipc.errors import BedsitError, error_from_wire

LIMIT_BYTES: Final = 8 << 20
_READ_BYTES: Final = 64 << 10
_REFUSED: Final = "daemon.refused"
_LEVELS: Final = {"critical": "fatal", "warning": "warn"}


class LogFile:
    """An append-only file of at most LIMIT_BYTES and one predecessor (``.1``)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, exist_ok=True)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._seen = self._size()
        self._partial = b""

    def mark(self) -> int:
        """Where the next line will begin, for ``last_lines``."""
        return self._size()

    def last_lines(self, since: int, count: int) -> list[str]:
        """The last lines written after *since*, as text for people."""
        size = self._size()
        begin = max(since if since <= size else 0, size - _READ_BYTES)
        lines = os.pread(self.fd, size - begin, begin).decode(errors="replace").splitlines()
        return [describe_line(line) for line in lines if line.strip()][-count:]

    def find_refusal(self, since: int) -> BedsitError | None:
        """The error with which the daemon refused to run, if it logged one after *since*."""
        size = self._size()
        begin = max(since if since <= size else 0, size - _READ_BYTES)
        for line in reversed(os.pread(self.fd, size - begin, begin).splitlines()):
            with contextlib.suppress(ValueError, RecursionError):
                fields = json.loads(line)
                if isinstance(fields, dict) and fields.get("event") == _REFUSED:
                    return error_from_wire(fields)
        return None

    def read_new(self) -> list[str]:
        """Whole lines that came since the last call, as text for people."""
        size = self._size()
        if size < self._seen:  # emptied by rotate
            self._seen, self._partial = 0, b""
        data = self._partial + os.pread(self.fd, min(size - self._seen, _READ_BYTES), self._seen)
        self._seen += len(data) - len(self._partial)
        *lines, self._partial = data.split(b"\n")
        return [describe_line(line.decode(errors="replace")) for line in lines if line.strip()]

    def rotate(self) -> bool:
        """Begin again when the file is over its limit, keeping one predecessor.

        The writers keep their descriptor: the file is copied and emptied under them, which O_APPEND makes safe. What
        they write between the two is lost.
        """
        size = self._size()
        if size <= LIMIT_BYTES:
            return False
        older = self.path.with_suffix(self.path.suffix + ".1")
        older.write_bytes(os.pread(self.fd, LIMIT_BYTES, size - LIMIT_BYTES))
        older.chmod(0o600)
        os.ftruncate(self.fd, 0)
        return True

    def close(self) -> None:
        """Close our descriptor."""
        os.close(self.fd)

    def _size(self) -> int:
        return os.fstat(self.fd).st_size


def describe_line(line: str) -> str:
    """A JSON log line as ``22:01:02 info  slot.died slot=s1``; any other line as it is."""
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(fields, dict) or "event" not in fields:
        return line
    level = str(fields.pop("level", "info"))
    at = str(fields.pop("timestamp", ""))[11:19]
    event = fields.pop("event")
    rest = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
    return f"{at} {_LEVELS.get(level, level):<5} {event} {rest}".strip()
