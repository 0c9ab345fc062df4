"""The desired state: constraints, transactions, migrations, full disks."""

import contextlib
import math
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor import admission, migrations, policy
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.events import Events
from bedsit.supervisor.keys import make_key
from bedsit.supervisor.placement.geometry import Placed
from bedsit.supervisor.placement.seating import Seat
from bedsit.supervisor.registry import ModelRow, NewTenant, NewVersion, Registry, TenantRow, VersionRow, check_slots

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

    known = {"meta", "tenants", "keys", "models", "versions", "events", "tallies"}
    used = {"usage_models", "usage_tenants", "usage_devices", "usage_seen"}
    assert {name for name, _ in tables} == known | used
    assert all(strict for _, strict in tables)


def test_the_database_of_a_newer_bedsit_is_refused(tmp_path: Path) -> None:
    """Going back is not possible, and nothing is changed."""
    db = sqlite3.connect(tmp_path / "bedsit.db")
    db.execute(f"PRAGMA user_version = {len(migrations.NAMES) + 1}")
    db.close()
    with pytest.raises(BedsitError, match=r"state\.foreign"):
        Registry(tmp_path / "bedsit.db")


def make_older(path: Path, steps: int) -> None:
    """A database of a bedsit that took the first so many steps, with a row or two in each of its tables."""
    db = sqlite3.connect(path, isolation_level=None)
    for name in migrations.NAMES[:steps]:
        db.executescript(files("bedsit.supervisor.migrations").joinpath(name).read_text())
    db.execute(f"PRAGMA user_version = {steps}")
    names = "name, isolation, memory_bytes, cpus, pids, arena_bytes, queue_max, max_inflight, sessions_max, created_at"
    db.execute(f"INSERT INTO tenants ({names}) VALUES ('old', 'strict', 1, 1.0, 4, 1, 1, 1, 1, 'then')")
    db.execute(f"INSERT INTO tenants ({names}) VALUES ('off', 'best-effort', 1, 1.0, 4, 1, 1, 1, 1, 'now')")
    db.execute("UPDATE tenants SET wanted = 'stopped' WHERE name = 'off'")
    db.execute("INSERT INTO keys VALUES ('0a1b2c3d', 1, 'first', zeroblob(32), 'then', NULL)")
    columns = "tenant, number, name, default_version, idempotent, next_version"
    db.execute(f"INSERT INTO models ({columns}) VALUES (1, 1, 'echo', 3, 1, 4)")
    columns = "tenant, model, version, digest, size, manifest, deployed_at"
    db.execute(f"INSERT INTO versions ({columns}) VALUES (1, 1, 2, 'c', 9, x'01', 'before')")
    db.execute(f"INSERT INTO versions ({columns}) VALUES (1, 1, 3, 'd', 10, x'00', 'then')")
    if steps >= 2:
        db.execute("INSERT INTO tallies (tenant, restarts, cause) VALUES (1, 3, 'signal 9')")
        db.execute("INSERT INTO events (at, kind, tenant, text) VALUES ('then', 'tenant.created', 'old', 'by hand')")
    db.close()


@pytest.mark.parametrize("steps", range(1, len(migrations.NAMES)))
def test_a_database_of_every_earlier_bedsit_is_taken_over(tmp_path: Path, steps: int) -> None:
    """All that was in it is still there, every setting that it had not is the usual one, and it can be written to.

    That is: the usual weights, every core, no limit of bandwidth, rate or bytes, a slot all the time; and no queue of
    its model's own, of which no version is in quarantine.
    """
    make_older(tmp_path / "bedsit.db", steps)
    registry = Registry(tmp_path / "bedsit.db")
    off, old = registry.tenants()

    assert old == TenantRow(1, "old", "running", "strict", 1, 1.0, 4, 1, 1, 1, 1, "then", "standard")
    assert off == TenantRow(2, "off", "stopped", "best-effort", 1, 1.0, 4, 1, 1, 1, 1, "now", "standard")
    assert [(key.id, key.revoked_at) for key in registry.keys(1)] == [("0a1b2c3d", None)]
    assert registry.tally(1) == ((3, "unknown", "signal 9") if steps >= 2 else (0, None, None))
    (model,) = registry.models(1)
    versions = VersionRow(2, "c", 9, b"\x01", "before"), VersionRow(3, "d", 10, b"\x00", "then")
    assert model == ModelRow(1, "echo", 3, True, versions, 0.0, 1, 0, 0, 1)
    assert registry.digests() == {"c", "d"}
    assert registry.propose_version(1, "echo") == (1, 4)

    new = replace(
        old, cpu_weight=7, cpu_idle=True, cores="0-1", io_bps=5, pids=9, service_class="batch", min_share=1.0,
        restart="transient", restarts_max=4, restart_period_s=1.5, quarantine_after=0, min_slots=0, max_slots=3,
        idle_s=2.5, run_max_s=0.0, profile="subprocess", device="mig:1g.10gb", gpu_memory_bytes=5, gpu_type="H100",
        near="a,b", apart="c", trusted=True, seat=Seat(("GPU-1",), Placed(3, 1, "1g.10gb"), (), 7, is_shared=True),
    )  # fmt: skip
    registry.set_limits(new)
    assert registry.tenant("old") == new
    assert registry.seated() == [new]
    assert registry.quarantine(1, 1, 3, AT) == 2
    registry.add_version(1, version(1, 4), AT)
    registry.count_restart(1, Cause("oom", "out of memory"))
    assert registry.tally(1)[0] == (4 if steps >= 2 else 1)
    events = Events(tmp_path / "bedsit.db", 10, lambda: AT)
    events.add("daemon.started", "anew")
    assert [event.text for event in events.last(10, None)][-1] == "anew"
    assert len(events.last(10, None)) == (2 if steps >= 2 else 1)
    events.close()
    registry.close()

    again = Registry(tmp_path / "bedsit.db")
    assert again.tenant("old") == new
    again.close()


def add_versions(registry: Registry, count: int = 3) -> int:
    """A tenant with so many versions of one model."""
    tenant = registry.add_tenant(VISION, make_key(), AT).number
    for number in range(1, count + 1):
        registry.add_version(tenant, version(1, number), AT)
    return tenant


def quarantined(registry: Registry, tenant: int) -> tuple[int, list[int]]:
    """The version that answers, and those that are out of use."""
    (model,) = registry.models(tenant)
    return model.default, [row.version for row in model.versions if row.quarantined_at is not None]


def test_the_version_before_answers_for_one_in_quarantine(registry: Registry) -> None:
    """Until one is left: that one stays in use, whatever is said of it."""
    tenant = add_versions(registry)

    assert registry.quarantine(tenant, 1, 3, AT) == 2
    assert quarantined(registry, tenant) == (2, [3])
    assert registry.quarantine(tenant, 1, 2, AT) == 1
    assert registry.quarantine(tenant, 1, 1, AT) is None
    assert quarantined(registry, tenant) == (1, [2, 3])
    assert registry.models(tenant)[0].versions[1].quarantined_at == AT

    registry.release(tenant, 1)

    assert quarantined(registry, tenant) == (3, [])


def test_a_pinned_version_in_quarantine_leaves_the_default_alone(registry: Registry) -> None:
    """Callers that name no version notice nothing."""
    tenant = add_versions(registry)

    assert registry.quarantine(tenant, 1, 2, AT) == 3
    assert quarantined(registry, tenant) == (3, [2])


def test_the_oldest_version_in_quarantine_is_answered_for_by_a_newer_one(registry: Registry) -> None:
    """There is none before it; one that is there and not blamed is better than nothing."""
    tenant = add_versions(registry, 2)
    registry._db.execute("UPDATE models SET default_version = 1")

    assert registry.quarantine(tenant, 1, 1, AT) == 2
    assert quarantined(registry, tenant) == (2, [1])


def test_a_new_version_answers_for_those_in_quarantine(registry: Registry) -> None:
    """That is how it is mended. What is out of use stays so until it is released."""
    tenant = add_versions(registry, 2)
    registry.quarantine(tenant, 1, 2, AT)
    registry.add_version(tenant, version(1, 3), AT)

    assert quarantined(registry, tenant) == (3, [2])


def test_a_version_in_quarantine_answers_for_no_retired_one(registry: Registry) -> None:
    """The newest that is in use does, and only where none is the newest of all."""
    tenant = add_versions(registry)
    registry.quarantine(tenant, 1, 2, AT)
    registry.delete_versions(tenant, 1, {3})

    assert quarantined(registry, tenant) == (1, [2])

    registry.delete_versions(tenant, 1, {1})

    assert quarantined(registry, tenant) == (2, [2])


def test_nobody_has_more_slots_at_least_than_at_most(registry: Registry) -> None:
    """Refused before anything is written, for a new tenant and for one that is there."""
    with pytest.raises(BedsitError, match=r"limit\.impossible.*at least 3 slots are more than at most 2"):
        registry.add_tenant(replace(VISION, min_slots=3, max_slots=2), make_key(), AT)
    assert registry.tenants() == []
    row = registry.add_tenant(replace(VISION, min_slots=2, max_slots=2), make_key(), AT)
    with pytest.raises(BedsitError, match=r"limit\.impossible"):
        registry.set_limits(replace(row, max_slots=1, pids=9))
    assert registry.tenant("vision") == row
    check_slots(replace(row, min_slots=0))


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
    ("tenants", "restarts_max", 0, 10_000, policy.Restarts),
    ("tenants", "restart_period_s", 1.0, 86_400.0, policy.Period),
    ("tenants", "quarantine_after", 0, 1000, policy.Deaths),
    ("tenants", "min_slots", 0, 1024, policy.FewestSlots),
    ("tenants", "max_slots", 1, 1024, policy.MostSlots),
    ("tenants", "idle_s", 0.0, 31_536_000.0, policy.Idle),
    ("tenants", "run_max_s", 0.0, 86_400.0, policy.Run),
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


def test_restart_policies_are_those_of_the_requests(registry: Registry) -> None:
    """The three words, and no fourth."""
    registry.add_tenant(VISION, make_key(), AT)
    for word in get_args(policy.Restart):
        registry._db.execute("UPDATE tenants SET restart = ?", (word,))
    for word in ("always", "", None, 1):
        with pytest.raises(sqlite3.IntegrityError):
            registry._db.execute("UPDATE tenants SET restart = ?", (word,))


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


def test_what_a_device_guarantees_is_not_the_boxs(registry: Registry) -> None:
    """Placement counts it; all others are promised the whole box together, as if it were not there."""
    registry.add_tenant(replace(VISION, device="core:0.9", min_share=0.9), make_key(), AT)
    assert not registry.has_promised()
    row = registry.add_tenant(replace(VISION, name="other", min_share=0.5), make_key(), AT)
    assert registry.has_promised()
    registry.check_share(replace(row, min_share=1.0))
    with pytest.raises(BedsitError, match=r"limit\.impossible"):
        registry.check_share(replace(row, name="third", min_share=0.6))
