"""The life of one slot as a full table: every state meets every event, no combination is undefined.

    building → blank → loading → serving → draining → dying → (gone)      and from everywhere to dying

*ignored* is news that may rightly come late or twice. *rejected* is a bug of ours: it raises InvalidTransition with the
slot's recent history. What a worker or the router can cause is never rejected, because they may say anything.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final, Literal, get_args

SlotState = Literal["building", "blank", "loading", "serving", "draining", "dying"]
SlotEvent = Literal[
    "built",  # inspected and ready
    "refused",  # could not be built
    "taken",  # given to a tenant
    "loaded",  # says the worker
    "load_failed",  # says the worker
    "overdue",  # a load or drain timer fired
    "superseded",  # another slot of the tenant takes over, or the tenant stops
    "drained",  # says the router
    "died",  # says the kernel
    "hung",  # says the router: a call runs for too long
    "exceeded",  # says the driver: it has too much of its GPU's memory
    "abandoned",  # nobody needs it any more
    "gone",  # its cgroup is empty
]
Outcome = SlotState | Literal["gone", "ignored", "rejected"]

STATES: Final[tuple[SlotState, ...]] = get_args(SlotState)
EVENTS: Final[tuple[SlotEvent, ...]] = get_args(SlotEvent)
#: Events that someone we do not believe can cause.
HOSTILE: Final[frozenset[SlotEvent]] = frozenset(
    {"loaded", "load_failed", "drained", "died", "overdue", "hung", "exceeded"}
)

# fmt: off
DIES: Final = "dying"
LATE: Final = "ignored"
GONE: Final = "gone"
NO: Final = "rejected"
_ROWS: Final[Mapping[SlotState, tuple[Outcome, ...]]] = {
    #             built    refus. taken      loaded     failed overd. superseded  drain. died  hung  exc.  aband. gone
    "building": ("blank", DIES,  NO,        LATE,      LATE,  LATE,  NO,         LATE,  DIES, LATE, LATE,  DIES,  NO),
    "blank":    (NO,      NO,    "loading", LATE,      LATE,  LATE,  NO,         LATE,  DIES, LATE, LATE,  DIES,  NO),
    "loading":  (NO,      NO,    NO,        "serving", DIES,  DIES,  DIES,       LATE,  DIES, LATE, DIES,  DIES,  NO),
    "serving":  (NO,      NO,    NO,        LATE,      LATE,  LATE,  "draining", LATE,  DIES, DIES, DIES,  DIES,  NO),
    "draining": (NO,      NO,    NO,        LATE,      LATE,  DIES,  LATE,       DIES,  DIES, DIES, DIES,  DIES,  NO),
    "dying":    (LATE,    LATE,  NO,        LATE,      LATE,  LATE,  LATE,       LATE,  LATE, LATE, LATE,  LATE,  GONE),
}
# fmt: on
TRANSITIONS: Final[Mapping[tuple[SlotState, SlotEvent], Outcome]] = {
    (state, event): outcome for state, row in _ROWS.items() for event, outcome in zip(EVENTS, row, strict=True)
}


class InvalidTransition(Exception):
    """A bug of ours: an event that cannot be. *story* is the subject's recent history."""

    def __init__(self, slot: str, state: str, event: str, story: list[str]) -> None:
        super().__init__(slot, state, event, story)
        self.slot, self.state, self.event, self.story = slot, state, event, story

    def __str__(self) -> str:
        lines = "".join(f"\n  {line}" for line in self.story)
        return f"slot {self.slot} cannot be {self.event!r} while it is {self.state}; its story:{lines}"


class Story:
    """The last moves of all slots, oldest first: what an InvalidTransition tells."""

    def __init__(self, length: int = 256) -> None:
        self._lines: deque[tuple[str, str]] = deque(maxlen=length)

    def add(self, slot: str, state: str, event: str, outcome: str) -> None:
        """Remember one move."""
        self._lines.append((slot, f"{state} --{event}--> {outcome}"))

    def of(self, slot: str) -> list[str]:
        """The remembered moves of one slot."""
        return [line for subject, line in self._lines if subject == slot]

    def __iter__(self) -> Iterator[str]:
        return (f"{slot}: {line}" for slot, line in self._lines)
