"""What follows from what tenants use: who is idle, who needs more slots or fewer, who can go, is memory short."""

from pathlib import Path

import pytest

from bedsit.supervisor import stimuli as on
from bedsit.supervisor.control import Activity
from bedsit.supervisor.meter import Meter, read_memory_left
from bedsit.supervisor.policy import Policy
from bedsit.supervisor.tenancy import Slot, Tenant

GIB = 1 << 30
WIDE = Policy(max_slots=8)


def tenant(name: str = "a", policy: Policy = WIDE, slots: int = 1, *, settled: bool = True) -> Tenant:
    """A tenant with that many slots that serve."""
    made = Tenant(name, models=((1, 1),), policy=policy, target=slots)
    for number in range(slots):
        slot = Slot(f"{name}{number}", "serving", name, made.models, settled=settled)
        made.crew[slot.id] = slot
    return made


class Clock:
    """One tenant under a meter: each look is a second later."""

    def __init__(self, subject: Tenant, meter: Meter | None = None) -> None:
        self.tenant = subject
        self.meter = meter or Meter()
        self.now_s = 1000.0
        self.busy_us = 5_000_000  # the router counts since long

    def look(
        self, busy: float = 0.0, waiting: float = 0.0, seconds: float = 1.0, *, crowded: bool = True
    ) -> list[on.Stimulus]:
        """What follows when *busy* seconds were worked and *waiting* seconds are still to be; with neither it slept."""
        self.now_s += seconds
        self.busy_us += int(busy * 1e6)
        active = (
            {self.tenant.name: Activity(self.busy_us, int(waiting * 1e6), crowded=crowded)} if busy or waiting else {}
        )
        return self.meter.hear(self.now_s, {self.tenant.name: self.tenant}, active)


def test_a_tenant_is_idle_when_nobody_asked_for_as_long_as_its_operator_said() -> None:
    """Counted from the last look that saw something; said again until it is parked."""
    clock = Clock(tenant(policy=Policy(min_slots=0, idle_s=3.0)))
    assert [clock.look(busy=0.1) for _ in range(5)] == [[]] * 5
    assert [clock.look() for _ in range(4)] == [[], [], [on.TenantIdle("a")], [on.TenantIdle("a")]]

    clock.tenant.target = 0

    assert clock.look() == []


def test_a_request_keeps_a_tenant_awake() -> None:
    """Whether it was answered in between or still waits."""
    clock = Clock(tenant(policy=Policy(min_slots=0, idle_s=2.0)))
    for _ in range(3):
        assert clock.look() == []
        assert clock.look(waiting=0.001) == []


@pytest.mark.parametrize(
    "policy", [Policy(min_slots=0), Policy(min_slots=1, idle_s=1.0)], ids=["never", "none too many"]
)
def test_nobody_is_idle_whose_operator_did_not_say_so(policy: Policy) -> None:
    """Without idle_s a slot stays; with no more than are kept there is nothing to say."""
    clock = Clock(tenant(policy=policy))

    assert not any(clock.look(seconds=3600.0) for _ in range(5))


def test_who_has_more_than_are_kept_is_idle_too() -> None:
    """All but the ones that are kept may go."""
    clock = Clock(tenant(policy=Policy(min_slots=1, max_slots=3, idle_s=2.0), slots=3))
    clock.look(busy=0.1)
    clock.look()

    assert clock.look() == [on.TenantIdle("a")]


def test_a_tenant_that_comes_back_is_not_idle_since_before() -> None:
    """While it had no slot nobody watched it."""
    clock = Clock(tenant(policy=Policy(min_slots=0, idle_s=5.0)))
    clock.look()
    crew, clock.tenant.crew = clock.tenant.crew, {}
    clock.look(seconds=100.0)
    clock.tenant.crew = crew

    assert [clock.look() for _ in range(5)] == [[]] * 5
    assert clock.look() == [on.TenantIdle("a")]


def test_a_busy_tenant_needs_another_slot_at_once() -> None:
    """For each slot four fifths of the time, and for what waits as many as are done with it in half a second."""
    clock = Clock(tenant())
    assert clock.look(busy=0.5) == [], "the first count is compared with nothing"
    assert clock.look(busy=0.79) == []
    assert clock.look(busy=0.81) == [on.TenantLoad("a", 2)]
    assert clock.look(busy=1.0, waiting=1.5) == [on.TenantLoad("a", 5)]


def test_what_waits_is_enough() -> None:
    """A tenant whose first request is not answered yet has not worked at all."""
    clock = Clock(tenant())
    clock.look()

    assert clock.look(waiting=1.0) == [on.TenantLoad("a", 3)]


def test_a_call_is_counted_when_it_ends_and_counts_for_no_more_than_its_slot() -> None:
    """One slot that answered a call of a minute just now was busy, and one more is all that this says."""
    clock = Clock(tenant())
    clock.look(busy=0.1)

    assert clock.look(busy=60.0) == [on.TenantLoad("a", 2)]


def test_a_caller_that_waits_for_each_answer_needs_one_slot() -> None:
    """However busy: each of its requests found a slot that was free. With a second caller they meet."""
    clock = Clock(tenant())
    clock.look(busy=0.1)
    assert clock.look(busy=0.99, crowded=False) == []
    assert clock.look(busy=0.99) == [on.TenantLoad("a", 2)]


def test_a_look_that_comes_late_counts_for_its_time() -> None:
    """Three seconds of work in ten are no reason for more."""
    clock = Clock(tenant(slots=4))
    clock.look(busy=0.1)

    assert clock.look(busy=3.0, seconds=10.0) == []


def test_a_router_that_begins_anew_says_nothing_about_the_past() -> None:
    """Its counters are smaller than they were."""
    clock = Clock(tenant())
    clock.look(busy=0.5)
    clock.busy_us = 0

    assert clock.look(busy=0.5) == []
    assert clock.look(busy=0.9) == [on.TenantLoad("a", 2)]


def test_a_slot_goes_when_it_was_not_needed_for_half_a_minute() -> None:
    """Then the most that were needed in that time stay; a look before that, all do."""
    clock = Clock(tenant(slots=4))
    clock.look(busy=0.1)
    assert clock.look(busy=2.9) == []  # four of them, for the last time
    quiet = [clock.look(busy=1.0) for _ in range(30)]

    assert quiet == [[]] * 30
    assert clock.look(busy=1.0) == [on.TenantLoad("a", 2)]


def test_who_came_a_moment_ago_stays() -> None:
    """Nobody knows yet whether it is needed: half a minute has to be seen."""
    clock = Clock(tenant(slots=3))
    said = [clock.look(busy=0.1) for _ in range(31)]

    assert said[:29] == [[]] * 29
    assert said[29:] == [[on.TenantLoad("a", 1)]] * 2


def test_load_that_comes_and_goes_moves_nothing() -> None:
    """Every ten seconds one is needed that is not in between: it stays."""
    clock = Clock(tenant(slots=2))
    said = [clock.look(busy=1.2 if second % 10 == 0 else 0.2) for second in range(120)]

    assert said == [[]] * 120


def test_a_tenant_that_sleeps_needs_one() -> None:
    """To park it is another decision."""
    clock = Clock(tenant(slots=2))

    assert [clock.look() for _ in range(30)][-1] == [on.TenantLoad("a", 1)]


@pytest.mark.parametrize("policy", [Policy(), Policy(min_slots=0), Policy(min_slots=3, max_slots=3)])
def test_nobody_counts_for_a_tenant_that_has_no_choice(policy: Policy) -> None:
    """As many at least as at most."""
    clock = Clock(tenant(policy=policy, slots=policy.max_slots))
    clock.look(busy=0.1)

    assert clock.look(busy=9.0, waiting=9.0) == []


def test_who_is_gone_is_forgotten() -> None:
    """A tenant of the same name that comes later begins anew."""
    clock = Clock(tenant(policy=Policy(min_slots=0, idle_s=5.0)))
    clock.look(busy=0.1)
    clock.meter.hear(clock.now_s + 1, {}, {})

    assert clock.look(seconds=100.0) == []
    assert clock.meter.hear(clock.now_s, {}, {"unknown": Activity(1, 1, crowded=True)}) == []


# -- who can go -------------------------------------------------------------------------------------------------------


def rank(tenants: list[Tenant], idle_s: dict[str, float], load_s: dict[str, float], gib: dict[str, int]) -> list[str]:
    """Who may be parked, by name, when each was asked last so long ago."""
    meter = Meter()
    named = {each.name: each for each in tenants}
    for name in sorted(idle_s, key=lambda name: -idle_s[name]):
        meter.hear(1000.0 - idle_s[name], named, {name: Activity(1, 0, crowded=False)})
    return list(meter.rank(1000.0, named, load_s, lambda slot: gib.get(slot[0], 1) * GIB))


LAZY = Policy(min_slots=0)


def test_who_was_asked_last_the_longest_ago_goes_first() -> None:
    """All else being equal."""
    tenants = [tenant(name, LAZY) for name in "abc"]

    assert rank(tenants, {"a": 10.0, "b": 30.0, "c": 20.0}, {}, {}) == ["b", "c", "a"]


def test_who_is_quick_to_bring_back_goes_first() -> None:
    """A second is assumed where nobody has measured."""
    tenants = [tenant(name, LAZY) for name in "abc"]

    assert rank(tenants, dict.fromkeys("abc", 10.0), {"a": 3.0, "c": 0.1}, {}) == ["c", "b", "a"]


def test_who_is_large_goes_first() -> None:
    """Of a crew all slots count; a slot whose size nobody knows counts for next to nothing."""
    tenants = [tenant("a", LAZY), tenant("b", LAZY), tenant("c", Policy(min_slots=0, max_slots=3), slots=3)]

    assert rank(tenants, dict.fromkeys("abc", 10.0), {}, {"a": 2, "b": 0, "c": 1}) == ["c", "a", "b"]


def test_who_works_or_is_kept_does_not_go() -> None:
    """Asked within the last second, kept by its policy, just come, or without a slot."""
    kept, fresh, gone = tenant("kept", Policy()), tenant("fresh", LAZY, settled=False), tenant("gone", LAZY, slots=0)
    works, idle = tenant("works", LAZY), tenant("idle", LAZY)
    ages = {"kept": 99.0, "fresh": 99.0, "gone": 99.0, "works": 0.9, "idle": 1.0}

    assert rank([kept, fresh, gone, works, idle], ages, {}, {}) == ["idle"]


def test_nobody_goes_of_whom_nothing_is_known() -> None:
    """Before the first look everybody might be working."""
    assert Meter().rank(1000.0, {"a": tenant("a", LAZY)}, {}, lambda _: GIB) == ()


# -- memory -----------------------------------------------------------------------------------------------------------


def fake_proc(folder: Path, available_kib: int, pressure: str | None = None) -> Path:
    """A proc folder of a box with 64 GiB."""
    memory = f"MemTotal:       {64 << 20} kB\nMemFree:             1 kB\nMemAvailable:   {available_kib} kB\n"
    (folder / "meminfo").write_text(memory + "SwapTotal:           0 kB\nHugePages_Total:       0\n")
    if pressure is not None:
        (folder / "pressure").mkdir(exist_ok=True)
        rest = "avg60=99.00 avg300=99.00 total=123456"
        text = f"some avg10={pressure} {rest}\nfull avg10=99.00 {rest}\n"
        (folder / "pressure/memory").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("available_gib", "reserve_gib", "left_gib"),
    [(3.0, 0, -0.2), (3.3, 0, 0.1), (9.9, 10, -0.1), (10.0, 10, 0.0), (0.5, 0.25, 0.25)],
)
def test_memory_is_left_above_the_reserve(
    tmp_path: Path, available_gib: float, reserve_gib: float, left_gib: float
) -> None:
    """A twentieth of the box where its operator did not say."""
    proc = fake_proc(tmp_path, int(available_gib * (1 << 20)))

    assert read_memory_left(int(reserve_gib * GIB), proc) / GIB == pytest.approx(left_gib, abs=1e-5)


@pytest.mark.parametrize(
    ("pressure", "is_over"), [("0.00", False), ("20.00", False), ("20.01", True), ("100.00", True)]
)
def test_no_memory_is_left_when_processes_wait_for_it(tmp_path: Path, pressure: str, *, is_over: bool) -> None:
    """A fifth of the last ten seconds, whatever the numbers say."""
    assert (read_memory_left(0, fake_proc(tmp_path, 32 << 20, pressure)) < 0) == is_over
    assert read_memory_left(0, fake_proc(tmp_path, 1 << 20, pressure)) < -GIB


def test_this_kernel_says_how_much_memory_is_left() -> None:
    """More than it has is always too little; one byte is not."""
    assert read_memory_left(1 << 62) < 0
    assert isinstance(read_memory_left(1), int)
