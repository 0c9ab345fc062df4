"""What the lifecycle remembers: slots, rolls, tenants, and the numbers that it keeps to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from bedsit.supervisor.births import ORDINARY, Birth
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.placement.seating import Seat
from bedsit.supervisor.policy import USUAL, Hold, ModelSet, Place, Policy
from bedsit.supervisor.transitions import SlotState

_FIRST_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 30.0

TenantState = Literal["running", "starting", "parked", "stopped", "failed", "degraded", "empty"]


@dataclass
class Slot:
    """One slot. *operation* is set while it loads for a roll, *generation* (its zygote's) when it is built.

    *birth*: what it is for life. *lacks*: the walls for which it is *degraded*; nobody knows them of one that was
    adopted. *stale*: another one is to
    take its place. *settled*: it has served long enough to be parked. *blame*: what it ran when it ended, and
    *is_unexplained*: it has ended, and nobody knows what it ran.
    """

    id: str
    state: SlotState = "building"
    tenant: str | None = None
    models: ModelSet = ()
    operation: str | None = None
    degraded: bool = False
    generation: int = 0
    birth: Birth = ORDINARY
    lacks: tuple[str, ...] = ()
    stale: bool = False
    settled: bool = False
    blame: Place | None = None
    is_unexplained: bool = False
    seat: Seat | None = None


@dataclass
class Roll:
    """A new set of models on its way in; *slot* is None while it waits for one."""

    operation: str
    models: ModelSet
    timeout_s: float
    slot: str | None = None


@dataclass
class Tenant:
    """A tenant. *crew*: the slots that take its requests or are about to, oldest first; *target*: their number.

    *resting*: a restart waits for its timer. *given_up*: nothing is tried until its operator says so. *deaths* are
    those of the running period, *failures* those since it served well; *blames* says what ran then. *slot_bytes*: what
    a slot of it is known to take. *birth*: what its slots have to be born as. *hold*: no slot of it starts, because of
    its *seat*; *trouble* says why.
    """

    name: str
    running: bool = True
    strict: bool = True
    models: ModelSet = ()
    birth: Birth = ORDINARY
    policy: Policy = USUAL
    target: int = 0
    slot_bytes: int = 0
    crew: dict[str, Slot] = field(default_factory=dict)
    roll: Roll | None = None
    failures: int = 0
    deaths: int = 0
    blames: Counter[Place] = field(default_factory=Counter)
    resting: bool = False
    given_up: bool = False
    cause: Cause | None = None
    seat: Seat | None = None
    hold: Hold = ""
    trouble: str = ""

    @property
    def wanted(self) -> int:
        """How many slots it should have now; what still serves of one that gets no more may stay."""
        if not self.running or not self.models:
            return 0
        return min(self.target, len(self.crew)) if self.given_up or self.hold else self.target

    @property
    def may_want(self) -> bool:
        """Whether it may need a slot at any time, also while it has none."""
        return self.running and bool(self.models) and not self.hold

    @property
    def has_failed(self) -> bool:
        """Whether it has no slot, and none is tried until its operator says so, or its device is well again."""
        return (self.given_up or self.hold == "degraded") and self.running and not self.crew

    @property
    def missing(self) -> int:
        """How many slots have to be made for it now."""
        return 0 if self.resting or self.given_up or self.hold else max(0, self.wanted - len(self.fresh))

    @property
    def fresh(self) -> Sequence[Slot]:
        """Those of the crew that are as they should be."""
        return [slot for slot in self.crew.values() if not slot.stale]

    @property
    def serving(self) -> Sequence[Slot]:
        """Those of the crew that take requests."""
        return [slot for slot in self.crew.values() if slot.state == "serving"]

    @property
    def surplus(self) -> Sequence[Slot]:
        """Those of the crew that can go: the newest that are too many, stale ones that are replaced or still load."""
        fresh = self.fresh
        unready = max(0, self.wanted - sum(slot.state == "serving" for slot in fresh))
        stale = [slot for slot in self.serving if slot.stale]
        loading = [slot for slot in self.crew.values() if slot.stale and slot.state != "serving"]
        return [*fresh[self.wanted :], *loading, *stale[: max(0, len(stale) - unready)]]

    @property
    def is_owed(self) -> bool:
        """Whether it has fewer slots than it was promised."""
        return len(self.crew) < self.policy.min_slots

    @property
    def can_park(self) -> bool:
        """Whether it may lose its slots until somebody asks for it: its policy keeps none, and none has just come."""
        is_steady = self.roll is None and all(slot.state == "serving" and slot.settled for slot in self.crew.values())
        return self.policy.min_slots == 0 and self.wanted > 0 and bool(self.crew) and is_steady

    def clamp(self, slots: int) -> int:
        """*slots*, as far as the policy allows."""
        return max(self.policy.min_slots, min(slots, self.policy.max_slots))

    def takes(self, blank: Slot) -> bool:
        """Whether a blank slot may become this tenant's."""
        return blank.birth == self.birth and not (blank.degraded and self.strict)

    def fits(self, slot: Slot) -> bool:
        """Whether the tenant's slot is what its operator wants now."""
        return (slot.models, slot.birth, slot.seat) == (self.models, self.birth, self.seat)


@dataclass(frozen=True)
class Limits:
    """The numbers that the house keeps to."""

    pool_size: int
    max_slots: int
    load_timeout_s: float
    drain_timeout_s: float
    zygote_forks_max: int
    residence_s: float = 10.0
    #: Blank slots kept for each device that somebody sits on.
    device_stock: int = 0


@dataclass(frozen=True)
class Statistics:
    """Counts of slots, for ``status``."""

    target: int
    blank: int
    building: int
    slots: int


def backoff_s(failures: int) -> float:
    """The rest before the next attempt: none after the first failure, then 0.5 s doubling up to 30 s."""
    if failures <= 1:
        return 0.0
    return float(min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(failures - 2, 16)))
