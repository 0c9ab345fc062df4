"""One client's connection, bound to one tenant: its door, its token on the lane, its arena, its requests."""

import os
import socket
from typing import TYPE_CHECKING

from bedsit.supervisor.router.arenas import Arena
from bedsit.supervisor.router.requests import Request

if TYPE_CHECKING:
    from bedsit.supervisor.router.tenants import Tenant


class Session:
    """A live session. It ends with its door; its arena's number is forgotten once nothing of it is in flight."""

    def __init__(self, tenant: "Tenant", token: bytes, door: socket.socket, arena: Arena, key_id: str | None) -> None:
        self.tenant = tenant
        self.token = token
        self.door = door
        self.arena = arena
        self.key_id = key_id  # None: let in as uid 0
        self.requests: dict[int, Request] = {}  # by the client's id
        self.closed = False

    def close(self) -> None:
        """The door closed: no answer can be delivered any more."""
        self.closed = True
        self.door.close()
        os.close(self.arena.fd)
