"""The helper as a unit of systemd's: no child of the daemon, which cannot kill it, and yet ends it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests_support.nvml.library import XID, FakeGpu, FakeNvml

Watch = Callable[..., None]


def test_it_is_asked_through_its_socket(watch: Watch, nvml: FakeNvml, unit: Any) -> None:
    """As a child is, and tells events as a child does."""
    nvml.gpus = [FakeGpu(0)]
    nvml.write()

    async def story(watched: Any) -> None:
        assert watched.gpu().uuid == nvml.gpus[0].uuid
        await watched.wait(lambda: watched.devices._listens)
        nvml.happen(0, XID, 31)
        await watched.wait_change("device.xid")
        assert len(unit.started) == 1

    watch(story, unit=unit.path)


def test_one_that_hangs_leaves_when_the_daemon_hangs_up(watch: Watch, nvml: FakeNvml, unit: Any) -> None:
    """Out of the call that does not return; the next one looks at the other GPUs."""
    nvml.gpus = [FakeGpu(0), FakeGpu(1)]
    nvml.write()

    async def story(watched: Any) -> None:
        with nvml.saying("hang nvmlDeviceGetName 0"):
            await watched.wait_change("device.degraded", "nvmlDeviceGetName did not return")
            await watched.wait(lambda: len(unit.started) > 1)
            assert unit.started[0].wait(20) == 0
            assert watched.gpu(1).trouble is None
        await watched.wait_change("device.recovered")

    watch(story, unit=unit.path, call_s=2.0)


def test_one_that_dies_is_followed_by_another(watch: Watch, nvml: FakeNvml, unit: Any) -> None:
    """As a child is."""
    nvml.gpus = [FakeGpu(0)]
    nvml.write()

    async def story(watched: Any) -> None:
        unit.started[0].kill()
        await watched.wait(lambda: len(unit.started) > 1 and watched.devices._listens)
        assert watched.gpu().trouble is None

    watch(story, unit=unit.path)


def test_without_its_socket_there_are_cores_only(watch: Watch, nvml: FakeNvml, tmp_path: Path) -> None:
    """And the line about it names the unit."""

    async def story(watched: Any) -> None:
        trouble = watched.devices.box.trouble
        assert "bedsit-nvml.socket does not let the daemon in (No such file or directory)" in trouble.what
        assert "systemctl enable --now bedsit-nvml.socket" in trouble.mend

    watch(story, unit=tmp_path / "nowhere.sock")
