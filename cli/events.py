"""``bedsit events``: what happened, in the daemon's words."""

from typing import Annotated, Final

import typer

from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.cli.complete import complete_tenants
from bedsit.cli.render import Format
from bedsit.cli.table import Row, field
from bedsit.ipc.errors import error

app = make_app()

COLUMNS: Final = (
    field("AT", "at"),
    field("EVENT", "kind"),
    field("TENANT", "tenant"),
    field("SLOT", "slot"),
    field("TEXT", "text"),
)
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until interrupted.")]


@verb(
    app,
    "events",
    examples="bedsit events --limit 20\nbedsit events --tenant vision -f\nbedsit events -f -o jsonl",
)
def list_events(
    box: Box,
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Only this one's.", autocompletion=complete_tenants)
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="The newest N.", min=1, max=10_000)] = 100,
    *,
    follow: Follow = False,
) -> None:
    """List what happened, oldest first: tenants, models, slots and why they died."""
    check_follow(box, follow=follow)
    items = box.stream("events", tenant=tenant, limit=limit, follow=follow)
    if follow:
        box.screen.stream_rows(items, _line, _id)
    else:
        box.screen.show_rows("event", list(items), COLUMNS, _id)


def check_follow(box: Box, *, follow: bool) -> None:
    """Refuse to write one JSON document that never ends. Raises ``request.invalid``."""
    if follow and box.screen.form is Format.JSON:
        raise error("request.invalid", "--follow never ends, and one JSON document would not either", "use -o jsonl")


def _line(row: Row) -> str:
    about = " ".join(str(row[key]) for key in ("tenant", "slot") if row.get(key))
    return f"{row.get('at')}  {row.get('kind'):<18}  {about}  {row.get('text') or ''}".rstrip()


def _id(row: Row) -> str:
    return str(row.get("id", ""))
