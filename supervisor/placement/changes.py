"""What would make a request fit that does not. Pure.

Nothing here reasons about why: a change is tried on a copy of the box, and told if the request then has a seat. So what
is told is true, as long as nobody else comes first.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, Literal

from bedsit.supervisor.placement.profiles import TABLES, Table
from bedsit.supervisor.placement.request import Request
from bedsit.supervisor.placement.rules import Rules
from bedsit.supervisor.placement.seating import Card, Seating, Use
from bedsit.supervisor.placement.seats import find_seats

_MIB: Final = 1 << 20
#: Residents that are looked at: a box with more has somebody among these.
_MOST_LEAVING: Final = 64


@dataclass(frozen=True)
class Change:
    """One thing that is enough: to *ask* for something else, somebody to *leave*, or another *box*.

    With it the tenant's *request* has a seat in the box as `apply` makes it.
    """

    what: Literal["ask", "leave", "box"]
    words: str
    request: Request
    leave: tuple[str, ...] = ()
    card: Card | None = None

    def apply(self, seating: Seating) -> Seating:
        """The box with this changed: without those who leave, with the card in place of one of its name or added."""
        left = seating.leave(self.leave)
        if self.card is None:
            return left
        card = self.card
        if any(each.name == card.name for each in left.cards):
            return replace(left, cards=tuple(card if each.name == card.name else each for each in left.cards))
        return replace(left, cards=(*left.cards, card))


def find_changes(seating: Seating, tenant: str, request: Request, rules: Rules) -> tuple[Change, ...]:
    """Single changes with which *request* fits, those that cost least first; none where it takes more than one."""

    def fits(change: Change) -> bool:
        return bool(find_seats(change.apply(seating), tenant, change.request, rules).seats)

    changes = [*_ask_less(request, fits), *_ask_otherwise(seating, request, fits)]
    changes += _make_leave(seating, request, fits)
    changes += [change for change in _change_box(seating, request) if fits(change)][:1]
    return tuple(changes)


def _ask_less(request: Request, fits: Callable[[Change], bool]) -> Iterator[Change]:
    """The same with the most of one thing that fits: less of it fits wherever more does."""

    def most(highest: int, ask: Callable[[int], Request], words: Callable[[int], str]) -> Iterator[Change]:
        low, high = 0, highest
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(Change("ask", "", ask(middle))) else (low, middle - 1)
        if 0 < low < highest:
            yield Change("ask", f"it asked for {words(low)}", ask(low))

    if request.is_shared:
        yield from most(
            request.share_milli,
            lambda milli: replace(request, share_milli=milli, min_share_milli=min(milli, request.min_share_milli)),
            lambda milli: str(replace(request, share_milli=milli)),
        )
        yield from most(
            request.min_share_milli + 1,
            lambda milli: replace(request, min_share_milli=milli - 1),
            lambda milli: f"a guarantee of {(milli - 1) / 1000:g}",
        )
    if request.kind == "cpu":
        yield from most(request.cores, lambda cores: replace(request, cores=cores), lambda cores: f"cpu:{cores}")
    yield from most(
        -(-request.memory_bytes // _MIB),
        lambda mib: replace(request, memory_bytes=min(mib * _MIB, request.memory_bytes)),
        lambda mib: f"{mib} MiB of memory",
    )


def _ask_otherwise(seating: Seating, request: Request, fits: Callable[[Change], bool]) -> Iterator[Change]:
    """Another profile, or without what it insists on."""
    others: list[Change] = []
    if request.kind == "mig":
        others += _list_profiles(seating, request)
    if request.kind == "timeslice" and not request.trusted:
        others += [
            Change("ask", "it were trusted", replace(request, trusted=True)),
            *(_list_profiles(seating, request)),
            Change("ask", "it asked for gpu", _convert(request, Request("exclusive"))),
        ]
    if request.model:
        others.append(Change("ask", f"it took any GPU, not only a {request.model}", replace(request, model="")))
    if request.near:
        others.append(Change("ask", "it need not be near anybody", replace(request, near=frozenset())))
    if request.apart:
        others.append(Change("ask", "it need not be apart from anybody", replace(request, apart=frozenset())))
    if request.is_shared and request.service_class != "batch":
        others.append(Change("ask", "it were of class batch", replace(request, service_class="batch")))
    has_profile = False
    for change in others:
        if not (has_profile and change.request.kind == "mig") and fits(change):
            has_profile = has_profile or change.request.kind == "mig"
            yield change


def _list_profiles(seating: Seating, request: Request) -> Iterator[Change]:
    """Other profiles of the box's cards: of the same size or smaller, the largest first, then larger ones."""
    profiles = {p.name: p for card in seating.cards if card.table is not None for p in card.table.profiles}
    wanted = profiles.get(request.profile)
    size = wanted.size if wanted else 1
    for profile in sorted(profiles.values(), key=lambda p: (p.size > size, abs(p.size - size), p.has_media, p.name)):
        if profile.name != request.profile:
            other = _convert(request, Request("mig", profile=profile.name))
            yield Change("ask", f"it asked for mig:{profile.name}", other)


def _convert(request: Request, device: Request) -> Request:
    """The same constraints for another kind of device."""
    return replace(request, kind=device.kind, profile=device.profile, share_milli=device.share_milli, min_share_milli=0)


def _make_leave(seating: Seating, request: Request, fits: Callable[[Change], bool]) -> Iterator[Change]:
    """One tenant, else two of one device, else all of one: the first that is enough, small ones first."""
    residents = sorted(seating.residents, key=lambda each: (_weigh(each.request), each.tenant))[:_MOST_LEAVING]
    devices: dict[str, list[str]] = {}
    for each in residents:
        for device in each.seat.devices:
            devices.setdefault(device, []).append(each.tenant)
    groups: list[Sequence[str]] = [(each.tenant,) for each in residents]
    groups += [pair for names in devices.values() for pair in combinations(names, 2)]
    groups += sorted((names for names in devices.values() if len(names) > 2), key=len)  # noqa: PLR2004 - more than a pair
    for names in groups:
        change = Change("leave", f"{' and '.join(names)} left", request, tuple(names))
        if fits(change):
            yield change
            return


def _weigh(request: Request) -> tuple[int, int, int]:
    return request.kind == "exclusive", request.share_milli + request.cores, len(request.profile)


def _change_box(seating: Seating, request: Request) -> Iterator[Change]:
    """An empty GPU cut or no longer cut, or one GPU more of a kind that is there."""
    if not request.wants_gpu:
        return
    for use in seating.uses:
        if not use.residents and use.card.is_gpu and not use.card.trouble:
            yield from _turn(use, request)
    for card in seating.gpus:
        for other in (card, *(_recut(card))):
            words = f"there were one more {card.model}" + (" cut by MIG" if other.table else "")
            more = replace(other, name=_name_next(seating), declared=None, trouble="", broken=())
            yield Change("box", words, request, card=more)


def _turn(use: Use, request: Request) -> Iterator[Change]:
    for card in _recut(use.card):
        verb = "cut" if card.table else "not cut"
        yield Change("box", f"{card.name}, which is empty, were {verb} by MIG", request, card=card)
    if use.card.declared is not None:
        words = f"{use.card.name}, which is empty, had another geometry"
        yield Change("box", words, request, card=replace(use.card, declared=None))


def _recut(card: Card) -> Iterator[Card]:
    """The card with MIG the other way, where its profiles are known."""
    if card.table is not None:
        yield replace(card, table=None, declared=None)
    else:
        table = card.possible or _find_table(card)
        if table is not None:
            yield replace(card, table=table)


def _find_table(card: Card) -> Table | None:
    return next((table for words, table in TABLES.items() if card.is_model(words)), None)


def _name_next(seating: Seating) -> str:
    names = {card.name for card in seating.cards}
    return next(name for name in (f"gpu{number}" for number in range(len(names) + 1)) if name not in names)
