"""Who is let in and whose turn it is, from the operator's word to what the router is told, in a real daemon."""

from collections.abc import Callable
from typing import Any

import pytest

from bedsit.ipc import snapshot as view
from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.keys import make_key
from bedsit.supervisor.registry import ADMISSION, MODEL_ADMISSION, NewTenant, NewVersion, Registry

pytestmark = pytest.mark.root

AT = "2026-11-23T22:01:02.123Z"
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
}
FILLED = """
    import torch

    def build(bundle):
        keep = torch.ones(256 << 18)  # 256 MiB
        model = torch.nn.Identity()
        model.register_buffer("keep", keep)
        return model
"""


def told(box: Any, name: str = "vision") -> dict[str, Any]:
    """What the router is told of a tenant."""
    snapshot = view.decode((box.run / "snapshot.msgpack").read_bytes())
    (tenant,) = (tenant for tenant in snapshot.tenants if tenant.name == name)
    return {field: getattr(tenant, field) for field in ADMISSION}


def told_of_model(box: Any) -> dict[str, Any]:
    """What the router is told of the one model."""
    (tenant,) = view.decode((box.run / "snapshot.msgpack").read_bytes()).tenants
    return {field: getattr(tenant.models[0], field) for field in MODEL_ADMISSION}


def limits(box: Any, name: str = "vision") -> dict[str, Any]:
    """What the daemon says of a tenant."""
    shown: dict[str, Any] = box.call("tenant.show", name=name)["limits"]
    return shown


def test_a_tenant_gets_what_its_creator_asks_for(shared_box: Any) -> None:
    """The router hears of it before the creator does, and it is shown; what is 0 stays 0."""
    answer = shared_box.tenant(**ASKED)
    shared_box.tenant("plain")

    assert {name: answer["tenant"]["limits"][name] for name in ASKED} == ASKED
    assert told(shared_box) == ASKED
    assert told(shared_box, "plain") == {
        "weight": 100,
        "service_class": "interactive",
        "min_share": 0.0,
        "rate_per_s": 0.0,
        "burst": 1,
        "concurrency_max": 0,
        "queue_max": 1024,
        "queue_bytes_max": 16 << 20,
        "sessions_max": 64,
    }


def test_a_change_reaches_the_router_and_leaves_the_slot_alone(shared_box: Any) -> None:
    """Each alone or all at once, beside a limit of the kernel; what is not named stays; the router works by it then."""
    shared_box.tenant()
    shared_box.deploy()
    (row,) = shared_box.ps(tenant="vision")
    before = limits(shared_box)
    for name, value in ASKED.items():
        shared_box.call("tenant.set", name="vision", **{name: value})
        before |= {name: value}
        assert limits(shared_box) == before
    assert told(shared_box) == ASKED

    shared_box.call("tenant.set", name="vision", rate_per_s=0, concurrency_max=0, min_share=0, pids=100)
    assert limits(shared_box) == before | {"rate_per_s": 0.0, "concurrency_max": 0, "min_share": 0.0, "pids": 100}
    assert told(shared_box) == ASKED | {"rate_per_s": 0.0, "concurrency_max": 0, "min_share": 0.0}
    assert shared_box.call("tenant.show", name="vision")["walls"]["cgroup_limits"] == "on"
    assert shared_box.ps(tenant="vision")[0]["slot"] == row["slot"]
    assert shared_box.events("tenant.changed")[-1]["text"].endswith(
        "100 pids, realtime, weight 300, queue of 99, queue of 1 MiB, 7 sessions"
    )


def test_what_the_kernel_refuses_the_router_never_hears_of(shared_box: Any) -> None:
    """Less memory than is in use, with another rate beside it: all as it was."""
    shared_box.tenant(memory_bytes=768 << 20, rate_per_s=5)
    shared_box.deploy(source=FILLED)
    before = limits(shared_box), told(shared_box)
    with pytest.raises(BedsitError, match=r"cgroup\.refused.*memory"):
        shared_box.call("tenant.set", name="vision", memory_bytes=200 << 20, rate_per_s=9, service_class="batch")

    assert (limits(shared_box), told(shared_box)) == before


def test_more_than_the_whole_is_promised_to_nobody(shared_box: Any) -> None:
    """limit.impossible, with what is left; neither kernel nor router hear of what was named beside it."""
    shared_box.tenant(min_share=0.6)
    shared_box.deploy()
    shared_box.tenant("audio", min_share=0.3)
    with pytest.raises(BedsitError, match=r"limit\.impossible: .* leave, 0\.1"):
        shared_box.tenant("third", min_share=0.2)
    before = limits(shared_box), told(shared_box)
    with pytest.raises(BedsitError, match=r"limit\.impossible") as refused:
        shared_box.call("tenant.set", name="vision", min_share=0.8, pids=77, rate_per_s=9)

    assert (refused.value.exit_code, refused.value.detail) == (2, {"share": 0.8, "left": 0.7})
    assert (limits(shared_box), told(shared_box)) == before
    assert shared_box.call("tenant.show", name="vision")["walls"]["cgroup_limits"] == "on"
    assert [tenant["name"] for tenant in shared_box.call("tenant.list")] == ["audio", "vision"]

    shared_box.call("tenant.set", name="vision", min_share=0.7)
    shared_box.call("tenant.delete", name="audio")
    shared_box.call("tenant.set", name="vision", min_share=1)
    assert told(shared_box)["min_share"] == 1.0


def test_what_was_asked_for_outlives_the_daemon(shared_box: Any) -> None:
    """It is the tenant's, and on disk."""
    shared_box.tenant(**ASKED)
    shared_box.kill_daemon()
    (shared_box.run / "snapshot.msgpack").unlink()
    shared_box.start()
    shared_box.wait((shared_box.run / "snapshot.msgpack").exists)

    assert told(shared_box) == ASKED
    assert {name: limits(shared_box)[name] for name in ASKED} == ASKED


def test_a_models_limits_reach_the_router_and_stay_with_its_versions(shared_box: Any) -> None:
    """Shown by model.set, model.show and model.list; a new version keeps them, and no new slot is needed for them."""
    shared_box.tenant()
    model = shared_box.deploy()
    (row,) = shared_box.ps(tenant="vision")
    usual = {"rate_per_s": 0.0, "burst": 1, "concurrency_max": 0, "queue_max": 0, "priority": 1}
    assert {name: model[name] for name in usual} == usual == told_of_model(shared_box)

    asked = {"rate_per_s": 0.5, "burst": 2, "concurrency_max": 4, "queue_max": 9, "priority": 0}
    answer = shared_box.call("model.set", tenant="vision", name="echo", **asked)
    (listed,) = shared_box.call("model.list", tenant="vision")
    assert answer == model | asked == listed == shared_box.call("model.show", tenant="vision", name="echo")
    assert told_of_model(shared_box) == asked
    assert shared_box.ps(tenant="vision")[0]["slot"] == row["slot"]
    assert "priority 0" in shared_box.events("model.changed")[-1]["text"]

    shared_box.deploy(replace=True)
    assert told_of_model(shared_box) == asked


def test_a_box_says_what_its_tenants_get_and_what_runs_at_once(new_box: Callable[[], Any]) -> None:
    """From its configuration; a creator who asks for something else gets that, also for none at all."""
    box = new_box()
    box.settings |= {"parallel": 3, "router_spin_us": 40, "tenant.weight": 7, "tenant.rate_per_s": 5.0}
    box.settings |= {"tenant.service_class": "batch", "tenant.queue_bytes_max": "1MiB", "tenant.concurrency_max": 2}
    box.start()
    box.tenant()
    box.tenant("other", rate_per_s=0, concurrency_max=0, service_class="interactive")
    snapshot = view.decode((box.run / "snapshot.msgpack").read_bytes())

    assert ([each.parallel for each in snapshot.devices], snapshot.spin_us) == ([3], 40)
    usual = told(box) | {"weight": 7, "rate_per_s": 5.0, "service_class": "batch", "concurrency_max": 2}
    assert told(box) == usual | {"queue_bytes_max": 1 << 20, "min_share": 0.0}
    assert told(box, "other") == told(box) | {"rate_per_s": 0.0, "concurrency_max": 0, "service_class": "interactive"}


def test_a_stopped_tenants_model_can_be_limited(new_box: Callable[[], Any]) -> None:
    """No slot is needed for that. Nothing said is a mistake; so is a model that is not there."""
    box = new_box()
    box.state.mkdir(mode=0o700)
    registry = Registry(box.state / "bedsit.db")
    registry.add_tenant(NewTenant("vision", "strict", 1 << 30, 1.0, 64, 1 << 20, 10, 4, 8), make_key(), AT)
    registry.add_version(1, NewVersion(1, 1, "echo", "0" * 64, 10, idempotent=True, manifest=b""), AT)
    registry.set_wanted("vision", "stopped")
    registry.close()
    box.start(blank=0)
    box.wait((box.run / "snapshot.msgpack").exists)
    box.call("model.set", tenant="vision", name="echo", priority=2)

    assert told_of_model(box)["priority"] == 2
    assert box.ps(tenant="vision") == []
    changes = len(box.events("model.changed"))
    box.call("model.set", tenant="vision", name="echo", priority=2)
    assert len(box.events("model.changed")) == changes
    with pytest.raises(BedsitError, match=r"request\.invalid: model\.set: nothing to set"):
        box.call("model.set", tenant="vision", name="echo")
    with pytest.raises(BedsitError, match=r"model\.not_found"):
        box.call("model.set", tenant="vision", name="none", priority=2)
    with pytest.raises(BedsitError, match=r"tenant\.not_found"):
        box.call("model.set", tenant="none", name="echo", priority=2)
