"""A slot that has too much of its GPU's memory ends, whatever it is doing, and its tenant is charged for that. Pure."""

from dataclasses import replace

import pytest

from bedsit.supervisor import instructions as do
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.births import Birth
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.placement.seating import Seat
from tests_support.houses import KILLED, ONE, TWO, answer, crew, kinds, live, make_house, told

GIB = 1 << 30
SEAT = Seat(("GPU-1",), memory_bytes=8 * GIB, is_shared=True, slots=2)
WISH = on.TenantSet("a", running=True, strict=True, models=ONE, seat=SEAT)
TEXT = "out of GPU memory: 5,000 MiB are used, and 4,096 were given"


def seated_house() -> House:
    """A house in which tenant a has a slot on a GPU that it shares."""
    house = make_house()
    for stimulus in (on.Begin(), WISH, on.SeatSeen("a", "", "")):
        live(house, stimulus)
    assert house.tenant_state("a") == "running"
    return house


def test_a_slot_is_born_for_what_it_may_have() -> None:
    """Its part of what its tenant was promised; of a seat with another part it is no longer what is wanted."""
    house = seated_house()
    (slot,) = crew(house)
    assert house.slots[slot].birth == Birth("standard", "GPU-1", 4 * GIB)
    live(house, replace(WISH, seat=replace(SEAT, memory_bytes=10 * GIB)))
    live(house, on.SeatSeen("a", "", ""))
    (fresh,) = crew(house)
    assert (fresh == slot, house.slots[fresh].birth.memory_bytes) == (False, 5 * GIB)


def test_who_exceeds_ends_is_charged_and_replaced() -> None:
    """With a cause of its own, told before the death."""
    house = seated_house()
    (slot,) = crew(house)
    out = live(house, on.SlotExceeded(slot, TEXT))
    assert do.DestroySlot(slot) in out
    assert do.CountRestart("a", Cause("oom", TEXT)) in out
    assert (told(out, "memory.exceeded"), told(out, "slot.died")) == ([TEXT], [f"while serving: {TEXT}"])
    assert (house.tenant_state("a"), slot in house.slots) == ("running", False)


def test_a_model_that_exceeds_while_it_is_deployed_fails() -> None:
    """What was there before it serves on."""
    house = seated_house()
    (slot,) = crew(house)
    house.handle(on.RollAsked("op", "a", TWO, 9.0))
    (building,) = (name for name, each in house.slots.items() if each.state == "building")
    house.handle(on.SlotBuilt(building, 1))
    assert house.slots[building].state == "loading"
    refused = answer(house.handle(on.SlotExceeded(building, TEXT)))
    assert refused is not None
    assert (refused.code, TEXT in refused.message) == ("worker.crashed", True)
    assert crew(house) == [slot]


@pytest.mark.parametrize("state", ["building", "blank", "dying"])
def test_only_who_is_a_tenant_s_can_exceed(state: str) -> None:
    """The numbers may be late; what is nobody's has a context and no more."""
    house = make_house()
    house.handle(on.Begin())
    if state != "building":
        house.handle(on.SlotBuilt("s1", 1))
    if state == "dying":
        house.handle(on.SlotDied("s1", KILLED))
    assert house.slots["s1"].state == state
    assert "DestroySlot" not in kinds(house.handle(on.SlotExceeded("s1", TEXT)))
