"""System calls of the worker that are on no list: the kernel asks here, and the answer is always no.

The answer is ENOSYS, as from an older kernel, so that a library falls back to what it did before. No answer lets a
call through: what we could look at here, a thread of the worker's could change before the kernel looks.
"""

import contextlib
import errno
import fcntl
import os
import select
import struct
from typing import Final

KEPT: Final = 64
#: struct seccomp_notif and seccomp_notif_resp may grow: the kernel fills in and reads as much as it knows.
_ROOM: Final = 512
_RECEIVE: Final = 0xC050_2100
_SEND: Final = 0xC018_2101


class Refusals:
    """The listener of the worker's filter, or none (-1). Tells each number once, and KEPT of them at most."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._seen: set[int] = set()
        self._news: list[int] = []

    def answer(self, events: int) -> None:
        """Refuse one call. Never blocks when poll(2) gave *events*; closes the listener after the last worker's end."""
        if not events & select.POLLIN:
            os.close(self.fd)
            self.fd = -1
            return
        question = bytearray(_ROOM)
        try:
            fcntl.ioctl(self.fd, _RECEIVE, question)
            call, _pid, _flags, number = struct.unpack_from("=QIIi", question)
            self._send(struct.pack("=QqiI", call, 0, -errno.ENOSYS, 0).ljust(_ROOM, b"\0"))
        except (FileNotFoundError, InterruptedError):
            return  # whoever asked was killed meanwhile, or a signal came before the question, which then still waits
        if number not in self._seen and len(self._seen) < KEPT:
            self._seen.add(number)
            self._news.append(number)

    def _send(self, answer: bytes) -> None:
        # The kernel asks once: whoever asked would wait for ever when a signal cost it the answer.
        while True:
            with contextlib.suppress(InterruptedError):
                fcntl.ioctl(self.fd, _SEND, answer)
                return

    def take_news(self) -> list[int]:
        """Numbers that nobody was told of yet."""
        news, self._news = self._news, []
        return news
