"""Tenants and their seats: what a real daemon gives out, keeps, and does to slots and router."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bedsit
from bedsit.ipc import snapshot
from bedsit.ipc.errors import BedsitError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores"),
]
#: Its answer is the cores that it may run on.
WHERE = """
    import os
    import torch

    def build(bundle):
        def call(x):
            cores = sum(1 << core for core in os.sched_getaffinity(0))
            return torch.full_like(x, cores)
        return call
"""
FIRST, LAST = (sorted(os.sched_getaffinity(0))[index] for index in (0, -1))
OTHERS = sum(1 << core for core in os.sched_getaffinity(0) if core != LAST)


def make(box: Any, *, shared: bool = False) -> Any:
    """A box with a router; its last core is shared or not."""
    box.settings |= {"devices.shared_cores.turns": str(LAST)} if shared else {}
    box.start()
    box.start_router()
    return box


def where(box: Any, tenant: str) -> int:
    """The cores that the tenant's slot runs on, as a mask."""
    with bedsit.Client(tenant=tenant, run_dir=box.run) as client:
        return int(client.infer("echo", {"x": np.zeros((1, 4), np.float32)}, timeout_s=30.0)["x"][0, 0])


def seen_by_router(box: Any) -> snapshot.Snapshot:
    """What was published last."""
    return snapshot.decode((box.run / "snapshot.msgpack").read_bytes())


def turns(box: Any) -> dict[str, tuple[str, int]]:
    """By tenant what it takes turns on, and its weight there."""
    return {each.name: (each.turns_on, each.weight) for each in seen_by_router(box).tenants}


def refusal(box: Any, op: str, **args: Any) -> BedsitError:
    """The error of a call that is refused."""
    with pytest.raises(BedsitError) as refused:
        box.call(op, **args)
    return refused.value


def test_shared_cores_are_a_device_and_a_tenant_gets_a_part_of_their_time(new_box: Callable[[], Any]) -> None:
    """Its slot runs there and nowhere else, others do not, and the router hears whose turn counts how much."""
    box = make(new_box(), shared=True)
    rows = {row["id"]: row for row in box.call("device.list")["devices"]}
    assert (rows["turns"]["kind"], rows["turns"]["trust"], rows["turns"]["cores"]) == ("timeslice", "isolated", [LAST])
    assert all(LAST not in row["cores"] for name, row in rows.items() if name != "turns")

    speech = box.tenant("speech", device="core:0.25", service_class="realtime")["tenant"]
    assert speech["seat"]["devices"] == ["turns"]
    assert speech["limits"]["cpus"] == 1.0
    box.tenant("vision")
    for tenant in ("speech", "vision"):
        box.deploy(tenant, source=WHERE)
    assert (where(box, "speech"), where(box, "vision")) == (1 << LAST, OTHERS)
    assert turns(box) == {"speech": ("turns", 250), "vision": ("", 100)}
    (gate,) = seen_by_router(box).devices
    assert (gate.name, gate.parallel, gate.turn_ms, gate.hard_ms, gate.strict) == ("turns", 1, 10.0, 500.0, True)

    assert refusal(box, "tenant.create", name="more", device="core:0.9", service_class="realtime").code == "device.full"
    box.call("tenant.set", name="speech", device="core:0.5")
    assert turns(box)["speech"] == ("turns", 500)
    box.call("tenant.set", name="speech", device="")
    assert seen_by_router(box).devices == []
    assert where(box, "speech") == OTHERS


def test_cores_are_given_away_and_given_back(new_box: Callable[[], Any]) -> None:
    """Whoever has none leaves them at once, while it runs, and may use them again when they are free."""
    box = make(new_box())
    box.tenant("vision")
    box.deploy("vision", source=WHERE)
    everything = OTHERS | 1 << LAST
    assert where(box, "vision") == everything

    alone = box.tenant("alone", device="cpu:1")["tenant"]
    (core,) = alone["seat"]["cores"]
    assert where(box, "vision") == everything & ~(1 << core)
    box.deploy("alone", source=WHERE)
    assert where(box, "alone") == 1 << core
    box.call("tenant.delete", name="alone")
    box.wait(lambda: where(box, "vision") == everything)
