"""Tenants that sit on a device: nothing starts there while it cannot be used, and another seat takes fresh slots."""

from dataclasses import replace

from bedsit.supervisor import stimuli as on
from bedsit.supervisor.births import Birth
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.placement.seating import Seat
from bedsit.supervisor.policy import Hold
from tests_support.houses import KILLED, ONE, TWO, answer, crew, kinds, live, make_house, told

GPU, CORES = Seat(("GPU-1",)), Seat(("cpu0",), cores=(1,))
WISH = on.TenantSet("a", running=True, strict=True, models=ONE, seat=GPU)


def seen(state: Hold = "") -> on.SeatSeen:
    """Somebody has looked at the device of tenant a."""
    return on.SeatSeen("a", state, "it is lost" if state else "")


def seated_house() -> House:
    """A house in which tenant a has a slot on a GPU."""
    house = make_house()
    for stimulus in (on.Begin(), WISH, seen()):
        live(house, stimulus)
    assert house.tenant_state("a") == "running"
    return house


def test_nothing_starts_on_a_device_that_nobody_has_looked_at() -> None:
    """It is on its way, not lost, and comes as soon as the device was seen."""
    house = make_house()
    live(house, on.Begin())
    out = live(house, WISH)
    assert "AssignSlot" not in kinds(out)
    assert told(out, "tenant.degraded") == []
    assert house.tenant_state("a") == "starting"
    assert kinds(live(house, seen())).count("AssignSlot") == 1


def test_what_runs_on_a_device_that_fails_may_stay_and_nothing_new_comes() -> None:
    """Neither a replacement nor a deployment; it is told once, and over when the device is back."""
    house = seated_house()
    (slot,) = crew(house)
    out = live(house, seen("degraded")) + live(house, seen("degraded"))
    assert told(out, "tenant.degraded") == ["it is lost"]
    assert (house.tenant_state("a"), crew(house)) == ("degraded", [slot])
    refused = answer(house.handle(on.RollAsked("op", "a", TWO, 9.0)))
    assert refused is not None
    assert (refused.code, "it is lost" in refused.message) == ("device.degraded", True)

    out = live(house, on.SlotDied(slot, KILLED))
    assert "AssignSlot" not in kinds(out)
    assert house.tenants["a"].has_failed
    out = live(house, seen())
    assert len(told(out, "tenant.recovered")) == 1


def test_a_deployment_under_way_is_answered_when_its_device_fails() -> None:
    """With what is wrong, and nothing has changed."""
    house = seated_house()
    house.handle(on.RollAsked("op", "a", TWO, 9.0))
    refused = answer(house.handle(seen("degraded")))
    assert refused is not None
    assert refused.code == "device.degraded"
    assert house.tenants["a"].models == ONE


def test_another_seat_takes_a_fresh_slot_that_is_there_before_the_old_one_goes() -> None:
    """As another profile does; the same seat takes none."""
    house = seated_house()
    (old,) = crew(house)
    assert "AssignSlot" not in kinds(live(house, WISH))
    live(house, replace(WISH, seat=CORES))
    assert crew(house) == [old]
    out = live(house, seen())
    assert [each for each in kinds(out) if each in ("AssignSlot", "Record")] == ["AssignSlot", "Record", "Record"]
    assert crew(house) != [old]
    assert house.slots[crew(house)[0]].seat == CORES


def test_an_adopted_slot_on_another_seat_is_replaced() -> None:
    """The wish may have been written down just before the daemon ended."""
    house = make_house()
    house.handle(WISH)
    house.handle(seen())
    house.handle(on.SlotAdopted("s9", "serving", "a", ONE, False, 1, seat=CORES))
    assert house.slots["s9"].stale
    born = Birth(device=GPU.device)
    house.handle(on.SlotAdopted("s8", "serving", "a", ONE, False, 1, born, seat=GPU))
    assert not house.slots["s8"].stale
    house.handle(on.SlotAdopted("s7", "serving", "a", ONE, False, 1, seat=GPU))
    assert house.slots["s7"].stale, "without its nodes a slot is of no use there"
