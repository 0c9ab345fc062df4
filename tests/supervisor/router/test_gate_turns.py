"""What a gate does when tenants come, go and yield: single cases, each with real pages, on a clock of the test's."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bedsit.ipc.leasepage import Turn
from bedsit.ipc.snapshot import DeviceView
from tests_support.gatesim import HARD_MS, MS, TURN_MS, Box, Tenant

CORE = DeviceView("core", 1, TURN_MS, HARD_MS)
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
