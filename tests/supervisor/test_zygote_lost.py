"""A zygote that lives and is of no use is ended, and the next generation forks; none is left behind."""

import asyncio
import ctypes
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor import zygote as module
from bedsit.supervisor.generations import Generations
from bedsit.supervisor.zygote import Zygote

pytestmark = pytest.mark.root

PIDFD_GETFD = 438
#: "greets": then says nothing, or "closes" the connection when it is asked for something. "mute": says nothing at all.
ZYGOTE = """
import os, signal, socket, sys
from bedsit.ipc.seqpacket import recv_packet, send_packet
from bedsit.supervisor.zygote import PROTOCOL

listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
peer, _ = listener.accept()
if sys.argv[2] == "greets":
    recv_packet(peer)
    hello = {"ok": True, "generation": 1, "pid": 1, "version": "x", "forks": 0, "protocol": PROTOCOL}
    send_packet(peer, hello)
if len(sys.argv) > 3:
    recv_packet(peer)
    peer.close()
signal.pause()
"""


def is_alive(pid: int) -> bool:
    """Whether the process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def find_zygote(box: Any) -> dict[str, Any]:
    """The generation that forks."""
    found: dict[str, Any] = box.call("status")["zygote"]
    return found


def wait_next(box: Any, before: dict[str, Any]) -> None:
    """Wait until the next generation forks and the one before has ended."""
    box.wait(lambda: find_zygote(box)["generation"] == before["generation"] + 1, 60)
    box.wait(lambda: not is_alive(before["pid"]))


def cut_link(box: Any, zygote: int) -> None:
    """End the connection between the daemon and its zygote, under both of them."""
    pidfd = os.pidfd_open(box.daemon.pid)
    with ExitStack() as undo:
        undo.callback(os.close, pidfd)
        for number in os.listdir(f"/proc/{box.daemon.pid}/fd"):
            fd = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, int(number), 0)
            if fd < 0:
                continue
            undo.callback(os.close, fd)
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            with socket.socket(fileno=os.dup(fd)) as end, suppress(OSError):  # not every socket has a peer
                peer = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                if struct.unpack("3i", peer)[0] == zygote:
                    end.shutdown(socket.SHUT_RDWR)


def test_a_lost_connection_is_the_end_of_the_generation(box: Any) -> None:
    """The process would live on, and nobody could ask it for a slot: it goes, and its slots stay."""
    before, (slot,) = find_zygote(box), box.ps(state="blank")
    cut_link(box, before["pid"])
    wait_next(box, before)

    assert [row["slot"] for row in box.ps(state="blank")] == [slot["slot"]]
    os.kill(slot["init_pid"], signal.SIGKILL)
    box.wait(lambda: [row["generation"] for row in box.ps(state="blank")] == [2])


def test_down_ends_a_zygote_that_hangs(new_box: Callable[[], Any]) -> None:
    """`bedsit down` means it: the box's own check finds no process of it afterwards."""
    box = new_box().start()
    zygote = find_zygote(box)["pid"]
    os.kill(zygote, signal.SIGSTOP)
    box.close()

    assert not is_alive(zygote)


def test_a_zygote_that_takes_no_connection_keeps_no_daemon_from_starting(box: Any) -> None:
    """Its queue is full: connecting would wait for ever."""
    before = find_zygote(box)
    box.kill_daemon()
    os.kill(before["pid"], signal.SIGSTOP)
    with ExitStack() as undo:
        with suppress(BlockingIOError):
            while True:
                one = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                one.setblocking(False)
                one.connect(str(box.run / "zygotes" / "1.sock"))
        box.start()
    wait_next(box, before)


@pytest.mark.parametrize("how", ["known", "a slot ends", "nothing happens"])
def test_a_zygote_that_still_starts_when_its_daemon_dies_is_ended(new_box: Callable[[], Any], how: str) -> None:
    """At once by the next daemon; or, if not even its process was written down, when it listens, by and by."""
    box = new_box()
    trace = box.run / "zygotes" / "1.pid"
    box.daemon = box.launch()
    box.wait(trace.exists)
    box.kill_daemon()
    zygote = int(trace.read_text().split()[0])
    assert not (box.run / "zygotes" / "1.sock").exists()
    if how != "known":
        os.kill(zygote, signal.SIGSTOP)
        trace.unlink()
    box.start()

    assert find_zygote(box)["generation"] == 2
    if how != "known":
        os.kill(zygote, signal.SIGCONT)
        box.wait((box.run / "zygotes" / "1.sock").exists)
    if how == "a slot ends":
        os.kill(box.ps(state="blank")[0]["init_pid"], signal.SIGKILL)
    box.wait(lambda: not is_alive(zygote), 60)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that listens as generation 1, while everybody is impatient."""
    for name in ("_SPAWN_S", "_HELLO_S", "_STOP_S"):
        monkeypatch.setattr(module, name, 0.3)
    with ExitStack() as undo:

        def run(*how: str) -> subprocess.Popen[str]:
            argv = [sys.executable, "-c", ZYGOTE, str(tmp_path / "1.sock"), *how]
            process = undo.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
            undo.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process

        yield run


async def meet(path: Path, ask: Callable[[Zygote], Any]) -> list[str]:
    """Greet generation 1, ask it for something in vain, and give what was heard of its end."""
    ends: list[str] = []
    zygote = Zygote(1, path / "1.sock", lambda _, cause: ends.append(cause))
    with suppress(BedsitError):
        await zygote.greet()
        await ask(zygote)
    for _ in range(100):
        if ends:
            break
        await asyncio.sleep(0.01)
    await zygote.stop()
    return ends


@pytest.mark.parametrize("how", [["greets"], ["greets", "closes"]])
def test_one_that_does_not_answer_an_order_is_ended(start: Any, tmp_path: Path, how: list[str]) -> None:
    """Whether it hangs or closes the connection: the process goes, by no number that it claims, and its end is told."""
    process = start(*how)
    ends = asyncio.run(meet(tmp_path, lambda zygote: zygote.spawn({"slot": "s1"}, [])))

    assert ends == [f"generation 1 (pid {process.pid}) ended"]
    process.wait(5)


def test_one_that_never_greeted_is_ended_by_a_stop(start: Any, tmp_path: Path) -> None:
    """Nobody learned its number from it, and its end is no news."""
    process = start("mute")

    assert asyncio.run(meet(tmp_path, lambda _: None)) == []
    process.wait(5)


def test_traces_of_ended_generations_go(tmp_path: Path) -> None:
    """But for the newest logs, the newest number, and whoever lives or has a group."""
    generations = Generations(tmp_path)
    for generation in range(1, 9):
        generations.log(generation).touch()
        generations.save_process(generation, 1, 2)
    generations.save_group(1, Path("/group"))
    generations.forget_ended({3})

    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"1.log", "1.pid", "1.group", "3.log", "3.pid", "6.log", "7.log", "8.log", "8.pid"}
    assert generations.next_number() == 9
