"""Which lane the router cuts when its memory or its descriptors run low."""

import contextlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bedsit.supervisor.router.pressure import Lane, Pressure
from tests_support.marks import ENDLESS


class Crowd:
    """Connections of this process, accepted at two paths as libzmq accepts them."""

    def __init__(self, folder: Path) -> None:
        self.paths = [str(folder / name) for name in ("one.sock", "two.sock")]
        self.cut: list[str] = []
        self.received = dict.fromkeys(self.paths, 0)
        self._all = contextlib.ExitStack()
        self._listeners = {}
        for path in self.paths:
            self._listeners[path] = self._all.enter_context(socket.socket(socket.AF_UNIX))
            self._listeners[path].bind(path)
            self._listeners[path].listen()

    def connect(self, path: str, unread: bytes = b"") -> None:
        """One more connection, on which *unread* waits."""
        peer = self._all.enter_context(socket.socket(socket.AF_UNIX))
        peer.connect(path)
        self._all.enter_context(self._listeners[path].accept()[0])
        if unread:
            peer.send(unread)

    def lanes(self) -> dict[str, Lane]:
        """Both lanes, each of which should have one connection."""
        return {path: Lane(1, self.received[path], lambda path=path: self.cut.append(path)) for path in self.paths}

    def close(self) -> None:
        """Hang up everywhere."""
        self._all.close()


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    """Two lanes with a connection each."""
    made = Crowd(tmp_path)
    for path in made.paths:
        made.connect(path)
    yield made
    made.close()


def test_nobody_is_cut_without_pressure(crowd: Crowd) -> None:
    """Surplus connections alone are no reason."""
    crowd.connect(crowd.paths[0])
    assert Pressure(memory_bytes=1 << 40).look(crowd.lanes) is None
    assert crowd.cut == []


@ENDLESS(part="twin", outcome="honest lanes stay")
def test_nobody_is_cut_without_a_sign(crowd: Crowd) -> None:
    """Under pressure, lanes with their own connection and nothing waiting stay."""
    pressure = Pressure(memory_bytes=0)
    assert pressure.look(crowd.lanes) is None
    assert pressure.look(crowd.lanes) is None


def test_looking_gets_rarer_while_nobody_looks_guilty(crowd: Crowd) -> None:
    """The lanes are asked for at longer and longer intervals, and at each look again once one was guilty."""
    pressure = Pressure(memory_bytes=0)
    looks: list[int] = []

    def lanes(number: int) -> dict[str, Lane]:
        looks.append(number)
        return crowd.lanes()

    for number in range(30):
        assert pressure.look(lambda number=number: lanes(number)) is None
    assert looks == [0, 1, 3, 7, 15, 23]
    crowd.connect(crowd.paths[1])
    assert [pressure.look(crowd.lanes) for _ in range(3)] == [None, crowd.paths[1], crowd.paths[1]]


def test_the_lane_with_too_many_connections_is_cut(crowd: Crowd) -> None:
    """Under pressure, once."""
    crowd.connect(crowd.paths[1])
    assert Pressure(memory_bytes=0).look(crowd.lanes) == crowd.paths[1]
    assert crowd.cut == [crowd.paths[1]]


def test_the_lane_whose_bytes_become_no_packets_is_cut(crowd: Crowd) -> None:
    """Bytes wait on both, and packets came of one of them only since the last look."""
    busy, endless = crowd.paths
    for path in crowd.paths:
        crowd.connect(path, b"bytes")
    two = {path: lane._replace(connections=2) for path, lane in crowd.lanes().items()}
    pressure = Pressure(memory_bytes=0)
    assert pressure.look(lambda: two) is None
    two[busy] = two[busy]._replace(received=7)
    assert pressure.look(lambda: two) == endless


def test_few_descriptors_left_are_pressure(crowd: Crowd) -> None:
    """When half of the numbers are open, the lane with too many connections is cut."""
    crowd.connect(crowd.paths[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, hard))
    try:
        pressure = Pressure()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert pressure.look(crowd.lanes) == crowd.paths[0]
