"""What a gate does when tenants come, go and yield: single cases, each with real pages, on a clock of the test's."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bedsit.ipc.leasepage import Turn
from bedsit.ipc.snapshot import DeviceView
from tests_support.gatesim import HARD_MS, MS, TURN_MS, Box, Tenant

CORE = DeviceView("core", 1, TURN_MS, HARD_MS)
HARD_NS = int(HARD_MS * MS)
OTHER = DeviceView("other", 1, TURN_MS, HARD_MS)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """Two devices, and nobody at them."""
    made = Box(tmp_path, [CORE, OTHER])
    yield made
    made.close()


def go_on(box: Box, until: Callable[[], object], most: int = 2000) -> None:
    """Let happen what happens until then."""
    for _ in range(most):
        if until():
            return
        if not box.step():
            box.clock.now_ns += MS
    raise AssertionError("that does not happen")


def is_running(tenant: Tenant) -> bool:
    """Whether one of its workers computes."""
    return any(slot.worker.state == "running" for slot in tenant.slots)


def test_a_tenant_that_leaves_while_it_runs_alone_harms_nobody(box: Box) -> None:
    """Who comes then waits for its end, and is served."""
    acme, beta = box.add("acme", "core"), box.add("beta", "core")
    box.ask(acme, 30 * MS)
    go_on(box, lambda: is_running(acme))
    box.move(acme, "")
    box.ask(beta, MS)
    box.settle_down()
    assert (acme.answered, beta.answered) == (1, 1)


def test_a_tenant_that_leaves_and_comes_back_is_charged_for_what_is_its(box: Box) -> None:
    """What it had begun before is nobody's charge, however it ends."""
    acme, beta = box.add("acme", "core"), box.add("beta", "core")
    box.ask(acme, 30 * MS)
    go_on(box, lambda: is_running(acme))
    box.ask(beta, MS)
    box.move(acme, "")
    box.move(acme, "core")
    box.settle_down()
    assert (acme.answered, beta.answered) == (1, 1)


@pytest.mark.parametrize("how", ["moved", "closed"])
def test_a_worker_that_is_idle_when_its_tenant_leaves_may_run_afterwards(box: Box, how: str) -> None:
    """Its page says so: the end of its last turn is not the last word."""
    acme, beta = box.add("acme", "core"), box.add("beta", "core")
    for _ in range(3):
        box.ask(acme, MS)
        box.ask(beta, MS)
    box.settle_down()
    assert Turn.WAIT in {acme.slots[0].page.state, beta.slots[0].page.state}
    if how == "closed":
        box.reopen("core")
    for tenant in (acme, beta):
        box.move(tenant, "")
        box.ask(tenant, MS)
    box.settle_down()
    assert (acme.answered, beta.answered) == (4, 4)


def test_long_calls_that_yield_share_by_weight(box: Box) -> None:
    """Also with one call at a time each: who yields competes for the next turn with who waited."""
    acme, beta = box.add("acme", "core", weight=900), box.add("beta", "core", weight=100)
    for tenant in (acme, beta):
        box.ask(tenant, 10_000 * MS, MS)
    go_on(box, lambda: beta.line.turns_ns >= 100 * MS, 20_000)
    assert 7 <= acme.line.turns_ns / beta.line.turns_ns <= 11


def test_a_realtime_call_that_yields_goes_on_before_others(box: Box) -> None:
    """It gives way to lower classes for their part of the time, and not at each of its turns."""
    acme, beta = box.add("acme", "core", service_class="realtime"), box.add("beta", "core", service_class="batch")
    box.ask(acme, 10_000 * MS, MS)
    go_on(box, lambda: is_running(acme))
    for _ in range(100):
        box.ask(beta, 50 * MS)
    go_on(box, lambda: beta.line.turns_ns >= 500 * MS, 50_000)
    assert acme.line.turns_ns >= 3 * beta.line.turns_ns


def test_each_piece_is_charged_once(box: Box) -> None:
    """A call that yields while its next one is at its worker already is settled before it goes on."""
    acme, beta = box.add("acme", "core"), box.add("beta", "core", slots=0)
    for _ in range(3):
        box.ask(acme, 100 * MS, MS)
    box.ask(beta, MS)  # it has no worker, and waits
    before = acme.line.turns_ns
    go_on(box, lambda: acme.answered == 3)
    flow = box.gates["core"]._queue.statistics()["acme"]
    assert flow.running == 0
    assert 0 < flow.served_ns <= acme.line.turns_ns - before


def test_a_turn_that_is_to_end_before_its_batch_began_is_no_overrun(box: Box) -> None:
    """A worker that has not looked yet begins all the same, and gives way at its first chance."""
    acme, beta = box.add("acme", "core", service_class="batch"), box.add("beta", "core", service_class="realtime")
    box.ask(acme, 5 * MS, MS)
    box.ask(beta, MS)
    box.settle_down()
    assert (acme.answered, beta.answered, box.overruns) == (1, 1, 0)


def test_who_waits_for_a_worker_of_its_own_ends_nobody(box: Box) -> None:
    """What is kept from somebody who could not use it is not kept for too long."""
    acme, beta = box.add("acme", "core"), box.add("beta", "core", slots=0)
    box.ask(acme, 5 * HARD_NS)
    box.ask(beta, MS)
    go_on(box, lambda: acme.answered)
    assert box.overruns == 0
    box.ask(acme, 5 * HARD_NS)
    go_on(box, lambda: is_running(acme))
    box.add_slot(beta)
    box.pump_all()
    go_on(box, lambda: beta.answered)
    assert box.overruns == 1


@pytest.mark.parametrize("device", ["core", ""])
def test_the_next_router_waits_for_who_ran_alone(tmp_path: Path, device: str) -> None:
    """A page that says FREE, too, may be that of a worker that is at something; none says for ever that it is over."""
    box = Box(tmp_path, [CORE, DeviceView("", 1, 0.0, HARD_MS, strict=False)])
    acme, beta = box.add("acme", "core"), box.add("beta", "core")
    box.ask(beta, MS)
    box.ask(acme, MS)
    box.settle_down()
    box.ask(acme, 50 * MS)
    go_on(box, lambda: is_running(acme))
    if not device:
        box.ask(beta, MS)  # so that it has a turn
    for tenant in (acme, beta):
        tenant.gate = box.gates[device]  # as the daemon says while there is no router
    box.restart()
    box.ask(beta, MS)
    go_on(box, lambda: is_running(beta) or beta.answered == 2)
    assert device == "" or not is_running(acme)
    box.ask(acme, MS)
    box.settle_down()
    assert (acme.answered, beta.answered) == (2, 2)
    box.close()


def test_one_worker_has_one_turn_at_a_time(tmp_path: Path) -> None:
    """On a device with room for two, what was sent behind a batch waits for that one's end."""
    box = Box(tmp_path, [DeviceView("wide", 2, TURN_MS, HARD_MS)])
    acme, beta = box.add("acme", "wide"), box.add("beta", "wide")
    gamma = box.add("gamma", "wide", slots=0)
    box.ask(gamma, MS)  # waits for a worker
    box.ask(acme, 20 * MS)
    box.ask(beta, MS)
    box.ask(acme, MS)
    go_on(box, lambda: acme.answered == 2 and beta.answered == 1)
    assert box.overruns == 0
    box.close()


def test_who_has_left_holds_up_nobody_when_it_is_done(tmp_path: Path) -> None:
    """The next turn begins with the answer of its batch, also where nothing waits at a worker."""
    box = Box(tmp_path, [DeviceView("", 1, 0.0, HARD_MS, strict=False)])
    acme, beta = box.add("acme", ""), box.add("beta", "")
    box.ask(acme, MS)
    box.ask(beta, MS)
    box.move(acme, "none")
    go_on(box, lambda: acme.answered)
    assert beta.slots[0].in_flight
    box.close()


def test_a_worker_that_is_lost_by_what_it_is_sent_is_not_next(box: Box) -> None:
    """Its batch had a turn otherwise, and the others waited for a worker that is not there."""
    acme, beta, gamma = (box.add(name, "core") for name in ("acme", "beta", "gamma"))
    box.ask(acme, MS)
    beta.slots[0].on_send = lambda: box.lose(beta.slots[0])
    box.ask(beta, MS)
    box.ask(gamma, MS)
    go_on(box, lambda: gamma.answered)
    assert (beta.slots[0].lost, beta.line.turns_ns, box.overruns) == (True, 0, 0)


def test_a_gap_begins_when_somebody_waits(box: Box) -> None:
    """Time in which nobody wanted the device is idle, and no gap."""
    acme, beta = box.add("acme", "core"), box.add("beta", "core")
    box.clock.now_ns += 1000 * MS
    box.gates["core"].inherit(beta.slots[0])  # type: ignore[arg-type]
    box.ask(acme, MS)
    box.clock.now_ns += 3 * MS
    box.come_back(beta.slots[0])
    assert box.gates["core"].measure(box.clock()) == (1003 * MS, 1003 * MS, 3 * MS)


def test_a_slot_that_has_answered_late_is_no_longer_too_late(box: Box) -> None:
    """The next daemon is not told that it keeps the device still."""
    acme, beta = box.add("acme", "core"), box.add("beta", "core")
    box.ask(acme, 300 * MS)
    box.ask(beta, MS)
    slot, late = acme.slots[0], acme.slots[0].in_flight[0]
    go_on(box, lambda: box.overran)
    slot.overran, box.overran[:] = "core", []  # there is no daemon that ends it
    go_on(box, lambda: late not in slot.in_flight)
    assert not slot.overran
