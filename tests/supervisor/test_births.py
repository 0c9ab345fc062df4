"""Slots that are born for a device, made by the daemon's own parts: real zygote, workers, groups and nodes.

The nodes stand in for a GPU's, under numbers that have no driver.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bedsit.cli.pack import open_bundle
from bedsit.ipc.errors import error
from bedsit.ipc.slot import Assignment, ModelToLoad
from bedsit.sandbox.cgroup import Limits, detect
from bedsit.sandbox.inspect import LAYERS
from bedsit.supervisor import starters
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.births import Birth
from bedsit.supervisor.config import load_config
from bedsit.supervisor.cores import Cores
from bedsit.supervisor.desk import now_text
from bedsit.supervisor.devices.watch import Devices
from bedsit.supervisor.events import Events
from bedsit.supervisor.folders import Folders, find_router_ids, make_folders
from bedsit.supervisor.generations import Generations
from bedsit.supervisor.needs import Needs
from bedsit.supervisor.records import Records
from bedsit.supervisor.recovery import Recovery
from bedsit.supervisor.registry import Registry
from bedsit.supervisor.room import Room
from bedsit.supervisor.slots import Slots
from bedsit.supervisor.uids import UidPairs
from bedsit.supervisor.zygotes import Zygotes
from tests_support.bundles import write_bundle
from tests_support.nodes import MAJOR, OWN, make_node

pytestmark = pytest.mark.root

GPU = Birth("standard", "gpu0")
DEADLINE_S = 60.0
#: Loads only where what its tenant was promised is there, and nothing else.
CURIOUS = f"""
import errno, os

def ask(path):
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as e:
        return e.errno

def build(bundle):
    assert (os.environ["BEDSIT_DEVICE"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("gpu0", "GPU-1")
    assert [ask("/dev/" + name) for name in {list(OWN)}] == [errno.ENXIO] * {len(OWN)}
    assert ask("/dev/nvidia1") == errno.ENOENT
    return lambda x: x
"""
#: A zygote whose torch believes that it has CUDA, and finds out when it is asked for a context.
BOASTING = "import torch; torch.backends.cuda.is_built = lambda: True; from bedsit.sandbox.zygote import main; main()"


class BoastingStarter(starters.ChildStarter):
    """Starts generations with a torch that cannot do what it says."""

    def _spawn(self, generation: int) -> int:
        argv = [sys.executable, "-I", "-c", BOASTING]
        argv += ["--socket", str(self._generations.socket(generation)), "--generation", str(generation)]
        null = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)
        return os.posix_spawn(sys.executable, argv, starters._ENVIRONMENT, file_actions=[null], setsid=True)


@dataclass
class Nursery:
    """A daemon's parts without a daemon. *heard* is what the lifecycle would hear."""

    root: Path
    room: Room
    slots: Slots
    zygotes: Zygotes
    heard: "asyncio.Queue[Any]"

    async def expect(self, wanted: type) -> Any:
        """The next of that kind; any other ends the test."""
        async with asyncio.timeout(DEADLINE_S):
            said = await self.heard.get()
        assert isinstance(said, wanted), said
        return said

    async def wait(self, done: Callable[[], object]) -> None:
        """Until that is so; whatever the lifecycle would hear meanwhile ends the test."""
        async with asyncio.timeout(DEADLINE_S):
            while not done():
                assert self.heard.empty(), self.heard.get_nowait()
                await asyncio.sleep(0.01)

    def later(self) -> "Nursery":
        """The same run folder under the parts of a later daemon."""
        backend = detect("later", self.room.backend.places())
        room = Room(**{f: getattr(self.room, f) for f in Room.__dataclass_fields__} | {"backend": backend})
        return Nursery(self.root, room, make_slots(room, self.heard, self.root), self.zygotes, self.heard)

    def left(self) -> list[str]:
        """What there is of any slot."""
        folders = self.room.folders
        files = [*folders.slots.iterdir(), *folders.inits.iterdir(), *folders.records.iterdir()]
        return [*map(str, files), *self.room.backend.list()]


def make_slots(room: Room, heard: "asyncio.Queue[Any]", root: Path) -> Slots:
    """Slots on a box whose one device has the nodes that lie in *root*."""

    async def needs_of(device: str) -> Needs:
        if device == "bare":
            return Needs()
        if device != "gpu0":
            raise error("device.not_found", f"no device {device}", "look for it")
        return Needs(tuple(f"{root}/dev/{name}" for name in OWN), {"CUDA_VISIBLE_DEVICES": "GPU-1"})

    return Slots(room, heard.put_nowait, lambda _slot, _text: None, needs_of=needs_of)


def make_root() -> Path:
    """A folder with a configuration, and the nodes of a MIG instance and of a neighbour's GPU."""
    root = Path(tempfile.mkdtemp(prefix="bedsit-", dir="/tmp"))
    root.chmod(0o755)
    (root / "bedsit.toml").write_text(f"uid_base = {1_300_000_000 + os.getpid() % 10_000 * 10_000}\n")
    for name, minor in {**OWN, "nvidia1": 1}.items():
        make_node(root, name, minor)
    return root


@asynccontextmanager
async def open_nursery(starter: Callable[[Generations], starters.Starter] | None = None) -> AsyncIterator[Nursery]:
    """Parts that work; everything is gone afterwards."""
    root = make_root()
    config = load_config(root / "bedsit.toml", {"run_dir": str(root / "run"), "state_dir": str(root / "state")})
    heard: asyncio.Queue[Any] = asyncio.Queue()
    folders = Folders(config.run, config.state)
    router_uid, router_gid = find_router_ids(config)
    make_folders(folders, router_uid, router_gid)
    backend = detect(f"births-{root.name}")
    zygotes = Zygotes(
        folders.zygotes,
        lambda generation, _: heard.put_nowait(generation),
        lambda _, why: heard.put_nowait(why),
        starter and starter(Generations(folders.zygotes)),
    )
    room = Room(
        config=config, folders=folders, backend=backend, zygotes=zygotes, records=Records(folders.records),
        uids=UidPairs(config.uid_base, config.uid_count), router_uid=router_uid, now=now_text,
    )  # fmt: skip
    nursery = Nursery(root, room, make_slots(room, heard, root), zygotes, heard)
    try:
        zygotes.start()
        await nursery.expect(int)
        yield nursery
    finally:
        await nursery.slots.close()
        for slot in backend.list():  # of a test that failed
            await nursery.slots.end_stranger(slot, None)
        await zygotes.close(stop=True)
        backend.remove_root()
        shutil.rmtree(root)


def run(test: Coroutine[Any, Any, None]) -> None:
    """One test in a loop of its own."""
    asyncio.run(test)


def test_a_slot_is_built_for_its_device_and_serves_there() -> None:
    """Every wall is up, its record says what it was born as, and a model finds exactly what its tenant was promised."""

    async def body() -> None:
        async with open_nursery() as nursery:
            nursery.slots.build("s1", GPU)
            assert not (await nursery.expect(on.SlotBuilt)).degraded
            live = nursery.slots.live["s1"]
            assert live.walls == dict.fromkeys(LAYERS, "on")
            assert not nursery.slots.is_measured, "what a device takes says nothing of others"
            record = nursery.room.records.load("s1")
            assert (record.birth, [node.name for node in record.nodes]) == (GPU, list(OWN))
            assert {(node.major, node.minor) for node in record.nodes} == {(MAJOR, minor) for minor in OWN.values()}

            packed = nursery.root / "curious.tar"
            with open_bundle(write_bundle(nursery.root, "curious", CURIOUS)).open() as archive:
                packed.write_bytes(archive.read())
            assignment = Assignment("a", 1, (ModelToLoad(1, "curious", 1, packed.stat().st_size),))
            limits = Limits(memory_bytes=1 << 30, pids_max=64, cpus=1.0)
            nursery.slots.assign("s1", assignment, limits, [lambda: os.open(packed, os.O_RDONLY)])
            await nursery.wait(lambda: live.manifests)  # it serves once there is a router
            assert nursery.slots.inspect("s1") == dict.fromkeys(LAYERS, "on")

            nursery.slots.build("s2")
            await nursery.expect(on.SlotBuilt)
            plain = nursery.slots.live["s2"]
            assert (plain.record.birth, plain.record.nodes) == (Birth(), ())
            assert plain.walls == dict.fromkeys(LAYERS, "on")
            for slot in ("s1", "s2"):
                nursery.slots.destroy(slot)
                await nursery.expect(on.SlotGone)
            await nursery.slots.wait_idle()
            assert nursery.left() == []

    run(body())


@pytest.mark.parametrize(
    ("device", "harm", "why"),
    [
        ("gpu0", lambda dev: (dev / "nvidia0").unlink(), "nvidia0: No such file or directory"),
        ("gpu0", lambda dev: (dev / "nvidia-uvm").chmod(0o600), "nvidia-uvm is closed to workers: mode 0600"),
        ("gpu9", lambda _: None, "no device gpu9 (look for it)"),
        ("bare", lambda _: None, "device bare has no nodes"),
    ],
)
def test_a_device_that_cannot_be_used_is_no_slot(device: str, harm: Callable[[Path], Any], why: str) -> None:
    """It is refused with a reason, and nothing is left behind; an ordinary slot is built all the same."""

    async def body() -> None:
        async with open_nursery() as nursery:
            harm(nursery.root / "dev")
            nursery.slots.build("s1", Birth("standard", device))
            assert why in (await nursery.expect(on.SlotRefused)).why
            assert nursery.left() == []
            nursery.slots.build("s2")
            await nursery.expect(on.SlotBuilt)
            nursery.slots.destroy("s2")
            await nursery.expect(on.SlotGone)
            await nursery.slots.wait_idle()

    run(body())


def test_a_device_on_which_cuda_does_not_start_is_no_slot() -> None:
    """What torch says against it is the reason, and nothing is left; without a device CUDA is not tried."""

    async def body() -> None:
        async with open_nursery(BoastingStarter) as nursery:
            nursery.slots.build("s1", GPU)
            why = (await nursery.expect(on.SlotRefused)).why
            assert why.startswith("device.degraded: CUDA does not start: ")
            assert "bedsit device list" in why
            assert nursery.left() == []
            nursery.slots.build("s2")
            await nursery.expect(on.SlotBuilt)
            nursery.slots.destroy("s2")
            await nursery.expect(on.SlotGone)
            await nursery.slots.wait_idle()

    run(body())


@pytest.mark.parametrize("knows_nodes", [True, False])
def test_a_later_daemon_adopts_it_with_its_device(*, knows_nodes: bool) -> None:
    """By its record: its nodes go on being let through. With a record that lacks them two walls are seen to be off."""

    async def body() -> None:
        async with open_nursery() as nursery:
            nursery.slots.build("s1", GPU)
            await nursery.expect(on.SlotBuilt)
            await nursery.slots.close()
            later = nursery.later()
            if not knows_nodes:
                records = later.room.records
                records.save(msgspec.structs.replace(records.load("s1"), nodes=()))
            folders, database = later.room.folders, later.room.folders.database
            registry, events = Registry(database), Events(database, 100, now_text)
            try:
                uids = UidPairs(later.room.config.uid_base, later.room.config.uid_count)
                recovery = Recovery(
                    folders,
                    later.room.backend,
                    registry,
                    later.room.records,
                    events,
                    uids,
                    later.slots,
                    Cores(registry, later.slots, Devices(lambda _: None)),
                )
                await recovery.adopt_all(nursery.heard.put_nowait)
                adopted = await nursery.expect(on.SlotAdopted)
                assert (adopted.birth, adopted.state, adopted.degraded) == (GPU, "blank", not knows_nodes)
                off = {layer for layer, state in later.slots.inspect("s1").items() if state != "on"}
                assert off == (set() if knows_nodes else {"devices", "read_only_root"})
                later.slots.destroy("s1")
                await nursery.expect(on.SlotGone)
                await later.slots.close()
            finally:
                events.close()
                registry.close()

    run(body())
