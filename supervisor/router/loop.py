"""The router's one loop: descriptors, lanes that want another look, timers. Single-threaded, never blocks elsewhere."""

import heapq
import itertools
import select
import time
from collections.abc import Callable

Callback = Callable[[], None]


class Loop:
    """Calls what is due. A callback must not block; an exception in one ends the router (it restarts clean)."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._again: dict[Callback, None] = {}  # an ordered set
        self._timers: list[tuple[float, int, Callback]] = []
        self._order = itertools.count()
        self._stopped = False

    def watch(self, fd: int, callback: Callback, *, edge: bool = False) -> None:
        """Call *callback* whenever *fd* is readable; with *edge* only when it becomes so."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN | (select.EPOLLET if edge else 0))

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

    def stop(self) -> None:
        """Leave ``run`` after this turn."""
        self._stopped = True

    def run(self) -> None:
        """Serve until ``stop``."""
        callbacks, poll = self._callbacks, self._epoll.poll
        while not self._stopped:
            for fd, _ in poll(self._timeout_s()):
                callback = callbacks.get(fd)  # an earlier callback of this turn may have closed it
                if callback is not None:
                    callback()
            if self._again:
                due, self._again = self._again, {}
                for callback in due:
                    callback()
            if self._timers:
                self._run_timers()

    def _timeout_s(self) -> float:
        if self._again:
            return 0.0
        if self._timers:
            return max(0.0, self._timers[0][0] - time.monotonic())
        return -1.0

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
