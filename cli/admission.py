"""How requests are let in and when it is their turn: the options of tenants and models, and how they are shown."""

from enum import StrEnum
from typing import Annotated, Final

import typer

from bedsit.cli.option import read_option
from bedsit.cli.table import Row
from bedsit.cli.text import format_rate, format_share, format_size, parse_count, parse_rate, parse_share, parse_size


class ServiceClass(StrEnum):
    """How much requests mind waiting."""

    REALTIME = "realtime"
    INTERACTIVE = "interactive"
    BATCH = "batch"


class Priority(StrEnum):
    """Whose turn it is among the requests of one tenant; the router counts them from 0."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


PRIORITIES: Final = tuple(Priority)

Weight = Annotated[
    str | None,
    typer.Option(metavar="N", help="Share of a busy box beside others' requests, 1 to 10000; 100 is usual."),
]
Class = Annotated[
    ServiceClass | None,
    typer.Option("--class", help="How much its requests mind waiting: realtime goes first, batch last."),
]
MinShare = Annotated[
    str | None, typer.Option(metavar="PART", help="Part of a busy box that is kept for it, for example 0.25 or 25%.")
]
Rate = Annotated[
    str | None, typer.Option(metavar="N[/s|/m|/h]", help="Requests let in, for example 100/s or 600/m; or max.")
]
Burst = Annotated[str | None, typer.Option(metavar="N", help="Requests that may come at once above the rate.")]
Concurrency = Annotated[
    str | None, typer.Option(metavar="N", help="Requests that are worked on at once, the others wait; or max.")
]
Queue = Annotated[str | None, typer.Option(metavar="N", help="Requests that may wait; more are refused.")]
ModelQueue = Annotated[
    str | None, typer.Option("--queue", metavar="N", help="Requests that may wait for it; or max: its tenant's limit.")
]
QueueBytes = Annotated[
    str | None, typer.Option(metavar="SIZE", help="What waiting requests may hold beside the arena, for example 16MiB.")
]
Sessions = Annotated[str | None, typer.Option(metavar="N", help="Clients that may be connected.")]
PriorityName = Annotated[
    Priority | None, typer.Option("--priority", help="Of requests that do not say theirs; normal is usual.")
]


def read_flow(rate: str | None, burst: str | None, concurrency: str | None) -> dict[str, object]:
    """What was said of the limits that tenants and models share, as the daemon wants it. Raises ``input.invalid``."""
    return {
        "rate_per_s": read_option("--rate", rate, parse_rate, 0.0),
        "burst": read_option("--burst", burst, parse_count),
        "concurrency_max": read_option("--concurrency", concurrency, parse_count, 0),
    }


def read_admission(
    *,
    weight: str | None,
    service_class: ServiceClass | None,
    min_share: str | None,
    queue: str | None,
    queue_bytes: str | None,
    sessions: str | None,
) -> dict[str, object]:
    """What was said of a tenant's further ones. The ranges are the daemon's to tell. Raises ``input.invalid``."""
    return {
        "weight": read_option("--weight", weight, parse_count),
        "service_class": service_class.value if service_class else None,
        "min_share": read_option("--min-share", min_share, parse_share),
        "queue_max": read_option("--queue", queue, parse_count),
        "queue_bytes_max": read_option("--queue-bytes", queue_bytes, parse_size),
        "sessions_max": read_option("--sessions", sessions, parse_count),
    }


def describe_rate(limits: Row) -> str | None:
    """``100/s, bursts of 5``, ``max``, or None where the daemon did not say."""
    rate = limits.get("rate_per_s")
    if not isinstance(rate, (int, float)):
        return None
    return f"{format_rate(rate)}, bursts of {limits.get('burst')}" if rate else "max"


def describe_concurrency(limits: Row) -> object:
    """A number, ``max``, or None where the daemon did not say."""
    return "max" if limits.get("concurrency_max") == 0 else limits.get("concurrency_max")


def describe_share(limits: Row) -> str | None:
    """``weight 100, at least 25%``, or None where the daemon did not say."""
    if "weight" not in limits:
        return None
    least = limits.get("min_share")
    kept = f", at least {format_share(least)}" if isinstance(least, (int, float)) and least else ""
    return f"weight {limits['weight']}{kept}"


def describe_queue(limits: Row) -> str | None:
    """``1024 requests, 16 MiB``, or None where the daemon did not say."""
    if "queue_max" not in limits:
        return None
    return f"{limits['queue_max']} requests, {format_size(limits.get('queue_bytes_max'))}"


def describe_priority(number: object) -> str | None:
    """The word for a priority; None for what is none."""
    return PRIORITIES[number].value if isinstance(number, int) and 0 <= number < len(PRIORITIES) else None
