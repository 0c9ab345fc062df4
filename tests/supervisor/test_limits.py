"""A tenant's limits from the operator's word to the kernel: live, lasting, refused by name."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.slices import LONGEST_US, list_threads
from tests_support.slices import HAS_SLICES, read_slice

pytestmark = pytest.mark.root

FILLED = """
    import torch

    def build(bundle):
        keep = torch.ones(256 << 18)  # 256 MiB
        model = torch.nn.Identity()
        model.register_buffer("keep", keep)
        return model
"""


def limits(box: Any) -> dict[str, Any]:
    """What the daemon says now."""
    found: dict[str, Any] = box.call("tenant.show", name="vision")["limits"]
    return found


def is_held(box: Any) -> bool:
    """Whether the kernel holds what the daemon says."""
    return bool(box.call("tenant.show", name="vision")["walls"]["cgroup_limits"] == "on")


def test_every_limit_changes_on_the_running_slot(shared_box: Any) -> None:
    """tenant.set reaches the kernel at once, in both directions, and leaves alone what it does not name."""
    shared_box.tenant()
    shared_box.deploy()
    (row,) = shared_box.ps(tenant="vision")
    everywhere = os.sched_getaffinity(0)

    shared_box.call("tenant.set", name="vision", cores="0", cpu_weight=300, io_bps=5 << 20)
    assert os.sched_getaffinity(row["worker_pid"]) == {0}
    assert (limits(shared_box)["cores"], limits(shared_box)["cpu_weight"], is_held(shared_box)) == ("0", 300, True)

    shared_box.call("tenant.set", name="vision", cpu_idle=True, pids=100)
    assert (limits(shared_box)["cpu_idle"], limits(shared_box)["pids"], is_held(shared_box)) == (True, 100, True)

    shared_box.call("tenant.set", name="vision", cores="all", cpu_idle=False, io_bps=0)
    assert os.sched_getaffinity(row["worker_pid"]) == everywhere
    assert limits(shared_box) == limits(shared_box) | {"cpu_idle": False, "cpu_weight": 300, "io_bps": 0, "pids": 100}
    assert is_held(shared_box)
    assert shared_box.ps(tenant="vision")[0]["slot"] == row["slot"]


def test_what_was_set_holds_for_the_next_slot_and_the_next_daemon(shared_box: Any) -> None:
    """Limits are the tenant's, not the slot's, and on disk."""
    shared_box.tenant(cores="0", cpu_weight=50)
    shared_box.deploy()
    shared_box.call("tenant.stop", name="vision")
    shared_box.call("tenant.set", name="vision", cpu_idle=True)
    shared_box.call("tenant.start", name="vision")
    shared_box.kill_daemon()
    shared_box.start()

    (row,) = shared_box.ps(tenant="vision")
    assert os.sched_getaffinity(row["worker_pid"]) == {0}
    assert (limits(shared_box)["cores"], limits(shared_box)["cpu_idle"], is_held(shared_box)) == ("0", True, True)


def find_cpu_groups(box: Any) -> dict[str, Path]:
    """The group of each tenant's slot that says what it may have of the processors."""
    return {
        row["tenant"]: path / row["slot"]
        for row in box.ps()
        for path in box.groups()
        if row["tenant"] and (path / row["slot"] / "cpu.idle").exists()
    }


def weigh(box: Any, tenant: str) -> int:
    """The weight of a tenant's slot, as the kernel has it; 100 is usual."""
    group = find_cpu_groups(box)[tenant]
    if (group / "cpu.weight").exists():
        return int((group / "cpu.weight").read_text())
    return round(int((group / "cpu.shares").read_text()) * 100 / 1024)


def test_a_guaranteed_part_of_the_processors_is_kept_whoever_comes(shared_box: Any) -> None:
    """Its slot is as heavy as that takes beside the others that there are; another daemon keeps to it."""
    for name, share in (("vision", 0.75), ("audio", 0.0)):
        shared_box.tenant(name, min_share=share)
        shared_box.deploy(name)
    assert (weigh(shared_box, "vision"), weigh(shared_box, "audio"), is_held(shared_box)) == (300, 100, True)

    shared_box.tenant("video", service_class="realtime")
    shared_box.deploy("video")
    assert [weigh(shared_box, name) for name in ("vision", "audio", "video")] == [3300, 100, 1000]

    shared_box.kill_daemon()
    shared_box.start()
    assert (weigh(shared_box, "vision"), is_held(shared_box)) == (3300, True)

    shared_box.call("tenant.delete", name="video")
    shared_box.wait(lambda: weigh(shared_box, "vision") == 300)
    shared_box.call("tenant.set", name="vision", min_share=0.0)
    assert (weigh(shared_box, "vision"), is_held(shared_box)) == (100, True)


@pytest.mark.parametrize("asked", [{"service_class": "batch"}, {"cpu_idle": True}], ids=["batch", "idle"])
def test_who_gets_what_is_left_has_a_weight_where_a_part_was_promised(shared_box: Any, asked: dict[str, Any]) -> None:
    """Nothing may be left, which is not what it was promised."""
    shared_box.tenant(**asked)
    shared_box.deploy()
    idle = find_cpu_groups(shared_box)["vision"] / "cpu.idle"
    assert idle.read_text() == "1\n"

    shared_box.call("tenant.set", name="vision", min_share=0.5)

    assert (idle.read_text(), weigh(shared_box, "vision")) == ("0\n", 100)


@pytest.mark.skipif(not HAS_SLICES, reason="the kernel has no slices of one's own (6.12)")
def test_the_class_says_how_long_others_wait_for_their_turn(shared_box: Any) -> None:
    """Every thread of a batch worker may be sent away at once by everybody else; it changes while it runs."""
    shared_box.tenant(service_class="batch")
    shared_box.deploy()
    (row,) = shared_box.ps(tenant="vision")

    def slices() -> set[int]:
        return {read_slice(thread) for thread in list_threads(row["worker_pid"])}

    assert slices() == {LONGEST_US}
    shared_box.call("tenant.set", name="vision", service_class="interactive")
    assert slices() == {read_slice(os.getpid())}


def test_the_kernels_refusal_names_file_value_and_errno_and_changes_nothing(shared_box: Any) -> None:
    """Less memory than is in use: the old values hold, in the kernel and on disk, also of what was named beside it."""
    shared_box.tenant(memory_bytes=768 << 20)
    shared_box.deploy(source=FILLED)
    before = limits(shared_box)
    with pytest.raises(BedsitError, match=r"cgroup\.refused.*memory") as refused:
        shared_box.call("tenant.set", name="vision", memory_bytes=200 << 20, pids=77, cpu_weight=7)

    assert refused.value.detail["errno"] == errno.EBUSY
    assert refused.value.detail["value"] == str(200 << 20)
    assert "memory." in refused.value.detail["file"]
    assert limits(shared_box) == before
    assert is_held(shared_box)


def test_cores_that_the_box_lacks_are_refused_with_and_without_a_slot(shared_box: Any) -> None:
    """Before anything is written down: a tenant with such a limit could never run."""
    with pytest.raises(BedsitError, match=r"cgroup\.refused: cpuset: this box has the cores .*, not 4095"):
        shared_box.tenant(cores="4095")
    assert shared_box.call("tenant.list") == []
    shared_box.tenant()
    before = limits(shared_box)
    with pytest.raises(BedsitError, match="cpuset"):
        shared_box.call("tenant.set", name="vision", cores="0,4095", pids=77)

    assert limits(shared_box) == before


@pytest.mark.parametrize("cores", ["", "0-", "1,,2", "two", "0 1", "-1", "0-1;"])
def test_what_is_no_list_of_cores_is_refused(shared_box: Any, cores: str) -> None:
    """By the shape of the request, before anybody looks at it."""
    with pytest.raises(BedsitError, match=r"request\.invalid"):
        shared_box.tenant(cores=cores)


def test_a_tenant_that_does_not_start_says_what_keeps_it(new_box: Callable[[], Any]) -> None:
    """The last slot that was refused to its profile, beside a pool of another one that is full."""
    box = new_box()
    box.settings["load_timeout_s"] = 8.0
    box.start()
    box.start_router()
    box.tenant(profile="subprocess")
    box.deploy()
    box.call("tenant.stop", name="vision")
    aside = box.run / "aside"
    (box.run / "slots").rename(aside)
    try:
        with pytest.raises(BedsitError, match=r"still starting; the last one was refused: .*No such file") as failed:
            box.call("tenant.start", name="vision")
    finally:
        aside.rename(box.run / "slots")

    assert failed.value.code == "deadline.exceeded"
