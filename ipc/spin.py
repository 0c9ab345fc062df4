"""Adaptive spinning: look for work a moment longer before sleeping. Off unless asked for.

Waking an idle core costs tens of microseconds; looking costs the core. It pays in closed loops and bursts, and where a
core is free for it. After some misses in a row it rests, so that an idle process does not burn its core.
"""

import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_MISSES: Final = 8
_REST: Final = 64  # waits that are left out after so many misses


class Spin:
    """Spins for up to *limit_us* at a time; not thread-safe."""

    def __init__(self, limit_us: int) -> None:
        self._limit_ns = limit_us * 1000
        self._misses = self._rest = 0

    def wait(self, look: Callable[[], T | None]) -> T | None:
        """What *look* gives once it gives something true, or None when it is time to sleep."""
        if self._rest:
            self._rest -= 1
            return None
        clock = time.perf_counter_ns
        until = clock() + self._limit_ns
        while True:
            found = look()
            if found:
                self._misses = 0
                return found
            if clock() > until:
                break
            os.sched_yield()  # who shares this core goes first: without it a spin costs them a whole time slice
        self._misses += 1
        if self._misses >= _MISSES:
            self._misses, self._rest = 0, _REST
        return None
