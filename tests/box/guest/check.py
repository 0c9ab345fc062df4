"""What a check is, and what checks share: running programs, waiting, the box's own bedsit."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

T = TypeVar("T")

PARCEL: Final = Path("/opt/parcel")
BIN: Final = Path("/opt/bedsit/bin")
RUN: Final = Path("/run/bedsit")
CGROUPS: Final = Path("/sys/fs/cgroup")


class Check(NamedTuple):
    """Raises when what its sentence says does not hold; what it gives is said beside "ok". Ended after *within_s*."""

    run: Callable[[], str | None]
    needs: tuple[str, ...]
    within_s: int


#: By name, in the order in which they run.
CHECKS: Final[dict[str, Check]] = {}


def check(*needs: str, within_s: int = 90) -> Callable[[Callable[[], str | None]], Callable[[], str | None]]:
    """Make the function a check, which makes no sense where one of *needs* did not pass."""

    def add(function: Callable[[], str | None]) -> Callable[[], str | None]:
        CHECKS[function.__name__] = Check(function, needs, within_s)
        return function

    return add


def run(*command: str | Path, stdin: str = "", env: dict[str, str] | None = None) -> str:
    """Run a program; gives its stdout. Raises RuntimeError with all that it said when it fails."""
    done = subprocess.run(
        [*map(str, command)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
    )
    if done.returncode != 0:
        words = " ".join(map(str, command))
        raise RuntimeError(f"{words}: exit status {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def bedsit(*words: str) -> str:
    """The operator's command."""
    return run(BIN / "bedsit", *words)


def ask(op: str, **arguments: Any) -> Any:
    """The admin API: what costs the command line seconds on this processor takes milliseconds here."""
    from bedsit.ipc.admin import SOCKET_NAME, AdminClient

    client = AdminClient(RUN / SOCKET_NAME, timeout_s=60)
    try:
        return client.call(op, **arguments)
    finally:
        client.close()


def events(kind: str) -> list[dict[str, Any]]:
    """All events of that kind, oldest first."""
    from bedsit.ipc.admin import SOCKET_NAME, AdminClient

    client = AdminClient(RUN / SOCKET_NAME, timeout_s=60)
    try:
        return [event for event in client.stream("events") if event["kind"] == kind]
    finally:
        client.close()


def is_full() -> bool:
    """Whether the daemon answers, the router is connected, and the pool has its blank slots."""
    from bedsit.ipc.errors import BedsitError

    try:
        status = ask("status")
    except BedsitError:
        return False
    pool = status["pool"]
    return bool(status["router"]["connected"] and pool["blank"] >= pool["target"])


def wait_until(condition: Callable[[], T], what: str, within_s: float = 60) -> T:
    """Look again and again until it is true; gives the answer. Raises TimeoutError naming *what*."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        time.sleep(0.1)
    return answer


def main_pid(unit: str) -> int:
    """The main process of a unit; 0 where there is none."""
    return int(run("systemctl", "show", "--property=MainPID", "--value", unit))


def group_of(pid: int) -> Path:
    """The cgroup of a process."""
    line = Path(f"/proc/{pid}/cgroup").read_text().strip()
    return CGROUPS / line.removeprefix("0::/")
