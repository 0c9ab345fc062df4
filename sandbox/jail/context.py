"""What a slot in the making knows: who it will be, what it was given, and how far it got."""

import dataclasses
import socket
from typing import Any, Final, Literal

from bedsit.ipc import seqpacket
from bedsit.sandbox.nodes import Node

# The only two ids that exist inside a slot; everybody else, root first, is "nobody" there.
INIT_ID: Final = 1000
WORKER_ID: Final = 1001

Role = Literal["zygote", "slot", "init", "worker"]
Profile = Literal["standard", "subprocess"]
PROFILES: Final[tuple[Profile, ...]] = ("standard", "subprocess")


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A slot as the daemon ordered it. Ids are the box's, sizes are bytes.

    *profile* is what its worker may do beyond serving; *filter* and *init_filter* are seccomp programs for worker and
    init, empty on a box where none can be made. *nodes* are the device files that its worker has besides the five, and
    *env* are variables that it finds beside the usual ones.
    """

    slot: str
    init_uid: int
    worker_uid: int
    run_dir: str
    tmp_bytes: int
    bundle_bytes: int
    profile: Profile = "standard"
    filter: bytes = b""
    init_filter: bytes = b""
    nodes: tuple[Node, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class House:
    """What every slot of one zygote shares.

    *trees* are the folders that a worker may read, *samples* files in them that it must be able to read; *staging* is
    a folder of the box over which the new root is mounted (in the slot's mount namespace only), and *mount_namespace*
    the zygote's own.
    """

    trees: tuple[str, ...]
    samples: tuple[str, ...]
    staging: str
    mount_namespace: str


@dataclasses.dataclass(slots=True)
class Context:
    """One slot on its way into the jail. Steps read it, and write down what they made.

    *group* is the folder of its cgroup2 group, *joins* are files of its v1 groups, *birth* the flags of its clone.
    *refusals* tells init of system calls that are on no list; *proven* are walls that the worker tried and found up.
    """

    order: Order
    house: House
    listener: int
    build: int
    group: int
    joins: tuple[int, ...]
    report: socket.socket
    ids: tuple[int, int]
    role: Role = "zygote"
    birth: int = 0
    born_in_group: bool = False
    init_pid: int = 0
    worker_pid: int = 0
    sysctl: int = -1
    control: int = -1
    outputs: tuple[int, int] = (-1, -1)
    refusals: int = -1
    proven: list[str] = dataclasses.field(default_factory=list)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    steps_ms: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def own_id(self) -> int:
        """The uid and gid of the process that asks, as its present user namespace counts."""
        return self.ids[0] if self.role == "init" else self.ids[1]

    def tell(self, kind: str, **fields: Any) -> None:
        """Report to the zygote."""
        seqpacket.send_packet(self.report, {"kind": kind, "role": self.role, **fields})

    def ask(self, kind: str) -> None:
        """Report to the zygote and wait for its go. Raises ConnectionError when it is gone or refuses."""
        self.tell(kind)
        answer, _ = seqpacket.recv_packet(self.report)
        if answer != {"go": True}:
            raise ConnectionError(f"the zygote did not answer {kind!r}")
