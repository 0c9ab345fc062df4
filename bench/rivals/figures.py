"""What is measured of every server in one round, and how rounds become figures.

tiny      one client, 4 and 16 clients, and one client with everything on one core
echo      one client: 1, 16 and 64 MiB that come back as they were
batched   the batched model, one client and 16
victim    the tiny model asked by one client that pauses after each answer, alone, then beside 16 clients in closed
          loops on the batched model; how much these achieved is in ``flood_rps``
"""

import contextlib
import gc
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from bench.processes import pin
from bench.rivals.load import Case, Clients, Load, Seen, drive
from bench.rivals.models import load, make_input
from bench.rivals.server import Server

FEW: Final = 4
MANY: Final = 16
PAUSE_S: Final = 0.002
#: Megabytes of the echoes, as 2^20 bytes.
ECHOES: Final = (1, 16, 64)
#: How much longer the flood lasts than its victim, so that it is there to the end.
_FLOOD_LONGER_S: Final = 0.2

#: One round's figures, each by its place in the report: "tiny.p50_us".
Round = Mapping[str, float]
KEYS: Final = (
    *(f"tiny.{key}" for key in ("p50_us", "p99_us", "rps_1", "rps_4", "rps_16", "one_core_p50_us")),
    *(f"echo_{size}m.p50_us" for size in ECHOES),
    "batched.p50_us",
    "batched.rps_16",
    *(f"victim_p99_us.{key}" for key in ("alone", "beside_flood", "flood_rps")),
)


class Lengths(NamedTuple):
    """How many seconds each loop lasts."""

    tiny: float
    echo: float
    batched: float
    victim: float


class Cases(NamedTuple):
    """What clients ask, with the answers that are right."""

    tiny: Case
    batched: Case
    echoes: Sequence[Case]


def make_cases() -> Cases:
    """All of them; loads torch, whose pages clients share, which are forks of this process."""
    cases = Cases(_make_case("tiny"), _make_case("mlp"), [_make_case("echo", size << 18) for size in ECHOES])
    gc.collect()
    gc.freeze()
    return cases


def measure_round(server: Server, cases: Cases, lengths: Lengths) -> Round:
    """One round of a server that is there, the first answers to each client checked. Raises RuntimeError, OSError."""
    one = drive(server.connect, cases.tiny, Load(1, lengths.tiny))
    few = drive(server.connect, cases.tiny, Load(FEW, lengths.tiny))
    many = drive(server.connect, cases.tiny, Load(MANY, lengths.tiny))
    pinned = _drive_pinned(server, cases.tiny, lengths.tiny / 2)
    echoes = [drive(server.connect, case, Load(1, lengths.echo)) for case in cases.echoes]
    alone_batched = drive(server.connect, cases.batched, Load(1, lengths.batched))
    many_batched = drive(server.connect, cases.batched, Load(MANY, lengths.batched))
    alone = drive(server.connect, cases.tiny, Load(1, lengths.victim, PAUSE_S))
    beside, flood = _drive_beside_flood(server, cases, lengths.victim)
    values = (
        *(one.percentile_us(50), one.percentile_us(99), one.per_second, few.per_second, many.per_second),
        pinned.percentile_us(50),
        *(echo.percentile_us(50) for echo in echoes),
        *(alone_batched.percentile_us(50), many_batched.per_second),
        *(alone.percentile_us(99), beside.percentile_us(99), flood.per_second),
    )
    return dict(zip(KEYS, values, strict=True))


def merge_rounds(rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians, nested as the report has them."""
    nested: dict[str, Any] = {}
    for key in KEYS:
        outer, inner = key.split(".")
        nested.setdefault(outer, {})[inner] = round(statistics.median(figures[key] for figures in rounds), 1)
    return nested


def _make_case(model: str, values: int | None = None) -> Case:
    x = make_input(model, values)
    return Case(model, x, load(model)(x))


def _drive_pinned(server: Server, case: Case, seconds: float) -> Seen:
    everywhere = os.sched_getaffinity(0)
    one_core = frozenset({min(everywhere)})
    _pin(server.find_pids(), one_core)
    try:
        return drive(server.connect, case, Load(1, seconds, cpus=one_core))
    finally:
        _pin(server.find_pids(), everywhere)


def _pin(pids: Sequence[int], cpus: frozenset[int] | set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
            pin([pid], set(cpus))


def _drive_beside_flood(server: Server, cases: Cases, seconds: float) -> tuple[Seen, Seen]:
    with (
        Clients(server.connect, cases.batched, Load(MANY, seconds + _FLOOD_LONGER_S)) as flood,
        Clients(server.connect, cases.tiny, Load(1, seconds, PAUSE_S)) as victim,
    ):
        flood.go()
        victim.go()
        return victim.collect(), flood.collect()
