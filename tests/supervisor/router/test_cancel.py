"""Requests that nobody waits for any more, on their way and at workers, and the memory that they held."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bedsit import BedsitError, Client
from bedsit.ipc import wire
from bedsit.ipc.slot import Note, Word
from bedsit.ipc.wire import Kind

both_lanes = pytest.mark.parametrize("lane", ["fast", "zmq"])

# Waits in its first call until a file is there, and counts its calls in another one.
COUNTING = """
import time

def build(bundle):
    here = bundle.path
    def call(x):
        with (here / "calls").open("a") as calls:
            calls.write(f"{int(x[0])}\\n")
        (here / "entered").touch()
        while not (here / "go").exists():
            time.sleep(0.002)
        return x + 1
    return call
"""


@both_lanes
def test_a_withdrawal_of_what_a_worker_has_is_passed_on(plane: Any, lane: str) -> None:
    """It comes on the slot's connection, under the worker's own number, once; the answer is passed on all the same."""
    worker, session = plane.add_pair("acme", lane)
    session.lane.send(session.request(7))
    request = worker.next_request()
    for ident in (7, 7, 8):
        session.lane.send(session.cancel(ident))
    session.settle()
    cancel = wire.read_envelope(worker.fast.recv())
    assert (cancel.kind, cancel.id) == (Kind.CANCEL, request.id)
    assert worker.is_idle()
    assert plane.counts("acme")["in_flight"] == 1
    worker.respond(request.id)
    assert session.answer() == (7, Kind.RESPONSE, "")
    session.lane.send(session.cancel(7))
    session.settle()
    assert worker.is_idle()


@both_lanes
def test_a_busy_worker_does_not_run_what_was_withdrawn_meanwhile(plane: Any, lane: Any) -> None:
    """The request that lay behind the one that ran ends in ``request.cancelled``; the model never sees it."""
    bundle = {**plane.bundle, "model.py": COUNTING}
    slot = plane.add_slot("acme", [bundle])
    folder = plane.folder_of(slot)
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.infer, "gate", {"x": np.full(1, 10, np.float32)}, timeout_s=60)
        plane.wait_until((folder / "entered").exists)
        with pytest.raises(BedsitError) as caught:
            client.infer("gate", {"x": np.full(1, 20, np.float32)}, timeout_s=0.2)
        assert caught.value.code == "deadline.exceeded"
        assert plane.counts("acme")["in_flight"] == 2
        client.models()  # the withdrawal before it has been passed on
        (folder / "go").touch()
        assert first.result(60)["y"].tolist() == [11.0]
        assert client.infer("gate", {"x": np.full(1, 30, np.float32)})["y"].tolist() == [31.0]
    assert (folder / "calls").read_text().split() == ["10", "30"]
    assert plane.counts("acme") | {"sessions": 0} == {
        "requests": 3,
        "errors": 1,
        "queued": 0,
        "in_flight": 0,
        "sessions": 0,
    }


@both_lanes
def test_a_client_that_dies_is_a_client_that_withdraws(plane: Any, lane: str) -> None:
    """The worker hears of each of its requests; its arena is taken back when the last of them has been answered."""
    worker, session = plane.add_pair("acme", lane)
    number = session.arena.number
    for ident in (1, 2):
        session.lane.send(session.request(ident))
    rids = [worker.next_request().id for _ in range(2)]
    session.close()
    for rid in rids:
        cancel = wire.read_envelope(worker.fast.recv())
        assert (cancel.kind, cancel.id) == (Kind.CANCEL, rid)
    worker.respond(rids[0])
    plane.wait_until(lambda: plane.counts("acme")["in_flight"] == 1)
    assert worker.is_idle()
    worker.respond(rids[1])
    assert worker.next_note() == Note(Word.FORGET, number)
    assert plane.counts("acme") == {"requests": 4, "errors": 0, "queued": 0, "in_flight": 0, "sessions": 0}


@both_lanes
def test_the_arena_of_an_idle_client_that_dies_is_taken_back_at_once(plane: Any, lane: str) -> None:
    """Nobody has to ask for anything, and only workers that have it hear of it."""
    worker, session = plane.add_pair("acme", lane)
    other = plane.knock("acme", lane=lane)
    number = session.arena.number
    other.close()
    plane.wait_until(lambda: plane.counts("acme")["sessions"] == 1)
    assert worker.is_idle()
    session.close()
    assert worker.next_note() == Note(Word.FORGET, number)


@pytest.mark.parametrize("last", ["answered", "dead"])
def test_the_arena_is_taken_back_from_every_worker(plane: Any, last: str) -> None:
    """Also from the one that let go of it before another one did, or died over it."""
    plane.change("acme", max_inflight=1)
    first, second = plane.add_hostile("acme"), plane.add_hostile("acme")
    session = plane.knock("acme")
    number = session.arena.number
    for ident in (1, 2):
        session.lane.send(session.request(ident))
    assert first.take_arena() == second.take_arena() == number
    held, done = first.next_request().id, second.next_request().id
    session.close()
    assert first.next_request().kind == second.next_request().kind == Kind.CANCEL
    second.respond(done)
    plane.wait_until(lambda: plane.counts("acme")["in_flight"] == 1)
    assert second.is_idle()
    if last == "answered":
        first.respond(held)
        assert first.next_note() == Note(Word.FORGET, number)
    else:
        first.link.close()
        assert plane.hear("lost")["slot"] == first.slot
        assert second.is_idle()
        plane.remove_slot(first.slot)
    assert second.next_note() == Note(Word.FORGET, number)


def test_a_worker_unmaps_what_it_is_told_to_forget(plane: Any) -> None:
    """Sessions come and go with arenas in use; the worker keeps none of their mappings."""
    slot = plane.add_slot("acme")

    def count_mapped() -> int:
        with open(f"/proc/{plane.workers[slot].pid}/maps", encoding="utf-8") as maps:
            return sum("bedsit-arena" in line for line in maps)

    large = {"x": np.zeros(10_000, np.float32)}
    for _ in range(3):
        with Client("acme", run_dir=str(plane.run_dir)) as client:
            client.infer("gate", large)
            assert count_mapped() == 1
        plane.wait_until(lambda: plane.counts("acme")["sessions"] == 0)
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        client.infer("gate", {"x": np.zeros(1, np.float32)})
        client.infer("gate", {"x": np.zeros(1, np.float32)})
        assert count_mapped() == 1


@both_lanes
def test_withdrawing_from_many_threads_leaves_nothing_behind(plane: Any, lane: Any) -> None:
    """Calls of eight threads end at their deadlines in the queue and at the worker; all that they held comes back."""
    slot = plane.add_slot("acme")
    start = threading.Barrier(8)
    large = {"x": np.full(10_000, 1.0, np.float32)}
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client, ThreadPoolExecutor(8) as pool:

        def call(number: int) -> str:
            start.wait(30)
            with pytest.raises(BedsitError) as caught:
                client.infer("gate", large, timeout_s=0.2)
            return caught.value.code

        assert set(pool.map(call, range(8))) == {"deadline.exceeded"}
        (plane.folder_of(slot) / "go").touch()
        assert client._link is not None
        session = client._link.session
        # Each call takes what has come meanwhile, also for those that gave up.
        plane.wait_until(lambda: client.infer("gate", {"x": np.zeros(1, np.float32)}) and session.in_flight() == 0)
        assert session.arena.free_bytes() == session.arena.size
    plane.wait_until(lambda: plane.counts("acme")["in_flight"] == 0)
