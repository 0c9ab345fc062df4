"""What the lifecycle may ask for: plain values, turned into system calls in effects.py and nowhere else."""

from dataclasses import dataclass
from typing import Literal

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.births import ORDINARY, Birth
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.events import Kind
from bedsit.supervisor.policy import ModelSet, Place
from bedsit.supervisor.stimuli import Timer


@dataclass(frozen=True)
class StartZygote:
    """Start the next generation; ends in ZygoteUp or ZygoteDown."""


@dataclass(frozen=True)
class RetireZygote:
    """Ask a generation that another one replaced to exit when it has built what it was asked for."""

    generation: int


@dataclass(frozen=True)
class BuildSlot:
    """Make a blank slot that is born as this; ends in SlotBuilt or SlotRefused."""

    slot: str
    birth: Birth = ORDINARY


@dataclass(frozen=True)
class AssignSlot:
    """Give a blank slot to a tenant; ends in ModelsLoaded, LoadFailed or SlotDied."""

    slot: str
    tenant: str
    models: ModelSet


@dataclass(frozen=True)
class Record:
    """Write down that the slot is in this state now."""

    slot: str
    state: Literal["serving", "draining"]


@dataclass(frozen=True)
class DestroySlot:
    """End everything in the slot and remove it; ends in SlotGone."""

    slot: str


@dataclass(frozen=True)
class Commit:
    """Write down what the operation wanted: *slot* has loaded it. Ends in RollCommitted or RollRefused."""

    operation: str
    slot: str | None


@dataclass(frozen=True)
class Answer:
    """The operation is over."""

    operation: str
    error: BedsitError | None


@dataclass(frozen=True)
class Publish:
    """Tell the router what is."""


@dataclass(frozen=True)
class SetTimer:
    """Fire *timer* after *delay_s*, instead of when it was set to before."""

    timer: Timer
    delay_s: float


@dataclass(frozen=True)
class StopTimer:
    """Do not fire *timer*."""

    timer: Timer


@dataclass(frozen=True)
class Tell:
    """Write an event."""

    kind: Kind
    text: str
    tenant: str | None = None
    slot: str | None = None
    cause: Cause | None = None


@dataclass(frozen=True)
class CountRestart:
    """Add a death to the tenant's tally."""

    tenant: str
    cause: Cause


@dataclass(frozen=True)
class Quarantine:
    """Take a model version out of use, and the one before it back into use; ends in TenantSet."""

    tenant: str
    place: Place
    text: str


@dataclass(frozen=True)
class FindRoom:
    """Somebody waits for a slot, and there is no room for one; ends in RoomFound."""


@dataclass(frozen=True)
class Finish:
    """No slot is left and none will come."""


Instruction = (
    StartZygote
    | RetireZygote
    | BuildSlot
    | AssignSlot
    | Record
    | DestroySlot
    | Commit
    | Answer
    | Publish
    | SetTimer
    | StopTimer
    | Tell
    | CountRestart
    | Quarantine
    | FindRoom
    | Finish
)
