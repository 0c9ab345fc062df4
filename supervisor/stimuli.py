"""What the lifecycle may hear: facts and wishes, as plain values. Who reports each is said here."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.jail.context import Profile
from bedsit.supervisor.births import ORDINARY, Birth
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.placement.seating import Seat
from bedsit.supervisor.policy import USUAL, Hold, ModelSet, Place, Policy

TimerKind = Literal[
    "drain", "healthy", "lasting", "load", "lost", "period", "pool", "restart", "roll", "room", "settled", "zygote"
]


class Timer(NamedTuple):
    """A timer's name: what it is for, and whose it is (slot, tenant or operation)."""

    kind: TimerKind
    subject: str = ""


@dataclass(frozen=True)
class Begin:
    """Recovery is over: build, start, publish from now on."""


@dataclass(frozen=True)
class ZygoteUp:
    """A zygote answers, which has forked that often. From the zygote's watcher."""

    generation: int
    forks: int


@dataclass(frozen=True)
class ZygoteDown:
    """The zygote is gone, or could not be started. From the zygote's watcher."""

    generation: int
    cause: str


@dataclass(frozen=True)
class TenantSet:
    """What the operator wants of a tenant now. From the registry, after it was written down."""

    tenant: str
    running: bool
    strict: bool
    models: ModelSet
    profile: Profile = "standard"
    policy: Policy = USUAL
    model_bytes: int = 0
    seat: Seat | None = None

    @property
    def birth(self) -> Birth:
        """What its slots are born as."""
        return Birth(self.profile, self.seat.device, self.seat.slot_bytes) if self.seat else Birth(self.profile)


@dataclass(frozen=True)
class SeatSeen:
    """Whether slots can start on a tenant's seat now, and why not. From the usher, after a look at the devices."""

    tenant: str
    state: Hold
    why: str


@dataclass(frozen=True)
class TenantGone:
    """The tenant was deleted. From the registry."""

    tenant: str


@dataclass(frozen=True)
class TenantWanted:
    """Somebody asks for a tenant without a slot. From the router, or its operator: costs a slot at most."""

    tenant: str


@dataclass(frozen=True)
class TenantIdle:
    """Nobody has asked anything of this tenant for as long as its operator said. From the meter."""

    tenant: str


@dataclass(frozen=True)
class TenantLoad:
    """As many slots as the tenant's requests need now. From the meter."""

    tenant: str
    slots: int


@dataclass(frozen=True)
class RoomFound:
    """Who may be parked for somebody who waits, the cheapest first, and why that is needed. From the meter."""

    tenants: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class MemoryLeft:
    """What the box has to give away before it runs out, in bytes; below 0 it has run out. From the meter."""

    left: int


@dataclass(frozen=True)
class RollAsked:
    """Somebody wants the tenant to serve *models* instead; answered through *operation*."""

    operation: str
    tenant: str
    models: ModelSet
    timeout_s: float


@dataclass(frozen=True)
class RollCommitted:
    """The new set is written down. From effects."""

    operation: str


@dataclass(frozen=True)
class RollRefused:
    """The new set could not be written down. From effects."""

    operation: str
    error: BedsitError


@dataclass(frozen=True)
class SlotAdopted:
    """A slot of an earlier daemon lives. From recovery."""

    slot: str
    state: Literal["blank", "loading", "serving", "draining"]
    tenant: str | None
    models: ModelSet
    degraded: bool
    generation: int
    birth: Birth = ORDINARY
    seat: Seat | None = None


@dataclass(frozen=True)
class SlotBuilt:
    """A blank slot is ready and inspected; *degraded*: walls that strict tenants need are missing, *lacks*: which."""

    slot: str
    generation: int
    degraded: bool = False
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlotRefused:
    """A slot could not be built or failed its inspection."""

    slot: str
    why: str


@dataclass(frozen=True)
class ModelsLoaded:
    """The worker says that it serves, hostile: may come at any time. *used_bytes* are what the kernel says it takes."""

    slot: str
    used_bytes: int = 0


@dataclass(frozen=True)
class LoadFailed:
    """The worker says that a model does not load. Hostile: may come at any time."""

    slot: str
    error: BedsitError
    blame: Place | None = None


@dataclass(frozen=True)
class SlotDied:
    """The worker or its init ended. From the slot's watcher, which read the counters."""

    slot: str
    cause: Cause
    loads: Place | None = None


@dataclass(frozen=True)
class SlotLost:
    """The worker closed its socket to the router, which knows what it had to run. From the router: may be wrong."""

    slot: str
    blame: Place | None = None


@dataclass(frozen=True)
class SlotHung:
    """A call has run for longer than the tenant may, or what *told* says. From router and books: may be wrong."""

    slot: str
    blame: Place | None
    text: str
    told: Literal["turn.overrun", "turn.evaded"] | None = None


@dataclass(frozen=True)
class SlotExceeded:
    """It has more of its GPU's memory than it may, as *text* says. From who watches that."""

    slot: str
    text: str


@dataclass(frozen=True)
class SlotDrained:
    """No request of a draining slot is left. From the router."""

    slot: str


@dataclass(frozen=True)
class SlotGone:
    """Nothing runs in the slot any more: its cgroup is empty. From effects."""

    slot: str


@dataclass(frozen=True)
class TimerFired:
    """A timer that the lifecycle asked for."""

    timer: Timer


@dataclass(frozen=True)
class ShutDown:
    """End every slot; the house closes."""


#: What is said of one slot, and means nothing once the slot is gone.
SlotNews = (
    SlotBuilt
    | SlotRefused
    | ModelsLoaded
    | LoadFailed
    | SlotDied
    | SlotLost
    | SlotHung
    | SlotExceeded
    | SlotDrained
    | SlotGone
)

Stimulus = (
    Begin
    | ZygoteUp
    | ZygoteDown
    | TenantSet
    | SeatSeen
    | TenantGone
    | TenantWanted
    | TenantIdle
    | TenantLoad
    | RoomFound
    | MemoryLeft
    | RollAsked
    | RollCommitted
    | RollRefused
    | SlotAdopted
    | SlotNews
    | TimerFired
    | ShutDown
)
