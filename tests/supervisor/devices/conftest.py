"""An inventory over the fake NVML: the real helper, the real binding, the real daemon's side of both."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from bedsit.supervisor.devices.helper import Patience
from bedsit.supervisor.devices.inventory import Change
from bedsit.supervisor.devices.model import Gpu, Slice
from bedsit.supervisor.devices.partitions.declared import read_partitions
from bedsit.supervisor.devices.partitions.keeper import Partitions
from bedsit.supervisor.devices.watch import Devices, Rhythm
from bedsit.supervisor.placement.geometry import Placed
from tests_support.nvml.library import FakeNvml

DEADLINE_S = 30.0


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A machine with NVML and no GPU yet."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    return FakeNvml(tmp_path)


class Watched:
    """A running inventory, and every change that it told."""

    def __init__(self, proc: Path, rhythm: Rhythm, patience: Patience, unit: Path | None) -> None:
        self.changes: list[Change] = []
        self._moved = asyncio.Event()
        self.devices = Devices(self._hear, rhythm, patience, proc, unit)
        self.rhythm = rhythm
        #: What the keeper of the partitions told, and who sits where.
        self.told: list[tuple[str, str]] = []
        self.seats: dict[tuple[str, Placed], tuple[str, ...]] = {}
        self.partitions = self.declare({})

    def _hear(self, change: Change) -> None:
        self.changes.append(change)

    async def wait(self, done: Callable[[], Any]) -> Any:
        """Look until *done* says something true."""
        async with asyncio.timeout(DEADLINE_S):
            while not (found := done()):  # noqa: ASYNC110 - what it waits for is another process's doing
                await asyncio.sleep(0.005)
        return found

    async def wait_change(self, kind: str, says: str = "") -> Change:
        """The first change of that kind that says so."""
        found = await self.wait(
            lambda: next((each for each in self.changes if each.kind == kind and says in each.text), None)
        )
        assert isinstance(found, Change)
        return found

    def declare(self, table: Mapping[str, Sequence[str]], *, creates_missing: bool = False) -> Partitions:
        """A keeper of what *table* declares."""
        self.partitions = Partitions(
            self.devices,
            read_partitions(table),
            lambda kind, text: self.told.append((kind, text)),
            lambda: self.seats,
            creates_missing=creates_missing,
            rhythm=self.rhythm,
        )
        return self.partitions

    def gpu(self, number: int = 0) -> Gpu:
        """The GPU in that place."""
        return self.devices.box.gpus[number]

    def slices(self, kind: str) -> list[Slice]:
        """All slices of that kind."""
        return [part for part in self.devices.box.slices if part.kind == kind]

    @property
    def helper_pid(self) -> int:
        """The helper's process."""
        assert self.devices._helper is not None
        assert self.devices._helper.pid is not None
        return self.devices._helper.pid


Story = Callable[[Watched], Awaitable[None]]


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Runs a story with an inventory that looks around all the time, and ends both."""

    def run(
        story: Story,
        *,
        call_s: float = 5.0,
        round_s: float = 0.02,
        start_s: float = 20.0,
        unit: Path | None = None,
        declared: Mapping[str, Sequence[str]] | None = None,
        creates_missing: bool = True,
    ) -> None:
        async def tell() -> None:
            patience = Patience(call_s, start_s, cut_s=call_s)
            watched = Watched(tmp_path / "proc", Rhythm(round_s, 0.0, 0.01, 0.2), patience, unit)
            keeper = watched.declare(declared or {}, creates_missing=creates_missing)
            keeping = asyncio.create_task(keeper.run())
            task = asyncio.create_task(watched.devices.run())
            try:
                assert await watched.devices.wait_looked(DEADLINE_S)
                await story(watched)
                assert not task.done(), task
                assert not (keeping.done() and keeping.exception()), keeping
            finally:
                task.cancel()
                keeping.cancel()
                await asyncio.gather(task, keeping, return_exceptions=True)
                await watched.devices.close()

        asyncio.run(tell())

    before = set(psutil.Process().children())  # other tests have theirs
    yield run
    assert set(psutil.Process().children()) == before, "every helper was reaped"


@pytest.fixture
def mig_minors(tmp_path: Path) -> None:
    """The driver's list of capability nodes, as measured on an H100 (docs/gpu): it does not depend on what is cut."""
    file = tmp_path / "proc/driver/nvidia-caps/mig-minors"
    file.parent.mkdir(parents=True)
    lines, minor = ["config 1", "monitor 2"], 3
    for gpu in range(2):
        for instance in range(15):
            lines.append(f"gpu{gpu}/gi{instance}/access {minor}")
            lines += [f"gpu{gpu}/gi{instance}/ci{compute}/access {minor + 1 + compute}" for compute in range(8)]
            minor += 9
    file.write_text("\n".join(lines) + "\n")


class FakeUnit:
    """What systemd does for bedsit-nvml.socket (Accept=yes): a helper for each connection, which is its stdin."""

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        self.path = path
        self.started: list[subprocess.Popen[bytes]] = []
        self._environment = environment
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            argv = [sys.executable, "-I", "-m", "bedsit.supervisor.devices.nvml"]
            with connection:
                self.started.append(subprocess.Popen(argv, stdin=connection, env=self._environment))

    def close(self) -> None:
        """Stop listening; every helper has left by itself."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for helper in self.started:
            helper.wait(DEADLINE_S)


@pytest.fixture
def unit(tmp_path: Path, nvml: FakeNvml) -> Iterator[FakeUnit]:
    """The helper as a unit."""
    fake = FakeUnit(tmp_path / "nvml.sock", nvml.environment)
    yield fake
    fake.close()
