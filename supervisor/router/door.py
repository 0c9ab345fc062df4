"""The door: where clients come in, say who they are, and get their arena and endpoint.

Identity is what the kernel says (SO_PEERCRED) and the key. Nobody can hand a descriptor in: there is no room for one.
The connection stays open for the life of the session, and is its lane unless the client wants another one; its end is
the session's end.
"""

import hashlib
import itertools
import os
import secrets
import socket
import struct
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from bedsit.ipc.door import PROTOCOL
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.lane import LANES
from bedsit.ipc.seqpacket import recv_packet, refuse_descriptors, send_packet
from bedsit.supervisor.router.arenas import Arena, make_arena
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.router import Router
from bedsit.supervisor.router.sessions import Session
from bedsit.supervisor.router.tenants import Tenant

_UCRED: Final = struct.Struct("3i")
_MAX_WAITING: Final = 1024  # connections that have not opened a session yet
_MAX_WAITING_PER_USER: Final = 128
_MAX_ITEMS: Final = 16  # no question holds a list
_KNOCK_S: Final = 5.0
_BACKLOG: Final = 512
_TOKEN_BYTES: Final = 16
_log = structlog.get_logger("router.door")


class Door:
    """Listens at *path* and serves every connection from the loop."""

    def __init__(self, path: Path, router: Router, loop: Loop, held: socket.socket | None = None) -> None:
        """*held*: the listener at *path*, where systemd holds it."""
        self._router, self._loop, self._path, self._is_held = router, loop, path, held is not None
        self._arena_numbers = itertools.count(1)
        self._waiting: dict[socket.socket, int] = {}  # the uid of each
        self._waiting_by_user: Counter[int] = Counter()
        self._listener = _listen(held) if held is not None else _bind(path)
        if router.serial < 0:
            router.hear_first = self._let_in  # until then nobody would be known: who comes waits
        else:
            self._let_in()

    def close(self, *, for_good: bool) -> None:
        """Let nobody in any more. Unless it is *for_good* and ours, clients find a door that nobody opens yet."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        if for_good and not self._is_held:
            self._path.unlink(missing_ok=True)
        for connection in list(self._waiting):
            self._drop(connection)

    def _let_in(self) -> None:
        self._loop.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # nobody there any more, or no descriptor left for it: they may knock again
            return
        connection.setblocking(False)
        uid = _peer_uid(connection)
        if len(self._waiting) >= _MAX_WAITING or self._waiting_by_user[uid] >= _MAX_WAITING_PER_USER:
            connection.close()
            return
        self._waiting[connection] = uid
        self._waiting_by_user[uid] += 1
        self._loop.watch(connection.fileno(), partial(self._hear, connection))
        self._loop.later(_KNOCK_S, partial(self._give_up, connection))

    def _give_up(self, connection: socket.socket) -> None:
        if connection in self._waiting:
            self._drop(connection)

    def _stop_waiting(self, connection: socket.socket) -> None:
        uid = self._waiting.pop(connection, None)
        if uid is not None:
            self._waiting_by_user[uid] -= 1
            if not self._waiting_by_user[uid]:
                del self._waiting_by_user[uid]

    def _drop(self, connection: socket.socket) -> None:
        self._stop_waiting(connection)
        self._loop.unwatch(connection.fileno())
        connection.close()

    def _hear(self, connection: socket.socket) -> None:
        """The first packet of a connection must open a session."""
        message = self._read(connection, partial(self._drop, connection))
        if message is None:
            return
        try:
            if message.get("op") != "open" or message.get("v") != PROTOCOL:
                raise error("wire.malformed", f"the first packet must open a session of protocol {PROTOCOL}")
            tenant, key_id = self._authenticate(connection, message.get("tenant"), message.get("key"))
            self._open(connection, tenant, key_id, message.get("lane"))
        except BedsitError as e:
            self._say(connection, {"error": e.to_wire()})
            self._drop(connection)

    def _authenticate(self, connection: socket.socket, name: Any, key: Any) -> tuple[Tenant, str | None]:
        if isinstance(key, str):
            # A look-up by digest: its timing says nothing about the secret.
            found = self._router.keys.get(hashlib.sha256(key.encode(errors="replace")).digest())
            if found is not None and name in (None, found[0].view.name):
                return found
            raise error("key.invalid", "this key opens nothing here", "`bedsit key create TENANT` makes a new one")
        if _peer_uid(connection) != 0:
            raise error("key.invalid", "a key is needed", "`bedsit key create TENANT` makes one")
        if not isinstance(name, str):
            raise error("request.invalid", "which tenant?", "name one: a key says it by itself, uid 0 has to")
        tenant = self._router.tenants.get(name)
        if tenant is None:
            raise error("tenant.not_found", f"there is no tenant {name[:64]!r}", "`bedsit tenant list` shows them")
        return tenant, None

    def _open(self, connection: socket.socket, tenant: Tenant, key_id: str | None, lane: Any) -> None:
        view = tenant.view
        if lane not in LANES:
            # Not str(lane): the peer chose the value, and a list in a list in a list ... ends in RecursionError.
            named = repr(lane[:16]) if isinstance(lane, str) else f"of type {type(lane).__name__}"
            raise error("request.invalid", f"there is no lane {named}", f"one of {', '.join(LANES)}")
        if tenant.sessions >= view.sessions_max:
            raise error("session.limit", f"tenant {view.name} has {tenant.sessions} sessions open", "close some first")
        try:
            fd = make_arena(view.arena_bytes)
        except OSError as e:
            raise error("session.limit", f"no arena can be made: {e.strerror}") from None
        arena = Arena(fd, next(self._arena_numbers), view.arena_bytes)
        session = Session(tenant, connection, arena, key_id, _new_token() if lane == "zmq" else b"")
        self._stop_waiting(connection)
        self._loop.unwatch(connection.fileno())
        try:
            self._router.add_session(session)
        except OSError as e:
            self._router.end_session(session)
            raise error("session.limit", f"no lane can be made: {e.strerror}") from None
        told = self._say(
            connection,
            {
                "op": "opened",
                "tenant": view.name,
                "token": session.token,
                "endpoint": str(tenant.path) if session.token else "",
                "arena": session.arena.number,
                "arena_bytes": session.arena.size_bytes,
                "pid": os.getpid(),
            },
            [fd],
        )
        if not told:
            self._router.end_session(session)

    def _read(self, connection: socket.socket, on_end: Callable[[], None]) -> dict[str, Any] | None:
        try:
            message, _ = recv_packet(connection, max_items=_MAX_ITEMS)
        except BlockingIOError:
            return None
        except (OSError, BedsitError):
            message = None  # a peer that does not speak our language is hung up on
        if message is None:
            on_end()
        return message

    def _say(self, connection: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> bool:
        try:
            send_packet(connection, message, fds or [])
        except (OSError, BedsitError):
            return False
        return True


def _bind(path: Path) -> socket.socket:
    """A listener in place of the last router's, in one step: a client finds a door at all times."""
    beside = path.with_name(".door.new")
    beside.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    listener.bind(str(beside))
    beside.chmod(0o666)  # any program on the box may knock; the key opens
    _listen(listener)
    beside.replace(path)
    return listener


def _listen(listener: socket.socket) -> socket.socket:
    """Listen, also where systemd does already: who connects is told that it is this process (unix(7), SO_PEERCRED)."""
    listener.setblocking(False)
    refuse_descriptors(listener)
    listener.listen(_BACKLOG)
    return listener


def _peer_uid(connection: socket.socket) -> int:
    uid: int = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
    return uid


def _new_token() -> bytes:
    # ZeroMQ refuses routing ids that begin with a zero byte.
    return b"\x01" + secrets.token_bytes(_TOKEN_BYTES)
