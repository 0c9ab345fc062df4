"""A worker that speaks its side of the protocol by hand, and lies: the router stays up and nobody else notices."""

import contextlib
import itertools
import os
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from bedsit import BedsitError, Client
from bedsit.ipc import wire
from bedsit.ipc.seqpacket import send_bytes
from bedsit.ipc.slot import Note, Word, encode_note
from bedsit.ipc.wire import Kind
from tests_support.marks import DESCRIPTORS, FOREIGN_USER, LANE, RACE, SHAPES

ONE = {"x": np.zeros(1, np.float32)}

both_lanes = pytest.mark.parametrize("lane", ["fast", "zmq"])


@pytest.fixture(autouse=True)
def innocent(plane: Any) -> Iterator[None]:
    """Another tenant with a real worker: all of its calls, before and after, must succeed."""
    plane.add_slot("beta")
    with Client("beta", run_dir=str(plane.run_dir)) as client:
        assert client.infer("gate", ONE)["y"][0] == 1.0
        yield
        for _ in range(10):
            assert client.infer("gate", ONE)["y"][0] == 1.0
    counted = plane.stats("beta")
    assert (counted["errors"], counted["refused"]) == (0, 0)
    assert counted["requests"] >= 11


def _is_hung_up_on(link: socket.socket) -> bool:
    try:
        return link.recv(64) == b""
    except ConnectionResetError:  # what it had said lay there unread
        return True


def _await_count(plane: Any, slot: str, least: int) -> None:
    """Wait until the router reported that many lies of the slot."""
    while (message := plane.hear("misbehaved"))["count"] < least:
        assert message["slot"] == slot


@both_lanes
def test_answers_nobody_asked_for_are_counted_and_dropped(plane: Any, lane: str) -> None:
    """Invented ids, second answers and answers of a foreign kind reach no client."""
    worker, session = plane.add_pair("acme", lane)
    for ident in (0, 1, 2**64 - 1):
        worker.respond(ident)
        worker.respond(ident, Kind.ERROR)
    _await_count(plane, worker.slot, 4)
    session.lane.send(session.request(1))
    rid = worker.next_request().id
    worker.respond(rid, Kind.REQUEST)
    worker.respond(rid, Kind.CANCEL)
    worker.respond(rid)
    worker.respond(rid)
    worker.respond(rid)
    assert session.answer() == (1, Kind.RESPONSE, "")
    session.lane.send(b"x")
    assert session.answer()[0] == 0  # and nothing in between


@both_lanes
def test_an_answer_for_another_tenants_request_does_not_reach_it(plane: Any, lane: str) -> None:
    """Ids of requests are known by the socket they went out on: guessing another tenant's id is of no use."""
    victim, session = plane.add_pair("acme", lane)
    plane.add_tenant("gamma", number=8)
    liar, _ = plane.add_pair("gamma", lane)
    session.lane.send(session.request(1))
    rid = victim.next_request().id
    for ident in range(rid - 5, rid + 5):
        liar.respond(ident, Kind.ERROR)
    _await_count(plane, liar.slot, 8)
    victim.respond(rid)
    assert session.answer() == (1, Kind.RESPONSE, "")


def test_no_router_counts_from_where_another_did(plane: Any) -> None:
    """An answer to a router that is gone, late on a lane that outlived it, fits no request of the next one."""
    first = []
    for number in range(4):
        plane.add_tenant(f"t{number}", number=number + 8)
        worker, session = plane.add_pair(f"t{number}", "fast")
        session.lane.send(session.request(1))
        first.append(worker.next_request().id)
    first.sort()
    assert all(after - before > 1 << 32 for before, after in itertools.pairwise(first))


@LANE(part="attack", outcome="counted and dropped")
@both_lanes
def test_garbage_on_the_lane_is_counted_and_dropped(plane: Any, lane: str) -> None:
    """Broken envelopes, packets that are too long, empty, or of many parts: the real answer still arrives."""
    worker, session = plane.add_pair("acme", lane)
    session.lane.send(session.request(1))
    rid = worker.next_request().id
    for packet in (b"x", bytes(15), bytes(17), bytes(40), bytes(47), b"\xff" * 1000, bytes(wire.MAX_PACKET)):
        worker.lane.send(packet)
    if lane == "zmq":
        worker.lane.send(b"")
        worker.lane.socket.send_multipart([b"a", b"", b"c"] * 50)
    else:
        for size in (wire.MAX_PACKET + 1, 128 << 10):
            worker.lane.send(bytes(size))
    worker.respond(rid)
    assert session.answer() == (1, Kind.RESPONSE, "")
    _await_count(plane, worker.slot, 8)


LIES = (
    (b"", 0),
    (b"", 1),
    (b"", 255),
    (b"\xff" * 16, 1),
    (b"\x91" * 1000, 1),
    (b"\x91" * 1000, 40),
    (wire.encode_tensor("float32", (1,), 0, 0), 2),
    (wire.encode_tensor("float32", (1,), 0, 0) + b"\x00", 1),
    (wire.encode_tensor("float32", (1,), 0, 0) + wire.encode_region(0, 64), 1),
    (wire.encode_tensor("float64", (1,), 0, 0), 1),
    (wire.encode_tensor("float32", (1, 1), 0, 0), 1),
    (wire.encode_tensor("float32", (1 << 30,), 0, 0), 1),
    (wire.encode_tensor("float32", (1,), 0, 1), 1),
    (wire.encode_tensor("float32", (1,), 0, 1 << 40), 1),
    (wire.encode_tensor("float32", (1,), 1, 1 << 39), 1),
    (wire.encode_tensor("float32", (1,), 1, 0), 1),
    (wire.encode_tensor("float32", (1,), 7, 0), 1),
    (wire.encode_tensor("float32", (0, 1 << 40, 1 << 40), 0, 0), 1),
)


@SHAPES(part="attack", outcome="wire.malformed, output.invalid")
@both_lanes
def test_a_lying_answer_is_an_error_at_the_client_and_nothing_else(plane: Any, lane: str) -> None:
    """Whatever a worker writes into an answer's rows, the client raises BedsitError, and the next answer counts."""
    worker, _ = plane.add_pair("acme", lane)
    client = Client("acme", run_dir=str(plane.run_dir), lane=lane)
    leg = worker.lane
    with client, ThreadPoolExecutor(1) as pool:
        for turn, (header, tensors) in enumerate(LIES):
            answer = pool.submit(client.infer, "gate", ONE, timeout_s=60)
            if not turn:
                worker.take_arena(acknowledge=False)  # so that all come the same way
                worker.lane = worker.fast
            rid = worker.next_request().id
            packet = wire.pack_packet(Kind.RESPONSE, rid, header, tensors=tensors)
            leg.send(packet)
            failure = answer.exception(60)
            assert isinstance(failure, BedsitError), (header, tensors)
            assert failure.code in ("wire.malformed", "output.invalid"), (header, tensors)
        answer = pool.submit(client.infer, "gate", ONE, timeout_s=60)
        worker.respond(worker.next_request().id)
        assert answer.result(60)["y"].tolist() == [5.0]


def test_acknowledgements_of_nothing_are_counted(plane: Any) -> None:
    """Acknowledging arenas that were not given, or twice, huge numbers, foreign words, notes too short and too long."""
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    lies = (
        encode_note(Note(Word.MAPPED, session.arena.number)),
        encode_note(Note(Word.MAPPED, 2**32 - 1, 2**64 - 1)),
        encode_note(Note(Word.GIVE, 1)),
        encode_note(Note(Word.FORGET, session.arena.number)),
        encode_note(Note(Word.MEET)),
        encode_note(Note(255, 2**32 - 1, 2**64 - 1)),
        bytes(16),
        b"\x03",
        bytes(1000),
    )
    for lie in lies:
        send_bytes(worker.link, lie)
    _await_count(plane, worker.slot, 8)
    session.lane.send(session.request(1))
    number = worker.take_arena()
    for _ in range(8):
        send_bytes(worker.link, encode_note(Note(Word.MAPPED, number)))
    worker.respond(worker.next_request().id)
    assert session.answer() == (1, Kind.RESPONSE, "")
    _await_count(plane, worker.slot, 16)


@RACE(part="attack", outcome="the router maps nothing")
def test_the_router_maps_nothing_that_a_worker_can_change(plane: Any) -> None:
    """With arenas handed out and a request in flight no page of the router's is anybody else's to write."""
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    session.lane.send(session.request(1))
    worker.take_arena()
    worker.next_request()
    assert plane.router is not None
    maps = Path(f"/proc/{plane.router.pid}/maps").read_text().splitlines()
    assert len(maps) > 100
    assert [line for line in maps if "memfd" in line] == []


@DESCRIPTORS(part="attack", outcome="none is kept")
def test_descriptors_from_a_worker_are_not_kept(plane: Any) -> None:
    """A worker may try to attach descriptors to what it says; the kernel refuses (6.16), or the router takes none."""
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    session.lane.send(session.request(1))
    worker.take_arena(acknowledge=False)
    plane.stats("acme")  # by now the router has closed its copy of what it gave
    before = plane.descriptors()
    reader, writer = os.pipe()
    for _ in range(100):
        with contextlib.suppress(PermissionError):
            send_bytes(worker.link, encode_note(Note(Word.MAPPED, 77)), [writer] * 10)
    for packet in (encode_note(Note(Word.MAPPED, 77)), wire.pack_packet(Kind.RESPONSE, 77), b"x"):
        with contextlib.suppress(PermissionError):
            send_bytes(worker.link, packet, [writer])
    send_bytes(worker.link, encode_note(Note(Word.MAPPED, session.arena.number)))
    worker.respond(worker.next_request().id)
    assert session.answer() == (1, Kind.RESPONSE, "")
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert plane.descriptors() == before


def test_hanging_up_the_descriptor_socket_is_the_slots_end(plane: Any) -> None:
    """A worker that closes it is reported lost once, and is not let in again."""
    worker = plane.add_hostile("acme")
    worker.link.close()
    assert plane.hear("lost")["slot"] == worker.slot
    with worker.dial() as again:
        assert again.recv(64) == b""
    plane.stats("acme")
    assert not [message for message in plane.heard if message["op"] == "lost"]


@FOREIGN_USER(part="twin", outcome="the slot's own user is served")
def test_a_second_connection_to_the_descriptor_socket_is_refused(plane: Any) -> None:
    """Only the first one counts, and it goes on working."""
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    with worker.dial() as second:
        assert second.recv(64) == b""
    session.lane.send(session.request(1))
    worker.take_arena()
    worker.respond(worker.next_request().id)
    assert session.answer() == (1, Kind.RESPONSE, "")


@FOREIGN_USER(part="attack", outcome="hung up on")
def test_a_connection_from_another_user_is_refused(plane: Any) -> None:
    """The slot's sockets answer to the slot's uid and to nobody else, whatever the folder's mode says."""
    worker = plane.add_hostile("acme", uid=12345)
    assert _is_hung_up_on(worker.link)
    _await_count(plane, worker.slot, 1)


def test_an_empty_packet_is_the_slots_end(plane: Any) -> None:
    """It looks like hanging up, and is taken for that: the slot is lost, its router goes on."""
    worker = plane.add_hostile("acme")
    worker.lane.send(b"")
    assert plane.hear("lost")["slot"] == worker.slot
    assert _is_hung_up_on(worker.link)


def test_a_second_connection_to_the_lane_harms_its_own_tenant_only(plane: Any) -> None:
    """ZeroMQ spreads requests over a worker's connections: what goes astray is that tenant's own request."""
    worker, session = plane.add_pair("acme", "zmq")
    with zmq.Context() as context, context.socket(zmq.DEALER) as second:
        second.setsockopt(zmq.LINGER, 0)
        second.connect(f"ipc://{plane.run_dir}/slots/{worker.slot}/router.sock")
        second.send(wire.pack_packet(Kind.READY, 0))
        _await_count(plane, worker.slot, 1)
        for ident in range(1, 3):
            session.lane.send(session.request(ident))
        assert second.poll(plane.deadline_s * 1000)
        assert worker.lane.poll(plane.deadline_s * 1000)


@LANE(part="attack", outcome="the router lives")
@both_lanes
def test_a_slot_that_floods_until_it_is_removed_leaves_the_router_alive(plane: Any, lane: str) -> None:
    """The slot is confirmed dead while its packets are still being read: that is no error."""
    for _ in range(5):
        worker, session = plane.add_pair("acme", lane)
        stop = threading.Event()

        def flood(wire: Any = worker.lane, stop: threading.Event = stop) -> None:
            if lane == "zmq":
                wire.socket.setsockopt(zmq.SNDTIMEO, 10)
            while not stop.is_set():
                try:
                    wire.send(b"x" * 100)
                except zmq.Again:
                    continue
                except OSError:  # hung up on
                    return

        thread = threading.Thread(target=flood)
        thread.start()
        _await_count(plane, worker.slot, 512 if lane == "zmq" else 32)
        plane.remove_slot(worker.slot)
        stop.set()
        thread.join(30)
        session.close()
        plane.heard.clear()
        assert plane.router.poll() is None


@pytest.mark.parametrize(
    "nonsense",
    [wire.pack_packet(Kind.READY, 0), encode_note(Note(Word.MAPPED, 1)), b"x" * 100],
    ids=["ready", "mapped", "x"],
)
def test_a_worker_that_floods_is_read_a_little_at_a_time(plane: Any, nonsense: bytes) -> None:
    """What it sends piles up on its own side: it cannot send on, it is reported, and others are served meanwhile."""
    worker, _ = plane.add_pair("acme", "fast")
    with Client("beta", run_dir=str(plane.run_dir)) as client:
        for _ in range(3):
            worker.lane.fill(nonsense)
            assert client.infer("gate", ONE)["y"][0] == 1.0
    _await_count(plane, worker.slot, 16)


def test_connecting_and_hanging_up_without_end_is_survived(plane: Any) -> None:
    """A thousand connections to the descriptor socket, each closed at once."""
    worker = plane.add_hostile("acme")
    for _ in range(1000):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        sock.connect(str(plane.run_dir / "slots" / worker.slot / "fd.sock"))
        sock.close()
    _await_count(plane, worker.slot, 256)
