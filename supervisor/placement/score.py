"""How good a seat is: what the box can still take of what is usually asked for when somebody sits there. Pure.

After FGD (Weng et al., "Beware of Fragmentation", USENIX ATC 2023), which counts what is left of a GPU that nobody who
usually comes could use. Here it is counted in tenants that could still come: slots of one GPU and shares of another
have no common unit, tenants have.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Final

from bedsit.supervisor.placement.geometry import count_places
from bedsit.supervisor.placement.request import Request
from bedsit.supervisor.placement.rules import Rules
from bedsit.supervisor.placement.seating import Resident, Seat, Seating, Use
from bedsit.supervisor.placement.seats import take_memory

#: How often each shape of request is asked for, relative to the others.
Mix = Mapping[Request, float]
_WHOLE_MILLI: Final = 1000
#: The mix is of so many shapes at most, the commonest: each costs time at every decision.
_MOST_SHAPES: Final = 32


def learn_mix(asked: Iterable[Request]) -> Mix:
    """The mix of what was *asked* for, granted or not: the commonest shapes."""
    return dict(Counter(request.shape for request in asked).most_common(_MOST_SHAPES))


def suppose_mix(seating: Seating) -> Mix:
    """The mix of a box of which nothing is known: each profile of its cards, whole GPUs and quarters alike."""
    mix: dict[Request, float] = {}
    for card in seating.cards:
        if card.table is not None:
            mix |= dict.fromkeys((Request("mig", profile=name) for name in card.table.names), 1.0)
        elif not card.is_gpu:
            mix |= {Request("core", share_milli=250): 1.0}
        else:
            mix |= {Request("exclusive"): 1.0, Request("timeslice", share_milli=250, trusted=True): 1.0}
    return mix


def count_room(use: Use, shape: Request, rules: Rules) -> int:
    """How many more tenants of a shape a GPU could take, if nobody else came."""
    card = use.card
    if shape.kind == "cpu" or shape.wants_gpu != card.is_gpu or card.trouble or not card.is_model(shape.model):
        return 0
    if shape.kind == "mig":
        return _count_instances(use, shape)
    if card.table is not None or use.holder is not None:
        return 0
    if shape.kind == "exclusive":
        return int(not use.residents and shape.memory_bytes + card.context_bytes <= card.memory_bytes)
    by_share = (_WHOLE_MILLI - use.charged_milli(rules)) // max(1, rules.charge(shape.share_milli, shape.service_class))
    room = by_share
    if card.is_gpu:
        left_bytes = int(card.memory_bytes * rules.memory_factor) - use.promised_bytes
        room = min(room, left_bytes // take_memory(card, shape))
    if shape.min_share_milli:
        room = min(room, (_WHOLE_MILLI - use.guaranteed_milli) // shape.min_share_milli)
    return max(0, room)


def _count_instances(use: Use, shape: Request) -> int:
    profile = use.card.table.find(shape.profile) if use.card.table else None
    if profile is None or (shape.memory_bytes and shape.memory_bytes + use.card.context_bytes > profile.memory_bytes):
        return 0
    if use.card.declared is not None:
        return sum(place.profile == profile.name and not place.mask & use.mask for place in use.card.declared)
    if profile.has_media and any("+me" in place.profile for place in use.taken):
        return 0
    return min(profile.limit, count_places(profile, use.mask))


class Score:
    """Rates the seats of one request in one box; lower is better."""

    def __init__(self, seating: Seating, request: Request, rules: Rules, mix: Mix) -> None:
        self._request, self._rules, self._mix = request, rules, mix
        self._uses = {use.card.name: use for use in seating.uses}
        self._counted: dict[Hashable, Sequence[int]] = {}
        rooms = [self._count(use) for use in seating.uses]
        self._room = [sum(each) for each in zip(*rooms, strict=True)]

    def rate(self, seat: Seat) -> tuple[float, float, float]:
        """Load first where tenants are spread; then what is lost; then how empty the card is."""
        use = self._uses[seat.devices[0]]
        filled = fill(use, self._rules)
        lost = self._lose(use, seat)
        return (filled if self._rules.order == "spread" else 0.0), round(lost, 9), -filled

    def _lose(self, use: Use, seat: Seat) -> float:
        before = self._count(use)
        after = self._count(Use(use.card, (*use.residents, Resident("", self._request, seat))))
        return sum(
            weight * _value(room, room - was + now)
            for weight, room, was, now in zip(self._mix.values(), self._room, before, after, strict=True)
            if was > now
        )

    def _count(self, use: Use) -> Sequence[int]:
        """The room for each shape; cards that are alike are counted once."""
        card = use.card
        if card.table is None:
            what: Hashable = (use.charged_milli(self._rules), use.promised_bytes, use.guaranteed_milli, use.holder)
        else:
            what = (use.mask, any("+me" in place.profile for place in use.taken))
        kind = (card.is_gpu, card.model, card.memory_bytes, id(card.table), card.declared, card.trouble)
        key = (kind, bool(use.residents), what)
        if key not in self._counted:
            self._counted[key] = [count_room(use, shape, self._rules) for shape in self._mix]
        return self._counted[key]


def _value(room: int, left: int) -> float:
    """What it costs to have room for *left* of something instead of *room*: each as much as it is a part of the room.

    So the last one counts in full, and one of many little; a plain difference let box after box fill up evenly.
    """
    return sum(1 / count for count in range(left + 1, room + 1))


def fill(use: Use, rules: Rules) -> float:
    """How full a GPU is, 0 to 1."""
    card = use.card
    if card.table is not None:
        return use.mask.bit_count() / card.table.slots
    memory = use.promised_bytes / card.memory_bytes if card.memory_bytes else 0.0
    return max(use.charged_milli(rules) / _WHOLE_MILLI, memory, bool(use.holder))
