"""The lease page: whether a worker may run on a device that it takes turns on. The router writes it, the worker reads.

A file of one page in the slot's own folder, which the worker's user may only read: asking costs no system call, and
the next router finds by it who had a turn, and goes on counting where the last one ended.

    word 0   epoch << 2 | state; each turn is one epoch
    word 1   when a turn ends while others wait, in ns of CLOCK_MONOTONIC, which all processes of a box have in common

Word 1 is written before word 0. Stores of eight bytes are whole and come in order on x86-64; where they may not
(aarch64), a reader may take the new turn for one that has ended, and yields once for nothing.
"""

import mmap
import os
from enum import IntEnum
from pathlib import Path
from typing import Final, Self

NAME: Final = "lease"
PAGE_BYTES: Final = 4096
_STATE: Final = 3
_MASK: Final = (1 << 62) - 1


class Turn(IntEnum):
    """What a worker may do. A file of zeros says FREE: who takes no turns has a page, too."""

    FREE = 0  # run: nobody else waits
    HELD = 1  # run one batch, and yield when the turn ends
    WAIT = 2  # begin nothing, and yield


class LeasePage:
    """The router's end. Raises OSError when the file cannot be made; one that is there goes on where it was."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            self.is_old = os.fstat(fd).st_size == PAGE_BYTES  # it was a router's before
            os.fchmod(fd, 0o644)  # whatever the umask says: the folder's mode is the wall
            os.ftruncate(fd, PAGE_BYTES)
            self._pages = mmap.mmap(fd, PAGE_BYTES)
        finally:
            os.close(fd)
        self._words = memoryview(self._pages).cast("Q")
        self.epoch = self._words[0] >> 2 & _MASK
        self.state = _read_state(self._words[0])
        self._until_ns = self._words[1]

    def grant(self, until_ns: int) -> None:
        """A turn begins, the next epoch; it ends at *until_ns* while others wait."""
        self.epoch += 1
        self._until_ns = self._words[1] = until_ns
        self._write(Turn.HELD)

    def end_by(self, until_ns: int) -> None:
        """The turn ends no later. Of who was free, one begins for that; it is not revoked, as it may not have begun.

        An epoch that ends earlier is the same one: it may be on its way back already.
        """
        if self.state == Turn.FREE:
            self.grant(until_ns)
        elif until_ns < self._until_ns:
            self._until_ns = self._words[1] = until_ns

    def free(self) -> None:
        """The worker may run as long as it likes."""
        if self.state != Turn.FREE:
            self._write(Turn.FREE)

    def revoke(self) -> None:
        """There is no turn, or no longer."""
        if self.state != Turn.WAIT:
            self._write(Turn.WAIT)

    def is_over(self, now_ns: int) -> bool:
        """Whether the worker has to yield now."""
        return self.state == Turn.WAIT or (self.state == Turn.HELD and now_ns >= self._until_ns)

    def close(self) -> None:
        """Unmap it; the file stays, and what is written from now on goes nowhere."""
        self._words.release()
        self._pages.close()
        self._words = memoryview(bytearray(16)).cast("Q")

    def _write(self, state: Turn) -> None:
        self.state = state
        self._words[0] = self.epoch << 2 | state


class LeaseView:
    """The worker's end: ``words[0]`` and ``words[1]`` as they are now. Mapped until nothing refers to it."""

    def __init__(self, words: "memoryview[int]") -> None:
        self.words = words

    @classmethod
    def open(cls, path: str) -> Self:
        """Map the file at *path*; raises OSError or ValueError when there is none, or none of a page's size."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pages = mmap.mmap(fd, PAGE_BYTES, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        return cls(memoryview(pages).cast("Q"))

    @classmethod
    def free(cls) -> Self:
        """A page that always says FREE, where there is none."""
        return cls(memoryview(bytes(16)).cast("Q"))


def split_word(word: int) -> tuple[Turn, int]:
    """State and epoch of word 0."""
    return _read_state(word), word >> 2


def _read_state(word: int) -> Turn:
    state = word & _STATE
    return Turn(state) if state <= Turn.WAIT else Turn.WAIT
