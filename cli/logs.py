"""``bedsit logs``: what a tenant's workers wrote."""

from typing import Annotated

import typer

from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.cli.complete import TenantName
from bedsit.cli.events import Follow, check_follow
from bedsit.cli.render import Format
from bedsit.cli.table import Row

app = make_app()


@verb(app, "logs", examples="bedsit logs vision\nbedsit logs vision --lines 20 -f\nbedsit logs vision -o jsonl")
def show_logs(
    box: Box,
    tenant: TenantName,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", help="The newest N.", min=1, max=10_000)] = 100,
    *,
    follow: Follow = False,
) -> None:
    r"""Show what a tenant's workers wrote to stdout and stderr.

    The text is the tenant's: what could steer a terminal is shown as \x1b and the like.
    """
    check_follow(box, follow=follow)
    items = box.stream("logs", tenant=tenant, lines=lines, follow=follow)
    if box.screen.form is Format.JSON:
        box.screen.show_rows("log_line", list(items), (), _slot)
    else:
        box.screen.stream_rows(items, _line, _slot)


def _line(row: Row) -> str:
    return f"{row.get('at')} {row.get('slot')} {row.get('stream')}  {row.get('text')}"


def _slot(row: Row) -> str:
    return str(row.get("slot", ""))
