"""The inventory over a driver that works, fails, hangs, lies and comes back: real binding, real helper process."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bedsit.supervisor.devices import faults
from bedsit.supervisor.devices.model import Placement, Process
from bedsit.supervisor.placement.cards import make_table
from bedsit.supervisor.placement.profiles import TABLES
from tests_support.nvml.cards import A30, A100, B200, H100, H200, L4, Card
from tests_support.nvml.library import DOUBLE_BIT, LIMITS, MIG_CHANGED, XID, FakeGpu, FakeInstance, FakeNvml

Watch = Callable[..., None]


def test_without_a_library_there_are_cores_only(watch: Watch, nvml: FakeNvml) -> None:
    """And one line says so, and what to do; nothing keeps running for it."""
    nvml.remove()

    async def story(watched: Any) -> None:
        box = watched.devices.box
        assert box.gpus == ()
        assert box.trouble.what == "no NVML library (libnvidia-ml.so.1): cores only"
        assert [part.kind for part in box.slices] == ["cpu"] * len(box.cpus)
        assert watched.devices._helper is None

    watch(story)


@pytest.mark.parametrize(
    ("script", "what", "mend"),
    [
        ("init 9", "no driver runs", "modprobe nvidia"),
        ("init 18", "of different versions", "reboot, or unload and load"),
        ("init 4", "may not open the driver", "/dev/nvidiactl"),
        ("init 999", "nvmlInit: Unknown Error (999)", "dmesg"),
        ("die nvmlInitWithFlags -1", "ended in nvmlInit: signal 11", "dmesg"),
    ],
)
def test_a_driver_that_does_not_open_is_explained(
    watch: Watch, nvml: FakeNvml, script: str, what: str, mend: str
) -> None:
    """What is wrong, and what to do; and the GPUs are there as soon as it is mended."""
    nvml.gpus = [FakeGpu(0)]
    nvml.more = [script]
    nvml.write()

    async def story(watched: Any) -> None:
        trouble = watched.devices.box.trouble
        assert what in trouble.what
        assert mend in trouble.mend
        nvml.more = []
        nvml.write()
        await watched.wait_change("device.found")
        assert watched.devices.box.trouble is None

    watch(story)


def test_a_library_that_is_none_is_explained(watch: Watch, nvml: FakeNvml) -> None:
    """One without nvmlInit, as a stub has it."""
    nvml.install(without=("nvmlInitWithFlags",))

    async def story(watched: Any) -> None:
        assert "lacks what every driver's has" in watched.devices.box.trouble.what

    watch(story)


def test_a_start_that_hangs_is_ended(watch: Watch, nvml: FakeNvml) -> None:
    """The daemon says which call it was, and tries again."""
    nvml.gpus = [FakeGpu(0)]
    nvml.more = ["hang nvmlInitWithFlags -1"]
    nvml.write()

    async def story(watched: Any) -> None:
        assert "nvmlInit did not return within 3 s" in watched.devices.box.trouble.what
        nvml.more = []
        nvml.write()
        await watched.wait_change("device.found")

    watch(story, start_s=3.0)


@pytest.mark.parametrize("card", [A100, A30, H100, H200, B200, L4], ids=lambda card: card.name)
def test_each_card_is_read_as_it_is(watch: Watch, nvml: FakeNvml, card: Card) -> None:
    """Whole, with MIG off: one slice for one tenant, its three nodes, and what it could be cut into."""
    nvml.gpus = [FakeGpu(0, card)]
    nvml.write()

    async def story(watched: Any) -> None:
        gpu = watched.gpu()
        assert (gpu.name, gpu.memory_bytes) == (card.name, card.memory_bytes)
        assert gpu.mig == ("off" if card.profiles else "unsupported")
        assert [(each.id, each.sms, each.count_max) for each in gpu.profiles] == [
            (row[1], row[4], row[3]) for row in card.profiles
        ]
        assert [",".join(f"{p.start}:{p.size}" for p in each.placements) for each in gpu.profiles] == [
            row[6] for row in card.profiles
        ]
        (whole,) = gpu.slices
        assert (whole.kind, whole.trust, whole.fault_domain) == ("exclusive", "isolated", gpu.uuid)
        assert whole.nodes == ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0")
        assert whole.env == {"CUDA_VISIBLE_DEVICES": gpu.uuid}

    watch(story)


@pytest.mark.parametrize(
    ("card", "model"),
    [(A100, "A100 40GB"), (A30, "A30"), (H100, "H100 80GB"), (H200, "H200"), (B200, "B200")],
    ids=str,
)
def test_the_binding_reads_back_the_tables_on_record(watch: Watch, nvml: FakeNvml, card: Card, model: str) -> None:
    """What a driver says, through NVIDIA's own binding and the helper, is the table that plans are made with."""
    nvml.gpus = [FakeGpu(0, card, mig=True)]
    nvml.write()

    async def story(watched: Any) -> None:
        table = make_table(watched.gpu())
        assert table is not None
        assert set(table.profiles) == set(TABLES[model].profiles)
        assert (table.slots, len(table.profiles)) == (TABLES[model].slots, len(TABLES[model].profiles))

    watch(story)


@pytest.mark.parametrize(("card", "sms"), [(A100, 108), (A30, 56), (H100, 132), (B200, 148)], ids=str)
def test_multiprocessors_are_counted(watch: Watch, nvml: FakeNvml, card: Card, sms: int) -> None:
    """NVML tells CUDA cores; how many make a multiprocessor depends on the architecture."""
    nvml.gpus = [FakeGpu(0, card)]
    nvml.write()

    async def story(watched: Any) -> None:
        assert watched.gpu().sms == sms

    watch(story)


def test_mig_devices_are_slices_with_their_own_nodes(watch: Watch, nvml: FakeNvml, mig_minors: None) -> None:
    """Each has what its worker needs and no more; the GPU as a whole is no slice then; indexes have holes."""
    nvml.gpus = [FakeGpu(0), FakeGpu(1, mig=True)]
    nvml.instances = [FakeInstance(1, 0, 1, 9, 4), FakeInstance(1, 3, 5, 19, 0)]
    nvml.write()

    async def story(watched: Any) -> None:
        big, small = watched.slices("mig")
        assert [part.gpu for part in watched.slices("exclusive")] == [nvml.gpus[0].uuid]
        assert (big.id, big.sms, big.profile, big.placement) == (nvml.instances[0].uuid, 60, 9, Placement(4, 4))
        assert big.env == {"CUDA_VISIBLE_DEVICES": big.id}
        assert big.fault_domain == f"{nvml.gpus[1].uuid}/gi1"
        assert small.fault_domain != big.fault_domain
        caps = (3 + 9 * 15) + 9 * 5
        assert small.nodes == (
            *("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia1"),
            *(f"/dev/nvidia-caps/nvidia-cap{caps}", f"/dev/nvidia-caps/nvidia-cap{caps + 1}"),
        )
        assert big.trouble is None

    watch(story)


def test_a_mig_device_without_capability_nodes_is_degraded(watch: Watch, nvml: FakeNvml) -> None:
    """No worker could open it; that is said, and the rest of the card is fine."""
    nvml.gpus = [FakeGpu(0, mig=True)]
    nvml.instances = [FakeInstance(0, 0, 1, 9, 4)]
    nvml.write()

    async def story(watched: Any) -> None:
        (part,) = watched.slices("mig")
        assert part.trouble == faults.NO_CAPS
        assert watched.gpu().trouble is None

    watch(story)


def test_mig_devices_come_and_go(watch: Watch, nvml: FakeNvml, mig_minors: None) -> None:
    """What the operator cuts is seen when the driver tells of it, and what is destroyed is not offered any more."""
    nvml.gpus = [FakeGpu(0, mig=True)]
    nvml.write()

    async def story(watched: Any) -> None:
        assert "nothing is cut" in watched.gpu().note
        nvml.instances = [FakeInstance(0, 0, 1, 9, 0)]
        nvml.happen(0, MIG_CHANGED, 0)
        await watched.wait(lambda: watched.slices("mig"))
        nvml.instances = [FakeInstance(0, 0, 2, 19, 0)]
        nvml.happen(0, MIG_CHANGED, 0)
        gone = await watched.wait_change("device.gone", "was destroyed")
        assert gone.device.endswith("1")
        assert [part.gpu_instance for part in watched.slices("mig")] == [2]

    watch(story, round_s=300.0)


def test_a_mode_that_changes_later_is_a_note(watch: Watch, nvml: FakeNvml) -> None:
    """It works as it does now until it is reset, and its operator is told."""
    nvml.gpus = [FakeGpu(0, pending=True)]
    nvml.write()

    async def story(watched: Any) -> None:
        assert watched.gpu().note.startswith("MIG is off, and will be on after the next reset")
        assert watched.gpu().trouble is None

    watch(story)


@pytest.mark.parametrize(
    ("library", "gpu", "found"),
    [
        ((), FakeGpu(0, limits=True), {"mig", "memory_limits", "gpm", "events"}),
        ((), FakeGpu(0, limits=False), {"mig", "gpm", "events"}),
        (LIMITS, FakeGpu(0, limits=True), {"mig", "gpm", "events"}),
        (("nvmlGpmQueryDeviceSupport",), FakeGpu(0), {"mig", "events"}),
        (("nvmlDeviceGetSupportedEventTypes",), FakeGpu(0), {"mig", "gpm"}),
        (("nvmlDeviceGetMigMode",), FakeGpu(0), {"gpm", "events"}),
        ((), FakeGpu(0, L4, accounting=True), {"accounting", "events"}),
    ],
    ids=str,
)
def test_what_a_driver_can_do_is_tried(
    watch: Watch, nvml: FakeNvml, library: tuple[str, ...], gpu: FakeGpu, found: set[str]
) -> None:
    """Whatever it calls itself: by asking, on a driver that has the symbol and one that has not."""
    nvml.driver = "999.1"
    nvml.install(without=library)
    nvml.gpus = [gpu]
    nvml.write()

    async def story(watched: Any) -> None:
        assert set(watched.gpu().capabilities) == found

    watch(story)


def test_processes_on_a_gpu_are_seen(watch: Watch, nvml: FakeNvml) -> None:
    """With their memory, and where the driver does not tell it without."""
    nvml.gpus = [FakeGpu(0)]
    nvml.more = [f"process 0 4242 {1 << 30} 4294967295", f"process 0 4243 {2**64 - 1} 4294967295"]
    nvml.write()

    async def story(watched: Any) -> None:
        assert watched.gpu().processes == (Process(4242, 1 << 30), Process(4243, None))

    watch(story)


def test_more_processes_than_anybody_reads_are_cut_off(watch: Watch, nvml: FakeNvml) -> None:
    """A crowd on the GPU neither breaks a packet nor hides the GPU."""
    nvml.gpus = [FakeGpu(0)]
    nvml.more = [f"process 0 {pid} 1 4294967295" for pid in range(1, 400)]
    nvml.write()

    async def story(watched: Any) -> None:
        assert len(watched.gpu().processes) == 256
        assert watched.gpu().trouble is None

    watch(story)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("fail * 1 15", "the GPU is lost"),
        ("fail nvmlDeviceGetMemoryInfo 1 15", "the GPU is lost"),
        ("fail nvmlDeviceGetMigMode 1 16", "has to be reset"),
        ("fail nvmlDeviceGetHandleByIndex_v2 1 19", "is being changed by another program"),
        ("fail nvmlDeviceGetName 1 999", "nvmlDeviceGetName: Unknown Error (999)"),
        ("hang nvmlDeviceGetMemoryInfo 1", "nvmlDeviceGetMemoryInfo did not return within 2 s"),
        ("hang nvmlDeviceGetHandleByIndex_v2 1", "nvmlDeviceGetHandleByIndex did not return"),
        ("die nvmlDeviceGetName 1", "ended in nvmlDeviceGetName: signal 11"),
    ],
)
def test_a_gpu_that_fails_is_degraded_and_the_others_run_on(
    watch: Watch, nvml: FakeNvml, fault: str, what: str
) -> None:
    """It stays in the inventory with why; it is back when it answers again; the others are looked at all the time."""
    nvml.gpus = [FakeGpu(0), FakeGpu(1), FakeGpu(2)]
    nvml.write()

    async def story(watched: Any) -> None:
        with nvml.saying(fault):
            degraded = await watched.wait_change("device.degraded")
            assert degraded.device == nvml.gpus[1].uuid
            assert what in degraded.text
            assert what in watched.gpu(1).trouble.what
            assert watched.gpu(1).slices[0].trouble is not None
            assert [watched.gpu(number).trouble for number in (0, 2)] == [None, None]
            nvml.more.append("process 2 77 1 4294967295")
            nvml.write()
            await watched.wait(lambda: watched.gpu(2).processes)
        recovered = await watched.wait_change("device.recovered")
        assert recovered.device == nvml.gpus[1].uuid
        assert watched.gpu(1).trouble is None
        assert {change.device for change in watched.changes if change.kind == "device.degraded"} == {degraded.device}

    watch(story, call_s=2.0)


def test_a_gpu_that_hangs_from_the_start_is_listed_by_its_place(watch: Watch, nvml: FakeNvml) -> None:
    """Nobody knows its name then; when it answers it has one."""
    nvml.gpus = [FakeGpu(0), FakeGpu(1)]
    nvml.more = ["hang nvmlDeviceGetUUID 0"]
    nvml.write()

    async def story(watched: Any) -> None:
        await watched.wait(lambda: len(watched.devices.box.gpus) == 2)
        assert [gpu.uuid for gpu in watched.devices.box.gpus] == ["gpu0", nvml.gpus[1].uuid]
        assert watched.gpu().slices == ()
        nvml.more = []
        nvml.write()
        await watched.wait(lambda: watched.gpu().uuid == nvml.gpus[0].uuid)
        assert len(watched.devices.box.gpus) == 2

    watch(story, call_s=2.0)


def test_a_gpu_that_vanished_is_kept_as_degraded(watch: Watch, nvml: FakeNvml) -> None:
    """Tenants may be on it: it is not forgotten, though another one has its place now; and it may come back."""
    nvml.gpus = [FakeGpu(0), FakeGpu(1)]
    nvml.write()

    async def story(watched: Any) -> None:
        both = nvml.gpus
        nvml.gpus = both[1:]
        nvml.write()
        gone = await watched.wait_change("device.gone")
        assert gone.device == both[0].uuid
        known = {gpu.uuid: gpu.trouble for gpu in watched.devices.box.gpus}
        assert known == {both[0].uuid: faults.GONE, both[1].uuid: None}
        nvml.gpus = both
        nvml.write()
        await watched.wait_change("device.recovered")

    watch(story)


def test_a_driver_that_goes_takes_all_gpus_with_it(watch: Watch, nvml: FakeNvml) -> None:
    """They are degraded and not forgotten; when it is back, so are they."""
    nvml.gpus = [FakeGpu(0), FakeGpu(1)]
    nvml.write()

    async def story(watched: Any) -> None:
        with nvml.saying("fail nvmlDeviceGetCount_v2 -1 18", "init 18"):
            await watched.wait(lambda: sum(c.kind == "device.degraded" for c in watched.changes) == 2)
            assert "different versions" in watched.devices.box.trouble.what
        await watched.wait(lambda: sum(c.kind == "device.recovered" for c in watched.changes) == 2)

    watch(story)


def test_a_program_s_xid_is_told_and_harms_nothing(watch: Watch, nvml: FakeNvml) -> None:
    """With its meaning in words."""
    nvml.gpus = [FakeGpu(0)]
    nvml.write()

    async def story(watched: Any) -> None:
        await watched.wait(lambda: watched.devices._listens)
        nvml.happen(0, XID, 31, 2)
        told = await watched.wait_change("device.xid")
        assert told.text == "Xid 31: a program touched GPU memory that is not its own, MIG instance 2"
        assert watched.gpu().trouble is None

    watch(story, round_s=300.0)


@pytest.mark.parametrize(
    ("kind", "datum", "what"), [(XID, 79, "fallen off the bus"), (DOUBLE_BIT, 1, "not be corrected")]
)
def test_what_breaks_a_gpu_stays_until_it_was_reset(
    watch: Watch, nvml: FakeNvml, kind: int, datum: int, what: str
) -> None:
    """It may answer as if nothing had been: a reset mends it, and that needs the daemon's end."""
    nvml.gpus = [FakeGpu(0), FakeGpu(1)]
    nvml.write()

    async def story(watched: Any) -> None:
        await watched.wait(lambda: watched.devices._listens)
        nvml.happen(1, kind, datum)
        told = await watched.wait_change("device.degraded")
        assert told.device == nvml.gpus[1].uuid
        assert what in told.text
        assert "nvidia-smi -r" in told.text
        with nvml.saying("fail nvmlDeviceGetName 1 15"):
            await watched.wait(lambda: watched.devices._inventory._known[told.device].unread)
        await watched.wait(lambda: not watched.devices._inventory._known[told.device].unread)
        assert what in watched.gpu(1).trouble.what
        assert watched.gpu(0).trouble is None
        assert [change.kind for change in watched.changes if change.device == told.device][-1] == "device.degraded"

    watch(story)


def test_a_storm_of_xids_is_bounded_and_counted(watch: Watch, nvml: FakeNvml) -> None:
    """Tenants' programs cause them; the ring of events is not theirs to fill."""
    nvml.gpus = [FakeGpu(0)]
    nvml.write()

    async def story(watched: Any) -> None:
        await watched.wait(lambda: watched.devices._listens)
        for _ in range(60):
            nvml.happen(0, XID, 13)
        await watched.wait(lambda: watched.devices._untold == 44)
        assert sum(change.kind == "device.xid" for change in watched.changes) == 16

    watch(story, round_s=300.0)


def test_a_helper_that_is_killed_is_followed_by_another(watch: Watch, nvml: FakeNvml) -> None:
    """Nothing is degraded by that, and events are heard again."""
    nvml.gpus = [FakeGpu(0)]
    nvml.write()

    async def story(watched: Any) -> None:
        first = watched.helper_pid
        os.kill(first, signal.SIGKILL)
        await watched.wait(lambda: watched.devices._helper and watched.helper_pid != first)
        await watched.wait(lambda: watched.devices._listens)
        nvml.happen(0, XID, 43)
        await watched.wait_change("device.xid")

    watch(story)


def test_a_helper_that_stops_is_ended(watch: Watch, nvml: FakeNvml) -> None:
    """As one that hangs, wherever it does."""
    nvml.gpus = [FakeGpu(0)]
    nvml.write()

    async def story(watched: Any) -> None:
        first = watched.helper_pid
        os.kill(first, signal.SIGSTOP)
        await watched.wait(lambda: watched.devices._helper and watched.helper_pid != first)

    watch(story, call_s=2.0)


def test_the_fake_has_the_tables_that_were_measured(nvml: FakeNvml) -> None:
    """The H100's, number for number."""
    import json

    report = json.loads((Path(__file__).parents[3] / "docs/gpu/2026-11-26-h100.json").read_text())
    data = {check["name"]: check["data"] for check in report["checks"]}
    measured = [
        (
            *(row["enum"], row["id"], row["sliceCount"], row["instanceCount"]),
            *(row["multiprocessorCount"], row["memorySizeMB"]),
            ",".join(f"{start}:{size}" for start, size in row["placements"]),
            row["name"],
        )
        for row in data["T16"]["profiles"]
    ]
    assert list(H100.profiles) == measured
    nvml_data = data["nvml"]
    assert H100.name == nvml_data["Name"]["value"]
    assert H100.memory_bytes == nvml_data["MemoryInfo"]["value"]["total"]
    assert H100.cores == nvml_data["NumGpuCores"]["value"]
    assert list(H100.capability) == nvml_data["CudaComputeCapability"]["value"]


def test_without_the_fake_these_tests_find_no_gpu(watch: Watch, nvml: FakeNvml) -> None:
    """What they see comes through the library and from nowhere else."""
    nvml.gpus = [replace(FakeGpu(0))]
    nvml.write()
    nvml.remove()

    async def story(watched: Any) -> None:
        with pytest.raises(IndexError):
            watched.gpu()

    watch(story)
