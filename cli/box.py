"""The box that a command talks to: its run directory, its admin API, and the screen."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bedsit.cli.render import Screen
from bedsit.ipc.admin import SOCKET_NAME, AdminClient, Body

DEFAULT_RUN_DIR: Final = Path("/run/bedsit")
DEFAULT_STATE_DIR: Final = Path("/var/lib/bedsit")
_READS: Final = frozenset({"ping", "status", "ps", "events", "logs", "device.partition.plan"})


class Box:
    """One machine as a command sees it. Connects when first asked."""

    def __init__(self, run_dir: Path | None, screen: Screen) -> None:
        self.run_dir_given = run_dir is not None
        self.run_dir = run_dir or DEFAULT_RUN_DIR
        self.screen = screen
        self.changing: str | None = None
        self._admin = AdminClient(self.run_dir / SOCKET_NAME)

    def move_to(self, run_dir: Path) -> None:
        """Talk to the box at *run_dir* from now on."""
        self.run_dir = run_dir
        self._admin.close()
        self._admin = AdminClient(run_dir / SOCKET_NAME)

    def call(self, op: str, **args: Any) -> Any:
        """Run an admin operation; its phases are told once it takes a second."""
        with self.screen.phases() as phases:
            return self.call_telling(phases, op, **args)

    def call_telling(self, phases: Any, op: str, *, body: Body | None = None, **args: Any) -> Any:
        """Run an admin operation inside phases that the caller already shows."""
        if op not in _READS and not op.endswith((".list", ".show", ".explain")):
            self.changing = op
        result = self._admin.call(op, progress=phases, body=body, **args)
        self.changing = None
        return result

    def stream(self, op: str, **args: Any) -> Iterator[dict[str, Any]]:
        """The items of an admin operation as they come."""
        return self._admin.stream(op, **args)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admin.close()
