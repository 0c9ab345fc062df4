"""The desired state: tenants, keys, models. SQLite in WAL mode, one writer, every change one durable transaction.

Manifests are opaque bytes here. Calls block for at most one fsync.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.snapshot import ServiceClass
from bedsit.sandbox.jail.context import Profile
from bedsit.supervisor.admission import SHARES_MAX
from bedsit.supervisor.atomic import disk_error
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.keys import NewKey
from bedsit.supervisor.migrations import migrate
from bedsit.supervisor.placement.seating import Seat
from bedsit.supervisor.policy import Restart

_COPY: Final = ".copy-"
Isolation = Literal["strict", "best-effort"]
_TENANT: Final = (
    "number, name, wanted, isolation, memory_bytes, cpus, pids, arena_bytes, queue_max, max_inflight, sessions_max,"
    " created_at, profile, cpu_weight, cpu_idle, cores, io_bps, weight, service_class, min_share, rate_per_s, burst,"
    " concurrency_max, queue_bytes_max, restart, restarts_max, restart_period_s, quarantine_after, min_slots,"
    " max_slots, idle_s, run_max_s, device, gpu_memory_bytes, gpu_type, near, apart, trusted, seat"
)
_MODEL: Final = "number, name, default_version, idempotent, rate_per_s, burst, concurrency_max, queue_max, priority"
_BOOLEAN: Final = tuple(_TENANT.split(", ").index(name) for name in ("cpu_idle", "trusted"))
#: The columns that say what a tenant may use, which the kernel holds it to.
LIMITS: Final = ("memory_bytes", "cpus", "pids", "cpu_weight", "cpu_idle", "cores", "io_bps")
#: The columns that say how its requests are let in and when it is their turn, which the router holds it to.
ADMISSION: Final = (
    "weight",
    "service_class",
    "min_share",
    "rate_per_s",
    "burst",
    "concurrency_max",
    "queue_max",
    "queue_bytes_max",
    "sessions_max",
)
#: The columns that say how its slots come and go.
PRESENCE: Final = (
    "restart",
    "restarts_max",
    "restart_period_s",
    "quarantine_after",
    "min_slots",
    "max_slots",
    "idle_s",
    "run_max_s",
)
#: The columns that say what device it asks for. *near* and *apart* are names with commas between them.
WISH: Final = ("device", "gpu_memory_bytes", "gpu_type", "near", "apart", "trusted")
#: The columns that say how requests of a model are let in.
MODEL_ADMISSION: Final = ("rate_per_s", "burst", "concurrency_max", "queue_max", "priority")


@dataclass(frozen=True)
class TenantRow:
    """A tenant as its operator wants it."""

    number: int
    name: str
    wanted: Literal["running", "stopped"]
    isolation: Isolation
    memory_bytes: int
    cpus: float
    pids: int
    arena_bytes: int
    queue_max: int
    max_inflight: int
    sessions_max: int
    created_at: str
    profile: Profile
    cpu_weight: int = 100
    cpu_idle: bool = False
    cores: str = "all"
    io_bps: int = 0
    weight: int = 100
    service_class: ServiceClass = "interactive"
    min_share: float = 0.0
    rate_per_s: float = 0.0
    burst: int = 1
    concurrency_max: int = 0
    queue_bytes_max: int = 16 << 20
    restart: Restart = "permanent"
    restarts_max: int = 0
    restart_period_s: float = 600.0
    quarantine_after: int = 3
    min_slots: int = 1
    max_slots: int = 1
    idle_s: float = 0.0
    run_max_s: float = 300.0
    device: str = ""
    gpu_memory_bytes: int = 0
    gpu_type: str = ""
    near: str = ""
    apart: str = ""
    trusted: bool = False
    seat: Seat | None = None


@dataclass(frozen=True)
class NewTenant:
    """What the creator of a tenant says."""

    name: str
    isolation: Isolation
    memory_bytes: int
    cpus: float
    pids: int
    arena_bytes: int
    queue_max: int
    max_inflight: int
    sessions_max: int
    profile: Profile = "standard"
    cpu_weight: int = 100
    cpu_idle: bool = False
    cores: str = "all"
    io_bps: int = 0
    weight: int = 100
    service_class: ServiceClass = "interactive"
    min_share: float = 0.0
    rate_per_s: float = 0.0
    burst: int = 1
    concurrency_max: int = 0
    queue_bytes_max: int = 16 << 20
    restart: Restart = "permanent"
    restarts_max: int = 0
    restart_period_s: float = 600.0
    quarantine_after: int = 3
    min_slots: int = 1
    max_slots: int = 1
    idle_s: float = 0.0
    run_max_s: float = 300.0
    device: str = ""
    gpu_memory_bytes: int = 0
    gpu_type: str = ""
    near: str = ""
    apart: str = ""
    trusted: bool = False
    seat: Seat | None = None


@dataclass(frozen=True)
class KeyRow:
    """A key; its secret is not here, nor anywhere."""

    id: str
    label: str
    digest: bytes
    created_at: str
    revoked_at: str | None


@dataclass(frozen=True)
class VersionRow:
    """One version of a model."""

    version: int
    digest: str
    size: int
    manifest: bytes
    deployed_at: str
    quarantined_at: str | None = None


@dataclass(frozen=True)
class ModelRow:
    """A model name of a tenant with all its versions, oldest first."""

    number: int
    name: str
    default: int
    idempotent: bool
    versions: tuple[VersionRow, ...]
    rate_per_s: float = 0.0
    burst: int = 1
    concurrency_max: int = 0
    queue_max: int = 0
    priority: int = 1


@dataclass(frozen=True)
class NewVersion:
    """A model version that a slot has loaded and that may now be written down."""

    number: int
    version: int
    name: str
    digest: str
    size: int
    idempotent: bool
    manifest: bytes


class Tally(NamedTuple):
    """How often a tenant's slot died, and why last: in one word and in one sentence."""

    restarts: int
    kind: str | None
    cause: str | None


class Registry:
    """The database. Raises ``disk.full`` or ``folder.unusable`` when it cannot be written; nothing changes then."""

    def __init__(self, path: Path) -> None:
        for left in path.parent.glob(f"{_COPY}*"):  # of a backup that a crash cut short
            left.unlink()
        with _as_disk_errors(path):
            self._db = sqlite3.connect(path, isolation_level=None)
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA foreign_keys = ON")
                migrate(self._db)
            except BaseException:
                self._db.close()
                raise
        path.chmod(0o600)
        self._path = path
        #: Another one after every change that the router may have to hear of.
        self.revision = 1
        self._changed = dict.fromkeys((number for (number,) in self._db.execute("SELECT number FROM tenants")), 1)
        (self.instance,) = self._db.execute("SELECT value FROM meta WHERE key = 'instance'").fetchone()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    # -- tenants ------------------------------------------------------------------------------------------------------

    def tenants(self) -> list[TenantRow]:
        """All tenants by name."""
        return [_read_tenant(row) for row in self._db.execute(f"SELECT {_TENANT} FROM tenants ORDER BY name")]

    def changed_since(self, revision: int) -> list[int]:
        """Numbers of the tenants that were made, changed or deleted after *revision*; of all of them after 0."""
        return [number for number, changed in self._changed.items() if changed > revision]

    def find_tenant(self, number: int) -> TenantRow | None:
        """The tenant of that number; None when there is none any more."""
        row = self._db.execute(f"SELECT {_TENANT} FROM tenants WHERE number = ?", (number,)).fetchone()
        return None if row is None else _read_tenant(row)

    def tenant(self, name: str) -> TenantRow:
        """One tenant. Raises ``tenant.not_found``."""
        row = self._db.execute(f"SELECT {_TENANT} FROM tenants WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise error("tenant.not_found", f"no tenant {name!r}", "list them with: bedsit tenant list")
        return _read_tenant(row)

    def seated(self) -> list[TenantRow]:
        """The tenants that have a seat on a device, by name."""
        return [
            _read_tenant(row)
            for row in self._db.execute(f"SELECT {_TENANT} FROM tenants WHERE seat <> '' ORDER BY name")
        ]

    def has_promised(self) -> bool:
        """Whether any tenant has a guaranteed share of what no device gives it."""
        query = "SELECT EXISTS (SELECT 1 FROM tenants WHERE min_share > 0 AND device = '')"
        return bool(self._db.execute(query).fetchone()[0])

    def add_tenant(self, new: NewTenant, key: NewKey, at: str) -> TenantRow:
        """Create a tenant with its first key. Raises ``tenant.exists``, and ``limit.impossible`` as ``check_share``."""
        check_slots(new)
        with self._writing() as db:
            if db.execute("SELECT 1 FROM tenants WHERE name = ?", (new.name,)).fetchone():
                raise error("tenant.exists", f"tenant {new.name!r} exists already")
            self.check_share(new)
            fields = {**vars(new), "created_at": at, "seat": _write_seat(new.seat)}
            names, marks = ", ".join(fields), ", ".join(f":{name}" for name in fields)
            added = db.execute(f"INSERT INTO tenants ({names}) VALUES ({marks})", fields).lastrowid
            db.execute("INSERT INTO keys VALUES (?, ?, 'first', ?, ?, NULL)", (key.id, added, key.digest, at))
        row = self.tenant(new.name)
        self._changed[row.number] = self.revision
        return row

    def set_wanted(self, name: str, wanted: Literal["running", "stopped"]) -> None:
        """Say whether a tenant shall run."""
        with self._writing(self.tenant(name).number) as db:
            db.execute("UPDATE tenants SET wanted = ? WHERE name = ?", (wanted, name))

    def touch(self, name: str) -> None:
        """The router has to hear of this tenant again, if there is one, though nothing is written."""
        self.revision += 1
        for (number,) in self._db.execute("SELECT number FROM tenants WHERE name = ?", (name,)):
            self._changed[number] = self.revision

    def set_limits(self, wanted: TenantRow) -> None:
        """Change what a tenant may use, do and ask for to what *wanted* says. Raises as ``check_share``."""
        columns = ("profile", *LIMITS, *ADMISSION, *PRESENCE, *WISH, "seat")
        check_slots(wanted)
        with self._writing(wanted.number) as db:
            self.check_share(wanted)
            fields = {name: getattr(wanted, name) for name in ("name", *columns)} | {"seat": _write_seat(wanted.seat)}
            changes = ", ".join(f"{name} = :{name}" for name in columns)
            db.execute(f"UPDATE tenants SET {changes} WHERE name = :name", fields)

    def check_share(self, wanted: TenantRow | NewTenant) -> None:
        """Raises ``limit.impossible`` when all tenants, this one as it is *wanted*, are promised more than there is.

        A share that does not grow is never refused, and what is promised of a device is placement's business.
        """
        query = (
            "SELECT coalesce(max(min_share) FILTER (WHERE name = :name), 0), total(min_share) FROM tenants"
            " WHERE device = ''"
        )
        own, promised = self._db.execute(query, {"name": wanted.name}).fetchone()
        share = 0.0 if wanted.device else wanted.min_share
        if share > own and promised - own + share > SHARES_MAX:
            left = round(max(0.0, 1 - (promised - own)), 6)
            what = f"a guaranteed share of {share:.4g} is more than the other tenants leave, {left:.4g}"
            hint = "ask for less, or lower another's: bedsit tenant set TENANT --min-share 0"
            raise error("limit.impossible", what, hint, share=share, left=left)

    def delete_tenant(self, name: str) -> None:
        """Forget a tenant, its keys, models and tally."""
        with self._writing(self.tenant(name).number) as db:
            db.execute("DELETE FROM tenants WHERE name = ?", (name,))

    # -- keys ---------------------------------------------------------------------------------------------------------

    def keys(self, tenant: int) -> list[KeyRow]:
        """All keys of a tenant, oldest first."""
        query = "SELECT id, label, digest, created_at, revoked_at FROM keys WHERE tenant = ? ORDER BY created_at, id"
        return [KeyRow(*row) for row in self._db.execute(query, (tenant,))]

    def add_key(self, tenant: int, key: NewKey, label: str, at: str) -> None:
        """Add a key to a tenant."""
        with self._writing(tenant) as db:
            db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, NULL)", (key.id, tenant, label, key.digest, at))

    def revoke_key(self, tenant: int, key_id: str, at: str) -> None:
        """Revoke a key for good; a second time changes nothing. Raises ``key.not_found``."""
        with self._writing(tenant) as db:
            change = "UPDATE keys SET revoked_at = coalesce(revoked_at, ?) WHERE tenant = ? AND id = ?"
            if db.execute(change, (at, tenant, key_id)).rowcount == 0:
                raise error("key.not_found", f"no key {key_id!r} of this tenant", "list them with: bedsit key list")

    # -- models -------------------------------------------------------------------------------------------------------

    def models(self, tenant: int) -> list[ModelRow]:
        """All models of a tenant by number."""
        versions: dict[int, list[VersionRow]] = {}
        query = (
            "SELECT model, version, digest, size, manifest, deployed_at, quarantined_at FROM versions"
            " WHERE tenant = ? ORDER BY 1, 2"
        )
        for model, *row in self._db.execute(query, (tenant,)):
            versions.setdefault(model, []).append(VersionRow(*row))
        query = f"SELECT {_MODEL} FROM models WHERE tenant = ? ORDER BY number"
        return [
            ModelRow(number, name, default, bool(idempotent), tuple(versions[number]), *admission)
            for number, name, default, idempotent, *admission in self._db.execute(query, (tenant,))
        ]

    def count_models(self, tenant: int) -> int:
        """How many models a tenant has."""
        (count,) = self._db.execute("SELECT count(*) FROM models WHERE tenant = ?", (tenant,)).fetchone()
        return int(count)

    def propose_version(self, tenant: int, name: str) -> tuple[int, int]:
        """The model number and version that the next deployment of *name* will get. Writes nothing."""
        query = "SELECT number, next_version FROM models WHERE tenant = ? AND name = ?"
        known = self._db.execute(query, (tenant, name)).fetchone()
        if known is not None:
            return int(known[0]), int(known[1])
        (number,) = self._db.execute("SELECT next_model FROM tenants WHERE number = ?", (tenant,)).fetchone()
        return int(number), 1

    def add_version(self, tenant: int, new: NewVersion, at: str) -> None:
        """Write down a loaded version: it is the default from now on, beside the older ones."""
        fields = {**vars(new), "tenant": tenant, "at": at}
        with self._writing(tenant) as db:
            db.execute(
                "INSERT INTO models (tenant, number, name, default_version, idempotent, next_version)"
                " VALUES (:tenant, :number, :name, :version, :idempotent, :version + 1)"
                " ON CONFLICT DO UPDATE"
                " SET default_version = :version, idempotent = :idempotent, next_version = :version + 1",
                fields,
            )
            db.execute(
                "INSERT INTO versions (tenant, model, version, digest, size, manifest, deployed_at)"
                " VALUES (:tenant, :number, :version, :digest, :size, :manifest, :at)",
                fields,
            )
            db.execute("UPDATE tenants SET next_model = max(next_model, :number + 1) WHERE number = :tenant", fields)

    def set_admission(self, tenant: int, wanted: ModelRow) -> None:
        """Change how a model's requests are let in to what *wanted* says; all its versions share that."""
        with self._writing(tenant) as db:
            fields = {"tenant": tenant} | {name: getattr(wanted, name) for name in ("number", *MODEL_ADMISSION)}
            changes = ", ".join(f"{name} = :{name}" for name in MODEL_ADMISSION)
            db.execute(f"UPDATE models SET {changes} WHERE tenant = :tenant AND number = :number", fields)

    def delete_versions(self, tenant: int, number: int, versions: set[int]) -> None:
        """Retire *versions* of a model; the newest one left is the default, and with none left the model is gone.

        One in quarantine is the default only where all are.
        """
        with self._writing(tenant) as db:
            for version in versions:
                what = (tenant, number, version)
                db.execute("DELETE FROM versions WHERE tenant = ? AND model = ? AND version = ?", what)
            query = (
                "SELECT coalesce(max(version) FILTER (WHERE quarantined_at IS NULL), max(version)) FROM versions"
                " WHERE tenant = ? AND model = ?"
            )
            (newest,) = db.execute(query, (tenant, number)).fetchone()
            if newest is None:
                db.execute("DELETE FROM models WHERE tenant = ? AND number = ?", (tenant, number))
            else:
                change = "UPDATE models SET default_version = ? WHERE tenant = ? AND number = ?"
                db.execute(change, (newest, tenant, number))

    def quarantine(self, tenant: int, number: int, version: int, at: str) -> int | None:
        """Take a version out of use. Gives the one that answers for its model then.

        None, and nothing changes, where no other one could: a model that dies now and then is better than none.
        """
        place = (tenant, number, version)
        query = (
            "SELECT max(version) FILTER (WHERE version < ?3), max(version) FROM versions"
            " WHERE tenant = ?1 AND model = ?2 AND version <> ?3 AND quarantined_at IS NULL"
        )
        earlier, any_left = self._db.execute(query, place).fetchone()
        query = "SELECT default_version FROM models WHERE tenant = ? AND number = ?"
        (default,) = self._db.execute(query, (tenant, number)).fetchone() or (version,)
        fallback: int | None = default if default != version else earlier if earlier is not None else any_left
        if fallback is not None:
            with self._writing(tenant) as db:
                change = "UPDATE versions SET quarantined_at = ? WHERE tenant = ? AND model = ? AND version = ?"
                db.execute(change, (at, *place))
                change = "UPDATE models SET default_version = ? WHERE tenant = ? AND number = ? AND default_version = ?"
                db.execute(change, (fallback, *place))
        return fallback

    def release(self, tenant: int, number: int) -> None:
        """Bring all versions of a model back into use; its newest one answers."""
        with self._writing(tenant) as db:
            place = (tenant, number)
            db.execute("UPDATE versions SET quarantined_at = NULL WHERE tenant = ? AND model = ?", place)
            newest = "SELECT max(version) FROM versions WHERE tenant = ?1 AND model = ?2"
            db.execute(f"UPDATE models SET default_version = ({newest}) WHERE tenant = ?1 AND number = ?2", place)

    def digests(self) -> set[str]:
        """Every artifact that some version needs."""
        return {digest for (digest,) in self._db.execute("SELECT DISTINCT digest FROM versions")}

    # -- tallies ------------------------------------------------------------------------------------------------------

    def tally(self, tenant: int) -> Tally:
        """How often a tenant was restarted, and why last."""
        row = self._db.execute("SELECT restarts, kind, cause FROM tallies WHERE tenant = ?", (tenant,)).fetchone()
        return Tally(*row) if row else Tally(0, None, None)

    def count_restart(self, tenant: int, cause: Cause) -> None:
        """Add one death to a tenant's tally."""
        with self._writing() as db:
            count = "INSERT INTO tallies (tenant, restarts, cause, kind) VALUES (:tenant, 1, :cause, :kind)"
            again = "ON CONFLICT DO UPDATE SET restarts = restarts + 1, cause = :cause, kind = :kind"
            db.execute(f"{count} {again}", {"tenant": tenant, "cause": cause.text, "kind": cause.kind})

    @contextmanager
    def _writing(self, *changed: int) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing. *changed* are the tenants of which the router may have to hear."""
        with _as_disk_errors(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
                self.revision += 1
                self._changed.update(dict.fromkeys(changed, self.revision))
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def copy_database(path: Path) -> Path:
    """A whole copy of the database at *path*, as it is at one moment, beside it; the caller removes it.

    Blocks for as long as writing it takes, and no writer meanwhile; for any thread. Raises ``disk.full``.
    """
    copy = path.with_name(f"{_COPY}{secrets.token_hex(4)}")
    with ExitStack() as undo:
        try:
            os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        except OSError as e:
            raise disk_error(copy, e) from e
        undo.callback(copy.unlink, missing_ok=True)
        with _as_disk_errors(copy), closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("VACUUM INTO ?", (str(copy),))
        undo.pop_all()
    return copy


def read_digests(path: Path) -> set[str]:
    """Every artifact that some version in a copy of the database needs."""
    with closing(sqlite3.connect(path)) as db:
        return {digest for (digest,) in db.execute("SELECT DISTINCT digest FROM versions")}


def check_slots(wanted: TenantRow | NewTenant) -> None:
    """Raises ``limit.impossible`` for more slots at least than at most."""
    if wanted.min_slots > wanted.max_slots:
        what = f"at least {wanted.min_slots} slots are more than at most {wanted.max_slots}"
        raise error("limit.impossible", what, "raise --max-slots with --min-slots")


@contextmanager
def _as_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as e:
        raise sqlite_error(path, e) from e


def sqlite_error(path: Path, e: sqlite3.Error) -> BedsitError:
    """An SQLite failure as the error that the operator sees."""
    if e.sqlite_errorname in ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"):
        return error("disk.full", f"{path}: {e}", "free space on this file system; nothing was changed")
    return error("folder.unusable", f"{path}: {e}", "mend this file or give another state folder")


def _read_tenant(row: tuple[Any, ...]) -> TenantRow:
    fields = list(row)
    for index in _BOOLEAN:
        fields[index] = bool(fields[index])  # SQLite has no truth of its own
    fields[-1] = msgspec.json.decode(fields[-1], type=Seat) if fields[-1] else None
    return TenantRow(*fields)


def _write_seat(seat: Seat | None) -> str:
    return msgspec.json.encode(seat).decode() if seat else ""
