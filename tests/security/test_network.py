"""Attempts to reach somebody: over a network, an abstract socket, another slot's socket, System V memory."""

import contextlib
import ctypes
import os
import secrets
import socket
from collections.abc import Iterator

from bedsit.sandbox.jail import libc
from tests_support.attempts import RIGHTS, Attempt, Props, Removal, make_tests
from tests_support.slots import House

IPC_RMID = 0
OPEN = "import socket; result = attempt(lambda: socket.socket({}, 3).close())"
SHMGET = "result = attempt(lambda: call('shmget', key, 4096, 0))"
FAMILIES = {"AF_NETLINK": 16, "AF_PACKET": 17, "AF_ALG": 38, "AF_VSOCK": 40}


@contextlib.contextmanager
def listen_on_loopback(_: House) -> Iterator[Props]:
    """A service of the box that only the box may reach."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Props({"port": listener.getsockname()[1]})


@contextlib.contextmanager
def listen_abstractly(_: House) -> Iterator[Props]:
    """A service of the box that has a name and no file."""
    name = f"\0bedsit-test-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen(1)
        yield Props({"name": name})


@contextlib.contextmanager
def listen_for_another(house: House) -> Iterator[Props]:
    """The router's socket in another slot's folder."""
    folder = house.folder / "slots" / "another"
    folder.mkdir(mode=0o750)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "router.sock"))
        (folder / "router.sock").chmod(0o666)
        listener.listen(1)
        yield Props({"path": str(folder / "router.sock")})
    (folder / "router.sock").unlink()
    folder.rmdir()


@contextlib.contextmanager
def share_memory(_: House) -> Iterator[Props]:
    """A System V segment that everybody on the box may read and write."""
    libc = ctypes.CDLL(None, use_errno=True)
    key = secrets.randbelow(1 << 30) + 1
    number = libc.shmget(key, 4096, 0o1666)
    assert number >= 0, os.strerror(ctypes.get_errno())
    try:
        yield Props({"key": key})
    finally:
        libc.shmctl(number, IPC_RMID, None)


ATTEMPTS = (
    Attempt(
        "34",
        "connect to a service on the box's loopback",
        first="seccomp",
        second="landlock, network namespace",
        stage=listen_on_loopback,
        source="""
import socket
def connect():
    with socket.socket() as s:
        s.settimeout(5)
        s.connect(("127.0.0.1", port))
result = attempt(connect)
""",
        refused="Operation not permitted",
        twin="import socket; pair = socket.socketpair(); result = attempt(lambda: pair[0].send(b'x'))",
        removals=(
            # Landlock knows of ports from its fourth version on (Linux 6.7).
            Removal("Permission denied" if libc.landlock_abi() >= 4 else "Network is unreachable", without="seccomp"),
            Removal("Network is unreachable", without="seccomp,landlock"),
            Removal("ok", without="seccomp,landlock,network_namespace"),
        ),
    ),
    Attempt(
        "34.2",
        "sockets of other families: netlink, packet, crypto, virtual machine",
        first="seccomp",
        second="network namespace, capabilities",
        source=f"""
import socket
result = every([attempt(lambda: socket.socket(family, 3 if family < 20 else 5)) for family in {[*FAMILIES.values()]}])
""",
        refused="Operation not permitted",
        twin="import socket; result = attempt(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).close())",
        removals=(
            Removal(
                "ok",
                without="seccomp",
                source=OPEN.format(16),
            ),
            Removal(
                "Operation not permitted",
                without="seccomp",
                source=OPEN.format(17),
            ),
            Removal(
                "ok",
                without=f"seccomp,{RIGHTS}",
                source=OPEN.format(17),
            ),
        ),
    ),
    Attempt(
        "35",
        "connect to an abstract socket of the box",
        first="network namespace",
        second="landlock",
        stage=listen_abstractly,
        source="""
import socket
def connect():
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(name)
result = attempt(connect)
""",
        refused="Connection refused",
        twin="""
import socket
def connect():
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as s:
        listener.bind(name)
        listener.listen(1)
        s.connect(name)
result = attempt(connect)
""",
        removals=(
            # Landlock keeps abstract sockets in their scope from its sixth version on (Linux 6.12).
            Removal("Operation not permitted" if libc.landlock_abi() >= 6 else "ok", without="network_namespace"),
            Removal("ok", without="network_namespace,landlock"),
        ),
    ),
    Attempt(
        "36",
        "connect to another tenant's socket",
        first="mount namespace",
        second="folder of the other slot's user",
        stage=listen_for_another,
        source="""
import os, socket
box = "/box" if os.access("/box", os.F_OK) else ""
def connect():
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(box + path)
result = attempt(connect)
""",
        refused="No such file or directory",
        twin="""
import socket
def connect():
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as s:
        listener.bind("/tmp/own")
        listener.listen(1)
        s.connect("/tmp/own")
result = attempt(connect)
""",
        removals=(
            Removal("Permission denied", bad="pivot:box_kept"),
            Removal("ok", bad="pivot:box_kept", without=RIGHTS),
        ),
    ),
    Attempt(
        "38",
        "take System V memory of the box's, open a message queue",
        first="seccomp",
        second="IPC namespace",
        stage=share_memory,
        source="""
result = every([attempt(lambda: call("shmget", key, 4096, 0)), attempt(lambda: call("mq_open", b"x", 64, 0o600, 0))])
""",
        refused="Operation not permitted",
        twin="import mmap; result = attempt(lambda: mmap.mmap(-1, 4096).write(b'x'))",
        removals=(
            Removal("No such file or directory", without="seccomp", source=SHMGET),
            Removal("ok", without="seccomp,ipc_namespace", source=SHMGET),
        ),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
