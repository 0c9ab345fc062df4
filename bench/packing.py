"""How many tenants a box takes, by how they are placed: ``python -m bench.packing --json F [--quick]``.

Recorded customers (`bench.traces.asks`) come and go at boxes with GPUs that are not there; nothing runs. All four ways
know the same seats and differ in which they take. Nobody is moved, and who has no seat goes away.

ours     `supervisor/placement/place.py`, knowing what was asked for until then
first    the first GPU with room, the first place on it
best     the fullest GPU with room, the first place on it
vendor   as mig-parted: places are left to the driver, and for those who come together every order is tried. It says
         nothing about which GPU: the first with room

What the driver takes when nobody says where is known from the output of ``nvidia-smi mig -cgi`` on A100 and H100 as
others published it; it is not first fit.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, permutations
from typing import Any, Final

import numpy as np

from bedsit.supervisor.placement.place import Placement, place, place_all
from bedsit.supervisor.placement.request import Request
from bedsit.supervisor.placement.rules import USUAL
from bedsit.supervisor.placement.score import fill, learn_mix
from bedsit.supervisor.placement.seating import Seat, Seating
from bedsit.supervisor.placement.seats import find_seats
from bench import report
from bench.traces.asks import MIXES, Coming, draw_asks, measure_ask, parse_asks, read_asks

_REMEMBERED: Final = 200
_DRAWS: Final = 8
_DRAWN_CUSTOMERS: Final = 400
_QUICK_CUSTOMERS: Final = 300
_MOST_ORDERS: Final = 120
#: The order in which a driver takes places for instances of one, two, four and eight slots.
_DRIVERS_ORDER: Final = {1: (6, 4, 5, 0, 1, 2, 3), 2: (4, 0, 2, 6), 4: (4, 0), 8: (0,)}

Asks = Mapping[str, Request]
Way = Callable[[Seating, Asks], Mapping[str, Seat]]


@dataclass
class Outcome:
    """What became of one trace: tenants by whether they had a seat, GPU time, processor time of each decision."""

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    granted_gpu_s: float = 0.0
    asked_gpu_s: float = 0.0
    took_us: list[float] = field(default_factory=list)

    def sum_up(self) -> dict[str, Any]:
        """As it is reported."""
        return {
            "accepted": self.accepted,
            "refused": dict(sorted(self.refused.items())),
            "granted": round(self.granted_gpu_s / self.asked_gpu_s, 4),
            "p50_us": round(float(np.percentile(self.took_us, 50)), 1),
            "p99_us": round(float(np.percentile(self.took_us, 99)), 1),
        }


class Ours:
    """What bedsit does, for one box."""

    def __init__(self) -> None:
        self._asked: deque[Request] = deque(maxlen=_REMEMBERED)

    def __call__(self, box: Seating, asks: Asks) -> Mapping[str, Seat]:
        """Learn what is asked for, then place."""
        self._asked += asks.values()
        mix = learn_mix(self._asked)
        if len(asks) > 1:
            return place_all(box, asks, USUAL, mix).seats
        ((tenant, request),) = asks.items()
        placed = place(box, tenant, request, USUAL, mix)
        return {tenant: placed.seat} if isinstance(placed, Placement) else {}


def take_first(box: Seating, asks: Asks) -> Mapping[str, Seat]:
    """First fit."""
    return _take(box, list(asks.items()), lambda _, seats: seats[0])


def take_best(box: Seating, asks: Asks) -> Mapping[str, Seat]:
    """Best fit: the fullest device."""
    return _take(box, list(asks.items()), _pick_fullest)


def take_vendors(box: Seating, asks: Asks) -> Mapping[str, Seat]:
    """Every order, until everybody has a seat; else the one that seats most."""
    best: Mapping[str, Seat] = {}
    for order in islice(permutations(asks.items()), _MOST_ORDERS):
        seats = _take(box, order, _pick_drivers)
        if len(seats) > len(best):
            best = seats
        if len(best) == len(asks):
            break
    return best


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """All traces, and in a full run as many again that nobody has looked at."""
    traces: dict[str, dict[str, Any]] = {}
    for name in MIXES:
        box, comings = read_asks(name)
        traces[name] = _compare(box, comings[: _QUICK_CUSTOMERS if quick else None])
    draws = 0 if quick else _DRAWS
    drawn = {
        name: [_compare(*parse_asks(list(draw_asks(mix, seed, _DRAWN_CUSTOMERS)))) for seed in range(draws)]
        for name, mix in MIXES.items()
    }
    return {
        "traces": traces,
        "behind": [name for name, ways in traces.items() if _gain(ways) < 0],
        "drawn": {name: sorted(_gain(ways) for ways in each) for name, each in drawn.items()},
        "drawn_totals": {name: _total(each) for name, each in drawn.items() if each},
    }


def show(result: Mapping[str, Any]) -> None:
    """Print a row for each way and trace."""
    rows = [
        [f"{name} {way}", *(each[key] for key in ("accepted", "granted", "p50_us", "p99_us")), _say(each["refused"])]
        for name, ways in result["traces"].items()
        for way, each in ways.items()
    ]
    report.print_table(["trace, way", "accepted", "granted", "p50_us", "p99_us", "refused"], rows)
    print(f"behind another on: {', '.join(result['behind']) or 'no trace'}")
    for name, totals in result["drawn_totals"].items():
        print(f"{name}, other draws: {_say(totals)}; ours less the best other, each: {result['drawn'][name]}")


def _compare(box: Seating, comings: Sequence[Coming]) -> dict[str, Any]:
    ways: dict[str, Way] = {"ours": Ours(), "first": take_first, "best": take_best, "vendor": take_vendors}
    return {name: _replay(box, comings, way).sum_up() for name, way in ways.items()}


def _replay(box: Seating, comings: Sequence[Coming], way: Way) -> Outcome:
    outcome = Outcome()
    leaving: dict[str, float] = {}
    for index, coming in enumerate(comings):
        gone = {tenant for tenant, at_s in leaving.items() if at_s <= coming.at_s}
        if gone:
            box = box.leave(gone)
            leaving = {tenant: at_s for tenant, at_s in leaving.items() if tenant not in gone}
        asks = {f"t{index}-{number}": request for number, request in enumerate(coming.asks)}
        began_ns = time.thread_time_ns()
        seats = way(box, asks)
        outcome.took_us.append((time.thread_time_ns() - began_ns) / 1e3)
        for tenant, request in asks.items():
            gpu_s = measure_ask(box, request) * coming.stay_s
            outcome.asked_gpu_s += gpu_s
            if tenant in seats:
                box = box.seat(tenant, request, seats[tenant])
                leaving[tenant] = coming.at_s + coming.stay_s
                outcome.accepted += 1
                outcome.granted_gpu_s += gpu_s
            else:
                outcome.refused[str(request)] += 1
    return outcome


def _take(
    box: Seating, asks: Sequence[tuple[str, Request]], pick: Callable[[Seating, Sequence[Seat]], Seat]
) -> Mapping[str, Seat]:
    taken: dict[str, Seat] = {}
    for tenant, request in asks:
        seats = find_seats(box, tenant, request, USUAL).seats
        if seats:
            taken[tenant] = pick(box, seats)
            box = box.seat(tenant, request, taken[tenant])
    return taken


def _pick_fullest(box: Seating, seats: Sequence[Seat]) -> Seat:
    filled = {use.card.name: fill(use, USUAL) for use in box.uses}
    filled |= {node.name: -len(cores) for node, cores in zip(box.nodes, box.free_cores, strict=True)}
    return max(seats, key=lambda seat: filled[seat.devices[0]])


def _pick_drivers(_: Seating, seats: Sequence[Seat]) -> Seat:
    order = {
        id(seat): _DRIVERS_ORDER[seat.placed.size].index(seat.placed.start)
        for seat in seats
        if seat.placed and seat.devices == seats[0].devices
    }
    return min(seats, key=lambda seat: order.get(id(seat), 99)) if order else seats[0]


def _gain(ways: Mapping[str, Any]) -> int:
    """Tenants that ours accepts more than the best of the others."""
    accepted = {way: int(each["accepted"]) for way, each in ways.items()}
    return accepted.pop("ours") - max(accepted.values())


def _total(draws: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {way: sum(each[way]["accepted"] for each in draws) for way in draws[0]}


def _say(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "-"


if __name__ == "__main__":
    report.run("packing", measure, show, needs_box=False)
