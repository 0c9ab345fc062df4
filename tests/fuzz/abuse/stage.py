"""What the steps of one sequence share: sessions of a user who is not root, workers by hand, and chance."""

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, Self

from bedsit.ipc import wire
from bedsit.ipc.errors import CODES, BedsitError
from bedsit.ipc.seqpacket import close_all, recv_bytes
from bedsit.ipc.slot import NOTE_BYTES
from bedsit.ipc.wire import Kind
from tests.fuzz.draw import Draw
from tests.supervisor.router.conftest import HostileWorker, Plane, RawSession

HOSTILE_UID: Final = 1_899_999_800
DONTWAIT: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Stage:
    """``with`` it: all that the steps opened is closed afterwards, and the slots are confirmed dead."""

    def __init__(self, plane: Plane, tenant: str, key: str, rng: random.Random) -> None:
        self.plane = plane
        self.tenant = tenant
        self.rng = rng
        self._key = key
        self._open: list[Any] = []
        self._workers: list[HostileWorker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for part in (*self._open, *self._workers):
            part.close()
            if part in self.plane.hostile:
                self.plane.hostile.remove(part)
        for worker in self._workers:
            self.plane.slots.pop(worker.slot, None)
        self.plane.heard.clear()
        if self._workers:
            self.plane.publish()

    @property
    def folder(self) -> Path:
        """The router's."""
        return self.plane.run_dir / "router"

    def draw(self, size: int = 200) -> Draw:
        """Choices out of chance."""
        return Draw(self.rng.randbytes(size))

    def keep(self, part: Any) -> Any:
        """Close it in the end."""
        self._open.append(part)
        return part

    def knock(self, lane: Literal["fast", "zmq"] = "fast") -> RawSession | None:
        """A session of the hostile tenant, by another user where it has a key; None when it has too many."""
        try:
            if self.tenant != "acme":
                session = self.plane.knock(self.tenant, lane=lane)
            else:
                with as_user(HOSTILE_UID):
                    session = self.plane.knock(self.tenant, self._key, lane)
        except BedsitError as e:
            assert e.code in ("session.limit", "router.unavailable"), e
            return None
        self.keep(session)
        return session

    def dial(self, path: Path, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
        """A connection to any of the router's sockets, by the other user."""
        link: socket.socket = self.keep(socket.socket(socket.AF_UNIX, kind))
        link.settimeout(5.0)
        with as_user(HOSTILE_UID), contextlib.suppress(OSError):
            link.connect(str(path))
        return link

    def work(self) -> HostileWorker:
        """A slot of the hostile tenant that this process is the worker of; those before it are gone."""
        for earlier in self._workers:
            if earlier.slot in self.plane.slots:
                self.lose(earlier)
        worker = self.plane.add_hostile(self.tenant)
        self._workers.append(worker)
        return worker

    def lose(self, worker: HostileWorker) -> None:
        """The slot is gone; the daemon confirms it."""
        worker.close()
        self.plane.slots.pop(worker.slot, None)
        self.plane.publish()


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """What is connected meanwhile is that user's (SO_PEERCRED has the effective uid)."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def take_answers(session: RawSession, owed: set[int]) -> None:
    """Read until each of *owed* was answered, with tensors or with an error that there is; or the session ended."""
    while owed:
        try:
            packet = session.lane.recv()  # none within its deadline is an error that passes through
        except ConnectionError:
            return
        if not packet:
            return
        envelope = wire.read_envelope(packet)
        assert envelope.kind in (Kind.RESPONSE, Kind.ERROR)
        if envelope.kind == Kind.ERROR:
            assert wire.decode_error(packet, envelope).code in CODES
        else:
            wire.decode_response(wire.header_of(packet, envelope), envelope.tensors)
        assert envelope.id in owed or envelope.id == 0, f"an answer to {envelope.id}, which nobody asked"
        owed.discard(envelope.id)


def send_all(session: RawSession, packets: list[bytes]) -> bool:
    """Send without waiting; False when the router takes no more or has hung up."""
    for packet in packets:
        try:
            if not session.lane.try_send(packet):
                return False
        except OSError:
            return False
    return True


def read_ids(worker: HostileWorker, count: int = 1000) -> list[int]:
    """The ids of the requests that lie there for a worker; arenas are let go of."""
    found: list[int] = []
    for _ in range(count):
        try:
            packet, fds = recv_bytes(worker.link, 1, DONTWAIT)
        except (OSError, ValueError):
            break
        close_all(fds)
        if not packet:
            break
        if len(packet) != NOTE_BYTES:
            kind, ident = wire.read_route(packet)
            if kind == Kind.REQUEST:
                found.append(ident)
    return found


def say(worker: HostileWorker, *packets: bytes) -> bool:
    """Send as a worker; False when the router has hung up. It reads one that lies with pauses, and so this waits."""
    try:
        for packet in packets:
            worker.link.send(packet, socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True
