"""Why a tenant sits where it does, or why it has no seat and what would give it one, for people. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bedsit.supervisor.placement.changes import Change, find_changes
from bedsit.supervisor.placement.place import Refusal, place
from bedsit.supervisor.placement.request import Request
from bedsit.supervisor.placement.rules import USUAL, Rules
from bedsit.supervisor.placement.score import Mix
from bedsit.supervisor.placement.seating import Seat, Seating
from bedsit.supervisor.placement.seats import Reason, find_seats


@dataclass(frozen=True)
class Explanation:
    """The *seat*, or None and the *changes* of which each is enough; *reasons* against devices; all as one sentence."""

    seat: Seat | None
    reasons: tuple[Reason, ...]
    changes: tuple[Change, ...]
    sentence: str


def explain(
    seating: Seating, tenant: str, request: Request, rules: Rules = USUAL, mix: Mix | None = None
) -> Explanation:
    """What `place` decides, and why."""
    placed = place(seating, tenant, request, rules, mix)
    against = "; ".join(_group(placed.reasons))
    if isinstance(placed, Refusal):
        changes = find_changes(seating, tenant, request, rules)
        hint = "it would fit if " + ", or if ".join(change.words for change in changes)
        sentence = f"{tenant} has no seat for {request}: {against}; {hint if changes else 'no single change helps'}"
        return Explanation(None, placed.reasons, changes, sentence)
    why = "the only seat" if placed.choices == 1 else _say_choice(placed.choices, rules)
    sentence = f"{tenant} has {placed.seat} for {request}: {why}" + (f"; {against}" if against else "")
    return Explanation(placed.seat, placed.reasons, (), sentence)


def explain_seat(seating: Seating, tenant: str, request: Request, seat: Seat, rules: Rules = USUAL) -> Explanation:
    """Why *tenant* has the *seat* that it was given; *seating* is all but its own."""
    found = find_seats(seating, tenant, request, rules)
    others = [other for other in found.seats if other != seat]
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    also = f"it could have {others[0]}{more}, but nobody is moved" if others else "nothing else would do"
    against = "; ".join(_group([reason for reason in found.reasons if reason.device not in seat.devices]))
    sentence = f"{tenant} has {seat} for {request}: {also}" + (f"; {against}" if against else "")
    return Explanation(seat, found.reasons, (), sentence)


def _say_choice(choices: int, rules: Rules) -> str:
    best = "the one on the emptiest device" if rules.order == "spread" else "the one that leaves most room for others"
    return f"of {choices} seats {best}"


def _group(reasons: Sequence[Reason]) -> Iterator[str]:
    """What is the same on several devices is said once."""
    devices: dict[str, list[str]] = {}
    for reason in reasons:
        devices.setdefault(reason.words, []).append(reason.device)
    for words, names in devices.items():
        yield f"{', '.join(names)}: {words}" if names[0] else words
