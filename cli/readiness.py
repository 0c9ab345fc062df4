"""When a box is up: the daemon answers, the router is connected, the pool is full. Each is a phase with its time."""

import contextlib
import time
from pathlib import Path
from typing import Any, Final

from bedsit.cli.report import Report
from bedsit.ipc.admin import SOCKET_NAME, AdminClient, Phase
from bedsit.ipc.errors import BedsitError, error

_ANSWER_S: Final = 2.0


class Readiness:
    """Looks at a starting box; ``done`` once it is up."""

    def __init__(self, run_dir: Path, report: Report, within_s: float) -> None:
        self._run_dir = run_dir
        self._report = report
        self._within_s = within_s
        self._began = time.monotonic()
        self._admin = AdminClient(run_dir / SOCKET_NAME, timeout_s=_ANSWER_S)
        self._phase: str | None = None
        self._phase_began = self._began
        self._status: dict[str, Any] = {}
        self.done = False
        self._enter("daemon answers")

    @property
    def is_late(self) -> bool:
        """Whether the start has taken too long."""
        return not self.done and time.monotonic() - self._began > self._within_s

    def look(self) -> bool:
        """Ask the daemon how far it is; True when it answers."""
        try:
            self._status = self._admin.call("status")
        except BedsitError:
            return False
        if not self._part("router").get("connected"):
            self._enter("router connects")
        elif not self._pool_is_full():
            self._enter("pool fills")
        else:
            self._enter(None)
            self.done = True
            self._admin.close()
            self._report.ready(self._describe())
        return True

    def describe_delay(self, daemon_words: str) -> BedsitError:
        """Why it is not up: what it waits for, and what daemon and slots said about it."""
        why = [daemon_words] if daemon_words else []
        with contextlib.suppress(BedsitError):
            events = self._admin.stream("events", limit=20)
            refused = [str(e.get("text")) for e in events if e.get("kind") in {"slot.refused", "zygote.died"}]
            why = refused[-1:] or why
        pool = self._part("pool")
        state = f" ({pool.get('blank')} of {pool.get('target')} slots)" if self._phase == "pool fills" else ""
        return error(
            "deadline.exceeded",
            "\n".join([f"not up within {self._within_s:g} s; it waits until the {self._phase}{state}", *why]),
            "what this machine lacks: bedsit doctor; what was tried: logs/ in the run directory",
        )

    def _describe(self) -> str:
        took = time.monotonic() - self._began
        pool = self._part("pool")
        pids = f"daemon {self._status.get('pid')}, router {self._part('router').get('pid')}"
        return f"up in {took:.1f} s: {pids}, {pool.get('blank')} blank slots"

    def _pool_is_full(self) -> bool:
        pool = self._part("pool")
        return int(pool.get("blank") or 0) >= int(pool.get("target") or 0)

    def _part(self, key: str) -> dict[str, Any]:
        value = self._status.get(key)
        return value if isinstance(value, dict) else {}

    def _enter(self, phase: str | None) -> None:
        if phase == self._phase:
            return
        now = time.monotonic()
        if self._phase is not None:
            self._report.phase(Phase(self._phase, (now - self._phase_began) * 1000))
        self._phase, self._phase_began = phase, now
        if phase is not None:
            self._report.phase(Phase(phase, None))
