"""Names for the shell to complete, asked of the daemon within 200 ms. Whatever goes wrong is silence."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from bedsit.cli.box import DEFAULT_RUN_DIR
from bedsit.ipc.admin import SOCKET_NAME, AdminClient
from bedsit.ipc.errors import BedsitError

_BUDGET_S: Final = 0.2
# zsh evaluates what completion prints: nothing but plain names may get there, whoever answers on the socket.
_DEVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_PLAIN: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}(/[a-z][a-z0-9_.-]{0,62})?")


def complete_tenants(ctx: typer.Context, incomplete: str) -> list[str]:
    """Tenants that begin with *incomplete*."""
    return _plain((row.get("name") for row in _ask(ctx, "tenant.list")), incomplete)


def complete_models(ctx: typer.Context, incomplete: str) -> list[str]:
    """``TENANT/`` first, then ``TENANT/MODEL``."""
    tenant, slash, _ = incomplete.partition("/")
    if not slash:
        return [f"{name}/" for name in complete_tenants(ctx, incomplete)]
    return _plain((f"{tenant}/{row.get('name')}" for row in _ask(ctx, "model.list", tenant=tenant)), incomplete)


def complete_keys(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the keys of the tenant named before."""
    rows = _ask(ctx, "key.list", tenant=ctx.params.get("tenant"))
    return [
        k for k in (str(row.get("id")) for row in rows) if re.fullmatch("[0-9a-f]{8}", k) and k.startswith(incomplete)
    ]


def complete_devices(ctx: typer.Context, incomplete: str) -> list[str]:
    """Devices that begin with *incomplete*."""
    answer = _ask_for(ctx, "device.list")
    rows = answer.get("devices") if isinstance(answer, dict) else None
    names = (str(row.get("id")) for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()
    return [name for name in names if _DEVICE.fullmatch(name) and name.startswith(incomplete)]


def complete_gpus(ctx: typer.Context, incomplete: str) -> list[str]:
    """GPUs that begin with *incomplete*, those that are cut too."""
    answer = _ask_for(ctx, "device.list")
    rows = answer.get("devices") if isinstance(answer, dict) else None
    found = [str(row.get("gpu")) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    names = dict.fromkeys(name for name in found if name.startswith("GPU-") and _DEVICE.fullmatch(name))
    return [name for name in names if name.startswith(incomplete)]


def _plain(names: Iterable[object], incomplete: str) -> list[str]:
    return [n for n in names if isinstance(n, str) and n.startswith(incomplete) and _PLAIN.fullmatch(n)]


def _ask_for(ctx: typer.Context, op: str, **args: Any) -> Any:
    try:
        with AdminClient(_find_run_dir(ctx) / SOCKET_NAME, timeout_s=_BUDGET_S) as admin:
            return admin.call(op, **args)
    except (BedsitError, OSError, ValueError):
        return None


def _ask(ctx: typer.Context, op: str, **args: Any) -> list[dict[str, Any]]:
    answer = _ask_for(ctx, op, **args)
    return [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []


def _find_run_dir(ctx: typer.Context) -> Path:
    before = ctx.find_root().params.get("run_dir")
    return Path(ctx.params.get("run_dir") or before or os.environ.get("BEDSIT_RUN_DIR") or DEFAULT_RUN_DIR)


TenantName = Annotated[
    str, typer.Argument(metavar="TENANT", help="The tenant's name.", autocompletion=complete_tenants)
]
OptionalTenant = Annotated[
    str | None, typer.Argument(metavar="[TENANT]", help="The tenant's name.", autocompletion=complete_tenants)
]
ModelAddress = Annotated[
    str, typer.Argument(metavar="TENANT/MODEL", help="The model, by its tenant.", autocompletion=complete_models)
]
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The key's id.", autocompletion=complete_keys)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
