"""A data plane without jail or daemon: the real router as a process, real workers as processes, snapshots by file."""

import contextlib
import hashlib
import io
import itertools
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import zmq

from bedsit.ipc import snapshot as snapshots
from bedsit.ipc import wire
from bedsit.ipc.arena import Arena
from bedsit.ipc.door import Door, read_model_list
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.frames import recv_frame, send_frame
from bedsit.ipc.manifest import parse_manifest
from bedsit.ipc.seqpacket import recv_bytes, recv_packet, send_bytes, send_packet
from bedsit.ipc.slot import (
    Assignment,
    ModelToLoad,
    Note,
    Report,
    Word,
    decode_note,
    decode_report,
    encode_assignment,
    encode_note,
)
from bedsit.ipc.snapshot import KeyView, ModelView, SlotView, Snapshot, TenantView, VersionView
from tests_support.holder import Holder

ROUTER_UID = 1_899_999_999
WORKER_UID = 1_899_999_900
DEADLINE_S = 30.0

Files = Mapping[str, str | bytes]

# A model whose first input element says what to do, and whose folder is how a test and it talk.
GATE = """
import os, signal, time

def build(bundle):
    here = bundle.path
    def call(x):
        order = int(x[0]) if x.numel() else 0
        if order == 1:
            (here / "entered").touch()
            while not (here / "go").exists():
                time.sleep(0.002)
        if order == 2:
            raise RuntimeError("told to")
        if order == 3:
            os._exit(3)
        return x + 1
    return call
"""
GATE_TOML = """
name = "gate"
runner = "python"
entry = "model:build"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1]
"""
GATE_BUNDLE: Files = {"bedsit.toml": GATE_TOML, "model.py": GATE}

# Imports torch once and forks workers, as a zygote does; without a jail.
NURSERY = """
import os, signal, socket, sys
from pathlib import Path
from bedsit.ipc.seqpacket import recv_packet, send_packet
from bedsit.sandbox.worker.serve import run

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
link = socket.socket(fileno=int(sys.argv[1]))
while True:
    order, fds = recv_packet(link, 1)
    if order is None:
        os._exit(0)
    pid = os.fork()
    if pid == 0:
        link.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1), os.dup2(log, 2), os.close(log)
        uid = order["uid"]
        os.setgroups([]), os.setresgid(uid, uid, uid), os.setresuid(uid, uid, uid)
        os.environ["HOME"] = "/tmp"
        run(fds[0], order["slot"], order["run_dir"], Path(order["bundles"]))
    for fd in fds:
        os.close(fd)
    send_packet(link, {"pid": pid})
"""


def gate_toml(name: str = "gate", batch: str = "") -> str:
    """The declaration of the gate model under another name, with what is to stand in ``[batch]``."""
    return GATE_TOML.replace('"gate"', f'"{name}"') + (f"[batch]\n{batch}\n" if batch else "")


def gate_manifest(name: str = "gate", batch: str = "") -> bytes:
    """The same, as a worker would report it."""
    return parse_manifest(tomllib.loads(gate_toml(name, batch))).encode()


def wait_until(condition: Callable[[], Any], timeout_s: float = DEADLINE_S) -> Any:
    """The first true value of *condition*; fails after *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return value


def fill(try_send: Callable[[bytes], bool], packet: bytes) -> int:
    """Send *packet* as fast as one can until it is refused; how many were taken."""
    deadline = time.monotonic() + DEADLINE_S
    count = 0
    while try_send(packet):
        count += 1
        assert time.monotonic() < deadline, "everything is taken"
    return count


def pack(files: Files) -> bytes:
    """An archive of *files*."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Nursery:
    """Where workers come from."""

    def __init__(self) -> None:
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.settimeout(120)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", NURSERY, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        theirs.close()

    def fork(self, control: socket.socket, order: Mapping[str, Any]) -> "Worker":
        """A new worker whose init is the other end of *control*."""
        send_packet(self._link, order, [control.fileno()])
        answer, _ = recv_packet(self._link)
        assert answer is not None
        return Worker(answer["pid"], Path(order["log"]))

    def close(self) -> None:
        """No more workers."""
        self._link.close()
        self._process.wait(DEADLINE_S)


class Worker:
    """A worker process, held by its pidfd."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self._pidfd = os.pidfd_open(pid)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal."""
        signal.pidfd_send_signal(self._pidfd, signum)

    def wait(self) -> None:
        """Wait for its end."""
        assert select.select([self._pidfd], [], [], DEADLINE_S)[0], "the worker does not end"

    def close(self) -> None:
        """End it for sure."""
        if self._pidfd >= 0:
            if not select.select([self._pidfd], [], [], 0)[0]:
                self.kill()
                self.wait()
            os.close(self._pidfd)
            self._pidfd = -1


class Plane:
    """One router, its snapshot, and the workers of its tenants; the daemon's part is played by the test."""

    bundle = GATE_BUNDLE
    deadline_s = DEADLINE_S

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        self.run_dir = folder
        self.tenants: dict[str, TenantView] = {}
        self.slots: dict[str, SlotView] = {}
        self.workers: dict[str, Worker] = {}
        self.controls: dict[str, socket.socket] = {}
        self.hostile: list[Any] = []
        self.heard: list[dict[str, Any]] = []
        self.instance = "test"
        self.parallel = 0
        self.devices: list[snapshots.DeviceView] = []
        self._nursery = nursery
        self._serial = itertools.count(1)
        folder.chmod(0o755)
        for name in ("router", "slots", "bundles", "artifacts"):
            (folder / name).mkdir()
        os.chown(folder / "router", ROUTER_UID, ROUTER_UID)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(folder / "control.sock"))
        os.chown(folder / "control.sock", ROUTER_UID, ROUTER_UID)
        self._listener.listen(4)
        self._listener.settimeout(DEADLINE_S)
        self.daemon: socket.socket | None = None
        self.router: subprocess.Popen[bytes] | None = None
        self.router_log = folder / "router.log"

    wait_until = staticmethod(wait_until)
    manifest = staticmethod(gate_manifest)

    # --- the router ------------------------------------------------------------------------------------------------

    def start_router(self, *, meet: bool = True, holder: Holder | None = None) -> None:
        """Start the router, with a door that is held or without; *meet* it as the daemon."""
        with self.router_log.open("ab") as log:
            self.router = subprocess.Popen(
                [
                    *(holder.starter if holder else ()),
                    *(sys.executable, "-I", "-m", "bedsit.supervisor.router", "--run-dir", str(self.run_dir)),
                    *("--user", f"{ROUTER_UID}:{ROUTER_UID}"),
                ],
                stderr=log,
                pass_fds=holder.fds if holder else (),
            )
        if meet:
            self.meet()

    def meet(self) -> None:
        """Accept the router's next connection to the daemon."""
        self.daemon, _ = self._listener.accept()
        self.daemon.settimeout(DEADLINE_S)
        assert recv_frame(self.daemon)["op"] == "hello"
        self.publish()

    def leave(self, *, for_good: bool = False) -> None:
        """Be a daemon that dies; *for_good* takes the socket's name away, so that nobody queues up meanwhile."""
        if self.daemon is not None:
            self.daemon.close()
            self.daemon = None
        if for_good:
            (self.run_dir / "control.sock").rename(self.run_dir / "control.away")

    def come_back(self) -> None:
        """Be the daemon again after leaving for good."""
        (self.run_dir / "control.away").rename(self.run_dir / "control.sock")
        self.meet()

    def hear(self, op: str) -> dict[str, Any]:
        """The next thing the router says with that *op*."""
        assert self.daemon is not None
        while True:
            for index, message in enumerate(self.heard):
                if message["op"] == op:
                    return self.heard.pop(index)
            message = recv_frame(self.daemon)
            assert message is not None, "the router hung up"
            self.heard.append(message)

    def counts(self, tenant: str) -> dict[str, int]:
        """The counters that tests are about, of *tenant*, right now."""
        stats = self.stats(tenant)
        return {name: stats[name] for name in ("requests", "errors", "queued", "in_flight", "sessions")}

    def stats(self, tenant: str) -> dict[str, int]:
        """What the router counts for *tenant* right now."""
        assert self.daemon is not None
        send_frame(self.daemon, {"op": "stats"})
        answer: dict[str, int] = self.hear("stats")["tenants"][tenant]
        return answer

    def publish(self) -> None:
        """Give the router the present state, by file and over the link, and wait until it is in force."""
        snapshot = Snapshot(
            next(self._serial),
            self.instance,
            str(self.run_dir),
            [*self.tenants.values()],
            [*self.slots.values()],
            [*snapshots.gate_box(self.parallel), *self.devices],
        )
        data = snapshots.encode(snapshot)
        fresh = self.run_dir / "snapshot.new"
        fresh.write_bytes(data)
        fresh.chmod(0o644)
        fresh.rename(self.run_dir / "snapshot.msgpack")
        if self.daemon is not None:
            send_frame(self.daemon, {"op": "snapshot", "snapshot": data})
            while self.hear("ack")["serial"] != snapshot.serial:
                pass

    def restart_counting(self, instance: str) -> None:
        """Be the daemon of another state folder."""
        self.instance = instance
        self._serial = itertools.count(1)

    def stop_router(self, signum: int = signal.SIGTERM) -> None:
        """End the router and wait for its end."""
        assert self.router is not None
        self.router.send_signal(signum)
        self.router.wait(DEADLINE_S)
        self.leave()
        self.heard.clear()
        self.router = None

    def descriptors(self) -> int:
        """How many descriptors the router has open."""
        assert self.router is not None
        return len(os.listdir(f"/proc/{self.router.pid}/fd"))

    def resident_bytes(self) -> int:
        """How much memory the router uses."""
        assert self.router is not None
        pages = Path(f"/proc/{self.router.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    # --- tenants ---------------------------------------------------------------------------------------------------

    def add_tenant(self, name: str, **changes: Any) -> None:
        """Register a tenant without models."""
        fields: dict[str, Any] = {
            "name": name,
            "number": len(self.tenants) + 1,
            "state": "running",
            "keys": [],
            "arena_bytes": 64 << 20,
            "queue_max": 64,
            "max_inflight": 2,
            "sessions_max": 16,
            "models": [],
        }
        self.tenants[name] = TenantView(**(fields | changes))

    def change(self, name: str, **changes: Any) -> None:
        """Change fields of a tenant and publish."""
        self.tenants[name] = msgspec.structs.replace(self.tenants[name], **changes)
        self.publish()

    def change_model(self, tenant: str, number: int = 1, **changes: Any) -> None:
        """Change fields of one of a tenant's models and publish."""
        models = [
            msgspec.structs.replace(model, **changes) if model.number == number else model
            for model in self.tenants[tenant].models
        ]
        self.change(tenant, models=models)

    def add_key(self, tenant: str, ident: str = "00000001") -> str:
        """A new key of *tenant*; published."""
        secret = f"bedsit_{ident}_{'k' * 42}{len(self.tenants[tenant].keys)}{tenant}"
        view = KeyView(ident, hashlib.sha256(secret.encode()).digest())
        self.change(tenant, keys=[*self.tenants[tenant].keys, view])
        return secret

    def set_models(self, tenant: str, manifests: Sequence[bytes], *, idempotent: bool = True) -> None:
        """Register one model per manifest, each as version 1; not published."""
        models = [
            ModelView(snapshots_name(data), i + 1, 1, idempotent, [VersionView(1, data)])
            for i, data in enumerate(manifests)
        ]
        self.tenants[tenant] = msgspec.structs.replace(self.tenants[tenant], models=models)

    # --- slots -----------------------------------------------------------------------------------------------------

    def start_worker(
        self, tenant: str, bundles: Sequence[Files], names: Sequence[str], *, uid: int | None = None
    ) -> str:
        """Start a worker, under a uid of its own or *uid*, and give it its assignment. Gives the slot."""
        slot, fresh = self._make_slot_folder()
        uid = fresh if uid is None else uid
        unpacked = self.run_dir / "bundles" / slot
        unpacked.mkdir()
        os.chown(unpacked, uid, uid)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(DEADLINE_S)
        self.controls[slot] = ours
        order = {
            "slot": slot,
            "uid": uid,
            "run_dir": str(self.run_dir / "slots" / slot),
            "bundles": str(unpacked),
            "log": str(self.run_dir / f"{slot}.log"),
        }
        self.workers[slot] = self._nursery.fork(theirs, order)
        theirs.close()
        paths = [self._store(pack(bundle)) for bundle in bundles]
        fds = [os.open(path, os.O_RDONLY) for path in paths]
        models = tuple(
            ModelToLoad(i + 1, n, 1, p.stat().st_size) for i, (n, p) in enumerate(zip(names, paths, strict=True))
        )
        send_bytes(ours, encode_assignment(Assignment(tenant, 1, models)), fds)
        for fd in fds:
            os.close(fd)
        self.slots[slot] = SlotView(slot, tenant, "serving", uid, uid, [(i + 1, 1) for i in range(len(names))])
        return slot

    def next_report(self, slot: str) -> tuple[int, int, bytes]:
        """The worker's next report; kind 0 when it hung up."""
        return decode_report(self.controls[slot].recv(1 << 20))

    def add_slot(
        self,
        tenant: str,
        bundles: Sequence[Files] = (GATE_BUNDLE,),
        *,
        idempotent: bool = True,
        uid: int | None = None,
    ) -> str:
        """Start a worker with these bundles, publish it and wait until it serves. Gives the slot."""
        names = [_name_in(bundle) for bundle in bundles]
        slot = self.start_worker(tenant, bundles, names, uid=uid)
        manifests: dict[int, bytes] = {}
        while len(manifests) < len(names):
            kind, index, text = self.next_report(slot)
            assert kind in (Report.LOADED, Report.PROGRESS), (kind, text)
            if kind == Report.LOADED:
                manifests[index] = text
        self.set_models(tenant, [manifests[i] for i in range(len(names))], idempotent=idempotent)
        self.publish()
        while self.next_report(slot)[0] != Report.SERVING:
            pass
        return slot

    def add_hostile(self, tenant: str, **changes: Any) -> "HostileWorker":
        """A slot of *tenant* whose worker is the test itself, which has said READY."""
        slot, _ = self._make_slot_folder()
        self.slots[slot] = msgspec.structs.replace(
            SlotView(slot, tenant, "serving", os.getuid(), os.getgid(), [(1, 1)]), **changes
        )
        if not self.tenants[tenant].models:
            self.set_models(tenant, [gate_manifest()])
        self.publish()
        worker = HostileWorker(slot, self.run_dir / "slots" / slot)
        self.hostile.append(worker)
        return worker

    def add_pair(self, tenant: str, lane: Literal["fast", "zmq"]) -> "tuple[HostileWorker, RawSession]":
        """A worker and a session, on that lane to either side; the worker has the session's arena.

        Two requests have been answered, one after the other (of a model that takes batches the second would wait for
        the first), so that everything before them is known to the router.
        """
        worker, session = self.add_hostile(tenant), self.knock(tenant, lane=lane)
        wanted = self.tenants[tenant].max_inflight
        self.change(tenant, max_inflight=2)
        leg = worker.meet() if lane == "zmq" else worker.lane
        session.lane.send(session.request(1 << 40))
        number = worker.take_arena(acknowledge=False)  # before that, all requests come on the connection
        first = worker.next_request().id
        send_bytes(worker.link, encode_note(Note(Word.MAPPED, number)))
        worker.respond(first)
        assert session.answer()[0] == 1 << 40
        session.lane.send(session.request(2 << 40))
        wait_until(lambda: worker.fast.poll(0) or leg.poll(1))  # on either, as long as READY is on its way
        worker.lane = worker.fast if worker.fast.poll(0) else leg
        second = worker.next_request().id
        worker.lane = leg
        worker.respond(second)
        assert session.answer()[0] == 2 << 40
        self.change(tenant, max_inflight=wanted)
        return worker, session

    def folder_of(self, slot: str, model: str = "gate") -> Path:
        """Where the worker unpacked a bundle."""
        return self.run_dir / "bundles" / slot / f"{model}-1"

    def remove_slot(self, slot: str) -> None:
        """Confirm that a slot is gone."""
        del self.slots[slot]
        self.publish()

    def knock(self, tenant: str, key: str | None = None, lane: Literal["fast", "zmq"] = "fast") -> "RawSession":
        """A session whose packets the test writes by hand."""
        session = RawSession(self.run_dir, tenant, key, lane)
        self.hostile.append(session)
        return session

    def dial_zmq(self, path: str, token: bytes = b"") -> "ZmqWire":
        """A ZeroMQ lane to any endpoint, under any token."""
        made = ZmqWire(path, token)
        self.hostile.append(made)
        return made

    def close(self) -> None:
        """End everything."""
        for part in self.hostile:
            part.close()
        for worker in self.workers.values():
            worker.close()
        for control in self.controls.values():
            control.close()
        if self.router is not None:
            self.stop_router()
        self.leave()
        self._listener.close()

    def _make_slot_folder(self) -> tuple[str, int]:
        index = len(os.listdir(self.run_dir / "slots"))
        slot, uid = f"s{index:08x}", WORKER_UID + index
        folder = self.run_dir / "slots" / slot
        folder.mkdir(mode=0o750)
        os.chown(folder, ROUTER_UID, uid)
        return slot, uid

    def _store(self, data: bytes) -> Path:
        path = self.run_dir / "artifacts" / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        return path


class ZmqWire:
    """A ZeroMQ lane for arbitrary bytes."""

    def __init__(self, path: str, token: bytes = b"") -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        if token:
            self.socket.setsockopt(zmq.IDENTITY, token)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        self.socket.setsockopt(zmq.SNDTIMEO, int(DEADLINE_S * 1000))
        self.socket.connect(f"ipc://{path}")

    def send(self, packet: bytes) -> None:
        self.socket.send(packet)

    def try_send(self, packet: bytes) -> bool:
        """Send without waiting; False when there is no room."""
        try:
            self.socket.send(packet, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def fill(self, packet: bytes) -> int:
        """Send the same packet until there is no room; how many were taken."""
        return fill(self.try_send, packet)

    def recv(self) -> bytes:
        data: bytes = self.socket.recv()
        return data

    def poll(self, timeout_ms: int) -> bool:
        """Whether something can be received."""
        return bool(self.socket.poll(timeout_ms))

    def close(self) -> None:
        self._context.destroy(0)


class PacketWire:
    """A SEQPACKET lane for arbitrary bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(None)  # with a timeout of its own Python waits where MSG_DONTWAIT asks it not to
        timeout = struct.pack("@ll", int(DEADLINE_S), 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, timeout)

    def send(self, packet: bytes) -> None:
        self.socket.send(packet, socket.MSG_NOSIGNAL)

    def try_send(self, packet: bytes) -> bool:
        """Send without waiting; False when there is no room."""
        try:
            self.socket.send(packet, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def fill(self, packet: bytes) -> int:
        """Send the same packet until there is no room; how many were taken."""
        return fill(self.try_send, packet)

    def recv(self) -> bytes:
        return self.socket.recv(1 << 17)

    def poll(self, timeout_ms: int) -> bool:
        """Whether something can be received, the end included."""
        return bool(select.select([self.socket], [], [], timeout_ms / 1000)[0])

    def close(self) -> None:
        self.socket.close()


class RawSession:
    """A client without manners: the real door, and a lane for arbitrary bytes."""

    def __init__(self, run_dir: Path, tenant: str, key: str | None, lane: Literal["fast", "zmq"] = "fast") -> None:
        self.door = Door(str(run_dir))
        try:
            self.opened = self.door.open(tenant, key, lane=lane)
        except BaseException:
            self.door.close()
            raise
        self.arena = Arena(self.opened.arena_fd, self.opened.arena_bytes, self.opened.arena_number)
        self.lane: ZmqWire | PacketWire
        if lane == "zmq":
            self.lane = ZmqWire(self.opened.endpoint, self.opened.token)
        else:
            self.lane = PacketWire(self.door.socket)
        self._questions = itertools.count(1 << 40)

    def request(self, ident: int, order: float = 0.0, **changes: Any) -> bytes:
        """A packet that calls the gate model with one element, inline in and out."""
        import numpy as np

        fields = {"model": 1, "model_version": 1, "arena": self.arena.number, "tensors": 1} | changes
        header = wire.encode_tensor("float32", (1,), wire.Place.INLINE, 0)
        return wire.pack_packet(wire.Kind.REQUEST, ident, header, np.float32(order).tobytes(), **fields)

    def cancel(self, ident: int) -> bytes:
        """A packet that withdraws a request."""
        return wire.pack_packet(wire.Kind.CANCEL, ident)

    def answer(self) -> tuple[int, int, str]:
        """(id, kind, error code) of the next packet from the router."""
        packet = self.lane.recv()
        envelope = wire.read_envelope(packet)
        code = wire.decode_error(packet, envelope).code if envelope.kind == wire.Kind.ERROR else ""
        return envelope.id, envelope.kind, code

    def refusal(self) -> tuple[int, BedsitError]:
        """Id and error of the next packet from the router, which is an error."""
        packet = self.lane.recv()
        envelope = wire.read_envelope(packet)
        assert envelope.kind == wire.Kind.ERROR
        return envelope.id, wire.decode_error(packet, envelope)

    def settle(self) -> None:
        """Wait until the router has taken everything that was sent before."""
        assert self.models() is not None

    def ask(self, question: Any) -> Any:
        """Put a question to the router and give its answer. Raises it where it is an error."""
        ident = next(self._questions)
        self.lane.send(wire.pack_map(wire.Kind.ASK, ident, question))
        packet = self.lane.recv()
        envelope = wire.read_envelope(packet)
        assert envelope.id == ident
        if envelope.kind == wire.Kind.ERROR:
            raise wire.decode_error(packet, envelope)
        return wire.read_map(packet, envelope)

    def models(self) -> dict[str, list[int]]:
        """The tenant's models, asked for on the lane."""
        return read_model_list(self.ask({"op": "models"}))

    def is_over(self) -> bool:
        """Whether the router ended the session."""
        sock = self.door.socket
        if sock.fileno() < 0:
            return True
        try:
            return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Hang up, and unmap the arena."""
        self.lane.close()
        self.door.close()
        self.__dict__.pop("arena", None)


class HostileWorker:
    """The worker's end of a slot, spoken by hand. ``READY`` is said when it is made."""

    def __init__(self, slot: str, folder: Path) -> None:
        self.slot = slot
        self._folder = folder
        self.link = self.dial()
        self.fast = PacketWire(self.link)
        self.lane: ZmqWire | PacketWire = self.fast
        self._zmq: ZmqWire | None = None
        with contextlib.suppress(BrokenPipeError):  # as another user than the slot's it is hung up on
            self.lane.send(wire.pack_packet(wire.Kind.READY, 0))

    def dial(self) -> socket.socket:
        """A new connection to the slot's socket."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.settimeout(DEADLINE_S)
        link.connect(str(self._folder / "fd.sock"))
        return link

    def meet(self) -> ZmqWire:
        """Wait until the router wants a ZeroMQ lane, and connect to it."""
        assert self.next_note().word == Word.MEET
        made = self._zmq = ZmqWire(f"{self._folder}/router.sock")
        made.send(wire.pack_packet(wire.Kind.READY, 0))
        return made

    def take_arena(self, *, acknowledge: bool = True) -> int:
        """Receive an arena and let go of it again. Gives its number."""
        data, fds = recv_bytes(self.link, 1)
        for fd in fds:
            os.close(fd)
        note = decode_note(data or b"")
        assert note.word == Word.GIVE
        if acknowledge:
            send_bytes(self.link, encode_note(Note(Word.MAPPED, note.number)))
        return note.number

    def next_note(self) -> Note:
        """The next note; nothing else may come before it."""
        return decode_note(self.link.recv(1 << 17))

    def next_request(self) -> wire.Envelope:
        """The envelope of the next packet that is no note."""
        return wire.read_envelope(self.lane.recv())

    def next_batch(self) -> list[wire.Envelope]:
        """The envelopes of the next batch, which ends with the packet that nothing is left behind."""
        batch = [self.next_request()]
        while batch[-1].left:
            batch.append(self.next_request())
        return batch

    def is_idle(self) -> bool:
        """Whether nothing has been sent to it that it has not read; only after something that had to come later."""
        return not self.lane.poll(0) and not select.select([self.link], [], [], 0)[0]

    def respond(self, ident: int, kind: int = wire.Kind.RESPONSE) -> None:
        """Answer *ident* with one element."""
        import numpy as np

        header = wire.encode_tensor("float32", (1,), wire.Place.INLINE, 0)
        self.lane.send(wire.pack_packet(kind, ident, header, np.float32(5.0).tobytes(), tensors=1))

    def close(self) -> None:
        """Be gone."""
        self.link.close()
        if self._zmq is not None:
            self._zmq.close()


def snapshots_name(manifest: bytes) -> str:
    """The name in an encoded manifest."""
    name: str = msgspec.msgpack.decode(manifest)["name"]
    return name


def _name_in(bundle: Files) -> str:
    text = bundle["bedsit.toml"]
    assert isinstance(text, str)
    return next(line.split('"')[1] for line in text.splitlines() if line.startswith("name"))


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """A process that forks workers."""
    if os.geteuid() != 0:
        pytest.skip("needs root: every worker has its own uid")
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def plane(nursery: Nursery) -> Iterator[Plane]:
    """A running router with the empty tenants ``acme`` and ``beta``, torn down afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bedsit-plane-"))
    made = Plane(folder, nursery)
    made.add_tenant("acme")
    made.add_tenant("beta")
    try:
        made.start_router()
        yield made
        assert made.router is None or made.router.poll() is None, f"the router died:\n{made.router_log.read_text()}"
    finally:
        made.close()
        shutil.rmtree(folder)
