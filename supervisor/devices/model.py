"""``Box → Gpu → Slice``: what a box computes with, as it was seen last. Values only; nothing here asks anybody.

A slice is what compute is handed out in. Cores are slices like any other, so a box without a GPU runs the same code.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from bedsit.sandbox.cgroup.cores import format_cores

#: A part cut by the hardware, a whole GPU for one tenant, a GPU or cores that several take turns on, or cores.
Kind = Literal["mig", "exclusive", "timeslice", "cpu"]
#: What a tenant that attacks its neighbours meets: a wall, or only protection from accidents.
Trust = Literal["isolated", "accidents"]
#: Found by trial, never by a version: MIG, driver limits of memory, profiling counters, accounting that is on, events.
Capability = Literal["mig", "memory_limits", "gpm", "accounting", "events"]
MigMode = Literal["unsupported", "off", "on"]

TRUST: Final[Mapping[Kind, Trust]] = {
    "mig": "isolated",
    "exclusive": "isolated",
    "timeslice": "accidents",
    "cpu": "isolated",
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something cannot be used as it should be, and what to do about it. One line each."""

    what: str
    mend: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a MIG instance lies, or may lie: its first memory slice, and how many it takes."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Profile:
    """A size of MIG instance that a GPU can be cut into, and every place where one may lie.

    *id* is what NVML creates instances by (19), not its place in NVML's enumeration (0).
    """

    id: int
    name: str
    slices: int
    memory_bytes: int
    sms: int
    count_max: int
    placements: tuple[Placement, ...]


@dataclass(frozen=True, slots=True)
class Bare:
    """A GPU instance without a compute instance: nobody can be in it, and it takes its place."""

    gpu_instance: int
    profile: int
    placement: Placement


@dataclass(frozen=True, slots=True)
class Process:
    """A process that computes on a GPU, whoever started it. Memory is None where the driver does not tell."""

    pid: int
    memory_bytes: int | None
    gpu_instance: int | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """One thing to compute on. *id* stays the same: a UUID of the driver's, or ``cpu0`` for the cores of NUMA node 0.

    *fault_domain* names what fails together: slices with the same one do. *nodes* are the device files that a worker
    needs and *env* what has to be in its environment.
    """

    id: str
    kind: Kind
    name: str
    memory_bytes: int
    fault_domain: str
    gpu: str | None = None
    minor: int | None = None
    sms: int | None = None
    profile: int | None = None
    placement: Placement | None = None
    gpu_instance: int | None = None
    compute_instance: int | None = None
    cores: tuple[int, ...] = ()
    numa_node: int | None = None
    nodes: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[Capability, ...] = ()
    trouble: Trouble | None = None

    @property
    def trust(self) -> Trust:
        """Whom it may be shared beside. On cores the kernel is the wall, whose turn it is or not."""
        return "isolated" if self.cores else TRUST[self.kind]

    @property
    def cpuset(self) -> str:
        """Its cores as the kernel writes them: ``0-3,6``."""
        return format_cores(frozenset(self.cores))


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card. One that was never read has only its *index* for a name; its slices are empty then.

    *trouble* makes all of its slices unusable; *note* is only something that its operator should know.
    """

    uuid: str
    index: int
    name: str = ""
    minor: int | None = None
    pci: str = ""
    memory_bytes: int = 0
    sms: int | None = None
    numa_node: int | None = None
    mig: MigMode = "unsupported"
    mig_pending: bool = False
    capabilities: tuple[Capability, ...] = ()
    profiles: tuple[Profile, ...] = ()
    processes: tuple[Process, ...] = ()
    slices: tuple[Slice, ...] = ()
    bare: tuple[Bare, ...] = ()
    note: str = ""
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """Everything that this machine computes with. *trouble* says why no GPU can be looked at, if so.

    *shared*: sets of cores that tenants take turns on; *cpus*: the others. *is_counted*: every GPU there is was asked.
    """

    cpus: tuple[Slice, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    trouble: Trouble | None = None
    shared: tuple[Slice, ...] = ()
    is_counted: bool = True

    @property
    def slices(self) -> Iterator[Slice]:
        """All of them, GPUs first."""
        for gpu in self.gpus:
            yield from gpu.slices
        yield from self.shared
        yield from self.cpus
