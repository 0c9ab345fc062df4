"""What is let in and what is refused, with a worker that answers when the test says so."""

import time
from typing import Any

import numpy as np
import pytest

from bedsit import BedsitError, Client
from bedsit.ipc.wire import Kind

HOUR_NS = 3600 * 10**9
ONE = {"x": np.zeros(1, np.float32)}


@pytest.fixture
def two_models(plane: Any) -> Any:
    """A worker of ``acme`` with the models 1 and 2, and a session."""
    plane.set_models("acme", [plane.manifest(), plane.manifest("other")])
    worker = plane.add_hostile("acme", models=[(1, 1), (2, 1)])
    session = plane.knock("acme")
    return worker, session


def _wait(plane: Any, seconds: float) -> None:
    """Wait as long as one was told to."""
    until = time.monotonic() + seconds
    plane.wait_until(lambda: time.monotonic() > until)


def _hold_back_at(plane: Any, whose: str, **limits: Any) -> None:
    """Set a limit of the tenant, or of its model 1."""
    if whose == "tenant":
        plane.change("acme", **limits)
    else:
        plane.change_model("acme", **limits)


@pytest.mark.parametrize("whose", ["tenant", "model"])
def test_a_rate_lets_a_burst_in_and_says_when_to_come_again(plane: Any, two_models: Any, whose: str) -> None:
    """What is over the rate gets ``rate.limited`` at once; who waits for as long as it was told to is let in."""
    _, session = two_models
    _hold_back_at(plane, whose, rate_per_s=2.0, burst=3)
    start = time.monotonic()
    for ident in range(1, 21):
        session.lane.send(session.request(ident))
    plane.wait_until(lambda: sum(plane.stats("acme")[key] for key in ("errors", "queued", "in_flight")) == 20)
    refused = plane.stats("acme")["refused"]
    assert 3 <= 20 - refused <= 4 + 2 * (time.monotonic() - start)
    waits = []
    for _ in range(refused):
        ident, failure = session.refusal()
        assert ident > 3
        assert failure.code == "rate.limited"
        waits.append(failure.detail["retry_after_s"])
    assert all(0 < wait <= 0.5 for wait in waits)
    _wait(plane, waits[-1])
    session.lane.send(session.request(21))
    session.lane.send(session.request(22, model=2))
    plane.wait_until(lambda: session.lane.poll(0) or sum(plane.counts("acme").values()) == 23 + refused)
    assert session.lane.poll(0) == (whose == "tenant")  # the other model is nobody's concern


@pytest.mark.parametrize("whose", ["tenant", "model"])
def test_a_refusal_does_not_count_towards_the_rate(plane: Any, two_models: Any, whose: str) -> None:
    """Requests that were refused for want of room, or for a deadline that had passed, took nothing of a rate."""
    _, session = two_models
    plane.change("acme", queue_max=1, max_inflight=1)
    _hold_back_at(plane, whose, rate_per_s=1e-6, burst=3)
    for ident in range(1, 8):
        session.lane.send(session.request(ident))
    assert [session.answer() for _ in range(5)] == [(ident, Kind.ERROR, "queue.full") for ident in range(3, 8)]
    session.lane.send(session.request(8, deadline_ns=1))
    assert session.answer() == (8, Kind.ERROR, "deadline.exceeded")
    session.lane.send(session.cancel(2))
    assert session.answer() == (2, Kind.ERROR, "request.cancelled")
    session.lane.send(session.request(9))  # the third of the burst
    session.lane.send(session.cancel(9))
    assert session.answer() == (9, Kind.ERROR, "request.cancelled")
    session.lane.send(session.request(10))
    assert session.answer() == (10, Kind.ERROR, "rate.limited")


@pytest.mark.parametrize("limiting", ["tenant", "model"])
def test_what_one_rate_refuses_does_not_count_towards_the_other(plane: Any, two_models: Any, limiting: str) -> None:
    """Where the model's rate is used up, its tenant's is not used; and the other way round."""
    _, session = two_models
    plane.change("acme", max_inflight=100, rate_per_s=1e-6, burst=2 if limiting == "tenant" else 4)
    plane.change_model("acme", rate_per_s=1e-6, burst=4 if limiting == "tenant" else 2)
    for ident in range(1, 11):
        session.lane.send(session.request(ident))
    assert [session.answer() for _ in range(8)] == [(ident, Kind.ERROR, "rate.limited") for ident in range(3, 11)]
    if limiting == "tenant":
        plane.change("acme", rate_per_s=0.0)
    for ident in (11, 12):
        session.lane.send(session.request(ident, model=1 if limiting == "tenant" else 2))
    plane.wait_until(lambda: session.lane.poll(0) or plane.counts("acme")["in_flight"] == 4)
    assert not session.lane.poll(0)
    session.lane.send(session.request(13, model=1))
    assert session.answer() == (13, Kind.ERROR, "rate.limited")


def test_questions_count_towards_the_rate(plane: Any, two_models: Any) -> None:
    """Who asks without end is told to slow down, and its session goes on."""
    _, session = two_models
    plane.change("acme", rate_per_s=1e-6, burst=2)
    assert session.models() == session.models() == {"gate": [1], "other": [1]}
    with pytest.raises(BedsitError) as caught:
        session.models()
    assert caught.value.code == "rate.limited"
    assert caught.value.detail["retry_after_s"] > 1
    session.lane.send(session.request(1))
    assert session.answer() == (1, Kind.ERROR, "rate.limited")
    plane.change("acme", rate_per_s=0.0)
    assert session.models() == {"gate": [1], "other": [1]}


@pytest.mark.parametrize("lane", ["fast", "zmq"])
def test_a_caller_learns_how_long_to_wait(plane: Any, lane: Any) -> None:
    """The client raises ``rate.limited`` with ``retry_after_s``; after that time the call succeeds."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        client.infer("gate", ONE)
        plane.change("acme", rate_per_s=2.0)
        with pytest.raises(BedsitError) as caught:
            for _ in range(100):
                client.infer("gate", ONE)
        assert caught.value.code == "rate.limited"
        _wait(plane, caught.value.detail["retry_after_s"])
        assert client.infer("gate", ONE)["y"][0] == 1.0


@pytest.mark.parametrize("whose", ["tenant", "model"])
def test_a_bound_on_concurrency_holds_back_and_refuses_nothing(plane: Any, two_models: Any, whose: str) -> None:
    """No more requests than that are at workers at once; the others wait, and each answer lets one more out."""
    worker, session = two_models
    plane.change("acme", max_inflight=100)
    _hold_back_at(plane, whose, concurrency_max=2)
    for ident in range(1, 7):
        session.lane.send(session.request(ident))
    session.lane.send(session.request(7, model=2))
    worker.take_arena()
    out = [worker.next_request() for _ in range(2)]
    if whose == "model":
        other = worker.next_request()
        assert other.model == 2
        worker.respond(other.id)
        assert session.answer() == (7, Kind.RESPONSE, "")
    plane.wait_until(lambda: plane.counts("acme")["queued"] == (5 if whose == "tenant" else 4))
    served = []
    while out:
        assert plane.counts("acme")["in_flight"] == len(out)
        assert worker.is_idle()
        worker.respond(out.pop(0).id)
        served.append(session.answer()[0])
        if plane.counts("acme")["in_flight"] > len(out):
            out.append(worker.next_request())
    assert served == list(range(1, 8 if whose == "tenant" else 7))
    assert plane.stats("acme")["errors"] == 0


@pytest.mark.parametrize(("tenants", "models"), [(3, 0), (0, 3), (3, 4), (4, 3), (0, 0)])
def test_a_bound_on_concurrency_counts_the_requests_of_a_batch(plane: Any, tenants: int, models: int) -> None:
    """A batch is no larger than what the tenant and the model may have at workers at once."""
    plane.set_models("acme", [plane.manifest(batch="max_rows = 16")])
    worker = plane.add_hostile("acme")
    plane.change("acme", max_inflight=1, concurrency_max=tenants)
    plane.change_model("acme", concurrency_max=models)
    session = plane.knock("acme")
    session.lane.send(session.request(1, rows=1))
    worker.take_arena()
    batch = worker.next_batch()
    for ident in range(2, 10):
        session.lane.send(session.request(ident, rows=1))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 8)
    sizes = []
    for _ in range(4 if tenants or models else 2):
        for envelope in batch:
            worker.respond(envelope.id)
        sizes.append(len(batch))
        if sum(sizes) < 9:
            batch = worker.next_batch()
    assert sizes == ([1, 3, 3, 2] if tenants or models else [1, 8])
    assert [session.answer()[:2] for _ in range(9)] == [(ident, Kind.RESPONSE) for ident in range(1, 10)]


def test_a_models_own_queue_is_bounded_and_leaves_the_other_models_room(plane: Any, two_models: Any) -> None:
    """Requests over ``queue_max`` of a model get ``queue.full`` with a hint when to come; another model's wait."""
    _, session = two_models
    plane.change("acme", max_inflight=1)
    plane.change_model("acme", queue_max=2)
    for ident in range(1, 6):
        session.lane.send(session.request(ident))
    for ident in (4, 5):
        refused, failure = session.refusal()
        assert (refused, failure.code) == (ident, "queue.full")
        assert 0 < failure.detail["retry_after_s"] <= 1
    for ident in range(6, 10):
        session.lane.send(session.request(ident, model=2))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 6)
    assert not session.lane.poll(0)
    assert plane.stats("acme")["refused"] == 2


def test_the_bytes_that_wait_are_bounded(plane: Any, two_models: Any) -> None:
    """What would be over ``queue_bytes_max`` together with what waits gets ``queue.full``; a smaller one does not."""
    worker, session = two_models
    size = len(session.request(1))
    plane.change("acme", max_inflight=1, queue_bytes_max=4 * size)
    long = bytes(3 * size)
    for ident, rest in ((1, long), (2, b""), (3, long), (4, b""), (5, b""), (6, b""), (7, b"")):
        session.lane.send(session.request(ident) + rest)
    for ident in (3, 7):
        refused, failure = session.refusal()
        assert (refused, failure.code) == (ident, "queue.full")
    assert plane.stats("acme")["queued_bytes"] == 4 * size
    worker.take_arena()
    worker.respond(worker.next_request().id)
    assert session.answer() == (1, Kind.RESPONSE, "")
    plane.wait_until(lambda: plane.stats("acme")["queued_bytes"] == 3 * size)


@pytest.fixture
def slow(plane: Any, two_models: Any) -> Any:
    """The same, with a model 1 whose requests are known to take a tenth of a second each."""
    worker, session = two_models
    plane.change("acme", max_inflight=1)
    for ident in range(1, 9):
        session.lane.send(session.request(ident, deadline_ns=time.monotonic_ns() + HOUR_NS))
        if ident == 1:
            worker.take_arena()
        rid = worker.next_request().id
        _wait(plane, 0.1)
        worker.respond(rid)
        assert session.answer() == (ident, Kind.RESPONSE, "")
    return worker, session


def test_a_deadline_that_the_backlog_leaves_no_time_for_is_refused_at_once(plane: Any, slow: Any) -> None:
    """A request that two seconds of work are ahead of does not wait for its deadline of one second to pass."""
    _, session = slow
    for ident in range(10, 31):
        session.lane.send(session.request(ident))
    session.lane.send(session.request(31, deadline_ns=time.monotonic_ns() + 10**9))
    ident, failure = session.refusal()
    assert (ident, failure.code) == (31, "deadline.exceeded")
    assert failure.detail["retry_after_s"] >= 2
    session.lane.send(session.request(32, deadline_ns=time.monotonic_ns() + HOUR_NS))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 21)
    assert plane.stats("acme")["refused"] == 1


def test_an_idle_line_lets_any_deadline_in(plane: Any, slow: Any) -> None:
    """Known to be slow or not: where nothing waits it is tried, so that a wrong estimate is measured anew."""
    worker, session = slow
    soon = time.monotonic_ns() + 10**7
    session.lane.send(session.request(10, deadline_ns=soon))
    assert worker.next_request().deadline_ns == soon
    # The same for a line beside one that is long.
    for ident in range(11, 31):
        session.lane.send(session.request(ident))
    late = time.monotonic_ns() + 10**9
    session.lane.send(session.request(31, model=2, deadline_ns=late))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 21)
    assert not session.lane.poll(0)
