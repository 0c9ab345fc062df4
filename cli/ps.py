"""``bedsit ps``: the slots there are, and what they use."""

from typing import Final

from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.cli.table import Column, field
from bedsit.cli.text import format_age, format_mib

app = make_app()

COLUMNS: Final = (
    field("SLOT", "slot"),
    field("TENANT", "tenant"),
    field("STATE", "state"),
    field("PID", "worker_pid", right=True),
    Column("MEMORY MiB", lambda row: format_mib(row.get("memory_bytes")), right=True),
    Column("LIMIT MiB", lambda row: format_mib(row.get("memory_limit_bytes")), right=True),
    Column("CPU s", lambda row: _round(row.get("cpu_seconds")), right=True),
    field("PIDS", "pids", right=True),
    field("REQUESTS", "requests", right=True),
    field("ERRORS", "errors", right=True),
    field("QUEUED", "queued", right=True),
    field("RUNNING", "in_flight", right=True),
    field("ZYGOTE", "generation", right=True),
    Column("AGE", lambda row: format_age(row.get("started_at"))),
    field("LAST CAUSE", "last_cause"),
)


@verb(app, "ps", examples="bedsit ps\nbedsit ps -o json | jq '.items[] | select(.state == \"blank\")'")
def list_slots(box: Box) -> None:
    """List the slots: whose they are, what they use, what they are asked."""
    box.screen.show_rows("slot", box.call("ps"), COLUMNS, lambda row: str(row.get("slot", "")))


def _round(value: object) -> str | None:
    return f"{value:.1f}" if isinstance(value, (int, float)) else None
