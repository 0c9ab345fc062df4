"""The snapshot: what the registry and the configuration say of tenants and models is what the router is told."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bedsit.ipc import snapshot as view
from bedsit.ipc.errors import BedsitError
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.config import Config, TenantDefaults
from bedsit.supervisor.folders import Folders
from bedsit.supervisor.keys import NewKey, make_key
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.publisher import Publisher
from bedsit.supervisor.registry import (
    ADMISSION,
    MODEL_ADMISSION,
    ModelRow,
    NewTenant,
    NewVersion,
    Registry,
    TenantRow,
)
from bedsit.supervisor.tenancy import Limits, Slot

AT = "2026-11-23T22:01:02.123Z"
VISION = NewTenant("vision", "strict", 1 << 28, 1.5, 64, 1 << 20, 10, 4, 8)
ASKED = {
    "weight": 300,
    "service_class": "realtime",
    "min_share": 0.25,
    "rate_per_s": 12.5,
    "burst": 40,
    "concurrency_max": 3,
    "queue_max": 99,
    "queue_bytes_max": 1 << 20,
    "sessions_max": 7,
    "run_max_s": 12.5,
}
ASKED_OF_MODEL = {"rate_per_s": 0.5, "burst": 2, "concurrency_max": 1, "queue_max": 9, "priority": 2}


class Desk:
    """A registry, a house without slots, and a publisher that sends to a list."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.registry = Registry(folder / "bedsit.db")
        self.sent: list[view.Snapshot] = []
        self.publisher = Publisher(
            Config(**settings),
            Folders(folder, folder),
            os.getgid(),
            self.registry,
            House(Limits(0, 1, 1.0, 1.0, 1), lambda: "s0"),
            SimpleNamespace(live={}, ending={}),  # type: ignore[arg-type]
            lambda _, encoded: self.sent.append(view.decode(encoded)),
        )

    def publish(self) -> view.Snapshot:
        """What the router gets now; the file holds the same."""
        self.publisher.publish()
        assert view.decode((self.publisher._folders.snapshot).read_bytes()) == self.sent[-1]
        return self.sent[-1]

    def add_version(self, number: int = 1, version: int = 1, name: str = "echo") -> None:
        """A deployed version."""
        new = NewVersion(number, version, name, "d", 10, idempotent=True, manifest=b"\x00opaque")
        self.registry.add_version(1, new, AT)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """One with the tenant of these tests."""
    desk = Desk(tmp_path, parallel=6, router_spin_us=25)
    desk.registry.add_tenant(VISION, KEY, AT)
    yield desk
    desk.registry.close()


KEY = NewKey("0a1b2c3d", "secret", b"d" * 32)


def test_names_and_usual_values_are_the_same_all_the_way(desk: Desk) -> None:
    """Configuration, registry and snapshot: what is asked for nowhere is the same everywhere."""
    of_tenant, of_model = desk.registry.tenant("vision"), {f.name: f.default for f in fields(ModelRow)}
    usual = {f.name: f.default for f in msgspec.structs.fields(TenantDefaults)}
    seen = {f.name: f.default for f in msgspec.structs.fields(view.TenantView) if f.default is not msgspec.NODEFAULT}
    del seen["turns_on"]  # of nobody's asking: it follows from where a tenant sits
    of_view = {f.name: f.default for f in msgspec.structs.fields(view.ModelView)}

    assert set(usual) <= {f.name for f in fields(NewTenant)}
    assert {name: getattr(of_tenant, name) for name in seen} == seen
    assert {name: usual[name] for name in seen if name != "min_share"} | {"min_share": 0.0} == seen
    assert {*ADMISSION, "run_max_s"} == {*seen, "queue_max", "sessions_max"} == set(ASKED)
    assert {name: of_model[name] for name in MODEL_ADMISSION} == {name: of_view[name] for name in MODEL_ADMISSION}
    assert set(MODEL_ADMISSION) == set(ASKED_OF_MODEL)


def test_the_router_is_told_what_was_asked_for(desk: Desk) -> None:
    """Tenant, model and box, each with all it has."""
    desk.registry.set_limits(replace(desk.registry.tenant("vision"), **ASKED))  # type: ignore[arg-type]
    desk.add_version()
    (model,) = desk.registry.models(1)
    desk.registry.set_admission(1, replace(model, **ASKED_OF_MODEL))  # type: ignore[arg-type]
    said = desk.publish()
    (tenant,) = said.tenants

    assert {name: getattr(tenant, name) for name in ASKED} == ASKED
    assert (tenant.number, tenant.arena_bytes, tenant.max_inflight) == (1, 1 << 20, 4)
    assert tenant.keys == [view.KeyView(KEY.id, KEY.digest)]
    assert {name: getattr(tenant.models[0], name) for name in ASKED_OF_MODEL} == ASKED_OF_MODEL
    assert tenant.models[0].versions == [view.VersionView(1, b"\x00opaque")]
    assert ([(each.name, each.parallel) for each in said.devices], said.spin_us) == ([("", 6)], 25)


def change_class(registry: Registry) -> None:
    """Other limits of the tenant."""
    registry.set_limits(replace(registry.tenant("vision"), service_class="batch"))


def change_priority(registry: Registry) -> None:
    """Other limits of the model."""
    registry.set_admission(1, replace(registry.models(1)[0], priority=0))


CHANGES: dict[str, Callable[[Registry], object]] = {
    "limits": change_class,
    "model": change_priority,
    "stop": lambda registry: registry.set_wanted("vision", "stopped"),
    "key": lambda registry: registry.add_key(1, make_key(), "", AT),
    "revoked key": lambda registry: registry.revoke_key(1, KEY.id, AT),
    "version": lambda registry: registry.add_version(1, NewVersion(1, 3, "echo", "e", 1, True, b""), AT),
    "quarantine": lambda registry: registry.quarantine(1, 1, 1, AT),
    "retired version": lambda registry: registry.delete_versions(1, 1, {1}),
    "tenant": lambda registry: registry.add_tenant(replace(VISION, name="audio"), make_key(), AT),
    "deleted tenant": lambda registry: registry.delete_tenant("vision"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_change_is_in_the_next_snapshot(desk: Desk, change: Callable[[Registry], object]) -> None:
    """A tenant is read anew only when the registry has changed it; none of its changes is missed."""
    desk.add_version()
    desk.add_version(version=2)
    before = desk.publish()
    assert desk.publish() == msgspec.structs.replace(before, serial=before.serial + 1)
    change(desk.registry)
    after = desk.publish()

    assert after.tenants != before.tenants
    assert after.serial == before.serial + 2


def test_a_tenant_that_drains_is_told_as_one_that_takes_nothing_new(desk: Desk) -> None:
    """As long as its operator waits for that; nothing of it is in the registry."""
    desk.publisher.draining.add("vision")
    assert [tenant.state for tenant in desk.publish().tenants] == ["draining"]
    desk.publisher.draining.clear()
    assert [tenant.state for tenant in desk.publish().tenants] == ["running"]


def test_a_version_in_quarantine_is_told_as_such(desk: Desk) -> None:
    """The router refuses requests for it, with why; the one before it answers for its model."""
    desk.add_version()
    desk.add_version(version=2)
    desk.registry.quarantine(1, 1, 2, AT)
    (model,) = desk.publish().tenants[0].models

    assert model.default == 1
    assert [(row.version, row.quarantined) for row in model.versions] == [(1, False), (2, True)]


def test_only_who_has_changed_is_read_anew(desk: Desk) -> None:
    """A change of one tenant leaves the others' bytes alone; a tenant whose workers crash costs no look at all."""
    desk.registry.add_tenant(replace(VISION, name="audio"), make_key(), AT)
    desk.publish()
    vision, audio = desk.publisher._encode_tenants()
    desk.registry.count_restart(1, Cause("signal", "signal 9"))
    assert all(new is old for new, old in zip(desk.publisher._encode_tenants(), (vision, audio), strict=True))
    change_class(desk.registry)
    changed, same = desk.publisher._encode_tenants()

    assert same is audio
    assert changed != vision


def test_what_failed_is_no_change(desk: Desk) -> None:
    """A transaction that was undone."""
    before = desk.publish().tenants
    revision = desk.registry.revision
    with pytest.raises(BedsitError, match=r"tenant\.exists"):
        desk.registry.add_tenant(VISION, make_key(), AT)

    assert desk.registry.changed_since(revision) == []
    assert desk.publish().tenants == before


def test_manifests_have_room_for_much_more_than_a_frame_of_the_admin_api(desk: Desk) -> None:
    """What does not fit any more is refused when it is deployed, before it could keep the router from hearing of it."""
    desk.publish()
    desk.publisher.check_room(56 << 20)
    with pytest.raises(BedsitError, match=r"snapshot\.full"):
        desk.publisher.check_room(view.MAX_BYTES - (4 << 20))


def test_a_row_is_what_a_creator_said_and_more() -> None:
    """Each field of a new tenant is one of its row."""
    assert {f.name for f in fields(NewTenant)} <= {f.name for f in fields(TenantRow)}


def test_a_tenant_that_was_given_up_is_told_until_it_starts_again(desk: Desk) -> None:
    """Only the house knows. With a slot that still serves it is a tenant like any other."""
    house = desk.publisher._house
    house.handle(on.TenantSet("vision", running=True, strict=True, models=((1, 1),)))
    tenant = house.tenants["vision"]
    assert desk.publish().tenants[0].state == "running"

    tenant.given_up = True
    assert desk.publish().tenants[0].state == "failed"
    tenant.crew["s0"] = Slot("s0", "serving")
    assert desk.publish().tenants[0].state == "running"
    tenant.crew.clear()
    assert desk.publish().tenants[0].state == "failed"
    house.handle(on.TenantGone("vision"))
    desk.publisher.draining.add("vision")
    assert desk.publish().tenants[0].state == "draining"
    desk.publisher.draining.clear()
    assert desk.publish().tenants[0].state == "running"


def test_no_serial_is_used_again_after_a_crash(desk: Desk, tmp_path: Path) -> None:
    """The router has a snapshot that the file does not have yet: the next daemon's first one is newer nevertheless."""
    desk.publish()
    written = (tmp_path / "snapshot.msgpack").read_bytes()
    sent = desk.publish()
    (tmp_path / "snapshot.msgpack").write_bytes(written)
    while time.time_ns() // 1_000_000 <= sent.serial:  # a daemon takes longer to start
        pass
    next_desk = Desk(tmp_path)

    assert next_desk.publish().serial > sent.serial
    next_desk.registry.close()
