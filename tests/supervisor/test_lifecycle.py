"""The house, one stimulus at a time."""

import itertools

import pytest

from bedsit.ipc.errors import BedsitError, error
from bedsit.supervisor import instructions as do
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.lifecycle import HEALTHY_AFTER_S, LOST_GRACE_S, House
from bedsit.supervisor.stimuli import Timer
from bedsit.supervisor.tenancy import Limits, backoff_s
from bedsit.supervisor.transitions import InvalidTransition

KILLED = Cause("signal", "signal 9 (SIGKILL)")
ONE = ((1, 1),)
TWO = ((1, 1), (1, 2))


def make_house(*, pool: int = 1, most: int = 8) -> House:
    """A house that is open and whose zygote runs; its slots are s1, s2, ..."""
    numbers = itertools.count(1)
    house = House(Limits(pool, most, 120.0, 60.0), lambda: f"s{next(numbers)}")
    house.handle(on.ZygoteUp(1))
    return house


def open_house(*, pool: int = 1, most: int = 8) -> House:
    """A house with one blank slot, s1."""
    house = make_house(pool=pool, most=most)
    house.handle(on.Begin())
    house.handle(on.SlotBuilt("s1"))
    return house


def serving_house() -> House:
    """A house in which s1 serves tenant a with one model, and s2 is blank."""
    house = open_house()
    house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))
    house.handle(on.SlotBuilt("s2"))
    house.handle(on.ModelsLoaded("s1"))
    return house


def kinds(out: list[do.Instruction]) -> list[str]:
    """What the instructions are, without events."""
    return [type(instruction).__name__ for instruction in out if not isinstance(instruction, do.Tell)]


def answer(out: list[do.Instruction]) -> BedsitError | None:
    """The answer among the instructions."""
    (found,) = [instruction for instruction in out if isinstance(instruction, do.Answer)]
    return found.error


def test_starts_a_zygote_when_none_was_found() -> None:
    """A fresh box: zygote first, slots once it is up."""
    house = House(Limits(2, 8, 1.0, 1.0), iter(["s1", "s2"]).__next__)

    assert kinds(house.handle(on.Begin())) == ["StartZygote", "Publish"]
    assert kinds(house.handle(on.ZygoteUp(1))) == ["BuildSlot", "BuildSlot"]


def test_does_nothing_before_recovery_is_over() -> None:
    """What is adopted is known before anything is built or published."""
    house = make_house()

    assert kinds(house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))) == []
    assert kinds(house.handle(on.SlotAdopted("s9", "serving", "a", ONE, degraded=False))) == []
    assert kinds(house.handle(on.Begin())) == ["BuildSlot", "Publish"]
    assert house.tenant_state("a") == "running"


def test_a_tenant_without_models_needs_no_slot() -> None:
    """An empty tenant leaves the pool alone."""
    house = open_house()

    assert kinds(house.handle(on.TenantSet("a", running=True, strict=True, models=()))) == ["Publish"]
    assert house.tenant_state("a") == "empty"


def test_a_tenant_takes_from_the_pool_and_the_pool_is_refilled() -> None:
    """A take and the next build are one step."""
    out = open_house().handle(on.TenantSet("a", running=True, strict=True, models=ONE))

    assert kinds(out) == ["SetTimer", "AssignSlot", "BuildSlot", "Publish"]


def test_a_tenant_waits_for_a_slot() -> None:
    """With an empty pool the tenant gets the next slot that is built."""
    house = make_house(pool=0)
    house.handle(on.Begin())

    assert kinds(house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))) == ["BuildSlot", "Publish"]
    assert "AssignSlot" in kinds(house.handle(on.SlotBuilt("s1")))


def test_a_dead_slot_is_replaced_at_once_and_stays_known() -> None:
    """The first death costs no rest; the router hears of the dead slot until nothing runs in it."""
    house = serving_house()
    out = house.handle(on.SlotDied("s1", KILLED))

    assert kinds(out) == [
        *["StopTimer"] * 3, "DestroySlot", "StopTimer", "CountRestart",
        "SetTimer", "AssignSlot", "BuildSlot", "Publish",
    ]  # fmt: skip
    assert (house.slots["s1"].state, house.tenants["a"].slot) == ("dying", "s2")
    assert kinds(house.handle(on.SlotGone("s1"))) == ["Publish"]
    assert "s1" not in house.slots


def test_further_deaths_rest_longer_until_the_tenant_is_healthy() -> None:
    """Back-off per tenant: none, 0.5 s, 1 s; forgiven after a minute of service."""
    house = serving_house()
    house.handle(on.SlotDied("s1", KILLED))
    out = house.handle(on.SlotDied("s2", KILLED))

    assert do.SetTimer(Timer("restart", "a"), 0.5) in out
    assert house.tenant_state("a") == "failed"

    house.handle(on.SlotBuilt("s3"))
    house.handle(on.TimerFired(Timer("restart", "a")))

    assert do.SetTimer(Timer("healthy", "a"), HEALTHY_AFTER_S) in house.handle(on.ModelsLoaded("s3"))

    house.handle(on.TimerFired(Timer("healthy", "a")))

    assert house.tenants["a"].failures == 0


def test_backoff_doubles_up_to_half_a_minute() -> None:
    """The delays are the documented ones, for any number of failures."""
    assert [backoff_s(n) for n in (0, 1, 2, 3, 4, 8, 9, 10_000)] == [0.0, 0.0, 0.5, 1.0, 2.0, 30.0, 30.0, 30.0]


def test_a_roll_commits_then_switches_then_answers() -> None:
    """The caller is answered after the router was told; the old slot drains."""
    house = serving_house()

    assert "AssignSlot" in kinds(house.handle(on.RollAsked("op", "a", TWO, 60.0)))
    assert kinds(house.handle(on.ModelsLoaded("s2"))) == ["Commit"]

    out = house.handle(on.RollCommitted("op"))

    assert kinds(out)[-2:] == ["Publish", "Answer"]
    assert answer(out) is None
    assert (house.slots["s1"].state, house.slots["s2"].state) == ("draining", "serving")
    assert house.tenants["a"].models == TWO
    assert "DestroySlot" in kinds(house.handle(on.SlotDrained("s1")))


@pytest.mark.parametrize(
    ("news", "code"),
    [
        (on.LoadFailed("s2", error("model.load_failed", "no")), "model.load_failed"),
        (on.SlotDied("s2", Cause("oom", "out of memory")), "worker.crashed"),
        (on.TimerFired(Timer("roll", "op")), "deadline.exceeded"),
        (on.RollRefused("op", error("disk.full", "no room")), "disk.full"),
        (on.TenantSet("a", running=False, strict=True, models=ONE), "tenant.stopped"),
        (on.TenantGone("a"), "tenant.not_found"),
        (on.ShutDown(), "daemon.unavailable"),
    ],
)
def test_a_roll_that_fails_ends_its_slot_and_is_answered(news: on.Stimulus, code: str) -> None:
    """Whatever ends a roll, its caller hears why, once, and its slot goes."""
    house = serving_house()
    house.handle(on.RollAsked("op", "a", TWO, 60.0))
    why = answer(house.handle(news))

    assert why is not None
    assert why.code == code
    assert house.slots["s2"].state == "dying"


def test_a_failed_roll_leaves_the_old_slot_serving() -> None:
    """Nothing has changed for the tenant's clients."""
    house = serving_house()
    house.handle(on.RollAsked("op", "a", TWO, 60.0))
    house.handle(on.LoadFailed("s2", error("model.load_failed", "no")))

    assert (house.tenants["a"].slot, house.tenants["a"].models) == ("s1", ONE)
    assert house.tenant_state("a") == "running"


def test_the_old_slot_may_die_during_a_roll() -> None:
    """The committed set is restarted beside the roll, which goes on."""
    house = serving_house()
    house.handle(on.RollAsked("op", "a", TWO, 60.0))
    house.handle(on.SlotBuilt("s3"))
    house.handle(on.SlotDied("s1", KILLED))

    assert (house.slots["s3"].state, house.tenants["a"].slot) == ("loading", "s3")

    house.handle(on.ModelsLoaded("s2"))
    house.handle(on.RollCommitted("op"))

    assert (house.slots["s3"].state, house.tenants["a"].slot) == ("dying", "s2")


def test_rolls_are_refused_when_they_cannot_succeed() -> None:
    """Unknown, stopped and busy tenants, and a full box, are told at once."""
    house = serving_house()
    house.handle(on.RollAsked("op", "a", TWO, 60.0))
    house.handle(on.TenantSet("b", running=False, strict=True, models=()))
    codes = [
        answer(house.handle(on.RollAsked(f"op{tenant}", tenant, ONE, 60.0))).code  # type: ignore[union-attr]
        for tenant in ("a", "b", "c")
    ]

    assert codes == ["tenant.busy", "tenant.stopped", "tenant.not_found"]


def test_a_full_box_refuses_a_roll() -> None:
    """No slot is there and none can be built."""
    house = open_house(pool=0, most=1)
    house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))
    house.handle(on.TenantSet("b", running=True, strict=True, models=()))

    why = answer(house.handle(on.RollAsked("op", "b", ONE, 60.0)))

    assert why is not None
    assert why.code == "pool.empty"


def test_the_last_model_goes_without_a_new_slot() -> None:
    """A roll to no models needs nothing loaded."""
    house = serving_house()

    assert kinds(house.handle(on.RollAsked("op", "a", (), 60.0))) == ["Commit"]

    house.handle(on.RollCommitted("op"))

    assert (house.slots["s1"].state, house.tenant_state("a")) == ("draining", "empty")


def test_a_stopped_tenant_drains_and_a_started_one_returns() -> None:
    """Stop lets requests finish; start takes a fresh slot."""
    house = serving_house()
    house.handle(on.TenantSet("a", running=False, strict=True, models=ONE))

    assert (house.slots["s1"].state, house.tenant_state("a")) == ("draining", "stopped")

    house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))

    assert house.tenants["a"].slot == "s2"


def test_a_slot_that_does_not_drain_in_time_is_ended() -> None:
    """The drain has a deadline."""
    house = serving_house()
    house.handle(on.TenantSet("a", running=False, strict=True, models=ONE))

    assert "DestroySlot" in kinds(house.handle(on.TimerFired(Timer("drain", "s1"))))


def test_a_lost_slot_gets_a_moment_to_be_seen_dead() -> None:
    """The router's word alone does not end a slot at once; a worker that runs on without its socket is ended."""
    house = serving_house()

    assert do.SetTimer(Timer("lost", "s1"), LOST_GRACE_S) in house.handle(on.SlotLost("s1"))

    house.handle(on.TimerFired(Timer("lost", "s1")))

    assert house.tenants["a"].cause == Cause("killed", "closed its connection to the router and went on running")


def test_a_model_set_that_does_not_start_in_time_counts_as_a_death() -> None:
    """The load deadline holds for restarts too."""
    house = open_house()
    house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))
    house.handle(on.TimerFired(Timer("load", "s1")))

    assert house.tenants["a"].cause == Cause("timeout", "not loaded within 120 s")


def test_a_slot_that_cannot_be_built_rests_the_pool() -> None:
    """A box that refuses slots is asked again later, not in a loop."""
    house = make_house()
    house.handle(on.Begin())
    out = house.handle(on.SlotRefused("s1", "no user namespaces"))

    assert do.SetTimer(Timer("pool"), 0.5) in out
    assert "BuildSlot" not in kinds(out)

    house.handle(on.SlotGone("s1"))

    assert "BuildSlot" in kinds(house.handle(on.TimerFired(Timer("pool"))))


def test_a_dead_zygote_is_followed_with_back_off() -> None:
    """At once the first time, later with rests."""
    house = open_house()

    assert "StartZygote" in kinds(house.handle(on.ZygoteDown("gone")))

    out = house.handle(on.ZygoteDown("gone again"))

    assert do.SetTimer(Timer("zygote"), 0.5) in out
    assert kinds(house.handle(on.TimerFired(Timer("zygote")))) == ["StartZygote"]


def test_missing_walls_fail_closed() -> None:
    """A degraded slot is ended while every tenant is strict."""
    house = make_house()
    house.handle(on.Begin())
    house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))
    out = house.handle(on.SlotBuilt("s1", degraded=True))

    assert "DestroySlot" in kinds(out)
    assert "AssignSlot" not in kinds(out)


def test_a_best_effort_tenant_may_live_with_missing_walls() -> None:
    """The operator asked for it; a strict tenant beside it still waits."""
    house = make_house()
    house.handle(on.Begin())
    house.handle(on.TenantSet("strict", running=True, strict=True, models=ONE))
    house.handle(on.TenantSet("easy", running=True, strict=False, models=ONE))
    house.handle(on.SlotBuilt("s1", degraded=True))

    assert house.slots["s1"].tenant == "easy"
    assert house.tenant_state("strict") == "starting"


def test_a_worker_that_lies_changes_nothing() -> None:
    """Reports at the wrong time are remembered and ignored."""
    house = serving_house()

    for news in (on.ModelsLoaded("s2"), on.LoadFailed("s1", error("model.load_failed", "x")), on.SlotDrained("s1")):
        assert kinds(house.handle(news)) == []
    assert "serving --load_failed--> ignored" in house.story.of("s1")


def test_late_news_of_a_gone_slot_is_ignored() -> None:
    """A slot that nobody knows any more cannot come back."""
    assert open_house().handle(on.SlotDied("s99", KILLED)) == []


def test_what_cannot_be_is_an_error_with_a_story() -> None:
    """A shell that reports nonsense is a bug."""
    house = serving_house()
    with pytest.raises(InvalidTransition, match="blank --taken--> loading"):
        house.handle(on.SlotGone("s1"))


def test_adopts_who_fits_and_drains_who_does_not() -> None:
    """After recovery, a slot with other models than the registry's finishes and goes."""
    house = make_house()
    house.handle(on.TenantSet("a", running=True, strict=True, models=TWO))
    house.handle(on.SlotAdopted("old", "serving", "a", ONE, degraded=False))
    house.handle(on.SlotAdopted("new", "loading", "a", TWO, degraded=False))
    house.handle(on.SlotAdopted("none", "serving", "deleted", ONE, degraded=False))
    house.handle(on.SlotAdopted("half", "loading", "a", ONE, degraded=False))

    assert {slot.id: slot.state for slot in house.slots.values()} == {
        "old": "draining", "new": "loading", "none": "dying", "half": "dying",
    }  # fmt: skip
    assert house.tenants["a"].slot == "new"


def test_shuts_down_when_the_last_slot_is_gone() -> None:
    """Every slot ends, none is built, then the house is finished, once."""
    house = serving_house()
    out = house.handle(on.ShutDown())

    assert kinds(out).count("DestroySlot") == len(house.slots)
    assert "BuildSlot" not in kinds(out)

    names = list(house.slots)
    outs = [house.handle(on.SlotGone(slot)) for slot in names]

    assert [sum(isinstance(i, do.Finish) for i in out) for out in outs] == [0] * (len(names) - 1) + [1]
