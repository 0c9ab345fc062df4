"""Real zygotes, real slots and real cgroups for tests."""

import contextlib
import dataclasses
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bedsit.ipc import seqpacket
from bedsit.sandbox.cgroup import CgroupBackend, Limits, detect
from bedsit.sandbox.cgroup.devices import NoProgram
from bedsit.sandbox.inspect import Expected, find_worker, inspect_slot
from bedsit.sandbox.nodes import Node
from bedsit.sandbox.seccomp import compile_filter

PROGRAM = Path(__file__).with_name("zygote_program.py")
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
LIMITS = Limits(memory_bytes=512 << 20, pids_max=64, cpus=1.0)
DEADLINE_S = 20.0
UID_BASE = 1_910_000_000


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Look again and again, for what the kernel sends no event about."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline_s} s"
        time.sleep(0.005)


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a worker that left no result: its wait status. Ended by a signal, or by itself with a code."""

    status: int

    @classmethod
    def by(cls, number: signal.Signals) -> "Ended":
        """Ended by a signal."""
        return cls(int(number))

    def __str__(self) -> str:
        if os.WIFSIGNALED(self.status):
            return signal.Signals(os.WTERMSIG(self.status)).name + (" and a core" if os.WCOREDUMP(self.status) else "")
        return f"exit {os.WEXITSTATUS(self.status)}"

    __repr__ = __str__


@dataclasses.dataclass
class Zygote:
    """A zygote process and a connection to it."""

    process: subprocess.Popen[bytes]
    path: Path
    sock: socket.socket

    @contextlib.contextmanager
    def connected(self) -> Iterator["Zygote"]:
        """The same zygote on a connection that lasts as long as this."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(DEADLINE_S)
            sock.connect(str(self.path))
            yield dataclasses.replace(self, sock=sock)

    def ask(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
        """One request, one answer."""
        seqpacket.send_packet(self.sock, message, fds)
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """The answer to what was asked before."""
        answer, _ = seqpacket.recv_packet(self.sock)
        assert answer is not None
        return answer


@dataclasses.dataclass
class Slot:
    """A slot that is up, and what the test holds of it."""

    id: str
    backend: CgroupBackend
    limits: Limits
    pid: int
    worker: int
    answer: dict[str, Any]
    expected: Expected
    path: Path
    build: int
    refused: list[int] = dataclasses.field(default_factory=list)

    def connect(self) -> socket.socket:
        """One more connection to the slot's init."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(DEADLINE_S)
        sock.connect(str(self.path))
        return sock

    def commit(self, nonce: str = "") -> None:
        """Let the slot outlive the test's own descriptors, and know itself by that *nonce*."""
        os.write(self.build, b"C" + nonce.encode())

    def run(self, source: str, fds: tuple[int, ...] = (), log_bytes: int = 1 << 20) -> Any:
        """Assign *source* to the slot's worker and return its `result`."""
        result = self.try_out(source, fds, log_bytes)
        assert not isinstance(result, Ended), f"the worker ended: {result}"
        return result

    def try_out(self, source: str, fds: tuple[int, ...] = (), log_bytes: int = 1 << 20) -> Any:
        """Assign *source* to the slot's worker and return its `result`, or how the worker ended without one."""
        with self.connect() as sock:
            self.assign(sock, source, fds, log_bytes)
            answer, _ = seqpacket.recv_packet(sock)
            while answer is not None and answer["op"] == "refused_call":
                self.refused.append(answer["number"])
                answer, _ = seqpacket.recv_packet(sock)
            if answer is None:  # its init went with it, as the kernel does with a whole group that is out of memory
                return Ended.by(signal.SIGKILL)
            if answer["op"] == "exited":
                return Ended(answer["status"])
            assert answer["op"] == "worker", answer
            result = json.loads(answer["body"])
            assert not (isinstance(result, dict) and "error" in result), result["error"]
            return result

    def assign(self, sock: socket.socket, source: str, fds: tuple[int, ...] = (), log_bytes: int = 1 << 20) -> None:
        """Have the slot's worker run *source*; what comes of it arrives at *sock*."""
        logs = [os.memfd_create("log") for _ in range(2)]
        message = {
            "op": "assign",
            "body": source.encode(),
            "log_bytes": log_bytes,
            "fds": ["log", "log"] + ["artifact"] * len(fds),
        }
        seqpacket.send_packet(sock, message, (*logs, *fds))
        seqpacket.close_all(logs)
        assert receive(sock) == {"op": "assigned"}

    def walls(self, **changes: Any) -> dict[str, str]:
        """The walls as seen from outside."""
        return inspect_slot(self.pid, self.worker, dataclasses.replace(self.expected, **changes))

    def kill(self) -> None:
        """End it and wait until nobody is left."""
        if self.id in self.backend.list():
            self.backend.kill(self.id)
            wait_until(lambda: not self.backend.populated(self.id), "the slot is empty")


def receive(sock: socket.socket) -> dict[str, Any]:
    """The next packet."""
    message, _ = seqpacket.recv_packet(sock)
    assert message is not None, "the peer is gone"
    return message


class House:
    """A run folder and a cgroup root, and what was made in them."""

    def __init__(self, devices: NoProgram | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bedsit-"))
        for name in ("zygotes", "slots", "inits"):
            (self.folder / name).mkdir()
        self.backend = detect(f"test-{secrets.token_hex(4)}", devices=devices)
        self.slots: list[Slot] = []
        self.zygotes: list[Zygote] = []
        self._numbers = itertools.count()

    def start_zygote(
        self, *options: str, command: tuple[str, ...] = (), environment: Mapping[str, str] = ENVIRONMENT
    ) -> Zygote:
        """A zygote that answers."""
        path = self.folder / "zygotes" / f"{next(self._numbers)}.sock"
        argv = command or (str(PROGRAM), str(path))
        argv = tuple(str(path) if word == "SOCKET" else word for word in argv)
        process = subprocess.Popen(
            [sys.executable, "-I", *argv, *options], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(DEADLINE_S)
        zygote = Zygote(process, path, sock)
        self.zygotes.append(zygote)
        wait_until(lambda: path.exists() or process.poll() is not None, "the zygote is up", 60)
        assert process.poll() is None, "the zygote ended at once"
        sock.connect(str(path))
        return zygote

    def order(self, zygote: Zygote, limits: Limits = LIMITS, **options: Any) -> Any:
        """Order a slot. Returns (answer, id, write end of the build pipe, path of the init's socket, order)."""
        slot, write, path, message = self.begin(zygote, limits, **options)
        return zygote.hear(), slot, write, path, message

    def begin(
        self,
        zygote: Zygote,
        limits: Limits = LIMITS,
        *,
        sabotage: str = "",
        joins: bool = True,
        group: int | None = None,
        profile: str = "standard",
        nodes: tuple[Node, ...] = (),
        **changes: Any,
    ) -> Any:
        """Order a slot and do not wait for the answer; *group* stands in for the folder of its cgroup2 group.

        *nodes* are those of a device that it is born for. *changes* replace fields of the request.
        *sabotage* is for a zygote that was started with --sabotage.
        """
        number = next(self._numbers)
        slot = f"s{number:08x}"
        if sabotage:
            (zygote.path.parent / f"{slot}.sabotage").write_text(sabotage)
        self.backend.create(slot, nodes)
        self.backend.set_limits(slot, limits)
        folder = self.folder / "slots" / slot
        folder.mkdir()
        os.chown(folder, 0, UID_BASE + 2 * number + 1)
        folder.chmod(0o750)
        path = self.folder / "inits" / f"{slot}.sock"
        read, write = os.pipe()
        own_group = self.backend.open_group_fd(slot)
        group = own_group if group is None else group
        fds = self.backend.open_join_fds(slot)
        message = {
            "op": "spawn",
            "slot": slot,
            "init_uid": UID_BASE + 2 * number,
            "worker_uid": UID_BASE + 2 * number + 1,
            "run_dir": str(folder),
            "tmp_bytes": 16 << 20,
            "bundle_bytes": 32 << 20,
            "profile": profile,
            "filter": compile_filter(profile, has_device=bool(nodes)),
            "init_filter": compile_filter("init"),
            "nodes": nodes,
            "fds": ["listener", "build", "group"] + ["join"] * (len(fds) if joins else 0),
            **changes,
        }
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen(8)
            seqpacket.send_packet(zygote.sock, message, (listener.fileno(), read, group, *(fds if joins else ())))
        for fd in (read, own_group, *fds):
            os.close(fd)
        return slot, write, path, message

    def spawn(self, zygote: Zygote, limits: Limits = LIMITS, **options: Any) -> Slot:
        """A slot that is up."""
        answer, slot, write, path, message = self.order(zygote, limits, **options)
        assert answer["ok"], answer
        pid = answer["pid"]
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        expected = Expected(
            slot,
            message["init_uid"],
            message["worker_uid"],
            self.backend,
            limits,
            message["bundle_bytes"],
            proven=tuple(answer["proven"]),
            nodes=message["nodes"],
        )
        made = Slot(slot, self.backend, limits, pid, find_worker(pid, children), answer, expected, path, write)
        self.slots.append(made)
        return made

    def end(self, slot: Slot) -> None:
        """End a slot, whatever is left of it, and remove its groups."""
        self.slots.remove(slot)
        os.close(slot.build)
        for pid in (slot.pid, slot.worker):  # a slot without its cgroup step is in no group of ours
            if is_of(pid, slot):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        slot.kill()
        wait_until(lambda: not is_of(slot.pid, slot), "the init is gone")
        self.backend.remove(slot.id)

    def close(self) -> None:
        """End everything, and insist that it is gone."""
        for zygote in self.zygotes:
            zygote.sock.close()
            zygote.process.kill()
            zygote.process.wait()
        for slot in tuple(self.slots):
            self.end(slot)
        for slot_id in self.backend.list():
            self.backend.kill(slot_id)
            wait_until(lambda slot_id=slot_id: not self.backend.populated(slot_id), "the group is empty")
            self.backend.remove(slot_id)
        self.backend.remove_root()
        shutil.rmtree(self.folder)


def slot_mounts() -> list[str]:
    """Mounts of slots that are seen in this process's mount namespace, where none belongs."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - tmpfs bedsit " in line]


def is_of(pid: int, slot: Slot) -> bool:
    """Whether *pid* is (still) a process of *slot*."""
    try:
        cmdline = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return slot.id.encode() in cmdline
