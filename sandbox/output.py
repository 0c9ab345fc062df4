"""A worker's output as text lines in two bounded files: it cannot break a line, colour a terminal or fill a disk.

A line is ``2026-11-23T22:01:02.123Z out|err text``. The two files take turns: when one is full the other is emptied
and written, so that the last half of the allowance, at least, is always there.
"""

import os
import time
from collections.abc import Sequence
from typing import Final

from bedsit.sandbox.budget import Budget

MAX_LINE: Final = 4096
_STAMP: Final = len("2026-11-23T22:01:02.123Z out \n")
# Enough for any honest log; a flood loses lines instead of wearing out the disk.
_BYTES_PER_S: Final = 256 << 10
_BYTES_AT_ONCE: Final = 4 << 20


class Output:
    """Turns raw output into lines. Until `open` all is dropped: a blank worker has nothing to say to a tenant."""

    def __init__(self) -> None:
        self.dropped_bytes = 0
        self._fds: list[int] = []
        self._limit = 0
        self._written = 0
        self._budget = Budget(_BYTES_PER_S, _BYTES_AT_ONCE)
        self._partial = {"out": b"", "err": b""}
        self._overlong = {"out": False, "err": False}

    def open(self, fds: Sequence[int], limit: int) -> None:
        """Write to *fds* from now on, which this object owns then; the first is continued where it ends."""
        self._fds = list(fds)
        self._limit = limit
        self._written = os.fstat(fds[0]).st_size

    def feed(self, stream: str, data: bytes) -> None:
        """Take *data* of *stream* ("out" or "err"); whole lines are written at once."""
        if not self._fds:
            self.dropped_bytes += len(data)
            return
        *lines, rest = (self._partial[stream] + data).split(b"\n")
        for line in lines:
            self._take(stream, line)
            self._overlong[stream] = False
        if len(rest) > MAX_LINE:
            self._take(stream, rest)
            self._overlong[stream] = True
            rest = b""
        self._partial[stream] = rest

    def finish(self) -> None:
        """The streams have ended: write what has no newline."""
        for stream, rest in self._partial.items():
            if rest:
                self._take(stream, rest)
        self._partial = dict.fromkeys(self._partial, b"")

    def _take(self, stream: str, raw: bytes) -> None:
        if self._overlong[stream]:  # the rest of a line whose beginning was written
            self.dropped_bytes += len(raw)
            return
        if not self._budget.has(_STAMP + min(len(raw), MAX_LINE)):  # first: a flood of newlines is lost at a low price
            self.dropped_bytes += len(raw) + 1
            return
        self.dropped_bytes += max(0, len(raw) - MAX_LINE)
        text = f"{_now()} {stream} {printable(raw[:MAX_LINE])}".encode()[: MAX_LINE - 1]
        line = text.decode(errors="ignore").encode() + b"\n"  # a cut may not leave half a character
        if self._budget.take(len(line)):
            self._write(line)
        else:
            self.dropped_bytes += len(raw)

    def _write(self, line: bytes) -> None:
        try:
            if self._written + len(line) > self._limit:
                self._fds.reverse()
                os.ftruncate(self._fds[0], 0)
                os.lseek(self._fds[0], 0, os.SEEK_SET)
                self._written = 0
            self._written += os.write(self._fds[0], line)
        except OSError:  # a full disk is the operator's to mend; the tenant goes on
            self.dropped_bytes += len(line)


def printable(raw: bytes) -> str:
    """*raw* as text without control, format or surrogate characters: each of those, and what is no UTF-8, escaped."""
    text = raw.decode(errors="backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _now() -> str:
    seconds, ms = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03d}Z"
