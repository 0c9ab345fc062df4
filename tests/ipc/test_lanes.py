"""The two lanes by themselves: packets, room, ends, and threads."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq

from bedsit.ipc import wire
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.fastlane import ROOM, PacketChannel
from bedsit.ipc.lane import LANES, Channel
from bedsit.ipc.wire import MAX_PACKET, Kind
from bedsit.ipc.zmqlane import SharedChannel, ZmqChannel, ZmqPort
from tests_support.marks import LANE
from tests_support.routers import DEADLINE_S
from tests_support.slots import wait_until

_TOKEN = b"a-client"


class Pair:
    """A channel, and the far end of it as simple as can be."""

    def __init__(self, near: Channel, far: Any) -> None:
        self.near = near
        self.far = far


class PacketFar:
    """The peer on a socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_S)
        self.socket = sock

    def send(self, packet: bytes) -> None:
        self.socket.send(packet)

    def recv(self) -> bytes:
        return self.socket.recv(1 << 20)

    def close(self) -> None:
        self.socket.close()


class PortFar:
    """The peer on a ZmqPort, which waits as long as it must."""

    def __init__(self, port: ZmqPort) -> None:
        self.port = port

    def send(self, packet: bytes) -> None:
        wait_until(lambda: self.port.send(_TOKEN, packet), "there is room for the client")

    def recv(self) -> bytes:
        while (got := self.port.receive()) is None:
            assert self.port._socket.poll(int(DEADLINE_S * 1000))
        assert got[0] == _TOKEN
        return got[1]

    def close(self) -> None:
        self.port.close()


@contextlib.contextmanager
def _open_fast() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        near = PacketChannel(ours)
        try:
            yield Pair(near, PacketFar(theirs))
        finally:
            near.close()


@contextlib.contextmanager
def _open_zmq(folder: Path, *, shared: bool) -> Iterator[Pair]:
    with zmq.Context() as context:
        far = PortFar(ZmqPort(context, str(folder / "lane.sock")))
        channel = ZmqChannel(context, str(folder / "lane.sock"), token=_TOKEN)
        near: Channel = SharedChannel(channel) if shared else channel
        try:
            # ZeroMQ connects in its own time; a port refuses to send before it knows the peer.
            assert near.send(b"hello")
            assert far.recv() == b"hello"
            yield Pair(near, far)
        finally:
            near.close()
            far.close()


@pytest.fixture(params=["fast", "zmq", "shared"])
def pair(request: Any, tmp_path: Path) -> Iterator[Pair]:
    """Both ends of a lane of each kind."""
    opened = _open_fast() if request.param == "fast" else _open_zmq(tmp_path, shared=request.param == "shared")
    with opened as pair:
        yield pair


@pytest.fixture
def fast() -> Iterator[Pair]:
    """Both ends of a fast lane."""
    with _open_fast() as pair:
        yield pair


def _receive(channel: Channel) -> bytes:
    """The next packet, waited for; a wait may end early."""
    while (packet := channel.wait(DEADLINE_S)) is None:
        assert not channel.ended
    return packet


def test_packets_of_every_length_go_both_ways(pair: Pair) -> None:
    """From one byte to the longest packet, in their order, each whole and by itself."""
    packets = [os.urandom(size) for size in (1, 16, 47, 48, 49, 4096, MAX_PACKET - 1, MAX_PACKET)]
    for packet in packets:
        assert pair.near.send(packet)
        assert pair.far.recv() == packet
    for packet in packets:
        pair.far.send(packet)
        assert _receive(pair.near) == packet
    for packet in packets[:6]:
        pair.far.send(packet)
    assert [_receive(pair.near) for _ in packets[:6]] == packets[:6]


def test_nothing_there_is_none(pair: Pair) -> None:
    """``receive`` never waits, and ``wait`` only as long as it was told; neither takes that for the end."""
    assert pair.near.receive() is None
    for timeout_s in (-1.0, 0.0, 0.001, 0.11):
        assert pair.near.wait(timeout_s) is None
    assert not pair.near.ended


def test_a_packet_wakes_whoever_waits(pair: Pair) -> None:
    """A thread in ``wait`` gets what comes."""
    with ThreadPoolExecutor(1) as pool:
        for number in range(50):
            waiting = pool.submit(_receive, pair.near)
            pair.far.send(b"%d" % number)
            assert waiting.result(DEADLINE_S) == b"%d" % number


def test_the_descriptor_tells_of_packets(pair: Pair) -> None:
    """It becomes readable when something comes, whatever the lane; then everything is taken off it."""
    import select

    epoll = select.epoll()
    with contextlib.closing(epoll):
        epoll.register(pair.near.fileno(), select.EPOLLIN | select.EPOLLET)
        got: list[bytes] = []
        for number in range(20):
            pair.far.send(b"%d" % number)
            while len(got) <= number:
                while (packet := pair.near.receive()) is not None:
                    got.append(packet)
                if len(got) <= number:
                    assert epoll.poll(DEADLINE_S)
    assert got == [b"%d" % number for number in range(20)]


def test_a_peer_that_reads_nothing_takes_nothing_after_a_while(pair: Pair) -> None:
    """``send`` is False then, nothing is lost, and it goes on once the peer reads."""
    packet = bytes(MAX_PACKET)
    sent = 0
    while pair.near.send(packet):
        sent += 1
        assert sent < 2000
    assert not pair.near.ended
    pair.near.wait_for_room(0.0)
    for _ in range(sent):
        assert pair.far.recv() == packet
    while not pair.near.send(b"after"):
        pair.near.wait_for_room(DEADLINE_S)
    assert pair.far.recv() == b"after"


def test_many_threads_may_wait_for_room_at_once(pair: Pair) -> None:
    """All of them get their packet through, each one whole."""
    packet = bytes(MAX_PACKET)
    sent = 0
    while pair.near.send(packet):
        sent += 1
    gate = threading.Barrier(9)
    lock = threading.Lock()  # as a link's: sending is one at a time, waiting is not

    def push(number: int) -> None:
        gate.wait(DEADLINE_S)
        while True:
            with lock:
                if pair.near.send(bytes([number]) * 1000):
                    return
            pair.near.wait_for_room(0.01)

    with ThreadPoolExecutor(8) as pool:
        pushed = [pool.submit(push, number) for number in range(8)]
        gate.wait(DEADLINE_S)
        assert [pair.far.recv() for _ in range(sent)] == [packet] * sent
        got = sorted(pair.far.recv() for _ in range(8))
        for future in pushed:
            future.result(DEADLINE_S)
    assert got == [bytes([number]) * 1000 for number in range(8)]


@pytest.mark.parametrize("kind", ["fast", "shared"])
def test_a_closed_channel_takes_and_gives_nothing(kind: str, tmp_path: Path) -> None:
    """Another thread may close it between two calls: that is no exception of a socket's."""
    with _open_fast() if kind == "fast" else _open_zmq(tmp_path, shared=True) as pair:
        pair.far.send(b"unread")
        pair.near.close()
        assert pair.near.ended
        assert pair.near.send(b"x") is False
        assert pair.near.receive() is None
        pair.near.wait_for_room(0.0)
        pair.near.close()


# --- the fast lane ----------------------------------------------------------------------------------------------------


def test_the_end_of_the_peer_is_seen(fast: Pair) -> None:
    """What it sent before is still received; then ``ended`` is true, nothing is received and nothing sent."""
    fast.far.send(b"last")
    fast.far.close()
    assert fast.near.receive() == b"last"
    assert not fast.near.ended
    assert fast.near.receive() is None
    assert fast.near.ended
    assert fast.near.wait(DEADLINE_S) is None
    assert fast.near.send(b"x") is False
    fast.near.wait_for_room(DEADLINE_S)


def test_the_end_of_the_peer_is_seen_by_sending(fast: Pair) -> None:
    """No signal comes of it."""
    fast.far.close()
    assert fast.near.send(b"x") is False
    assert fast.near.ended


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_the_end_wakes_whoever_waits(fast: Pair, end: str) -> None:
    """Of the peer, or one's own end of the connection by another thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: [fast.near.wait(1000.0) for _ in range(3)] and fast.near.ended)
        if end == "close":
            fast.far.close()
        else:
            fast.near._socket.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
        while not waiting.result(DEADLINE_S):
            waiting = pool.submit(lambda: [fast.near.wait(1000.0) for _ in range(3)] and fast.near.ended)


@LANE(part="attack", outcome="cut off, and refused by its length")
def test_a_packet_over_the_limit_is_refused_by_its_length(fast: Pair) -> None:
    """However long it is, no more than a byte over the limit is taken, and reading its envelope refuses it."""
    for surplus in (1, 5000):
        good = wire.pack_packet(Kind.RESPONSE, 1, bytes(100))
        fast.far.send(good + bytes(MAX_PACKET + surplus - len(good)))
        packet = _receive(fast.near)
        assert len(packet) == ROOM == MAX_PACKET + 1
        with pytest.raises(BedsitError):
            wire.read_envelope(packet)
    fast.far.send(b"next")
    assert _receive(fast.near) == b"next"


def test_an_interrupted_wait_goes_on(fast: Pair) -> None:
    """A signal in the middle of a blocking receive neither ends it nor loses a packet."""
    import signal

    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        main = threading.main_thread().ident
        assert main is not None

        def disturb() -> None:
            for _ in range(20):
                signal.pthread_kill(main, signal.SIGUSR1)
            fast.far.send(b"here")

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(disturb)
            assert _receive(fast.near) == b"here"
            done.result(DEADLINE_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen


# --- the ZeroMQ lane --------------------------------------------------------------------------------------------------


def test_a_port_tells_its_clients_apart(tmp_path: Path) -> None:
    """Each packet comes with its sender's token; a token that nobody has cannot be sent to."""
    path = str(tmp_path / "lane.sock")
    with zmq.Context() as context:
        port = ZmqPort(context, path)
        clients = [ZmqChannel(context, path, token=b"c%d" % number) for number in range(3)]
        for number, client in enumerate(clients):
            assert client.send(b"from %d" % number)
        got = set()
        while len(got) < 3:
            assert port._socket.poll(int(DEADLINE_S * 1000))
            got.add(port.receive())
        assert got == {(b"c%d" % number, b"from %d" % number) for number in range(3)}
        assert port.receive() is None
        for number in range(3):
            assert port.send(b"c%d" % number, b"to %d" % number)
        assert [_receive(client) for client in clients] == [b"to %d" % number for number in range(3)]
        assert not port.send(b"nobody", b"x")
        for part in (*clients, port):
            part.close()


def test_messages_of_another_form_are_dropped(tmp_path: Path) -> None:
    """A port takes one part per message; what has more is nobody's, and the next one is as it was."""
    path = str(tmp_path / "lane.sock")
    with zmq.Context() as context:
        port = ZmqPort(context, path)
        with context.socket(zmq.DEALER) as odd:
            odd.setsockopt(zmq.LINGER, 0)
            odd.setsockopt(zmq.IDENTITY, b"odd")
            odd.connect(f"ipc://{path}")
            odd.send_multipart([b"a", b"b"])
            odd.send_multipart([b""] * 50)
            odd.send(b"good")
            got = set()
            while (b"odd", b"good") not in got:
                assert port._socket.poll(int(DEADLINE_S * 1000))
                got.add(port.receive())
            assert got <= {(b"odd", b"good"), (b"", b""), None}
        port.close()


def test_a_path_that_cannot_be_bound_is_an_os_error(tmp_path: Path) -> None:
    """With its name, for a port and for a bound channel; nothing is left open."""
    path = str(tmp_path / "missing" / "lane.sock")
    before = len(os.listdir("/proc/self/fd"))
    with zmq.Context() as context:
        for make in (lambda: ZmqPort(context, path), lambda: ZmqChannel(context, path, bind=True)):
            with pytest.raises(OSError, match="missing") as caught:
                make()
            assert caught.value.filename == path
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_send_that_swallows_an_edge_rings(tmp_path: Path) -> None:
    """Whoever is about to wait for the descriptor is told of the packet that a send took notice of."""
    import select

    with _open_zmq(tmp_path, shared=True) as pair:
        near = pair.near
        assert isinstance(near, SharedChannel)
        for number in range(20):
            assert near.receive() is None
            pair.far.send(b"%d" % number)
            assert select.select([near.fileno()], [], [], DEADLINE_S)[0]
            assert near.send(b"x")
            assert near._readable.poll(0)
            assert near.wait(0.0) == b"%d" % number


def test_no_edge_is_lost_between_threads(tmp_path: Path) -> None:
    """Four threads send, one waits, the peer answers at once: every answer is received, though sends swallow edges."""
    calls = 500
    with _open_zmq(tmp_path, shared=True) as pair, ThreadPoolExecutor(6) as pool:

        def echo() -> None:
            for _ in range(4 * calls):
                pair.far.send(pair.far.recv())

        def push(number: int) -> None:
            for call in range(calls):
                while not pair.near.send(b"%d %d" % (number, call)):
                    pair.near.wait_for_room(0.01)

        echoing = pool.submit(echo)
        pushing = [pool.submit(push, number) for number in range(4)]
        got = {_receive(pair.near) for _ in range(4 * calls)}
        for future in (echoing, *pushing):
            future.result(DEADLINE_S)
    assert got == {b"%d %d" % (number, call) for number in range(4) for call in range(calls)}


def test_both_lanes_have_names() -> None:
    """These words are what a client asks for at the door."""
    assert LANES == ("fast", "zmq")
