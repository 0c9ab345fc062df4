"""Seats on GPUs and MIG devices, over the fake NVML: the real helper, binding and daemon."""

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bedsit
from bedsit.ipc import snapshot
from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.inspect import LAYERS
from bedsit.supervisor.devices.nodes import read_cap_minors
from tests_support.nodes import make_dev, make_node
from tests_support.nvml.library import MIG_CHANGED, XID, FakeGpu, FakeInstance, FakeNvml

pytestmark = pytest.mark.root
#: Takes two seconds.
SLOW = """
    import time

    def build(bundle):
        def call(x):
            time.sleep(2)
            return x
        return call
"""
WHOLE, CUT = FakeGpu(0), FakeGpu(1, mig=True)
#: A half and two eighths: the profiles' ids, and where they begin.
HALF, ONE, TWO = FakeInstance(1, 0, 1, 9, 4), FakeInstance(1, 1, 7, 19, 0), FakeInstance(1, 2, 8, 19, 1)


@pytest.fixture
def gpu_box(new_box: Callable[[], Any], nvml: FakeNvml, tmp_path: Path, mig_minors: None) -> Any:
    """A box with a whole H100 and one that is cut, whose driver lists its capability nodes."""
    nvml.gpus, nvml.instances = [WHOLE, CUT], [HALF, ONE, TWO]
    nvml.write()
    box = new_box()
    box.settings["pool_size"] = 1
    box.environment = nvml.environment
    # Its daemon and zygote, and nobody else, find what a driver would have made.
    script = 'mount --bind "$0" /proc/driver && mount --bind "$1" /dev && shift && exec "$@"'
    minors = read_cap_minors(tmp_path / "proc")
    make_dev(tmp_path, ("nvidiactl", "nvidia-uvm", "nvidia0", "nvidia1"), minors.values())
    box.starter = ["unshare", "--mount", "sh", "-c", script, str(tmp_path / "proc/driver"), str(tmp_path / "dev")]
    box.start(blank=0)
    box.start_router()
    return box


def sit(box: Any, name: str, device: str, **wish: Any) -> dict[str, Any]:
    """A tenant's seat."""
    seat: dict[str, Any] = box.tenant(name, device=device, **wish)["tenant"]["seat"]
    return seat


def refusal(box: Any, op: str, **args: Any) -> BedsitError:
    """The error of a call that is refused."""
    with pytest.raises(BedsitError) as refused:
        box.call(op, **args)
    return refused.value


def infer(box: Any, tenant: str) -> None:
    """One request."""
    with bedsit.Client(tenant=tenant, run_dir=box.run) as client:
        client.infer("echo", {"x": np.zeros((1, 4), np.float32)}, timeout_s=30.0)


def state(box: Any, name: str) -> str:
    """What the tenant is doing."""
    return str(box.call("tenant.show", name=name)["state"])


def test_seats_are_on_mig_devices_that_exist(gpu_box: Any) -> None:
    """One tenant on each, by where it lies; who gets none is told what there is."""
    half = sit(gpu_box, "half", "mig:3g.40gb")
    assert (half["devices"], half["place"]["start"]) == ([CUT.uuid], 4)
    starts = {sit(gpu_box, name, "mig:1g.10gb")["place"]["start"] for name in ("a", "b")}
    assert starts == {0, 1}
    full = refusal(gpu_box, "tenant.create", name="c", device="mig:1g.10gb")
    assert full.code == "device.full"
    assert "every declared 1g.10gb is occupied" in full.message
    assert "it would fit if" in full.message
    unknown = refusal(gpu_box, "tenant.create", name="c", device="mig:1g.18gb")
    assert (unknown.code, "1g.10gb" in unknown.hint) == ("device.invalid", True)
    rows = {row["id"]: row for row in gpu_box.call("device.list")["devices"]}
    assert (rows[HALF.uuid]["tenants"], rows[HALF.uuid]["used"]) == (["half"], 1.0)


def test_a_gpu_is_shared_by_who_is_trusted_and_the_router_hears_of_it(gpu_box: Any) -> None:
    """By UUID and in thousandths; who is not trusted has no seat there."""
    assert "no wall" in refusal(gpu_box, "tenant.create", name="x", device="gpu:0.5").message
    seat = sit(gpu_box, "x", "gpu:0.5", trusted=True, gpu_memory_bytes=20 << 30, gpu_type="H100", service_class="batch")
    assert (seat["devices"], seat["memory_bytes"] > 20 << 30) == ([WHOLE.uuid], True)
    told = snapshot.decode((gpu_box.run / "snapshot.msgpack").read_bytes())
    assert [(each.turns_on, each.weight) for each in told.tenants] == [(WHOLE.uuid, 500)]
    assert [each.name for each in told.devices] == [WHOLE.uuid]
    assert "shared by x" in refusal(gpu_box, "tenant.create", name="y", device="gpu").message


def test_what_becomes_of_a_device_becomes_of_its_tenants_only(gpu_box: Any, nvml: FakeNvml) -> None:
    """They keep their seats and nothing of them starts; others go on; it is over when the device is back."""
    sit(gpu_box, "a", "mig:3g.40gb")
    sit(gpu_box, "b", "mig:1g.10gb")
    for name in "ab":
        gpu_box.deploy(name)
    gpu_box.call("tenant.stop", name="a")

    nvml.instances.remove(HALF)
    nvml.write()
    nvml.happen(1, MIG_CHANGED, 0)
    assert "no MIG device with 3g.40gb" in gpu_box.wait_event("tenant.degraded", tenant="a")["text"]
    refused = refusal(gpu_box, "tenant.start", name="a")
    assert (refused.code, state(gpu_box, "a"), state(gpu_box, "b")) == ("device.degraded", "degraded", "running")
    assert refusal(gpu_box, "tenant.restart", name="a").code == "device.degraded"
    assert "3g.40gb in slots 4 to 7" in refusal(gpu_box, "tenant.create", name="c", device="mig:3g.40gb").message

    nvml.instances.append(HALF)
    nvml.write()
    nvml.happen(1, MIG_CHANGED, 1)
    gpu_box.wait_event("tenant.recovered", tenant="a")
    gpu_box.wait(lambda: state(gpu_box, "a") == "running")


def test_who_is_degraded_takes_nobody_new_and_says_why(gpu_box: Any, nvml: FakeNvml) -> None:
    """A slot that runs there may stay."""
    sit(gpu_box, "a", "gpu")
    gpu_box.deploy("a")
    slot = gpu_box.ps(tenant="a")[0]["slot"]
    nvml.happen(0, XID, 79)
    gpu_box.wait_event("tenant.degraded", tenant="a")
    gpu_box.call("tenant.set", name="a", device="")
    full = refusal(gpu_box, "tenant.create", name="b", device="gpu")
    assert "degraded: Xid 79" in full.message
    gpu_box.wait(lambda: [row["slot"] for row in gpu_box.ps(tenant="a", state="serving")] not in ([], [slot]))


def test_a_slow_driver_costs_nobody_a_seat(gpu_box: Any, nvml: FakeNvml) -> None:
    """A new daemon that has not seen a GPU yet waits with slots on it, says nothing, and goes on when it has."""
    sit(gpu_box, "a", "mig:3g.40gb")
    gpu_box.tenant("b")
    for name in "ab":
        gpu_box.deploy(name)
    kept = gpu_box.call("tenant.show", name="a")
    gpu_box.call("tenant.stop", name="a")
    gpu_box.stop_daemon()
    with nvml.saying("hang * 0"):
        gpu_box.start(blank=0)
        assert (state(gpu_box, "b"), gpu_box.call("tenant.show", name="a")["seat"]) == ("running", kept["seat"])
        assert refusal(gpu_box, "tenant.set", name="a", device="gpu").code == "device.full"
        assert "has not been looked at yet" in gpu_box.call("tenant.show", name="a")["seat_trouble"]
        assert gpu_box.events("tenant.degraded") == []
        gpu_box.kill_daemon()
    gpu_box.start(blank=0)
    gpu_box.call("tenant.start", name="a")
    assert (state(gpu_box, "a"), gpu_box.call("tenant.show", name="a")["seat"]) == ("running", kept["seat"])


def test_a_seat_is_taken_until_the_last_slot_on_it_has_ended(gpu_box: Any) -> None:
    """Who asks for something else leaves it only when its slots have; who wants it meanwhile is told whose it is."""
    sit(gpu_box, "a", "gpu")
    gpu_box.deploy("a", source=SLOW)
    (slot,) = gpu_box.ps(tenant="a")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(infer, gpu_box, "a")
        gpu_box.wait(lambda: [row for row in gpu_box.ps(tenant="a") if row["in_flight"]])
        gpu_box.call("tenant.set", name="a", device="")
        gpu_box.wait(lambda: gpu_box.ps(slot=slot["slot"], state="draining"))
        assert "a's alone" in refusal(gpu_box, "tenant.create", name="b", device="gpu").message
        asked.result(30)
    gpu_box.wait(lambda: not gpu_box.ps(slot=slot["slot"]))
    assert sit(gpu_box, "b", "gpu")["devices"] == [WHOLE.uuid]


#: Answers with what the worker finds of its device: the errno of each node of the box's two GPUs.
CURIOUS = """
    import os
    import torch

    def ask(path):
        try:
            os.close(os.open(path, os.O_RDWR))
        except OSError as e:
            return e.errno

    FOUND = [ask(f"/dev/nvidia{n}") for n in (0, 1)] + [len(os.listdir("/dev/nvidia-caps"))]

    def build(bundle):
        assert os.environ["CUDA_VISIBLE_DEVICES"].startswith("MIG-")
        return lambda x: torch.tensor([FOUND + [0]], dtype=torch.float32)
"""


def test_a_tenant_has_the_nodes_of_its_seat_and_no_others(gpu_box: Any) -> None:
    """From the seat to the worker: its GPU's node has no driver (ENXIO), the neighbour's is not there (ENOENT)."""
    sit(gpu_box, "a", "mig:3g.40gb")
    gpu_box.deploy("a", source=CURIOUS)
    with bedsit.Client(tenant="a", run_dir=gpu_box.run) as client:
        found = client.infer("echo", {"x": np.zeros((1, 4), np.float32)}, timeout_s=30.0)["x"]
    assert found.tolist() == [[errno.ENOENT, errno.ENXIO, 2, 0]]
    assert gpu_box.call("tenant.show", name="a")["walls"] == dict.fromkeys(LAYERS, "on")


def test_a_tenant_keeps_its_device_over_a_restart_and_loses_it_with_its_seat(gpu_box: Any) -> None:
    """Adopted with every wall on; another device takes a fresh slot."""
    sit(gpu_box, "a", "mig:3g.40gb")
    gpu_box.deploy("a")
    (before,) = gpu_box.ps(tenant="a")
    gpu_box.kill_daemon()
    gpu_box.start(blank=0)
    (after,) = gpu_box.ps(tenant="a")
    assert (after["worker_pid"], after["state"]) == (before["worker_pid"], "serving")
    assert gpu_box.call("tenant.show", name="a")["walls"] == dict.fromkeys(LAYERS, "on")
    gpu_box.call("tenant.set", name="a", device="")
    gpu_box.wait(lambda: [row["slot"] for row in gpu_box.ps(tenant="a", state="serving")] not in ([], [after["slot"]]))


def test_a_node_that_is_missing_is_told_and_tried_again(gpu_box: Any, tmp_path: Path) -> None:
    """Nothing starts for that tenant, and others go on; it starts when the node is there."""
    node = tmp_path / "dev/nvidia0"
    node.unlink()
    sit(gpu_box, "a", "gpu")
    gpu_box.tenant("b")
    gpu_box.deploy("b")
    with pytest.raises(BedsitError, match=r"pool\.empty: no blank slot .*/dev/nvidia0: No such file or directory"):
        gpu_box.deploy("a", timeout_s=2.0)
    assert "/dev/nvidia0" in gpu_box.wait_event("slot.refused")["text"]
    make_node(tmp_path, "nvidia0", 2)
    gpu_box.deploy("a")
    assert (state(gpu_box, "a"), state(gpu_box, "b")) == ("running", "running")


def test_who_asks_anew_leaves_a_device_that_is_degraded(gpu_box: Any, nvml: FakeNvml) -> None:
    """Nobody else does, whatever else changes about a tenant; without another device it keeps what it has."""
    sit(gpu_box, "a", "gpu")
    nvml.happen(0, XID, 79)
    gpu_box.wait_event("tenant.degraded", tenant="a")
    assert refusal(gpu_box, "tenant.set", name="a", device="gpu").code == "device.full"
    other = FakeGpu(2)
    nvml.gpus.append(other)
    nvml.write()
    nvml.happen(1, MIG_CHANGED, 0)
    gpu_box.wait(lambda: any(row["id"] == other.uuid for row in gpu_box.call("device.list")["devices"]))
    assert gpu_box.call("tenant.set", name="a", pids=99)["seat"]["devices"] == [WHOLE.uuid]
    assert gpu_box.call("tenant.set", name="a", device="gpu")["seat"]["devices"] == [other.uuid]
    assert gpu_box.call("tenant.show", name="a")["seat_trouble"] is None
