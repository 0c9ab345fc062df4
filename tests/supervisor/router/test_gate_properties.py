"""A device in turns under whatever order of events: real gate, pages and workers' turns, on a clock of the test's."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest

from bedsit.ipc.snapshot import DeviceView
from tests_support.gatesim import HARD_MS, MS, TURN_MS, Box, Liar, Slot

CORE = DeviceView("core", 1, TURN_MS, HARD_MS)
OTHER = DeviceView("other", 1, TURN_MS, HARD_MS)
BOX = DeviceView("", 2, 0.0, HARD_MS, strict=False)
NAMES = ("acme", "beta", "gamma")
LONGEST_NS = 40 * MS
CLASSES = ("interactive", "interactive", "realtime", "batch")


def check(box: Box) -> None:
    """What holds at any time."""
    for gate in box.gates.values():
        known = {*gate._running, *gate._overran}
        executing = box.list_executing(gate)
        if gate.device.turn_ms and len(executing) > gate.device.parallel:
            assert gate._woken <= {batch.tenant.view.name for batch in executing}, "two compute, and somebody waits"
        now_ns = box.clock()
        wall_ns, idle_ns, gaps_ns = gate.measure(now_ns)
        assert 0 <= gaps_ns <= idle_ns <= wall_ns
        flows = gate._queue.statistics()
        charged = dict.fromkeys(flows, 0)
        for batch in [*itertools.chain(*gate._parked.values()), *known]:
            if batch.charged and batch.tenant.gate is gate:
                charged[batch.tenant.view.name] += 1
        assert {name: flow.running for name, flow in flows.items()} == charged
        assert {name for name, flow in flows.items() if flow.waiting} == gate._woken


def act(box: Box, rng: Random) -> None:
    """Something from outside."""
    tenant = box.tenants[rng.choice(NAMES)]
    what = rng.random()
    if what < 0.70:
        for _ in range(rng.choice((1, 1, 1, 3))):
            box.ask(tenant, rng.choice((MS // 10, MS, 5 * MS, 30 * MS)), rng.choice((0, MS // 10, MS)))
    elif what < 0.80:
        box.clock.now_ns += rng.choice((MS, 20 * MS, 60 * MS))
    elif what < 0.86 and tenant.slots:
        box.lose(rng.choice(tenant.slots))
    elif what < 0.90:
        replace(box, [slot for slot in box.slots if slot.lost])
    elif what < 0.94:
        box.move(tenant, rng.choice(("core", "core", "core", "other", "", "none")))
    elif what < 0.96:
        box.reopen(rng.choice(list(box.gates)))
    elif what < 0.98:
        box.restart()


def replace(box: Box, slots: Iterable[Slot]) -> None:
    """The daemon ends them, and gives their tenants others."""
    for slot in slots:
        box.bury(slot)
        box.add_slot(slot.tenant)
    box.pump_all()


@pytest.mark.parametrize("lies", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_everybody_is_served(tmp_path: Path, seed: int, *, lies: bool) -> None:
    """Nobody waits for ever, two never compute while a third waits, and counters add up; whatever a worker says."""
    rng = Random(seed)
    box = Box(tmp_path, [CORE, OTHER, BOX], seed)
    for name in NAMES:
        box.add(name, "core", rng.choice((1, 1, 2)), service_class=rng.choice(CLASSES), weight=rng.choice((1, 3, 100)))
    if lies:
        box.add_slot(box.tenants["acme"], Liar)
    for _ in range(300):
        if rng.random() < 0.2:
            act(box, rng)
        else:
            box.step(rng.choice((1, 1, 5, 30)))
        check(box)
    replace(box, [slot for slot in box.slots if slot.lost or isinstance(slot.worker, Liar)])
    box.settle_down()
    check(box)
    box.close()


def play(box: Box, rng: Random, until_ns: int) -> None:
    """Everybody has work all the time, of its own kind."""
    kinds = {name: (rng.choice((MS, 5 * MS, 40 * MS)), rng.choice((0, MS))) for name in box.tenants}
    while box.clock() < until_ns:
        for tenant in box.tenants.values():
            while len(tenant.queue) < 3:
                cost_ns, step_ns = kinds[tenant.view.name]
                box.ask(tenant, rng.randint(1, cost_ns), step_ns)
        assert box.step(3, promptly=True)


@pytest.mark.parametrize("seed", range(10))
def test_turns_and_idle_time_are_all_the_time(tmp_path: Path, seed: int) -> None:
    """To the nanosecond, at any time, while nothing overruns: each moment is one tenant's or nobody's."""
    rng = Random(seed)
    box = Box(tmp_path, [CORE], seed)
    for name in NAMES:
        box.add(name, "core")
    gate = box.gates["core"]
    for _ in range(1000):
        if rng.random() < 0.05:
            box.ask(box.tenants[rng.choice(NAMES)], rng.randint(1, 20 * MS), rng.choice((0, MS)))
        elif not box.step():
            box.clock.now_ns += rng.randint(1, 5 * MS)
        wall_ns, idle_ns, _ = gate.measure(box.clock())
        under_way = sum(took_ns for _, took_ns in gate.list_under_way(box.clock()))
        turns_ns = under_way + sum(tenant.line.turns_ns for tenant in box.tenants.values())
        assert turns_ns + idle_ns == wall_ns
    assert box.overruns == 0
    box.close()


@pytest.mark.parametrize("seed", range(10))
def test_who_always_waits_gets_its_weight(tmp_path: Path, seed: int) -> None:
    """Over any time: the difference by weight is a few batches or turns of both, however long it goes on."""
    rng = Random(seed)
    box = Box(tmp_path, [CORE], seed)
    for name in NAMES:
        box.add(name, "core", weight=rng.choice((1, 2, 5)))
    play(box, rng, box.clock() + 200 * MS)  # until costs are known
    before = {name: tenant.line.turns_ns for name, tenant in box.tenants.items()}
    for _ in range(5):
        play(box, rng, box.clock() + 1000 * MS)
        parts = [(tenant.line.turns_ns - before[name]) / tenant.view.weight for name, tenant in box.tenants.items()]
        weights = [tenant.view.weight for tenant in box.tenants.values()]
        for (one, its), (other, others) in itertools.combinations(zip(parts, weights, strict=True), 2):
            assert abs(one - other) <= 3 * LONGEST_NS * (1 / its + 1 / others)
    box.close()
