"""One client's connection, bound to one tenant: its door, its lane, its arena, its requests."""

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from bedsit.supervisor.router.arenas import Arena
from bedsit.supervisor.router.requests import Request

if TYPE_CHECKING:
    from bedsit.supervisor.router.tenants import Tenant

_SEND: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
# Answers kept for a client that has not read for a moment, beside what the kernel has room for: sixteen of 8 KiB. That
# is soon full, by an event loop or by threads that wait for their turn; who reads nothing at all gets to this bound.
_UNSENT_BYTES: Final = 4 << 20


class Session:
    """A live session. It ends with its door; its arena's number is forgotten once nothing of it is in flight.

    *token* names it on the tenant's ZeroMQ endpoint; a session without one has its door for a lane.
    """

    def __init__(
        self, tenant: "Tenant", door: socket.socket, arena: Arena, key_id: str | None, token: bytes = b""
    ) -> None:
        self.tenant = tenant
        self.token = token
        self.door = door
        self.fd = door.fileno()
        self.arena = arena
        self.arena_number = arena.number
        self.key_id = key_id  # None: let in as uid 0
        self.requests: dict[int, Request] = {}  # by the client's id
        self.in_flight = 0  # requests that a worker has, also after the end of the session
        self.closed = False
        self._send = door.send
        self.receive = door.recv
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0

    def send(self, packet: bytes) -> bool:
        """Hand the client a packet, or keep it for a client that is behind; False when it is gone or takes nothing."""
        if self.token:
            return self.tenant.send_zmq(self.token, packet)
        if not self._unsent:
            try:
                self._send(packet, _SEND)
            except BlockingIOError:
                self.tenant.ingress.watch_room(self, wanted=True)
            except OSError:
                return False
            else:
                return True
        self._unsent.append(packet)
        self._unsent_bytes += len(packet)
        return self._unsent_bytes <= _UNSENT_BYTES

    def flush(self) -> None:
        """Hand over what was kept, as far as there is room."""
        while self._unsent:
            try:
                self._send(self._unsent[0], _SEND)
            except OSError:  # no room yet; or it is gone, which reading finds out
                return
            self._unsent_bytes -= len(self._unsent.popleft())
        self.tenant.ingress.watch_room(self, wanted=False)

    def close(self) -> None:
        """The door closed: no answer can be delivered any more."""
        self.closed = True
        self._unsent.clear()  # a worker may hold requests of it for long
        self.door.close()
        os.close(self.arena.fd)
