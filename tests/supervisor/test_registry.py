"""The desired state: constraints, transactions, migrations, full disks."""

import contextlib
import math
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor import admission, migrations
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.keys import make_key
from bedsit.supervisor.registry import ModelRow, NewTenant, NewVersion, Registry, VersionRow

AT = "2026-11-23T22:01:02.123Z"
VISION = NewTenant("vision", "strict", 1 << 28, 1.5, 64, 1 << 20, 10, 4, 8)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """An empty registry."""
    registry = Registry(tmp_path / "bedsit.db")
    yield registry
    registry.close()


def version(number: int, version: int, name: str = "echo", digest: str = "d") -> NewVersion:
    """A loaded version."""
    return NewVersion(number, version, name, digest, 10, idempotent=True, manifest=b"\x00opaque")


def fill_up(path: Path) -> None:
    """Leave no room on the file system of *path*."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass


def add_many(registry: Registry) -> None:
    """More versions than a small disk holds."""
    for number in range(1, 100):
        registry.add_version(1, version(number, 1, name=f"m{number}"), AT)


def test_keeps_a_tenant_with_its_first_key(registry: Registry) -> None:
    """What was given comes back, and the key's digest but not its secret."""
    key = make_key()
    row = registry.add_tenant(VISION, key, AT)

    assert (row.name, row.number, row.wanted, row.cpus, row.created_at) == ("vision", 1, "running", 1.5, AT)
    assert [(k.id, k.digest, k.revoked_at) for k in registry.keys(row.number)] == [(key.id, key.digest, None)]
    assert registry.tenants() == [row]


def test_a_number_is_never_given_twice(registry: Registry) -> None:
    """Sockets and spools are named by numbers."""
    first = registry.add_tenant(VISION, make_key(), AT)
    registry.delete_tenant("vision")

    assert registry.add_tenant(VISION, make_key(), AT).number == first.number + 1


def test_deleting_a_tenant_deletes_all_it_has(registry: Registry) -> None:
    """Keys, models, versions and the tally go too."""
    row = registry.add_tenant(VISION, make_key(), AT)
    registry.add_version(row.number, version(1, 1), AT)
    registry.count_restart(row.number, Cause("signal", "signal 9"))
    registry.delete_tenant("vision")

    assert registry.keys(row.number) == []
    assert registry.models(row.number) == []
    assert registry.digests() == set()
    assert registry.tally(row.number) == (0, None, None)


def test_versions_count_up_and_the_newest_is_the_default(registry: Registry) -> None:
    """Numbers of models and versions are stable and not reused."""
    tenant = registry.add_tenant(VISION, make_key(), AT).number

    assert registry.propose_version(tenant, "echo") == (1, 1)

    registry.add_version(tenant, version(1, 1), AT)

    assert registry.propose_version(tenant, "echo") == (1, 2)
    assert registry.propose_version(tenant, "other") == (2, 1)

    registry.add_version(tenant, version(1, 2, digest="e"), AT)
    (model,) = registry.models(tenant)

    assert (model.default, [v.version for v in model.versions]) == (2, [1, 2])
    assert registry.count_models(tenant) == 1
    assert registry.digests() == {"d", "e"}

    registry.delete_versions(tenant, 1, {2})

    assert registry.models(tenant)[0].default == 1
    assert registry.propose_version(tenant, "echo") == (1, 3)

    registry.delete_versions(tenant, 1, {1})

    assert registry.models(tenant) == []
    assert registry.propose_version(tenant, "echo") == (2, 1)


def test_the_tally_counts_and_keeps_the_last_cause(registry: Registry) -> None:
    """How often, and why last."""
    tenant = registry.add_tenant(VISION, make_key(), AT).number
    registry.count_restart(tenant, Cause("signal", "signal 9"))
    registry.count_restart(tenant, Cause("oom", "out of memory"))

    assert registry.tally(tenant) == (2, "oom", "out of memory")


def test_what_is_missing_is_told(registry: Registry) -> None:
    """Unknown names are typed errors."""
    with pytest.raises(BedsitError, match=r"tenant\.not_found"):
        registry.tenant("none")
    with pytest.raises(BedsitError, match=r"key\.not_found"):
        registry.revoke_key(1, "00000000", AT)


def test_survives_being_opened_again(tmp_path: Path) -> None:
    """Migrations are taken once, and the instance's name is for life."""
    first = Registry(tmp_path / "bedsit.db")
    first.add_tenant(VISION, make_key(), AT)
    instance = first.instance
    first.close()
    second = Registry(tmp_path / "bedsit.db")

    assert second.instance == instance
    assert [row.name for row in second.tenants()] == ["vision"]
    second.close()


def test_every_table_is_strict(registry: Registry, tmp_path: Path) -> None:
    """SQLite checks types."""
    db = sqlite3.connect(tmp_path / "bedsit.db")
    tables = db.execute("SELECT name, strict FROM pragma_table_list WHERE name NOT LIKE 'sqlite_%'").fetchall()
    db.close()

    assert {name for name, _ in tables} == {"meta", "tenants", "keys", "models", "versions", "events", "tallies"}
    assert all(strict for _, strict in tables)


def test_the_database_of_a_newer_bedsit_is_refused(tmp_path: Path) -> None:
    """Going back is not possible, and nothing is changed."""
    db = sqlite3.connect(tmp_path / "bedsit.db")
    db.execute(f"PRAGMA user_version = {len(migrations.NAMES) + 1}")
    db.close()
    with pytest.raises(BedsitError, match=r"state\.foreign"):
        Registry(tmp_path / "bedsit.db")


def make_older(path: Path, steps: int) -> None:
    """A database of a bedsit that took the first so many steps, with a tenant, its model and its tally."""
    db = sqlite3.connect(path, isolation_level=None)
    for name in migrations.NAMES[:steps]:
        db.executescript(files("bedsit.supervisor.migrations").joinpath(name).read_text())
    db.execute(f"PRAGMA user_version = {steps}")
    names = "name, isolation, memory_bytes, cpus, pids, arena_bytes, queue_max, max_inflight, sessions_max, created_at"
    db.execute(f"INSERT INTO tenants ({names}) VALUES ('old', 'strict', 1, 1.0, 4, 1, 1, 1, 1, 'then')")
    db.execute("INSERT INTO models VALUES (1, 1, 'echo', 3, 1, 4)")
    db.execute("INSERT INTO versions VALUES (1, 1, 3, 'd', 10, x'00', 'then')")
    db.execute("INSERT INTO tallies (tenant, restarts, cause) VALUES (1, 3, 'signal 9')")
    db.close()


@pytest.mark.parametrize("steps", range(3, len(migrations.NAMES)))
def test_limits_are_written_down_and_an_older_database_gets_those_that_change_nothing(
    tmp_path: Path, steps: int
) -> None:
    """A tenant of before has the usual weights, every core and no limit of bandwidth or rate; what is set then is kept.

    So has its model, whose own queue it had not.
    """
    make_older(tmp_path / "bedsit.db", steps)
    registry = Registry(tmp_path / "bedsit.db")
    old = registry.tenant("old")

    assert (old.cpu_weight, old.cpu_idle, old.cores, old.io_bps) == (100, False, "all", 0)
    assert (old.weight, old.service_class, old.min_share, old.rate_per_s) == (100, "interactive", 0.0, 0.0)
    assert (old.burst, old.concurrency_max, old.queue_bytes_max, old.queue_max) == (1, 0, 16 << 20, 1)
    assert registry.tally(1) == (3, "unknown", "signal 9")
    (model,) = registry.models(1)
    assert model == ModelRow(1, "echo", 3, True, (VersionRow(3, "d", 10, b"\x00", "then"),), 0.0, 1, 0, 0, 1)
    new = replace(old, cpu_weight=7, cpu_idle=True, cores="0-1", io_bps=5, pids=9, service_class="batch", min_share=1.0)
    registry.set_limits(new)
    assert registry.tenant("old") == new
    registry.close()


def test_a_models_limits_are_kept_by_its_next_version(registry: Registry) -> None:
    """They are the model's; with its last version they are gone, and a new model of that name has the usual ones."""
    tenant = registry.add_tenant(VISION, make_key(), AT).number
    registry.add_version(tenant, version(1, 1), AT)
    registry.add_version(tenant, version(2, 1, name="other"), AT)
    echo, other = registry.models(tenant)
    registry.set_admission(tenant, replace(echo, rate_per_s=2.5, burst=9, concurrency_max=3, queue_max=4, priority=0))
    registry.add_version(tenant, version(1, 2), AT)
    changed, same = registry.models(tenant)

    assert (changed.rate_per_s, changed.burst, changed.concurrency_max) == (2.5, 9, 3)
    assert (changed.queue_max, changed.priority, changed.default) == (4, 0, 2)
    assert same == other

    registry.delete_versions(tenant, 1, {1, 2})
    registry.add_version(tenant, version(3, 1), AT)

    assert registry.models(tenant)[1] == replace(echo, number=3)


def test_says_which_tenants_have_changed(registry: Registry, tmp_path: Path) -> None:
    """By number, since a revision; all of them for who knows nothing; a deleted one too, which is found no more."""
    for name in ("vision", "audio", "other"):
        registry.add_tenant(replace(VISION, name=name), make_key(), AT)
    before = registry.revision
    assert sorted(registry.changed_since(0)) == [1, 2, 3]
    assert registry.changed_since(before) == []

    registry.add_key(2, make_key(), "more", AT)
    registry.delete_tenant("other")

    assert sorted(registry.changed_since(before)) == [2, 3]
    assert registry.find_tenant(2) == registry.tenant("audio")
    assert registry.find_tenant(3) is None

    again = Registry(tmp_path / "bedsit.db")
    assert sorted(again.changed_since(0)) == [1, 2]
    again.close()


def test_no_more_than_the_whole_is_guaranteed(registry: Registry) -> None:
    """Ten tenths fit, also as binary fractions; what is more is refused with what is left, and changes nothing."""
    for number in range(10):
        registry.add_tenant(replace(VISION, name=f"t{number}", min_share=0.1), make_key(), AT)
    with pytest.raises(BedsitError, match=r"limit\.impossible.* more than the other tenants leave, 0 ") as refused:
        registry.add_tenant(replace(VISION, min_share=0.01), make_key(), AT)
    assert refused.value.detail == {"share": 0.01, "left": 0.0}
    assert len(registry.tenants()) == 10

    first = registry.tenant("t0")
    with pytest.raises(BedsitError, match=r"limit\.impossible"):
        registry.set_limits(replace(first, min_share=0.2, pids=9))
    assert registry.tenant("t0") == first

    registry.delete_tenant("t1")
    registry.set_limits(replace(first, min_share=0.2))
    registry.set_limits(replace(first, min_share=0.2, pids=9))
    registry.set_limits(replace(first, min_share=0.0))


def test_a_share_that_does_not_grow_is_never_refused(registry: Registry) -> None:
    """Whatever the database says: the way back is open."""
    registry.add_tenant(replace(VISION, min_share=0.9), make_key(), AT)
    registry.add_tenant(replace(VISION, name="audio"), make_key(), AT)
    registry._db.execute("UPDATE tenants SET min_share = 0.9")
    vision = registry.tenant("vision")
    registry.set_limits(replace(vision, pids=9))
    registry.set_limits(replace(vision, min_share=0.5))
    with pytest.raises(BedsitError, match=r"limit\.impossible"):
        registry.set_limits(replace(vision, min_share=0.6))


RANGES: list[tuple[str, str, Any, Any, Any]] = [
    ("tenants", "weight", 1, 10_000, admission.Weight),
    ("tenants", "min_share", 0.0, 1.0, admission.Share),
    ("tenants", "rate_per_s", 0.0, 1e6, admission.Rate),
    ("tenants", "burst", 1, 100_000, admission.Burst),
    ("tenants", "concurrency_max", 0, 10_000, admission.Concurrency),
    ("tenants", "queue_bytes_max", 64 << 10, 16 << 30, admission.QueueBytes),
    ("models", "rate_per_s", 0.0, 1e6, admission.Rate),
    ("models", "burst", 1, 100_000, admission.Burst),
    ("models", "concurrency_max", 0, 10_000, admission.Concurrency),
    ("models", "queue_max", 0, 100_000, admission.ModelQueueLength),
    ("models", "priority", 0, 2, admission.Priority),
]


@pytest.mark.parametrize(("table", "column", "least", "most", "kind"), RANGES, ids=lambda value: str(value)[:20])
def test_ranges_are_those_of_the_requests(
    registry: Registry, table: str, column: str, least: Any, most: Any, kind: Any
) -> None:
    """What a request may say can be written down, and nothing else, whoever writes."""
    tenant = registry.add_tenant(VISION, make_key(), AT).number
    registry.add_version(tenant, version(1, 1), AT)
    change = f"UPDATE {table} SET {column} = ?"
    for value in (least, most):
        assert msgspec.convert(value, kind) == value
        registry._db.execute(change, (value,))
    step = 1 if isinstance(least, int) else 1e-6
    for value in (least - step, most + step, math.nan, math.inf, -1, None):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(value, kind)
        with pytest.raises(sqlite3.IntegrityError):
            registry._db.execute(change, (value,))


@pytest.mark.root
def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """disk.full, the transaction is undone, and the registry works on once there is room."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", tmp_path], check=True)
    try:
        registry = Registry(tmp_path / "bedsit.db")
        registry.add_tenant(VISION, make_key(), AT)
        fill = tmp_path / "fill"
        fill_up(fill)
        with pytest.raises(BedsitError, match=r"disk\.full"):
            add_many(registry)
        known = len(registry.models(1))
        fill.unlink()
        registry.add_version(1, version(1000, 1, name="last"), AT)

        assert len(registry.models(1)) == known + 1
        registry.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
