"""Who gets in, on the live door: keys, uids, and peers that do not speak the language."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from bedsit import BedsitError, Client
from bedsit.ipc import wire
from bedsit.ipc.door import PROTOCOL
from bedsit.ipc.seqpacket import send_packet
from bedsit.ipc.wire import Kind
from tests_support.marks import DESCRIPTORS, MSGPACK, PATIENCE

STRANGER_UID = 1_899_999_800
ONE = {"x": np.zeros(1, np.float32)}

both_lanes = pytest.mark.parametrize("lane", ["fast", "zmq"])

_STRANGER = """
import os, sys
import numpy as np
from bedsit import BedsitError, Client
run_dir, uid = sys.argv[1], int(sys.argv[2])
client = Client(*[a or None for a in sys.argv[3:5]], run_dir=run_dir)
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
try:
    print(client.infer("gate", {"x": np.zeros(1, np.float32)})["y"][0])
except BedsitError as e:
    print(e.code)
"""


def _as_stranger(plane: Any, tenant: str = "", key: str = "") -> str:
    command = [sys.executable, "-I", "-c", _STRANGER, str(plane.run_dir), str(STRANGER_UID), tenant, key]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@contextmanager
def _connection(plane: Any) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(30)
        sock.connect(str(plane.run_dir / "router" / "door.sock"))
        yield sock


def _code(plane: Any, model: str = "gate", version: int | None = None, **who: Any) -> str:
    with pytest.raises(BedsitError) as caught, Client(run_dir=str(plane.run_dir), **who) as client:
        client.infer(model, ONE, version=version)
    return caught.value.code


@DESCRIPTORS(part="twin", outcome="a packet without is answered")
def test_a_key_opens_its_tenant_for_any_user_and_nothing_opens_it_without(plane: Any) -> None:
    """A stranger's process is let in by the key alone; without one, or with a wrong one, it is not."""
    plane.add_slot("acme")
    key = plane.add_key("acme")
    assert _as_stranger(plane, key=key) == "1.0"
    assert _as_stranger(plane, "acme", key) == "1.0"
    assert _as_stranger(plane, "acme") == "key.invalid"
    assert _as_stranger(plane) == "key.invalid"
    assert _as_stranger(plane, "acme", key + "x") == "key.invalid"
    assert _as_stranger(plane, "acme", "\u00e9") == "key.invalid"


def test_a_key_opens_no_other_tenant(plane: Any) -> None:
    """A key of one tenant is refused for another one, and alone leads to its own tenant's models only."""
    plane.add_slot("acme")
    key = plane.add_key("beta")
    assert _code(plane, tenant="acme", key=key) == "key.invalid"
    assert _code(plane, key=key) == "model.not_found"
    # Naming a tenant that does not exist says no more than naming one that does.
    assert _code(plane, tenant="nobody", key=key) == "key.invalid"


def test_root_names_a_tenant_and_needs_no_key(plane: Any) -> None:
    """Uid 0 is let in by name; what it names must exist."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        assert client.infer("gate", ONE)["y"][0] == 1.0
    assert _code(plane) == "request.invalid"
    assert _code(plane, tenant="nobody") == "tenant.not_found"
    assert _code(plane, tenant="acme", model="nothing") == "model.not_found"
    for version in (2, -1):
        assert _code(plane, tenant="acme", version=version) == "model.not_found"


def test_a_revoked_key_ends_its_sessions_and_no_others(plane: Any) -> None:
    """Revoking a key hangs up on whoever came with it; other keys and root stay."""
    plane.add_slot("acme")
    revoked, kept = plane.add_key("acme"), plane.add_key("acme", "00000002")
    run_dir = str(plane.run_dir)
    with Client(key=revoked, run_dir=run_dir) as out, Client(key=kept, run_dir=run_dir) as stays:
        root = plane.knock("acme")
        assert out.infer("gate", ONE)["y"][0] == stays.infer("gate", ONE)["y"][0] == 1.0
        kept_link = stays._link
        plane.change("acme", keys=plane.tenants["acme"].keys[1:])
        with pytest.raises(BedsitError) as caught:
            out.infer("gate", ONE)
        assert caught.value.code == "key.invalid"
        assert stays.infer("gate", ONE)["y"][0] == 1.0
        assert stays._link is kept_link
        assert not root.is_over()


def test_sessions_are_limited_per_tenant(plane: Any) -> None:
    """The limit counts open sessions of one tenant; closing one makes room, and another tenant has its own."""
    plane.change("acme", sessions_max=2)
    first, _second = plane.knock("acme"), plane.knock("acme")
    with pytest.raises(BedsitError) as caught:
        plane.knock("acme")
    assert caught.value.code == "session.limit"
    plane.knock("beta")
    first.close()
    plane.wait_until(lambda: plane.stats("acme")["sessions"] == 1)
    plane.knock("acme")


_OPEN = {"op": "open", "v": PROTOCOL, "tenant": "acme", "key": None, "lane": "fast"}


@MSGPACK(part="attack", outcome="hung up on")
def test_a_first_packet_that_is_no_opening_is_hung_up_on(plane: Any) -> None:
    """Whatever comes instead of an opening ends that connection, leaves nothing behind, and hurts nobody."""
    before = plane.descriptors()
    for packet in (
        b"\xc1",
        b"\x01",
        b"\x90",
        b"\x80",
        b"\x91" * 60_000,
        b"\xdd\x00\x01\xff\xf0" * 1000 + bytes(120_000),
        b"\xc7\x00\x05",
        b"\xd6\xff\x00\x00\x00\x00",
        msgpack.packb(_OPEN)[:-1],
        msgpack.packb(_OPEN) + b"\x00",
        msgpack.packb(_OPEN | {"v": PROTOCOL + 1}),
        msgpack.packb(_OPEN | {"v": PROTOCOL - 1}),
        msgpack.packb(_OPEN | {"lane": "pigeon"}),
        msgpack.packb(_OPEN | {"lane": ["fast"]}),
        msgpack.packb({key: value for key, value in _OPEN.items() if key != "lane"}),
        msgpack.packb(_OPEN | {"op": "models"}),
        msgpack.packb(_OPEN | {"tenant": ["acme"]}),
        msgpack.packb(_OPEN | {"tenant": "a" * 100_000}),
        msgpack.packb({b"op": b"open"}),
        bytes(131_073),
    ):
        with _connection(plane) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sock.send(packet)
            answer = sock.recv(4096)
            if answer:
                code = msgpack.unpackb(answer)["error"]["code"]
                assert code in ("wire.malformed", "tenant.not_found", "request.invalid"), packet[:40]
                assert sock.recv(4096) == b"", packet[:40]
    plane.wait_until(lambda: plane.descriptors() == before)
    plane.knock("acme")


@DESCRIPTORS(part="attack", outcome="none is kept")
def test_nobody_hands_a_descriptor_in(plane: Any) -> None:
    """A packet with descriptors is refused by the kernel (6.16) or ends the connection; the router keeps none."""
    before = plane.descriptors()
    reader, writer = os.pipe()
    with _connection(plane) as sock:
        try:
            send_packet(sock, _OPEN, [writer, writer, writer])
        except PermissionError:
            pass
        else:
            assert sock.recv(4096) == b""
    os.close(writer)
    assert os.read(reader, 1) == b""  # end of file: no other copy of the writing end is left anywhere
    os.close(reader)
    plane.wait_until(lambda: plane.descriptors() == before)


@both_lanes
def test_a_wrong_question_is_answered_with_an_error(plane: Any, lane: str) -> None:
    """Inside a session a wrong question gets an error, and the session goes on, with its tenant and no other."""
    plane.add_hostile("acme")
    session = plane.knock("acme", lane=lane)
    for question in (
        _OPEN | {"tenant": "beta"},
        {"op": "describe"},
        {"op": "describe", "model": 7, "version": 0},
        {"op": "describe", "model": "gate", "version": "0"},
        {"op": "describe", "model": "gate", "version": -(2**63)},
        {"op": "describe", "model": "gate", "version": 2**64 - 1},
        {"op": "describe", "model": "g" * 60_000, "version": 0},
        {},
        [],
        "models",
        [[[[]]]] * 1000,
    ):
        with pytest.raises(BedsitError) as caught:
            session.ask(question)
        assert caught.value.code in ("wire.malformed", "model.not_found"), question
        assert session.models() == {"gate": [1]}


@PATIENCE(part="attack", outcome="hung up on")
@both_lanes
def test_a_client_that_never_reads_its_answers_loses_its_session(plane: Any, lane: str) -> None:
    """Answers are not kept for a client that reads none: its session ends, and its neighbour's goes on."""
    plane.add_hostile("acme")
    session, other = plane.knock("acme", lane=lane), plane.knock("acme", lane=lane)
    question = wire.pack_map(Kind.ASK, 1, {"op": "models"})
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while not session.is_over() or lane == "fast":  # what lies there unread hides the end of a connection
            session.lane.fill(question)
    assert other.models() == {"gate": [1]}


_CROWD = """
import os, resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000))
uid = int(sys.argv[2])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
waiting = []
for _ in range(1200):
    waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    waiting[-1].connect(sys.argv[1])
print("crowded", flush=True)
sys.stdin.read()
"""


@PATIENCE(part="attack", outcome="others are served")
def test_connections_that_say_nothing_do_not_keep_others_out(plane: Any) -> None:
    """One user's crowd at the door, more than the router lets wait, leaves room for everybody else."""
    door = str(plane.run_dir / "router" / "door.sock")
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _CROWD, door, str(STRANGER_UID)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "crowded\n"
        assert plane.knock("acme").opened.tenant == "acme"


def test_the_router_refuses_to_run_as_root(tmp_path: Path) -> None:
    """Started as root without somebody to become, it says so and ends."""
    command = [sys.executable, "-I", "-m", "bedsit.supervisor.router", "--run-dir", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 77
    assert "--user" in ended.stderr


def test_an_arena_is_sealed_and_cannot_be_resized(plane: Any) -> None:
    """What a client gets cannot shrink under the worker, grow, or lose its seals."""
    with _connection(plane) as sock:
        send_packet(sock, _OPEN)
        _, fds, _, _ = socket.recv_fds(sock, 4096, 4)
        (fd,) = fds
        size = os.fstat(fd).st_size
        assert size == 64 << 20
        for length in (0, size - 4096, size + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, length)
        os.close(fd)
