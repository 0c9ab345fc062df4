"""The driver's limits of memory are set and taken back, or it is said why not: real binding, real helper process."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bedsit.sandbox.cgroup import CgroupBackend, detect
from bedsit.supervisor.births import MEMORY_VARIABLE, Birth
from bedsit.supervisor.devices import faults
from bedsit.supervisor.devices.model import Process
from bedsit.supervisor.devices.reports import MAX_PROCESSES
from bedsit.supervisor.devices.watch import Undone
from bedsit.supervisor.memory.holder import Holder
from bedsit.supervisor.placement.cards import list_cards
from bedsit.supervisor.placement.seating import CONTEXT_BYTES, LEAST_BYTES
from tests_support.nvml.library import NO_LIMIT, FakeGpu, FakeNvml

Watch = Callable[..., None]
MIB, GIB = 1 << 20, 1 << 30
UUID = FakeGpu(0).uuid


@pytest.fixture
def card(nvml: FakeNvml) -> FakeNvml:
    """A whole H100 whose driver limits memory."""
    nvml.install(without=())
    nvml.gpus = [FakeGpu(0, limits=True)]
    nvml.write()
    return nvml


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """Where a slot's group would be."""
    (tmp_path / "group").mkdir()
    return tmp_path / "group"


async def limit(watched: Any, group: Path, limit_bytes: int) -> int:
    """Set a limit."""
    question = {"ask": "limit", "uuid": UUID, "group": str(group), "limit_bytes": limit_bytes}
    return int(await watched.devices.order(int, faults.explain_memory, **question))


async def lift(watched: Any, group: Path) -> None:
    """Take it back."""
    await watched.devices.order(int, faults.explain_memory, ask="lift", uuid=UUID, group=str(group))


def test_a_limit_is_set_in_whole_steps_and_taken_back(watch: Watch, card: FakeNvml, group: Path) -> None:
    """Soft and hard are the same; afterwards nothing is reserved."""

    async def story(watched: Any) -> None:
        assert await limit(watched, group, 5 * GIB + 12345) == 5 * GIB
        assert card.limits == [(5 * GIB, 5 * GIB, str(group))]
        await lift(watched, group)
        assert card.limits[-1] == (0, NO_LIMIT, str(group))

    watch(story)


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("fail nvmlDeviceSetMemoryLimits_v1 0 3", "limits no memory now"),
        ("fail nvmlDeviceSetMemoryLimits_v1 0 4", "may not limit memory"),
        ("fail nvmlDeviceSetMemoryLimits_v1 0 999", "Unknown Error"),
        ("die nvmlDeviceSetMemoryLimits_v1 0", "signal 11"),
        ("hang nvmlDeviceSetMemoryLimits_v1 0", "did not return within 1 s"),
    ],
)
def test_a_limit_that_is_refused_or_hangs_is_explained(
    watch: Watch, card: FakeNvml, group: Path, script: str, what: str
) -> None:
    """Nothing has changed then, and the next one works when the driver does."""

    async def story(watched: Any) -> None:
        with card.saying(script), pytest.raises(Undone) as undone:
            await limit(watched, group, GIB)
        assert what in undone.value.trouble.what
        assert card.limits == []
        assert await limit(watched, group, GIB) == GIB

    watch(story, call_s=1.0)


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("lie 0 123", "does not hold the limit"),
        ("fail nvmlDeviceGetMemoryLimits_v1 0 17", "nvmlDeviceGetMemoryLimits_v1"),
    ],
)
def test_a_limit_that_does_not_read_back_is_none(
    watch: Watch, card: FakeNvml, group: Path, script: str, what: str
) -> None:
    """It is taken back before that is told."""

    async def story(watched: Any) -> None:
        with card.saying(script), pytest.raises(Undone) as undone:
            await limit(watched, group, GIB)
        assert what in undone.value.trouble.what
        assert card.limits == [(GIB, GIB, str(group)), (0, NO_LIMIT, str(group))]

    watch(story)


def test_more_than_the_card_has_and_a_group_that_has_gone_are_no_limits(
    watch: Watch, card: FakeNvml, group: Path
) -> None:
    """Both are said; so is a driver that never heard of such a thing."""

    async def story(watched: Any) -> None:
        for where, size, what in ((group, 1 << 41, "takes no such limit"), (group / "no", GIB, "not there any more")):
            with pytest.raises(Undone) as undone:
                await limit(watched, where, size)
            assert what in undone.value.trouble.what
        card.install()
        os.kill(watched.helper_pid, 9)
        await watched.wait(lambda: "memory_limits" not in watched.gpu().capabilities)
        with pytest.raises(Undone):
            await limit(watched, group, GIB)

    watch(story)


def test_who_computes_is_told_with_the_largest_first(watch: Watch, card: FakeNvml) -> None:
    """However many there are: who hides behind many small ones is still seen."""
    card.compute(0, {100 + number: MIB for number in range(MAX_PROCESSES + 20)} | {99: 40 * GIB})

    async def story(watched: Any) -> None:
        found = await watched.devices.list_processes(UUID)
        assert (found[0], len(found)) == (Process(99, 40 * GIB), MAX_PROCESSES)

    watch(story)


@pytest.fixture
def backend() -> Iterator[CgroupBackend]:
    """Real groups, with one for a slot."""
    found = detect(f"memory-{os.getpid()}")
    found.create("s1")
    yield found
    found.remove("s1")
    found.remove_root()


@pytest.mark.root
def test_a_limit_is_found_again_on_its_group_by_whoever_comes_later(
    watch: Watch, card: FakeNvml, backend: CgroupBackend
) -> None:
    """Another daemon takes it back, knowing nothing of it but the group; one without a limit is let alone."""

    async def story(watched: Any) -> None:
        told: list[str] = []
        holder = Holder(watched.devices, backend, lambda _slot, text: told.append(text))
        await holder.let_go("s1")
        assert await holder.hold("s1", Birth("standard", UUID, GIB)) == "driver"
        await Holder(watched.devices, backend, lambda *_: None).let_go("s1")
        group = str(backend.group("s1"))
        assert card.limits == [(GIB, GIB, group), (0, NO_LIMIT, group)]
        assert told == []

    watch(story)


@pytest.mark.root
def test_a_driver_that_fails_costs_no_slot_and_is_left_alone(
    watch: Watch, card: FakeNvml, backend: CgroupBackend
) -> None:
    """The slot is watched instead; that is said once, and the driver not asked again for each slot."""

    async def story(watched: Any) -> None:
        told: list[str] = []
        holder = Holder(watched.devices, backend, lambda _slot, text: told.append(text))
        with card.saying("fail nvmlDeviceSetMemoryLimits_v1 0 999"):
            assert await holder.hold("s1", Birth("standard", UUID, GIB)) == "soft"
        assert await holder.hold("s1", Birth("standard", UUID, GIB)) == "soft"
        assert len(told) == 1
        assert "watched only" in told[0]
        assert card.limits == []
        assert await holder.hold("s1", Birth("standard", UUID)) == "hardware"
        assert await holder.hold("s1", Birth()) == ""

    watch(story)


@pytest.mark.root
def test_the_context_of_a_blank_slot_is_measured_and_counts_from_then_on(
    watch: Watch, card: FakeNvml, backend: CgroupBackend
) -> None:
    """Of its own processes alone; before, and where it makes no sense, it is the one on record."""

    async def story(watched: Any) -> None:
        holder = Holder(watched.devices, backend, lambda *_: None)
        birth = Birth("standard", UUID, 4 * GIB)
        await holder.meet("s1", birth, "")
        assert holder.contexts == {}
        child = await asyncio.create_subprocess_exec("sleep", "60")
        try:
            (backend.group("s1") / "cgroup.procs").write_text(str(child.pid))
            card.compute(0, {child.pid: 612 * MIB, os.getpid(): 9 * GIB})
            await holder.meet("s1", birth, "")
        finally:
            child.kill()
            await child.wait()
        assert holder.contexts == {UUID: 612 * MIB}
        (known,) = [each for each in list_cards(watched.devices.box, holder.contexts) if each.is_gpu]
        (usual,) = [each for each in list_cards(watched.devices.box) if each.is_gpu]
        assert (known.context_bytes, usual.context_bytes) == (612 * MIB, CONTEXT_BYTES)
        assert holder.describe(birth)[MEMORY_VARIABLE] == str(4 * GIB - 612 * MIB)
        assert holder.describe(Birth("standard", UUID, MIB))[MEMORY_VARIABLE] == str(LEAST_BYTES)

    watch(story)
