"""Memory of a GPU that tenants take turns on, over the fake NVML: the real helper, binding, daemon and slots."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import bedsit
from bedsit.supervisor.placement.seating import CONTEXT_BYTES
from tests_support.nodes import make_dev
from tests_support.nvml.library import MIG_CHANGED, NO_LIMIT, FakeGpu, FakeInstance, FakeNvml

pytestmark = pytest.mark.root
MIB, GIB = 1 << 20, 1 << 30
WHOLE, CUT, ALONE = FakeGpu(0), FakeGpu(1, mig=True), FakeGpu(2)
HALF = FakeInstance(1, 0, 1, 9, 4)
QUOTA = 4 * GIB + CONTEXT_BYTES
FAR = QUOTA + 300 * MIB
#: Loads only where it was told what it may have of the device.
TOLD = f"""
    import os

    def build(bundle):
        assert os.environ["BEDSIT_DEVICE_MEMORY"] == "{4 * GIB}"
        assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
        return lambda x: x
"""
#: Has a child for as long as it lives.
PARENT = """
    import subprocess

    CHILD = subprocess.Popen(["sleep", "600"])

    def build(bundle):
        return lambda x: x
"""


@pytest.fixture
def make_box(new_box: Callable[[], Any], nvml: FakeNvml, tmp_path: Path, mig_minors: None) -> Callable[..., Any]:
    """Starts a box with a GPU to be shared, one that is cut, and one for somebody alone."""

    def make(*, limits: bool = False, **settings: Any) -> Any:
        if limits:
            nvml.install(without=())
        nvml.gpus, nvml.instances = [FakeGpu(0, limits=limits), CUT, ALONE], [HALF]
        nvml.write()
        box = new_box()
        box.settings |= {"pool_size": 1, **settings}
        box.environment = nvml.environment
        script = 'mount --bind "$0" /proc/driver && mount --bind "$1" /dev && shift && exec "$@"'
        make_dev(tmp_path, ("nvidiactl", "nvidia-uvm", "nvidia0", "nvidia1", "nvidia2"), range(3, 200))
        box.starter = ["unshare", "--mount", "sh", "-c", script, str(tmp_path / "proc/driver"), str(tmp_path / "dev")]
        box.start(blank=0)
        box.start_router()
        return box

    return make


def sit(box: Any, name: str, source: str = "", **wish: Any) -> int:
    """A tenant on the GPU that is shared, with a model that runs; its worker."""
    wish = {"device": "gpu:0.25", "trusted": True, "gpu_memory_bytes": 4 * GIB} | wish
    box.tenant(name, **wish)
    box.deploy(name, **({"source": source} if source else {}))
    return pid_of(box, name)


def pid_of(box: Any, name: str) -> int:
    """The tenant's worker."""
    (slot,) = box.ps(tenant=name, state="serving")
    return int(slot["worker_pid"])


def memory(box: Any, name: str) -> dict[str, Any]:
    """What is said of a tenant's memory."""
    part: dict[str, Any] = box.call("tenant.show", name=name)["gpu_memory"]
    return part


def cli(box: Any, *words: str) -> str:
    """What the command line says."""
    argv = [sys.executable, "-m", "bedsit.cli.main", *words, "--run-dir", str(box.run)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=box.environment | {"COLUMNS": "200"})
    return done.stdout


def infer(box: Any, tenant: str) -> None:
    """One request."""
    with bedsit.Client(tenant=tenant, run_dir=box.run) as client:
        client.infer("echo", {"x": np.zeros((1, 4), np.float32)}, timeout_s=30.0)


def test_who_is_over_its_quota_is_told_and_who_is_far_over_ended(make_box: Any, nvml: FakeNvml) -> None:
    """The cause says so and counts against it; its neighbour and a stranger that has half of the card run on."""
    box = make_box()
    greedy, good = sit(box, "greedy", TOLD), sit(box, "good")
    stranger, gone = psutil.Process().pid, 4_000_000
    others = {good: QUOTA, stranger: 40 * GIB, gone: 20 * GIB}

    nvml.compute(0, others | {greedy: QUOTA + 10 * MIB})
    told = box.wait_event("memory.over", tenant="greedy")
    assert "4,635 MiB are used, and 4,625 were given" in told["text"]
    slot = told["slot"]

    nvml.compute(0, others | {greedy: FAR})
    text = box.wait_event("memory.exceeded", tenant="greedy", slot=slot)["text"]
    assert text == "out of GPU memory: 4,925 MiB are used, and 4,625 were given"
    died = box.wait_event("slot.died", tenant="greedy")
    assert (died["slot"], died["cause"], text in died["text"]) == (slot, "oom", True)
    box.wait(lambda: box.ps(tenant="greedy", state="serving"))
    assert pid_of(box, "greedy") != greedy
    shown = box.call("tenant.show", name="greedy")
    assert (shown["restarts"], shown["last_cause_kind"]) == (1, "oom")

    assert len(box.events("memory.over")) == 1
    assert pid_of(box, "good") == good
    infer(box, "good")
    infer(box, "greedy")


def test_a_child_counts_for_its_slot(make_box: Any, nvml: FakeNvml) -> None:
    """Under the profile that lets a model have some."""
    box = make_box()
    worker = sit(box, "a", PARENT, profile="subprocess")
    (child,) = (each.pid for each in psutil.Process(worker).children())
    nvml.compute(0, {worker: QUOTA - GIB, child: GIB + 300 * MIB})
    assert "out of GPU memory" in box.wait_event("slot.died", tenant="a")["text"]


def test_who_takes_turns_pays_for_the_memory_that_it_uses(make_box: Any, nvml: FakeNvml) -> None:
    """A child's counts, a stranger's and the neighbour's do not; by the second and not by what was promised."""
    box = make_box()
    worker = sit(box, "a", PARENT, profile="subprocess")
    (child,) = (each.pid for each in psutil.Process(worker).children())
    sit(box, "idle")
    nvml.compute(0, {worker: GIB, child: GIB, psutil.Process().pid: 40 * GIB})
    box.wait(lambda: memory(box, "a")["used_bytes"] == 2 * GIB)

    def paid(name: str) -> float:
        return sum(float(row["vram_gib_s"]) for row in box.call("usage.list", tenant=name)["usage"])

    began = time.monotonic()
    first = paid("a")
    box.wait(lambda: paid("a") > first)
    assert paid("a") - first <= 2 * (time.monotonic() - began)
    assert paid("idle") == 0.0


def test_a_driver_s_limit_is_there_before_the_tenant_and_gone_before_the_group(make_box: Any, nvml: FakeNvml) -> None:
    """On the slot's own group, contexts included; nobody watches it then, and it is said that the driver does."""
    box = make_box(limits=True)
    worker = sit(box, "a", TOLD)
    (slot,) = box.ps(tenant="a")
    steps = QUOTA // (2 * MIB) * 2 * MIB
    ((soft, hard, group),) = nvml.limits
    assert (soft, hard, Path(group).name) == (steps, steps, slot["slot"])
    assert str(worker) in (Path(group) / "cgroup.procs").read_text().split()

    nvml.compute(0, {worker: FAR})
    nvml.happen(1, MIG_CHANGED, 0)  # or it takes 15 s until they are looked at
    box.wait(lambda: memory(box, "a")["used_bytes"] == FAR)
    part = memory(box, "a")
    assert (part["held"], part["limit_bytes"]) == ("driver", QUOTA)
    assert (box.events("memory.exceeded"), box.events("memory.over")) == ([], [])

    box.call("tenant.stop", name="a")
    box.wait(lambda: not Path(group).exists())
    assert nvml.limits[1:] == [(0, NO_LIMIT, group)]


def test_a_later_daemon_takes_back_what_the_dead_one_s_slots_had(make_box: Any, nvml: FakeNvml) -> None:
    """Also of a slot that ended while no daemon ran; one that lives keeps its limit and its kind."""
    box = make_box(limits=True)
    sit(box, "lives")
    sit(box, "dies")
    (dying,) = box.ps(tenant="dies")
    before = list(nvml.limits)
    box.kill_daemon()
    psutil.Process(dying["init_pid"]).kill()
    box.start(blank=0)
    box.wait(lambda: nvml.limits[len(before) :])
    soft, hard, group = nvml.limits[len(before)]
    assert (soft, hard, Path(group).name) == (0, NO_LIMIT, dying["slot"])
    assert memory(box, "lives")["held"] == "driver"
    box.wait(lambda: not Path(group).exists())


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("fail nvmlDeviceSetMemoryLimits_v1 0 999", "Unknown Error"),
        ("die nvmlDeviceSetMemoryLimits_v1 0", "ended in nvmlDeviceSetMemoryLimits_v1"),
        ("lie 0 1", "does not hold the limit"),
    ],
)
def test_a_driver_that_does_not_limit_costs_nobody_a_slot(
    make_box: Any, nvml: FakeNvml, script: str, says: str
) -> None:
    """The tenant is served, watched instead, and its operator told which it is."""
    box = make_box(limits=True)
    with nvml.saying(script):
        worker = sit(box, "a")
    assert says in box.wait_event("memory.unlimited")["text"]
    assert memory(box, "a")["held"] == "soft"
    infer(box, "a")
    nvml.compute(0, {worker: FAR})
    assert "out of GPU memory" in box.wait_event("slot.died", tenant="a")["text"]


def test_it_is_said_of_everybody_who_holds_him_to_what(make_box: Any, nvml: FakeNvml) -> None:
    """In the words of the command line, too: a card or a part of one is a wall, and what is soft is called that."""
    box = make_box()
    worker = sit(box, "shares", max_slots=2)
    sit(box, "part", device="mig:3g.40gb", trusted=False, gpu_memory_bytes=0)
    sit(box, "alone", device="gpu", trusted=False, gpu_memory_bytes=0)
    box.tenant("cores")
    kinds = {name: (memory(box, name) or {}).get("held") for name in ("shares", "part", "alone", "cores")}
    assert kinds == {"shares": "soft", "part": "hardware", "alone": "hardware", "cores": None}
    assert memory(box, "alone")["limit_bytes"] == ALONE.card.memory_bytes
    assert "accidents" in memory(box, "shares")["means"]
    assert (memory(box, "shares")["limit_bytes"], memory(box, "shares")["slots"]) == (QUOTA, 1)
    assert box.call("tenant.show", name="shares")["seat"]["memory_bytes"] == 2 * QUOTA

    nvml.compute(0, {worker: GIB})
    box.wait(lambda: memory(box, "shares")["used_bytes"] == GIB, 40)
    for command in (("tenant", "show", "shares"), ("status",), ("device", "show", WHOLE.uuid)):
        assert "soft, 1 GiB of 4.517 GiB used" in cli(box, *command), command
    assert "hardware" in cli(box, "device", "show", ALONE.uuid)


def test_what_no_card_has_is_refused(make_box: Any) -> None:
    """With what is needed, contexts of all its slots included; and what is too little for any worker is made enough."""
    box = make_box()
    for wish in ({"gpu_memory_bytes": 90 * GIB}, {"gpu_memory_bytes": 30 * GIB, "max_slots": 3}):
        with pytest.raises(bedsit.BedsitError, match="with a context"):
            box.tenant("a", device="gpu:0.25", trusted=True, **wish)
    seat = box.tenant("b", device="gpu:0.25", trusted=True, gpu_memory_bytes=1)["tenant"]["seat"]
    assert seat["memory_bytes"] == CONTEXT_BYTES + (64 << 20)
