"""Hostile clients on a lane: whatever they send, they harm nobody but themselves."""

import contextlib
import socket
import struct
import time
from typing import Any

import numpy as np
import pytest

from bedsit import Client
from bedsit.ipc import wire
from bedsit.ipc.slot import Word
from bedsit.ipc.wire import Kind
from bedsit.supervisor.router.pressure import MEMORY_BYTES as PRESSED_BYTES
from tests_support.marks import ENDLESS, LANE
from tests_support.zmtp import GREETING, greet

ONE = {"x": np.zeros(1, np.float32)}

both_lanes = pytest.mark.parametrize("lane", ["fast", "zmq"])


def _works(plane: Any, tenant: str = "beta") -> bool:
    for lane in ("fast", "zmq"):
        with Client(tenant, run_dir=str(plane.run_dir), lane=lane) as client:
            if client.infer("gate", ONE)["y"][0] != 1.0:
                return False
    return True


@LANE(part="twin", outcome="a good packet among them is answered")
@both_lanes
def test_malformed_envelopes_are_answered_and_the_session_goes_on(plane: Any, lane: str) -> None:
    """Each broken envelope gets ``wire.malformed`` under id 0; a good request after them is answered."""
    plane.add_slot("acme")
    session = plane.knock("acme", lane=lane)
    good = session.request(7)
    broken = [
        b"\x00",
        good[: wire.ENVELOPE_BYTES - 1],
        bytes(wire.ENVELOPE_BYTES),
        b"\xff" * wire.ENVELOPE_BYTES,
        b"\x00\x00" + good[2:],
        good[:2] + b"\x09" + good[3:],
        good[:20] + struct.pack("<I", 2**32 - 1) + good[24:],
        good[:20] + struct.pack("<I", len(good)) + good[24:],
    ]
    # Over ZeroMQ that is a packet, and one over the limit is the end of the connection; else it is the other way round.
    broken.append(b"" if lane == "zmq" else good + bytes(wire.MAX_PACKET + 1 - len(good)))
    for packet in broken:
        session.lane.send(packet)
        assert session.answer() == (0, Kind.ERROR, "wire.malformed")
    session.lane.send(good)
    assert session.answer() == (7, Kind.RESPONSE, "")


def test_an_empty_packet_is_the_sessions_end(plane: Any) -> None:
    """On a connection it looks like hanging up, and is taken for that; another session of the tenant goes on."""
    plane.add_slot("acme")
    session, other = plane.knock("acme"), plane.knock("acme")
    session.lane.send(b"")
    plane.wait_until(session.is_over)
    other.lane.send(other.request(1))
    assert other.answer() == (1, Kind.RESPONSE, "")


@both_lanes
def test_only_requests_questions_and_cancels_are_for_the_router(plane: Any, lane: str) -> None:
    """A packet of another kind, or a question that is none, is refused under its own id."""
    plane.add_hostile("acme")
    session = plane.knock("acme", lane=lane)
    for kind in (0, Kind.RESPONSE, Kind.ERROR, Kind.READY, Kind.ASK, Kind.TOLD, 8, 255):
        packet = bytearray(session.request(kind + 1))
        packet[3] = kind
        session.lane.send(bytes(packet))
        assert session.answer() == (kind + 1, Kind.ERROR, "wire.malformed")


@both_lanes
def test_what_a_request_names_must_be_there_and_its_own(plane: Any, lane: str) -> None:
    """Unknown models and versions, and an arena that is another session's, are refused."""
    worker, session = plane.add_pair("acme", lane)
    other = plane.knock("acme", lane=lane)
    session.lane.send(session.request(1, model=9))
    assert session.answer() == (1, Kind.ERROR, "model.not_found")
    session.lane.send(session.request(2, model_version=9))
    assert session.answer() == (2, Kind.ERROR, "model.moved")
    session.lane.send(session.request(2, model_version=9, flags=wire.Flag.PINNED))
    assert session.answer() == (2, Kind.ERROR, "model.not_found")
    for arena in (other.arena.number, 0, 2**32 - 1):
        session.lane.send(session.request(3, arena=arena))
        assert session.answer() == (3, Kind.ERROR, "wire.malformed")
    session.lane.send(session.request(4, deadline_ns=1))
    assert session.answer() == (4, Kind.ERROR, "deadline.exceeded")
    # Numbers that mean nothing to the router are the worker's to refuse.
    session.lane.send(session.request(2**64 - 1, priority=255, rows=2**32 - 1, deadline_ns=2**64 - 1, regions=255))
    envelope = worker.next_request()
    assert (envelope.arena, envelope.left) == (session.arena.number, 0)
    worker.respond(envelope.id)
    assert session.answer() == (2**64 - 1, Kind.RESPONSE, "")


def test_a_token_of_nobody_or_of_another_tenant_is_not_heard(plane: Any) -> None:
    """Packets under an unknown token, and under another tenant's live token, do nothing and get no answer."""
    plane.add_slot("acme")
    victim, thief = plane.knock("acme", lane="zmq"), plane.knock("beta", lane="zmq")
    for token in (b"\x01" + bytes(16), thief.opened.token, b"x"):
        lane = plane.dial_zmq(victim.opened.endpoint, token)
        lane.send(victim.request(1))
        lane.send(b"garbage")
        assert not lane.poll(200)
        assert not thief.lane.poll(0)
        lane.close()
    victim.lane.send(victim.request(1))
    assert victim.answer() == (1, Kind.RESPONSE, "")
    assert plane.stats("acme")["requests"] == 1
    assert plane.stats("beta")["requests"] == 0
    assert not thief.is_over()


@both_lanes
@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.ASK])
def test_an_id_that_is_in_flight_already_ends_that_session_and_no_other(plane: Any, lane: str, kind: int) -> None:
    """Reusing an id costs the session; its neighbour in the same tenant keeps its own request of that id."""
    worker, other = plane.add_pair("acme", lane)
    session = plane.knock("acme", lane=lane)
    other.lane.send(other.request(1))
    rid = worker.next_request().id
    session.lane.send(session.request(1))
    packet = bytearray(session.request(1))
    packet[3] = kind
    session.lane.send(bytes(packet))
    plane.wait_until(session.is_over)
    assert not other.is_over()
    worker.respond(rid)
    assert other.answer() == (1, Kind.RESPONSE, "")


@LANE(part="attack", outcome="others are served")
@both_lanes
def test_a_flood_of_tiny_frames_leaves_other_tenants_alone(plane: Any, lane: str) -> None:
    """While one tenant sends 20 000 frames of rubbish, each of another tenant's requests succeeds."""
    plane.add_slot("beta")
    plane.add_hostile("acme")
    session = plane.knock("acme", lane=lane)
    sent = answered = 0
    with Client("beta", run_dir=str(plane.run_dir)) as client:
        while sent < 20_000:
            for _ in range(100):  # as many as it can be told of before it looks
                if sent - answered < 200 and session.lane.try_send(b"x"):
                    sent += 1
            while session.lane.poll(0):
                session.lane.recv()
                answered += 1
            assert client.infer("gate", ONE)["y"][0] == 1.0
    assert answered > 0
    assert plane.stats("beta")["errors"] == 0
    assert not session.is_over()


@LANE(part="attack", outcome="dropped")
@both_lanes
def test_packets_over_the_limit_and_of_many_parts_are_dropped(plane: Any, lane: str) -> None:
    """Over ZeroMQ a packet over 64 KiB costs its sender the connection and one of several parts is dropped.

    On the fast lane there are no parts, and a packet that is too long is refused. Nobody else notices.
    """
    plane.add_slot("beta")
    plane.add_hostile("acme")
    session = plane.knock("acme", lane=lane)
    if lane == "zmq":
        session.lane.socket.send_multipart([b"a"] * 1000)
        session.lane.send(b"x")
        assert session.answer() == (0, Kind.ERROR, "wire.malformed")
        session.lane.send(bytes(wire.MAX_PACKET + 1))
        session.lane.send(bytes(1 << 20))
    else:
        good = session.request(1)
        for size in (wire.MAX_PACKET + 1, 128 << 10):
            session.lane.send(good + bytes(size - len(good)))
            assert session.answer() == (0, Kind.ERROR, "wire.malformed")
        with contextlib.suppress(OSError):  # more than the kernel takes in one piece
            session.lane.send(good + bytes(1 << 20))
    assert _works(plane)
    plane.knock("acme", lane=lane)


@LANE(part="attack", outcome="others are served")
def test_strangers_who_do_not_speak_zeromq_are_ignored(plane: Any) -> None:
    """Half a greeting, a greeting of nonsense, a frame that claims 2**63 bytes: others are served meanwhile."""
    plane.add_slot("beta")
    plane.knock("beta", lane="zmq")
    peers = []
    for data in (b"\xff", GREETING[:32], b"GET / HTTP/1.1\r\n\r\n" * 10, GREETING + b"\x02" + b"\x7f" + b"\xff" * 7):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(plane.run_dir / "router" / "lanes" / "2.sock"))
        peer.sendall(data)
        peers.append(peer)
    assert _works(plane)
    for peer in peers:
        peer.close()
    assert _works(plane)


@ENDLESS(part="attack", outcome="its lane is cut")
@pytest.mark.parametrize("lane", ["router/lanes/1.sock", "slots/{slot}/router.sock"], ids=["stranger", "worker"])
@pytest.mark.parametrize(
    "parts", [b"\x01\x00" * (1 << 18), b"\x03" + struct.pack(">Q", 65_000) + bytes(65_000)], ids=["empty", "large"]
)
def test_a_message_that_never_ends_does_not_fill_the_router(plane: Any, lane: str, parts: bytes) -> None:
    """Who sends one part after the other, and never the last one, is cut off long before libzmq runs out of memory."""
    plane.add_slot("beta")
    worker = plane.add_hostile("acme")
    plane.knock("acme", lane="zmq")  # from now on there is something to connect to
    worker.meet()
    with (
        greet(str(plane.run_dir / lane.format(slot=worker.slot))) as peer,
        pytest.raises(OSError, match=r"Broken pipe|reset"),
    ):
        while plane.resident_bytes() < 1 << 30:
            peer.sendall(parts)
    assert _works(plane)
    plane.wait_until(lambda: plane.resident_bytes() < PRESSED_BYTES)


def test_a_client_that_left_its_lane_cannot_end_the_router(plane: Any) -> None:
    """Deadlines pass for several requests of a session whose lane is gone while its door is open."""
    plane.add_slot("beta")
    plane.add_hostile("acme")
    plane.change("acme", max_inflight=0)
    session = plane.knock("acme", lane="zmq")
    for ident in range(1, 5):
        session.lane.send(session.request(ident, deadline_ns=time.monotonic_ns() + 1_000_000_000))
    plane.wait_until(lambda: plane.stats("acme")["queued"] == 4)
    session.lane.close()
    plane.wait_until(session.is_over)
    assert plane.stats("acme")["queued"] == 0
    assert _works(plane)


@both_lanes
def test_memory_of_a_dead_session_is_never_handed_to_a_worker(plane: Any, lane: str) -> None:
    """A session that dies before its slot is buried, or while it is, takes its retried requests along.

    Else the retry would hand out the dead session's descriptor number, by then the arena of somebody else.
    """
    first, session = plane.add_pair("acme", lane)
    session.lane.send(session.request(1))
    session.lane.send(session.request(2))
    first.next_request(), first.next_request()
    session.lane.send(session.cancel(2))
    session.lane.send(b"x")
    assert session.answer()[0] == 0  # the cancel before it has been taken
    before = plane.descriptors()
    session.lane.close()
    plane.wait_until(lambda: plane.descriptors() < before)
    plane.remove_slot(first.slot)
    victim = plane.knock("beta", lane=lane)  # likely under the descriptor number of the dead session's arena
    second = plane.add_hostile("acme")
    fresh = plane.knock("acme")
    fresh.lane.send(fresh.request(9))
    if lane == "zmq":
        assert second.next_note().word == Word.MEET
    assert second.take_arena() == fresh.arena.number
    assert second.next_request().arena == fresh.arena.number
    assert not victim.is_over()
