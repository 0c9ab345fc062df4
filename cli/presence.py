"""How a tenant's slots come and go: the options, and how they are shown."""

from enum import StrEnum
from typing import Annotated, Final

import typer

from bedsit.cli.option import read_option
from bedsit.cli.table import Row
from bedsit.cli.text import format_duration, parse_count, parse_span, parse_whole


class RestartPolicy(StrEnum):
    """After which deaths a slot is replaced."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


_NEVER: Final = "never"

Restart = Annotated[
    RestartPolicy | None,
    typer.Option(
        "--restart",
        help="After which deaths a slot is replaced. permanent: all. transient: not after exit 0. temporary: none.",
    ),
]
MaxRestarts = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Deaths within the period that it is restarted after; after one more it is not; or max."
    ),
]
RestartPeriod = Annotated[str | None, typer.Option(metavar="TIME", help="The period of --max-restarts, as 10m.")]
QuarantineAfter = Annotated[
    str | None,
    typer.Option(metavar="N", help="Deaths in a row after which the version that ran is taken out of use; or never."),
]
MinSlots = Annotated[
    str | None, typer.Option(metavar="N", help="Slots that it has at least; with 0 the first request waits for one.")
]
MaxSlots = Annotated[str | None, typer.Option(metavar="N", help="Slots that it has at most, when it is busy.")]
IdleTime = Annotated[
    str | None,
    typer.Option("--idle", metavar="TIME", help="Have no more than --min-slots after idling so long, as 5m; or never."),
]
RunLimit = Annotated[
    str | None, typer.Option(metavar="TIME", help="A call that runs for longer ends its slot, as 30s; or max.")
]


def read_presence(
    *,
    restart: RestartPolicy | None,
    max_restarts: str | None,
    restart_period: str | None,
    quarantine_after: str | None,
    min_slots: str | None,
    max_slots: str | None,
    idle: str | None,
    run_limit: str | None,
) -> dict[str, object]:
    """What was said, as the daemon wants it. The ranges are the daemon's to tell. Raises ``input.invalid``."""
    return {
        "restart": restart.value if restart else None,
        "restarts_max": read_option("--max-restarts", max_restarts, parse_count, 0),
        "restart_period_s": read_option("--restart-period", restart_period, parse_span),
        "quarantine_after": read_option("--quarantine-after", quarantine_after, parse_count, 0, word=_NEVER),
        "min_slots": read_option("--min-slots", min_slots, parse_whole),
        "max_slots": read_option("--max-slots", max_slots, parse_count),
        "idle_s": read_option("--idle", idle, parse_span, 0.0, word=_NEVER),
        "run_max_s": read_option("--run-limit", run_limit, parse_span, 0.0),
    }


def describe_slots(tenant: Row) -> str | None:
    """``1/2``: those that serve, of those that it should have now; None where the daemon did not say."""
    serving, wanted = tenant.get("slots_serving"), tenant.get("slots_wanted")
    return f"{serving}/{wanted}" if serving is not None and wanted is not None else None


def describe_crew(tenant: Row) -> str | None:
    """The same with their names."""
    counted, slots = describe_slots(tenant), tenant.get("slots")
    names = ", ".join(map(str, slots)) if isinstance(slots, list) else ""
    return f"{counted}: {names}" if counted and names else counted


def describe_range(limits: Row) -> str | None:
    """``1 to 3, as few when idle for 5 m 0 s``, or None where the daemon did not say."""
    fewest, most = limits.get("min_slots"), limits.get("max_slots")
    if fewest is None or most is None:
        return None
    idle = _duration(limits.get("idle_s"))
    return f"{fewest} to {most}" + (f", no more than {fewest} when idle for {idle}" if idle else "")


def describe_restart(limits: Row) -> str | None:
    """``transient, given up after more than 5 deaths in 10 m 0 s``, or None where the daemon did not say."""
    policy, most = limits.get("restart"), limits.get("restarts_max")
    if policy is None:
        return None
    return (
        f"{policy}, given up after more than {most} in {_duration(limits.get('restart_period_s'))}" if most else policy
    )


def describe_quarantine(limits: Row) -> str | None:
    """``after 3 deaths in a row``, ``never``, or None where the daemon did not say."""
    after = limits.get("quarantine_after")
    if after is None:
        return None
    return f"after {after} deaths in a row" if after else _NEVER


def describe_run(limits: Row) -> str | None:
    """``5 m 0 s``, ``max``, or None where the daemon did not say."""
    most = limits.get("run_max_s")
    return None if most is None else _duration(most) or "max"


def _duration(seconds: object) -> str:
    return format_duration(float(seconds)) if isinstance(seconds, (int, float)) and seconds else ""
