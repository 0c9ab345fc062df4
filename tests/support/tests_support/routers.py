"""A router played by the test: a real door and real arenas, and behind it whatever the test says."""

import contextlib
import itertools
import os
import queue
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from bedsit.ipc import wire
from bedsit.ipc.door import ModelInfo
from bedsit.ipc.seqpacket import recv_packet, send_packet
from bedsit.ipc.wire import Kind
from bedsit.ipc.zmqlane import ZmqPort

DEADLINE_S = 30.0
_TOKEN = b"a-token"
_IDLE_MS = 20


class Far:
    """The router's end of a session on the fast lane."""

    def __init__(
        self, connection: socket.socket, opened: dict[str, Any], arena_fd: int, infos: list[ModelInfo]
    ) -> None:
        self.opened = opened
        self.infos = infos
        self.cancelled: list[int] = []
        self.socket = connection
        self.arena_fd = arena_fd
        # The kernel's own timeouts: with settimeout() Python would also wait where MSG_DONTWAIT asks it not to.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(DEADLINE_S), 0))

    def receive(self) -> bytes:
        """The next packet; empty when the client hung up."""
        try:
            return self.socket.recv(1 << 17)
        except ConnectionError:
            return b""

    def look(self) -> bytes | None:
        """The next packet, if there is one."""
        try:
            return self.socket.recv(1 << 17, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def send(self, packet: bytes) -> None:
        """Give the client a packet; one that is gone gets none."""
        with contextlib.suppress(ConnectionError):
            self.socket.send(packet, socket.MSG_NOSIGNAL)

    def tell(self, packet: bytes) -> None:
        """Answer a question: every model is described as the last one in *infos*."""
        envelope = wire.read_envelope(packet)
        question = wire.read_map(packet, envelope)
        if question["op"] == "models":
            models = [[info.manifest.name, [info.version]] for info in self.infos]
            self.send(wire.pack_map(Kind.TOLD, envelope.id, {"models": models}))
            return
        number, version, manifest = self.infos[-1]
        told = {"number": number, "version": version, "manifest": manifest.encode()}
        self.send(wire.pack_map(Kind.TOLD, envelope.id, told))

    def next_request(self) -> bytes:
        """The next REQUEST. Questions before it are answered, what is withdrawn is remembered."""
        while True:
            packet = self.receive()
            assert packet, "the client hung up"
            kind, ident = wire.read_route(packet)
            if kind == Kind.REQUEST:
                return packet
            if kind == Kind.ASK:
                self.tell(packet)
            else:
                assert kind == Kind.CANCEL
                self.cancelled.append(ident)

    def next_cancel(self) -> int:
        """The id of the next request that is withdrawn."""
        while not self.cancelled:
            packet = self.receive()
            kind, ident = wire.read_route(packet)
            assert kind == Kind.CANCEL
            self.cancelled.append(ident)
        return self.cancelled.pop(0)

    def echo(self, request: bytes) -> None:
        """Answer a request whose inputs lie in the packet with these inputs."""
        self.send(wire.readdress(request, Kind.RESPONSE, wire.read_route(request)[1]))

    def close(self) -> None:
        """Be gone."""
        self.socket.close()
        if self.arena_fd >= 0:
            os.close(self.arena_fd)
            self.arena_fd = -1


class FarZmq(Far):
    """The router's end of a session on the ZeroMQ lane."""

    def __init__(self, *known: Any, port: ZmqPort) -> None:
        super().__init__(*known)
        self._port = port

    def receive(self) -> bytes:
        """The next packet; empty when the client hung up."""
        for _ in range(int(DEADLINE_S * 1000 / _IDLE_MS)):
            packet = self.look()
            if packet is not None:
                return packet
            self._port._socket.poll(_IDLE_MS)
        raise TimeoutError

    def look(self) -> bytes | None:
        """The next packet, if there is one."""
        got = self._port.receive()
        if got is not None:
            assert got[0] == _TOKEN
            return got[1]
        return b"" if select.select([self.socket], [], [], 0)[0] else None

    def send(self, packet: bytes) -> None:
        """Give the client a packet, waiting until it takes it; one that is gone gets none."""
        for _ in range(int(DEADLINE_S * 1000 / _IDLE_MS)):
            if self._port.send(_TOKEN, packet) or select.select([self.socket], [], [], 0)[0]:
                return
            time.sleep(_IDLE_MS / 1000)

    def close(self) -> None:
        """Be gone."""
        super().close()
        self._port.close()


class PlayedRouter:
    """Opens each session that a client asks for; the test gets the far end of it from ``next_session``.

    With *play* a thread of its own plays each session instead, until the client hangs up.
    """

    def __init__(
        self, folder: Path, *infos: ModelInfo, play: Callable[[Far], None] | None = None, arena_bytes: int = 1 << 22
    ) -> None:
        self.run_dir = str(folder)
        self.infos = list(infos)
        self.arena_bytes = arena_bytes
        self._play = play
        self._folder = folder
        self._sessions: queue.Queue[Far] = queue.Queue()
        self._made: list[Far] = []
        self._threads: list[threading.Thread] = []
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._numbers = itertools.count()
        self._start()

    def next_session(self) -> Far:
        """The far end of the next session that was opened."""
        return self._sessions.get(timeout=DEADLINE_S)

    def restart(self) -> None:
        """Be gone, and be there again."""
        self.close()
        self._start()

    def close(self) -> None:
        """Hang up on everybody."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for far in self._made:
            with contextlib.suppress(OSError):
                far.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "the played router does not end"
        self._threads.clear()
        for far in self._made:
            far.close()
        self._made.clear()
        self._listener.close()
        Path(self._folder / "router" / "door.sock").unlink(missing_ok=True)
        if self._context is not None:
            self._context.term()
            self._context = None

    def _start(self) -> None:
        (self._folder / "router").mkdir(exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self._folder / "router" / "door.sock"))
        self._listener.listen(16)
        self._run(self._accept, self._listener)

    def _run(self, what: Callable[[Any], None], argument: Any) -> None:
        thread = threading.Thread(target=what, args=(argument,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            far = self._open(connection)
            if self._play is None:
                self._sessions.put(far)
            else:
                self._run(self._play, far)

    def _open(self, connection: socket.socket) -> Far:
        question, _ = recv_packet(connection)
        assert question is not None
        assert question["op"] == "open"
        fd = os.memfd_create("test-arena", os.MFD_CLOEXEC)
        os.ftruncate(fd, self.arena_bytes)
        endpoint = str(self._folder / f"lane{next(self._numbers)}.sock")
        opened = {"tenant": "acme", "token": _TOKEN, "endpoint": endpoint, "arena": 7, "arena_bytes": self.arena_bytes}
        if question["lane"] == "zmq":
            self._context = self._context or zmq.Context()
            far: Far = FarZmq(connection, question, fd, self.infos, port=ZmqPort(self._context, endpoint))
        else:
            far = Far(connection, question, fd, self.infos)
        self._made.append(far)
        send_packet(connection, opened, [fd])
        return far


@contextlib.contextmanager
def played(folder: Path, *infos: ModelInfo, **options: Any) -> Iterator[PlayedRouter]:
    """A played router that is gone afterwards."""
    router = PlayedRouter(folder, *infos, **options)
    try:
        yield router
    finally:
        router.close()


def echo_in_any_order(seed: int, most: int = 16) -> Callable[[Far], None]:
    """Plays a session: each request gets its own inputs back, in an order that *seed* decides."""

    def play(far: Far) -> None:
        chance = random.Random(seed)
        held: list[bytes] = []
        while True:
            packet = far.look() if held else far.receive()
            if packet == b"":
                return
            if packet is None or len(held) >= most:
                far.echo(held.pop(chance.randrange(len(held))))
            if packet:
                kind, _ = wire.read_route(packet)
                if kind == Kind.ASK:
                    far.tell(packet)
                elif kind == Kind.REQUEST:
                    held.append(packet)

    return play
