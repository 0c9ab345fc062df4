"""What follows from how much of a GPU's memory a slot uses. Pure: counts in, verdicts out.

    | uses                                    | verdict                            |
    |-----------------------------------------|------------------------------------|
    | no more than its quota                  | none, and what was is forgotten    |
    | more                                    | over, once until it is below again |
    | more than SLACK above it, and so before | exceeded: it has to end            |

Twice, because a number may be of the moment in which a process replaces what it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from bedsit.supervisor.memory.kinds import SLACK_BYTES

_TIMES: Final = 2
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Use:
    """How much a slot has of its GPU's memory, and may have."""

    used_bytes: int
    quota_bytes: int


@dataclass(frozen=True)
class Verdict:
    """What is to be said about a slot, or done."""

    slot: str
    what: Literal["over", "exceeded"]
    text: str


@dataclass
class Ladder:
    """Compares each look with the one before."""

    _over: set[str] = field(default_factory=set)
    _far: dict[str, int] = field(default_factory=dict)

    def judge(self, uses: Mapping[str, Use]) -> list[Verdict]:
        """All slots that were looked at; what is not among them is forgotten."""
        found: list[Verdict] = []
        for slot, use in uses.items():
            above = use.used_bytes - use.quota_bytes
            self._far[slot] = self._far.get(slot, 0) + 1 if above > SLACK_BYTES else 0
            if self._far[slot] >= _TIMES:
                found.append(Verdict(slot, "exceeded", f"out of GPU memory: {_say(use)}"))
            elif above > 0 and slot not in self._over:
                found.append(Verdict(slot, "over", f"{_say(use)}; it is ended at {SLACK_BYTES // _MIB} MiB more"))
        self._over = {slot for slot, use in uses.items() if use.used_bytes > use.quota_bytes}
        self._far = {slot: times for slot, times in self._far.items() if slot in uses}
        return found


def _say(use: Use) -> str:
    return f"{use.used_bytes // _MIB:,} MiB are used, and {use.quota_bytes // _MIB:,} were given"
