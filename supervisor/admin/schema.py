"""What may be asked, as types: an unknown operation, a missing or an unknown argument is ``request.invalid``."""

from typing import Annotated, Any, Literal, Union, get_args

import msgspec

from bedsit.ipc.errors import error
from bedsit.ipc.snapshot import ServiceClass
from bedsit.ipc.spelling import nearest
from bedsit.sandbox.jail.context import Profile
from bedsit.supervisor.admission import (
    Burst,
    Concurrency,
    ModelQueueLength,
    Priority,
    QueueBytes,
    QueueLength,
    Rate,
    Sessions,
    Share,
    Weight,
)
from bedsit.supervisor.ledger import By
from bedsit.supervisor.policy import Deaths, FewestSlots, Idle, MostSlots, Period, Restart, Restarts, Run

VERSION = 1

# \Z, because $ would allow a newline at the end.
TenantName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,30}\Z")]
ModelName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_.-]{0,62}\Z")]
KeyId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}\Z")]
Label = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Bytes = Annotated[int, msgspec.Meta(gt=0, le=1 << 50)]
Cpus = Annotated[float, msgspec.Meta(ge=0.01, le=4096)]
Pids = Annotated[int, msgspec.Meta(ge=4, le=1 << 22)]
Cores = Annotated[str, msgspec.Meta(max_length=256, pattern=r"^(all|[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)\Z")]
Bandwidth = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Version = Annotated[int, msgspec.Meta(ge=1)]
DeviceName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}\Z")]
Device = Annotated[str, msgspec.Meta(max_length=64)]
GpuMemory = Annotated[int, msgspec.Meta(ge=0, le=1 << 44)]
GpuName = Annotated[str, msgspec.Meta(pattern=r"^([0-9]{1,2}|GPU-[0-9a-f-]{0,36})\Z")]
GpuType = Annotated[str, msgspec.Meta(max_length=64)]
Names = Annotated[str, msgspec.Meta(max_length=2048, pattern=r"^([a-z][a-z0-9-]{0,30}(,[a-z][a-z0-9-]{0,30})*)?\Z")]
Token = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
Hours = Annotated[float, msgspec.Meta(ge=0, le=24 * 400)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]

#: What an argument takes, where msgspec would name a type or a pattern. An operation's own words are after its name.
_WORDS = {
    "memory_bytes": "more than 0 bytes",
    "cpus": "0.01 to 4096",
    "pids": "4 to 4194304",
    "gpu": "the beginning of a GPU's UUID, or its index",
    "token": "the word that device.partition.plan gave",
    "cpu_weight": "1 to 10000",
    "cores": "a list like 0-3,6, or all",
    "weight": "1 to 10000",
    "service_class": "realtime, interactive or batch",
    "min_share": "0 to 1",
    "rate_per_s": "0 to 1000000 requests a second, 0 for no limit",
    "burst": "1 to 100000",
    "concurrency_max": "0 to 10000, 0 for no limit",
    "queue_max": "1 to 100000",
    "model.set queue_max": "0 to 100000, 0 for no limit but the tenant's",
    "queue_bytes_max": "64 KiB to 16 GiB",
    "sessions_max": "1 to 100000",
    "priority": "0, 1 or 2",
    "restart": "permanent, transient or temporary",
    "restarts_max": "0 to 10000, 0 for no limit",
    "restart_period_s": "1 to 86400 seconds",
    "quarantine_after": "0 to 1000, 0 for never",
    "min_slots": "0 to 1024",
    "max_slots": "1 to 1024",
    "idle_s": "0 to 31536000 seconds, 0 for never",
    "device": "mig:PROFILE, gpu, gpu:SHARE, cpu:CORES, core:SHARE, or nothing",
    "gpu_memory_bytes": "0 to 16 TiB, 0 for what the device gives",
    "gpu_type": "words of a GPU's name",
    "near": "names of tenants with commas between them",
    "apart": "names of tenants with commas between them",
    "run_max_s": "0 to 86400 seconds, 0 for no limit",
}


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    """Arguments of one operation."""


class _Wish(_Request, frozen=True, kw_only=True):
    """What device it asks for. "" takes back what was said."""

    device: Device | None = None
    gpu_memory_bytes: GpuMemory | None = None
    gpu_type: GpuType | None = None
    near: Names | None = None
    apart: Names | None = None
    trusted: bool | None = None


class _Limits(_Wish, frozen=True, kw_only=True):
    """What a tenant may use, which the kernel holds it to, and how its requests are let in, which the router does."""

    memory_bytes: Bytes | None = None
    cpus: Cpus | None = None
    pids: Pids | None = None
    cpu_weight: Weight | None = None
    cpu_idle: bool | None = None
    cores: Cores | None = None
    io_bps: Bandwidth | None = None
    weight: Weight | None = None
    service_class: ServiceClass | None = None
    min_share: Share | None = None
    rate_per_s: Rate | None = None
    burst: Burst | None = None
    concurrency_max: Concurrency | None = None
    queue_max: QueueLength | None = None
    queue_bytes_max: QueueBytes | None = None
    sessions_max: Sessions | None = None
    restart: Restart | None = None
    restarts_max: Restarts | None = None
    restart_period_s: Period | None = None
    quarantine_after: Deaths | None = None
    min_slots: FewestSlots | None = None
    max_slots: MostSlots | None = None
    idle_s: Idle | None = None
    run_max_s: Run | None = None


class Ping(_Request, frozen=True, tag="ping"):
    """Is the daemon there."""


class Status(_Request, frozen=True, tag="status"):
    """How the whole box is. *inspect*: look at the walls of every slot anew, else say what was seen last, and when."""

    inspect: bool = False


class TenantCreate(_Limits, frozen=True, tag="tenant.create"):
    """A new tenant with its first key."""

    name: TenantName
    isolation: Literal["strict", "best-effort"] = "strict"
    profile: Profile = "standard"


class TenantList(_Request, frozen=True, tag="tenant.list"):
    """All tenants."""


class TenantShow(_Request, frozen=True, tag="tenant.show"):
    """One tenant."""

    name: TenantName


class TenantSet(_Limits, frozen=True, tag="tenant.set"):
    """Other limits, at once; another profile or device, with fresh slots."""

    name: TenantName
    profile: Profile | None = None


class TenantExplain(_Wish, frozen=True, tag="tenant.explain"):
    """Why a tenant sits where it does, or what a wish would come to; of a new tenant where there is no name."""

    name: TenantName | None = None
    service_class: ServiceClass | None = None
    min_share: Share | None = None


class TenantStop(_Request, frozen=True, tag="tenant.stop"):
    """No slot for this tenant until it is started."""

    name: TenantName


class TenantStart(_Request, frozen=True, tag="tenant.start"):
    """A slot again."""

    name: TenantName


class TenantRestart(_Request, frozen=True, tag="tenant.restart"):
    """Fresh slots, each there before the one that it replaces goes."""

    name: TenantName
    timeout_s: Seconds | None = None


class TenantDrain(_Request, frozen=True, tag="tenant.drain"):
    """Take nothing new, answer everything that waits, then stop."""

    name: TenantName
    timeout_s: Seconds | None = None


class TenantPark(_Request, frozen=True, tag="tenant.park"):
    """No slot until the next request."""

    name: TenantName


class TenantDelete(_Request, frozen=True, tag="tenant.delete"):
    """Forget it with all it has."""

    name: TenantName


class KeyCreate(_Request, frozen=True, tag="key.create"):
    """A further key."""

    tenant: TenantName
    label: Label = ""


class KeyList(_Request, frozen=True, tag="key.list"):
    """All keys of a tenant."""

    tenant: TenantName


class KeyRevoke(_Request, frozen=True, tag="key.revoke"):
    """A key that opens nothing any more."""

    tenant: TenantName
    id: KeyId


class ModelDeploy(_Request, frozen=True, tag="model.deploy"):
    """A new version of a model; its archive follows."""

    tenant: TenantName
    name: ModelName
    size: Bytes
    digest: Digest
    idempotent: bool = True
    replace: bool = False
    timeout_s: Seconds | None = None


class ModelList(_Request, frozen=True, tag="model.list"):
    """All models of a tenant."""

    tenant: TenantName


class ModelShow(_Request, frozen=True, tag="model.show"):
    """One model."""

    tenant: TenantName
    name: ModelName


class ModelSet(_Request, frozen=True, tag="model.set"):
    """How requests for one model are let in, beside its tenant's limits; at once."""

    tenant: TenantName
    name: ModelName
    rate_per_s: Rate | None = None
    burst: Burst | None = None
    concurrency_max: Concurrency | None = None
    queue_max: ModelQueueLength | None = None
    priority: Priority | None = None


class ModelRelease(_Request, frozen=True, tag="model.release"):
    """Bring versions that were taken out of use back."""

    tenant: TenantName
    name: ModelName


class ModelDelete(_Request, frozen=True, tag="model.delete"):
    """Retire a model, or one version of it."""

    tenant: TenantName
    name: ModelName
    version: Version | None = None


class UsageList(_Request, frozen=True, tag="usage.list"):
    """What was used in the last *hours*."""

    by: By = "tenant"
    hours: Hours = 24.0
    tenant: TenantName | None = None


class DeviceList(_Request, frozen=True, tag="device.list"):
    """All devices."""


class DeviceShow(_Request, frozen=True, tag="device.show"):
    """One device, by its name or the beginning of it."""

    name: DeviceName


class PartitionPlan(_Request, frozen=True, tag="device.partition.plan"):
    """What would be done to cut all declared GPUs as declared, or one."""

    gpu: GpuName | None = None


class PartitionApply(_Request, frozen=True, tag="device.partition.apply"):
    """Do it, if it is still what *token* stands for."""

    token: Token
    gpu: GpuName | None = None


class Ps(_Request, frozen=True, tag="ps"):
    """All slots."""


class EventsAsked(_Request, frozen=True, tag="events"):
    """What happened."""

    tenant: TenantName | None = None
    limit: Count = 100
    follow: bool = False


class LogsAsked(_Request, frozen=True, tag="logs"):
    """What a tenant printed."""

    tenant: TenantName
    lines: Count = 100
    follow: bool = False


class Backup(_Request, frozen=True, tag="backup"):
    """What the operator wants, and every artifact that it takes."""


class Down(_Request, frozen=True, tag="down"):
    """End everything."""


Request = Union[  # noqa: UP007 - get_args below needs the typing form
    Ping, Status, TenantCreate, TenantList, TenantShow, TenantSet, TenantExplain, TenantStop, TenantStart,
    TenantRestart, TenantDrain, TenantPark, TenantDelete, KeyCreate, KeyList, KeyRevoke, ModelDeploy, ModelList,
    ModelShow, ModelSet, ModelRelease, ModelDelete, DeviceList, DeviceShow, UsageList, PartitionPlan,
    PartitionApply, Ps, EventsAsked, LogsAsked, Backup, Down,
]  # fmt: skip


class _Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    op: str
    args: dict[str, Any] = {}


_KINDS = {str(kind.__struct_config__.tag): kind for kind in get_args(Request)}


def read_request(message: object) -> Any:
    """The request in a frame. Raises ``request.invalid``, with the nearest known name where there is one."""
    try:
        frame = msgspec.convert(message, _Frame)
    except msgspec.ValidationError as e:
        raise error("request.invalid", f"not a request: {e}") from None
    if frame.v != VERSION:
        raise error("request.invalid", f"version {frame.v} of the admin API; this daemon speaks {VERSION}")
    kind = _KINDS.get(frame.op)
    if kind is None:
        raise error("request.invalid", f"no operation {frame.op!r}", nearest(frame.op, _KINDS))
    known = kind.__struct_fields__
    for name in frame.args:
        if name not in known:
            raise error("request.invalid", f"{frame.op} takes no {name!r}", nearest(name, known))
    try:
        return msgspec.convert(frame.args | {"op": frame.op}, kind)
    except msgspec.ValidationError as e:
        name = str(e).rpartition("`$.")[2].rstrip("`")
        words = _WORDS.get(f"{frame.op} {name}") or _WORDS.get(name)
        what = f"{name} takes {words}" if words else str(e)
        raise error("request.invalid", f"{frame.op}: {what}") from None
