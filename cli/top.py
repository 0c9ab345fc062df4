"""``bedsit top``: what each tenant uses right now, again and again."""

import math
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NamedTuple

import typer

from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.cli.presence import describe_slots
from bedsit.cli.render import Format
from bedsit.cli.table import Column, Row, field
from bedsit.cli.text import format_duration, neutralise
from bedsit.ipc.errors import BedsitError, error

app = make_app()

LOOK_S: Final = 0.5
_MIB: Final = 1 << 20
_LEAVE: Final = (b"q", b"Q", b"\x04", b"")  # Ctrl-D, and a terminal that is gone


class Look(NamedTuple):
    """What the daemon said at one time (monotonic): of the box with its tenants, and of each slot."""

    at_s: float
    status: Row
    slots: Sequence[Row]


def _describe_memory(row: Row) -> str | None:
    """Used and allowed: ``100/512``."""
    used, limit = _number(row.get("memory_bytes")), _number(row.get("memory_limit_bytes"))
    if used is None:
        return None
    return f"{used / _MIB:.0f}/{limit / _MIB:.0f}" if limit is not None else f"{used / _MIB:.0f}"


COLUMNS: Final = (
    field("NAME", "name"),
    field("STATE", "state"),
    Column("SLOTS", describe_slots, right=True),
    Column("CPU %", lambda row: _round(row.get("cpu_percent")), right=True),
    Column("MEMORY MiB", _describe_memory, right=True),
    field("QUEUE", "queued", right=True),
    Column("REQ/s", lambda row: _round(row.get("requests_per_s")), right=True),
    Column("ERR/s", lambda row: _round(row.get("errors_per_s")), right=True),
    field("PIDS FREE", "pids_free", right=True),
    field("RESTARTS", "restarts", right=True),
    field("LAST CAUSE", "last_cause"),
)


@verb(app, "top", examples="bedsit top\nbedsit top --once\nbedsit top -o jsonl | jq 'select(.errors_per_s > 0)'")
def show_top(box: Box, *, once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False) -> None:
    """Show what each tenant uses, twice a second, the busiest first. q or Ctrl-C leaves.

    CPU is of one core: 200 is two of them. Memory, its limit and processes are those of all slots of a tenant
    together; free processes those of the slot that has the fewest left. Rates are over the half second before.
    """
    if box.screen.form is Format.JSON and not once:
        raise error(
            "request.invalid", "top never ends, and one JSON document would not either", "use --once, or -o jsonl"
        )
    if once or box.screen.form is Format.NAME:
        before = _look(box)
        time.sleep(LOOK_S)
        box.screen.show_rows("usage", measure(before, _look(box)), COLUMNS, _name)
    elif box.screen.is_live:
        _draw(box)
    else:
        _go_on(box)


def measure(before: Look | None, after: Look) -> list[dict[str, Any]]:
    """One row for each tenant, the busiest first; with rates where there is a look before. Pure.

    A slot's row has its tenant's requests: they are counted once. What a tenant without slots is asked is not known.
    """
    slots: dict[str, list[Row]] = {}
    for slot in after.slots:
        slots.setdefault(str(slot.get("tenant")), []).append(slot)
    earlier = {str(slot.get("slot")): slot for slot in before.slots} if before else {}
    asked = {str(slot.get("tenant")): slot for slot in before.slots} if before else {}
    took_s = after.at_s - before.at_s if before else 0.0
    rows = [
        _measure_tenant(tenant, slots.get(str(tenant.get("name")), []), earlier, asked, took_s)
        for tenant in _list(after.status, "tenants")
    ]
    return sorted(rows, key=lambda row: (-(row["cpu_percent"] or 0.0), -(row["requests_per_s"] or 0.0), row["name"]))


def _measure_tenant(
    tenant: Row, slots: Sequence[Row], earlier: Mapping[str, Row], asked: Mapping[str, Row], took_s: float
) -> dict[str, Any]:
    name = str(tenant.get("name"))
    limits = tenant.get("limits")
    pids = _number(limits.get("pids")) if isinstance(limits, dict) else None
    counted = slots[0] if slots else {}
    worked = [
        _rate(earlier[str(slot.get("slot"))], slot, "cpu_seconds", took_s)
        for slot in slots
        if str(slot.get("slot")) in earlier
    ]
    free = [pids - used for slot in slots if pids is not None and (used := _number(slot.get("pids"))) is not None]
    cpu = _sum(worked)
    return {
        "name": name,
        "state": tenant.get("state"),
        "slots_serving": tenant.get("slots_serving"),
        "slots_wanted": tenant.get("slots_wanted"),
        "cpu_percent": None if cpu is None else 100.0 * cpu,
        "memory_bytes": _sum([_number(slot.get("memory_bytes")) for slot in slots]),
        "memory_limit_bytes": _sum([_number(slot.get("memory_limit_bytes")) for slot in slots]),
        "pids_free": min(free, default=None),
        "queued": _number(counted.get("queued")),
        "in_flight": _number(counted.get("in_flight")),
        "requests": _number(counted.get("requests")),
        "requests_per_s": _rate(asked.get(name, {}), counted, "requests", took_s),
        "errors": _number(counted.get("errors")),
        "errors_per_s": _rate(asked.get(name, {}), counted, "errors", took_s),
        "restarts": tenant.get("restarts"),
        "last_cause": tenant.get("last_cause"),
    }


def _go_on(box: Box) -> None:
    """Tables or lines for whoever reads them, until interrupted."""
    before = _look(box)
    while True:
        time.sleep(max(0.0, before.at_s + LOOK_S - time.monotonic()))
        after = _look(box)
        rows, at = measure(before, after), datetime.now(UTC).isoformat(timespec="milliseconds")
        if box.screen.form is Format.JSONL:
            box.screen.stream_rows([{"at": at.replace("+00:00", "Z"), **row} for row in rows], _name, _name)
        else:
            box.screen.show_rows("usage", rows, COLUMNS, _name)
            box.screen.write_answer("")
        box.screen.flush()
        before = after


def _draw(box: Box) -> None:
    """A table that is drawn over itself, until q or Ctrl-C. A daemon that goes away is waited for."""
    before: Look | None = _look(box)
    head, rows = "", measure(None, before) if before else []
    with _keyboard() as is_left_within, box.screen.live() as draw:
        try:
            while True:
                head = _head(before) if before else head
                draw([head, ""], rows, COLUMNS)
                if is_left_within(LOOK_S):
                    return
                try:
                    after = _look(box)
                except BedsitError as e:
                    if e.code != "daemon.unavailable":
                        raise
                    before, head = None, neutralise(f"{e.message}; q leaves")
                else:
                    rows, before = measure(before, after), after
        except KeyboardInterrupt:
            return


def _look(box: Box) -> Look:
    """Both questions at once, without a word about how long they take."""
    status, slots = (box.call_telling(lambda _phase: None, op) for op in ("status", "ps"))
    if not isinstance(status, dict) or not isinstance(slots, list):
        raise error("wire.malformed", "the daemon sent something that is not an answer")
    return Look(time.monotonic(), status, [slot for slot in slots if isinstance(slot, dict)])


def _head(look: Look) -> str:
    up_s, router = _number(look.status.get("uptime_s")), look.status.get("router")
    is_connected = isinstance(router, dict) and bool(router.get("connected"))
    blank = sum(slot.get("state") == "blank" for slot in look.slots)
    parts = [
        f"bedsit {look.status.get('version')}",
        f"up {format_duration(up_s)}" if up_s is not None else "",
        f"{len(_list(look.status, 'tenants'))} tenants",
        f"{len(look.slots)} slots, {blank} blank",
        "" if is_connected else "no router",
        "q leaves",
    ]
    return neutralise("; ".join(part for part in parts if part))


@contextmanager
def _keyboard() -> Iterator[Callable[[float], bool]]:
    """Gives what waits for so many seconds, or less: then somebody wants to leave. The settings are back afterwards.

    A key is taken as it is pressed, without a line's end and without being shown; Ctrl-C stays Ctrl-C.
    """
    fd = sys.stdin.fileno()
    kept = termios.tcgetattr(fd) if os.isatty(fd) else None

    def is_left_within(seconds: float) -> bool:
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            ready, _, _ = select.select([fd] if kept else [], [], [], left_s)
            if ready and os.read(fd, 1) in _LEAVE:
                return True
        return False

    try:
        if kept:
            tty.setcbreak(fd, termios.TCSADRAIN)
        yield is_left_within
    finally:
        if kept:
            termios.tcsetattr(fd, termios.TCSADRAIN, kept)


def _rate(before: Row, after: Row, key: str, took_s: float) -> float | None:
    """How fast a counter goes; None where there are not two counts. Whoever begins anew begins at 0."""
    first, last = _number(before.get(key)), _number(after.get(key))
    if first is None or last is None or took_s <= 0:
        return None
    return (last - first if last >= first else last) / took_s


def _sum(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _number(value: object) -> float | None:
    """A number that is one; a daemon's nonsense is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None  # type: ignore[return-value]


def _round(value: object) -> str | None:
    return f"{value:.1f}" if isinstance(value, (int, float)) else None


def _list(row: Row, key: str) -> list[dict[str, Any]]:
    value = row.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _name(row: Row) -> str:
    return str(row.get("name", ""))
