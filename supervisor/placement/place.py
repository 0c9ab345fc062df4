"""Who sits where: of the seats that there are, the one that leaves most for others (`score.py`). Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from bedsit.supervisor.placement.request import Request
from bedsit.supervisor.placement.rules import USUAL, Rules
from bedsit.supervisor.placement.score import Mix, Score, suppose_mix
from bedsit.supervisor.placement.seating import Seat, Seating
from bedsit.supervisor.placement.seats import Reason, find_seats

#: Seats that are tried at most for tenants that come together: a second, about.
_MOST_STEPS: Final = 500
#: Of more tenants than this nothing is searched: they are placed one after the other.
_MOST_TOGETHER: Final = 100


@dataclass(frozen=True)
class Placement:
    """A *seat*; what it *costs* beside others, of how many it is one, and why not elsewhere."""

    seat: Seat
    cost: float
    choices: int
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """No seat, for these reasons."""

    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Together:
    """The *seats* of many, by tenant. *is_most*: it is proven that no other way seats more of them.

    Nothing is proven of requests that name other tenants: what these mean depends on who comes first.
    """

    seats: Mapping[str, Seat]
    is_most: bool


def place(
    seating: Seating, tenant: str, request: Request, rules: Rules = USUAL, mix: Mix | None = None
) -> Placement | Refusal:
    """The best seat for *tenant*; *mix* is what is usually asked for of this box (None: what its cards could be)."""
    found = find_seats(seating, tenant, request, rules)
    if not found.seats:
        return Refusal(found.reasons)
    cost, seat = _rank(seating, request, found.seats, rules, mix)[0]
    return Placement(seat, cost, len(found.seats), found.reasons)


def place_all(seating: Seating, asks: Mapping[str, Request], rules: Rules = USUAL, mix: Mix | None = None) -> Together:
    """Seats for as many as possible of tenants that come together, as when a box starts.

    The largest first, else the smallest first, each where it costs least. Where that leaves somebody out, other ways
    are searched, to a bound; of those that seat as many the one that leaves most for others.
    """
    order = sorted(asks, key=lambda tenant: (-_size(seating, asks[tenant]), tenant))
    usual = suppose_mix(seating) if mix is None else mix
    tried = [
        _place_each(seating, {tenant: asks[tenant] for tenant in way}, rules, usual) for way in (order, order[::-1])
    ]
    best, best_cost = max(tried, key=lambda each: (len(each[0]), -each[1]))
    steps = _MOST_STEPS if len(asks) <= _MOST_TOGETHER else 0

    def search(seating: Seating, left: Sequence[str], seats: dict[str, Seat], cost: float) -> None:
        nonlocal best, best_cost, steps
        if (len(seats), -cost) > (len(best), -best_cost):
            best, best_cost = seats, cost
        if not left or len(best) == len(asks) or steps <= 0:
            return
        if (len(seats) + len(left), -cost) <= (len(best), -best_cost):
            return
        steps -= 1
        tenant, *others = left
        request = asks[tenant]
        found = find_seats(seating, tenant, request, rules).seats
        for more, seat in _tell_apart(seating, request, found, rules, usual):
            search(seating.seat(tenant, request, seat), others, {**seats, tenant: seat}, cost + more)
        search(seating, others, seats, cost)

    search(seating, order, {}, 0.0)
    is_plain = not any(request.near or request.apart for request in asks.values())
    return Together(best, is_most=len(best) == len(asks) or (steps > 0 and is_plain))


def _place_each(seating: Seating, asks: Mapping[str, Request], rules: Rules, mix: Mix) -> tuple[dict[str, Seat], float]:
    """Seats of those who have one, each placed after the one before, and what they cost."""
    seats: dict[str, Seat] = {}
    cost = 0.0
    for tenant, request in asks.items():
        placed = place(seating, tenant, request, rules, mix)
        if isinstance(placed, Placement):
            seats[tenant] = placed.seat
            cost += placed.cost
            seating = seating.seat(tenant, request, placed.seat)
    return seats, cost


def _rank(
    seating: Seating, request: Request, seats: Sequence[Seat], rules: Rules, mix: Mix | None
) -> Sequence[tuple[float, Seat]]:
    """The seats with what each costs, the best first."""
    if request.kind == "cpu":
        free = {node.name: len(cores) for node, cores in zip(seating.nodes, seating.free_cores, strict=True)}
        sign = 1 if rules.order == "pack" else -1
        return [(0.0, seat) for seat in sorted(seats, key=lambda seat: sign * sum(free[name] for name in seat.devices))]
    score = Score(seating, request, rules, suppose_mix(seating) if mix is None else mix)
    rated = sorted(((score.rate(seat), index) for index, seat in enumerate(seats)))
    return [(rate[1], seats[index]) for rate, index in rated]


def _tell_apart(
    seating: Seating, request: Request, seats: Sequence[Seat], rules: Rules, mix: Mix
) -> Iterator[tuple[float, Seat]]:
    """Seats with their costs, the best first; of those that differ only in which empty GPU they are on, one."""
    uses = {use.card.name: use for use in seating.uses}
    seen = set()
    for cost, seat in _rank(seating, request, seats, rules, mix):
        use = uses.get(seat.devices[0])
        card = replace(use.card, name="") if use and not use.residents else seat.devices
        if (card, seat.placed) not in seen:
            seen.add((card, seat.placed))
            yield cost, seat


def _size(seating: Seating, request: Request) -> float:
    """How much of a GPU a request takes, about."""
    if request.kind == "mig":
        tables = [card.table for card in seating.cards if card.table is not None]
        sizes = (p.size / table.slots for table in tables for p in table.profiles if p.name == request.profile)
        return max(sizes, default=0.0)
    return {
        "exclusive": 2.0,
        "timeslice": request.share_milli / 1000,
        "core": 0.0,
        "cpu": -1.0 / request.cores if request.cores else 0,
    }[request.kind]
