"""Packets with descriptors beside them, over real sockets."""

import array
import os
import socket
from collections.abc import Iterator

import msgpack
import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.seqpacket import MAX_PACKET, close_all, recv_bytes, recv_packet, send_bytes, send_packet

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected SEQPACKET sockets with room for the longest packet."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        yield near, far


def _count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _send_raw(sock: socket.socket, body: bytes, count: int) -> None:
    reader, writer = os.pipe()
    rights = array.array("i", [reader] * count)
    sock.sendmsg([body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    close_all([reader, writer])


def test_a_packet_and_its_descriptors_arrive_together(pair: Pair) -> None:
    """The map comes back, and the descriptors are open, not inherited, and refer to the same file."""
    near, far = pair
    reader, writer = os.pipe()
    send_packet(near, {"op": "spawn", "n": 1}, [reader, writer])
    close_all([reader, writer])
    message, fds = recv_packet(far, 2)
    assert message == {"op": "spawn", "n": 1}
    os.write(fds[1], b"through")
    assert os.read(fds[0], 100) == b"through"
    assert not any(os.get_inheritable(fd) for fd in fds)
    close_all(fds)


@pytest.mark.parametrize("allowed", [0, 1, 2, 3, 8, 252])
@pytest.mark.parametrize("surplus", [1, 2, 253])
def test_surplus_descriptors_are_refused_and_none_stays_open(pair: Pair, allowed: int, surplus: int) -> None:
    """One descriptor too many, or very many, end in ``wire.malformed`` with nothing left open."""
    near, far = pair
    before = _count_descriptors()
    _send_raw(near, msgpack.packb({}), min(allowed + surplus, 253))
    with pytest.raises(BedsitError) as caught:
        recv_packet(far, allowed)
    assert caught.value.code == "wire.malformed"
    assert _count_descriptors() == before
    send_packet(near, {"next": True})
    assert recv_packet(far) == ({"next": True}, [])


@pytest.mark.parametrize("body", [b"\x01", b"\x90", b"\xc1", b"\x81\xa1a", b"\xc7\x00\x05", b"\x81\x01\x02"])
def test_descriptors_beside_what_is_no_map_are_closed(pair: Pair, body: bytes) -> None:
    """A packet that cannot be read takes its descriptors along."""
    near, far = pair
    before = _count_descriptors()
    _send_raw(near, body, 3)
    with pytest.raises(BedsitError):
        recv_packet(far, 3)
    assert _count_descriptors() == before


def test_a_packet_of_the_limit_arrives_and_a_longer_one_is_refused(pair: Pair) -> None:
    """The limit holds at the sender and, against a sender who does not care, at the receiver."""
    near, far = pair
    send_bytes(near, bytes(MAX_PACKET))
    assert recv_bytes(far) == (bytes(MAX_PACKET), [])
    with pytest.raises(BedsitError):
        send_bytes(near, bytes(MAX_PACKET + 1))
    before = _count_descriptors()
    _send_raw(near, bytes(MAX_PACKET + 1), 1)
    with pytest.raises(BedsitError):
        recv_bytes(far, 1)
    _send_raw(near, bytes(MAX_PACKET + 5000), 1)
    with pytest.raises(BedsitError):
        recv_bytes(far, 1)
    assert _count_descriptors() == before


def test_the_end_of_the_peer_is_none(pair: Pair) -> None:
    """A closed peer, and an empty packet, which no peer of ours sends, read as the end."""
    near, far = pair
    before = _count_descriptors()
    _send_raw(near, b"", 2)
    assert recv_packet(far, 2) == (None, [])
    assert _count_descriptors() == before
    near.close()
    assert recv_packet(far) == (None, [])


def test_an_array_over_the_receivers_limit_is_refused(pair: Pair) -> None:
    """Whoever listens to strangers says how long a list may be."""
    near, far = pair
    send_packet(near, {"list": [0] * 17})
    send_packet(near, {"list": [0] * 16})
    with pytest.raises(BedsitError):
        recv_packet(far, max_items=16)
    assert recv_packet(far, max_items=16) == ({"list": [0] * 16}, [])


def test_a_full_socket_does_not_block_when_told_not_to(pair: Pair) -> None:
    """With MSG_DONTWAIT a peer that reads nothing is an error at once."""
    near, _ = pair
    with pytest.raises(BlockingIOError):
        for _ in range(100_000):
            send_packet(near, {"n": 1}, flags=socket.MSG_DONTWAIT)
