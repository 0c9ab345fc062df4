"""A rival that runs: started, found, asked, stopped."""

import os
import signal
import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol

from bench.rivals.http import HOST
from bench.rivals.keeper import find_tree, has_ended, signal_tree, start_keeper, stop_keeper
from bench.rivals.rival import ROOT, Caller, Command, Place, Rival

#: More than any rival listens on.
_PORTS: Final = 8
_TAIL_LINES: Final = 8
_TAIL_CHARACTERS: Final = 600


class Server(Protocol):
    """Something that serves models by name."""

    name: str
    version: str

    def start(self, models: Sequence[str]) -> None:
        """Start it; it may return before it serves."""

    def connect(self, model: str) -> Caller:
        """One client's caller. Runs in the client's own process."""

    def find_pids(self) -> list[int]:
        """Its processes."""

    def rest(self) -> None:
        """Let it use no processor time until ``wake``."""

    def wake(self) -> None:
        """Let it run again."""

    def is_there(self) -> bool:
        """Whether it has not ended."""

    def explain(self) -> str:
        """Its last words, for whoever hears of its failure."""

    def stop(self) -> None:
        """End it and remove what it wrote."""


class RivalServer:
    """A rival in an environment that is there, whose interpreter is *python*. What it says goes to *log*."""

    def __init__(self, rival: Rival, python: Path, log: Path) -> None:
        self.name = rival.name
        self.version = rival.version
        self._rival = rival
        self._python = python
        self._log = log
        self._keeper: int | None = None

    def start(self, models: Sequence[str]) -> None:
        """Start its processes; returns at once."""
        # Short: some rivals put sockets there.
        self._place = Place(self._python, Path(tempfile.mkdtemp(prefix="rival-")), _find_ports())
        self._log.unlink(missing_ok=True)
        commands = [self._complete(command) for command in self._rival.make_commands(self._place, models)]
        self._keeper = start_keeper(commands, self._place.folder, self._log)

    def connect(self, model: str) -> Caller:
        """As the rival does it."""
        return self._rival.connect(self._place, model)

    def find_pids(self) -> list[int]:
        """All below its keeper."""
        return [] if self._keeper is None else find_tree(self._keeper)

    def rest(self) -> None:
        """Stop its processes: some use a good part of a core while nobody asks them."""
        if self._keeper is not None:
            signal_tree(self._keeper, signal.SIGSTOP)

    def wake(self) -> None:
        """Continue its processes."""
        if self._keeper is not None:
            signal_tree(self._keeper, signal.SIGCONT)

    def is_there(self) -> bool:
        """Whether all of its commands still run."""
        return self._keeper is not None and not has_ended(self._keeper)

    def explain(self) -> str:
        """The end of its log."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return " | ".join(line.strip() for line in lines[-_TAIL_LINES:] if line.strip())[-_TAIL_CHARACTERS:]

    def stop(self) -> None:
        """End its processes; its folder goes with them."""
        if self._keeper is None:
            return
        stop_keeper(self._keeper)
        self._keeper = None
        if self._rival.clean is not None:
            self._rival.clean(self._place)

    def _complete(self, command: Command) -> Command:
        programs = os.pathsep.join([str(self._python.parent), os.environ.get("PATH", os.defpath)])
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        places = {"PATH": programs, "PYTHONPATH": str(ROOT), "TMPDIR": str(self._place.folder)}
        return Command(command.argv, {**one, **places, **command.env})


def _find_ports() -> list[int]:
    """Ports that nobody listens on now: all are held until the last is found, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(_PORTS)]
        for sock in sockets:
            sock.bind((HOST, 0))
        return [sock.getsockname()[1] for sock in sockets]
