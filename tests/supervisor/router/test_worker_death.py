"""Workers that die or are replaced under load, with the test in the daemon's place."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from bedsit import BedsitError, Client

BLOCK = {"x": np.array([1.0, 5.0], np.float32)}


def _call(plane: Any, tenant: str, inputs: Any, timeout_s: float = 60.0) -> list[float]:
    with Client(tenant, run_dir=str(plane.run_dir)) as client:
        values: list[float] = client.infer("gate", inputs, timeout_s=timeout_s)["y"].tolist()
        return values


@contextmanager
def _neighbour(plane: Any) -> Iterator[list[int]]:
    """Another tenant that calls without a pause; afterwards, how many calls it made, all of them right."""
    plane.add_slot("beta")
    done = threading.Event()
    count = [0]

    def call() -> None:
        with Client("beta", run_dir=str(plane.run_dir)) as client:
            while not done.is_set():
                assert client.infer("gate", {"x": np.zeros(1, np.float32)}, timeout_s=60)["y"][0] == 1.0
                count[0] += 1

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        try:
            yield count
        finally:
            done.set()
            future.result(60)
    assert plane.stats("beta")["errors"] == 0


def _advance(plane: Any, count: list[int]) -> None:
    """Wait until the neighbour had ten more answers: whatever was to happen by then has happened."""
    goal = count[0] + 10
    plane.wait_until(lambda: count[0] >= goal)


def test_a_request_of_a_killed_worker_is_retried_once_its_death_is_confirmed(plane: Any) -> None:
    """Nothing is answered before the daemon confirms; then the new worker answers, and a neighbour sees nothing."""
    with _neighbour(plane) as count, ThreadPoolExecutor(1) as pool:
        slot = plane.add_slot("acme")
        answer: Future[list[float]] = pool.submit(_call, plane, "acme", BLOCK)
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        plane.workers[slot].kill()
        assert plane.hear("lost")["slot"] == slot
        _advance(plane, count)
        assert not answer.done()
        assert plane.stats("acme")["in_flight"] == 1
        plane.remove_slot(slot)
        _advance(plane, count)
        assert not answer.done()
        assert plane.counts("acme") | {"sessions": 1} == {
            "requests": 0,
            "errors": 0,
            "queued": 1,
            "in_flight": 0,
            "sessions": 1,
        }
        second = plane.add_slot("acme")
        plane.wait_until((plane.folder_of(second) / "entered").exists)
        (plane.folder_of(second) / "go").touch()
        assert answer.result(60) == [2.0, 6.0]


def test_a_request_that_kills_two_workers_is_given_up(plane: Any) -> None:
    """A retry happens once: the request that also kills the second worker ends in ``worker.crashed``."""
    slot = plane.add_slot("acme")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_call, plane, "acme", {"x": np.array([3.0], np.float32)})
        for _ in range(2):
            assert plane.hear("lost")["slot"] == slot
            plane.remove_slot(slot)
            slot = plane.add_slot("acme")
        with pytest.raises(BedsitError) as caught:
            answer.result(60)
    assert caught.value.code == "worker.crashed"
    assert _call(plane, "acme", {"x": np.zeros(1, np.float32)}) == [1.0]


def test_a_request_that_must_not_run_twice_is_not_retried(plane: Any) -> None:
    """A model that is not idempotent gives ``worker.crashed``, after the confirmation and not before."""
    with _neighbour(plane) as count, ThreadPoolExecutor(1) as pool:
        slot = plane.add_slot("acme", idempotent=False)
        answer = pool.submit(_call, plane, "acme", BLOCK)
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        plane.workers[slot].kill()
        assert plane.hear("lost")["slot"] == slot
        _advance(plane, count)
        assert not answer.done()
        plane.remove_slot(slot)
        with pytest.raises(BedsitError) as caught:
            answer.result(60)
        assert caught.value.code == "worker.crashed"


def test_a_request_waits_for_the_worker_that_comes(plane: Any) -> None:
    """With no slot at all requests wait in the queue, and are served when one is there."""
    slot = plane.add_slot("acme")
    plane.remove_slot(slot)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_call, plane, "acme", {"x": np.zeros(1, np.float32)})
        plane.wait_until(lambda: plane.stats("acme")["queued"] == 1)
        plane.add_slot("acme")
        assert answer.result(60) == [1.0]


def test_a_draining_slot_gets_nothing_new_and_says_when_it_is_empty(plane: Any) -> None:
    """The old slot finishes what it has and is reported drained; everything new goes to the new slot."""
    import msgspec

    old = plane.add_slot("acme")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_call, plane, "acme", BLOCK)
        plane.wait_until((plane.folder_of(old) / "entered").exists)
        plane.slots[old] = msgspec.structs.replace(plane.slots[old], state="draining")
        plane.add_slot("acme")
        for _ in range(5):
            # The old worker is stuck: only the new one can answer these.
            assert _call(plane, "acme", {"x": np.zeros(1, np.float32)}) == [1.0]
        assert not [message for message in plane.heard if message["op"] == "drained"]
        (plane.folder_of(old) / "go").touch()
        assert answer.result(60) == [2.0, 6.0]
        assert plane.hear("drained")["slot"] == old
        plane.remove_slot(old)
    assert _call(plane, "acme", {"x": np.zeros(1, np.float32)}) == [1.0]


def test_a_slot_that_is_loading_gets_requests_once_it_serves(plane: Any) -> None:
    """What a slot has loaded may be told when it serves; before, it gets nothing."""
    import msgspec

    slot = plane.add_slot("acme")
    ready = plane.slots[slot]
    plane.remove_slot(slot)
    plane.workers[slot].kill()
    worker = plane.add_hostile("acme", state="loading", models=[])
    session = plane.knock("acme")
    session.lane.send(session.request(1))
    plane.wait_until(lambda: plane.stats("acme")["queued"] == 1)
    plane.slots[worker.slot] = msgspec.structs.replace(plane.slots[worker.slot], state="serving", models=ready.models)
    plane.publish()
    worker.take_arena()
    worker.respond(worker.next_request().id)
    assert session.answer()[:2] == (1, 2)


def test_a_slot_whose_folder_is_gone_harms_nobody(plane: Any) -> None:
    """A snapshot may name a slot that has died meanwhile; everyone else is served."""
    import msgspec

    slot = plane.add_slot("acme")
    plane.slots["sffffffff"] = msgspec.structs.replace(plane.slots[slot], id="sffffffff")
    plane.publish()
    assert _call(plane, "acme", {"x": np.zeros(1, np.float32)}) == [1.0]


def test_a_zeromq_session_does_not_need_every_slot(plane: Any) -> None:
    """A slot that can have no ZeroMQ lane, because its folder went away, keeps no session out; its requests go on."""
    worker = plane.add_hostile("acme")
    (plane.run_dir / "slots" / worker.slot).rename(plane.run_dir / "slots" / "gone")
    session = plane.knock("acme", lane="zmq")
    session.lane.send(session.request(1))
    worker.take_arena()
    worker.respond(worker.next_request().id)
    assert session.answer() == (1, 2, "")


def test_a_daemon_with_another_state_is_believed(plane: Any) -> None:
    """Serials count within one instance: a daemon over a new state folder starts again from one."""
    for _ in range(5):
        plane.publish()
    plane.restart_counting("another")
    plane.tenants["acme"] = plane.tenants.pop("beta")
    del plane.tenants["acme"]
    plane.add_tenant("gamma", number=9)
    plane.publish()
    assert plane.knock("gamma").opened.tenant == "gamma"
    with pytest.raises(BedsitError) as caught:
        plane.knock("beta")
    assert caught.value.code == "tenant.not_found"
