"""Tenants whose slots come and go, through the real router, workers and cgroups: what `admin` promises of them."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import bedsit
from bedsit.ipc.admin import AdminClient
from bedsit.ipc.errors import BedsitError

pytestmark = pytest.mark.root

#: Its input's first number says what to do: so many seconds of sleep, or below zero the end of its process.
MOODY = """
    import os
    import time

    def build(bundle):
        def call(x):
            order = float(x.flatten()[0])
            if order < 0:
                os._exit(int(-order) - 1)
            time.sleep(order)
            return x
        return call
"""
FLAT = """
    def build(bundle):
        return lambda x: x * 0
"""


@pytest.fixture(scope="module")
def module_box(make_module_box: Any) -> Any:
    """A box in which a slot may be parked a moment after it has come."""
    return make_module_box(residence_s=0.2)


def infer(box: Any, order: float = 0.0, tenant: str = "vision", **options: Any) -> float:
    """One request; gives the first number of its answer."""
    with bedsit.Client(tenant=tenant, run_dir=box.run) as client:
        x = np.full((1, 4), order, np.float32)
        return float(client.infer("echo", {"x": x}, **({"timeout_s": 30.0} | options))["x"][0, 0])


@contextmanager
def later(box: Any, *orders: float) -> Iterator[list["Future[float]"]]:
    """Requests under way, which the router knows."""
    with ThreadPoolExecutor(len(orders)) as pool:
        futures = [pool.submit(infer, box, order) for order in orders]
        box.wait(
            lambda: [r for r in box.ps(tenant="vision") if (r["in_flight"] or 0) + (r["queued"] or 0) >= len(orders)]
        )
        yield futures


@contextmanager
def asked_all_the_time(box: Any) -> Iterator[list[int]]:
    """Somebody asks one thing after the other, and not one may fail; gives a count of the answers."""
    done, count = threading.Event(), [0]

    def ask() -> None:
        with bedsit.Client(tenant="vision", run_dir=box.run) as client:
            while not done.is_set():
                client.infer("echo", {"x": np.zeros((1, 4), np.float32)}, timeout_s=30.0)
                count[0] += 1

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ask)
        try:
            box.wait(lambda: count[0])
            yield count
        finally:
            done.set()
            future.result(60)


def slots(box: Any, **fields: Any) -> list[str]:
    """The slots of vision that serve."""
    return [row["slot"] for row in box.ps(tenant="vision", state="serving", **fields)]


def park(box: Any) -> dict[str, Any]:
    """Park vision as soon as its slot may go."""

    def try_to() -> Any:
        try:
            return box.call("tenant.park", name="vision")
        except BedsitError as e:
            assert e.code == "tenant.busy"
            return None

    parked: dict[str, Any] = box.wait(try_to)
    return parked


# -- parking ----------------------------------------------------------------------------------------------------------


def test_a_parked_tenant_answers_the_next_request(shared_box: Any) -> None:
    """It has no slot, and gets one while the caller waits; what it holds of the box is nothing."""
    shared_box.tenant(min_slots=0)
    shared_box.deploy(source=MOODY)
    shown = park(shared_box)

    assert (shown["state"], shown["slot"], shown["slots"], shown["slots_wanted"]) == ("parked", None, [], 0)
    assert shared_box.ps(tenant="vision") == []
    assert infer(shared_box, 0.25) == 0.25
    shown = shared_box.call("tenant.show", name="vision")
    assert (shown["state"], len(shown["slots"]), shown["slots_serving"], shown["restarts"]) == ("running", 1, 1, 0)
    kinds = [event["kind"] for event in shared_box.events() if event["kind"] in ("tenant.parked", "tenant.woken")]
    assert kinds[-2:] == ["tenant.parked", "tenant.woken"]


def test_an_idle_tenant_is_parked_by_itself(shared_box: Any) -> None:
    """After as long as its operator said."""
    shared_box.tenant(min_slots=0, idle_s=1.0)
    shared_box.deploy(source=MOODY)
    shared_box.wait(lambda: shared_box.call("tenant.show", name="vision")["state"] == "parked")

    assert infer(shared_box) == 0.0


def test_a_tenant_that_is_kept_or_busy_is_not_parked(shared_box: Any) -> None:
    """Its operator hears why; what it says of itself has not changed."""
    shared_box.tenant()
    shared_box.deploy(source=MOODY)
    with pytest.raises(BedsitError, match=r"tenant\.busy.*keeps 1"):
        shared_box.call("tenant.park", name="vision")
    assert len(slots(shared_box)) == 1


def test_who_is_parked_with_a_request_under_way_answers_it(shared_box: Any) -> None:
    """Its slot drains."""
    shared_box.tenant(min_slots=0)
    shared_box.deploy(source=MOODY)
    with later(shared_box, 1.0) as (answer,):
        park(shared_box)
        assert answer.result(30) == 1.0


def test_a_start_wakes_a_parked_tenant(shared_box: Any) -> None:
    """Before anybody asks."""
    shared_box.tenant(min_slots=0)
    shared_box.deploy(source=MOODY)
    park(shared_box)

    assert shared_box.call("tenant.start", name="vision")["state"] == "running"


def test_a_parked_tenant_stays_parked_under_the_next_daemon(shared_box: Any) -> None:
    """Nobody asked for it. Its first request comes while no daemon is there, and waits for one."""
    shared_box.tenant(min_slots=0)
    shared_box.deploy(source=MOODY)
    park(shared_box)
    shared_box.kill_daemon()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(infer, shared_box, 0.5)
        shared_box.start(blank=0)
        assert answer.result(60) == 0.5


# -- restart, drain, profile ------------------------------------------------------------------------------------------


def test_a_restart_loses_no_request(shared_box: Any) -> None:
    """Every slot is another one afterwards, and as many as before; it counts as no death."""
    shared_box.tenant(min_slots=2, max_slots=2)
    shared_box.deploy(source=MOODY)
    shared_box.wait(lambda: len(slots(shared_box)) == 2)
    before = slots(shared_box)
    with asked_all_the_time(shared_box) as count:
        shown = shared_box.call("tenant.restart", name="vision")
        goal = count[0] + 10
        shared_box.wait(lambda: count[0] > goal)

    assert not set(shown["slots"]) & set(before)
    shared_box.wait(lambda: len(slots(shared_box)) == 2 and not set(slots(shared_box)) & set(before))
    assert shown["restarts"] == 0


def test_a_restart_of_what_has_no_slot(shared_box: Any) -> None:
    """Parked it stays parked; stopped it says so; without models there is nothing to do."""
    shared_box.tenant(min_slots=0)
    assert shared_box.call("tenant.restart", name="vision")["state"] == "empty"
    shared_box.deploy(source=MOODY)
    park(shared_box)
    assert shared_box.call("tenant.restart", name="vision")["state"] == "parked"
    shared_box.call("tenant.stop", name="vision")
    with pytest.raises(BedsitError, match=r"tenant\.stopped"):
        shared_box.call("tenant.restart", name="vision")
    assert shared_box.call("tenant.show", name="vision")["state"] == "stopped"


def test_another_profile_loses_no_request(shared_box: Any) -> None:
    """The tenant need not be stopped for it."""
    shared_box.tenant()
    shared_box.deploy(source=MOODY)
    (before,) = slots(shared_box)
    with asked_all_the_time(shared_box):
        shared_box.call("tenant.set", name="vision", profile="subprocess")
        shared_box.wait(lambda: slots(shared_box) and before not in slots(shared_box))

    assert shared_box.call("tenant.show", name="vision")["profile"] == "subprocess"
    assert np.array_equal(infer(shared_box), 0.0)


def test_a_drained_tenant_has_answered_everything(shared_box: Any) -> None:
    """Also what had not begun; nothing new is let in meanwhile; then it is stopped."""
    shared_box.tenant(max_slots=1)
    shared_box.deploy(source=MOODY)
    with (
        AdminClient(shared_box.run / "admin.sock", timeout_s=60) as other,
        later(shared_box, 0.5, 0.5, 0.5) as answers,
        ThreadPoolExecutor(1) as pool,
    ):
        drained = pool.submit(other.call, "tenant.drain", name="vision")
        assert shared_box.wait(lambda: refusal(shared_box)) == "tenant.stopped"
        assert [answer.result(30) for answer in answers] == [0.5] * 3
        assert drained.result(30)["state"] == "stopped"

    assert shared_box.ps(tenant="vision") == []
    assert shared_box.call("tenant.start", name="vision")["state"] == "running"
    assert infer(shared_box) == 0.0


def refusal(box: Any) -> str:
    """The code with which a request is refused; empty when it is answered."""
    try:
        infer(box, timeout_s=5.0)
    except BedsitError as e:
        return e.code
    return ""


def test_a_tenant_that_is_not_drained_in_time_goes_on(shared_box: Any) -> None:
    """Nothing has changed: it takes requests again, and loses none."""
    shared_box.tenant()
    shared_box.deploy(source=MOODY)
    with later(shared_box, 2.0) as (answer,):
        with pytest.raises(BedsitError, match=r"deadline\.exceeded.*still has requests after 0.2 s"):
            shared_box.call("tenant.drain", name="vision", timeout_s=0.2)
        assert infer(shared_box) == 0.0
        assert answer.result(30) == 2.0
    assert shared_box.call("tenant.show", name="vision")["state"] == "running"


# -- more slots, a full box -------------------------------------------------------------------------------------------


def test_a_busy_tenant_gets_another_slot(shared_box: Any) -> None:
    """Its requests run beside each other as soon as it has."""
    shared_box.tenant(max_slots=2)
    shared_box.deploy(source=MOODY)
    infer(shared_box, 0.5)  # what one takes is known
    with later(shared_box, *[0.5] * 6) as answers:
        shared_box.wait(lambda: len(slots(shared_box)) == 2)
        assert [answer.result(30) for answer in answers] == [0.5] * 6

    shown = shared_box.call("tenant.show", name="vision")
    assert (len(shown["slots"]), shown["slots_wanted"]) == (2, 2)
    assert shared_box.wait_event("tenant.scaled", tenant="vision")["text"] == "from 1 slots to 2"


def test_in_a_full_box_who_is_idle_makes_room(new_box: Any) -> None:
    """And comes back in the same way, when it is asked again and the other one is idle."""
    box = new_box()
    box.settings |= {"max_slots": 1, "pool_size": 0, "residence_s": 0.1}
    box.start(blank=0)
    box.start_router()
    for name in ("vision", "audio"):
        box.tenant(name, min_slots=0)
        box.deploy(name, source=MOODY)
    assert [infer(box, 0.1, name) for name in ("vision", "audio", "vision")] == pytest.approx([0.1] * 3)

    assert box.wait_event("tenant.evicted", tenant="vision")["text"].startswith("until somebody asks for it")
    assert [tenant["state"] for tenant in box.call("tenant.list")] == ["parked", "running"]


def test_without_memory_who_was_promised_nothing_waits(new_box: Any) -> None:
    """It has to go when it is idle, and is not brought back; who was promised a slot has it."""
    box = new_box()
    box.settings |= {"memory_reserve_bytes": 1 << 60, "residence_s": 0.1}
    box.start(blank=0)
    box.start_router()
    box.wait(lambda: box.pool() == 0)
    box.tenant("promised", min_slots=1)
    box.deploy("promised", source=MOODY)
    box.tenant("vision", min_slots=0)
    box.deploy("vision", source=MOODY)
    box.wait_event("tenant.evicted", tenant="vision")
    box.wait(lambda: not slots(box))
    with pytest.raises(BedsitError, match=r"deadline\.exceeded"):
        infer(box, timeout_s=2.0)

    assert infer(box, 0.1, "promised") == pytest.approx(0.1)
    states = {row["name"]: row["state"] for row in box.call("tenant.list")}
    assert states == {"promised": "running", "vision": "starting"}


# -- deaths -----------------------------------------------------------------------------------------------------------


def die(box: Any, order: float) -> str:
    """A request that ends its worker; gives the code of the answer."""
    with pytest.raises(BedsitError) as failed:
        infer(box, order)
    return failed.value.code


def test_an_orderly_exit_of_a_transient_tenant_is_its_end(shared_box: Any) -> None:
    """Another exit is not; a start by its operator brings it back."""
    shared_box.tenant(restart="transient")
    shared_box.deploy(source=MOODY, idempotent=False)
    assert die(shared_box, -4.0) == "worker.crashed"
    shared_box.wait(lambda: slots(shared_box))
    assert die(shared_box, -1.0) == "worker.crashed"
    event = shared_box.wait_event("tenant.given_up", tenant="vision")

    assert "its restart policy is transient, and it ended: exit status 0" in event["text"]
    assert shared_box.call("tenant.show", name="vision")["state"] == "failed"
    assert shared_box.wait(lambda: die(shared_box, 0.0) == "tenant.failed"), "nobody waits for what does not come"
    assert shared_box.call("tenant.start", name="vision")["state"] == "running"
    assert infer(shared_box) == 0.0


def test_a_version_that_kills_its_workers_is_taken_out_of_use(shared_box: Any) -> None:
    """The one before it answers; released it answers again."""
    shared_box.tenant(quarantine_after=2)
    shared_box.deploy(source=FLAT)
    shared_box.deploy(source=MOODY, replace=True)
    assert infer(shared_box, 0.25) == 0.25
    assert die(shared_box, -9.0) == "worker.crashed", "it was tried twice"
    shared_box.wait_event(
        "model.quarantined", text="echo version 2 was running at 2 deaths in a row; version 1 answers"
    )
    model = shared_box.call("model.show", tenant="vision", name="echo")
    assert model["default"] == 1
    assert [row["quarantined_at"] is not None for row in model["versions"]] == [False, True]
    assert infer(shared_box, 0.25) == 0.0

    model = shared_box.call("model.release", tenant="vision", name="echo")

    assert (model["default"], model["versions"][1]["quarantined_at"]) == (2, None)
    assert shared_box.wait(lambda: infer(shared_box, 0.25) == 0.25)
    with pytest.raises(BedsitError, match=r"request\.invalid.*no version of model 'echo' is in quarantine"):
        shared_box.call("model.release", tenant="vision", name="echo")


def test_a_version_that_no_other_one_could_answer_for_stays_in_use(shared_box: Any) -> None:
    """What dies now and then is better than nothing; deploying a version mends it."""
    shared_box.tenant(quarantine_after=1)
    shared_box.deploy(source=MOODY, idempotent=False)
    for _ in range(2):
        assert die(shared_box, -9.0) == "worker.crashed"
        assert shared_box.wait(lambda: infer(shared_box, 0.25) == 0.25)
    (version,) = shared_box.call("model.show", tenant="vision", name="echo")["versions"]
    assert version["quarantined_at"] is None

    shared_box.deploy(source=FLAT, replace=True)

    assert infer(shared_box, 0.25) == 0.0
    assert shared_box.call("model.show", tenant="vision", name="echo")["default"] == 2


def test_a_call_that_does_not_end_ends_its_slot(shared_box: Any) -> None:
    """It gets model.timeout, those behind it are answered, and the tenant's cause says what it was."""
    shared_box.tenant(run_max_s=0.5)
    shared_box.deploy(source=MOODY)
    (before,) = slots(shared_box)
    start = time.monotonic()
    with later(shared_box, 3600.0) as (hung,), ThreadPoolExecutor(1) as pool:
        behind = pool.submit(infer, shared_box, 0.25)
        with pytest.raises(BedsitError, match=r"model\.timeout"):
            hung.result(30)
        assert behind.result(30) == 0.25

    assert time.monotonic() - start > 0.5
    shown = shared_box.call("tenant.show", name="vision")
    assert (shown["restarts"], shown["last_cause_kind"]) == (1, "timeout")
    assert shown["last_cause"].startswith("a call of its model has not ended after 0.")
    assert before not in slots(shared_box)
    assert infer(shared_box, 0.25) == 0.25


def test_another_limit_of_time_holds_at_once(shared_box: Any) -> None:
    """For the call that runs, too."""
    shared_box.tenant()
    shared_box.deploy(source=MOODY)
    with later(shared_box, 3600.0) as (hung,):
        shared_box.call("tenant.set", name="vision", run_max_s=0.2)
        with pytest.raises(BedsitError, match=r"model\.timeout"):
            hung.result(30)
