"""``bedsit device partition``: cutting GPUs as the configuration declares it."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from bedsit.cli.box import Box
from bedsit.cli.command import make_noun, verb
from bedsit.cli.complete import Yes, complete_gpus
from bedsit.cli.table import Column, Row, field
from bedsit.cli.text import describe_place

app = make_noun("partition", "Partitions: how GPUs with MIG are cut, as [devices.partitions] declares it.")

GpuName = Annotated[
    str | None,
    typer.Argument(
        metavar="[GPU]",
        help="Only this one: its UUID, the beginning of it, or its index, as it was declared.",
        autocompletion=complete_gpus,
    ),
]
_CHANGES: Final = ("destroy", "finish", "create")
_COLUMNS: Final = (
    field("GPU", "gpu"),
    Column("DO", lambda row: row.get("action")),
    field("PROFILE", "profile"),
    Column("PLACE", lambda row: describe_place(row.get("placement"))),
    field("DEVICE", "device"),
    Column("WHY", lambda row: row.get("why")),
)
_OUTCOME: Final = (*_COLUMNS[:-1], Column("STATE", lambda row: row.get("state")), _COLUMNS[-1])


@verb(
    app,
    "plan",
    examples="""
    bedsit device partition plan
    bedsit device partition plan GPU-8f3a -o json | jq '.items[] | select(.action != "keep")'
    """,
)
def show_plan(box: Box, gpu: GpuName = None) -> None:
    """Show what apply would do, and change nothing. Exits with 1 if that is anything, or if it cannot be done.

    keep: it is there. create, destroy: it would be made or destroyed. finish: it was left half made, and gets what it
    lacks. impossible: it was declared and cannot be, for that reason. Who computes on an instance keeps it in any case.
    """
    rows = box.call("device.partition.plan", gpu=gpu)["rows"]
    _show(box, rows, _COLUMNS)
    if not rows:
        box.screen.note("no partitions are declared: [devices.partitions] of the configuration")
    if any(row.get("action") != "keep" for row in rows):
        raise typer.Exit(1)


@verb(
    app,
    "apply",
    examples="""
    bedsit device partition apply
    bedsit device partition apply GPU-8f3a --yes
    """,
)
def apply_plan(box: Box, gpu: GpuName = None, *, yes: Yes = False) -> None:
    """Cut GPUs as declared: what is idle and in the way is destroyed, what is missing is made.

    Nothing is begun where somebody who computes on an instance stands in the way. MIG's mode is never changed. After a
    failure the rest of that GPU is left as it is; the next apply, or the daemon, goes on from there. Exits with 1 then.
    """
    plan = box.call("device.partition.plan", gpu=gpu)
    changes = [row for row in plan["rows"] if row.get("action") in _CHANGES]
    is_possible = all(row.get("action") != "impossible" for row in plan["rows"])
    if is_possible and not changes:
        box.screen.note("everything is cut as declared" if plan["rows"] else "no partitions are declared")
    elif is_possible:  # else it is refused below, by who knows why
        for row in changes:
            box.screen.note(f"{row.get('action')} {_name(row)}")
        if not yes:
            box.screen.confirm(_ask(changes), flag="--yes")
    answer = box.call("device.partition.apply", gpu=gpu, token=plan["token"])
    _show(box, answer["rows"], _OUTCOME)
    if answer["failed"]:
        raise typer.Exit(1)


def _ask(changes: Sequence[Row]) -> str:
    """What is destroyed is named in the question: it cannot be brought back as it was."""
    counts = Counter(row.get("action") for row in changes)
    gone = [_name(row) for row in changes if row.get("action") == "destroy"]
    made = counts["create"] + counts["finish"]
    parts = [f"destroy {', '.join(gone)}"] if gone else []
    parts += [f"make {made} instance{'s' * (made > 1)}"] if made else []
    question = " and ".join(parts)
    return f"{question[:1].upper()}{question[1:]}?"


def _show(box: Box, rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> None:
    box.screen.show_rows("partition", rows, columns, _name)
    for mend in dict.fromkeys(f"{row.get('gpu')}: {row['mend']}" for row in rows if row.get("mend")):
        box.screen.note(mend)


def _name(row: Row) -> str:
    place, device = describe_place(row.get("placement")), row.get("device")
    where = f" in {place}" if place else ""
    return f"{row.get('profile')}{where} of {row.get('gpu')}" + (f" ({device})" if device else "")
