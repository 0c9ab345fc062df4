"""The desired state: constraints, transactions, migrations, full disks."""

import contextlib
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor import migrations
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.keys import make_key
from bedsit.supervisor.registry import NewTenant, NewVersion, Registry

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


def test_limits_are_written_down_and_an_older_database_gets_those_that_change_nothing(tmp_path: Path) -> None:
    """A tenant of before has the usual weight, every core and no limit of bandwidth; what is set then is kept."""
    db = sqlite3.connect(tmp_path / "bedsit.db", isolation_level=None)
    for name in migrations.NAMES[:3]:
        db.executescript(files("bedsit.supervisor.migrations").joinpath(name).read_text())
    db.execute("PRAGMA user_version = 3")
    names = "name, isolation, memory_bytes, cpus, pids, arena_bytes, queue_max, max_inflight, sessions_max, created_at"
    db.execute(f"INSERT INTO tenants ({names}) VALUES ('old', 'strict', 1, 1.0, 4, 1, 1, 1, 1, 'then')")
    db.execute("INSERT INTO tallies VALUES (1, 3, 'signal 9')")
    db.close()
    registry = Registry(tmp_path / "bedsit.db")
    old = registry.tenant("old")

    assert (old.cpu_weight, old.cpu_idle, old.cores, old.io_bps) == (100, False, "all", 0)
    assert registry.tally(1) == (3, "unknown", "signal 9")
    new = replace(old, cpu_weight=7, cpu_idle=True, cores="0-1", io_bps=5, pids=9)
    registry.set_limits(new)
    assert registry.tenant("old") == new
    registry.close()


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
