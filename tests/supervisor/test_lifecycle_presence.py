"""How a tenant's slots come and go: parked and woken, more and fewer, restarted, given up, in quarantine, replaced."""

from dataclasses import replace

import pytest

from bedsit.ipc.errors import error
from bedsit.supervisor import instructions as do
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.policy import Policy
from bedsit.supervisor.stimuli import Timer
from tests_support.houses import KILLED, ONE, TWO, answer, crew, kinds, live, make_house, states, told

ORDERLY = Cause("exit", "exit status 0")
LAZY = Policy(min_slots=0)
WIDE = Policy(max_slots=3)
PLACE = (1, 1)
GIB = 1 << 30


def wish(policy: Policy = LAZY, name: str = "a", **changes: object) -> on.TenantSet:
    """What an operator wants of a tenant."""
    usual = on.TenantSet(name, running=True, strict=True, models=ONE, policy=policy)
    return replace(usual, **changes)  # type: ignore[arg-type]


def staffed_house(policy: Policy = LAZY, slots: int = 1, *, pool: int = 1, most: int = 8) -> House:
    """A house in which tenant a has that many slots, all settled."""
    house = make_house(pool=pool, most=most)
    live(house, on.Begin())
    live(house, wish(policy))
    if slots > 1:
        live(house, on.TenantLoad("a", slots))
    settle(house)
    assert states(house) == ["serving"] * slots
    return house


def settle(house: House, tenant: str = "a") -> None:
    """All slots of a tenant have served for long enough to go."""
    for slot in crew(house, tenant):
        house.handle(on.TimerFired(Timer("settled", slot)))


def kill(house: House, cause: Cause = KILLED, **known: object) -> list[do.Instruction]:
    """The oldest slot of a dies, and a restart that rests for that comes at once."""
    (slot, *_) = crew(house)
    out = live(house, on.SlotDied(slot, cause, **known))  # type: ignore[arg-type]
    if house.tenants["a"].resting:
        out += live(house, on.TimerFired(Timer("restart", "a")))
    return out


# -- parking and waking -----------------------------------------------------------------------------------------------


def test_an_idle_tenant_is_parked() -> None:
    """It answers what it has, and has no slot afterwards."""
    house = staffed_house()
    out = live(house, on.TenantIdle("a"))

    assert told(out, "tenant.parked") == ["idle; 0 slots are kept"]
    assert (states(house), house.tenant_state("a")) == (["draining"], "parked")
    assert kinds(out)[-1] == "Publish"

    live(house, on.SlotDrained(next(iter(house.slots))))

    assert (states(house), crew(house), house.tenant_state("a")) == ([], [], "parked")


def test_a_parked_tenant_is_woken_by_a_request() -> None:
    """With a slot from the pool, at once; to hear of it twice changes nothing."""
    house = staffed_house()
    live(house, on.TenantIdle("a"))
    out = house.handle(on.TenantWanted("a"))
    (slot,) = crew(house)

    assert told(out, "tenant.woken") == ["somebody asks for it"]
    assert do.AssignSlot(slot, "a", ONE) in out
    assert house.tenant_state("a") == "starting"
    assert house.handle(on.TenantWanted("a")) == []

    house.handle(on.ModelsLoaded(slot))

    assert house.tenant_state("a") == "running"


def test_a_request_wakes_only_who_may_run() -> None:
    """The router may say what it likes: of a tenant that is stopped, empty, given up or unknown nothing comes."""
    house = staffed_house(Policy(restart="temporary", min_slots=0))
    kill(house)
    house.handle(wish(name="stopped", running=False))
    house.handle(wish(name="empty", models=()))

    for name in ("a", "stopped", "empty", "unknown"):
        assert house.handle(on.TenantWanted(name)) == []
    assert [slot.tenant for slot in house.slots.values()] == [None]


def test_who_has_just_come_is_not_sent_away() -> None:
    """Idle or not: a slot that has not served for a while stays, and so does one that still loads."""
    house = make_house()
    live(house, on.Begin())
    house.handle(wish())
    house.handle(on.TenantIdle("a"))
    assert states(house) == ["loading"]

    live(house, on.ModelsLoaded(crew(house)[0]))
    house.handle(on.TenantIdle("a"))
    assert states(house) == ["serving"]

    settle(house)
    house.handle(on.TenantIdle("a"))
    assert states(house) == ["draining"]


def test_settled_is_who_has_served_for_the_residence() -> None:
    """The timer is set when a slot begins to serve, and stopped when it ends."""
    house = make_house()
    live(house, on.Begin())
    timer = Timer("settled", "s1")

    assert do.SetTimer(timer, 10.0) in live(house, wish())
    assert do.StopTimer(timer) in live(house, on.SlotDied("s1", KILLED))


def test_an_adopted_slot_that_serves_is_settled() -> None:
    """Nobody knows since when it serves; the daemon's own start is no reason to keep it."""
    house = make_house()
    house.handle(wish())
    house.handle(on.SlotAdopted("s9", "serving", "a", ONE, degraded=False, generation=1))
    live(house, on.Begin())
    live(house, on.TenantIdle("a"))

    assert states(house) == ["draining"]


def test_a_parked_tenant_stays_parked_under_the_next_daemon() -> None:
    """One that is warm by its policy is started, and one with a slot keeps it."""
    house = make_house()
    for name, policy in (("parked", LAZY), ("here", LAZY), ("warm", Policy())):
        house.handle(wish(policy, name))
    house.handle(on.SlotAdopted("s9", "serving", "here", ONE, degraded=False, generation=1))
    live(house, on.Begin())

    assert [house.tenant_state(name) for name in ("parked", "here", "warm")] == ["parked", "running", "running"]
    assert crew(house, "here") == ["s9"]


def test_an_idle_tenant_keeps_what_its_policy_keeps() -> None:
    """Of three slots one; and one that has no more is not told of."""
    house = staffed_house(WIDE, 3)
    out = live(house, on.TenantIdle("a"))

    assert told(out, "tenant.parked") == ["idle; 1 slots are kept"]
    assert states(house) == ["serving", "draining", "draining"]
    assert live(house, on.TenantIdle("a")) == []


def test_nobody_is_parked_during_a_deployment() -> None:
    """Somebody waits for the new models to serve; not even those go that are too many."""
    for house in (staffed_house(), staffed_house(WIDE, 3)):
        house.handle(on.RollAsked("op", "a", TWO, 60.0))
        live(house, on.TenantIdle("a"))

        assert "draining" not in states(house)


def test_a_parked_tenant_takes_a_deployment() -> None:
    """It has one slot afterwards, which may be parked again."""
    house = staffed_house()
    live(house, on.TenantIdle("a"))
    assert answer(live(house, on.RollAsked("op", "a", TWO, 60.0))) is None
    assert (house.tenants["a"].models, len(crew(house)), house.tenant_state("a")) == (TWO, 1, "running")


def test_a_higher_minimum_wakes_a_parked_tenant() -> None:
    """The operator's word is enough."""
    house = staffed_house()
    live(house, on.TenantIdle("a"))
    live(house, wish(Policy(min_slots=2, max_slots=2)))

    assert len(crew(house)) == 2
    assert house.tenant_state("a") == "running"


# -- more and fewer ---------------------------------------------------------------------------------------------------


def test_a_busy_tenant_gets_more_slots_and_no_more_than_it_may() -> None:
    """All that are needed at once; the ones from the pool first."""
    house = staffed_house(WIDE, pool=2)
    out = house.handle(on.TenantLoad("a", 9))

    assert told(out, "tenant.scaled") == ["from 1 slots to 3"]
    assert kinds(out).count("AssignSlot") == 2
    assert states(house) == ["serving", "loading", "loading"]
    assert house.handle(on.TenantLoad("a", 3)) == []


def test_the_newest_go_when_fewer_are_needed() -> None:
    """They drain; the oldest serves on."""
    house = staffed_house(WIDE, 3)
    first = crew(house)[0]
    out = live(house, on.TenantLoad("a", 1))

    assert told(out, "tenant.scaled") == ["from 3 slots to 1"]
    assert (crew(house), states(house)) == ([first], ["serving", "draining", "draining"])


def test_nobody_goes_while_one_has_just_come() -> None:
    """What was needed a moment ago may be needed again; one that still loads was needed by nobody yet, and goes."""
    house = staffed_house(WIDE)
    live(house, on.TenantLoad("a", 2))
    assert house.handle(on.TenantLoad("a", 1)) == []

    settle(house)
    house.handle(on.TenantLoad("a", 3))
    house.handle(on.TenantLoad("a", 2))

    assert states(house) == ["serving", "serving", "dying"]


def test_a_load_of_nothing_is_one_slot() -> None:
    """Parking is another matter, with conditions of its own."""
    house = staffed_house(Policy(min_slots=0, max_slots=3), 2)
    live(house, on.TenantLoad("a", 0))

    assert len(crew(house)) == 1


@pytest.mark.parametrize("state", ["parked", "stopped", "unknown"])
def test_load_wakes_nobody(state: str) -> None:
    """The meter speaks of what was."""
    house = staffed_house(Policy(min_slots=0, max_slots=3))
    live(house, on.TenantIdle("a") if state == "parked" else on.TenantGone("a"))
    if state == "stopped":
        live(house, wish(running=False))

    assert house.handle(on.TenantLoad("a", 3)) == []


def test_a_lower_maximum_takes_slots_at_once() -> None:
    """The operator does not wait for the meter."""
    house = staffed_house(WIDE, 3)
    live(house, wish(Policy(max_slots=2)))

    assert states(house) == ["serving", "serving", "draining"]


def test_one_of_several_that_dies_is_replaced_and_the_others_serve_on() -> None:
    """The tenant is running all the time."""
    house = staffed_house(WIDE, 2)
    (dead, other) = crew(house)
    house.handle(on.SlotDied(dead, KILLED))

    assert (house.slots[other].state, house.tenant_state("a"), len(crew(house))) == ("serving", "running", 2)

    house.handle(on.SlotDied(crew(house)[1], KILLED))

    assert house.tenants["a"].resting
    assert (crew(house), house.tenant_state("a")) == ([other], "running")


# -- a full box -------------------------------------------------------------------------------------------------------


def full_house(*policies: Policy) -> House:
    """A box with as many slots as tenants a, b, ..., each of them serving, and z that waits."""
    house = make_house(pool=0, most=len(policies))
    live(house, on.Begin())
    for name, policy in zip("abcdef", policies, strict=False):
        live(house, wish(policy, name))
        settle(house, name)
    return house


def test_a_full_box_is_asked_for_room() -> None:
    """Once; again when the timer fires and nothing has changed; never while somebody is about to leave."""
    house = full_house(LAZY, LAZY)
    out = house.handle(wish(name="z"))

    assert kinds(out)[-2:] == ["SetTimer", "Publish"]
    assert do.FindRoom() in out
    assert do.FindRoom() not in house.handle(on.TenantLoad("a", 1))
    assert do.FindRoom() in house.handle(on.TimerFired(Timer("room")))

    house.handle(on.TenantIdle("b"))

    assert do.FindRoom() not in house.handle(on.TimerFired(Timer("room")))


def test_the_first_that_can_be_parked_gives_its_place() -> None:
    """Not who is kept by its policy, has just come, has gone or is unknown; and one is enough."""
    house = full_house(Policy(), LAZY, LAZY, LAZY)
    live(house, on.SlotDied(crew(house, "b")[0], KILLED))  # its next one has just come
    house.handle(wish(name="z"))
    out = live(house, on.RoomFound(("nobody", "a", "b", "d", "c"), "the box is full"))

    assert told(out, "tenant.evicted") == ["until somebody asks for it: the box is full"]
    assert [house.tenant_state(name) for name in "abcd"] == ["running", "running", "running", "parked"]

    live(house, on.SlotDrained(next(slot.id for slot in house.slots.values() if slot.tenant == "d")))

    assert house.tenant_state("z") == "running"
    assert len(house.slots) == 4


def test_who_had_to_go_comes_back_with_its_next_request() -> None:
    """When there is room: it waits as others did for it."""
    house = full_house(LAZY)
    house.handle(wish(name="z"))
    live(house, on.RoomFound(("a",), "full"))
    live(house, on.SlotDrained(crew_of_draining(house)))
    house.handle(on.TenantWanted("a"))
    assert house.tenant_state("a") == "starting"

    live(house, on.RoomFound(("z",), "full"))
    assert house.tenant_state("z") == "running", "it has just come"

    settle(house, "z")
    live(house, on.RoomFound(("z",), "full"))
    live(house, on.SlotDrained(crew_of_draining(house)))

    assert [house.tenant_state(name) for name in "az"] == ["running", "parked"]


def crew_of_draining(house: House) -> str:
    """The one slot that drains."""
    (slot,) = [slot.id for slot in house.slots.values() if slot.state == "draining"]
    return slot


def test_a_deployment_into_a_full_box_waits_for_who_may_go() -> None:
    """Where nobody may, it is refused at once."""
    house = full_house(LAZY)
    house.handle(wish(name="z", models=()))
    out = house.handle(on.RollAsked("op", "z", ONE, 60.0))
    assert do.FindRoom() in out

    live(house, on.RoomFound(("a",), "full"))

    assert answer(live(house, on.SlotDrained(crew_of_draining(house)))) is None
    assert house.tenant_state("z") == "running"

    house = full_house(Policy())
    house.handle(wish(name="z", models=()))
    why = answer(house.handle(on.RollAsked("op", "z", ONE, 60.0)))
    assert why is not None
    assert why.code == "pool.empty"


def test_nothing_is_kept_in_stock_while_memory_is_short() -> None:
    """The blank slots go, none is built in advance, and who was promised a slot still gets one."""
    house = staffed_house(pool=2)
    out = live(house, on.MemoryLeft(-1))

    assert kinds(out).count("DestroySlot") == 2
    assert [slot.tenant for slot in house.slots.values()] == ["a"]

    live(house, wish(Policy(), name="b"))

    assert [slot.tenant for slot in house.slots.values()] == ["a", "b"]

    out = live(house, on.MemoryLeft(GIB))

    assert kinds(out).count("BuildSlot") == 2


def parked_house(*, gib: int, tenants: str = "a") -> House:
    """A house whose tenants are parked; a slot of each takes so much memory."""
    house = make_house(pool=len(tenants))
    live(house, on.Begin())
    for name in tenants:
        live(house, wish(name=name, model_bytes=gib * GIB))
        settle(house, name)
        (slot,) = crew(house, name)
        live(house, on.TenantIdle(name))
        live(house, on.SlotDrained(slot))
        assert house.tenant_state(name) == "parked"
    return house


def test_nobody_is_let_in_for_whom_there_is_no_memory() -> None:
    """It waits until as much is left as it is known to take; its operator can see why."""
    house = parked_house(gib=5)
    house.handle(on.MemoryLeft(5 * GIB - 1))
    out = live(house, on.TenantWanted("a"))
    assert (crew(house), house.tenant_state("a")) == ([], "starting")
    assert do.FindRoom() in out
    assert house.explain_wait(house.tenants["a"]) == (
        ": it takes 5,120 MiB of memory, and 5,119 MiB are left",
        "stop or park a tenant, or lower memory_reserve_bytes",
    )

    live(house, on.MemoryLeft(5 * GIB))

    assert house.tenant_state("a") == "running"


@pytest.mark.parametrize("used_gib", [3, 5])
def test_a_slot_takes_what_the_kernel_says_that_the_last_one_took(used_gib: int) -> None:
    """More than its models' size, or less."""
    house = parked_house(gib=4)
    house.handle(on.TenantWanted("a"))
    house.handle(on.ModelsLoaded(crew(house)[0], used_bytes=used_gib * GIB))

    assert house.tenants["a"].slot_bytes == used_gib * GIB


def test_what_is_given_away_is_not_given_twice() -> None:
    """Two wake at once, and there is memory for one: the other one waits, though nobody has looked since."""
    house = parked_house(gib=3, tenants="ab")
    house.handle(on.MemoryLeft(5 * GIB))
    for name in "ab":
        live(house, on.TenantWanted(name))
    assert [house.tenant_state(name) for name in "ab"] == ["running", "starting"]

    settle(house, "a")
    live(house, on.RoomFound(("a",), "somebody waits"))
    live(house, on.SlotDrained(crew_of_draining(house)))

    assert [house.tenant_state(name) for name in "ab"] == ["parked", "running"], "what a gives back is b's"


def test_what_loads_has_its_memory_before_it_takes_it() -> None:
    """A look that comes in between does not see it yet."""
    house = parked_house(gib=3, tenants="ab")
    house.handle(on.TenantWanted("a"))
    assert states(house) == ["loading"]
    house.handle(on.MemoryLeft(5 * GIB))
    house.handle(on.TenantWanted("b"))

    assert house.tenant_state("b") == "starting"
    assert crew(house, "b") == []


def test_who_was_promised_a_slot_gets_it_whatever_is_left() -> None:
    """And what is deployed; only further slots and those of parked tenants are asked for."""
    house = staffed_house(Policy(min_slots=1, max_slots=2))
    live(house, wish(house.tenants["a"].policy, model_bytes=GIB))
    house.handle(on.MemoryLeft(-1))
    live(house, on.TenantLoad("a", 2))
    assert len(crew(house)) == 1

    kill(house)
    assert states(house) == ["serving"]
    assert answer(live(house, on.RollAsked("op", "a", TWO, 60.0))) is None


# -- restarts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("restart", "cause", "comes_back"),
    [
        ("permanent", KILLED, True),
        ("permanent", ORDERLY, True),
        ("transient", KILLED, True),
        ("transient", Cause("exit", "exit status 1"), True),
        ("transient", ORDERLY, False),
        ("temporary", KILLED, False),
        ("temporary", ORDERLY, False),
    ],
)
def test_the_policy_says_after_which_deaths_a_slot_is_replaced(restart: str, cause: Cause, *, comes_back: bool) -> None:
    """Each death counts; who does not come back says how it does."""
    house = staffed_house(Policy(restart=restart))  # type: ignore[arg-type]
    out = kill(house, cause)
    given_up = told(out, "tenant.given_up")

    assert do.CountRestart("a", cause) in out
    assert house.tenant_state("a") == ("running" if comes_back else "failed")
    assert len(crew(house)) == comes_back
    assert given_up == (
        []
        if comes_back
        else [
            f"its restart policy is {restart}, and it ended: {cause}; it starts again with: bedsit tenant start a",
        ]
    )


def test_who_was_given_up_starts_when_its_operator_says_so() -> None:
    """And not by itself: no timer, no request and no load brings it back."""
    house = staffed_house(Policy(restart="temporary", max_slots=2))
    kill(house)
    for stimulus in (
        *(on.TimerFired(Timer(kind, "a")) for kind in ("restart", "healthy", "period")),  # type: ignore[arg-type]
        *(on.TenantWanted("a"), on.TenantLoad("a", 2), on.TenantIdle("a")),
    ):
        live(house, stimulus)
        assert (crew(house), house.tenant_state("a")) == ([], "failed")

    live(house, wish(Policy(restart="temporary")))

    assert house.tenant_state("a") == "running"


def test_what_still_serves_of_a_tenant_that_is_given_up_may_stay() -> None:
    """One of two has died: the other answers, until it dies too."""
    house = staffed_house(Policy(restart="temporary", max_slots=2), 2)
    kill(house)
    assert (len(crew(house)), house.tenant_state("a")) == (1, "running")

    kill(house)
    assert (crew(house), house.tenant_state("a")) == ([], "failed")


def test_nobody_is_replaced_of_a_tenant_that_is_given_up() -> None:
    """Not even a slot that is not what it should be: the fresh ones are those that do not live."""
    house = staffed_house(Policy(restart="temporary", max_slots=2), 2)
    house.handle(wish(house.tenants["a"].policy, profile="subprocess"))
    house.handle(on.SlotDied(crew(house)[0], KILLED))
    for slot in [slot.id for slot in house.slots.values() if slot.state == "building"]:
        live(house, on.SlotBuilt(slot, 1))

    assert [house.slots[slot].birth.profile for slot in crew(house)] == ["standard"]
    assert house.tenant_state("a") == "running"


def test_too_many_deaths_within_the_period_are_the_last_ones() -> None:
    """So many are forgiven; the next one is not."""
    policy = Policy(restarts_max=2, restart_period_s=60.0, quarantine_after=0)
    house = staffed_house(policy)

    assert do.SetTimer(Timer("period", "a"), 60.0) in kill(house)

    out = kill(house)

    assert not [i for i in out if isinstance(i, do.SetTimer) and i.timer.kind == "period"], "the period runs on"
    assert house.tenant_state("a") == "running"

    out = kill(house)

    assert told(out, "tenant.given_up") == ["3 deaths within 60 s; it starts again with: bedsit tenant start a"]
    assert (house.tenant_state("a"), house.tenants["a"].resting) == ("failed", False)


def test_deaths_of_an_earlier_period_do_not_count() -> None:
    """However many they are in all; the next death begins a period of its own."""
    house = staffed_house(Policy(restarts_max=2, quarantine_after=0))
    for _ in range(3):
        kill(house)
        kill(house)
        live(house, on.TimerFired(Timer("period", "a")))

    assert house.tenant_state("a") == "running"
    assert do.SetTimer(Timer("period", "a"), 600.0) in kill(house)


def test_a_start_by_the_operator_begins_anew() -> None:
    """Earlier deaths count no more, and their timer is stopped: it would cut the next period short."""
    house = staffed_house(Policy(restarts_max=2, quarantine_after=0))
    kill(house)
    kill(house)

    assert do.StopTimer(Timer("period", "a")) in live(house, wish(Policy(restarts_max=2, quarantine_after=0)))

    kill(house)
    kill(house)

    assert house.tenant_state("a") == "running"


# -- quarantine -------------------------------------------------------------------------------------------------------


def quarantines(out: list[do.Instruction]) -> list[do.Quarantine]:
    """What is to be taken out of use."""
    return [instruction for instruction in out if isinstance(instruction, do.Quarantine)]


def lose(house: House, place: tuple[int, int] | None = PLACE) -> list[do.Instruction]:
    """The router says what ran on the oldest slot when its connection ended, then the kernel says that it died."""
    house.handle(on.SlotLost(crew(house)[0], place))
    return kill(house)


def test_what_ran_at_each_of_so_many_deaths_is_taken_out_of_use() -> None:
    """The router says what ran; the kernel that it died."""
    house = staffed_house(Policy(quarantine_after=3))
    assert quarantines(lose(house)) == []
    assert quarantines(lose(house)) == []
    assert quarantines(lose(house)) == [do.Quarantine("a", PLACE, "was running at 3 deaths in a row")]
    assert quarantines(lose(house)) == [], "counted anew"


def test_the_routers_word_may_come_after_the_kernels() -> None:
    """Once for each death, and only of a slot that nobody has explained yet."""
    house = staffed_house(Policy(quarantine_after=2))
    told_late: list[int] = []
    for _ in range(2):
        (slot,) = crew(house)
        assert quarantines(house.handle(on.SlotDied(slot, KILLED))) == []
        late = [*house.handle(on.SlotLost(slot, PLACE)), *house.handle(on.SlotLost(slot, PLACE))]
        told_late.append(len(quarantines(late)))
        live(house, on.SlotGone(slot))
        if house.tenants["a"].resting:
            house.handle(on.TimerFired(Timer("restart", "a")))
        for blank in [s.id for s in house.slots.values() if s.state == "building"]:
            house.handle(on.SlotBuilt(blank, 1))
        live(house, on.ModelsLoaded(crew(house)[0]))

    assert told_late == [0, 1]


def test_a_word_about_a_slot_that_is_gone_blames_nobody() -> None:
    """It is too late: nobody remembers what it was."""
    house = staffed_house(Policy(quarantine_after=1))
    (slot,) = crew(house)
    kill(house)

    assert live(house, on.SlotLost(slot, PLACE)) == []


def test_deaths_that_nobody_can_explain_blame_nobody() -> None:
    """Nothing was asked of the slot, or a router that nobody believes names what the tenant does not have."""
    house = staffed_house(Policy(quarantine_after=1))
    for place in (None, (7, 7), (1, 2)):
        assert quarantines(lose(house, place)) == []


def test_a_tenant_may_keep_what_crashes() -> None:
    """quarantine_after 0: for ever."""
    house = staffed_house(Policy(quarantine_after=0))

    assert not any(quarantines(lose(house)) for _ in range(10))


def test_some_service_clears_the_blame() -> None:
    """Deaths are in a row where the tenant did not serve well between them."""
    house = staffed_house(Policy(quarantine_after=2))
    lose(house)
    live(house, on.TimerFired(Timer("healthy", "a")))
    assert quarantines(lose(house)) == []
    assert quarantines(lose(house)) != []


def test_two_models_are_blamed_for_themselves() -> None:
    """Each for the deaths at which it was running."""
    house = staffed_house(Policy(quarantine_after=2))
    live(house, wish(Policy(quarantine_after=2), models=((1, 1), (2, 1))))
    live(house, on.SlotDrained(crew_of_draining(house)))
    lose(house, (1, 1))
    lose(house, (2, 1))

    assert [q.place for q in quarantines(lose(house, (2, 1)))] == [(2, 1)]


def test_what_a_slot_was_loading_is_blamed_too() -> None:
    """Whether the model raised, or ended the whole process."""
    house = staffed_house(Policy(quarantine_after=2))
    house.handle(on.SlotDied(crew(house)[0], KILLED))
    failed = on.LoadFailed(crew(house)[0], error("model.load_failed", "no"), PLACE)
    assert quarantines(live(house, failed)) == []

    for slot in [slot.id for slot in house.slots.values() if slot.state == "building"]:
        house.handle(on.SlotBuilt(slot, 1))
    house.handle(on.TimerFired(Timer("restart", "a")))
    died = on.SlotDied(crew(house)[0], Cause("oom", "out of memory"), PLACE)

    assert quarantines(house.handle(died)) == [do.Quarantine("a", PLACE, "was running at 2 deaths in a row")]


def test_without_the_version_in_quarantine_the_tenant_serves_on() -> None:
    """The rest of its models is loaded at once, and what still serves with it goes when that is done."""
    house = staffed_house(Policy(quarantine_after=1, max_slots=2), 2)
    policy = house.tenants["a"].policy
    live(house, wish(policy, models=TWO))
    for slot in [slot.id for slot in house.slots.values() if slot.state == "draining"]:
        live(house, on.SlotDrained(slot))
    out = lose(house, (1, 2))
    assert quarantines(out) == [do.Quarantine("a", (1, 2), "was running at 1 deaths in a row")]

    live(house, wish(policy, models=ONE))

    assert {slot.models for slot in house.tenants["a"].crew.values()} == {ONE}
    assert house.tenants["a"].failures == 0


def test_a_tenant_whose_last_version_is_in_quarantine_is_empty() -> None:
    """Nothing is tried that would end the same way."""
    house = staffed_house(Policy(quarantine_after=1))
    lose(house)
    live(house, wish(Policy(quarantine_after=1), models=()))

    assert house.tenant_state("a") == "empty"
    assert "serving" not in states(house)


# -- calls that do not end --------------------------------------------------------------------------------------------


def test_a_slot_whose_call_does_not_end_is_ended() -> None:
    """It counts as a death for want of time, is replaced, and what ran is to blame."""
    house = staffed_house(Policy(quarantine_after=1))
    (slot,) = crew(house)
    out = live(house, on.SlotHung(slot, PLACE, "a call has not ended after 2.0 s"))

    cause = Cause("timeout", "a call has not ended after 2.0 s")
    assert do.DestroySlot(slot) in out
    assert do.CountRestart("a", cause) in out
    assert quarantines(out) == [do.Quarantine("a", PLACE, "was running at 1 deaths in a row")]
    assert (house.tenant_state("a"), slot in house.slots) == ("running", False)
    assert told(out, "slot.died") == ["while serving: a call has not ended after 2.0 s"]


def test_a_draining_slot_may_hang_too() -> None:
    """It ends, and counts against nobody: it was leaving."""
    house = staffed_house()
    (slot,) = crew(house)
    live(house, on.TenantIdle("a"))
    out = live(house, on.SlotHung(slot, PLACE, "a call has not ended"))

    assert do.DestroySlot(slot) in out
    assert "CountRestart" not in kinds(out)


@pytest.mark.parametrize("state", ["building", "blank", "loading", "dying"])
def test_only_who_has_calls_can_hang(state: str) -> None:
    """The router may be wrong, or late."""
    house = make_house()
    house.handle(on.Begin())
    if state != "building":
        house.handle(on.SlotBuilt("s1", 1))
    if state in ("loading", "dying"):
        house.handle(wish())
    if state == "dying":
        house.handle(on.SlotDied("s1", KILLED))
    assert house.slots["s1"].state == state

    assert house.handle(on.SlotHung("s1", PLACE, "a call has not ended")) == []


# -- replacing --------------------------------------------------------------------------------------------------------


def replace_one_by_one(house: House, old: list[str]) -> list[int]:
    """Let slots come up, load and drain one after the other; how many serve at each step."""
    serving: list[int] = []

    def look() -> None:
        assert len(house.tenants["a"].serving) == len(old)
        serving.append(sum(slot not in old for slot in crew(house) if house.slots[slot].state == "serving"))

    for _ in old:
        for slot in [slot.id for slot in house.slots.values() if slot.state == "building"]:
            house.handle(on.SlotBuilt(slot, 1))
            look()
        (first, *_) = [slot for slot in crew(house) if house.slots[slot].state == "loading"]
        house.handle(on.ModelsLoaded(first))
        look()
        live(house, on.SlotDrained(crew_of_draining(house)))
        look()
    return serving


def test_slots_of_another_profile_come_before_the_old_ones_go() -> None:
    """As many serve all the time as before; each new one takes the place of one old one."""
    house = staffed_house(WIDE, 3)
    old = crew(house)
    house.handle(wish(WIDE, profile="subprocess"))

    assert replace_one_by_one(house, old)[-1] == 3
    assert not set(old) & set(house.slots)
    assert {house.slots[slot].birth.profile for slot in crew(house)} == {"subprocess"}


def test_a_restart_is_a_roll_of_the_same_models() -> None:
    """Answered when the first fresh slot serves; the others follow, and none is left."""
    house = staffed_house(WIDE, 2, pool=0)
    old = crew(house)
    house.handle(on.RollAsked("op", "a", ONE, 60.0))
    house.handle(on.SlotBuilt(next(s.id for s in house.slots.values() if s.state == "building"), 1))
    fresh = house.tenants["a"].roll.slot  # type: ignore[union-attr]
    assert fresh is not None
    house.handle(on.ModelsLoaded(fresh))
    out = house.handle(on.RollCommitted("op"))

    assert answer(out) is None
    assert crew(house) == [old[1], fresh]
    assert house.slots[old[0]].state == "draining"

    live(house, on.SlotBuilt(next(s.id for s in house.slots.values() if s.state == "building"), 1))

    assert house.slots[old[1]].state == "draining"
    assert (len(crew(house)), len(house.tenants["a"].serving)) == (2, 2)
    assert not set(crew(house)) & set(old)


def test_a_restart_that_fails_leaves_the_old_slots() -> None:
    """Nobody notices but who asked."""
    house = staffed_house(WIDE, 2)
    old = crew(house)
    house.handle(on.RollAsked("op", "a", ONE, 60.0))
    fresh = house.tenants["a"].roll.slot  # type: ignore[union-attr]
    assert fresh is not None
    why = answer(house.handle(on.LoadFailed(fresh, error("model.load_failed", "no"))))

    assert why is not None
    assert (why.code, crew(house)) == ("model.load_failed", old)
    assert not any(house.slots[slot].stale for slot in old)


def test_a_stale_slot_that_dies_is_replaced_by_a_fresh_one() -> None:
    """The tenant's models are those that its operator wants by now."""
    house = staffed_house(WIDE, 2)
    (first, second) = crew(house)
    house.handle(wish(WIDE, models=TWO))
    live(house, on.SlotDied(first, KILLED))

    assert house.slots[second].state in ("serving", "draining")
    assert {slot.models for slot in house.tenants["a"].fresh} == {TWO}


def test_a_deployment_under_way_ends_with_another_profile() -> None:
    """It loads in a slot of the wrong one."""
    house = staffed_house()
    house.handle(on.RollAsked("op", "a", TWO, 60.0))
    why = answer(house.handle(wish(profile="subprocess")))

    assert why is not None
    assert why.code == "tenant.busy"
    assert house.tenants["a"].models == ONE


def test_adopted_slots_of_other_models_serve_until_as_many_fresh_ones_do() -> None:
    """The daemon ended in the middle of a change: three of the old, and one of the new, which still loads."""
    house = make_house(pool=0)
    house.handle(wish(WIDE, models=TWO))
    for slot in ("o1", "o2", "o3"):
        house.handle(on.SlotAdopted(slot, "serving", "a", ONE, degraded=False, generation=1))
    house.handle(on.SlotAdopted("n1", "loading", "a", TWO, degraded=False, generation=1))
    house.handle(on.Begin())

    assert len(house.tenants["a"].serving) == 3
    assert replace_one_by_one(house, ["o1", "o2", "o3"])[-1] == 3
    assert crew(house)[0] == "n1"
