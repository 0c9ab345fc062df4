"""The house, one stimulus at a time."""

import pytest

from bedsit.ipc.errors import error
from bedsit.supervisor import instructions as do
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.births import Birth
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.lifecycle import HEALTHY_AFTER_S, LOST_GRACE_S, House
from bedsit.supervisor.stimuli import Timer
from bedsit.supervisor.tenancy import Limits, Tenant, backoff_s
from bedsit.supervisor.transitions import InvalidTransition
from tests_support.houses import KILLED, ONE, TWO, answer, crew, kinds, make_house, open_house, serving_house


def test_starts_a_zygote_when_none_was_found() -> None:
    """A fresh box: zygote first, slots once it is up."""
    house = House(Limits(2, 8, 1.0, 1.0, 1000), iter(["s1", "s2"]).__next__)

    assert kinds(house.handle(on.Begin())) == ["StartZygote", "Publish"]
    assert kinds(house.handle(on.ZygoteUp(1, 0))) == ["SetTimer", "BuildSlot", "BuildSlot"]


def test_does_nothing_before_recovery_is_over() -> None:
    """What is adopted is known before anything is built or published."""
    house = make_house()

    assert kinds(house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))) == []
    assert kinds(house.handle(on.SlotAdopted("s9", "serving", "a", ONE, degraded=False, generation=1))) == []
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
    assert "AssignSlot" in kinds(house.handle(on.SlotBuilt("s1", 1)))


def test_a_dead_slot_is_replaced_at_once_and_stays_known() -> None:
    """The first death costs no rest; the router hears of the dead slot until nothing runs in it."""
    house = serving_house()
    out = house.handle(on.SlotDied("s1", KILLED))

    assert kinds(out) == [
        *["StopTimer"] * 4, "DestroySlot", "StopTimer", "CountRestart", "SetTimer",
        "SetTimer", "AssignSlot", "BuildSlot", "Publish",
    ]  # fmt: skip
    assert (house.slots["s1"].state, crew(house)) == ("dying", ["s2"])
    assert kinds(house.handle(on.SlotGone("s1"))) == ["Publish"]
    assert "s1" not in house.slots


def test_further_deaths_rest_longer_until_the_tenant_is_healthy() -> None:
    """Back-off per tenant: none, 0.5 s, 1 s; forgiven after ten seconds of service."""
    house = serving_house()
    house.handle(on.SlotDied("s1", KILLED))
    out = house.handle(on.SlotDied("s2", KILLED))

    assert do.SetTimer(Timer("restart", "a"), 0.5) in out
    assert house.tenant_state("a") == "failed"

    house.handle(on.SlotBuilt("s3", 1))
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

    assert (crew(house), house.tenants["a"].models) == (["s1"], ONE)
    assert house.tenant_state("a") == "running"


def test_the_old_slot_may_die_during_a_roll() -> None:
    """The committed set is restarted beside the roll, which goes on."""
    house = serving_house()
    house.handle(on.RollAsked("op", "a", TWO, 60.0))
    house.handle(on.SlotBuilt("s3", 1))
    house.handle(on.SlotDied("s1", KILLED))

    assert (house.slots["s3"].state, crew(house)) == ("loading", ["s3"])

    house.handle(on.ModelsLoaded("s2"))
    house.handle(on.RollCommitted("op"))

    assert (house.slots["s3"].state, crew(house)) == ("dying", ["s2"])


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

    assert crew(house) == ["s2"]


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

    assert "StartZygote" in kinds(house.handle(on.ZygoteDown(1, "gone")))

    out = house.handle(on.ZygoteDown(2, "did not start"))

    assert do.SetTimer(Timer("zygote"), 0.5) in out
    assert kinds(house.handle(on.TimerFired(Timer("zygote")))) == ["StartZygote"]


def rotating_house() -> House:
    """Two blank slots of generation 1, s1 and s2, and a third fork, s3, that was one too many: generation 2 starts."""
    house = make_house(pool=2, forks=3)
    house.handle(on.Begin())
    house.handle(on.SlotBuilt("s1", 1))
    house.handle(on.SlotBuilt("s2", 1))
    house.handle(on.SlotDied("s2", KILLED))
    house.handle(on.SlotGone("s2"))
    assert kinds(house.handle(on.TimerFired(Timer("pool")))) == ["BuildSlot", "StartZygote"]
    house.handle(on.SlotBuilt("s3", 1))
    return house


def blank(house: House) -> list[str]:
    """The blank slots."""
    return [slot.id for slot in house.slots.values() if slot.state == "blank"]


def test_a_zygote_that_forked_enough_is_replaced_with_its_blank_slots() -> None:
    """One after the other, and the pool never has less than it should; the slots in use stay."""
    house = rotating_house()
    out = house.handle(on.ZygoteUp(2, 0))

    assert kinds(out) == ["SetTimer", "RetireZygote", "BuildSlot"]
    assert [tell.text for tell in out if isinstance(tell, do.Tell)] == [
        "generation 2",
        "generation 1 forked 3 slots; generation 2 replaces it and its blank slots",
    ]

    assert (blank(house), kinds(house.handle(on.SlotBuilt("s4", 2)))[-2:]) == (
        ["s1", "s3"],
        ["DestroySlot", "BuildSlot"],
    )
    assert blank(house) == ["s3", "s4"]
    assert kinds(house.handle(on.SlotBuilt("s5", 2)))[-1:] == ["DestroySlot"]
    assert blank(house) == ["s4", "s5"]
    assert house.rotation.forks == 2


def test_a_generation_forks_on_until_the_next_one_is_up() -> None:
    """A rotation that fails is tried again with rests, and tenants get their slots meanwhile."""
    house = rotating_house()
    house.handle(on.ZygoteDown(2, "did not start"))
    out = house.handle(on.ZygoteDown(3, "did not start"))

    assert do.SetTimer(Timer("zygote"), 0.5) in out

    out = house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))

    assert kinds(out) == ["SetTimer", "AssignSlot", "BuildSlot", "Publish"]
    assert kinds(house.handle(on.SlotBuilt("s4", 1))) == []
    assert kinds(house.handle(on.TimerFired(Timer("zygote")))) == ["StartZygote"]


def test_a_generation_that_dies_while_it_is_replaced_leaves_its_blank_slots_to_that() -> None:
    """They share an address layout whether or not their zygote lives."""
    house = rotating_house()
    house.handle(on.ZygoteDown(1, "gone"))

    assert kinds(house.handle(on.ZygoteUp(2, 0))) == ["SetTimer", "BuildSlot"]
    assert "DestroySlot" in kinds(house.handle(on.SlotBuilt("s4", 2)))
    assert "DestroySlot" in kinds(house.handle(on.SlotBuilt("s5", 2)))
    assert blank(house) == ["s4", "s5"]


def test_a_generation_that_just_dies_leaves_its_blank_slots_in_the_pool() -> None:
    """They are as good as they were, and nobody asked for a rotation."""
    house = open_house()
    house.handle(on.ZygoteDown(1, "gone"))

    assert kinds(house.handle(on.ZygoteUp(2, 0))) == ["SetTimer"]
    assert blank(house) == ["s1"]


def test_a_full_box_replaces_blank_slots_too() -> None:
    """There is no room for the new one first: the old one goes, one at a time."""
    house = open_house(pool=2, most=2)
    house.handle(on.SlotBuilt("s2", 1))
    house.rotation.forks = house.rotation.forks_max
    out = house.handle(on.ZygoteUp(2, 0))

    assert [i for i in out if isinstance(i, do.DestroySlot)] == [do.DestroySlot("s1")]
    assert kinds(house.handle(on.SlotGone("s1"))) == ["BuildSlot"]
    assert "DestroySlot" in kinds(house.handle(on.SlotBuilt("s3", 2)))
    assert kinds(house.handle(on.SlotGone("s2"))) == ["BuildSlot"]
    assert kinds(house.handle(on.SlotBuilt("s4", 2))) == []
    assert blank(house) == ["s3", "s4"]


def test_zygotes_that_ended_during_recovery_are_followed_when_it_is_over() -> None:
    """Nobody sets a timer before that, so nobody may wait for one after it."""
    house = House(Limits(1, 8, 1.0, 1.0, 1000), lambda: "s1")
    for generation in (5, 3):
        house.handle(on.ZygoteUp(generation, 0))
        house.handle(on.ZygoteDown(generation, "gone"))

    assert "StartZygote" in kinds(house.handle(on.Begin()))


def test_a_generation_that_lived_long_has_earlier_failures_forgiven() -> None:
    """Though no slot was needed of it: a full pool is no reason for a long rest."""
    house = open_house()
    for generation in (1, 2, 3):
        house.handle(on.ZygoteDown(generation, "gone"))
    house.handle(on.TimerFired(Timer("zygote")))

    assert do.SetTimer(Timer("lasting"), HEALTHY_AFTER_S) in house.handle(on.ZygoteUp(4, 0))

    house.handle(on.TimerFired(Timer("lasting")))

    assert "StartZygote" in kinds(house.handle(on.ZygoteDown(4, "gone")))


@pytest.mark.parametrize(("strict", "says"), [(True, " that its tenant requires"), (False, "")])
def test_an_adopted_slot_that_lacks_a_wall_is_told(*, strict: bool, says: str) -> None:
    """It serves on, and the operator can know."""
    house = make_house()
    house.handle(on.TenantSet("a", running=True, strict=strict, models=ONE))
    out = house.handle(on.SlotAdopted("s9", "serving", "a", ONE, degraded=True, generation=1))

    assert [tell.text for tell in out if isinstance(tell, do.Tell)] == [f"serving, with walls missing{says}"]


def test_a_tenant_gets_a_slot_of_the_newest_generation() -> None:
    """While both are in the pool, nobody is given one that is about to be replaced."""
    house = rotating_house()
    house.handle(on.ZygoteUp(2, 0))
    house.handle(on.SlotBuilt("s4", 2))
    house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))

    assert crew(house) == ["s4"]


def test_a_rotation_goes_on_under_the_next_daemon() -> None:
    """Blank slots that an earlier daemon had not replaced yet are replaced now."""
    house = make_house()
    house.handle(on.ZygoteUp(2, 5))
    house.handle(on.SlotAdopted("old", "blank", None, (), degraded=False, generation=1))

    assert kinds(house.handle(on.Begin())) == ["BuildSlot", "Publish"]
    assert "DestroySlot" in kinds(house.handle(on.SlotBuilt("s1", 2)))
    assert blank(house) == ["s1"]


def test_missing_walls_fail_closed() -> None:
    """A degraded slot is ended while every tenant is strict."""
    house = make_house()
    house.handle(on.Begin())
    house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))
    out = house.handle(on.SlotBuilt("s1", 1, degraded=True))

    assert "DestroySlot" in kinds(out)
    assert "AssignSlot" not in kinds(out)


def test_a_best_effort_tenant_may_live_with_missing_walls() -> None:
    """The operator asked for it; a strict tenant beside it still waits."""
    house = make_house()
    house.handle(on.Begin())
    house.handle(on.TenantSet("strict", running=True, strict=True, models=ONE))
    house.handle(on.TenantSet("easy", running=True, strict=False, models=ONE))
    house.handle(on.SlotBuilt("s1", 1, degraded=True))

    assert house.slots["s1"].tenant == "easy"
    assert house.tenant_state("strict") == "starting"


@pytest.mark.parametrize("others", [True, False], ids=["strict", "best-effort"])
def test_a_strict_tenant_learns_which_walls_it_waits_for(*, others: bool) -> None:
    """Whether the degraded slot was refused or lies blank for others; a slot of another profile says nothing of it."""
    house = make_house()
    house.handle(on.Begin())
    house.handle(on.TenantSet("other", running=True, strict=others, models=()))
    house.handle(on.TenantSet("a", running=True, strict=True, models=(), profile="subprocess"))
    house.handle(on.RollAsked("op", "a", ONE, 10.0))
    (slot,) = [slot.id for slot in house.slots.values() if slot.birth.profile == "subprocess"]
    house.handle(on.SlotBuilt(slot, 1, degraded=True, lacks=("landlock",)))
    house.handle(on.SlotBuilt("s1", 1))
    failure = answer(house.handle(on.TimerFired(Timer("roll", "op"))))

    assert failure is not None
    assert failure.code == "pool.empty"
    assert "walls are missing (landlock)" in failure.message
    assert "bedsit doctor" in failure.hint


def test_a_tenant_learns_why_its_slots_are_refused() -> None:
    """What was said about the last one, until one is built."""
    house = make_house()
    house.handle(on.Begin())
    house.handle(on.SlotRefused("s1", "no memory"))
    tenant = Tenant("a")
    assert house.explain_wait(tenant) == ("; the last one was refused: no memory", "see: bedsit events")
    house.handle(on.TimerFired(Timer("pool", "")))
    house.handle(on.SlotBuilt("s2", 1))
    assert house.explain_wait(tenant) == ("", "see: bedsit events")


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


def test_adopts_who_fits_and_replaces_who_does_not() -> None:
    """A slot with other models than the registry's serves until one with these does; one that loads them is no use."""
    house = make_house()
    house.handle(on.TenantSet("a", running=True, strict=True, models=TWO))
    house.handle(on.SlotAdopted("old", "serving", "a", ONE, degraded=False, generation=1))
    house.handle(on.SlotAdopted("new", "loading", "a", TWO, degraded=False, generation=1))
    house.handle(on.SlotAdopted("none", "serving", "deleted", ONE, degraded=False, generation=1))
    house.handle(on.SlotAdopted("half", "loading", "a", ONE, degraded=False, generation=1))

    house.handle(on.Begin())

    assert {slot.id: slot.state for slot in house.slots.values() if slot.tenant} == {
        "old": "serving", "new": "loading", "none": "dying", "half": "dying",
    }  # fmt: skip
    assert crew(house) == ["old", "new"]

    house.handle(on.ModelsLoaded("new"))

    assert (house.slots["old"].state, crew(house)) == ("draining", ["new"])


def test_shuts_down_when_the_last_slot_is_gone() -> None:
    """Every slot ends, none is built, then the house is finished, once."""
    house = serving_house()
    out = house.handle(on.ShutDown())

    assert kinds(out).count("DestroySlot") == len(house.slots)
    assert "BuildSlot" not in kinds(out)

    names = list(house.slots)
    outs = [house.handle(on.SlotGone(slot)) for slot in names]

    assert [sum(isinstance(i, do.Finish) for i in out) for out in outs] == [0] * (len(names) - 1) + [1]


def subprocess_house(**sizes: int) -> House:
    """A house with one blank slot, s1, in which tenant a wants children."""
    house = open_house(**sizes)
    house.handle(on.TenantSet("a", running=True, strict=True, models=ONE, profile="subprocess"))
    return house


def built(house: House, slot: str) -> list[do.Instruction]:
    """The slot comes up."""
    return house.handle(on.SlotBuilt(slot, 1))


def test_another_profile_is_built_when_somebody_waits() -> None:
    """The blank slot of the pool is left alone; one with the profile is made for the tenant, and used once."""
    house = open_house()

    out = house.handle(on.TenantSet("a", running=True, strict=True, models=ONE, profile="subprocess"))

    assert [i for i in out if isinstance(i, do.BuildSlot)] == [do.BuildSlot("s2", Birth("subprocess"))]
    assert do.AssignSlot("s2", "a", ONE) in built(house, "s2")
    assert house.slots["s1"].state == "blank"


def test_a_slot_of_another_profile_that_nobody_needs_ends() -> None:
    """Its tenant stopped while it was built: it is no slot for the pool."""
    house = subprocess_house()
    house.handle(on.TenantSet("a", running=False, strict=True, models=ONE, profile="subprocess"))

    assert do.DestroySlot("s2") in built(house, "s2")


def test_a_full_box_gives_a_blank_slot_up() -> None:
    """Room for the one that is waited for comes from the pool."""
    house = open_house(pool=2, most=2)
    built(house, "s2")

    out = house.handle(on.TenantSet("a", running=True, strict=True, models=ONE, profile="subprocess"))
    assert [i for i in out if isinstance(i, do.DestroySlot)] == [do.DestroySlot("s1")]

    assert kinds(house.handle(on.SlotGone("s1"))) == ["BuildSlot"]
    assert house.slots["s3"].birth == Birth("subprocess")


def test_a_changed_profile_is_a_new_slot() -> None:
    """A slot keeps its profile for life: the old one serves until one of the new profile does."""
    house = serving_house()

    out = house.handle(on.TenantSet("a", running=True, strict=True, models=ONE, profile="subprocess"))

    assert house.slots["s1"].state == "serving"
    assert do.BuildSlot("s3", Birth("subprocess")) in out
    assert do.AssignSlot("s3", "a", ONE) in built(house, "s3")

    house.handle(on.ModelsLoaded("s3"))

    assert (house.slots["s1"].state, crew(house)) == ("draining", ["s3"])


def test_an_adopted_slot_of_another_profile_is_replaced() -> None:
    """The daemon ended between writing the wish down and carrying it out."""
    house = make_house()
    house.handle(on.TenantSet("a", running=True, strict=True, models=ONE, profile="standard"))

    house.handle(on.SlotAdopted("s9", "serving", "a", ONE, degraded=False, generation=1, birth=Birth("subprocess")))
    house.handle(on.Begin())
    house.handle(on.SlotBuilt("s1", 1))

    assert (house.slots["s9"].state, crew(house)) == ("serving", ["s9", "s1"])

    house.handle(on.ModelsLoaded("s1"))

    assert (house.slots["s9"].state, crew(house)) == ("draining", ["s1"])
