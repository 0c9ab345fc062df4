"""The floor of births from outside: a warm process that makes slots by `bench.straight`, and their groups."""

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bedsit.ipc.seqpacket import close_all
from bedsit.sandbox.cgroup import CgroupBackend
from bedsit.sandbox.jail.context import INIT_ID, WORKER_ID
from bedsit.sandbox.jail.limits import rlimits
from bedsit.sandbox.seccomp import compile_filter
from bedsit.supervisor.blank import BLANK
from bedsit.supervisor.watch import wait_empty
from bench.report import ROOT

_WARM_S: Final = 60.0
_EMPTY_S: Final = 10.0
_PACKET: Final = 1 << 16
_BUNDLE_BYTES: Final = 2 << 30


class Made(NamedTuple):
    """How long one took from fork to ready, and how long the call of its fork alone, in milliseconds."""

    ready_ms: float
    clone_ms: float


class Line:
    """Makes slots one at a time. *uid* and the one above it are theirs, *folder* holds their folders."""

    def __init__(self, backend: CgroupBackend, folder: Path, uid: int) -> None:
        self._backend, self._folder, self._uid = backend, folder, uid
        (folder / "root").mkdir(parents=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-m", "bench.straight", str(theirs.fileno())]
            self._process = subprocess.Popen(argv, cwd=ROOT, pass_fds=[theirs.fileno()], start_new_session=True)
        ours.settimeout(_WARM_S)
        self._socket = ours
        self._hear()

    async def make_one(self, slot: str, *, into_group: bool = True) -> Made:
        """One slot; its group is there before, and gone afterwards. Raises RuntimeError.

        Without *into_group* it is born outside its cgroup2 group, and joins no hierarchy.
        """
        backend, run_dir = self._backend, self._folder / slot
        backend.create(slot)
        backend.set_limits(slot, BLANK)
        run_dir.mkdir()
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            build, keep = os.pipe()
            group, joins = backend.open_group_fd(slot), backend.open_join_fds(slot)
            undo.callback(close_all, [build, keep, group, *joins])
            fds = [listener.fileno(), build, group, *(joins if into_group else [])]
            pid, made = self._ask(slot, run_dir, fds, into_group=into_group)
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await asyncio.to_thread(select.select, [pidfd], [], [], _EMPTY_S)  # its init dies last
        os.close(pidfd)
        await wait_empty(backend, slot, _EMPTY_S)
        backend.remove(slot)
        run_dir.rmdir()
        return made

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.wait()

    def _ask(self, slot: str, run_dir: Path, fds: Sequence[int], *, into_group: bool) -> tuple[int, Made]:
        order = {
            "slot": slot,
            "run_dir": str(run_dir),
            "staging": str(self._folder / "root"),
            "worker_uid": self._uid + 1,
            "map": f"{INIT_ID} {self._uid} 1\n{WORKER_ID} {self._uid + 1} 1\n",
            "rlimits": list(rlimits(_BUNDLE_BYTES).items()),
            "filter": compile_filter("standard").hex(),
            "init_filter": compile_filter("init").hex(),
            "into_group": into_group,
        }
        socket.send_fds(self._socket, [json.dumps(order).encode()], list(fds))
        answer = self._hear()
        if "error" in answer:
            raise RuntimeError(f"straight line: {answer['error']}")
        return answer["pid"], Made(answer["ms"], answer["clone_ms"])

    def _hear(self) -> dict[str, Any]:
        answer = self._socket.recv(_PACKET)
        if not answer:
            raise RuntimeError("straight line: its process ended")
        heard: dict[str, Any] = json.loads(answer)
        return heard
