"""Deploying, serving, dying: a tenant's models through the real router, worker and cgroups."""

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bedsit
from bedsit.cli.pack import open_bundle
from bedsit.ipc.admin import AdminClient, Body
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.frames import recv_frame, send_frame
from tests_support.marks import PATIENCE

pytestmark = pytest.mark.root
X = np.arange(8, dtype=np.float32).reshape(2, 4)

BROKEN = """
    def build(bundle):
        raise ValueError("no such layer")
"""
HUNGRY = """
    import torch

    def build(bundle):
        return torch.ones(1 << 28)  # 1 GiB
"""
SUICIDAL = """
    import os, signal

    def build(bundle):
        os.kill(os.getpid(), signal.SIGSEGV)
"""
LAZY = """
    import time

    def build(bundle):
        time.sleep(3600)
"""
TALKER = """
    import sys
    import torch

    def build(bundle):
        print("hello\\x1b[31m from the model")
        sys.stdout.flush()
        return torch.nn.Identity()
"""


FILLED = """
    import torch

    def build(bundle):
        ballast = torch.ones(50 << 20)  # 200 MiB
        return lambda x: x + ballast[0] - 1
"""


def infer(box: Any, model: str = "echo", tenant: str = "vision") -> Any:
    """One request through router and worker."""
    with bedsit.Client(tenant=tenant, run_dir=box.run) as client:
        return client.infer(model, {"x": X}, timeout_s=20.0)["x"]


def test_serves_what_was_deployed(shared_box: Any) -> None:
    """A deployed model answers at once after `model.deploy` returns."""
    shared_box.tenant()
    model = shared_box.deploy()

    assert (model["default"], [v["version"] for v in model["versions"]]) == (1, [1])
    assert np.array_equal(X, infer(shared_box))
    assert shared_box.call("tenant.show", name="vision")["state"] == "running"
    assert len(shared_box.ps(tenant="vision", state="serving")) == 1


def test_a_second_version_replaces_the_slot_and_keeps_the_first(shared_box: Any) -> None:
    """Deploying again needs --replace, adds a version, and ends the old slot once it is drained."""
    shared_box.tenant()
    shared_box.deploy()
    (old,) = shared_box.ps(tenant="vision")
    with pytest.raises(BedsitError, match=r"model\.exists"):
        shared_box.deploy()
    model = shared_box.deploy(replace=True, source=TALKER)

    assert (model["default"], [v["version"] for v in model["versions"]]) == (2, [1, 2])
    shared_box.wait(lambda: not shared_box.ps(slot=old["slot"]))
    assert np.array_equal(X, infer(shared_box))


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        (BROKEN, "model.load_failed", "no such layer"),
        (HUNGRY, "worker.crashed", "out of memory: limit 300 MiB"),
        (SUICIDAL, "worker.crashed", "SIGSEGV"),
    ],
    ids=["raises", "out of memory", "segfault"],
)
def test_a_model_that_does_not_load_changes_nothing(shared_box: Any, source: str, code: str, says: str) -> None:
    """A failed deployment says why, leaves no artifact, and the tenant's slot serves on."""
    shared_box.tenant(memory_bytes=300 << 20)
    shared_box.deploy()
    (before,) = shared_box.ps(tenant="vision")
    with pytest.raises(BedsitError, match=says) as failed:
        shared_box.deploy(name="other", source=source)

    assert failed.value.code == code
    assert [model["name"] for model in shared_box.call("model.list", tenant="vision")] == ["echo"]
    shared_box.wait(lambda: len(shared_box.ps(tenant="vision")) == 1)
    assert shared_box.ps(tenant="vision")[0]["slot"] == before["slot"]
    assert len(list((shared_box.state / "artifacts").iterdir())) == 1
    assert np.array_equal(X, infer(shared_box))


@PATIENCE(part="attack", outcome="ended")
def test_a_model_that_never_loads_ends_at_its_deadline(shared_box: Any) -> None:
    """The deadline of a deployment holds, and its slot is gone afterwards."""
    shared_box.tenant()
    with pytest.raises(BedsitError, match=r"deadline\.exceeded"):
        shared_box.deploy(source=LAZY, timeout_s=1.0)

    shared_box.wait(lambda: not shared_box.ps(tenant="vision"))
    assert shared_box.call("model.list", tenant="vision") == []


def test_a_crashed_worker_is_replaced_from_the_pool(shared_box: Any) -> None:
    """A killed worker costs the tenant one slot; its cause is known and the next slot serves."""
    shared_box.tenant()
    shared_box.deploy()
    (old,) = shared_box.ps(tenant="vision")
    os.kill(old["worker_pid"], signal.SIGKILL)
    died = shared_box.wait_event("slot.died", slot=old["slot"])
    (new,) = shared_box.wait(lambda: [r for r in shared_box.ps(state="serving") if r["slot"] != old["slot"]])

    assert (died["cause"], died["text"]) == ("signal", "while serving: signal 9 (SIGKILL)")
    assert new["tenant"] == "vision"
    assert np.array_equal(X, infer(shared_box))
    shown = shared_box.call("tenant.show", name="vision")
    assert (shown["restarts"], shown["last_cause"]) == (1, "signal 9 (SIGKILL)")


def test_a_serving_slot_outlives_the_daemon(shared_box: Any) -> None:
    """Kill -9 of the daemon: the slot answers meanwhile, and the next daemon adopts it."""
    shared_box.tenant()
    shared_box.deploy()
    (before,) = shared_box.ps(tenant="vision")
    shared_box.kill_daemon()

    assert np.array_equal(X, infer(shared_box))

    shared_box.start()
    (after,) = shared_box.ps(tenant="vision")

    assert (after["slot"], after["worker_pid"], after["state"]) == (before["slot"], before["worker_pid"], "serving")
    shared_box.wait(lambda: shared_box.call("status")["router"]["connected"])
    assert np.array_equal(X, infer(shared_box))


def test_a_worker_that_dies_while_no_daemon_runs_is_replaced(shared_box: Any) -> None:
    """Known and dead: the next daemon clears the slot and gives the tenant another."""
    shared_box.tenant()
    shared_box.deploy()
    (old,) = shared_box.ps(tenant="vision")
    shared_box.kill_daemon()
    os.kill(old["worker_pid"], signal.SIGKILL)
    shared_box.start(blank=0)
    shared_box.wait(lambda: [r for r in shared_box.ps(state="serving") if r["slot"] != old["slot"]])

    assert np.array_equal(X, infer(shared_box))


def test_stops_and_starts_a_tenant(shared_box: Any) -> None:
    """A stopped tenant has no slot and refuses deployments; started again it serves."""
    shared_box.tenant()
    shared_box.deploy()

    assert shared_box.call("tenant.stop", name="vision")["state"] == "stopped"
    assert shared_box.ps(tenant="vision") == []
    with pytest.raises(BedsitError, match=r"tenant\.stopped"):
        shared_box.deploy(name="other")

    assert shared_box.call("tenant.start", name="vision")["state"] == "running"
    assert np.array_equal(X, infer(shared_box))


def test_deletes_one_version_then_the_model(shared_box: Any) -> None:
    """The newest version left is the default; without any the tenant is empty and has no slot."""
    shared_box.tenant()
    shared_box.deploy()
    shared_box.deploy(replace=True, source=TALKER)
    shared_box.call("model.delete", tenant="vision", name="echo", version=2)

    assert shared_box.call("model.show", tenant="vision", name="echo")["default"] == 1
    assert np.array_equal(X, infer(shared_box))

    shared_box.call("model.delete", tenant="vision", name="echo")
    shared_box.wait(lambda: not shared_box.ps(tenant="vision"))

    assert shared_box.call("tenant.show", name="vision")["state"] == "empty"
    assert list((shared_box.state / "artifacts").iterdir()) == []
    assert shared_box.deploy()["versions"][0]["version"] == 1


def test_deletes_a_tenant_with_everything(shared_box: Any) -> None:
    """Nothing of a deleted tenant runs or lies around."""
    shared_box.tenant()
    shared_box.deploy()
    shared_box.call("tenant.delete", name="vision")

    assert shared_box.ps(tenant="vision") == []
    assert list((shared_box.state / "artifacts").iterdir()) == []
    assert list((shared_box.state / "logs").iterdir()) == []


def test_shows_what_a_tenant_prints(shared_box: Any) -> None:
    """Output comes as bounded lines without control characters."""
    shared_box.tenant()
    shared_box.deploy(source=TALKER)
    lines = shared_box.wait(lambda: list(shared_box.admin.stream("logs", tenant="vision")))

    assert lines[0]["stream"] == "out"
    assert "from the model" in lines[0]["text"]
    assert "\x1b" not in lines[0]["text"]


def test_limits_change_on_the_running_slot(shared_box: Any) -> None:
    """tenant.set reaches the kernel at once; a limit below what is used is refused and nothing changes."""
    shared_box.tenant(memory_bytes=512 << 20)
    shared_box.deploy(source=FILLED)
    shared_box.call("tenant.set", name="vision", memory_bytes=768 << 20)

    assert shared_box.ps(tenant="vision")[0]["memory_limit_bytes"] == 768 << 20
    assert shared_box.call("tenant.show", name="vision")["walls"]["cgroup_limits"] == "on"
    with pytest.raises(BedsitError, match=r"cgroup\.refused"):
        shared_box.call("tenant.set", name="vision", memory_bytes=100 << 20)

    shown = shared_box.call("tenant.show", name="vision")

    assert (shown["limits"]["memory_bytes"], shown["state"]) == (768 << 20, "running")
    assert shown["walls"]["cgroup_limits"] == "on"


def test_a_full_disk_refuses_the_archive_and_nothing_else(new_box: Callable[[], Any]) -> None:
    """disk.full for the deployment; the tenant, its slot and further calls are as before."""
    box = new_box()
    box.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", box.state], check=True)
    try:
        box.start()
        box.start_router()
        box.tenant()
        box.deploy()
        with pytest.raises(BedsitError, match=r"disk\.full"):
            box.deploy(name="large", source=f"# {'x' * (6 << 20)}")

        assert [model["name"] for model in box.call("model.list", tenant="vision")] == ["echo"]
        assert len(list((box.state / "artifacts").iterdir())) == 1
        assert np.array_equal(X, infer(box))
    finally:
        box.close()
        subprocess.run(["umount", box.state], check=True)
        shutil.rmtree(box.root)


def test_two_deployments_of_a_tenant_follow_each_other(shared_box: Any) -> None:
    """The second waits for its turn, and the first one's failure does not take its archive away."""
    shared_box.tenant()
    codes: list[str] = []

    def deploy_in_vain(admin: AdminClient) -> None:
        bundle = open_bundle(shared_box.bundle("lazy", LAZY))
        named = {"tenant": "vision", "name": "lazy", "size": bundle.size, "digest": bundle.digest()}
        try:
            with bundle.open() as archive:
                admin.call("model.deploy", body=Body(archive, bundle.size), timeout_s=2.0, **named)
        except BedsitError as e:
            codes.append(e.code)

    with AdminClient(shared_box.run / "admin.sock", timeout_s=30) as admin:
        other = threading.Thread(target=deploy_in_vain, args=(admin,))
        other.start()
        shared_box.wait(lambda: shared_box.ps(state="loading"))

        assert shared_box.deploy()["default"] == 1

        other.join()
    assert codes == ["deadline.exceeded"]
    assert np.array_equal(X, infer(shared_box))


def test_a_lost_caller_leaves_nothing_behind(shared_box: Any) -> None:
    """A caller that leaves in the middle of its upload leaves nothing behind."""
    shared_box.tenant()
    bundle = open_bundle(shared_box.bundle())
    request = {"tenant": "vision", "name": "echo", "size": bundle.size, "digest": bundle.digest()}
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(shared_box.run / "admin.sock"))
        send_frame(caller, {"v": 1, "op": "model.deploy", "args": request})

        assert "progress" in recv_frame(caller)
        assert recv_frame(caller) == {"continue": True}

        send_frame(caller, b"half")
        shared_box.wait(lambda: list((shared_box.state / "artifacts").iterdir()))

    shared_box.wait(lambda: not list((shared_box.state / "artifacts").iterdir()))
    assert shared_box.deploy()["default"] == 1
