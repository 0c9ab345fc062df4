"""Several targets in one run: round by round, each target in turn, every second round backwards."""

import os
import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

from bench.loads import Array, Target, drive

ROUNDS: Final = 3
CLIENTS: Final = 16
KEYS: Final = ("p50_us", "p99_us", "rps_1", "rps_16", "one_core_p50_us")


class Figures(NamedTuple):
    """Medians over the rounds. *router_us* is the router's time per request with 16 clients."""

    times: dict[str, float]
    router_us: float | None


def interleave(targets: Sequence[Target], example: Array, seconds: float) -> dict[str, Figures]:
    """Every target's figures by its name; *seconds* is the length of one loop.

    ``p50_us, p99_us, rps_1`` are one client's, unpinned; ``rps_16`` is that of 16 client processes; ``one_core_p50_us``
    is one client's with everything on one core.
    """
    one_core = {min(os.sched_getaffinity(0))}
    seen: dict[str, list[tuple[dict[str, float], float | None]]] = {target.name: [] for target in targets}
    for number in range(ROUNDS):
        for target in targets if number % 2 == 0 else reversed(targets):
            one = drive(target, 1, seconds, example)
            many = drive(target, CLIENTS, seconds, example)
            pinned = drive(target, 1, seconds / 2, example, one_core)
            times = (one.percentile_us(50), one.percentile_us(99), one.per_second, many.per_second)
            round_of = dict(zip(KEYS, (*times, pinned.percentile_us(50)), strict=True))
            router_us = many.router_ns / 1e3 / len(many.latencies) if target.router else None
            seen[target.name].append((round_of, router_us))
    return {name: _merge(rounds) for name, rounds in seen.items()}


def _merge(rounds: list[tuple[dict[str, float], float | None]]) -> Figures:
    times = {key: round(statistics.median(figures[key] for figures, _ in rounds), 2) for key in KEYS}
    routers = [router_us for _, router_us in rounds if router_us is not None]
    return Figures(times, round(statistics.median(routers), 2) if routers else None)
