"""A slot's init: what it passes on, what it keeps, and how it ends."""

import dataclasses
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc import seqpacket
from bedsit.sandbox.init import PROTOCOL
from tests_support.slots import LIMITS, wait_until

Receive = Callable[[socket.socket], dict[str, Any]]


def hello(sock: socket.socket) -> dict[str, Any]:
    """Introduce ourselves; init's answer."""
    seqpacket.send_packet(sock, {"op": "hello"})
    return receive(sock)


def receive(sock: socket.socket) -> dict[str, Any]:
    """The next packet."""
    message, _ = seqpacket.recv_packet(sock)
    assert message is not None
    return message


def assign(
    sock: socket.socket, source: str, logs: list[Path] | None = None, log_bytes: int = 1 << 16
) -> dict[str, Any]:
    """Assign *source* to the worker, with log files of that size; init's answer."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    fds = [os.open(log, flags, 0o640) for log in logs] if logs else [os.memfd_create("log") for _ in range(2)]
    message = {"op": "assign", "body": source.encode(), "log_bytes": log_bytes, "fds": ["log", "log"]}
    seqpacket.send_packet(sock, message, fds)
    seqpacket.close_all(fds)
    return receive(sock)


def test_it_introduces_itself(slot: Any) -> None:
    """Slot, nonce and state: what a new daemon needs to believe that this is the slot it finds in its records."""
    with slot.connect() as sock:
        answer = hello(sock)
        assert answer["slot"] == slot.id
        assert answer["nonce"] == ""
        assert (answer["state"], answer["status"], answer["protocol"]) == ("blank", None, PROTOCOL)
        assign(sock, "")
    with slot.connect() as sock:
        assert hello(sock)["state"] == "assigned"
    slot.commit("a nonce")
    with slot.connect() as sock:
        assert hello(sock)["nonce"] == "a nonce"


def test_a_slot_serves_one_tenant_once(slot: Any) -> None:
    """A second assignment is refused, whoever asks."""
    with slot.connect() as first, slot.connect() as second:
        assert assign(first, "result = 1") == {"op": "assigned"}
        assert assign(second, "result = 2") == {"op": "refused", "message": "the slot is assigned already"}
        assert receive(first) == {"op": "worker", "body": b"1"}


def test_malformed_assignments_are_not_taken(slot: Any) -> None:
    """They cost the connection; the slot stays blank and serves the next one."""
    for message in (
        {"op": "assign"},
        {"op": "assign", "body": b"", "log_bytes": 1, "fds": ["log", "log"]},
        {"op": "assign", "body": "text", "log_bytes": 1, "fds": []},
        {"op": "bye"},
        {"op": "nonsense"},
    ):
        with slot.connect() as sock:
            seqpacket.send_packet(sock, message)
            assert seqpacket.recv_packet(sock) == (None, [])
    assert slot.run("result = 'still here'") == "still here"


def test_a_daemon_that_reconnects_hears_what_it_missed(slot: Any) -> None:
    """The last 64 packets are kept, in order, and come after the hello."""
    with slot.connect() as sock:
        assign(sock, "for n in range(100):\n    control.send(str(n).encode())\nresult = 'end'")
        bodies = [receive(sock)["body"] for _ in range(101)]
        assert bodies == [*(str(n).encode() for n in range(100)), b'"end"']
    with slot.connect() as sock:
        assert hello(sock)["state"] == "assigned"
        kept = [receive(sock)["body"] for _ in range(64)]
    assert kept == bodies[-64:]


def test_a_daemon_that_does_not_read_stalls_the_worker_only(slot: Any) -> None:
    """A worker that floods is made to wait: init's memory does not grow, and another connection is still answered."""
    with slot.connect() as lazy:
        assign(lazy, "while True: control.send(bytes(60000))")
        with slot.connect() as sock:
            assert hello(sock)["op"] == "hello"
        status = Path(f"/proc/{slot.pid}/status").read_text()
        private_kib = int(status.split("RssAnon:")[1].split()[0])
        assert private_kib < 400 << 10


def test_what_a_worker_must_not_send_goes_nowhere(slot: Any) -> None:
    """Packets that are too long, and descriptors, never reach the daemon; what follows does."""
    with slot.connect() as sock:
        assign(
            sock,
            """
import array, socket
control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
control.send(bytes(65 << 10))
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1] * 5))]
attempt(lambda: control.sendmsg([b"fd"], rights))  # a kernel from 6.16 on refuses it here, an older one drops it there
result = "end"
""",
        )
        assert receive(sock) == {"op": "worker", "body": b'"end"'}
    assert len(list(Path(f"/proc/{slot.pid}/fd").iterdir())) < 16


def test_the_workers_end_is_told_with_its_status(slot: Any) -> None:
    """The raw wait status, to who is there and to who comes later; then, after bye, init ends too."""
    pidfd = os.pidfd_open(slot.pid)
    with slot.connect() as sock:
        assign(sock, "import os; os._exit(3)")
        assert receive(sock) == {"op": "exited", "status": 3 << 8}
        with slot.connect() as late:
            assert hello(late)["status"] == 3 << 8
            assert receive(late) == {"op": "exited", "status": 3 << 8}
            assert assign(late, "")["op"] == "refused"
        seqpacket.send_packet(sock, {"op": "bye"})
        wait_for(pidfd)


def test_a_signal_is_told_as_a_signal(slot: Any) -> None:
    """SIGKILL from anywhere reads as signal 9, not as an exit."""
    with slot.connect() as sock:
        hello(sock)
        os.kill(slot.worker, signal.SIGKILL)
        assert receive(sock) == {"op": "exited", "status": 9}


def test_an_exception_is_in_the_log_and_exits_1(slot: Any, tmp_path: Path) -> None:
    """A tenant finds its traceback, and the daemon sees status 1."""
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    with slot.connect() as sock:
        # The shell catches what its program raises; an exit through the interpreter it does not.
        assign(sock, "import sys; print('out'); sys.stderr.write('err\\x1b[31m\\nlast'); sys.exit(5)", logs)
        assert receive(sock) == {"op": "exited", "status": 5 << 8}
    lines = sorted(line.split(" ", 1)[1] for line in logs[0].read_text().splitlines())
    assert lines == ["err err\\x1b[31m", "err last", "out out"]


def test_output_is_bounded_on_disk(slot: Any, tmp_path: Path) -> None:
    """A flood fills two files to their limit and no further; the worker is not held up, and what is lost is counted."""
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    with slot.connect() as sock:
        source = "import sys\nfor n in range(60000):\n    print(n, 'x' * 200)\nsys.stdout.flush()\nresult = 'end'"
        assign(sock, source, logs, log_bytes=64 << 10)
        assert receive(sock) == {"op": "worker", "body": b'"end"'}
        with slot.connect() as other:
            dropped = hello(other)["dropped_bytes"]
    sizes = [log.stat().st_size for log in logs]
    assert max(sizes) <= 64 << 10
    assert min(sizes) > 0
    assert dropped > 1 << 20


def test_orphans_are_reaped(spawn: Any, shell_zygote: Any) -> None:
    """A grandchild that a worker with children left behind does not stay a zombie: init takes it."""
    found = spawn(shell_zygote, profile="subprocess").run("""
import os, time
read, write = os.pipe()
child = os.fork()
if child == 0:
    grandchild = os.fork()
    if grandchild == 0:
        os.read(read, 1)
        os._exit(0)
    os._exit(0)
os.waitpid(child, 0)
os.write(write, b"x")
end = time.monotonic() + 10
while len([p for p in os.listdir("/proc") if p.isdigit()]) > 1 and time.monotonic() < end:
    time.sleep(0.01)
result = len([p for p in os.listdir("/proc") if p.isdigit()])
""")
    assert found == 1


def test_all_orphans_are_reaped_however_many_wait(spawn: Any, shell_zygote: Any) -> None:
    """More than init takes in a turn, and one signal for all of them: the next turn needs no other."""
    slot = spawn(shell_zygote, dataclasses.replace(LIMITS, pids_max=250), profile="subprocess")
    children = Path(f"/proc/{slot.pid}/task/{slot.pid}/children")
    go, stop = os.pipe()
    source = """
import os
os.read(fds[0], 1)
child = os.fork()
if child == 0:
    for _ in range(200):
        os.fork() or os._exit(0)
    os._exit(0)
os.waitpid(child, 0)
"""
    with slot.connect() as sock:
        slot.assign(sock, source, (go,))
        os.close(go)
        os.kill(slot.pid, signal.SIGSTOP)
        os.close(stop)
        wait_until(lambda: len(children.read_text().split()) > 200, "all are init's")
        os.kill(slot.pid, signal.SIGCONT)
        wait_until(lambda: children.read_text().split() == [str(slot.worker)], "all are reaped")


def test_children_that_die_without_end_do_not_keep_init_busy(spawn: Any, shell_zygote: Any) -> None:
    """Orphans of orphans, faster than init takes them: whoever comes is answered all the same, and the end is told."""
    slot = spawn(shell_zygote, profile="subprocess")
    chain = """
import ctypes, os
libc = ctypes.PyDLL(None)
for _ in range(8):
    if os.fork() == 0:
        while True:
            if libc.fork():
                libc._exit(0)
control.send(b"started")
"""
    with slot.connect() as sock:
        assign(sock, chain)
        assert receive(sock)["body"] == b"started"
        for _ in range(20):
            with slot.connect() as other:
                assert hello(other)["state"] == "assigned"
        os.kill(slot.worker, signal.SIGKILL)
        while (message := receive(sock))["op"] != "exited":
            assert message["op"] == "worker"
        assert message["status"] == signal.SIGKILL


@pytest.mark.parametrize("how", ["control.send(b'')", "control.close()"], ids=["empty", "closed"])
def test_a_worker_that_hangs_up_loses_its_slot(slot: Any, how: str) -> None:
    """It could report nothing more, so nobody waits for it: without an end of its own, all of the slot ends."""
    pidfd, worker = os.pidfd_open(slot.pid), os.pidfd_open(slot.worker)
    with slot.connect() as sock:
        assign(sock, f"import time\n{how}\ntime.sleep(3600)")
        assert seqpacket.recv_packet(sock) == (None, [])
    wait_for(worker)
    wait_for(pidfd)


def test_a_worker_that_hangs_up_and_ends_is_told_of(slot: Any) -> None:
    """Its own status is what the daemon hears, whenever it comes."""
    with slot.connect() as sock:
        assign(sock, "import os, time\ncontrol.close()\ntime.sleep(0.1)\nos._exit(7)")
        assert receive(sock) == {"op": "exited", "status": 7 << 8}
    time.sleep(1.5)
    with slot.connect() as late:
        assert hello(late)["status"] == 7 << 8


def test_sigterm_ends_the_slot(slot: Any) -> None:
    """Init ends at once, and with it all that is in its pid namespace."""
    pidfd, worker = os.pidfd_open(slot.pid), os.pidfd_open(slot.worker)
    os.kill(slot.pid, signal.SIGTERM)
    wait_for(worker)
    wait_for(pidfd)


def wait_for(pidfd: int) -> None:
    """Until the process has ended."""
    import select

    assert select.select([pidfd], [], [], 20)[0], "the process is still there"
    os.close(pidfd)
