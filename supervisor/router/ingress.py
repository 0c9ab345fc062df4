"""Where one tenant's requests come in: an epoll of its own inside the router's, read with a budget per turn.

Guarantees: in one turn of the loop a tenant has at most BUDGET packets read, however many connections it floods, and
at rest none, for the price of one descriptor that is not watched. Which of its connections are read next is the
kernel's round robin. An idle tenant and an idle connection cost nothing.

Why an epoll per tenant and not one for all: with one, 32 flooding connections are 32 events before a victim's one, in
every turn; here they are one event.
"""

import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bedsit.ipc.fastlane import ROOM
from bedsit.supervisor.router.loop import Loop

if TYPE_CHECKING:
    from bedsit.supervisor.router.sessions import Session

BUDGET: Final = 16
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_IN: Final = int(select.EPOLLIN)
_OUT: Final = int(select.EPOLLOUT)


class Ingress:
    """Reads the doors of a tenant's sessions.

    *take* gets each packet, *lost* each session that hung up; *done* is called after each turn's reading.
    """

    def __init__(
        self,
        loop: Loop,
        take: "Callable[[Session, bytes], None]",
        lost: "Callable[[Session], None]",
        done: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._take, self._lost, self._done = take, lost, done
        self._sessions: dict[int, Session] = {}
        self._epoll: select.epoll | None = None
        self.resting = False
        self.awake: Callable[[], None] = lambda: None  # called at the end of a rest, for whoever else rested with it

    def add(self, session: "Session") -> None:
        """Read this session's door from now on."""
        if self._epoll is None:  # most registered tenants are idle and have no session
            self._epoll = select.epoll()
            if not self.resting:
                self._loop.watch(self._epoll.fileno(), self._read)
        self._sessions[session.fd] = session
        self._epoll.register(session.fd, _IN)

    def remove(self, session: "Session") -> None:
        """Forget it; must come before its door is closed."""
        if self._epoll is not None and self._sessions.pop(session.fd, None) is not None:
            self._epoll.unregister(session.fd)

    def watch_room(self, session: "Session", *, wanted: bool) -> None:
        """Have what is kept for this session sent, or no longer, while its door takes something."""
        if self._epoll is not None and session.fd in self._sessions:
            self._epoll.modify(session.fd, _IN | (_OUT if wanted else 0))

    def rest(self, pause_s: float) -> None:
        """Read nothing of this tenant for so long, or until ``resume``."""
        if not self.resting:
            self.resting = True
            if self._epoll is not None:
                self._loop.unwatch(self._epoll.fileno())
            self._loop.later(pause_s, self.resume)

    def resume(self) -> None:
        """Read on."""
        if self.resting:
            self.resting = False
            if self._epoll is not None:
                self._loop.watch(self._epoll.fileno(), self._read)
            self.awake()

    def close(self) -> None:
        """Read nothing any more."""
        if self._epoll is not None:
            if not self.resting:
                self._loop.unwatch(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self.resting = False
        self._sessions.clear()

    def _read(self) -> None:
        if self._epoll is None:
            return
        sessions, take = self._sessions, self._take
        for fd, events in self._epoll.poll(0, BUDGET):
            session = sessions.get(fd)  # an earlier packet of this turn may have ended it
            if session is None:
                continue
            if events & _OUT:
                session.flush()
            try:
                packet = session.receive(ROOM, _DONTWAIT)
            except BlockingIOError:
                continue
            except OSError:
                packet = b""
            if packet:
                take(session, packet)
            else:
                self._lost(session)
        self._done()
