"""What slots are made of, and one slot that runs with our ends of it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bedsit.sandbox.cgroup import CgroupBackend, Limits
from bedsit.supervisor.config import Config
from bedsit.supervisor.folders import Folders
from bedsit.supervisor.records import Record, Records
from bedsit.supervisor.uids import UidPairs
from bedsit.supervisor.watch import EndWatch, PacketLink
from bedsit.supervisor.zygotes import Zygotes


@dataclass
class LiveSlot:
    """A slot that runs, and our ends of it. *manifests* are what its worker answered, by index of its models."""

    record: Record
    limits: Limits
    link: PacketLink | None = None
    watch: EndWatch | None = None
    hello: asyncio.Future[dict[str, Any]] | None = None
    #: What its blank worker says of the device that it was born for; None where nobody waits for that.
    device: asyncio.Future[bytes] | None = None
    manifests: dict[int, bytes] = field(default_factory=dict)
    ended: bool = False
    status: int | None = None
    #: When it was given to its tenant (monotonic), and the model version that it loads.
    assigned_s: float | None = None
    loads: tuple[int, int] | None = None
    #: The last look at its walls, and when that was (monotonic); None until this daemon has looked itself.
    walls: Mapping[str, str] = field(default_factory=dict)
    walls_read_at: float | None = None
    #: What came before the lifecycle knew of the slot; None once it does.
    held: list[dict[str, Any]] | None = field(default_factory=list)


@dataclass(frozen=True)
class Room:
    """What slots are made of."""

    config: Config
    folders: Folders
    backend: CgroupBackend
    zygotes: Zygotes
    records: Records
    uids: UidPairs
    router_uid: int
    now: Callable[[], str]
