"""The lifecycle without a shell: houses in the states that tests begin at, and what they say to do."""

import itertools

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor import instructions as do
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.tenancy import Limits

KILLED = Cause("signal", "signal 9 (SIGKILL)")
ONE = ((1, 1),)
TWO = ((1, 1), (1, 2))


def make_house(*, pool: int = 1, most: int = 8, forks: int = 1000) -> House:
    """A house that is open and whose zygote runs; its slots are s1, s2, ..."""
    numbers = itertools.count(1)
    house = House(Limits(pool, most, 120.0, 60.0, forks), lambda: f"s{next(numbers)}")
    house.handle(on.ZygoteUp(1, 0))
    return house


def open_house(*, pool: int = 1, most: int = 8) -> House:
    """A house with one blank slot, s1."""
    house = make_house(pool=pool, most=most)
    house.handle(on.Begin())
    house.handle(on.SlotBuilt("s1", 1))
    return house


def serving_house() -> House:
    """A house in which s1 serves tenant a with one model, and s2 is blank."""
    house = open_house()
    house.handle(on.TenantSet("a", running=True, strict=True, models=ONE))
    house.handle(on.SlotBuilt("s2", 1))
    house.handle(on.ModelsLoaded("s1"))
    return house


def kinds(out: list[do.Instruction]) -> list[str]:
    """What the instructions are, without events."""
    return [type(instruction).__name__ for instruction in out if not isinstance(instruction, do.Tell)]


def crew(house: House, tenant: str = "a") -> list[str]:
    """The slots that take a tenant's requests or are about to, oldest first."""
    return list(house.tenants[tenant].crew)


def answer(out: list[do.Instruction]) -> BedsitError | None:
    """The answer among the instructions."""
    (found,) = [instruction for instruction in out if isinstance(instruction, do.Answer)]
    return found.error


def live(house: House, stimulus: on.Stimulus, *, generation: int = 1) -> list[do.Instruction]:
    """Let the house hear *stimulus* where all goes well: slots come up, models load, what is ended is gone at once.

    Gives all instructions until nothing happens any more. Timers do not fire, and nobody says that a slot is drained.
    """
    inbox: list[on.Stimulus] = [stimulus]
    said: list[do.Instruction] = []
    while inbox:
        out = house.handle(inbox.pop(0))
        said += out
        for instruction in out:
            match instruction:
                case do.BuildSlot(slot):
                    inbox.append(on.SlotBuilt(slot, generation))
                case do.AssignSlot(slot):
                    inbox.append(on.ModelsLoaded(slot))
                case do.DestroySlot(slot):
                    inbox.append(on.SlotGone(slot))
                case do.Commit(operation):
                    inbox.insert(0, on.RollCommitted(operation))
    return said


def told(out: list[do.Instruction], kind: str | None = None) -> list[str]:
    """The events among the instructions: the texts of one kind, or the kinds of all."""
    tells = [instruction for instruction in out if isinstance(instruction, do.Tell)]
    return [tell.text for tell in tells if tell.kind == kind] if kind else [tell.kind for tell in tells]


def states(house: House, tenant: str = "a") -> list[str]:
    """What each slot of a tenant is doing, by age."""
    return [slot.state for slot in house.slots.values() if slot.tenant == tenant]
