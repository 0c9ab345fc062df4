"""What the NVML helper tells the daemon: one packet each, checked on arrival.

The daemon asks ``{"ask": "driver"}``, ``{"ask": "gpu", "index": 0}``, ``{"ask": "listen"}``, or for the ``"processes"``
of a ``"uuid"``; and to have a GPU cut ``{"ask": "create", "uuid": "GPU-...", "profile": 9, "start": 4, "size": 4}``, or
``"finish"`` or ``"destroy"`` with ``"gpu_instance": 1`` instead of a place; and about its memory ``{"ask": "limit",
"uuid": "GPU-...", "group": "/sys/fs/cgroup/...", "limit_bytes": 1}`` or ``"lift"``. Before each call of NVML the helper
says ``{"calling": NAME}``; then come ``{"answer": ...}`` or ``{"refused": ...}``. ``{"event": ...}`` may come any time.
"""

from typing import Annotated, Any, Final, TypeVar

import msgspec

from bedsit.ipc.errors import error
from bedsit.supervisor.devices.model import Bare, Capability, MigMode, Placement, Process, Profile

#: What one GPU may have of each. More is cut off and counted.
MAX_PROCESSES: Final = 256
MAX_INSTANCES: Final = 64
NOT_HELD: Final = -2

Text = Annotated[str, msgspec.Meta(max_length=256)]
T = TypeVar("T")


class _Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class DriverReport(_Report, frozen=True):
    """The driver, and how many GPUs it has."""

    version: Text
    gpus: Annotated[int, msgspec.Meta(ge=0, le=64)]


class InstanceReport(_Report, frozen=True):
    """One MIG device: a compute instance in a GPU instance."""

    uuid: Text
    name: Text
    gpu_instance: int
    compute_instance: int
    memory_bytes: int
    sms: int
    profile: int | None = None
    placement: Placement | None = None


class GpuReport(_Report, frozen=True):
    """One GPU, as it is now."""

    uuid: Text
    name: Text
    minor: int
    pci: Text
    memory_bytes: int
    sms: int | None
    numa_node: int | None
    mig: MigMode
    mig_pending: bool
    capabilities: tuple[Capability, ...]
    profiles: tuple[Profile, ...]
    instances: Annotated[tuple[InstanceReport, ...], msgspec.Meta(max_length=MAX_INSTANCES)]
    processes: Annotated[tuple[Process, ...], msgspec.Meta(max_length=MAX_PROCESSES)]
    processes_left_out: int = 0
    bare: Annotated[tuple[Bare, ...], msgspec.Meta(max_length=MAX_INSTANCES)] = ()


class Refusal(_Report, frozen=True):
    """A call that NVML answered with an error; *code* is its nvmlReturn_t. -1: there is no nvidia-ml-py.

    NOT_HELD: it answered that all is well, and it is not. *left*: what could not be undone.
    """

    code: int
    call: Text
    text: Text
    left: Text = ""


class Happening(_Report, frozen=True):
    """What the driver reported by itself: an event's type (nvmlEventType*) and datum, for an Xid its number.

    *dropped* were not told before this one, because the daemon did not listen. *failed*: NVML refused to wait for more.
    """

    uuid: Text = ""
    type: int = 0
    datum: int = 0
    gpu_instance: int | None = None
    dropped: int = 0
    failed: Refusal | None = None


def read_report(body: object, kind: type[T]) -> T:
    """*body* as that kind of report. Raises ``wire.malformed``."""
    try:
        return msgspec.convert(body, kind, strict=True)
    except msgspec.ValidationError as e:
        raise error("wire.malformed", f"the NVML helper said something else: {e}") from None


def to_wire(report: object) -> Any:
    """The report as a packet can hold it."""
    return msgspec.to_builtins(report)
