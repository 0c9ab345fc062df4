"""Slots that are born for a device: who gets them, how many are kept ready, and what a device that fails holds up."""

import itertools
from typing import Any

from bedsit.supervisor import instructions as do
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.births import Birth
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.placement.seating import Seat
from bedsit.supervisor.policy import Policy
from bedsit.supervisor.stimuli import Timer
from bedsit.supervisor.tenancy import Limits
from tests_support.houses import ONE, answer, crew, kinds, live, open_house, serving_house, told

GPU, OTHER = Birth("standard", "gpu0"), Birth("standard", "gpu1")


def wish(tenant: str = "a", device: str = "gpu0", **options: Any) -> on.TenantSet:
    """A tenant that sits on a device, or on none."""
    seat = Seat((device,)) if device else None
    return on.TenantSet(tenant, **{"running": True, "strict": True, "models": ONE, "seat": seat} | options)


def tell(house: House, wanted: on.TenantSet) -> list[do.Instruction]:
    """The house hears of it, and that its seat is well."""
    return [*house.handle(wanted), *house.handle(on.SeatSeen(wanted.tenant, "", ""))]


def settle(house: House, wanted: on.TenantSet) -> list[do.Instruction]:
    """As above, where all goes well."""
    return [*live(house, wanted), *live(house, on.SeatSeen(wanted.tenant, "", ""))]


def stocked_house(*parked: on.TenantSet, most: int = 8) -> House:
    """A house with one blank ordinary slot, and one for each device of those that are *parked*."""
    numbers = itertools.count(1)
    house = House(Limits(1, most, 120.0, 60.0, 1000, device_stock=1), lambda: f"s{next(numbers)}")
    house.handle(on.ZygoteUp(1, 0))
    for tenant in parked:  # told before the house is open: none is started
        tell(house, tenant)
    live(house, on.Begin())
    return house


def blank(house: House) -> list[Birth]:
    """What the blank slots were born as."""
    return [slot.birth for slot in house.slots.values() if slot.state == "blank"]


def built(out: list[do.Instruction]) -> list[Birth]:
    """What is to be built."""
    return [instruction.birth for instruction in out if isinstance(instruction, do.BuildSlot)]


def test_a_slot_for_a_device_is_built_when_somebody_waits() -> None:
    """The blank slot of the pool is left alone."""
    house = open_house()

    out = tell(house, wish())

    assert built(out) == [GPU]
    assert do.AssignSlot("s2", "a", ONE) in house.handle(on.SlotBuilt("s2", 1))
    assert house.slots["s1"].state == "blank"


def test_it_serves_no_tenant_of_another_device() -> None:
    """Nor one that sits on none: who waits for gpu1 gets what was born for it, though gpu0's is there first."""
    house = open_house()
    tell(house, wish("a", "gpu0"))
    tell(house, wish("b", "gpu1"))

    out = house.handle(on.SlotBuilt("s2", 1))
    assert [i.tenant for i in out if isinstance(i, do.AssignSlot)] == ["a"]
    out = house.handle(on.SlotBuilt("s3", 1))
    assert [i.tenant for i in out if isinstance(i, do.AssignSlot)] == ["b"]
    assert [house.slots[slot].birth for slot in ("s2", "s3")] == [GPU, OTHER]


def test_a_changed_device_is_a_new_slot() -> None:
    """The old one serves until one that was born for the new device does."""
    house = serving_house()

    out = tell(house, wish())

    assert built(out) == [GPU]
    assert house.slots["s1"].state == "serving"
    house.handle(on.SlotBuilt("s3", 1))
    house.handle(on.ModelsLoaded("s3"))
    assert (house.slots["s1"].state, crew(house)) == ("draining", ["s3"])


def test_a_deployment_under_way_ends_with_another_device() -> None:
    """Its slot would be of the wrong one; whoever deploys hears of it."""
    house = serving_house()
    house.handle(on.RollAsked("op1", "a", ((1, 2),), 60.0))

    why = answer(tell(house, wish()))

    assert why is not None
    assert (why.code, why.message) == ("tenant.busy", "the seat of tenant 'a' was changed")


def test_an_adopted_slot_of_another_device_is_replaced() -> None:
    """The daemon ended between writing the wish down and carrying it out."""
    house = open_house()
    tell(house, wish("a", "gpu1"))

    house.handle(
        on.SlotAdopted("s9", "serving", "a", ONE, degraded=False, generation=1, birth=GPU, seat=Seat(("gpu0",)))
    )

    assert house.slots["s9"].stale
    house.handle(on.SlotBuilt("s2", 1))
    house.handle(on.ModelsLoaded("s2"))
    assert crew(house) == ["s2"]


def test_without_a_stock_nothing_is_kept_for_a_device() -> None:
    """A slot whose tenant left the device while it was built ends."""
    house = open_house()
    tell(house, wish())
    tell(house, wish(device="gpu1"))

    assert do.DestroySlot("s2") in house.handle(on.SlotBuilt("s2", 1))


def test_so_many_are_kept_for_each_device_that_somebody_sits_on() -> None:
    """Two on gpu0 count once; they are replaced as the pool is, and one for nobody's device is not kept."""
    house = stocked_house()
    for tenant, device in (("a", "gpu0"), ("b", "gpu0"), ("c", "gpu1"), ("d", "")):
        settle(house, wish(tenant, device))

    assert sorted(blank(house), key=str) == sorted([Birth(), GPU, OTHER], key=str)
    live(house, on.TenantGone("c"))
    assert sorted(blank(house), key=str) == sorted([Birth(), GPU], key=str)


def test_a_parked_tenant_finds_a_slot_of_its_device_ready() -> None:
    """Its first request gets the blank one at once, and the next is built."""
    house = stocked_house(wish(policy=Policy(min_slots=0)))
    assert house.tenant_state("a") == "parked"
    assert GPU in blank(house)

    out = house.handle(on.TenantWanted("a"))

    assert [i.tenant for i in out if isinstance(i, do.AssignSlot)] == ["a"]
    assert built(out) == [GPU]


def test_who_waits_goes_before_what_is_kept_ready() -> None:
    """In a full box a blank slot for a device makes room for an ordinary tenant; for the pool's sake it does not."""
    house = stocked_house(wish(policy=Policy(min_slots=0)), most=3)
    settle(house, wish("b", ""))
    settle(house, wish("c", ""))
    assert blank(house) == [GPU]

    said = settle(house, wish("d", ""))

    assert "DestroySlot" in kinds(said)
    assert built(said) == [Birth()]
    assert len(crew(house, "d")) == 1


def test_the_pool_of_a_device_is_built_last() -> None:
    """First who is waited for, then the ordinary pool."""
    house = stocked_house(most=4)
    tell(house, wish("a", "gpu0"))  # s2 for it; s3 for the stock

    out = tell(house, wish("b", ""))  # takes s1

    assert [slot.birth for slot in house.slots.values() if slot.state == "building"] == [GPU, GPU, Birth()]
    assert built(out) == [Birth()]


def test_a_device_that_fails_holds_nobody_else_up() -> None:
    """It is tried again later and later, and says why; the pool and other devices go on."""
    house = open_house()
    tell(house, wish("a", "gpu0"))

    out = house.handle(on.SlotRefused("s2", "device.degraded: /dev/nvidia0: No such file or directory"))

    assert do.SetTimer(Timer("pool", "gpu0"), 0.5) in out
    assert "device.degraded" in told(out, "slot.refused")[0]
    assert "No such file" in house.explain_wait(house.tenants["a"])[0]
    assert built(house.handle(on.SlotGone("s2"))) == []
    assert built(tell(house, wish("b", "gpu1"))) == [OTHER]
    assert built(tell(house, wish("c", ""))) == [Birth()]
    assert built(house.handle(on.TimerFired(Timer("pool", "gpu0")))) == [GPU]


def test_a_device_that_nobody_sits_on_is_forgotten() -> None:
    """How often it failed, and why: whoever comes to it later begins anew."""
    house = open_house()
    tell(house, wish())
    house.handle(on.SlotRefused("s2", "why"))
    house.handle(on.SlotGone("s2"))
    tell(house, wish(device="gpu1"))
    house.handle(on.TimerFired(Timer("pool", "gpu0")))

    assert (house._pool_failures["gpu0"], list(house._refusals)) == (0, [])


def test_nothing_is_kept_ready_for_a_device_that_cannot_be_used() -> None:
    """It would be refused again and again; what was blank on it is no use."""
    house = stocked_house(wish(policy=Policy(min_slots=0)))
    assert GPU in blank(house)
    live(house, on.SeatSeen("a", "degraded", "fell off the bus"))
    assert GPU not in blank(house)
    live(house, on.SeatSeen("a", "", ""))
    assert GPU in blank(house)


def test_the_pool_that_fails_holds_no_device_up() -> None:
    """The other way round."""
    house = open_house(pool=2)

    house.handle(on.SlotRefused("s2", "no room"))

    assert built(tell(house, wish())) == [GPU]


def test_a_blank_slot_of_a_device_counts_as_no_pool() -> None:
    """What `bedsit status` shows as the pool is what an ordinary tenant would get."""
    house = stocked_house()
    settle(house, wish())
    assert house.statistics().blank == 1
    assert house.statistics().slots == 3


def test_short_of_memory_none_is_kept() -> None:
    """As for the pool."""
    house = stocked_house()
    settle(house, wish())
    live(house, on.MemoryLeft(-1))
    assert blank(house) == []
