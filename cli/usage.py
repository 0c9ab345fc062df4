"""``bedsit usage``: what tenants, models or devices used."""

from enum import StrEnum
from typing import Annotated, Final

import typer

from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.cli.complete import complete_tenants
from bedsit.cli.option import read_option
from bedsit.cli.table import Column, Row, field
from bedsit.cli.text import parse_past

app = make_app()

_HOUR_S: Final = 3600
_DAY_H: Final = 24


class By(StrEnum):
    """What there is a row for."""

    TENANT = "tenant"
    MODEL = "model"
    DEVICE = "device"


def _amount(title: str, key: str) -> Column:
    return Column(title, lambda row: _round(row.get(key)), right=True)


_COLUMNS: Final = {
    By.TENANT: (
        field("TENANT", "tenant"),
        field("REQUESTS", "requests", right=True),
        _amount("WORKER s", "worker_s"),
        _amount("DEVICE s", "device_s"),
        _amount("CPU s", "cpu_s"),
        _amount("MEMORY GiB s", "memory_gib_s"),
        _amount("VRAM GiB s", "vram_gib_s"),
    ),
    By.MODEL: (
        field("TENANT", "tenant"),
        field("MODEL", "model"),
        field("VERSION", "version", right=True),
        field("REQUESTS", "requests", right=True),
        _amount("WORKER s", "worker_s"),
        _amount("DEVICE s", "device_s"),
    ),
    By.DEVICE: (
        field("DEVICE", "device"),
        _amount("WALL s", "wall_s"),
        _amount("USED s", "used_s"),
        _amount("IDLE s", "idle_s"),
        _amount("IDLE, WAITED FOR s", "gaps_s"),
    ),
}


@verb(
    app,
    "usage",
    examples="""
    bedsit usage
    bedsit usage vision --by model --since 7d
    bedsit usage --by device
    bedsit usage --since 30d -o json | jq '.items[] | {tenant, device_s, cpu_s}'
    """,
)
def show_usage(
    box: Box,
    tenant: Annotated[
        str | None,
        typer.Argument(metavar="TENANT", help="This tenant's alone.", autocompletion=complete_tenants),
    ] = None,
    by: Annotated[By, typer.Option(help="A row for each tenant, model version, or device.")] = By.TENANT,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="How far back, for example 90m or 7d: from a full hour on. [24h]")
    ] = None,
) -> None:
    """Show what was used: time of workers and devices, of processors and memory.

    Device time is that of turns on a shared device, and that of having one alone. Nothing here is what a worker said:
    the router's clock and the kernel's counters are added up.
    """
    span_s = read_option("--since", since, parse_past)
    hours = _DAY_H if span_s is None else span_s / _HOUR_S
    answer = box.call("usage.list", tenant=tenant, by=by.value, hours=hours)
    box.screen.show_rows("usage", answer["usage"], _COLUMNS[by], _name)
    box.screen.note(f"since {answer['since']}")


def _round(value: object) -> str | None:
    return f"{value:,.2f}" if isinstance(value, int | float) else None


def _name(row: Row) -> str:
    return "/".join(str(row[key]) for key in ("tenant", "model", "version", "device") if key in row)
