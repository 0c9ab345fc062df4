"""The router's one loop: descriptors, lanes that want another look, timers. Single-threaded, never blocks elsewhere."""

import heapq
import itertools
import select
import time
from collections.abc import Callable
from typing import Final

from bedsit.ipc.spin import Spin

Callback = Callable[[], None]

_IN: Final = int(select.EPOLLIN)
_OUT: Final = int(select.EPOLLOUT)
_EDGE: Final = int(select.EPOLLET)


class Loop:
    """Calls what is due. A callback must not block; an exception in one ends the router (it restarts clean)."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._again: dict[Callback, None] = {}  # an ordered set
        self._timers: list[tuple[float, int, Callback]] = []
        self._order = itertools.count()
        self._stopped = False
        self._spin: Spin | None = None

    def watch(self, fd: int, callback: Callback, *, edge: bool = False) -> None:
        """Call *callback* whenever *fd* is readable; with *edge* only when it becomes so."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, _IN | (_EDGE if edge else 0))

    def watch_room(self, fd: int, *, wanted: bool) -> None:
        """Call the callback of *fd* also, or no longer, while it can be written to."""
        if fd in self._callbacks:
            self._epoll.modify(fd, _IN | (_OUT if wanted else 0))

    def unwatch(self, fd: int) -> None:
        """Forget *fd*; must come before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def again(self, callback: Callback) -> None:
        """Call *callback* in the next turn: for lanes that were sent on, and for work left over by a budget."""
        self._again[callback] = None

    def later(self, delay_s: float, callback: Callback) -> None:
        """Call *callback* once, *delay_s* from now."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), callback))

    def spin(self, limit_us: int) -> None:
        """Look for events that long before sleeping; 0 sleeps at once."""
        self._spin = Spin(limit_us) if limit_us else None

    def stop(self) -> None:
        """Leave ``run`` after this turn."""
        self._stopped = True

    def run(self) -> None:
        """Serve until ``stop``."""
        callbacks, poll, timers, clock = self._callbacks, self._epoll.poll, self._timers, time.monotonic
        while not self._stopped:
            events = None
            if self._spin is not None and not self._again:
                events = self._spin.wait(self._look)
            if not events:
                wait_s = 0.0 if self._again else max(0.0, timers[0][0] - clock()) if timers else -1.0
                events = poll(wait_s)
            for fd, _ in events:
                callback = callbacks.get(fd)  # an earlier callback of this turn may have closed it
                if callback is not None:
                    callback()
            if self._again:
                due, self._again = self._again, {}
                for callback in due:
                    callback()
            if timers and timers[0][0] <= clock():
                self._run_timers()

    def _look(self) -> list[tuple[int, int]] | None:
        return self._epoll.poll(0)

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
