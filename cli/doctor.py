"""``bedsit doctor``: what this machine offers, and what to do where it falls short."""

import json
import subprocess
import sys
from typing import Any, Final

import typer

from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.cli.table import Column, Row, field
from bedsit.ipc.errors import BedsitError, error

app = make_app()

_PROBE: Final = ("-I", "-m", "bedsit.sandbox.probe", "--json")
_DEADLINE_S: Final = 60.0


def _state(row: Row) -> str:
    """``unknown`` is what cannot be seen without root; a box without what is ``optional`` is sound."""
    if row.get("ok"):
        return "ok"
    if not row.get("required", True):
        return "optional"
    return "unknown" if row.get("ok", False) is None else "missing"


COLUMNS: Final = (
    Column("STATE", _state),
    field("CHECK", "name"),
    field("FOUND", "found"),
    Column("WHAT TO DO", lambda row: None if row.get("ok") else row.get("mend")),
    field("OPEN WITHOUT IT", "exposes"),
)


@verb(app, "doctor", examples="bedsit doctor\nbedsit doctor -o json | jq '.items[] | select(.ok | not)'")
def examine(box: Box) -> None:
    """Examine this machine: what every wall needs, what is open without it, and how to mend that. Needs no daemon.

    Looks and tries, and changes nothing. Some of it only root can see. Exits 0 when nothing is missing that strict
    tenants need, 1 when something is.
    """
    rows = _probe()
    box.screen.show_rows("check", rows, COLUMNS, lambda row: str(row.get("name", "")))
    box.screen.note(_describe_daemon(box))
    missing = sum(_state(row) == "missing" for row in rows)
    if missing:
        box.screen.note(f"{missing} of {len(rows)} checks found something missing")
        raise typer.Exit(1)


def _probe() -> list[Row]:
    """What the probe says. It runs as a process of its own: it belongs to another part and loads more than we do."""
    command = [sys.executable, *_PROBE]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise error("deadline.exceeded", f"the probe did not end within {_DEADLINE_S:g} s", "") from None
    try:
        rows: Any = json.loads(done.stdout)
    except ValueError:
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        why = last[0] if last else f"exit status {done.returncode}"
        raise error("internal", f"the probe failed: {why}", f"run it by hand: {' '.join(command)}")
    return rows


def _describe_daemon(box: Box) -> str:
    try:
        answer = box.call("ping")
    except BedsitError as e:
        return f"daemon: {e.message}"
    return f"daemon: ok, version {answer.get('version')}, pid {answer.get('pid')}"
