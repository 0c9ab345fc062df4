"""Devices of a real daemon, as its operator sees them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc.errors import BedsitError
from tests_support.nvml.library import MIG_CHANGED, XID, FakeGpu, FakeInstance, FakeNvml

pytestmark = pytest.mark.root


def bedsit(box: Any, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    return subprocess.run(
        [sys.executable, "-m", "bedsit.cli.main", *words],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "BEDSIT_RUN_DIR": str(box.run)},
    )


def find_helpers(box: Any) -> list[int]:
    """The helpers of this box's daemon."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if b"supervisor.devices.nvml" in words and box.daemon and parent == box.daemon.pid:
            found.append(int(path.name))
    return found


def maps(pid: int) -> str:
    """What a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.fixture
def gpu_box(new_box: Callable[[], Any], nvml: FakeNvml) -> Any:
    """A box with a whole H100 and one that is cut."""
    nvml.gpus = [FakeGpu(0), FakeGpu(1, mig=True)]
    nvml.instances = [FakeInstance(1, 0, 1, 9, 4)]
    nvml.write()
    box = new_box()
    box.settings["pool_size"] = 0
    box.environment = nvml.environment
    return box.start(blank=0)


def test_a_box_without_a_gpu_lists_its_cores(box: Any) -> None:
    """And says in one line that there is no GPU; nothing keeps running for it."""
    answer = box.call("device.list")
    assert {row["kind"] for row in answer["devices"]} == {"cpu"}
    assert "cores only" in answer["trouble"]["what"]
    done = bedsit(box, "device", "list", "-o", "name")
    assert done.stdout.split()[0] == "cpu0"
    assert done.stderr.count("\n") == 1
    assert box.call("device.show", name="cpu0")["cpuset"]
    assert "cores only" in bedsit(box, "status").stdout
    assert find_helpers(box) == []


def test_gpus_are_listed_and_shown(gpu_box: Any, nvml: FakeNvml) -> None:
    """By name or the beginning of it; a cut GPU is shown by itself, too."""
    listed = json.loads(bedsit(gpu_box, "device", "list", "-o", "json").stdout)["items"]
    assert [row["id"] for row in listed[:2]] == [nvml.gpus[0].uuid, nvml.instances[0].uuid]
    whole = gpu_box.call("device.show", name="GPU-00000000")
    assert (whole["kind"], whole["gpu_details"]["mig"], len(whole["gpu_details"]["profiles"])) == (
        "exclusive",
        "off",
        7,
    )
    cut = gpu_box.call("device.show", name=nvml.gpus[1].uuid)
    assert (cut["kind"], cut["gpu_details"]["slices"]) == (None, [nvml.instances[0].uuid])
    with pytest.raises(BedsitError, match="may be GPU-00000000") as refused:
        gpu_box.call("device.show", name="GPU-")
    assert refused.value.code == "request.invalid"
    with pytest.raises(BedsitError) as refused:
        gpu_box.call("device.show", name="GPU-7")
    assert refused.value.code == "device.not_found"


def test_only_the_helper_has_the_library(gpu_box: Any) -> None:
    """The daemon neither loads NVML nor its binding."""
    gpu_box.call("device.list")
    (helper,) = find_helpers(gpu_box)
    assert "libnvidia-ml" in maps(helper)
    assert "libnvidia-ml" not in maps(gpu_box.daemon.pid)
    assert "torch" not in maps(helper)


def test_an_xid_is_an_event(gpu_box: Any, nvml: FakeNvml) -> None:
    """And what it broke is in the list and in the status."""
    gpu_box.call("device.list")
    found = {event["text"].split(":")[0] for event in gpu_box.events("device.found")}
    assert found == {gpu.uuid for gpu in nvml.gpus}

    def is_told() -> bool:
        nvml.happen(0, XID, 79)  # the helper may not listen yet
        return bool(gpu_box.events("device.degraded"))

    gpu_box.wait(is_told)
    assert "Xid 79: the GPU has fallen off the bus" in gpu_box.events("device.xid")[0]["text"]
    # The other one is of no use either, as nobody lists its capability nodes here.
    assert gpu_box.call("status")["devices"]["degraded"] == [nvml.gpus[0].uuid, nvml.instances[0].uuid]


@pytest.mark.parametrize("state", ["idle", "hangs", "stopped"])
def test_the_helper_dies_with_the_daemon(gpu_box: Any, nvml: FakeNvml, state: str) -> None:
    """By kill -9 too, and in the middle of a call that does not return."""
    gpu_box.call("device.list")
    (helper,) = find_helpers(gpu_box)
    if state == "hangs":
        nvml.more.append("hang * -1")
        nvml.write()
        nvml.happen(1, MIG_CHANGED, 0)  # the next round begins now
    elif state == "stopped":
        os.kill(helper, signal.SIGSTOP)
    gpu_box.kill_daemon()

    def is_gone() -> bool:
        try:
            return "Z" in Path(f"/proc/{helper}/stat").read_text().rpartition(")")[2]
        except FileNotFoundError:
            return True

    gpu_box.wait(is_gone)
    nvml.more.clear()
    nvml.write()


def test_a_hanging_driver_holds_up_nobody(gpu_box: Any, nvml: FakeNvml) -> None:
    """The daemon answers, makes tenants and stops as always, and says which GPU it is."""

    def is_told() -> bool:
        return any(event["text"].startswith(nvml.gpus[0].uuid) for event in gpu_box.events("device.degraded"))

    assert nvml.gpus[0].uuid in [row["id"] for row in gpu_box.call("device.list")["devices"]]
    with nvml.saying("hang * 0"):
        nvml.happen(1, MIG_CHANGED, 0)  # the next round begins now
        gpu_box.tenant("vision")
        assert [row["name"] for row in gpu_box.call("tenant.list")] == ["vision"]
        assert not is_told()  # the call hangs yet
        assert gpu_box.call("device.list")["devices"]
        gpu_box.wait(is_told)
        assert gpu_box.stop_daemon() == 0
    gpu_box.start(blank=0)
