"""``bedsit device`` against a scripted daemon."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from bedsit.ipc.errors import error

Run = Callable[..., subprocess.CompletedProcess[str]]

GPU = "GPU-8f3a0000-0000-0000-0000-000000000000"
MIG = "MIG-8f3a0000-0000-0000-0000-000000000001"
CORES = {"id": "cpu0", "kind": "cpu", "state": "ok", "name": "2 cores of node 0", "memory_bytes": 1 << 30}
CORES |= {"cores": [0, 1], "cpuset": "0-1", "numa_node": 0, "trust": "isolated", "fault_domain": "box"}
PART = {"id": MIG, "kind": "mig", "state": "ok", "name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "memory_bytes": 40 << 30}
PART |= {"sms": 60, "cores": [], "trust": "isolated", "fault_domain": f"{GPU}/gi1", "gpu": GPU, "minor": 0}
PART |= {"tenants": ["vision"], "used": 1.0}
PART |= {"placement": {"start": 4, "size": 4}, "nodes": ["/dev/nvidiactl"], "env": {"CUDA_VISIBLE_DEVICES": MIG}}
LOST = {"id": "gpu1", "kind": None, "state": "degraded", "trouble": {"what": "the GPU is lost", "mend": "reboot"}}
DETAILS = {"uuid": GPU, "pci": "00000000:01:00.0", "mig": "on", "slices": [MIG]}
DETAILS |= {"processes": [{"pid": 4242, "memory_bytes": 1 << 30}]}
PROFILE = {"id": 9, "name": "MIG 3g.40gb", "memory_bytes": 40 << 30, "sms": 60, "count_max": 2}
DETAILS |= {"profiles": [PROFILE | {"placements": [[0, 4], [4, 4]]}]}
NONE = {"what": "no NVML library (libnvidia-ml.so.1): cores only", "mend": "install its driver"}


def answer(*devices: dict[str, Any], trouble: dict[str, str] | None = None, looked: bool = True) -> dict[str, Any]:
    """What the daemon says."""
    return {"devices": list(devices), "driver": "580", "looked": looked, "trouble": trouble}


def rows(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The table's cells."""
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_devices_come_in_every_form(bedsit: Run, daemon: Any) -> None:
    """As a table, a document, lines and names; what fails says why."""
    daemon.script["device.list"] = answer(PART, LOST, CORES)
    head, *cells = rows(bedsit("device", "list"))
    assert head == ["DEVICE", "KIND", "STATE", "NAME", "MEMORY MiB", "COMPUTE", "TRUST", "TENANTS", "FULL", "WHY"]
    assert cells[0] == [MIG, "mig", "ok", PART["name"], "40960.0", "60 SMs", "isolated", "vision", "100 %", "-"]
    assert cells[1] == ["gpu1", "-", "degraded", "-", "-", "-", "-", "-", "-", "the GPU is lost"]
    assert cells[2][5] == "2 cores"
    document = json.loads(bedsit("device", "ls", "-o", "json").stdout)
    assert (document["kind"], document["items"]) == ("device", [PART, LOST, CORES])
    lines = bedsit("device", "list", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [MIG, "gpu1", "cpu0"]
    assert bedsit("device", "list", "-o", "name").stdout.split() == [MIG, "gpu1", "cpu0"]


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (answer(CORES, trouble=NONE), "no NVML library (libnvidia-ml.so.1): cores only (install its driver)"),
        (answer(CORES, looked=False), "the GPUs have not been looked at yet"),
    ],
)
def test_one_line_says_why_there_are_no_gpus(bedsit: Run, daemon: Any, said: dict[str, Any], says: str) -> None:
    """On stderr: the answer stays an answer."""
    daemon.script["device.list"] = said
    done = bedsit("device", "list", "-o", "json")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert len(json.loads(done.stdout)["items"]) == 1


def test_a_device_is_shown_with_its_gpu(bedsit: Run, daemon: Any) -> None:
    """What a worker needs, what fails with it, who computes on the GPU, and what that could be cut into."""
    daemon.script["device.show"] = {**PART, "gpu_details": DETAILS}
    shown = dict(rows(bedsit("device", "show", MIG)))
    assert daemon.heard[-1] == ("device.show", {"name": MIG})
    assert shown["place"] == "memory slices 4 to 7"
    assert shown["environment"] == f"CUDA_VISIBLE_DEVICES={MIG}"
    assert shown["fails with"] == f"{GPU}/gi1"
    assert shown["processes"] == "4242 (1 GiB)"
    assert shown["profile 9"] == "MIG 3g.40gb: 60 SMs, 40 GiB, at most 2, beginning at 0, 4"
    assert json.loads(bedsit("device", "show", MIG, "-o", "json").stdout)["item"]["gpu_details"] == DETAILS


def test_cores_are_shown_without_a_gpu(bedsit: Run, daemon: Any) -> None:
    """Only what they have."""
    daemon.script["device.show"] = {**CORES, "gpu_details": None}
    shown = dict(rows(bedsit("device", "show", "cpu0")))
    assert (shown["cores"], shown["numa node"], shown["compute"]) == ("0-1", "0", "2 cores")
    assert not {"gpu", "mig", "nodes", "why"} & shown.keys()


def test_what_is_wrong_is_shown_with_what_to_do(bedsit: Run, daemon: Any) -> None:
    """One line each."""
    daemon.script["device.show"] = {**LOST, "gpu_details": {"uuid": "gpu1"}}
    shown = dict(rows(bedsit("device", "show", "gpu1")))
    assert (shown["why"], shown["what to do"]) == ("the GPU is lost", "reboot")


def test_a_device_that_is_not_there(bedsit: Run, daemon: Any) -> None:
    """No such object, and where to look."""
    daemon.script["device.show"] = error("device.not_found", "no device 'x'")
    done = bedsit("device", "show", "x")
    assert done.returncode == 4
    assert "bedsit device list" in done.stderr


def test_devices_are_completed(bedsit: Run, daemon: Any) -> None:
    """Those there are, and nothing that a shell would run."""
    daemon.script["device.list"] = answer(PART, CORES, {"id": "$(reboot)"})

    def complete(words: str) -> list[str]:
        count = str(len(words.split(" ")) - 1)
        return bedsit(_BEDSIT_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count).stdout.split()

    assert complete("bedsit device show M") == [MIG]
    assert complete("bedsit device show ") == [MIG, "cpu0"]


def test_status_has_a_line_about_devices(bedsit: Run, daemon: Any) -> None:
    """How many there are, and what is wrong with them."""
    devices = {"gpus": 1, "mig": 2, "cores": 8, "degraded": [GPU], "trouble": None}
    daemon.script["status"] = {"version": "0.1.0", "devices": devices}
    assert dict(rows(bedsit("status")))["devices"] == f"1 GPU, 2 MIG devices, 8 cores; degraded: {GPU}"
    daemon.script["status"]["devices"] = {"gpus": 0, "mig": 0, "cores": 1, "degraded": [], "trouble": NONE}
    assert dict(rows(bedsit("status")))["devices"] == f"0 GPUs, 1 core; {NONE['what']}"
