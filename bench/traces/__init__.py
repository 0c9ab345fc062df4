"""Recorded arrivals of requests: lines of ``second tenant milliseconds``, the processor time that each needs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Arrival(NamedTuple):
    """A request: when it comes, from the trace's begin, and what it needs."""

    at_s: float
    work_ms: float


def read_trace(name: str) -> Mapping[int, Sequence[Arrival]]:
    """The arrivals of each tenant, in order."""
    arrivals: dict[int, list[Arrival]] = {}
    for line in (Path(__file__).parent / f"{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            at_s, tenant, work_ms = line.split()
            arrivals.setdefault(int(tenant), []).append(Arrival(float(at_s), float(work_ms)))
    return arrivals
