"""What a rival is: packages, commands, and how one of its models is called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from bench.rivals.models import Array


class Caller(Protocol):
    """One client's connection to one model."""

    def hold(self, x: Array) -> Array:
        """*x* where this client keeps what it sends: itself, or a copy in memory that is shared with the server."""

    def __call__(self, x: Array) -> Array:
        """Ask and wait. What comes back may be overwritten by the next call."""

    def close(self) -> None:
        """End the connection."""


ROOT: Final = Path(__file__).parents[2]


class Place(NamedTuple):
    """Where a rival runs: its environment's interpreter, a folder for whatever it writes, ports that were free."""

    python: Path
    folder: Path
    ports: Sequence[int]

    def find_packages(self) -> Path:
        """The folder of the environment's own packages."""
        return next((self.python.parents[1] / "lib").glob("python3*/site-packages"))

    def find_program(self, name: str) -> Path:
        """A program that came with the environment's packages."""
        return self.python.parent / name


class Command(NamedTuple):
    """One process to start."""

    argv: Sequence[object]
    env: Mapping[str, str] = {}


@dataclass(frozen=True)
class Rival:
    """A server to be measured.

    *make_commands* gives what to run to serve some models; *connect* gives one client's caller of one model.
    *requirements* are pip's, pinned, the server's own package first; *needs* are programs that pip cannot bring;
    *release* is the server's version where its package counts differently; *clean* removes what a killed server leaves
    outside of its place.
    """

    name: str
    requirements: Sequence[str]
    make_commands: Callable[[Place, Sequence[str]], Sequence[Command]]
    connect: Callable[[Place, str], Caller]
    needs: Sequence[str] = ()
    without_dependencies: bool = False
    release: str = ""
    clean: Callable[[Place], None] | None = None

    @property
    def version(self) -> str:
        """The server's version."""
        return self.release or self.requirements[0].partition("==")[2]
