"""``bedsit tenant``: who lives here, with which limits."""

from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from bedsit.cli.address import check_tenant_name
from bedsit.cli.admission import (
    Burst,
    Class,
    Concurrency,
    MinShare,
    Queue,
    QueueBytes,
    Rate,
    Sessions,
    Weight,
    describe_concurrency,
    describe_queue,
    describe_rate,
    describe_share,
    read_admission,
    read_flow,
)
from bedsit.cli.box import Box
from bedsit.cli.command import make_noun, verb
from bedsit.cli.complete import OptionalTenant, TenantName, Yes
from bedsit.cli.key import KeyFile, keep_secret, open_key_file
from bedsit.cli.option import read_option
from bedsit.cli.presence import (
    IdleTime,
    MaxRestarts,
    MaxSlots,
    MinSlots,
    QuarantineAfter,
    Restart,
    RestartPeriod,
    RunLimit,
    describe_crew,
    describe_quarantine,
    describe_range,
    describe_restart,
    describe_run,
    describe_slots,
    read_presence,
)
from bedsit.cli.render import Format
from bedsit.cli.seat import (
    Apart,
    Device,
    GpuMemory,
    GpuType,
    Near,
    Trusted,
    describe_device,
    describe_memory,
    describe_seat,
    describe_trust,
    describe_wish,
    explain_memory,
    list_explanation,
    name_seat,
    read_wish,
)
from bedsit.cli.table import Column, Row, field
from bedsit.cli.text import format_age, format_duration, format_mib, format_size, parse_size, parse_span
from bedsit.ipc.errors import error

app = make_noun("tenant", "Tenants: who lives here, with which limits.")

_OLD_S: Final = 1.0


class Isolation(StrEnum):
    """What to do when a wall is missing."""

    STRICT = "strict"
    BEST_EFFORT = "best-effort"


class Profile(StrEnum):
    """What a model's code may do beyond answering."""

    STANDARD = "standard"
    SUBPROCESS = "subprocess"


Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="Memory limit, for example 2GiB.")]
Cpus = Annotated[float | None, typer.Option(metavar="N", help="Processor limit, in cores; 0.5 is half a core.")]
Pids = Annotated[int | None, typer.Option(metavar="N", help="Limit of processes and threads.")]
CpuWeight = Annotated[
    int | None, typer.Option(metavar="N", help="Share of a busy processor beside others, 1 to 10000; 100 is usual.")
]
Idle = Annotated[
    bool | None,
    typer.Option("--cpu-idle/--no-cpu-idle", help="Only get the processor time that no other tenant wants."),
]
Cores = Annotated[str | None, typer.Option(metavar="LIST", help="Run on these cores only, for example 0-3,6; or all.")]
Disk = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Bytes a second from each disk, and as many to it; or max.")
]
ProfileName = Annotated[
    Profile | None,
    typer.Option(
        "--profile",
        help="standard: threads only. subprocess: also child processes and this machine's programs; a weaker wall.",
    ),
]

Timeout = Annotated[str | None, typer.Option(metavar="TIME", help="Give up after this long, for example 2m.")]

COLUMNS: Final = (
    field("NAME", "name"),
    field("STATE", "state"),
    field("MODELS", "models", right=True),
    Column("MEMORY MiB", lambda row: format_mib(_limit(row, "memory_bytes")), right=True),
    Column("CPUS", lambda row: _limit(row, "cpus"), right=True),
    Column("PIDS", lambda row: _limit(row, "pids"), right=True),
    field("RESTARTS", "restarts", right=True),
    Column("SLOTS", describe_slots, right=True),
    Column("DEVICE", describe_device),
    Column("SEAT", describe_seat),
    Column("AGE", lambda row: format_age(row.get("created_at"))),
    field("LAST CAUSE", "last_cause"),
)


@verb(
    app,
    "create",
    examples="""
    bedsit tenant create vision
    bedsit tenant create vision --memory 2GiB --cpus 2 --key-file vision.key
    bedsit tenant create vision --class realtime --min-share 25% --rate 100/s --burst 20
    bedsit tenant create seldom --min-slots 0 --idle 5m
    bedsit tenant create vision --device mig:1g.10gb
    bedsit tenant create speech --device core:0.25 --class realtime
    bedsit tenant create vision -o json | jq -r .item.key.secret
    """,
)
def create_tenant(
    box: Box,
    name: Annotated[str, typer.Argument(metavar="NAME", help="a-z first, then a-z 0-9 and -, at most 31 characters.")],
    memory: Memory = None,
    cpus: Cpus = None,
    pids: Pids = None,
    isolation: Annotated[
        Isolation | None,
        typer.Option(help="strict: no slot unless every wall is up. best-effort: whatever this machine offers."),
    ] = None,
    cpu_weight: CpuWeight = None,
    cpu_idle: Idle = None,
    cores: Cores = None,
    io: Disk = None,
    weight: Weight = None,
    service_class: Class = None,
    min_share: MinShare = None,
    rate: Rate = None,
    burst: Burst = None,
    concurrency: Concurrency = None,
    queue: Queue = None,
    queue_bytes: QueueBytes = None,
    sessions: Sessions = None,
    restart: Restart = None,
    max_restarts: MaxRestarts = None,
    restart_period: RestartPeriod = None,
    quarantine_after: QuarantineAfter = None,
    min_slots: MinSlots = None,
    max_slots: MaxSlots = None,
    idle: IdleTime = None,
    run_limit: RunLimit = None,
    device: Device = None,
    gpu_memory: GpuMemory = None,
    gpu_type: GpuType = None,
    near: Near = None,
    apart: Apart = None,
    trusted: Trusted = None,
    profile: ProfileName = None,
    key_file: KeyFile = None,
) -> None:
    """Create a tenant and its first key.

    The key is shown this once and stored nowhere; --key-file writes it to a new file that only you can read.
    """
    check_tenant_name(name)
    limits = _limits(memory, cpus, pids, cpu_weight, cpu_idle, cores, io) | read_flow(rate, burst, concurrency)
    limits |= read_admission(
        weight=weight,
        service_class=service_class,
        min_share=min_share,
        queue=queue,
        queue_bytes=queue_bytes,
        sessions=sessions,
    )
    limits |= read_presence(
        restart=restart,
        max_restarts=max_restarts,
        restart_period=restart_period,
        quarantine_after=quarantine_after,
        min_slots=min_slots,
        max_slots=max_slots,
        idle=idle,
        run_limit=run_limit,
    )
    limits |= read_wish(
        device=device, gpu_memory=gpu_memory, gpu_type=gpu_type, near=near, apart=apart, trusted=trusted
    )
    with open_key_file(key_file) as file:
        answer = box.call(
            "tenant.create",
            name=name,
            **limits,
            isolation=isolation.value if isolation else None,
            profile=profile.value if profile else None,
        )
        tenant, key = answer["tenant"], keep_secret(box, answer["key"], file, key_file)
    fields = [*_fields(tenant), ("key", key["id"]), ("secret", key.get("secret", f"in {key_file}"))]
    box.screen.show_record("tenant", {**tenant, "key": key}, fields, name)
    if box.screen.form is Format.NAME and "secret" in key:
        box.screen.note(f"key, shown once: {key['secret']}")
    box.screen.next(f"bedsit model deploy {name} FOLDER")


@verb(app, "list", alias="ls", examples="bedsit tenant list\nbedsit tenant list -o name | xargs -n1 bedsit tenant show")
def list_tenants(box: Box) -> None:
    """List the tenants with their state and limits."""
    box.screen.show_rows("tenant", box.call("tenant.list"), COLUMNS, _name)


@verb(app, "show", examples="bedsit tenant show vision\nbedsit tenant show vision -o json | jq .item.walls")
def show_tenant(box: Box, name: TenantName) -> None:
    """Show one tenant: limits, slot, restarts, and every wall as it is now, read from outside of the slot."""
    tenant = box.call("tenant.show", name=name)
    walls = tenant.get("walls")
    states = [(f"wall {layer}", state) for layer, state in walls.items()] if isinstance(walls, dict) else []
    box.screen.show_record("tenant", tenant, [*_fields(tenant), *states], _name(tenant))


@verb(
    app,
    "set",
    examples="""
    bedsit tenant set vision --memory 4GiB
    bedsit tenant set vision --cpus 0.5 --pids 128
    bedsit tenant set vision --cores 2-3 --cpu-weight 400
    bedsit tenant set nightly --cpu-idle --io 20MiB
    bedsit tenant set nightly --class batch --concurrency 2 --queue 5000
    bedsit tenant set vision --rate 600/m --burst 50
    bedsit tenant set vision --rate max --min-share 0
    bedsit tenant set vision --max-slots 4 --run-limit 30s
    bedsit tenant set vision --device gpu:0.5 --gpu-memory 20GiB --trusted
    bedsit tenant set vision --restart transient --max-restarts 5 --restart-period 10m
    """,
)
def set_limits(
    box: Box,
    name: TenantName,
    memory: Memory = None,
    cpus: Cpus = None,
    pids: Pids = None,
    cpu_weight: CpuWeight = None,
    cpu_idle: Idle = None,
    cores: Cores = None,
    io: Disk = None,
    weight: Weight = None,
    service_class: Class = None,
    min_share: MinShare = None,
    rate: Rate = None,
    burst: Burst = None,
    concurrency: Concurrency = None,
    queue: Queue = None,
    queue_bytes: QueueBytes = None,
    sessions: Sessions = None,
    restart: Restart = None,
    max_restarts: MaxRestarts = None,
    restart_period: RestartPeriod = None,
    quarantine_after: QuarantineAfter = None,
    min_slots: MinSlots = None,
    max_slots: MaxSlots = None,
    idle: IdleTime = None,
    run_limit: RunLimit = None,
    device: Device = None,
    gpu_memory: GpuMemory = None,
    gpu_type: GpuType = None,
    near: Near = None,
    apart: Apart = None,
    trusted: Trusted = None,
    profile: ProfileName = None,
) -> None:
    """Change a tenant's limits; they hold at once, for its running slots too.

    Another profile or device takes fresh slots, each of which serves before the one that it replaces goes. What was
    given in one command changes together or not at all.
    """
    limits = _limits(memory, cpus, pids, cpu_weight, cpu_idle, cores, io) | read_flow(rate, burst, concurrency)
    limits |= read_admission(
        weight=weight,
        service_class=service_class,
        min_share=min_share,
        queue=queue,
        queue_bytes=queue_bytes,
        sessions=sessions,
    )
    limits |= read_presence(
        restart=restart,
        max_restarts=max_restarts,
        restart_period=restart_period,
        quarantine_after=quarantine_after,
        min_slots=min_slots,
        max_slots=max_slots,
        idle=idle,
        run_limit=run_limit,
    )
    limits |= read_wish(
        device=device, gpu_memory=gpu_memory, gpu_type=gpu_type, near=near, apart=apart, trusted=trusted
    )
    if profile is None and all(value is None for value in limits.values()):
        raise error(
            "request.invalid", "nothing to set", "pass at least one limit, or --profile: bedsit tenant set --help"
        )
    chosen = profile.value if profile else None
    _show(box, box.call("tenant.set", name=name, **limits, profile=chosen))


@verb(
    app,
    "explain",
    examples="""
    bedsit tenant explain vision
    bedsit tenant explain --device gpu:0.5 --gpu-type H200 --trusted
    bedsit tenant explain vision --device mig:2g.20gb -o json | jq .item.changes
    """,
)
def explain_tenant(
    box: Box,
    name: OptionalTenant = None,
    device: Device = None,
    gpu_memory: GpuMemory = None,
    gpu_type: GpuType = None,
    near: Near = None,
    apart: Apart = None,
    trusted: Trusted = None,
    service_class: Class = None,
    min_share: MinShare = None,
) -> None:
    """Say why a tenant sits where it does, or why its slots do not start; with options, what asking for that would do.

    Without a name it is a new tenant that asks. Nothing is changed.
    """
    wish = read_wish(device=device, gpu_memory=gpu_memory, gpu_type=gpu_type, near=near, apart=apart, trusted=trusted)
    said = read_admission(
        weight=None, service_class=service_class, min_share=min_share, queue=None, queue_bytes=None, sessions=None
    )
    wish |= {key: said[key] for key in ("service_class", "min_share")}
    answer = box.call("tenant.explain", name=name, **wish)
    box.screen.show_record("explanation", answer, list_explanation(answer), name_seat(answer))


@verb(app, "stop", examples="bedsit tenant stop vision")
def stop_tenant(box: Box, name: TenantName) -> None:
    """Stop a tenant: its slots are destroyed, requests are refused, models and keys stay."""
    box.call("tenant.stop", name=name)
    box.screen.note(f"tenant {name} stopped")
    box.screen.next(f"bedsit tenant start {name}")


@verb(app, "start", examples="bedsit tenant start vision")
def start_tenant(box: Box, name: TenantName) -> None:
    """Start a tenant that was stopped, parked or given up, and wait until it serves."""
    box.call("tenant.start", name=name)
    box.screen.note(f"tenant {name} started")


@verb(app, "restart", examples="bedsit tenant restart vision\nbedsit tenant restart vision --timeout 5m")
def restart_tenant(box: Box, name: TenantName, timeout: Timeout = None) -> None:
    """Replace a tenant's slots by fresh ones, without losing a request: each serves before an old one goes.

    If the first one does not come up, nothing has changed.
    """
    box.call("tenant.restart", name=name, timeout_s=read_option("--timeout", timeout, parse_span))
    box.screen.note(f"tenant {name} restarted")


@verb(app, "drain", examples="bedsit tenant drain vision\nbedsit tenant drain vision --timeout 10m")
def drain_tenant(box: Box, name: TenantName, timeout: Timeout = None) -> None:
    """Stop a tenant gently: new requests are refused, those that wait or run are answered, then its slots go.

    If that takes too long, the tenant takes requests again as before.
    """
    box.call("tenant.drain", name=name, timeout_s=read_option("--timeout", timeout, parse_span))
    box.screen.note(f"tenant {name} drained and stopped")
    box.screen.next(f"bedsit tenant start {name}")


@verb(app, "park", examples="bedsit tenant park vision")
def park_tenant(box: Box, name: TenantName) -> None:
    """Take a tenant's slots away until somebody asks for it: its next request waits for a fresh one.

    It needs --min-slots 0, and a slot that has not just come. What runs is answered before.
    """
    box.call("tenant.park", name=name)
    box.screen.note(f"tenant {name} parked")


@verb(app, "delete", alias="rm", examples="bedsit tenant delete vision\nbedsit tenant delete vision --yes")
def delete_tenant(box: Box, name: TenantName, *, yes: Yes = False) -> None:
    """Delete a tenant with its models and keys. This cannot be undone."""
    if not yes:
        box.screen.confirm(f"Delete tenant {name}, its models and keys?", flag="--yes", word=name)
    box.call("tenant.delete", name=name)
    box.screen.note(f"tenant {name} deleted")


def describe_walls(walls: object, age_s: object = None) -> str:
    """``18 of 20 up; off: landlock (why); seen 2 m 3 s ago``; the age only where somebody might take it for now."""
    if not isinstance(walls, dict) or not walls:
        return "-"
    missing = [f"{layer} ({str(state).removeprefix('off: ')})" for layer, state in walls.items() if state != "on"]
    text = f"{len(walls) - len(missing)} of {len(walls)} up"
    if missing:
        text += f"; off: {', '.join(missing)}"
    if isinstance(age_s, (int, float)) and age_s >= _OLD_S:
        text += f"; seen {format_duration(age_s)} ago"
    return text


def _show(box: Box, tenant: dict[str, Any]) -> None:
    box.screen.show_record("tenant", tenant, _fields(tenant), _name(tenant))


def _fields(tenant: Row) -> list[tuple[str, object]]:
    found = tenant.get("limits")
    limits = found if isinstance(found, dict) else {}
    return [
        ("name", tenant.get("name")),
        ("state", tenant.get("state")),
        ("memory", format_size(_limit(tenant, "memory_bytes"))),
        ("cpus", _limit(tenant, "cpus")),
        ("pids", _limit(tenant, "pids")),
        ("cpu share", _describe_share(tenant)),
        ("cores", _limit(tenant, "cores")),
        ("disk", _describe_disk(tenant)),
        ("device", describe_wish(tenant)),
        ("seat", describe_seat(tenant)),
        ("gpu memory", describe_memory(tenant.get("gpu_memory"))),
        ("which means", explain_memory(tenant.get("gpu_memory"))),
        ("trusted", describe_trust(tenant)),
        ("class", limits.get("service_class")),
        ("share", describe_share(limits)),
        ("rate", describe_rate(limits)),
        ("concurrency", describe_concurrency(limits)),
        ("queue", describe_queue(limits)),
        ("sessions", limits.get("sessions_max")),
        ("isolation", tenant.get("isolation")),
        ("profile", _describe_profile(tenant)),
        ("models", tenant.get("models")),
        ("slots", describe_crew(tenant)),
        ("slots kept", describe_range(limits)),
        ("restart", describe_restart(limits)),
        ("quarantine", describe_quarantine(limits)),
        ("run limit", describe_run(limits)),
        ("worker pid", tenant.get("worker_pid")),
        ("assigned", tenant.get("assigned_at")),
        ("restarts", tenant.get("restarts")),
        ("last cause", tenant.get("last_cause")),
        ("created", tenant.get("created_at")),
        ("walls", describe_walls(tenant.get("walls"), tenant.get("walls_age_s"))),
    ]


def _limits(
    memory: str | None,
    cpus: float | None,
    pids: int | None,
    cpu_weight: int | None,
    cpu_idle: bool | None,  # noqa: FBT001  an option of the command line
    cores: str | None,
    io: str | None,
) -> dict[str, object]:
    """What was said about limits, as the daemon wants it."""
    return {
        "memory_bytes": read_option("--memory", memory, parse_size),
        "cpus": cpus,
        "pids": pids,
        "cpu_weight": cpu_weight,
        "cpu_idle": cpu_idle,
        "cores": cores,
        "io_bps": read_option("--io", io, parse_size, 0),
    }


def _describe_share(tenant: Row) -> str:
    weight = f"weight {_limit(tenant, 'cpu_weight')}"
    return f"idle ({weight} when not)" if _limit(tenant, "cpu_idle") else weight


def _describe_profile(tenant: Row) -> object:
    profile = tenant.get("profile")
    if profile == Profile.SUBPROCESS:
        return f"{profile} (weaker wall: it may fork and run the box's programs)"
    return profile


def _describe_disk(tenant: Row) -> str:
    bps = _limit(tenant, "io_bps")
    return f"{format_size(bps)} a second" if bps else "max"


def _limit(tenant: Row, key: str) -> object:
    limits = tenant.get("limits")
    return limits.get(key) if isinstance(limits, dict) else None


def _name(row: Row) -> str:
    return str(row.get("name", ""))
