"""Which blank slots are too many, and which are to be built. Pure: a part of the lifecycle's arithmetic.

The pool holds standard slots only. A slot of another profile is built when a tenant waits for it, because it would
lie there for weeks in most houses; that tenant waits for one birth longer.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from bedsit.sandbox.jail.context import PROFILES, Profile
from bedsit.supervisor.tenancy import Limits, Slot, Tenant


@dataclass
class Plan:
    """Blank slots to *end*, and the profiles of the slots to *build*, the most urgent first."""

    end: list[Slot] = field(default_factory=list)
    build: list[Profile] = field(default_factory=list)


def plan_pool(
    slots: Collection[Slot], waiting: Collection[Tenant], limits: Limits, oldest_kept: int, stock: int
) -> Plan:
    """What to do so that everybody who waits gets a slot and *stock* blank ones are kept, within `max_slots`.

    A tenant is among the *waiting* once for each slot that it waits for.

    Blank slots of generations before *oldest_kept* are replaced one by one, the new one first. In a full box it
    is the old one that goes first, when nobody waits.
    """
    plan = Plan()
    for profile in PROFILES:
        kept = stock if profile == "standard" else 0
        _plan_profile(plan, profile, slots, sum(t.profile == profile for t in waiting), kept, oldest_kept)
    plan.build.sort(key=lambda profile: profile == "standard")  # the pool can wait; the others are waited for
    room = limits.max_slots - len(slots)
    ordered = sum(profile != "standard" for profile in plan.build)
    coming = len(plan.end) + sum(slot.state == "dying" for slot in slots)
    spare = [s for s in slots if s.state == "blank" and s.profile == "standard" and s not in plan.end]
    plan.end += spare[: max(0, ordered - room - coming)]  # a box full of blank slots has no room for what is needed
    del plan.build[max(0, room) :]
    if room <= 0 and not plan.end and not waiting and not any(slot.state in ("building", "dying") for slot in slots):
        plan.end += [s for s in spare if s.generation < oldest_kept][:1]
    return plan


def _plan_profile(
    plan: Plan, profile: Profile, slots: Collection[Slot], asked: int, kept: int, oldest_kept: int
) -> None:
    blank = [slot for slot in slots if slot.state == "blank" and slot.profile == profile]
    building = sum(slot.state == "building" and slot.profile == profile for slot in slots)
    stale = [slot for slot in blank if slot.generation < oldest_kept]
    surplus = stale[: max(0, len(blank) - kept)] if kept else blank[asked:]
    missing = kept + asked - (len(blank) - len(surplus)) - building
    if missing <= 0 and not building and len(stale) > len(surplus):
        missing = 1  # one more than is needed; then one of the stale ones goes
    plan.end += surplus
    plan.build += [profile] * max(0, missing)
