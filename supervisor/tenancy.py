"""What the lifecycle remembers: slots, rolls, tenants, and the numbers that it keeps to."""

from dataclasses import dataclass
from typing import Final, Literal

from bedsit.sandbox.jail.context import Profile
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.stimuli import ModelSet
from bedsit.supervisor.transitions import SlotState

_FIRST_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 30.0

TenantState = Literal["running", "starting", "stopped", "failed", "empty"]


@dataclass
class Slot:
    """One slot. *operation* is set while it loads for a roll, *generation* (its zygote's) when it is built.

    *lacks*: the walls for which it is *degraded*; nobody knows them of one that was adopted.
    """

    id: str
    state: SlotState = "building"
    tenant: str | None = None
    models: ModelSet = ()
    operation: str | None = None
    degraded: bool = False
    generation: int = 0
    profile: Profile = "standard"
    lacks: tuple[str, ...] = ()


@dataclass
class Roll:
    """A new set of models on its way in; *slot* is None while it waits for one."""

    operation: str
    models: ModelSet
    timeout_s: float
    slot: str | None = None


@dataclass
class Tenant:
    """A tenant. *slot* serves or starts the committed set; *resting*: a restart waits for its timer."""

    name: str
    running: bool = True
    strict: bool = True
    models: ModelSet = ()
    slot: str | None = None
    roll: Roll | None = None
    failures: int = 0
    resting: bool = False
    cause: Cause | None = None
    profile: Profile = "standard"

    def takes(self, blank: Slot) -> bool:
        """Whether a blank slot may become this tenant's."""
        return blank.profile == self.profile and not (blank.degraded and self.strict)

    def fits(self, slot: Slot) -> bool:
        """Whether the tenant's slot is what its operator wants now."""
        return self.running and slot.models == self.models and slot.profile == self.profile


@dataclass(frozen=True)
class Limits:
    """The numbers that the house keeps to."""

    pool_size: int
    max_slots: int
    load_timeout_s: float
    drain_timeout_s: float
    zygote_forks_max: int


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
