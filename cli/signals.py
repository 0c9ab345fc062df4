"""Signals for a loop that sleeps in poll(2): a handler each, and a descriptor that becomes readable."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType


@contextlib.contextmanager
def catch_signals(numbers: Sequence[signal.Signals], hear: Callable[[int], None]) -> Iterator[int]:
    """Call *hear* for these signals; gives a descriptor that any of them makes readable. The old handlers come back.

    Python goes on waiting in poll(2) after a handler returned (PEP 475); the descriptor is what ends the wait.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        hear(number)

    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield read_fd
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        os.close(read_fd)
        os.close(write_fd)
