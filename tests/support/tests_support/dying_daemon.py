"""bedsitd, which kills itself right before one of its own steps.

Run as ``python -I dying_daemon.py PLAN python -I -m bedsit.supervisor ...``. While the file PLAN is there, steps count,
and each is written down in PLAN.steps; the one that PLAN names is not taken. A step is whatever somebody else can see
afterwards: a file or a folder made, rewritten, renamed or removed (cgroups are nothing else), a socket bound, a process
started, a transaction committed, something sent. Python itself tells of most of them (PEP 578): none is forgotten when
the daemon gets a new one. Owners and modes do not count.

The moment after a step is the one before the next: what others do in between, they do without the daemon.
"""

import asyncio
import os
import re
import runpy
import signal
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Any

_WRITES = os.O_CREAT | os.O_TRUNC
_PATHS = {"os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.posix_spawn"}
#: What is another one in each run: slots, generations, temporary names, digests, where the box and its groups are.
_CHANGING = (
    (re.compile(r"\bs[0-9a-f]{8}\b"), "SLOT"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"\.upload-\w+"), ".upload"),
    (re.compile(r"zygotes/(\.?)\d+"), r"zygotes/\1N"),
    (re.compile(r"/sys/fs/cgroup/(\w+)/.*?bedsit-\w+"), r"\1"),
    (re.compile(r"/tmp/bedsit-\w+/"), ""),
)
_EVENT = re.compile(r"INSERT INTO events .*?VALUES \('[^']*', ?'([a-z._]+)'", re.DOTALL)
_CHANGE = re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) \w+")
_connect, _write, _send = sqlite3.connect, os.write, asyncio.StreamWriter.write


class Steps:
    """Counts steps by their names, and ends the daemon when *plan* names one."""

    def __init__(self, plan: Path) -> None:
        self._plan = plan
        self._counts: Counter[str] = Counter()
        self._busy = False

    def take(self, name: str) -> None:
        """A step is about to be taken. What this does itself is none."""
        if self._busy:
            return
        self._busy = True
        if self._plan.exists():
            for pattern, word in _CHANGING:
                name = pattern.sub(word, name)
            self._counts[name] += 1
            numbered = f"{name} #{self._counts[name]}"
            if numbered == self._plan.read_text():
                os.kill(os.getpid(), signal.SIGKILL)
            with self._plan.with_suffix(".steps").open("a") as file:
                file.write(f"{numbered}\n")
        self._busy = False


steps = Steps(Path(sys.argv[1]))


def hear(event: str, args: tuple[Any, ...]) -> None:
    """What Python is about to do."""
    if event == "open" and not isinstance(args[0], int) and args[2] & _WRITES:
        steps.take(f"write {os.fsdecode(args[0])}")
    elif event in _PATHS and not (event == "os.mkdir" and os.path.exists(args[0])):
        steps.take(f"{event.removeprefix('os.')} {os.fsdecode(args[0])}")
    elif event == "socket.bind":
        steps.take(f"bind {args[1]}")
    elif event == "socket.sendmsg":
        steps.take(f"send {args[0].getpeername()}")


class Statements:
    """Hears of each statement of a database before it is run."""

    def __init__(self) -> None:
        self._change = ""

    def __call__(self, statement: str) -> None:
        if found := _EVENT.match(statement):
            steps.take(f"event {found[1]}")
        elif found := _CHANGE.match(statement):
            self._change = found[0]
        elif statement == "COMMIT":
            steps.take(f"commit {self._change}")


def connect(*args: Any, **options: Any) -> sqlite3.Connection:
    """As sqlite3.connect."""
    database = _connect(*args, **options)
    database.set_trace_callback(Statements())
    return database


def write(fd: int, data: bytes) -> int:
    """As os.write: to a slot that waits for its commit."""
    steps.take("write to a pipe")
    return _write(fd, data)


def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """As StreamWriter.write. Questions to the router and what callers are told of progress leave nothing behind."""
    for word in (b"snapshot", b"continue", b"\xa2ok"):
        if word in data[:32]:
            steps.take(f"send {word.decode(errors='ignore')}")
    _send(writer, data)


sqlite3.connect, os.write, asyncio.StreamWriter.write = connect, write, send  # type: ignore[method-assign]
sys.addaudithook(hear)
sys.argv = sys.argv[5:]
sys.dont_write_bytecode = True
runpy.run_module("bedsit.supervisor", run_name="__main__", alter_sys=True)
