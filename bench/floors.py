"""Floors: what the parts cost with no serving around them. Nothing of bedsit is imported here.

All answer the same tiny model with the same msgpack header ``{m: model, id: number, s: shape, d: dtype}``; the real
torch call runs in the last process of the chain.

    inprocess        the call alone
    zmq_one_hop      client DEALER -> ROUTER worker, over ipc
    zmq_two_hop      client DEALER -> ROUTER broker ROUTER -> DEALER worker; the broker drains, keeps nothing
    packet_two_hop   the same chain over UNIX SEQPACKET sockets, one epoll loop in the middle
"""

import contextlib
import os
import select
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgpack
import numpy as np
import zmq

from bench.loads import Array, Call, Target
from bench.processes import end, fork

CLIENTS: Final = 16
_MODEL: Final = "tiny"
_DRAIN: Final = 64  # messages taken from one socket before the others get a turn
_PACKET: Final = 64 << 10
_BUFFER: Final = 1 << 20
_LENGTH: Final = struct.Struct("<H")
_READY_DEADLINE_S: Final = 20.0

pack: Final = msgpack.packb
unpack: Final = msgpack.unpackb


class Floor(Target, Protocol):
    """A target that has to be started."""

    def start(self) -> None:
        """Start its processes; blocks until they serve."""

    def stop(self) -> None:
        """End them."""


class InProcess:
    """The call alone, in the client's own process."""

    name = "inprocess"

    def __init__(self, model: Call) -> None:
        self.pids: list[int] = []
        self.router: int | None = None
        self._model = model

    def start(self) -> None:
        """Nothing to start."""

    def connect(self, number: int) -> Call:
        """The model itself."""
        del number
        return self._model

    def stop(self) -> None:
        """Nothing to stop."""


class _Chain:
    """A floor with processes of its own."""

    name = ""

    def __init__(self, model: Call) -> None:
        self.pids: list[int] = []
        self.router: int | None = None
        self._model = model

    def _fork(self, serve: Callable[[Callable[[], Any]], None]) -> int:
        """Run *serve* in a process; gives its pid once that has called what it was given. Raises RuntimeError."""
        ready_in, ready_out = os.pipe()
        pid = fork(lambda: serve(lambda: os.write(ready_out, b"r")))
        self.pids.append(pid)
        os.close(ready_out)
        with os.fdopen(ready_in, "rb", buffering=0) as ready:
            if not (select.select([ready], [], [], _READY_DEADLINE_S)[0] and ready.read(1)):
                raise RuntimeError(f"{self.name}: a process has not started")
        return pid

    def stop(self) -> None:
        """End its processes."""
        for pid in self.pids:
            end(pid)
        self.pids.clear()


class ZmqOneHop(_Chain):
    """Client and worker, nothing between them."""

    name = "zmq_one_hop"

    def start(self) -> None:
        """Start the worker."""
        self._folder = tempfile.mkdtemp(prefix="floor-")
        self._front = f"ipc://{self._folder}/front"
        self._fork(self._work)

    def connect(self, number: int) -> Call:
        """A client with a DEALER of its own."""
        del number
        sock = zmq.Context().socket(zmq.DEALER)
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(self._front)
        send, receive = sock.send_multipart, sock.recv_multipart
        ident = 0

        def call(x: Array) -> Array:
            nonlocal ident
            ident += 1
            send([pack({"m": _MODEL, "id": ident, "s": x.shape, "d": "f4"}), x.data])
            header, data = receive()
            return _as_array(unpack(header), data)

        return call

    def stop(self) -> None:
        """End the processes and remove the sockets."""
        super().stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _work(self, ready: Callable[[], Any]) -> None:
        sock = zmq.Context().socket(zmq.ROUTER)
        sock.bind(self._front)
        ready()
        self._answer(sock)

    def _answer(self, sock: "zmq.Socket[bytes]") -> None:
        model = self._model
        while True:
            client, header, data = sock.recv_multipart()
            head = unpack(header)
            y = model(_as_array(head, data))
            sock.send_multipart([client, pack({"id": head["id"], "s": y.shape, "d": "f4"}), y.data])


class ZmqTwoHop(ZmqOneHop):
    """A plain broker between client and worker: it reads the header to find the worker, and keeps no state."""

    name = "zmq_two_hop"

    def start(self) -> None:
        """Start broker and worker."""
        self._folder = tempfile.mkdtemp(prefix="floor-")
        self._front, self._back = (f"ipc://{self._folder}/{end}" for end in ("front", "back"))
        self.router = self._fork(self._broker)
        self._fork(self._work)

    def _broker(self, ready: Callable[[], Any]) -> None:
        context = zmq.Context()
        front, back = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
        front.bind(self._front)
        back.bind(self._back)
        poller = zmq.Poller()
        poller.register(front, zmq.POLLIN)
        poller.register(back, zmq.POLLIN)
        ready()
        while True:
            for sock, _ in poller.poll():
                with contextlib.suppress(zmq.Again):
                    for _ in range(_DRAIN):
                        parts = sock.recv_multipart(zmq.DONTWAIT)
                        if sock is front:
                            back.send_multipart([unpack(parts[1])["m"].encode(), *parts])
                        elif len(parts) > 2:  # a worker's hello has nothing to pass on
                            front.send_multipart(parts[1:])

    def _work(self, ready: Callable[[], Any]) -> None:
        sock = zmq.Context().socket(zmq.DEALER)
        sock.setsockopt(zmq.IDENTITY, _MODEL.encode())
        sock.connect(self._back)
        sock.send(b"hello")
        ready()
        self._answer(sock)


class PacketTwoHop(_Chain):
    """SEQPACKET pairs and one epoll loop; a packet is ``u16 header length, msgpack header, tensor``.

    Between router and worker a packet is preceded by the number of its client, u16.
    """

    name = "packet_two_hop"

    def start(self) -> None:
        """Make the pairs, start router and worker."""
        self._lanes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(CLIENTS)]
        self._leg = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in self._leg:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self.router = self._fork(self._route)
        self._fork(self._work)

    def connect(self, number: int) -> Call:
        """The client's end of pair *number*."""
        sock = self._lanes[number][0]
        send, receive = sock.send, sock.recv
        ident = 0

        def call(x: Array) -> Array:
            nonlocal ident
            ident += 1
            send(_join({"m": _MODEL, "id": ident, "s": x.shape, "d": "f4"}, x))
            packet = memoryview(receive(_PACKET))
            head, at = _split(packet)
            return _as_array(head, packet[at:])

        return call

    def stop(self) -> None:
        """End the processes and close the pairs."""
        super().stop()
        for pair in (*self._lanes, self._leg):
            for sock in pair:
                sock.close()

    def _route(self, ready: Callable[[], Any]) -> None:
        lanes = [server for _, server in self._lanes]
        worker = self._leg[0]
        routes = {_MODEL: worker}
        poller = select.epoll()
        numbers = {lane.fileno(): number for number, lane in enumerate(lanes)}
        for sock in (*lanes, worker):
            poller.register(sock.fileno(), select.EPOLLIN)
        buffer = bytearray(_PACKET)
        view = memoryview(buffer)
        body = view[_LENGTH.size :]  # a client's packet is read behind the room for its number
        put_number, get_number, wait = _LENGTH.pack_into, _LENGTH.unpack_from, poller.poll
        worker_fd = worker.fileno()
        ready()
        while True:
            for fd, _ in wait():
                if fd == worker_fd:
                    with contextlib.suppress(BlockingIOError):
                        for _ in range(_DRAIN):
                            size = worker.recv_into(buffer, 0, socket.MSG_DONTWAIT)
                            lanes[get_number(buffer)[0]].send(view[_LENGTH.size : size])
                else:
                    number = numbers[fd]
                    size = lanes[number].recv_into(body)
                    head, _ = _split(body[:size])
                    put_number(buffer, 0, number)
                    routes[head["m"]].send(view[: size + _LENGTH.size])

    def _work(self, ready: Callable[[], Any]) -> None:
        model, sock = self._model, self._leg[1]
        buffer = bytearray(_PACKET)
        view = memoryview(buffer)
        ready()
        while True:
            packet = view[_LENGTH.size : sock.recv_into(buffer)]
            head, at = _split(packet)
            y = model(_as_array(head, packet[at:]))
            answer = _join({"id": head["id"], "s": y.shape, "d": "f4"}, y)
            sock.send(bytes(buffer[: _LENGTH.size]) + answer)


def make_floors(model: Call) -> list[Floor]:
    """All floors, cheapest first, none started."""
    return [InProcess(model), ZmqOneHop(model), ZmqTwoHop(model), PacketTwoHop(model)]


def _join(head: dict[str, Any], x: Array) -> bytes:
    header: bytes = pack(head)
    return _LENGTH.pack(len(header)) + header + x.tobytes()


def _split(packet: memoryview) -> tuple[dict[str, Any], int]:
    """The header of a packet and where its tensor begins."""
    end_of_header = _LENGTH.unpack_from(packet)[0] + _LENGTH.size
    head: dict[str, Any] = unpack(packet[_LENGTH.size : end_of_header])
    return head, end_of_header


def _as_array(head: dict[str, Any], data: bytes | memoryview) -> Array:
    return np.frombuffer(data, np.float32).reshape(head["s"])
