"""Which blank slots are too many, and which are to be built. Pure: a part of the lifecycle's arithmetic.

The pool holds ordinary slots, and where the box is configured so, some for each device that somebody sits on. A slot
that is born as anything else is built when a tenant waits for it, because it would lie there for weeks in most houses;
that tenant waits for one birth longer.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from bedsit.supervisor.births import ORDINARY, Birth
from bedsit.supervisor.tenancy import Slot, Tenant


@dataclass
class Plan:
    """Blank slots to *end*, and what the slots to *build* are born as, the most urgent first."""

    end: list[Slot] = field(default_factory=list)
    build: list[Birth] = field(default_factory=list)


def plan_pool(
    slots: Collection[Slot],
    waiting: Collection[Tenant],
    max_slots: int,
    oldest_kept: int,
    stock: Mapping[Birth, int],
    resting: Collection[str] = (),
) -> Plan:
    """What to do so that everybody who waits gets a slot and the *stock* of blank ones is kept, within *max_slots*.

    A tenant is among the *waiting* once for each slot that it waits for. What is born for a device that is *resting*
    is left alone; ordinary slots are those of the device "".

    Blank slots of generations before *oldest_kept* are replaced one by one, the new one first. In a full box it
    is the old one that goes first, when nobody waits.
    """
    plan, later = Plan(), []
    for birth in _list_births(slots, waiting, stock):
        if birth.device not in resting:
            asked = sum(tenant.birth == birth for tenant in waiting)
            needed, missing = _plan_birth(plan, birth, slots, asked, stock.get(birth, 0), oldest_kept)
            plan.build += [birth] * needed
            later += [birth] * (missing - needed)
    needs = Counter(plan.build)
    plan.build += sorted(later, key=lambda birth: birth != ORDINARY)  # what is ready for no one can wait
    room = max_slots - len(slots)
    coming = len(plan.end) + sum(slot.state == "dying" for slot in slots)
    spare = [s for s in slots if s.state == "blank" and s.birth in stock and s.birth.device not in resting]
    spare = [slot for slot in spare if slot not in plan.end]
    wanted = [slot for slot in spare if needs.total() > needs[slot.birth]]  # it makes room for others only
    plan.end += wanted[: max(0, needs.total() - room - coming)]  # a box full of blank slots has none for what is needed
    del plan.build[max(0, room) :]
    if room <= 0 and not plan.end and not waiting and not any(slot.state in ("building", "dying") for slot in slots):
        plan.end += [slot for slot in spare if slot.generation < oldest_kept][:1]
    return plan


def _list_births(slots: Collection[Slot], waiting: Collection[Tenant], stock: Mapping[Birth, int]) -> list[Birth]:
    """All that there is something to plan for, each once, those first that are waited for."""
    there = (slot.birth for slot in slots if slot.state in ("blank", "building"))
    return list(dict.fromkeys([*(tenant.birth for tenant in waiting), *stock, *there]))


def _plan_birth(
    plan: Plan, birth: Birth, slots: Collection[Slot], asked: int, kept: int, oldest_kept: int
) -> tuple[int, int]:
    """How many slots of this birth are needed for those who wait, and how many are missing with what is to be kept."""
    blank = [slot for slot in slots if slot.state == "blank" and slot.birth == birth]
    building = sum(slot.state == "building" and slot.birth == birth for slot in slots)
    stale = [slot for slot in blank if slot.generation < oldest_kept]
    surplus = stale[: max(0, len(blank) - kept)] if kept else blank[asked:]
    there = len(blank) - len(surplus) + building
    missing = kept + asked - there
    if missing <= 0 and not building and len(stale) > len(surplus):
        missing = 1  # one more than is needed; then one of the stale ones goes
    plan.end += surplus
    return max(0, asked - there), max(0, missing)
