"""Partitions of a real daemon, as its operator declares, plans and applies them."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc.errors import BedsitError
from tests_support.nvml.library import FakeGpu, FakeInstance, FakeNvml

pytestmark = pytest.mark.root

UUID = FakeGpu(0).uuid


def bedsit(box: Any, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command, whatever it exits with."""
    return subprocess.run(
        [sys.executable, "-m", "bedsit.cli.main", *words],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "BEDSIT_RUN_DIR": str(box.run)},
    )


def plan(box: Any, *words: str) -> tuple[int, list[str]]:
    """The exit code of a plan, and its lines in short."""
    done = bedsit(box, "device", "partition", "plan", *words, "-o", "json")
    rows = json.loads(done.stdout)["items"]
    return done.returncode, [f"{row['action']} {row['profile']}" for row in rows]


@pytest.fixture
def make_box(new_box: Callable[[], Any], nvml: FakeNvml) -> Callable[..., Any]:
    """Starts a box with an H100 that has MIG on, and this in its configuration."""

    def make(text: str, *there: FakeInstance, lines: tuple[str, ...] = ()) -> Any:
        nvml.gpus = [FakeGpu(0, mig=True)]
        nvml.instances = list(there)
        nvml.more = list(lines)
        nvml.write()
        box = new_box()
        box.settings["pool_size"] = 0
        folder: Path = box.root / "bedsit.toml.d"
        folder.mkdir()
        (folder / "devices.toml").write_text(text)
        box.environment = nvml.environment
        return box.start(blank=0)

    return make


def test_what_is_declared_is_there_after_a_reboot(make_box: Callable[..., Any], nvml: FakeNvml) -> None:
    """The daemon makes it when it starts, and tells; a plan has nothing to do then."""
    box = make_box('[devices.partitions]\nGPU-00000000 = ["3g.40gb@4", "1g.10gb"]')
    box.wait(lambda: len(box.events("device.partitioned")) == 2)
    assert {event["text"] for event in box.events("device.partitioned")} == {
        f"{UUID}: created 3g.40gb in slots 4 to 7",
        f"{UUID}: created 1g.10gb in slot 0",
    }
    assert plan(box) == (0, ["keep 1g.10gb", "keep 3g.40gb"])
    assert [row["kind"] for row in box.call("device.list")["devices"]][:2] == ["mig", "mig"]
    assert box.stop_daemon() == 0
    nvml.reboot()
    box.start(blank=0)
    box.wait(lambda: len(box.events("device.partitioned")) == 4)


def test_an_operator_plans_and_applies(make_box: Callable[..., Any], nvml: FakeNvml) -> None:
    """The plan changes nothing and exits with 1; apply wants a yes, does it, and tells what was done."""
    box = make_box('[devices.partitions]\n0 = ["3g.40gb@4", "1g.10gb"]', FakeInstance(0, 0, 1, 14, 4))
    assert plan(box, "GPU-0") == (1, ["destroy 2g.20gb", "create 1g.10gb", "create 3g.40gb"])
    assert nvml.cuts == []
    asked = bedsit(box, "device", "partition", "apply")
    assert asked.returncode == 2
    assert "destroy 2g.20gb in memory slices 4 to 5" in asked.stderr
    assert f"Destroy 2g.20gb in memory slices 4 to 5 of {UUID} ({nvml.instances[0].uuid}) and make 2" in asked.stderr
    assert nvml.cuts == []
    done = bedsit(box, "device", "partition", "apply", "0", "--yes", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert [(row["action"], row["state"]) for row in json.loads(done.stdout)["items"]] == [
        ("destroy", "done"),
        ("create", "done"),
        ("create", "done"),
    ]
    assert plan(box)[0] == 0
    again = bedsit(box, "device", "partition", "apply")
    assert (again.returncode, again.stderr) == (0, "everything is cut as declared\n")
    assert len(nvml.cuts) == 6


def test_who_is_in_the_way_is_named_and_stays(make_box: Callable[..., Any], nvml: FakeNvml) -> None:
    """Apply begins nothing, also with --yes, and exits as for a wrong state."""
    there = FakeInstance(0, 0, 1, 14, 4)
    box = make_box('[devices.partitions]\n0 = ["7g.80gb"]', there, lines=("process 0 4242 1 1",))
    code, lines = plan(box)
    assert (code, lines) == (1, ["keep 2g.20gb", "impossible 7g.80gb"])
    done = bedsit(box, "device", "partition", "apply", "--yes")
    assert done.returncode == 3
    assert "device.busy" in done.stderr
    assert "2g.20gb in slots 4 to 5 has process 4242" in done.stderr
    assert nvml.cuts == []


def test_a_tenant_keeps_its_instance_by_its_seat(make_box: Callable[..., Any], nvml: FakeNvml) -> None:
    """Whether it computes just now or not; and what is missing is made where it sits."""
    text = '[devices]\ncreate_missing = false\n[devices.partitions]\n0 = ["1g.10gb"]'
    box = make_box(text, FakeInstance(0, 0, 1, 14, 4))
    box.tenant("vision")
    assert box.stop_daemon() == 0
    # No node of an instance is on this machine, so nobody could be given a seat on one: it is written down instead.
    seat = {"devices": [UUID], "placed": {"start": 4, "size": 2, "profile": "2g.20gb"}}
    with sqlite3.connect(box.state / "bedsit.db") as database:
        database.execute("UPDATE tenants SET device = 'mig:2g.20gb', seat = ?", (json.dumps(seat),))
    database.close()
    box.start(blank=0)
    rows = box.call("device.partition.plan")["rows"]
    kept = next(row for row in rows if row["profile"] == "2g.20gb")
    assert (kept["action"], kept["occupants"]) == ("keep", ["tenant vision"])
    assert bedsit(box, "device", "partition", "apply", "--yes").returncode == 0
    assert "-gi 0 1" not in nvml.cuts
    assert len(nvml.cuts) == 2


def test_what_failed_is_told_with_what_to_do(make_box: Callable[..., Any], nvml: FakeNvml) -> None:
    """And that the rest was not tried; exit 1."""
    text = '[devices]\ncreate_missing = false\n[devices.partitions]\n0 = ["3g.40gb", "1g.10gb"]'
    box = make_box(text, lines=("fail nvmlDeviceCreateGpuInstanceWithPlacement 0 4",))
    done = bedsit(box, "device", "partition", "apply", "--yes")
    assert done.returncode == 1
    assert [line.split("\t")[-2] for line in done.stdout.splitlines()[1:]] == ["failed", "not tried"]
    assert "nvidia-modprobe -f /proc/driver/nvidia/capabilities/mig/config" in done.stderr
    box.wait_event("device.unpartitioned")
    assert nvml.cuts == []


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"gpu": "GPU-7"}, "device.not_found"),
        ({"gpu": "MIG-1"}, "request.invalid"),
        ({"gpu": "../x"}, "request.invalid"),
        ({"gpu": 7}, "request.invalid"),
        ({"more": 1}, "request.invalid"),
    ],
)
def test_what_is_asked_for_is_checked(make_box: Callable[..., Any], args: dict[str, Any], code: str) -> None:
    """A GPU that is none, or that nothing was declared for; and a token that stands for something else."""
    box = make_box('[devices.partitions]\n0 = ["1g.10gb"]')
    with pytest.raises(BedsitError) as refused:
        box.call("device.partition.plan", **args)
    assert refused.value.code == code
    for token, wrong in (("0" * 16, "device.moved"), ("x", "request.invalid"), (1, "request.invalid")):
        with pytest.raises(BedsitError) as refused:
            box.call("device.partition.apply", token=token)
        assert refused.value.code == wrong
    with pytest.raises(BedsitError, match="missing required field"):
        box.call("device.partition.apply")


def test_a_box_that_declares_nothing_has_nothing_to_do(make_box: Callable[..., Any], nvml: FakeNvml) -> None:
    """A GPU that is not declared is its operator's."""
    box = make_box("", FakeInstance(0, 0, 1, 14, 4))
    assert plan(box) == (0, [])
    done = bedsit(box, "device", "partition", "apply", "--yes")
    assert (done.returncode, done.stderr) == (0, "no partitions are declared\n")
    assert bedsit(box, "device", "partition", "plan", "0").returncode == 4
    assert nvml.cuts == []


def test_a_configuration_that_makes_no_sense_keeps_the_daemon_down(new_box: Callable[[], Any]) -> None:
    """Exit 78, naming key and part, as for every other mistake in it."""
    box = new_box()
    box.settings["devices.partitions.0"] = ["3g"]
    assert box.launch().wait(30) == 78
    assert "devices.partitions.0: '3g' is no part of a GPU" in box.log()
