"""What the daemon tells the router: tenants, key digests, routes, limits, slots, as one versioned value.

The same bytes are a file (``snapshot.msgpack`` in the run folder), so a router can start while no daemon runs.
Server side only: this module needs msgspec, which the client does not install.
"""

from typing import Final, Literal

import msgspec

from bedsit.ipc.errors import error

VERSION: Final = 5
#: Nothing longer goes from the daemon to the router. A thousand tenants with ten small models each take 3 MiB.
MAX_BYTES: Final = 64 << 20

#: How much a tenant's requests mind waiting, and so what is done with them where they have to.
ServiceClass = Literal["realtime", "interactive", "batch"]
#: *draining* takes nothing new and answers what it has; *failed* was given up and has no slot left.
TenantState = Literal["running", "draining", "stopped", "failed"]


class KeyView(msgspec.Struct, frozen=True, array_like=True):
    """One key of a tenant: its public id and the SHA-256 of the secret."""

    id: str
    digest: bytes


class VersionView(msgspec.Struct, frozen=True, array_like=True):
    """One registered version of a model; *manifest* is what a slot answered, unread by the daemon."""

    version: int
    manifest: bytes
    quarantined: bool = False


class ModelView(msgspec.Struct, frozen=True):
    """A model name of a tenant. *number* stands for the name on the wire; *default* is the version that answers.

    Its limits hold beside the tenant's own: *rate_per_s* and *concurrency_max* are 0 for no limit, *queue_max* is 0
    where the tenant's is the only one. *priority* is that of requests that do not say theirs: 0 low, 1 normal, 2 high.
    """

    name: str
    number: int
    default: int
    idempotent: bool
    versions: list[VersionView]
    rate_per_s: float = 0.0
    burst: int = 1
    concurrency_max: int = 0
    queue_max: int = 0
    priority: int = 1


class TenantView(msgspec.Struct, frozen=True):
    """A tenant as the router sees it. Bytes and counts are hard limits.

    *turns_on* names the device that it takes turns on, if it does. *weight* is its part of that, beside the others'
    weights; *min_share* (0 to 1) a part that it has in any case. *rate_per_s* requests are let in, and *burst* of them
    at once above that; workers have *concurrency_max* of them at a time, and a call may run for *run_max_s*. Rate,
    concurrency and time: 0 is no limit.
    """

    name: str
    number: int
    state: TenantState
    keys: list[KeyView]
    arena_bytes: int
    queue_max: int
    max_inflight: int
    sessions_max: int
    models: list[ModelView]
    weight: int = 100
    service_class: ServiceClass = "interactive"
    min_share: float = 0.0
    rate_per_s: float = 0.0
    burst: int = 1
    concurrency_max: int = 0
    queue_bytes_max: int = 16 << 20
    run_max_s: float = 300.0
    turns_on: str = ""


class DeviceView(msgspec.Struct, frozen=True):
    """What tenants take turns on: at most *parallel* batches of them run there at once.

    The one without a *name* is the box itself, for tenants that have no other; there is none where nothing is shared
    so. While others wait, a batch that can is asked to yield after *turn_ms* (0: never). One that is still there after
    *hard_ms* has lost its turn to others; where the device is *strict*, the daemon is told to end its slot.
    """

    name: str
    parallel: int = 1
    turn_ms: float = 10.0
    hard_ms: float = 500.0
    strict: bool = True


class SlotView(msgspec.Struct, frozen=True):
    """A slot that belongs to a tenant. *models* are the (model number, version) pairs that it has loaded."""

    id: str
    tenant: str
    state: Literal["loading", "serving", "draining"]
    uid: int
    gid: int
    models: list[tuple[int, int]]


class Snapshot(msgspec.Struct, frozen=True):
    """The whole view; *serial* only grows within one *instance* (one state folder).

    The router may spin for *spin_us* before it sleeps.
    """

    serial: int
    instance: str
    run_dir: str
    tenants: list[TenantView]
    slots: list[SlotView]
    devices: list[DeviceView] = []
    spin_us: int = 0
    version: int = VERSION


def gate_box(parallel: int) -> list[DeviceView]:
    """The box itself, where at most *parallel* batches run at once; nothing where it has no such gate, 0.

    A batch that takes longer than its turn runs on there, and others beside it.
    """
    return [DeviceView("", parallel, turn_ms=0.0, hard_ms=250.0, strict=False)] if parallel else []


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Snapshot)


def encode(snapshot: Snapshot, tenants: list[msgspec.Raw] | None = None) -> bytes:
    """The snapshot as msgpack; with *tenants* in place of its own, where they are encoded already."""
    return _encoder.encode(snapshot if tenants is None else msgspec.structs.replace(snapshot, tenants=tenants))


def encode_tenant(tenant: TenantView) -> msgspec.Raw:
    """A part of a snapshot that seldom changes, and of which there may be a thousand."""
    return msgspec.Raw(_encoder.encode(tenant))


def decode(data: bytes) -> Snapshot:
    """Read a snapshot. Raises ``wire.malformed`` when it is none, or one of a foreign version."""
    try:
        snapshot = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise error("wire.malformed", f"not a snapshot: {e}") from None
    if snapshot.version != VERSION:
        raise error("wire.malformed", f"a snapshot of version {snapshot.version}; this router reads {VERSION}")
    return snapshot
