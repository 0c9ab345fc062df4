"""The fast lane where one side does not read: clients that are behind, tenants at rest, workers that are busy."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from bedsit import AsyncClient, BedsitError, Client
from bedsit.ipc import wire
from bedsit.ipc.seqpacket import send_bytes
from bedsit.ipc.slot import NOTE_BYTES, Note, Word, decode_note
from bedsit.ipc.wire import Kind

ONE = {"x": np.zeros(1, np.float32)}
LARGE = bytes(8 << 10)


def _works(plane: Any, tenant: str = "beta") -> bool:
    with Client(tenant, run_dir=str(plane.run_dir)) as client:
        return bool(client.infer("gate", ONE)["y"][0] == 1.0)


@contextmanager
def _stopped(plane: Any) -> Iterator[None]:
    """The router stands still."""
    plane.router.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        plane.router.send_signal(signal.SIGCONT)


def _clog(client: Any) -> None:
    """Fill the client's lane with packets that mean nothing, until it takes no more."""
    lane = client._link._lane
    while lane.send(wire.pack_packet(Kind.CANCEL, 1 << 50)):
        pass


# --- clients -------------------------------------------------------------------------------------------------------


def test_a_client_that_is_behind_gets_its_answers_later(plane: Any) -> None:
    """Far more than the kernel holds, none is lost, and they come in their order; then all is as before."""
    plane.change("acme", max_inflight=1, queue_max=500, queue_bytes_max=64 << 20)
    worker, session = plane.add_pair("acme", "fast")
    header = wire.encode_tensor("float32", (len(LARGE) // 4,), wire.Place.INLINE, 0)
    for ident in range(300):
        session.lane.send(session.request(ident))
    for _ in range(300):
        worker.lane.send(wire.pack_packet(Kind.RESPONSE, worker.next_request().id, header, LARGE, tensors=1))
    plane.wait_until(lambda: plane.counts("acme")["requests"] == 302)
    assert plane.counts("acme")["sessions"] == 1
    assert [session.answer() for _ in range(300)] == [(ident, Kind.RESPONSE, "") for ident in range(300)]
    session.lane.send(session.request(1000))
    worker.respond(worker.next_request().id)
    assert session.answer() == (1000, Kind.RESPONSE, "")


def test_a_client_that_reads_no_answer_at_all_loses_its_session(plane: Any) -> None:
    """Its requests go with it, its neighbour in the tenant goes on, and the router keeps nothing of it."""
    plane.add_slot("beta")
    worker, session = plane.add_pair("acme", "fast")
    other = plane.knock("acme")
    header = wire.encode_tensor("float32", (len(LARGE) // 4,), wire.Place.INLINE, 0)
    ident = 0
    while plane.counts("acme")["sessions"] == 2:
        for _ in range(20):
            if not session.lane.try_send(session.request(ident)):
                break
            ident += 1
        while worker.lane.poll(0):
            envelope = worker.next_request()
            if envelope.kind == Kind.REQUEST:
                worker.lane.send(wire.pack_packet(Kind.RESPONSE, envelope.id, header, LARGE, tensors=1))
        assert ident < 20_000, "everything is kept"
    assert _works(plane)
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 0)
    assert other.models() == {"gate": [1]}


def test_descriptors_that_a_client_sends_along_are_not_kept(plane: Any) -> None:
    """In a session, too: the kernel refuses the packet (6.16), or the router takes the packet and nothing else."""
    worker, session = plane.add_pair("acme", "fast")
    before = plane.descriptors()
    reader, writer = os.pipe()
    for ident in range(50):
        try:
            send_bytes(session.door.socket, session.request(ident), [writer] * 5)
        except PermissionError:
            session.lane.send(session.request(ident))
        worker.respond(worker.next_request().id)
        assert session.answer() == (ident, Kind.RESPONSE, "")
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert plane.descriptors() == before


def test_a_send_into_a_router_that_takes_nothing_ends_in_time(plane: Any) -> None:
    """A call that cannot even be sent gets ``queue.full`` at its deadline; later ones are answered."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        client.infer("gate", ONE)
        with _stopped(plane):
            _clog(client)
            with pytest.raises(BedsitError) as caught:
                client.infer("gate", ONE, timeout_s=0.3)
            assert caught.value.code == "queue.full"
            assert client._link.session.in_flight() == 0
        assert client.infer("gate", ONE)["y"][0] == 1.0


def test_a_send_waits_until_the_router_takes_it(plane: Any) -> None:
    """Calls of many threads that cannot be sent wait, and all of them are answered once there is room."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir)) as client, ThreadPoolExecutor(8) as pool:
        client.infer("gate", ONE)
        with _stopped(plane):
            _clog(client)
            calls = [pool.submit(client.infer, "gate", {"x": np.full(2, n + 5, np.float32)}) for n in range(8)]
            plane.wait_until(lambda: client._link.session.in_flight() == 8)
        assert [call.result(60)["y"][0] for call in calls] == [n + 6 for n in range(8)]


def test_an_asyncio_client_waits_for_room_as_well(plane: Any) -> None:
    """Its loop goes on meanwhile: a call with a short timeout ends, the others are answered once there is room."""
    plane.add_slot("acme")

    async def run() -> None:
        async with AsyncClient("acme", run_dir=str(plane.run_dir)) as client:
            await client.infer("gate", ONE)
            with _stopped(plane):
                _clog(client)
                calls = [asyncio.create_task(client.infer("gate", ONE, timeout_s=60)) for _ in range(8)]
                with pytest.raises(BedsitError) as caught:
                    await client.infer("gate", ONE, timeout_s=0.3)
                assert caught.value.code == "deadline.exceeded"
                assert client._link.session.in_flight() == 8
            assert [answer["y"][0] for answer in await asyncio.gather(*calls)] == [1.0] * 8

    asyncio.run(run())


def test_a_polite_client_of_a_tenant_at_rest_gets_every_answer(plane: Any) -> None:
    """Calls that are refused for want of room say so, the others are answered; none is lost between the two."""
    plane.change("acme", queue_max=4, max_inflight=1)
    plane.add_slot("acme")

    async def run() -> list[Any]:
        async with AsyncClient("acme", run_dir=str(plane.run_dir)) as client:
            calls = (client.infer("gate", {"x": np.full(2, n + 5, np.float32)}, timeout_s=60) for n in range(500))
            return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(run())
    refused = [outcome for outcome in outcomes if isinstance(outcome, BedsitError)]
    assert {failure.code for failure in refused} <= {"queue.full"}
    for n, outcome in enumerate(outcomes):
        if not isinstance(outcome, BedsitError):
            assert outcome["y"][0] == n + 6
    stats = plane.stats("acme")
    assert (stats["requests"], stats["errors"], stats["refused"]) == (500, len(refused), len(refused))


# --- workers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def deaf(plane: Any) -> Any:
    """A worker of ``acme`` that has not read 400 requests of 8 KiB, far more than the kernel holds; and the session."""
    plane.add_slot("beta")
    plane.change("acme", max_inflight=1000, queue_max=1000)
    worker, session = plane.add_pair("acme", "fast")
    for ident in range(400):
        session.lane.send(session.request(ident) + LARGE)
    plane.wait_until(lambda: plane.counts("acme")["in_flight"] == 400)
    assert _works(plane)
    return worker, session


def test_a_worker_that_did_not_read_gets_everything_later(plane: Any, deaf: Any) -> None:
    """In order, none twice, none lost; what comes meanwhile is behind it, and every request is answered."""
    worker, session = deaf
    session.lane.send(session.request(400))
    session.settle()
    rids = []
    for ident in range(401):
        rids.append(worker.next_request().id)
        worker.respond(rids[-1])
        assert session.answer() == (ident, Kind.RESPONSE, "")
    assert rids == sorted(set(rids))
    assert worker.is_idle()
    session.lane.send(session.request(500))
    worker.respond(worker.next_request().id)
    assert session.answer() == (500, Kind.RESPONSE, "")


def test_arenas_and_withdrawals_keep_their_places_in_a_backlog(plane: Any, deaf: Any) -> None:
    """A new session's arena comes before its request, a withdrawal after what it withdraws, what is forgotten last."""
    worker, session = deaf
    other = plane.knock("acme")
    number = other.arena.number
    other.lane.send(other.request(1))
    other.settle()
    session.lane.send(session.cancel(399))
    session.settle()
    other.close()
    plane.wait_until(lambda: plane.counts("acme")["sessions"] == 1)
    seen: list[Any] = []
    while len(seen) < 404:
        packet, fds, _, _ = socket.recv_fds(worker.link, 1 << 17, 4)
        if len(packet) == NOTE_BYTES:
            seen.append((decode_note(packet)[:2], len(fds)))
            for fd in fds:
                os.close(fd)
        else:
            envelope = wire.read_envelope(packet)
            seen.append((envelope.kind, envelope.id))
    first = seen[0][1]
    assert seen[:400] == [(Kind.REQUEST, first + index) for index in range(400)]
    assert seen[400:] == [
        ((Word.GIVE, number), 1),
        (Kind.REQUEST, first + 400),
        (Kind.CANCEL, first + 399),
        (Kind.CANCEL, first + 400),
    ]
    worker.respond(first + 400)
    assert worker.next_note() == Note(Word.FORGET, number)


def test_an_answer_to_what_the_worker_has_not_been_sent_is_none(plane: Any, deaf: Any) -> None:
    """A worker that guesses the numbers of what is kept for it has misbehaved; the requests are served all the same."""
    worker, session = deaf
    first = worker.next_request().id
    worker.respond(first + 399)
    assert plane.hear("misbehaved")["slot"] == worker.slot
    for ident in range(400):
        worker.respond(first if ident == 0 else worker.next_request().id)
        assert session.answer() == (ident, Kind.RESPONSE, "")
    assert plane.counts("acme")["in_flight"] == 0


def test_a_worker_that_dies_over_its_backlog_leaves_the_router_alive(plane: Any, deaf: Any) -> None:
    """With an arena among what is kept for it; all of it goes to the next worker."""
    worker, session = deaf
    other = plane.knock("acme")
    other.lane.send(other.request(1))
    other.settle()
    before = plane.descriptors()
    worker.link.close()
    assert plane.hear("lost")["slot"] == worker.slot
    plane.remove_slot(worker.slot)
    plane.wait_until(lambda: plane.descriptors() < before)
    assert plane.counts("acme") == {"requests": 2, "errors": 0, "queued": 401, "in_flight": 0, "sessions": 2}
    plane.change("acme", max_inflight=1)
    second = plane.add_hostile("acme")
    second.take_arena()
    for ident in range(400):
        second.respond(second.next_request().id)
        assert session.answer() == (ident, Kind.RESPONSE, "")
    second.take_arena()
    second.respond(second.next_request().id)
    assert other.answer() == (1, Kind.RESPONSE, "")
    assert _works(plane)
