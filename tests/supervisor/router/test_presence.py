"""Tenants whose slots come and go: who wakes them, who is let in meanwhile, what hangs, what is in quarantine."""

import time
from typing import Any

import msgspec
import numpy as np
import pytest

from bedsit import Client
from bedsit.ipc.frames import send_frame
from bedsit.ipc.snapshot import VersionView
from bedsit.ipc.wire import Kind

ONE = {"x": np.zeros(1, np.float32)}


def bare(plane: Any, **changes: Any) -> Any:
    """A session of acme, which has a model and no slot."""
    plane.set_models("acme", [plane.manifest()])
    plane.change("acme", **changes)
    return plane.knock("acme")


def messages(plane: Any, op: str) -> list[dict[str, Any]]:
    """Everything of that kind that the router has said by now."""
    plane.stats("acme")
    found = [message for message in plane.heard if message["op"] == op]
    plane.heard[:] = [message for message in plane.heard if message["op"] != op]
    return found


def activity(plane: Any) -> dict[str, list[Any]]:
    """Who did something since this was asked last: time worked, time of work ahead in us, whether it was crowded."""
    send_frame(plane.daemon, {"op": "activity"})
    active: dict[str, list[Any]] = plane.hear("activity")["tenants"]
    return active


def pass_time(plane: Any, seconds: float) -> None:
    """Be somewhere else for as long."""
    until = time.monotonic() + seconds
    plane.wait_until(lambda: time.monotonic() > until)


# -- wanted -----------------------------------------------------------------------------------------------------------


def test_a_request_for_a_tenant_without_a_slot_is_told(plane: Any) -> None:
    """Once for all that come; again while it waits, for a daemon that was away; not any more when a slot is there."""
    session = bare(plane)
    for ident in range(1, 6):
        session.lane.send(session.request(ident))
    assert plane.hear("wanted") == {"op": "wanted", "tenant": "acme"}
    session.settle()
    assert len(messages(plane, "wanted")) <= 1, "one in half a second"
    assert plane.hear("wanted")["tenant"] == "acme"

    worker = plane.add_hostile("acme")
    worker.take_arena()
    for _ in range(5):
        worker.respond(worker.next_request().id)
    assert sorted(session.answer()[0] for _ in range(5)) == [1, 2, 3, 4, 5]
    messages(plane, "wanted")
    pass_time(plane, 0.7)

    assert messages(plane, "wanted") == []


def test_a_daemon_that_comes_back_hears_who_waits(plane: Any) -> None:
    """What was said to nobody is said again."""
    session = bare(plane)
    plane.leave(for_good=True)
    session.lane.send(session.request(1))
    session.settle()
    plane.come_back()

    assert plane.hear("wanted")["tenant"] == "acme"


def test_nobody_is_wanted_who_has_a_slot(plane: Any) -> None:
    """Busy or not."""
    worker, session = plane.add_pair("acme", "fast")
    messages(plane, "wanted")
    for ident in range(1, 10):
        session.lane.send(session.request(ident))
    session.settle()
    pass_time(plane, 0.7)

    assert plane.counts("acme")["queued"] > 0
    assert messages(plane, "wanted") == []
    assert not worker.is_idle()


@pytest.mark.parametrize(
    ("state", "code"), [("stopped", "tenant.stopped"), ("draining", "tenant.stopped"), ("failed", "tenant.failed")]
)
def test_who_takes_nothing_new_is_not_wanted(plane: Any, state: str, code: str) -> None:
    """The request is refused, and wakes nobody."""
    session = bare(plane, state=state)
    session.lane.send(session.request(1))

    assert session.answer() == (1, Kind.ERROR, code)
    assert messages(plane, "wanted") == []


@pytest.mark.parametrize(("state", "code"), [("stopped", "tenant.stopped"), ("failed", "tenant.failed")])
def test_what_waits_for_a_tenant_that_nobody_brings_back_is_refused(plane: Any, state: str, code: str) -> None:
    """At once, not when its deadline has passed; so is what its last worker had, where it may be asked again."""
    plane.change("acme", max_inflight=1)
    worker, session = plane.add_pair("acme", "fast")
    for ident in (1, 2):
        session.lane.send(session.request(ident))
    worker.next_request()
    session.settle()
    plane.change("acme", state=state)

    assert session.answer() == (2, Kind.ERROR, code)
    plane.remove_slot(worker.slot)
    assert session.answer() == (1, Kind.ERROR, code)


# -- draining and waking ----------------------------------------------------------------------------------------------


def test_a_draining_tenant_answers_what_it_has_and_takes_nothing_new(plane: Any) -> None:
    """What is queued is served as if nothing had happened."""
    worker, session = plane.add_pair("acme", "fast")
    for ident in (1, 2, 3):
        session.lane.send(session.request(ident))
    session.settle()
    plane.change("acme", state="draining")
    session.lane.send(session.request(4))

    assert session.answer() == (4, Kind.ERROR, "tenant.stopped")
    assert plane.counts("acme")["queued"] + plane.counts("acme")["in_flight"] == 3

    for _ in range(3):
        worker.respond(worker.next_request().id)

    assert [session.answer()[:2] for _ in range(3)] == [(ident, Kind.RESPONSE) for ident in (1, 2, 3)]
    assert (plane.counts("acme")["queued"], plane.counts("acme")["in_flight"]) == (0, 0)

    plane.change("acme", state="running")
    session.lane.send(session.request(5))
    worker.respond(worker.next_request().id)

    assert session.answer()[:2] == (5, Kind.RESPONSE)


def test_what_waits_for_a_slot_is_drained_too(plane: Any) -> None:
    """The daemon hears that one is wanted, though nothing new is let in."""
    session = bare(plane)
    session.lane.send(session.request(1))
    session.settle()
    plane.change("acme", state="draining")
    messages(plane, "wanted")
    assert plane.hear("wanted")["tenant"] == "acme"

    worker = plane.add_hostile("acme")
    worker.take_arena()
    worker.respond(worker.next_request().id)

    assert session.answer()[:2] == (1, Kind.RESPONSE)


def wake(plane: Any, session: Any, takes_s: float) -> Any:
    """Let a first request wait for a slot for as long; gives the worker, which has answered it."""
    session.lane.send(session.request(1 << 30))
    assert plane.hear("wanted")["tenant"] == "acme"
    pass_time(plane, takes_s)
    worker = plane.add_hostile("acme")
    worker.take_arena()
    worker.respond(worker.next_request().id)
    assert session.answer()[0] == 1 << 30
    return worker


def deadline(seconds: float) -> int:
    """A deadline so far away."""
    return time.monotonic_ns() + int(seconds * 1e9)


def test_who_cannot_wait_for_a_slot_is_told_how_long_that_takes(plane: Any) -> None:
    """By what it took the last time; the request wakes its tenant all the same, for when it comes again."""
    session = bare(plane)
    worker = wake(plane, session, 1.0)
    plane.remove_slot(worker.slot)
    messages(plane, "wanted")
    session.lane.send(session.request(1, deadline_ns=deadline(0.2)))
    ident, refused = session.refusal()

    assert (ident, refused.code) == (1, "deadline.exceeded")
    assert "is waking up" in refused.message
    assert 0.7 < refused.detail["retry_after_s"] < 10.0
    assert plane.hear("wanted")["tenant"] == "acme"

    session.lane.send(session.request(2, deadline_ns=deadline(60.0)))
    session.lane.send(session.request(3))
    session.settle()

    assert plane.counts("acme")["queued"] == 2


def test_the_longer_it_wakes_the_less_is_left(plane: Any) -> None:
    """When it has waited for as long as the last time, whoever comes is let in."""
    session = bare(plane)
    plane.remove_slot(wake(plane, session, 0.5).slot)
    session.lane.send(session.request(1))
    session.settle()
    waits: list[float] = []

    def is_let_in() -> bool:
        session.lane.send(session.request(2, deadline_ns=deadline(0.05)))
        _, failure = session.refusal()
        waits.append(failure.detail.get("retry_after_s", 0.0))
        return "is waking up" not in failure.message

    plane.wait_until(is_let_in)

    assert len(waits) > 1
    assert waits == sorted(waits, reverse=True)


def test_nobody_is_refused_before_anybody_knows_how_long_waking_takes(plane: Any) -> None:
    """The first one measures it."""
    session = bare(plane)
    session.lane.send(session.request(1, deadline_ns=deadline(0.05)))

    assert session.answer() == (1, Kind.ERROR, "deadline.exceeded")
    assert plane.counts("acme")["errors"] == 1
    assert plane.stats("acme")["refused"] == 0, "it waited, in vain"


def test_waking_is_measured_until_the_slot_serves(plane: Any) -> None:
    """One that has connected and still loads does not count; nor does the time in which nobody waited."""
    session = bare(plane)
    session.lane.send(session.request(1))
    session.settle()
    worker = plane.add_hostile("acme", state="loading")
    pass_time(plane, 0.8)
    plane.slots[worker.slot] = msgspec.structs.replace(plane.slots[worker.slot], state="serving")
    plane.publish()
    worker.take_arena()
    worker.respond(worker.next_request().id)
    assert session.answer()[0] == 1

    pass_time(plane, 1.0)
    plane.remove_slot(worker.slot)
    session.lane.send(session.request(2, deadline_ns=deadline(0.01)))
    _, refused = session.refusal()

    assert 0.6 < refused.detail["retry_after_s"] < 0.8 + 5.0


# -- quarantine -------------------------------------------------------------------------------------------------------


def quarantine(plane: Any, *versions: int, default: int = 1) -> None:
    """Take versions of acme's model out of use."""
    rows = [VersionView(number, plane.manifest(), number in versions) for number in (1, 2)]
    plane.change_model("acme", versions=rows, default=default)


def test_a_version_in_quarantine_is_refused_with_why(plane: Any) -> None:
    """It wakes nobody, whatever the deadline is, and nothing counts towards a rate."""
    session = bare(plane, rate_per_s=1e-6, burst=1)
    quarantine(plane, 1)
    for ident in (1, 2):
        session.lane.send(session.request(ident, deadline_ns=ident - 1))
        number, refused = session.refusal()
        assert (number, refused.code) == (ident, "model.quarantined")
        assert "model gate version 1" in refused.message
        assert "bedsit model release" in refused.hint

    assert messages(plane, "wanted") == []

    quarantine(plane)
    session.lane.send(session.request(3))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 1)


def test_what_waits_for_a_version_in_quarantine_is_refused(plane: Any) -> None:
    """No slot will load it; what waits for another version waits on."""
    session = bare(plane)
    quarantine(plane)
    for ident in (1, 2):
        session.lane.send(session.request(ident))
    session.lane.send(session.request(3, model_version=2, flags=1))
    session.settle()
    assert plane.counts("acme")["queued"] == 3

    quarantine(plane, 1, default=2)

    assert [session.answer() for _ in range(2)] == [(ident, Kind.ERROR, "model.quarantined") for ident in (1, 2)]
    assert plane.counts("acme")["queued"] == 1


def test_what_killed_its_worker_once_too_often_is_refused(plane: Any) -> None:
    """The request was to be tried again, but by then its version is in quarantine."""
    worker, session = plane.add_pair("acme", "fast")
    session.lane.send(session.request(1))
    worker.next_request()
    worker.close()
    assert plane.hear("lost") == {"op": "lost", "slot": worker.slot, "ran": [1, 1]}
    quarantine(plane, 1)
    plane.remove_slot(worker.slot)

    assert session.answer() == (1, Kind.ERROR, "model.quarantined")


def test_callers_follow_the_default_away_from_a_version_in_quarantine(plane: Any) -> None:
    """A client that knew version 2 asks again, and is answered by version 1."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        quarantine(plane, default=2)
        assert client.models() == {"gate": [2, 1]}
        quarantine(plane, 2, default=1)
        assert client.infer("gate", ONE)["y"][0] == 1.0


# -- what ran, and what hangs -----------------------------------------------------------------------------------------


def test_who_was_running_is_told_with_the_loss(plane: Any) -> None:
    """The oldest that it had; none, when it had none."""
    plane.set_models("acme", [plane.manifest(), plane.manifest("other")])
    worker = plane.add_hostile("acme", models=[(1, 1), (2, 1)])
    session = plane.knock("acme")
    session.lane.send(session.request(1, model=2))
    session.lane.send(session.request(2, model=1))
    worker.take_arena()
    worker.next_request()
    worker.next_request()
    worker.close()
    assert plane.hear("lost") == {"op": "lost", "slot": worker.slot, "ran": [2, 1]}

    idle = plane.add_hostile("acme")
    session.settle()
    idle.close()
    assert plane.hear("lost") == {"op": "lost", "slot": idle.slot, "ran": None}


def hang(plane: Any, run_max_s: float = 0.3, **changes: Any) -> tuple[Any, Any, list[int]]:
    """A worker that has three requests, and has not answered the first for as long as it may."""
    plane.change("acme", run_max_s=run_max_s, max_inflight=3)
    worker, session = plane.add_pair("acme", "fast")
    if changes:
        plane.change_model("acme", **changes)
    for ident in (1, 2, 3):
        session.lane.send(session.request(ident))
    return worker, session, [worker.next_request().id for _ in range(3)]


def test_a_call_that_does_not_end_is_told_once(plane: Any) -> None:
    """With what it is and for how long; its worker is left alone until the daemon has ended it."""
    worker, session, _ = hang(plane)
    told = plane.hear("hung")

    assert (told["slot"], told["ran"]) == (worker.slot, [1, 1])
    assert 0.3 < told["after_s"] < 10.0

    pass_time(plane, 0.5)

    assert messages(plane, "hung") == []
    assert not session.lane.poll(0)
    assert plane.counts("acme")["in_flight"] == 3


def test_a_call_that_hung_ends_in_a_timeout_and_those_behind_it_are_tried_again(plane: Any) -> None:
    """It is not tried again, because it would hang again; the others were never begun."""
    worker, session, _ = hang(plane)
    plane.hear("hung")
    plane.remove_slot(worker.slot)

    ident, failure = session.refusal()
    assert (ident, failure.code) == (1, "model.timeout")
    assert "longer than the tenant may" in failure.message

    second = plane.add_hostile("acme")
    second.take_arena()
    for _ in range(2):
        second.respond(second.next_request().id)

    assert [session.answer()[:2] for _ in range(2)] == [(2, Kind.RESPONSE), (3, Kind.RESPONSE)]
    assert plane.counts("acme")["errors"] == 1


def test_those_behind_a_call_that_hung_may_be_unlucky_twice(plane: Any) -> None:
    """To have waited behind one does not count as an attempt."""
    worker, session, _ = hang(plane)
    for ident in (1, 2):
        plane.hear("hung")
        plane.remove_slot(worker.slot)
        assert session.answer() == (ident, Kind.ERROR, "model.timeout")
        worker = plane.add_hostile("acme")
        worker.take_arena()
        worker.next_request()
    plane.remove_slot(worker.slot)  # the third one's first worker that was at it
    last = plane.add_hostile("acme")
    last.take_arena()
    last.respond(last.next_request().id)

    assert session.answer()[:2] == (3, Kind.RESPONSE)


def test_those_behind_that_may_not_run_twice_are_not_tried_again(plane: Any) -> None:
    """Nobody knows whether the worker had begun with them."""
    worker, session, _ = hang(plane, idempotent=False)
    plane.hear("hung")
    plane.remove_slot(worker.slot)

    assert [session.answer() for _ in range(3)] == [
        (1, Kind.ERROR, "model.timeout"), (2, Kind.ERROR, "worker.crashed"), (3, Kind.ERROR, "worker.crashed"),
    ]  # fmt: skip


def test_a_withdrawn_call_that_hangs_is_told_too(plane: Any) -> None:
    """Its caller has left, and its worker is lost to all others."""
    worker, session, _ = hang(plane)
    session.lane.send(session.cancel(1))
    assert plane.hear("hung")["slot"] == worker.slot
    plane.remove_slot(worker.slot)

    assert session.answer() == (1, Kind.ERROR, "request.cancelled")


def test_each_call_has_its_own_time(plane: Any) -> None:
    """It begins when the worker was free for it: to wait behind another one is not to run."""
    worker, session, numbers = hang(plane, run_max_s=1.0)
    for number in numbers:
        pass_time(plane, 0.6)
        worker.respond(number)
        assert session.answer()[1] == Kind.RESPONSE

    assert messages(plane, "hung") == []


def test_a_call_that_ends_after_all_blames_no_other(plane: Any) -> None:
    """The daemon ends its slot a moment too late: who runs by then is tried again; and it has its own time to hang."""
    worker, session, numbers = hang(plane)
    plane.hear("hung")
    worker.respond(numbers[0])
    assert session.answer()[:2] == (1, Kind.RESPONSE)
    assert plane.hear("hung")["slot"] == worker.slot, "the second one hangs, too"
    worker.respond(numbers[1])
    assert session.answer()[:2] == (2, Kind.RESPONSE)
    plane.remove_slot(worker.slot)
    second = plane.add_hostile("acme")
    second.take_arena()
    second.respond(second.next_request().id)

    assert session.answer()[:2] == (3, Kind.RESPONSE)


def test_a_draining_slot_may_hang_too(plane: Any) -> None:
    """It would never be drained."""
    plane.change("acme", run_max_s=0.3)
    worker, session = plane.add_pair("acme", "fast")
    session.lane.send(session.request(1))
    worker.next_request()
    plane.slots[worker.slot] = msgspec.structs.replace(plane.slots[worker.slot], state="draining")
    plane.publish()

    assert plane.hear("hung")["slot"] == worker.slot


def test_a_daemon_that_was_away_hears_what_hangs(plane: Any) -> None:
    """What was said to nobody is said again; what has ended meanwhile is not."""
    worker, session, numbers = hang(plane)
    plane.leave(for_good=True)
    pass_time(plane, 0.6)
    plane.come_back()
    assert plane.hear("hung")["slot"] == worker.slot

    plane.leave(for_good=True)
    for number in numbers:
        worker.respond(number)
    assert [session.answer()[0] for _ in range(3)] == [1, 2, 3]
    plane.come_back()
    pass_time(plane, 0.5)

    assert messages(plane, "hung") == []


def test_nobody_looks_at_the_clock_where_the_tenant_may_run_for_ever(plane: Any) -> None:
    """run_max_s 0; a limit that comes later holds for the call that runs."""
    worker, _, _ = hang(plane, run_max_s=0.0)
    pass_time(plane, 0.5)
    assert messages(plane, "hung") == []

    plane.change("acme", run_max_s=0.1)

    assert plane.hear("hung")["slot"] == worker.slot


# -- activity ---------------------------------------------------------------------------------------------------------


def test_only_who_did_something_is_active(plane: Any) -> None:
    """Since it was asked last, or still; with all the time that its workers ever worked."""
    worker, session = plane.add_pair("acme", "fast")
    assert set(activity(plane)) == {"acme"}
    assert activity(plane) == {}

    session.lane.send(session.request(1))
    number = worker.next_request().id
    assert set(activity(plane)) == set(activity(plane)) == {"acme"}, "its call runs on"
    worker.respond(number)
    assert session.answer()[0] == 1
    (busy_us, backlog_us, crowded) = activity(plane)["acme"]

    assert busy_us == plane.stats("acme")["busy_us"] > 0
    assert (backlog_us, crowded) == (0, False)
    assert activity(plane) == {}


@pytest.mark.parametrize("max_inflight", [1, 2])
def test_who_finds_every_worker_busy_makes_it_crowded(plane: Any, max_inflight: int) -> None:
    """Whether that worker takes a second one ahead or not; as long as one waits. Not who waits for each answer."""
    plane.change("acme", max_inflight=max_inflight)
    worker, session = plane.add_pair("acme", "fast")
    for ident in (1, 2):
        session.lane.send(session.request(ident))
        worker.respond(worker.next_request().id)
        assert session.answer()[0] == ident
    assert activity(plane)["acme"][2] is False

    session.lane.send(session.request(3))
    number = worker.next_request().id
    session.lane.send(session.request(4))
    session.settle()

    assert [activity(plane)["acme"][2] for _ in range(2)] == [True, True], "somebody waits"
    worker.respond(number)
    worker.respond(worker.next_request().id)
    assert sorted(session.answer()[0] for _ in range(2)) == [3, 4]
    assert activity(plane)["acme"][2] is False


def test_a_refused_request_is_activity(plane: Any) -> None:
    """Somebody asks: that is no idle tenant."""
    session = bare(plane)
    quarantine(plane, 1)
    session.lane.send(session.request(1))
    session.answer()

    assert activity(plane) == {"acme": [0, 0, False]}


def test_work_ahead_is_what_another_worker_would_help(plane: Any) -> None:
    """What waits here or behind another one at a worker, not what runs; by what such requests took."""
    plane.change("acme", max_inflight=2)
    worker, session = plane.add_pair("acme", "fast")
    session.lane.send(session.request(1))
    number = worker.next_request().id
    pass_time(plane, 0.2)
    worker.respond(number)
    session.answer()
    session.lane.send(session.request(2))
    worker.next_request()
    assert activity(plane)["acme"][1] == 0

    for ident in range(3, 6):
        session.lane.send(session.request(ident))
    session.settle()
    (_, backlog_us, _) = activity(plane)["acme"]
    (_, again_us, _) = activity(plane)["acme"]

    assert backlog_us == again_us > 3 * 10_000
