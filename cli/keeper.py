"""The parent behind ``bedsit up``: keeps a daemon and a router running, whether it started them or found them.

    start    take over what runs, start the daemon, then the router (as the owner of the folder the daemon made for it)
    keep     start again what dies, at once the first time, then with back-off
    end      ^C or TERM: have the daemon end everything. The daemon went down by order: end. Exit status 78: end with it

Guarantees: whatever ends this process in another way, kill -9 included, ends nothing else; the next ``up`` goes on from
there. The keeper is a subreaper, so that orphans of its daemons (zygotes, inits) are collected and do not stay zombies.
"""

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from socket import SOCK_SEQPACKET, SOCK_STREAM, SocketKind
from typing import Final, NamedTuple

from bedsit.cli.backoff import Backoff
from bedsit.cli.box import Box
from bedsit.cli.down import end_everything, has_leftovers
from bedsit.cli.listener import take_listener
from bedsit.cli.logfile import LogFile
from bedsit.cli.process import Process, adopt_orphans, find_module, reap_children, start_process
from bedsit.cli.readiness import Readiness
from bedsit.cli.report import CONFIG_EXIT, Report
from bedsit.cli.signals import catch_signals
from bedsit.ipc.admin import SOCKET_NAME
from bedsit.ipc.errors import BedsitError, error

_TICK_S: Final = 0.05
_IDLE_TICK_S: Final = 0.25
_MOST_EARLY_DEATHS: Final = 5
_END_S: Final = 10.0
_END_ATTEMPTS: Final = 3
_BY_ORDER_S: Final = 1.0
_DAEMON_OOM: Final = -900
_ROUTER_OOM: Final = -800


class Programs(NamedTuple):
    """What is run as daemon and as router; the options come behind."""

    daemon: tuple[str, ...]
    router: tuple[str, ...]


def find_programs() -> Programs:
    """Ours."""
    return Programs(find_module("bedsit.supervisor"), find_module("bedsit.supervisor.router"))


@dataclass(slots=True)
class Part:
    """The daemon or the router: the process that runs now, or when to start the next."""

    name: str
    program: tuple[str, ...]
    socket: Path
    kind: SocketKind
    oom_score_adj: int
    log: LogFile
    process: Process | None = None
    due: float | None = None
    log_mark: int = 0
    backoff: Backoff = field(default_factory=Backoff)


class Keeper:
    """Runs until everything is down. Use once, in the main thread: it takes the signals."""

    def __init__(
        self,
        box: Box,
        daemon_options: list[str],
        report: Report,
        ready_within_s: float,
        programs: Programs | None = None,
    ) -> None:
        self._box = box
        self._daemon_options = daemon_options
        self._report = report
        self._readiness = Readiness(box.run_dir, report, ready_within_s)
        programs = programs or find_programs()
        logs = box.run_dir / "logs"
        self._daemon = Part(
            "daemon",
            programs.daemon,
            box.run_dir / SOCKET_NAME,
            SOCK_STREAM,
            _DAEMON_OOM,
            LogFile(logs / "bedsitd.log"),
        )
        self._router = Part(
            "router",
            programs.router,
            box.run_dir / "router" / "door.sock",
            SOCK_SEQPACKET,
            _ROUTER_OOM,
            LogFile(logs / "router.log"),
        )
        self._parts = (self._daemon, self._router)
        self._asked_to_end = False

    def run(self) -> int:
        """Keep everything running; the exit status once it is down. Raises BedsitError when it could not be started."""
        adopt_orphans()
        with catch_signals((signal.SIGINT, signal.SIGTERM, signal.SIGCHLD), self._hear_signal) as wake_fd:
            self._take_over()
            try:
                return self._keep(wake_fd)
            except BedsitError:
                # What this process started and never saw ready is not left behind half-way.
                if not self._readiness.done and self._daemon.process is not None and self._daemon.process.is_child:
                    self._end()
                raise

    def _keep(self, wake_fd: int) -> int:
        while True:
            reap_children([p.process for p in self._parts if p.process is not None])
            for part in self._parts:
                if part.process is not None and part.process.await_end():
                    status = self._note_end(part)
                    if status is not None:
                        return status
                self._start_if_due(part)
            if self._asked_to_end:
                self._end()
                return 0
            if not self._readiness.done:
                self._look_after_start()
            self._tell_logs()
            self._wait(wake_fd)

    def _take_over(self) -> None:
        for part in self._parts:
            found = take_listener(part.socket, part.kind)
            if found is not None:
                part.process = Process(found.pid, found.pidfd, is_child=False)
                self._report.notice(f"the {part.name} already runs, pid {found.pid}")
        if self._daemon.process is None:
            self._daemon.due = time.monotonic()

    def _start_if_due(self, part: Part) -> None:
        if part.process is not None or part.due is None or time.monotonic() < part.due:
            return
        part.due = None
        part.log_mark = part.log.mark()
        options = self._daemon_options if part is self._daemon else ["--run-dir", str(self._box.run_dir), *self._user()]
        part.process = start_process([*part.program, *options], part.log.fd)
        with contextlib.suppress(OSError):  # it may be gone already; then that is what we hear next
            part.process.protect(part.oom_score_adj)

    def _user(self) -> list[str]:
        """Who the router is: the owner of the folder that the daemon made for it."""
        owner = (self._box.run_dir / "router").stat()
        return ["--user", f"{owner.st_uid}:{owner.st_gid}"]

    def _look_after_start(self) -> None:
        daemon_answers = self._readiness.look()
        if daemon_answers and self._router.process is None and self._router.due is None:
            self._router.due = time.monotonic()
        if self._readiness.is_late:
            raise self._readiness.describe_delay(self._last_words(self._daemon))

    def _note_end(self, part: Part) -> int | None:
        """A part's process has ended. The exit status of ``up`` if that is the end of it, else None."""
        process = part.process
        if process is None:
            return None
        part.process = None
        process.close()
        if part is self._daemon and not process.status and not has_leftovers(self._box.run_dir):
            # It went by order (``bedsit down``): that leaves nothing. One that was only ended leaves its slots.
            self._end_router()
            self._report.notice("everything went down by order")
            return 0
        if part is self._daemon and process.status == CONFIG_EXIT:
            failure = part.log.find_refusal(part.log_mark) or error(
                "config.invalid", self._last_words(part) or "the daemon refused its configuration"
            )
            failure.detail["exit_code"] = CONFIG_EXIT
            raise failure
        delay = part.backoff.next_delay(time.monotonic() - process.since)
        if not self._readiness.done:
            self._check_start(part, process)
        if part is self._router and not process.status and not has_leftovers(self._box.run_dir):
            # It went by order, and nothing is left to route to: the daemon is about to follow. If not, it comes back.
            part.due = time.monotonic() + _BY_ORDER_S
            return None
        again = "at once" if delay == 0 else f"in {delay:g} s"
        gone = f"the {part.name}, pid {process.pid}, is gone ({process.describe_end()})"
        self._report.notice(f"{gone}; starts again {again}")
        part.due = time.monotonic() + delay
        return None

    def _check_start(self, part: Part, process: Process) -> None:
        """Raise why there is no point in trying again: it says so itself, or has died often enough."""
        refusal = part.log.find_refusal(part.log_mark)
        if refusal is not None and refusal.code == "daemon.already_running":
            raise refusal
        if part.backoff.failures < _MOST_EARLY_DEATHS:
            return
        words = self._last_words(part)
        raise refusal or error(
            "internal",
            f"the {part.name} does not start: {process.describe_end()}" + (f"\n{words}" if words else ""),
            f"its log: {part.log.path}",
        )

    def _end(self) -> None:
        """Have the daemon end everything. It alone can, so a dead one is brought back for it."""
        self._report.notice("ends everything; Ctrl-C again leaves it running")
        for _ in range(_END_ATTEMPTS):
            if has_leftovers(self._box.run_dir):
                if self._is_gone(self._daemon):
                    self._daemon.due = 0.0
                    self._start_if_due(self._daemon)
                self._await_daemon()
            try:
                with self._box.screen.phases() as phases:
                    end_everything(self._box, phases)
            except BedsitError as failure:
                if failure.code != "daemon.unavailable":
                    raise
                last = failure
            else:
                break
        else:
            raise last
        self._end_router()
        self._report.notice("everything is down")

    def _is_gone(self, part: Part) -> bool:
        """Whether there is no such process any more; forgets one that has just ended."""
        if part.process is not None and part.process.await_end():
            reap_children([part.process])
            part.process.close()
            part.process = None
        return part.process is None

    def _await_daemon(self) -> None:
        """Wait until the daemon answers, or does no longer run, or for long enough."""
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline and not self._is_gone(self._daemon):
            with contextlib.suppress(BedsitError):
                self._box.call_telling(None, "ping")
                return
            time.sleep(_TICK_S)

    def _end_router(self) -> None:
        self._terminate(self._router)
        for part in self._parts:
            if part.process is not None:
                part.process.await_end(_END_S)
        reap_children([p.process for p in self._parts if p.process is not None])

    def _terminate(self, part: Part) -> None:
        """End a part that should end by itself by now: ask, then insist."""
        process = part.process
        if process is None or process.await_end(1.0):
            return
        process.signal(signal.SIGTERM)
        if not process.await_end(_END_S):
            process.signal(signal.SIGKILL)

    def _last_words(self, part: Part) -> str:
        return "\n".join(part.log.last_lines(part.log_mark, 5))

    def _tell_logs(self) -> None:
        for part in self._parts:
            for line in part.log.read_new():
                self._report.line(part.name, line)
            part.log.rotate()

    def _wait(self, wake_fd: int) -> None:
        poller = select.poll()
        poller.register(wake_fd, select.POLLIN)
        wait_s = _IDLE_TICK_S if self._readiness.done else _TICK_S
        for part in self._parts:
            if part.process is not None:
                poller.register(part.process.pidfd, select.POLLIN)
            elif part.due is not None:
                wait_s = min(wait_s, max(0.0, part.due - time.monotonic()))
        for fd, _ in poller.poll(wait_s * 1000):
            if fd == wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_fd, 4096)

    def _hear_signal(self, number: int) -> None:
        if number != signal.SIGCHLD:  # that one is only to wake the loop
            if self._asked_to_end:
                raise KeyboardInterrupt
            self._asked_to_end = True
