"""Queues, deadlines and withdrawals, with a worker that answers when the test says so."""

import time
from typing import Any

import msgspec
import numpy as np
import pytest

from bedsit import BedsitError, Client
from bedsit.ipc import wire
from bedsit.ipc.slot import Note, Word
from bedsit.ipc.snapshot import VersionView
from bedsit.ipc.wire import Kind
from tests_support.marks import PATIENCE


def _cancel(ident: int) -> bytes:
    return wire.pack_packet(Kind.CANCEL, ident)


def test_a_full_queue_refuses_exactly_what_is_too_much(plane: Any) -> None:
    """Two in flight and three waiting are taken, every further one gets ``queue.full``, and room is used again."""
    plane.change("acme", queue_max=3, max_inflight=2)
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    for ident in range(1, 9):
        session.lane.send(session.request(ident))
    refused = [session.answer() for _ in range(3)]
    assert refused == [(ident, Kind.ERROR, "queue.full") for ident in (6, 7, 8)]
    assert plane.counts("acme") == {"requests": 3, "errors": 3, "queued": 3, "in_flight": 2, "sessions": 1}
    worker.take_arena()
    order = []
    for _ in range(5):
        worker.respond(worker.next_request().id)
        order.append(session.answer()[0])
    assert order == [1, 2, 3, 4, 5]


def test_a_deadline_that_passes_in_the_queue_is_answered_by_the_router(plane: Any) -> None:
    """A waiting request gets its answer at its deadline; the one in flight and those without a deadline stay."""
    plane.change("acme", max_inflight=1)
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    soon = time.monotonic_ns() + 300_000_000
    session.lane.send(session.request(1, deadline_ns=soon))
    session.lane.send(session.request(2))
    session.lane.send(session.request(3, deadline_ns=soon))
    assert session.answer() == (3, Kind.ERROR, "deadline.exceeded")
    assert time.monotonic_ns() >= soon
    worker.take_arena()
    worker.respond(worker.next_request().id)
    assert session.answer() == (1, Kind.RESPONSE, "")
    worker.respond(worker.next_request().id)
    assert session.answer() == (2, Kind.RESPONSE, "")


def test_a_request_withdrawn_in_the_queue_ends_at_once_and_never_reaches_a_worker(plane: Any) -> None:
    """Cancelling a waiting request gives ``request.cancelled``; cancelling what is unknown gives nothing."""
    plane.change("acme", max_inflight=1)
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    for ident in (1, 2, 3):
        session.lane.send(session.request(ident))
    session.lane.send(_cancel(99))
    session.lane.send(_cancel(2))
    session.lane.send(_cancel(2))
    assert session.answer() == (2, Kind.ERROR, "request.cancelled")
    worker.take_arena()
    for ident in (1, 3):
        worker.respond(worker.next_request().id)
        assert session.answer() == (ident, Kind.RESPONSE, "")


def test_a_request_withdrawn_in_flight_is_answered_when_the_worker_is_done_with_it(plane: Any) -> None:
    """The final answer to a request that a worker has comes from the worker, withdrawn or not."""
    worker = plane.add_hostile("acme")
    session, other = plane.knock("acme"), plane.knock("acme")
    session.lane.send(session.request(1))
    worker.take_arena()
    rid = worker.next_request().id
    session.lane.send(_cancel(1))
    other.lane.send(_cancel(1))  # not its own
    session.lane.send(b"x")
    assert session.answer()[0] == 0
    assert plane.stats("acme")["in_flight"] == 1
    worker.respond(rid)
    assert session.answer() == (1, Kind.RESPONSE, "")


def test_an_ended_session_drops_what_waits_and_waits_for_what_is_in_flight(plane: Any) -> None:
    """After a client died its queued requests are gone, and its arena is forgotten once the worker answered."""
    plane.change("acme", max_inflight=1)
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    session.lane.send(session.request(1))
    session.lane.send(session.request(2))
    number = worker.take_arena()
    rid = worker.next_request().id
    plane.wait_until(lambda: plane.stats("acme")["queued"] == 1)
    session.close()
    plane.wait_until(lambda: plane.stats("acme")["sessions"] == 0)
    assert plane.stats("acme")["queued"] == 0
    assert plane.stats("acme")["in_flight"] == 1
    worker.respond(rid)
    assert worker.next_request()[2:5] == (Kind.CANCEL, 0, rid)
    assert worker.next_note() == Note(Word.FORGET, number)


def test_a_request_for_a_retired_version_does_not_block_those_behind_it(plane: Any) -> None:
    """When the version that waits at the head of the queue is deleted, it ends and the next one is served."""
    worker = plane.add_hostile("acme", models=[(1, 1), (1, 2)])
    (model,) = plane.tenants["acme"].models
    both = [*model.versions, VersionView(2, model.versions[0].manifest)]
    plane.change("acme", max_inflight=1, models=[msgspec.structs.replace(model, versions=both)])
    session = plane.knock("acme")
    session.lane.send(session.request(1))
    session.lane.send(session.request(2, model_version=2, flags=wire.Flag.PINNED))
    session.lane.send(session.request(3))
    worker.take_arena()
    rid = worker.next_request().id
    plane.wait_until(lambda: plane.stats("acme")["queued"] == 2)
    plane.change("acme", models=[model])
    assert session.answer() == (2, Kind.ERROR, "model.not_found")
    worker.respond(rid)
    assert session.answer() == (1, Kind.RESPONSE, "")
    worker.respond(worker.next_request().id)
    assert session.answer() == (3, Kind.RESPONSE, "")


def test_stopping_a_tenant_ends_every_request_of_it(plane: Any) -> None:
    """What waits ends at once, what is in flight when its slot is gone, and new requests are refused."""
    plane.change("acme", max_inflight=1)
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    session.lane.send(session.request(1))
    session.lane.send(session.request(2))
    worker.take_arena()
    worker.next_request()
    plane.wait_until(lambda: plane.stats("acme")["queued"] == 1)
    plane.change("acme", state="stopped")
    assert session.answer() == (2, Kind.ERROR, "tenant.stopped")
    session.lane.send(session.request(3))
    assert session.answer() == (3, Kind.ERROR, "tenant.stopped")
    plane.remove_slot(worker.slot)
    assert session.answer() == (1, Kind.ERROR, "tenant.stopped")


def test_deleting_a_tenant_ends_its_sessions_and_frees_its_name(plane: Any) -> None:
    """Sessions of a deleted tenant end; a new tenant of the same name has none of them."""
    worker = plane.add_hostile("acme")
    session, other = plane.knock("acme"), plane.knock("beta")
    session.lane.send(session.request(1))
    worker.take_arena()
    worker.next_request()
    old = plane.tenants.pop("acme")
    plane.remove_slot(worker.slot)
    plane.wait_until(session.is_over)
    plane.tenants["acme"] = msgspec.structs.replace(old, number=7, models=[])
    plane.publish()
    assert plane.knock("acme").models() == {}
    assert plane.stats("acme")["sessions"] == 1
    assert not other.is_over()


@PATIENCE(part="twin", outcome="an answer in time")
def test_a_model_that_raises_is_the_callers_error_and_the_worker_lives(plane: Any) -> None:
    """An exception in a model is ``model.failed`` with its text, and the next call is answered."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        with pytest.raises(BedsitError) as caught:
            client.infer("gate", {"x": np.full(1, 2.0, np.float32)})
        assert caught.value.code == "model.failed"
        assert "told to" in caught.value.message
        assert client.infer("gate", {"x": np.zeros(3, np.float32)})["y"].tolist() == [1.0, 1.0, 1.0]
