"""``bedsit status``: is everything up, and which walls."""

from typing import Any

from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.cli.device import describe_devices
from bedsit.cli.seat import describe_memory
from bedsit.cli.table import Row
from bedsit.cli.tenant import describe_walls
from bedsit.cli.text import format_duration

app = make_app()


@verb(app, "status", examples="bedsit status\nbedsit status -o json | jq .item.walls")
def show_status(box: Box) -> None:
    """Show whether daemon, router, zygote and pool are up, and how the tenants do, each with its walls.

    Walls are read from outside of every slot, now. Exits 69 when no daemon answers.
    """
    status = box.call("status", inspect=True)
    box.screen.show_record("status", status, _fields(status), str(status.get("version", "")))


def _fields(status: Row) -> list[tuple[str, object]]:
    router, zygote, pool, cgroup = (_table(status, key) for key in ("router", "zygote", "pool", "cgroup"))
    fields: list[tuple[str, object]] = [
        ("daemon", f"ok, version {status.get('version')}, pid {status.get('pid')}, up {_up(status)}"),
        ("router", f"connected, pid {router.get('pid')}" if router.get("connected") else "missing"),
        ("zygote", _zygote(zygote)),
        ("pool", f"{pool.get('blank')} of {pool.get('target')} blank, {pool.get('building')} building"),
        ("cgroups", f"limits {cgroup.get('limits')}, life cycle {cgroup.get('lifecycle')}"),
        ("devices", describe_devices(status.get("devices"))),
        ("walls", describe_walls(status.get("walls"))),
        ("run dir", status.get("run_dir")),
        ("state dir", status.get("state_dir")),
    ]
    tenants = status.get("tenants")
    rows = tenants if isinstance(tenants, list) else []
    fields += [(f"tenant {row.get('name')}", _tenant(row)) for row in rows]
    return fields


def _zygote(zygote: Row) -> str:
    if not zygote.get("pid"):
        return "missing"
    return f"ok, generation {zygote.get('generation')}, pid {zygote.get('pid')}, {zygote.get('forks')} forks"


def _tenant(row: Row) -> str:
    parts = [str(row.get("state")), f"{row.get('models')} models", f"{row.get('restarts')} restarts"]
    if row.get("last_cause"):
        parts.append(f"last: {row.get('last_cause')}")
    if row.get("gpu_memory"):
        parts.append(f"GPU memory {describe_memory(row.get('gpu_memory'))}")
    if row.get("walls"):
        parts.append(f"walls {describe_walls(row.get('walls'), row.get('walls_age_s'))}")
    return ", ".join(parts)


def _up(status: Row) -> str:
    seconds = status.get("uptime_s")
    return format_duration(float(seconds)) if isinstance(seconds, (int, float)) else "-"


def _table(row: Row, key: str) -> dict[str, Any]:
    value = row.get(key)
    return value if isinstance(value, dict) else {}
