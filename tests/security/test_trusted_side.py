"""What the trusted side's checks are for: each attempt on router, daemon and wire, made where the check is missing.

The attempts themselves, with the checks in place, are the tests of those parts (tests/ipc, tests/supervisor, ...).
"""

import array
import mmap
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from bedsit import Client
from bedsit.ipc import seqpacket
from bedsit.ipc.frames import decode_body
from bedsit.sandbox.output import printable
from bedsit.supervisor.router.arenas import make_arena
from tests_support.box import Box
from tests_support.bundles import write_bundle
from tests_support.leaks import MARK
from tests_support.marks import (
    DESCRIPTORS,
    ENDLESS,
    FOREIGN_USER,
    HALF_BUILT,
    INHERITANCE,
    LANE,
    MSGPACK,
    OUTPUT,
    PATIENCE,
    PICKLE,
    RACE,
    SHAPES,
)
from tests_support.slots import receive, wait_until
from tests_support.zmtp import greet

ROOT = Path(__file__).parents[2]


@contextmanager
def listener_of_another_user(folder: Path) -> Iterator[Path]:
    """A socket that every user may connect to, and which asks nobody who they are."""
    folder.chmod(0o755)
    path = folder / "any.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(1)
        yield path


@FOREIGN_USER(part="removed", outcome="connected")
def test_modes_alone_let_everybody_connect() -> None:
    """A socket that does not ask for the peer's user serves any user who can name it."""
    connect = "import os, socket, sys\nos.setuid(12345)\nsocket.socket(socket.AF_UNIX, 5).connect(sys.argv[1])"
    with tempfile.TemporaryDirectory() as folder, listener_of_another_user(Path(folder)) as path:
        done = subprocess.run([sys.executable, "-I", "-S", "-c", connect, str(path)], check=False, cwd="/")
        assert done.returncode == 0


@RACE(part="removed", outcome="changed after the check")
def test_what_is_read_twice_may_differ() -> None:
    """Bytes in shared pages are the other side's at any moment: a check of them says nothing about the next look."""
    fd = make_arena(4096)
    with mmap.mmap(fd, 4096) as ours, mmap.mmap(fd, 4096) as theirs:
        ours[:4] = b"good"
        checked = ours[:4] == b"good"
        theirs[:4] = b"evil"
        assert checked
        assert ours[:4] == b"evil"
    os.close(fd)


@DESCRIPTORS(part="removed", outcome="taken in")
def test_room_for_descriptors_takes_them_in() -> None:
    """A reader that has room for descriptors holds whatever its peer attaches."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 100))])
        _, fds, _, _ = socket.recv_fds(ours, 1, 250)
        assert len(fds) == 100
        for fd in fds:
            os.close(fd)


@LANE(part="removed", outcome="1 MiB taken in")
def test_without_a_bound_a_packet_is_as_long_as_its_sender_likes() -> None:
    """ZeroMQ by itself takes a packet of any length."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    with tempfile.TemporaryDirectory() as folder, context.socket(zmq.DEALER) as ours, context.socket(zmq.DEALER) as one:
        ours.bind(f"ipc://{folder}/lane")
        one.connect(f"ipc://{folder}/lane")
        one.send(bytes(1 << 20))
        assert ours.poll(20_000)
        assert len(ours.recv()) == 1 << 20


@ENDLESS(part="removed", outcome="all of it is kept")
def test_libzmq_keeps_what_never_ends() -> None:
    """With a bound for each part and nobody who looks on, part after part is kept, and no message ever comes of it."""
    part = b"\x03" + struct.pack(">Q", 65_000) + bytes(65_000)
    with tempfile.TemporaryDirectory() as folder, zmq.Context.instance().socket(zmq.DEALER) as lane:
        lane.setsockopt(zmq.MAXMSGSIZE, 64 << 10)
        lane.bind(f"ipc://{folder}/lane")
        before = read_resident_bytes()
        with greet(f"{folder}/lane") as peer:
            for _ in range(1000):
                peer.sendall(part)
            wait_until(lambda: read_resident_bytes() - before > 48 << 20, "it is kept")
            assert not lane.poll(0)


def read_resident_bytes() -> int:
    """How much memory this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@MSGPACK(part="removed", outcome="an object of a foreign type, a map with odd keys")
def test_the_library_by_itself_believes_more() -> None:
    """Extension types and keys that are no text pass msgpack alone, and are malformed for us."""
    for packed in (msgpack.packb(msgpack.ExtType(5, b"x")), msgpack.packb({1: b"x"})):
        assert msgpack.unpackb(packed, strict_map_key=False) is not None
        with pytest.raises(Exception, match=r"wire\.malformed"):
            decode_body(packed)


@SHAPES(part="removed", outcome="buffer is too small for requested array")
def test_numpy_is_the_second_wall() -> None:
    """An array over too few bytes is refused by numpy, where nothing of ours refused it before."""
    with pytest.raises(TypeError, match="buffer is too small"):
        np.ndarray((1 << 20,), np.float32, buffer=bytes(4))


@PICKLE(part="removed", outcome="the file is there")
def test_whoever_unpickles_runs_it(tmp_path: Path) -> None:
    """The bytes that the router passes on unread are a program for whoever unpickles them."""
    canary = tmp_path / "canary"
    pickle.loads(make_bomb(canary)).close()
    assert canary.exists()


@PICKLE(part="attack", outcome="no such import")
def test_no_trusted_code_can_unpickle() -> None:
    """Nothing outside of the worker imports what unpickles, torch's loader included; a client may have torch."""
    clients = {ROOT / "ipc" / "tensors.py"}
    unpickles = re.compile(r"\b(import|from) (pickle|shelve|marshal|dill|joblib|torch)\b|allow_pickle=True|recv_pyobj")
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for folder in ("ipc", "supervisor", "sandbox", "cli")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.is_relative_to(ROOT / "sandbox" / "worker") and path not in clients
        for line in path.read_text().splitlines()
        if unpickles.search(line)
    ]
    assert found == []


def test_trusted_processes_never_load_a_clients_tensors() -> None:
    """Daemon, router, init and zygote load nothing of a client's that can load torch."""
    modules = "bedsit.supervisor.daemon, bedsit.supervisor.router.router, bedsit.sandbox.init, bedsit.sandbox.zygote"
    code = f"import sys, {modules}\nprint('bedsit.ipc.wire' in sys.modules, 'bedsit.ipc.tensors' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def make_bomb(canary: Path) -> bytes:
    """A pickle that makes *canary* when it is read."""
    return b"cbuiltins\nopen\n(V%s\nVw\ntR." % os.fsencode(canary)


@OUTPUT(part="removed", outcome="two lines, one of them forged, in red")
def test_raw_output_would_be_believed(tmp_path: Path) -> None:
    """What a tenant prints has line ends and colours of its own; only `printable` takes them away."""
    said = "done\n2026-01-01T00:00:00.000Z out \x1b[31mroot logged in\x1b[0m"
    raw, ours = tmp_path / "raw", printable(said.encode())
    raw.write_text(said)
    assert len(raw.read_text().splitlines()) == 2
    assert len(ours.splitlines()) == 1
    assert ours.isprintable()


@PATIENCE(part="removed", outcome="waits on")
def test_without_a_deadline_nobody_ever_gives_up() -> None:
    """A reader of a peer that says nothing is still there whenever one looks; with a deadline it is not."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        reader = threading.Thread(target=ours.recv, args=(1,))
        reader.start()
        reader.join(0.2)
        assert reader.is_alive()
        theirs.send(b"x")
        reader.join()
        ours.settimeout(0.01)
        with pytest.raises(TimeoutError):
            ours.recv(1)


@HALF_BUILT(part="removed", outcome="alive while the pipe is held, gone with it")
def test_the_build_pipe_is_what_ends_a_half_built_slot(ground: Any) -> None:
    """As long as anybody holds its other end the slot waits to be wanted; it ends with the last holder."""
    with ground.slot() as slot:
        held = os.dup(slot.build)
        os.close(slot.build)
        slot.build = held
        with slot.connect() as sock:
            seqpacket.send_packet(sock, {"op": "hello"})
            assert receive(sock)["state"] == "blank"
        os.close(held)
        slot.build = os.open("/dev/null", os.O_RDONLY)  # for whoever closes it
        wait_until(lambda: not slot.backend.populated(slot.id), "the slot is gone")


ENVIRONMENT = """
import os, torch
def build(bundle):
    def call(x):
        initial = open("/proc/self/environ", "rb").read()
        return torch.tensor([float("MARK" in os.environ or b"MARK" in initial), float("HOME" in os.environ)])
    return call
""".replace("MARK", MARK)


@pytest.fixture(scope="module")
def answers(shared_box: Box, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """What a tenant's model finds in its environment: the daemon's variables, and its own."""
    bundle = write_bundle(tmp_path_factory.mktemp("environment"), "environment", ENVIRONMENT)
    shared_box.json("tenant", "create", "reader")
    shared_box.json("model", "deploy", "reader", str(bundle))
    with Client("reader", run_dir=str(shared_box.run_dir)) as client:
        return [float(v) for v in client.infer("environment", {"x": np.zeros(1, np.float32)}, timeout_s=60)["y"]]


@INHERITANCE(part="attack", outcome="not found")
def test_nothing_of_the_daemons_environment_reaches_a_worker(answers: list[float]) -> None:
    """The daemon has this run's variable; its workers do not, neither as a variable nor as it was at exec."""
    assert MARK in os.environ
    assert answers[0] == 0


@INHERITANCE(part="twin", outcome="ok")
def test_a_worker_has_variables_of_its_own(answers: list[float]) -> None:
    """The four that every slot has."""
    assert answers[1] == 1
