"""How a tenant's slots come and go, as its operator wants it."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from msgspec import Meta

#: A model and its version, by their numbers.
Place = tuple[int, int]
#: Such pairs, sorted.
ModelSet = tuple[Place, ...]
#: After which deaths a slot is replaced: all, those that were no orderly exit, or none.
Restart = Literal["permanent", "transient", "temporary"]
#: Why no slot starts on a tenant's seat: nobody has looked at its device yet, it is degraded or gone; '': it can.
Hold = Literal["", "unseen", "degraded"]

# The ranges, for configuration and admin API; the database has them as constraints of its own.
Restarts = Annotated[int, Meta(ge=0, le=10_000)]
Period = Annotated[float, Meta(ge=1, le=86_400)]
Deaths = Annotated[int, Meta(ge=0, le=1000)]
FewestSlots = Annotated[int, Meta(ge=0, le=1024)]
MostSlots = Annotated[int, Meta(ge=1, le=1024)]
Idle = Annotated[float, Meta(ge=0, le=31_536_000)]
Run = Annotated[float, Meta(ge=0, le=86_400)]


@dataclass(frozen=True)
class Policy:
    """How a tenant's slots come and go.

    After more than *restarts_max* deaths within *restart_period_s* it is given up (0: never). A model version that was
    running at *quarantine_after* of them in a row is taken out where another one can answer (0: never). It has
    *min_slots* to *max_slots*, and no more than *min_slots* when it has been idle for *idle_s* (0: for that alone, none
    goes).
    """

    restart: Restart = "permanent"
    restarts_max: int = 0
    restart_period_s: float = 600.0
    quarantine_after: int = 3
    min_slots: int = 1
    max_slots: int = 1
    idle_s: float = 0.0


USUAL: Final = Policy()
