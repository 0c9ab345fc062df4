"""The observed state: one record per slot, and where the cgroups are. Versioned, atomic, below the run folder.

A record is a hint, never proof: recovery believes it only after cgroup, start time and nonce agree.
"""

from pathlib import Path
from typing import Final, Literal

import msgspec

import bedsit
from bedsit.sandbox.jail.context import Profile
from bedsit.sandbox.nodes import Node
from bedsit.supervisor.atomic import write_atomically
from bedsit.supervisor.births import Birth
from bedsit.supervisor.memory.kinds import Held
from bedsit.supervisor.placement.seating import Seat

VERSION: Final = 2
#: What msgspec raises for bytes that are no record; its own errors leave out bad UTF-8 and endless nesting.
_TORN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
#: blank: committed, nobody's. assigning: the assignment is on its way. The rest as in the lifecycle.
Phase = Literal["blank", "assigning", "loading", "serving", "draining"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the next daemon needs to find this slot again."""

    version: int = VERSION
    bedsit: str = bedsit.__version__
    slot: str
    phase: Phase
    generation: int
    init_uid: int
    worker_uid: int
    nonce: str
    init_pid: int
    init_start: int
    worker_pid: int
    started_at: str
    profile: Profile = "standard"
    #: The slice that it was born for, if any, and the nodes that it has for that.
    device: str = ""
    #: How much it may have of a GPU that others are on, too, and who holds it to that ("": it is on none).
    memory_bytes: int = 0
    held: Held = ""
    nodes: tuple[Node, ...] = ()
    #: The version of the wire that its worker speaks; 2 before this was written down.
    wire: int = 2
    #: Walls that the worker tried at its birth and found up: they cannot be seen from outside.
    proven: tuple[str, ...] = ()
    walls: dict[str, str]
    tenant: str | None = None
    models: tuple[tuple[int, int], ...] = ()
    assigned_at: str | None = None
    #: Where its tenant sat when it was given to it: taken for as long as it runs.
    seat: Seat | None = None

    @property
    def birth(self) -> Birth:
        """What it was born as."""
        return Birth(self.profile, self.device, self.memory_bytes)


class Places(msgspec.Struct, frozen=True):
    """Which state folder this run folder belongs to, and where its cgroups are."""

    instance: str
    places: dict[str, str]


class Unreadable(Exception):
    """A record that cannot be believed: torn, or of a foreign version."""


class _Version(msgspec.Struct):
    version: int


class Records:
    """The folder of records."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, record: Record) -> None:
        """Write or replace one record. Raises ``disk.full`` or ``folder.unusable``; the old one is then untouched."""
        write_atomically(self._folder / f"{record.slot}.json", msgspec.json.encode(record))

    def load(self, slot: str) -> Record:
        """Read one record. Raises Unreadable, which says why."""
        try:
            data = (self._folder / f"{slot}.json").read_bytes()
            version = msgspec.json.decode(data, type=_Version).version
            if version != VERSION:
                raise Unreadable(f"record of foreign version {version}")
            record = msgspec.json.decode(data, type=Record)
        except (OSError, *_TORN) as e:
            raise Unreadable(f"torn record: {e}") from e
        if record.slot != slot:
            raise Unreadable(f"record of slot {record.slot} under the name {slot}")
        return record

    def list(self) -> list[str]:
        """The slots that have a record."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def remove(self, slot: str) -> None:
        """Remove one record, if it is there."""
        (self._folder / f"{slot}.json").unlink(missing_ok=True)


def save_places(path: Path, places: Places) -> None:
    """Write where the cgroups are."""
    write_atomically(path, msgspec.json.encode(places))


def load_places(path: Path) -> Places | None:
    """Read where the cgroups are; None when nothing readable says so."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Places)
    except (OSError, *_TORN):
        return None
