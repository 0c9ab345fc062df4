"""A worker that speaks its side of the protocol by hand, and lies: the router stays up and nobody else notices."""

import contextlib
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
from bedsit.ipc.slot import ArenaMessage, ArenaWord, encode_arena
from bedsit.ipc.wire import Kind
from tests_support.marks import DESCRIPTORS, FOREIGN_USER, LANE, RACE, SHAPES

ONE = {"x": np.zeros(1, np.float32)}


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
    assert (counted["requests"], counted["errors"]) == (11, 0)


def _await_count(plane: Any, slot: str, least: int) -> None:
    """Wait until the router reported that many lies of the slot."""
    while (message := plane.hear("misbehaved"))["count"] < least:
        assert message["slot"] == slot


def test_answers_nobody_asked_for_are_counted_and_dropped(plane: Any) -> None:
    """Invented ids, second answers and answers of a foreign kind reach no client."""
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    for ident in (0, 1, 2**64 - 1):
        worker.respond(ident)
        worker.respond(ident, Kind.ERROR)
    _await_count(plane, worker.slot, 4)
    session.lane.send(session.request(1))
    worker.take_arena()
    rid = worker.next_request().id
    worker.respond(rid, Kind.REQUEST)
    worker.respond(rid, Kind.CANCEL)
    worker.respond(rid)
    worker.respond(rid)
    worker.respond(rid)
    assert session.answer() == (1, Kind.RESPONSE, "")
    session.lane.send(b"x")
    assert session.answer()[0] == 0  # and nothing in between


def test_an_answer_for_another_tenants_request_does_not_reach_it(plane: Any) -> None:
    """Ids of requests are known by the socket they went out on: guessing another tenant's id is of no use."""
    victim = plane.add_hostile("acme")
    plane.add_tenant("gamma", number=8)
    liar = plane.add_hostile("gamma")
    session = plane.knock("acme")
    session.lane.send(session.request(1))
    victim.take_arena()
    rid = victim.next_request().id
    for ident in range(rid + 10):
        liar.respond(ident, Kind.ERROR)
    _await_count(plane, liar.slot, 8)
    victim.respond(rid)
    assert session.answer() == (1, Kind.RESPONSE, "")


@LANE(part="attack", outcome="counted and dropped")
def test_garbage_on_the_lane_is_counted_and_dropped(plane: Any) -> None:
    """Broken envelopes, empty packets, messages of many parts: the real answer still arrives."""
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    session.lane.send(session.request(1))
    worker.take_arena()
    rid = worker.next_request().id
    for packet in (b"", b"x", bytes(40), b"\xff" * 1000, bytes(wire.MAX_PACKET)):
        worker.lane.send(packet)
    worker.lane.send_multipart([b"a", b"", b"c"] * 50)
    worker.respond(rid)
    assert session.answer() == (1, Kind.RESPONSE, "")
    _await_count(plane, worker.slot, 4)


@SHAPES(part="attack", outcome="wire.malformed, output.invalid")
def test_a_lying_answer_is_an_error_at_the_client_and_nothing_else(plane: Any) -> None:
    """Whatever a worker writes into an answer's header, the client raises BedsitError or gives a result."""
    worker = plane.add_hostile("acme")
    with Client("acme", run_dir=str(plane.run_dir)) as client, ThreadPoolExecutor(1) as pool:
        for turn, header in enumerate(
            (
                b"",
                b"\xc1",
                b"\x91" * 1000,
                wire.encode_response([]),
                wire.encode_response([wire.TensorRef("y", "float32", (1 << 30,), 0, 0, 0)]),
                wire.encode_response([wire.TensorRef("y", "float32", (1,), 1, 1 << 39, 0)]),
                wire.encode_response([wire.TensorRef("y", "float32", (1,), 1, 0, 0)]),
                wire.encode_response([wire.TensorRef("y", "float32", (0, 1 << 40, 1 << 40), 0, 0, 0)]),
            )
        ):
            answer = pool.submit(client.infer, "gate", ONE, timeout_s=60)
            if not turn:
                worker.take_arena()
            worker.lane.send(wire.pack_packet(Kind.RESPONSE, worker.next_request().id, header))
            failure = answer.exception(60)
            if failure is None:
                assert answer.result() == {}
            else:
                assert isinstance(failure, BedsitError)
                assert failure.code in ("wire.malformed", "output.invalid")


def test_acknowledgements_of_nothing_are_counted(plane: Any) -> None:
    """Acknowledging arenas that were not given, huge numbers, foreign words, short and long messages."""
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    for message in (
        encode_arena(ArenaMessage(ArenaWord.MAPPED, session.arena.number)),
        encode_arena(ArenaMessage(ArenaWord.MAPPED, 2**32 - 1, 2**64 - 1)),
        encode_arena(ArenaMessage(ArenaWord.GIVE, 1)),
        encode_arena(ArenaMessage(ArenaWord.FORGET, session.arena.number)),
        b"\x03",
        bytes(1000),
    ):
        send_bytes(worker.link, message)
    _await_count(plane, worker.slot, 4)
    session.lane.send(session.request(1))
    number = worker.take_arena()
    send_bytes(worker.link, encode_arena(ArenaMessage(ArenaWord.MAPPED, number)))
    worker.respond(worker.next_request().id)
    assert session.answer() == (1, Kind.RESPONSE, "")


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
    before = plane.descriptors()
    reader, writer = os.pipe()
    for _ in range(100):
        with contextlib.suppress(PermissionError):
            send_bytes(worker.link, encode_arena(ArenaMessage(ArenaWord.MAPPED, 77)), [writer] * 10)
    with contextlib.suppress(PermissionError):
        send_bytes(worker.link, encode_arena(ArenaMessage(ArenaWord.MAPPED, 77)), [writer])
    send_bytes(worker.link, encode_arena(ArenaMessage(ArenaWord.MAPPED, session.arena.number)))
    worker.next_request()
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
    assert worker.link.recv(64) == b""
    _await_count(plane, worker.slot, 1)


def test_a_second_connection_to_the_lane_harms_its_own_tenant_only(plane: Any) -> None:
    """ZeroMQ spreads requests over a worker's connections: what goes astray is that tenant's own request."""
    worker = plane.add_hostile("acme")
    with zmq.Context() as context, context.socket(zmq.DEALER) as second:
        second.setsockopt(zmq.LINGER, 0)
        second.connect(f"ipc://{plane.run_dir}/slots/{worker.slot}/router.sock")
        second.send(wire.pack_packet(Kind.READY, 0))
        session = plane.knock("acme")
        for ident in range(1, 3):
            session.lane.send(session.request(ident))
        worker.take_arena()
        plane.wait_until(lambda: worker.lane.poll(0) or second.poll(0))


@LANE(part="attack", outcome="the router lives")
def test_a_slot_that_floods_until_it_is_removed_leaves_the_router_alive(plane: Any) -> None:
    """The slot is confirmed dead while its packets are still being read: that is no error."""
    for _ in range(5):
        worker = plane.add_hostile("acme")
        stop = threading.Event()

        def flood(lane: Any = worker.lane, stop: threading.Event = stop) -> None:
            lane.setsockopt(zmq.SNDTIMEO, 10)
            while not stop.is_set():
                try:
                    lane.send(b"x" * 100)
                except zmq.Again:
                    continue

        thread = threading.Thread(target=flood)
        thread.start()
        _await_count(plane, worker.slot, 512)
        plane.remove_slot(worker.slot)
        stop.set()
        thread.join(30)
        plane.heard.clear()
        assert plane.router.poll() is None


def test_connecting_and_hanging_up_without_end_is_survived(plane: Any) -> None:
    """A thousand connections to the descriptor socket, each closed at once."""
    worker = plane.add_hostile("acme")
    for _ in range(1000):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        sock.connect(str(plane.run_dir / "slots" / worker.slot / "fd.sock"))
        sock.close()
    _await_count(plane, worker.slot, 256)
