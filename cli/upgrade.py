"""``bedsit upgrade``: what another version would change."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import typer

from bedsit.cli.box import Box
from bedsit.cli.command import make_noun, verb
from bedsit.cli.table import Row, field
from bedsit.ipc.errors import error

app = make_noun("upgrade", "Upgrades: what the installed version would change.")

_ASK: Final = ("-I", "-m", "bedsit.supervisor", "--protocols")
_DEADLINE_S: Final = 60.0
#: A daemon knows the slots of an earlier one where these are the same.
_ADOPTION: Final = ("record", "slot")
_LOST: Final = frozenset({"drained", "ended"})

#: Who has to be of the same version, by protocol.
_CONCERNS: Final[Mapping[str, str]] = {
    "admin": "bedsit and the daemon",
    "door": "programs and the router: programs need the new bedsit too",
    "record": "the daemon and slots that it finds",
    "slot": "the daemon and slots that it finds",
    "snapshot": "the daemon and the router: restart both",
    "wire": "programs, the router and workers: programs need the new bedsit too",
    "zygote": "the daemon and its zygote, which is replaced",
}

COLUMNS: Final = (
    field("PART", "part"),
    field("TENANT", "tenant"),
    field("RUNS", "runs"),
    field("INSTALLED", "installed"),
    field("WHAT HAPPENS", "verdict"),
    field("WHY", "why"),
)


class Version(NamedTuple):
    """A version of bedsit, and the version of each protocol that it speaks."""

    name: str
    protocols: Mapping[str, int]


@verb(
    app,
    "check",
    examples="bedsit upgrade check\nbedsit upgrade check -o json | jq '.items[] | select(.verdict == \"drained\")'",
)
def check_upgrade(box: Box) -> None:
    """Compare what runs with what is installed, and say what a restart of daemon and router would do to each slot.

    A slot stays where the installed version can take it over; a blank one of another version is replaced. One that
    speaks another version of the wire is drained, and one that a daemon of the installed version would not know is
    ended, with what it has to do: drain its tenant before (bedsit tenant drain). Changes nothing. Exits 0 when no
    tenant would lose a slot, 1 when one would.
    """
    installed = read_installed()
    running = read_version(box.call("ping"))
    status, slots = box.call("status"), box.call("ps")
    router = status.get("router") if isinstance(status, dict) else None
    known = slots if isinstance(slots, list) else []
    rows = compare(running, router if isinstance(router, dict) else {}, known, installed)
    box.screen.show_rows("change", rows, COLUMNS, lambda row: str(row.get("part", "")))
    lost = sum(row["verdict"] in _LOST for row in rows)
    if lost:
        box.screen.note(f"{lost} slots of tenants would be drained or ended")
        raise typer.Exit(1)


def compare(running: Version, router: Row, slots: Sequence[object], installed: Version) -> list[dict[str, Any]]:
    """What becomes of daemon, router and each slot, and which protocols change. Pure."""
    changed = {
        name: (running.protocols.get(name), installed.protocols.get(name))
        for name in sorted({*running.protocols, *installed.protocols})
        if running.protocols.get(name) != installed.protocols.get(name)
    }
    rows = [_row("daemon", None, running.name, installed, *_judge_process(running.name, installed))]
    if router.get("connected"):
        version = _text(router.get("version"))
        rows.append(_row("router", None, version, installed, *_judge_process(version, installed)))
    unknown = [name for name in _ADOPTION if name in changed]
    made = [slot for slot in slots if isinstance(slot, dict) and slot.get("state") != "building"]
    rows += [_judge_slot(slot, unknown, "wire" in changed, installed) for slot in made]
    for name, (old, new) in changed.items():
        rows.append(_row(f"protocol {name}", None, _text(old), _text(new), "changes", _CONCERNS.get(name)))
    return rows


def read_version(answer: object) -> Version:
    """What a daemon says of itself; one that does not speak of protocols speaks none that is known."""
    table = answer if isinstance(answer, dict) else {}
    found = table.get("protocols")
    protocols = found if isinstance(found, dict) else {}
    known = {str(k): v for k, v in protocols.items() if isinstance(v, int) and not isinstance(v, bool)}
    return Version(_text(table.get("version")), known)


def read_installed() -> Version:
    """What the installed daemon says of itself. It runs as a process of its own: it belongs to another part."""
    command = [sys.executable, *_ASK]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_DEADLINE_S, check=False)
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        answer = None
    version = read_version(answer)
    if not version.protocols:
        raise error("internal", "the installed bedsitd does not say what it speaks", f"run: {' '.join(command)}")
    return version


def _judge_process(version: str, installed: Version) -> tuple[str, str | None]:
    return ("stays", None) if version == installed.name else ("restarts", "of another version")


def _judge_slot(slot: Row, unknown: Sequence[str], is_wire_other: object, installed: Version) -> dict[str, Any]:
    """What becomes of one slot. *unknown*: what keeps the installed daemon from knowing any of them."""
    version, tenant, spoken = _text(slot.get("bedsit")), slot.get("tenant"), slot.get("wire")
    is_other = version != installed.name
    speaks_other = spoken != installed.protocols.get("wire") if isinstance(spoken, int) else bool(is_wire_other)
    verdict, why = "stays", "taken over; bedsit tenant restart brings a new one" if is_other else None
    if not isinstance(tenant, str):
        if is_other or speaks_other or unknown:
            verdict, why = "replaced", "blank, and of another version"
    elif unknown:
        verdict, why = "ended", f"another version of protocol {', '.join(unknown)}"
    elif speaks_other:
        verdict, why = "drained", "another version of protocol wire"
    return _row(_text(slot.get("slot")), tenant, version, installed, verdict, why)


def _row(
    part: str, tenant: object, runs: str, installed: Version | str, verdict: str, why: str | None
) -> dict[str, Any]:
    named = tenant if isinstance(tenant, str) else None
    there = installed if isinstance(installed, str) else installed.name
    return {"part": part, "tenant": named, "runs": runs, "installed": there, "verdict": verdict, "why": why}


def _text(value: object) -> str:
    return str(value) if isinstance(value, (str, int)) else "unknown"
