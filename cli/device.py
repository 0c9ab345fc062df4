"""``bedsit device``: what this box computes with."""

from typing import Annotated, Any, Final

import typer

from bedsit.cli.box import Box
from bedsit.cli.command import make_noun, verb
from bedsit.cli.complete import complete_devices
from bedsit.cli.partition import app as partition
from bedsit.cli.seat import describe_memory
from bedsit.cli.table import Column, Row, field
from bedsit.cli.text import describe_place, format_mib, format_size

app = make_noun("device", "Devices: what this box computes with. GPUs, parts of GPUs, and cores.")
app.add_typer(partition)

DeviceName = Annotated[
    str,
    typer.Argument(
        metavar="DEVICE", help="The device's name, or enough of its beginning.", autocompletion=complete_devices
    ),
]


def _compute(row: Row) -> str | None:
    """How much of it there is, in its own measure."""
    cores, sms = row.get("cores"), row.get("sms")
    if isinstance(cores, list) and cores:
        return f"{len(cores)} core{'s' * (len(cores) > 1)}"
    return f"{sms} SMs" if sms else None


def _describe_use(row: Row) -> str | None:
    """How much of it tenants have."""
    used = row.get("used")
    return f"{100 * used:.0f} %" if isinstance(used, float) else None


def _why(row: Row) -> str | None:
    """What is wrong with it, else what its operator should know."""
    trouble = row.get("trouble")
    return str(trouble.get("what")) if isinstance(trouble, dict) else row.get("note")


COLUMNS: Final = (
    field("DEVICE", "id"),
    field("KIND", "kind"),
    Column("STATE", lambda row: row.get("state")),
    field("NAME", "name"),
    Column("MEMORY MiB", lambda row: format_mib(row.get("memory_bytes")), right=True),
    Column("COMPUTE", _compute, right=True),
    field("TRUST", "trust"),
    Column("TENANTS", lambda row: _join(row.get("tenants"))),
    Column("FULL", _describe_use, right=True),
    Column("WHY", _why),
)


@verb(
    app,
    "list",
    alias="ls",
    examples="""
    bedsit device list
    bedsit device list -o json | jq '.items[] | select(.state == "degraded")'
    """,
)
def list_devices(box: Box) -> None:
    """List what can be handed out to tenants, and who has it: GPUs, MIG devices, shared cores, cores of NUMA nodes.

    A GPU that cannot be used, or of which nothing is cut, is listed too, with why.
    """
    answer = box.call("device.list")
    box.screen.show_rows("device", answer["devices"], COLUMNS, _name)
    _tell_trouble(box, answer)


@verb(
    app,
    "show",
    examples="""
    bedsit device show cpu0
    bedsit device show GPU-8f3a
    bedsit device show GPU-8f3a -o json | jq '.item.gpu_details.profiles'
    """,
)
def show_device(box: Box, device: DeviceName) -> None:
    """Show one device: how large it is, what fails with it, which files and variables a worker needs, and its GPU."""
    row = box.call("device.show", name=device)
    box.screen.show_record("device", row, _fields(row), _name(row))


def describe_devices(devices: object) -> str | None:
    """``2 GPUs, 3 MIG devices, 16 cores; degraded: GPU-...`` in one line."""
    if not isinstance(devices, dict):
        return None
    parts = [
        f"{devices.get(key) or 0} {one if devices.get(key) == 1 else many}"
        for key, one, many in (
            ("gpus", "GPU", "GPUs"),
            ("mig", "MIG device", "MIG devices"),
            ("cores", "core", "cores"),
        )
        if devices.get(key) or key != "mig"
    ]
    text = ", ".join(parts)
    seats, lost = devices.get("seats"), devices.get("seats_degraded")
    if seats:
        text += f"; {seats} seat{'s' * (seats != 1)} taken" + (f", of which {len(lost)} cannot be used" if lost else "")
    degraded, trouble = devices.get("degraded"), devices.get("trouble")
    if degraded and isinstance(degraded, list):
        text += f"; degraded: {', '.join(map(str, degraded))}"
    if isinstance(trouble, dict):
        text += f"; {trouble.get('what')}"
    return text


def _tell_trouble(box: Box, answer: Row) -> None:
    trouble = answer.get("trouble")
    if isinstance(trouble, dict):
        box.screen.note(f"{trouble.get('what')} ({trouble.get('mend')})")
    elif not answer.get("looked", True):
        box.screen.note("the GPUs have not been looked at yet: the driver takes its time")


def _fields(row: Row) -> list[tuple[str, object]]:
    details = row.get("gpu_details")
    gpu: dict[str, Any] = details if isinstance(details, dict) else {}
    trouble = row.get("trouble")
    wrong: dict[str, Any] = trouble if isinstance(trouble, dict) else {}
    place = row.get("placement")
    env = row.get("env")
    fields: list[tuple[str, object]] = [
        ("device", row.get("id")),
        ("kind", row.get("kind")),
        ("state", row.get("state")),
        ("why", wrong.get("what")),
        ("what to do", wrong.get("mend")),
        ("note", row.get("note") or gpu.get("note")),
        ("name", row.get("name")),
        ("memory", format_size(row.get("memory_bytes"))),
        ("compute", _compute(row)),
        ("cores", row.get("cpuset")),
        ("numa node", row.get("numa_node")),
        ("trust", row.get("trust")),
        ("fails with", row.get("fault_domain")),
        ("tenants", _join(row.get("tenants"))),
        ("full", _describe_use(row)),
        ("given away", row.get("given")),
        ("gpu", row.get("gpu")),
        ("place", describe_place(place)),
        ("nodes", _join(row.get("nodes"))),
        ("environment", _join([f"{name}={value}" for name, value in env.items()] if isinstance(env, dict) else None)),
        ("can", _join(row.get("capabilities"))),
    ]
    fields += [(f"memory of {each.get('tenant')}", describe_memory(each)) for each in row.get("tenants_memory") or ()]
    if gpu:
        fields += [
            ("pci", gpu.get("pci")),
            ("mig", gpu.get("mig")),
            ("slices", _join(gpu.get("slices"))),
            ("processes", _join(_describe_processes(gpu.get("processes")))),
        ]
        fields += [(f"profile {each.get('id')}", _describe_profile(each)) for each in gpu.get("profiles") or ()]
    return [(name, value) for name, value in fields if value not in (None, "", "-")]


def _describe_processes(processes: object) -> list[str]:
    rows = processes if isinstance(processes, list) else []
    return [f"{row.get('pid')} ({format_size(row.get('memory_bytes'))})" for row in rows]


def _describe_profile(profile: Row) -> str:
    starts = ", ".join(str(place[0]) for place in profile.get("placements") or ())
    sms, memory, most = profile.get("sms"), format_size(profile.get("memory_bytes")), profile.get("count_max")
    return f"{profile.get('name')}: {sms} SMs, {memory}, at most {most}, beginning at {starts}"


def _join(values: object) -> str | None:
    return ", ".join(map(str, values)) if isinstance(values, list) and values else None


def _name(row: Row) -> str:
    return str(row.get("id", ""))
