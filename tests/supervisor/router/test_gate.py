"""Tenants that take turns because only so many batches may run at once, with workers that answer when the test says so.

A batch that runs longer than its lease gives its turn to others: what must not be out at once is only looked at where
this machine has not stood still for that long.
"""

import time
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from bedsit.ipc.wire import Kind

LEASE_S = 0.25


@pytest.fixture
def gated(plane: Any) -> Any:
    """A box where one batch may run at a time, with a worker and a session of each of two tenants."""
    pairs = {name: plane.add_pair(name, "fast") for name in ("acme", "beta")}
    plane.parallel = 1
    plane.publish()
    return pairs


def _in_flight(plane: Any, names: Iterable[str] = ("acme", "beta")) -> int:
    return sum(plane.counts(name)["in_flight"] for name in names)


def _find_next(plane: Any, pairs: Any) -> str:
    """The tenant whose worker gets the next request; it is not read."""
    found: list[str] = []
    plane.wait_until(lambda: found.extend(name for name in pairs if pairs[name][0].lane.poll(0)) or found)
    return found[0]


def test_one_batch_is_out_at_a_time(plane: Any, gated: Any) -> None:
    """Of both tenants together, however many requests wait and workers are idle; each turn begins with an answer."""
    for ident in range(20):
        for _, session in gated.values():
            session.lane.send(session.request(ident))
    served = dict.fromkeys(gated, 0)
    began = time.monotonic()
    while sum(served.values()) < 40:
        name = _find_next(plane, gated)
        worker, session = gated[name]
        envelope = worker.next_request()
        out = _in_flight(plane)
        if time.monotonic() - began < LEASE_S:
            assert out == 1
        began = time.monotonic()
        worker.respond(envelope.id)
        assert session.answer() == (served[name], Kind.RESPONSE, "")
        served[name] += 1
    assert served == {"acme": 20, "beta": 20}
    assert _in_flight(plane) == 0


def test_the_time_of_workers_is_shared_by_weight(plane: Any, gated: Any) -> None:
    """While both wait, their shares differ from their weights by no more than one batch of each."""
    weights = {"acme": 300, "beta": 100}
    for name, weight in weights.items():
        plane.change(name, weight=weight)
    before = {name: plane.stats(name)["busy_us"] for name in gated}
    began = time.monotonic()
    for ident in range(60):
        for _, session in gated.values():
            session.lane.send(session.request(ident))
    longest_us = dict.fromkeys(gated, 0.0)
    for _ in range(60):
        name = _find_next(plane, gated)
        worker, session = gated[name]
        worker.respond(worker.next_request().id)
        session.answer()
        now = time.monotonic()
        longest_us[name] = max(longest_us[name], (now - began) * 1e6)
        began = now
    took = {name: (plane.stats(name)["busy_us"] - before[name]) / weights[name] for name in gated}
    assert all(plane.counts(name)["queued"] for name in gated)
    assert abs(took["acme"] - took["beta"]) <= sum(longest_us[name] / weights[name] for name in gated)


def test_who_comes_to_a_busy_box_is_next(plane: Any, gated: Any) -> None:
    """A request of an idle tenant waits for one batch of another, however many of that one's wait."""
    worker, session = gated["acme"]
    other, newcomer = gated["beta"]
    for ident in range(10):
        session.lane.send(session.request(ident))
    for turn in range(3):
        envelope = worker.next_request()
        newcomer.lane.send(newcomer.request(turn))
        plane.wait_until(lambda: plane.counts("beta")["queued"] == 1 or other.lane.poll(0))
        worker.respond(envelope.id)
        session.answer()
        other.respond(other.next_request().id)
        assert newcomer.answer()[0] == turn


def test_a_batch_that_runs_over_its_lease_lets_others_go(plane: Any, gated: Any) -> None:
    """A worker that does not answer holds up nobody but its own tenant; its answer counts when it comes."""
    worker, session = gated["acme"]
    other, victim = gated["beta"]
    start = time.monotonic()
    session.lane.send(session.request(1))
    held = worker.next_request()
    session.lane.send(session.request(2))
    victim.lane.send(victim.request(1))
    waiting = plane.counts("beta")["in_flight"] == 0
    assert waiting or time.monotonic() - start > LEASE_S
    for ident in range(1, 6):  # the lease is over once, not for each of the others
        other.respond(other.next_request().id)
        assert victim.answer() == (ident, Kind.RESPONSE, "")
        victim.lane.send(victim.request(ident + 1))
    assert time.monotonic() - start >= LEASE_S
    assert worker.is_idle()
    assert plane.counts("acme")["queued"] == 1
    worker.respond(held.id)
    assert session.answer() == (1, Kind.RESPONSE, "")
    other.respond(other.next_request().id)
    worker.respond(worker.next_request().id)
    assert session.answer() == (2, Kind.RESPONSE, "")


def test_the_gate_comes_and_goes_while_requests_wait(plane: Any, gated: Any) -> None:
    """Opening, closing and widening it loses no request, answers none twice, and charges what runs to nobody twice."""
    for name in gated:
        plane.change(name, max_inflight=1)
    for ident in range(30):
        for _, session in gated.values():
            session.lane.send(session.request(ident))
    plane.wait_until(lambda: sum(plane.counts(name)["queued"] for name in gated) == 59)
    served: dict[str, list[int]] = {name: [] for name in gated}
    modes = [1, 0, 2, 1, 2, 0, 1, 1, 0, 0, 1]
    for turn in range(60):
        name = _find_next(plane, gated)
        worker, session = gated[name]
        envelope = worker.next_request()
        plane.parallel = modes[turn % len(modes)]
        plane.publish()  # with a batch out that began in the mode before
        worker.respond(envelope.id)
        served[name].append(session.answer()[0])
    assert served == {name: list(range(30)) for name in gated}
    for name, (worker, session) in gated.items():
        assert plane.counts(name) == {"requests": 32, "errors": 0, "queued": 0, "in_flight": 0, "sessions": 1}
        assert worker.is_idle()
        assert not session.lane.poll(0)


def test_a_wider_gate_lets_as_many_go(plane: Any, gated: Any) -> None:
    """Two at once are two at once, and the third waits; without a gate each worker gets what it takes."""
    plane.add_tenant("gamma")
    plane.parallel = 0
    gated["gamma"] = plane.add_pair("gamma", "fast")
    plane.parallel = 2
    plane.publish()
    start = time.monotonic()
    for _, session in gated.values():
        session.lane.send(session.request(1))
        session.settle()
    out = _in_flight(plane, gated)
    assert out == 2 or time.monotonic() - start > LEASE_S
    plane.parallel = 0
    plane.publish()
    for worker, session in gated.values():
        worker.respond(worker.next_request().id)
        assert session.answer() == (1, Kind.RESPONSE, "")


def test_who_has_no_worker_keeps_no_turn(plane: Any, gated: Any) -> None:
    """Requests that wait for a slot do not stop the others'."""
    worker, session = gated["acme"]
    other, victim = gated["beta"]
    plane.remove_slot(worker.slot)
    for ident in range(3):
        session.lane.send(session.request(ident))
        victim.lane.send(victim.request(ident))
    for ident in range(3):
        other.respond(other.next_request().id)
        assert victim.answer() == (ident, Kind.RESPONSE, "")
    fresh = plane.add_hostile("acme")
    fresh.take_arena()
    for ident in range(3):
        fresh.respond(fresh.next_request().id)
        assert session.answer() == (ident, Kind.RESPONSE, "")


@pytest.mark.parametrize("with_its_tenant", [False, True])
def test_a_turn_ends_with_the_slot_that_had_it(plane: Any, gated: Any, *, with_its_tenant: bool) -> None:
    """The worker dies in the middle of its turn, or its tenant is deleted with it: the next one's turn begins."""
    worker, session = gated["acme"]
    other, victim = gated["beta"]
    session.lane.send(session.request(1))
    worker.next_request()
    victim.lane.send(victim.request(1))
    worker.link.close()
    assert plane.hear("lost")["slot"] == worker.slot
    if with_its_tenant:
        del plane.tenants["acme"]
    plane.remove_slot(worker.slot)
    other.respond(other.next_request().id)
    assert victim.answer() == (1, Kind.RESPONSE, "")
    if with_its_tenant:
        plane.wait_until(session.is_over)
    else:
        fresh = plane.add_hostile("acme")
        fresh.take_arena()
        fresh.respond(fresh.next_request().id)
        assert session.answer() == (1, Kind.RESPONSE, "")
    victim.lane.send(victim.request(2))
    other.respond(other.next_request().id)
    assert victim.answer() == (2, Kind.RESPONSE, "")


def test_who_waits_for_company_keeps_no_turn(plane: Any) -> None:
    """A model that would have a batch be larger waits at the gate, and others go past it."""
    plane.set_models("acme", [plane.manifest(batch="max_rows = 8\ndelay_ms = 1000")])
    worker, session = plane.add_hostile("acme"), plane.knock("acme")
    other, victim = plane.add_pair("beta", "fast")
    plane.parallel = 1
    plane.publish()
    session.lane.send(session.request(1, rows=1))
    worker.take_arena()
    busy = worker.next_request()
    for ident in (2, 3, 4):
        session.lane.send(session.request(ident, rows=1))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 3)
    worker.respond(busy.id)
    for envelope in worker.next_batch():
        worker.respond(envelope.id)
    assert [session.answer()[0] for _ in range(4)] == [1, 2, 3, 4]
    start = time.monotonic()
    session.lane.send(session.request(5, rows=1))  # after a batch of three it waits for two more
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 1 or worker.lane.poll(0))
    victim.lane.send(victim.request(1))
    other.respond(other.next_request().id)
    assert victim.answer() == (1, Kind.RESPONSE, "")
    assert worker.is_idle() or time.monotonic() - start > 0.9
    assert len(worker.next_batch()) == 1


def test_shares_may_be_swapped(plane: Any, gated: Any) -> None:
    """What one tenant gives and another gets in the same moment was never promised twice; the router serves on."""
    for first, second in ((0.9, 0.1), (0.1, 0.9), (0.0, 1.0), (1.0, 0.0)):
        for name, share in (("acme", first), ("beta", second)):
            plane.tenants[name] = msgspec.structs.replace(
                plane.tenants[name], min_share=share, service_class="realtime" if share else "batch"
            )
        plane.publish()
        for worker, session in gated.values():
            session.lane.send(session.request(1))
            worker.respond(worker.next_request().id)
            assert session.answer() == (1, Kind.RESPONSE, "")
