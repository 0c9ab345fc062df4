"""The fake library as a test has it: a folder for LD_LIBRARY_PATH, and a script that the test changes while it runs."""

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from tests_support.nvml.cards import H100, Card

_SOURCE: Final = Path(__file__).with_name("fake.c")
#: Symbols of r615 and later.
LIMITS: Final = ("nvmlDeviceGetMemoryLimits_v1", "nvmlDeviceSetMemoryLimits_v1")
NO_LIMIT: Final = (1 << 64) - 1
XID: Final = 8
DOUBLE_BIT: Final = 2
MIG_CHANGED: Final = 0x100
_NO_INSTANCE: Final = 0xFFFFFFFF


@functools.cache
def compile_fake(without: tuple[str, ...] = ()) -> bytes:
    """The library, lacking some symbols. Fails the test where there is no compiler: without it nothing is shown."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.fail("no C compiler, and the fake NVML is written in C: apt-get install gcc libc6-dev", pytrace=False)
    with tempfile.TemporaryDirectory() as folder:
        versions, library = Path(folder, "versions"), Path(folder, "library")
        hidden = "".join(f"{name}; " for name in without)
        versions.write_text("{ global: nvml*; local: " + hidden + "*; };")
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", str(_SOURCE)]
        command += ["-Wl,-soname,libnvidia-ml.so.1", f"-Wl,--version-script={versions}", "-o", str(library), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(
                f"the fake NVML does not compile (apt-get install gcc libc6-dev):\n{done.stderr}", pytrace=False
            )
        return library.read_bytes()


@dataclass(frozen=True)
class FakeGpu:
    """A card in the machine, under a number that it keeps."""

    number: int
    card: Card = H100
    mig: bool = False
    pending: bool | None = None
    limits: bool = False
    accounting: bool = False

    @property
    def uuid(self) -> str:
        """Its UUID."""
        return f"GPU-{self.number:08x}-0000-0000-0000-000000000000"

    def lines(self) -> Iterator[str]:
        """It in the script."""
        card, pending = self.card, self.mig if self.pending is None else self.pending
        flags = " ".join(str(int(flag)) for flag in (self.mig, pending, self.limits, card.gpm, self.accounting))
        major, minor = card.capability
        yield (
            f"gpu {self.number} {self.number} {card.memory_bytes} {card.cores} {major} {minor} {flags} {self.uuid} "
            f"{card.name}"
        )
        for number, ident, slices, count, sms, mb, places, name in card.profiles:
            yield f"profile {self.number} {number} {ident} {slices} {count} {sms} {mb} {places} {name}"


@dataclass(frozen=True)
class FakeInstance:
    """A MIG device: instance *gpu_instance* of GPU *number*, cut by the profile with that id at *start*."""

    number: int
    index: int
    gpu_instance: int
    profile: int
    start: int

    @property
    def uuid(self) -> str:
        """Its UUID."""
        return f"MIG-{self.number:08x}-0000-0000-0000-{self.gpu_instance:012x}"

    def line(self, card: Card) -> str:
        """It in the script."""
        _, _, _, _, sms, mb, places, name = next(row for row in card.profiles if row[1] == self.profile)
        size = next(place.partition(":")[2] for place in places.split(",") if place.startswith(f"{self.start}:"))
        return (
            f"mig {self.number} {self.index} {self.gpu_instance} 0 {sms} {mb} {self.profile} {self.start} {size} "
            f"{self.uuid} {card.name} {name}"
        )


class FakeNvml:
    """A folder with the library and its script. Changes hold from the next call of NVML on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gpus: list[FakeGpu] = []
        self.instances: list[FakeInstance] = []
        self.driver = "580.159.04"
        #: Further lines, as fake.c has them: init, process, fail, hang, die, lie.
        self.more: list[str] = []
        self._events: list[str] = []
        self._cuts = folder / "cuts"
        self.install()
        self.write()

    @property
    def environment(self) -> dict[str, str]:
        """What whoever is to find it has in its environment."""
        return {**os.environ, "LD_LIBRARY_PATH": str(self.folder)}

    def install(self, without: Collection[str] = LIMITS) -> None:
        """Put the library there, as a driver before r615 has it unless told otherwise."""
        path = self.folder / "libnvidia-ml.so.1"
        path.unlink(missing_ok=True)
        path.write_bytes(compile_fake(tuple(without)))

    def remove(self) -> None:
        """Take the library away."""
        (self.folder / "libnvidia-ml.so.1").unlink()

    def write(self) -> None:
        """Let the script say what this object does."""
        cards = {gpu.number: gpu.card for gpu in self.gpus}
        lines = [f"driver {self.driver}", *(line for gpu in self.gpus for line in gpu.lines())]
        lines += [instance.line(cards[instance.number]) for instance in self.instances]
        new = self.folder / "script.new"
        new.write_text("".join(f"{line}\n" for line in (*lines, *self.more, *self._events)))
        new.rename(self.folder / "script")

    @property
    def cuts(self) -> list[str]:
        """What was cut since, in order, as fake.c writes it: ``+gi 0 1 9 4 4``, ``+ci 0 1 0 0 3``."""
        return self._cuts.read_text().splitlines() if self._cuts.exists() else []

    @property
    def limits(self) -> list[tuple[int, int, str]]:
        """The limits of memory that were set, in order: soft, hard and the group."""
        file = self.folder / "limits"
        rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(int(soft), int(hard), group) for _, soft, hard, group in rows]

    def compute(self, number: int, uses: Mapping[int, int]) -> None:
        """Let these processes, and no others, use so many bytes of a card."""
        self.more = [line for line in self.more if not line.startswith(f"process {number} ")]
        self.more += [f"process {number} {pid} {used} {_NO_INSTANCE}" for pid, used in uses.items()]
        self.write()

    def reboot(self) -> None:
        """Forget what was cut, as a card does."""
        self._cuts.unlink(missing_ok=True)
        self.instances = []
        self.write()

    def happen(self, number: int, kind: int, datum: int, gpu_instance: int = _NO_INSTANCE) -> None:
        """Deliver an event."""
        self._events.append(f"event {number} {kind} {datum} {gpu_instance}")
        self.write()

    @contextmanager
    def saying(self, *lines: str) -> Iterator[None]:
        """Have these lines in the script meanwhile."""
        self.more += lines
        self.write()
        try:
            yield
        finally:
            for line in lines:
                self.more.remove(line)
            self.write()

    def change(self, number: int, **fields: object) -> None:
        """Change one card."""
        self.gpus = [replace(gpu, **fields) if gpu.number == number else gpu for gpu in self.gpus]  # type: ignore[arg-type]
        self.write()
