"""Recorded arrivals of tenants at a box with devices, and how they were drawn (``python -m bench.traces.asks``).

    cut MODEL, whole MODEL           a GPU with MIG, or without
    node CORES                       processors that may be given away
    ask NUMBER DEVICE [KEY=VALUE..]  something that is asked for: memory in GiB, model, class, min
    SECOND SECONDS NUMBER..          when somebody comes, for how long, and what for: each number is a tenant

Nobody's days are in here: the mixes are made up. Times between arrivals are exponential, stays log-normal (median five
minutes, sigma 1.2), all from one seed that was taken once.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from bedsit.supervisor.placement.profiles import TABLES
from bedsit.supervisor.placement.request import Request, parse_request
from bedsit.supervisor.placement.rules import USUAL
from bedsit.supervisor.placement.seating import Card, Node, Seating

_SEED: Final = 20261127
_CUSTOMERS: Final = 1200
_MEDIAN_S: Final = 300.0
_SIGMA: Final = 1.2
_MEAN_S: Final = 616.3
_GIB: Final = 1 << 30


class Coming(NamedTuple):
    """A customer: when it comes, how long it stays, and the tenants that it brings."""

    at_s: float
    stay_s: float
    asks: tuple[Request, ...]


@dataclass(frozen=True)
class Mix:
    """A kind of box and of customers. *load*: what is asked for on average, as a part of what the GPUs are."""

    title: str
    box: Sequence[str]
    asks: Mapping[str, int]
    load: float = 0.8
    most_together: int = 1


MIXES: Final = {
    "one_h100": Mix(
        "one H100 with MIG, small instances mostly",
        ["cut H100 80GB"],
        {"mig:1g.10gb": 50, "mig:2g.20gb": 25, "mig:3g.40gb": 15, "mig:4g.40gb": 10},
    ),
    "small_cards": Mix(
        "two A30 and two A100 of 40 GB with MIG",
        ["cut A30", "cut A30", "cut A100 40GB", "cut A100 40GB"],
        {"mig:1g.6gb": 20, "mig:2g.12gb": 10, "mig:4g.24gb": 5, "mig:1g.5gb": 25, "mig:1g.10gb": 10}
        | {"mig:2g.10gb": 12, "mig:3g.20gb": 10, "mig:4g.20gb": 5, "mig:7g.40gb": 3},
    ),
    "eight_h200": Mix(
        "eight H200 with MIG, every profile",
        ["cut H200"] * 8,
        {
            "mig:1g.18gb": 40,
            "mig:1g.35gb": 15,
            "mig:2g.35gb": 20,
            "mig:3g.71gb": 15,
            "mig:4g.71gb": 6,
            "mig:7g.141gb": 4,
        },
    ),
    "large": Mix(
        "four H100 with MIG, halves mostly",
        ["cut H100 80GB"] * 4,
        {"mig:1g.10gb": 15, "mig:2g.20gb": 15, "mig:3g.40gb": 35, "mig:4g.40gb": 35},
    ),
    "together": Mix(
        "four H100 with MIG, up to four instances a customer",
        ["cut H100 80GB"] * 4,
        {"mig:1g.10gb": 40, "mig:1g.20gb": 15, "mig:2g.20gb": 25, "mig:3g.40gb": 12, "mig:4g.40gb": 8},
        most_together=4,
    ),
    "shares": Mix(
        "four H100 shared in time, with quotas of memory",
        ["whole H100 80GB"] * 4,
        {"gpu:0.1 memory=4 class=realtime min=0.05": 30, "gpu:0.25 memory=16 class=realtime": 25}
        | {
            "gpu:0.5 memory=30": 15,
            "gpu:0.7 memory=50 class=realtime": 10,
            "gpu:0.2 memory=8 class=batch": 10,
            "gpu": 10,
        },
    ),
    "mixed": Mix(
        "two H100 with MIG, two without, two H200, and cores",
        [*["cut H100 80GB"] * 2, *["whole H100 80GB"] * 2, *["whole H200"] * 2, *["node 16"] * 2],
        {"mig:1g.10gb": 20, "mig:2g.20gb": 10, "mig:3g.40gb": 8, "mig:4g.40gb": 4, "gpu:0.25 memory=10": 15}
        | {"gpu:0.5 memory=30 class=realtime": 10, "gpu:0.5 memory=60 model=H200": 8, "gpu": 5, "gpu model=H200": 4}
        | {"gpu:0.2 memory=2 class=batch": 8, "cpu:2": 8, "cpu:6": 4},
    ),
    "overload": Mix(
        "eight H100 with MIG, a fifth more than there is",
        ["cut H100 80GB"] * 8,
        {
            "mig:1g.10gb": 40,
            "mig:1g.20gb": 15,
            "mig:2g.20gb": 20,
            "mig:3g.40gb": 15,
            "mig:4g.40gb": 6,
            "mig:7g.80gb": 4,
        },
        load=1.2,
    ),
}


def read_asks(name: str) -> tuple[Seating, Sequence[Coming]]:
    """The box and the customers of a recorded trace, in order."""
    return parse_asks((Path(__file__).parent / f"asks_{name}.txt").read_text().splitlines())


def draw_asks(mix: Mix, seed: int, customers: int) -> Iterator[str]:
    """Lines of a trace of that mix; the same ones for the same seed."""
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    yield f"# {mix.title}. Load {mix.load}, {customers} customers, seed {seed}; see asks.py."
    yield from mix.box
    yield from (f"ask {number} {text}" for number, text in enumerate(mix.asks))
    weights = list(mix.asks.values())
    box, _ = parse_asks(mix.box)
    sizes = [measure_ask(box, parse_ask(text)) for text in mix.asks]
    mean = sum(size * weight for size, weight in zip(sizes, weights, strict=True)) / sum(weights)
    rate = mix.load * len(box.cards) / (mean * (1 + mix.most_together) / 2 * _MEAN_S)
    at_s = 0.0
    for _ in range(customers):
        at_s += draw.expovariate(rate)
        stay_s = draw.lognormvariate(0, _SIGMA) * _MEDIAN_S
        numbers = draw.choices(range(len(weights)), weights, k=draw.randint(1, mix.most_together))
        yield f"{at_s:.1f} {stay_s:.1f} {' '.join(map(str, numbers))}"


def parse_asks(lines: Sequence[str]) -> tuple[Seating, Sequence[Coming]]:
    """What such lines say."""
    cards: list[Card] = []
    nodes: list[Node] = []
    asks: dict[str, Request] = {}
    comings: list[Coming] = []
    for line in lines:
        word, _, rest = line.partition(" ")
        if word in ("cut", "whole"):
            table = TABLES[rest]
            memory_bytes = table.profiles[-1].memory_bytes
            cards.append(Card(f"gpu{len(cards)}", rest, memory_bytes, table if word == "cut" else None))
        elif word == "node":
            first = 100 * len(nodes)
            nodes.append(Node(f"node{len(nodes)}", tuple(range(first, first + int(rest)))))
        elif word == "ask":
            number, _, text = rest.partition(" ")
            asks[number] = parse_ask(text)
        elif word != "#":
            stay, *numbers = rest.split()
            comings.append(Coming(float(word), float(stay), tuple(asks[number] for number in numbers)))
    return Seating(tuple(cards), tuple(nodes)), comings


def parse_ask(text: str) -> Request:
    """A request, of a tenant that is trusted where it shares a GPU in time."""
    device, *options = text.split()
    keys = dict(option.split("=") for option in options)
    read: dict[str, Any] = {
        "memory_bytes": int(keys.get("memory", "0")) * _GIB,
        "model": keys.get("model", ""),
        "min_share": float(keys.get("min", "0")),
        "service_class": keys.get("class", "interactive"),
    }
    return parse_request(device, trusted=device.startswith("gpu:"), **read)


def measure_ask(box: Seating, request: Request) -> float:
    """How many GPUs of the box a request is; of cores none."""
    if request.kind == "mig":
        tables = [card.table for card in box.cards if card.table is not None]
        return max(p.size / table.slots for table in tables for p in table.profiles if p.name == request.profile)
    if request.kind == "timeslice":
        memory_bytes = max(card.memory_bytes for card in box.cards if card.is_model(request.model))
        share = USUAL.charge(request.share_milli, request.service_class) / 1000
        return max(share, request.memory_bytes / memory_bytes)
    return float(request.kind == "exclusive")


if __name__ == "__main__":
    for name, mix in MIXES.items():
        file = Path(__file__).parent / f"asks_{name}.txt"
        file.write_text("\n".join(draw_asks(mix, _SEED, _CUSTOMERS)) + "\n")
        print(file)
