"""The lifecycle's timers on the event loop: each name at most once."""

import asyncio
import random
from collections.abc import Callable
from typing import Final

from bedsit.supervisor.stimuli import Timer

#: Rests after a failure. What failed together is not tried again together: each lasts up to so much longer than said.
_RESTS: Final = frozenset({"restart", "pool", "zygote"})
_JITTER: Final = 0.25


class Timers:
    """Calls *fire* with the name of each timer that is due."""

    def __init__(self, fire: Callable[[Timer], None]) -> None:
        self._fire = fire
        self._running: dict[Timer, asyncio.TimerHandle] = {}

    def set(self, timer: Timer, delay_s: float) -> None:
        """Fire once after *delay_s*; an earlier setting of the same name is void."""
        self.stop(timer)
        if timer.kind in _RESTS:
            delay_s *= 1 + random.uniform(0, _JITTER)  # noqa: S311 - no secret
        self._running[timer] = asyncio.get_running_loop().call_later(delay_s, self._ring, timer)

    def stop(self, timer: Timer) -> None:
        """Do not fire, if it was set."""
        handle = self._running.pop(timer, None)
        if handle is not None:
            handle.cancel()

    def stop_all(self) -> None:
        """Fire nothing any more."""
        for timer in list(self._running):
            self.stop(timer)

    def _ring(self, timer: Timer) -> None:
        del self._running[timer]
        self._fire(timer)
