"""Tenants and their seats: what a real daemon gives out, keeps, and does to slots and router."""

import json
import os
import subprocess
import sys
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


def test_what_cannot_be_is_refused_and_changes_nothing(new_box: Callable[[], Any]) -> None:
    """Each with a code and with words that say what would do."""
    box = make(new_box(), shared=True)
    refused = {
        ("device.invalid", "write mig:PROFILE"): {"device": "gpus"},
        ("device.invalid", "write 0.001 to 0.999"): {"device": "core:1"},
        ("device.invalid", "GPU memory for a tenant without a GPU"): {"device": "cpu:1", "gpu_memory_bytes": 1 << 30},
        ("device.invalid", "--gpu-type without a device"): {"gpu_type": "H200"},
        ("device.invalid", "contradict"): {"device": "cpu:1", "cores": str(FIRST)},
        ("device.invalid", "guarantee less"): {"device": "core:0.25", "min_share": 0.5},
        ("device.full", "this box has no GPU"): {"device": "mig:1g.10gb"},
        ("device.full", "is everybody's"): {"device": "cpu:500"},
        ("limit.impossible", "some tenant has them"): {"cores": str(LAST)},
        ("request.invalid", "near takes names"): {"device": "cpu:1", "near": "Not A Name"},
    }
    box.tenant("there")
    for (code, says), wish in refused.items():
        for op, name in (("tenant.create", "fresh"), ("tenant.set", "there")):
            failure = refusal(box, op, name=name, **wish)
            assert (failure.code, says in str(failure)) == (code, True), failure
    (row,) = box.call("tenant.list")
    assert (row["name"], row["seat"], row["wish"]["device"], row["limits"]["cores"]) == ("there", None, "", "all")


def test_a_restart_keeps_everybody_where_he_is(new_box: Callable[[], Any]) -> None:
    """The slots too, and what the router was told."""
    box = make(new_box(), shared=True)
    box.tenant("speech", device="core:0.25")
    box.deploy("speech", source=WHERE)
    before, slot, told = box.call("tenant.show", name="speech")["seat"], box.ps(tenant="speech")[0]["slot"], turns(box)
    box.kill_daemon()
    box.start(blank=0)
    after = box.call("tenant.show", name="speech")
    assert (after["seat"], after["slot"], after["state"], turns(box)) == (before, slot, "running", told)
    assert where(box, "speech") == 1 << LAST


def test_cores_that_are_not_shared_any_more_hold_up_their_tenants_only(new_box: Callable[[], Any]) -> None:
    """They keep their seats, are told why nothing starts, and go on when the device is back."""
    box = make(new_box(), shared=True)
    box.tenant("speech", device="core:0.25")
    box.tenant("vision")
    for tenant in ("speech", "vision"):
        box.deploy(tenant, source=WHERE)
    box.call("tenant.stop", name="speech")
    box.stop_daemon()
    shared = box.settings.pop("devices.shared_cores.turns")
    box.start(blank=0)
    assert refusal(box, "tenant.start", name="speech").code == "device.degraded"
    row = box.call("tenant.show", name="speech")
    assert (row["state"], row["seat"]["devices"]) == ("degraded", ["turns"])
    assert "no cores are shared as turns" in row["seat_trouble"]
    assert "no cores are shared as turns" in box.wait_event("tenant.degraded", tenant="speech")["text"]
    assert "nothing of it starts" in box.call("tenant.explain", name="speech")["sentence"]
    assert where(box, "vision")

    box.stop_daemon()
    box.settings["devices.shared_cores.turns"] = shared
    box.start(blank=0)
    box.wait(lambda: box.call("tenant.show", name="speech")["state"] == "running")
    assert where(box, "speech") == 1 << LAST


def test_another_device_takes_fresh_slots_while_it_runs(new_box: Callable[[], Any]) -> None:
    """And what it does not change about its seat takes none."""
    box = make(new_box(), shared=True)
    box.tenant("speech")
    box.deploy("speech", source=WHERE)
    first = box.ps(tenant="speech")[0]["slot"]
    box.call("tenant.set", name="speech", device="core:0.25")
    box.wait(lambda: [row["slot"] for row in box.ps(tenant="speech")] != [first] and len(box.ps(tenant="speech")) == 1)
    second = box.ps(tenant="speech")[0]["slot"]
    assert where(box, "speech") == 1 << LAST
    box.call("tenant.set", name="speech", device="core:0.3", service_class="batch")
    assert [row["slot"] for row in box.ps(tenant="speech")] == [second]


def command(box: Any, *words: str) -> str:
    """What a command says."""
    argv = [sys.executable, "-m", "bedsit.cli.main", *words]
    environment = {"PATH": os.environ["PATH"], "BEDSIT_RUN_DIR": str(box.run)}
    return subprocess.run(argv, capture_output=True, text=True, check=True, env=environment).stdout


def test_an_operator_sees_who_sits_where_and_why(new_box: Callable[[], Any]) -> None:
    """In the lists, and as a sentence with what would help."""
    box = make(new_box(), shared=True)
    command(box, "tenant", "create", "speech", "--device", "core:0.6", "--class", "realtime", "--apart", "loud, rude")
    assert "core:0.6, apart from loud, rude" in command(box, "tenant", "show", "speech")
    assert f"turns, cores {LAST}" in command(box, "tenant", "list")
    rows = json.loads(command(box, "device", "list", "-o", "json"))["items"]
    assert [(row["tenants"], row["used"]) for row in rows if row["id"] == "turns"] == [(["speech"], 0.6)]
    assert "60 %" in command(box, "device", "show", "turns")
    assert "1 seat taken" in command(box, "status")
    assert "it is the only" not in command(box, "tenant", "explain", "speech")
    assert "speech has turns" in command(box, "tenant", "explain", "speech")
    told = command(box, "tenant", "explain", "--device", "core:0.9", "--class", "realtime")
    assert "0.4 of its time is left" in told
    assert "it asked for core:0.4" in told
    item = json.loads(command(box, "tenant", "explain", "--device", "core:0.4", "-o", "json"))["item"]
    assert (item["fits"], item["seat"]["devices"]) == (True, ["turns"])
    assert "beside others" in command(box, "tenant", "explain", "speech", "--device", "none")
    assert box.call("tenant.show", name="speech")["wish"]["device"] == "core:0.6"


def test_two_daemons_do_not_hand_out_the_same_cores(new_box: Callable[[], Any]) -> None:
    """Each would let a tenant run there as if nobody else did: the second one has to wait until the device is free."""
    first, second = make(new_box(), shared=True), make(new_box(), shared=True)
    first.tenant("speech", device="core:0.25")
    assert refusal(second, "tenant.create", name="vision", device="core:0.25").code == "device.full"
    (row,) = [row for row in second.call("device.list")["devices"] if row["id"] == "turns"]
    assert (row["state"], "another bedsitd" in row["trouble"]["what"]) == ("degraded", True)
    first.call("tenant.delete", name="speech")
    first.stop_daemon()
    second.wait_event("device.recovered")
    second.tenant("vision", device="core:0.25")
