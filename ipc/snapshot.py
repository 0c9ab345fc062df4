"""What the daemon tells the router: tenants, key digests, routes, limits, slots, as one versioned value.

The same bytes are a file (``snapshot.msgpack`` in the run folder), so a router can start while no daemon runs.
Server side only: this module needs msgspec, which the client does not install.
"""

from typing import Final, Literal

import msgspec

from bedsit.ipc.errors import error

VERSION: Final = 1


class KeyView(msgspec.Struct, frozen=True, array_like=True):
    """One key of a tenant: its public id and the SHA-256 of the secret."""

    id: str
    digest: bytes


class VersionView(msgspec.Struct, frozen=True, array_like=True):
    """One registered version of a model; *manifest* is what a slot answered, unread by the daemon."""

    version: int
    manifest: bytes


class ModelView(msgspec.Struct, frozen=True):
    """A model name of a tenant. *number* stands for the name on the wire; *default* is the version that answers."""

    name: str
    number: int
    default: int
    idempotent: bool
    versions: list[VersionView]


class TenantView(msgspec.Struct, frozen=True):
    """A tenant as the router sees it. Bytes and counts are hard limits."""

    name: str
    number: int
    state: Literal["running", "stopped"]
    keys: list[KeyView]
    arena_bytes: int
    queue_max: int
    max_inflight: int
    sessions_max: int
    models: list[ModelView]


class SlotView(msgspec.Struct, frozen=True):
    """A slot that belongs to a tenant. *models* are the (model number, version) pairs that it has loaded."""

    id: str
    tenant: str
    state: Literal["loading", "serving", "draining"]
    uid: int
    gid: int
    models: list[tuple[int, int]]


class Snapshot(msgspec.Struct, frozen=True):
    """The whole view; *serial* only grows within one *instance* (one state folder)."""

    serial: int
    instance: str
    run_dir: str
    tenants: list[TenantView]
    slots: list[SlotView]
    version: int = VERSION


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Snapshot)


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot as msgpack."""
    return _encoder.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """Read a snapshot. Raises ``wire.malformed`` when it is none, or one of a foreign version."""
    try:
        snapshot = _decoder.decode(data)
    except msgspec.MsgspecError as e:
        raise error("wire.malformed", f"not a snapshot: {e}") from None
    if snapshot.version != VERSION:
        raise error("wire.malformed", f"a snapshot of version {snapshot.version}; this router reads {VERSION}")
    return snapshot
