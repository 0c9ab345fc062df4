"""A bedsit of its own in a folder of its own: for demonstrations, benchmarks and tests, never the system's.

Everything is done as an operator would do it, through the command line; only questions go to the admin API directly.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

from bedsit.ipc.admin import SOCKET_NAME, AdminClient
from bedsit.ipc.errors import BedsitError

T = TypeVar("T")

#: Slots of boxes like this take their uids from here on, away from a system's bedsit; each process has its own part.
_UID_BASE: Final = 1_930_000_000
_UIDS: Final = 4096


class Process(NamedTuple):
    """A process and when it started, which together never come back."""

    pid: int
    started: str
    words: str


class Box:
    """Runs between ``up`` and ``down``; as a context manager, between enter and exit. Needs root.

    *settings* are keys of the daemon's configuration; a mapping becomes a table of it.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None, *, parent: str | None = None) -> None:
        # Short: what lies below holds sockets, whose paths may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="bedsit-", dir=parent))
        # The router and unprivileged clients have to get in.
        self.folder.chmod(0o755)
        self.run_dir = self.folder / "run"
        self.state_dir = self.folder / "state"
        self.config = self.folder / "bedsit.toml"
        self.admin = AdminClient(self.run_dir / SOCKET_NAME, timeout_s=120)
        uid_base = _UID_BASE + os.getpid() % 4096 * _UIDS
        self.config.write_text(_as_toml({"uid_base": uid_base, "uid_count": _UIDS, **(settings or {})}))
        self._seen: set[tuple[int, str]] = set()
        self._groups: set[Path] = set()

    def up(self) -> Self:
        """Start it; blocks until daemon, router and pool are there. Raises RuntimeError with what the command said."""
        place = ("--run-dir", self.run_dir, "--state-dir", self.state_dir, "--config", self.config)
        self.read("up", "--detach", *place)
        self.look()
        return self

    def down(self) -> None:
        """End everything and remove the folder. Raises RuntimeError when anything is left."""
        try:
            if self.run_dir.exists():
                self.look()
                self.admin.close()
                self.read("down")
            left = wait_for_none(self.find_leftovers)
            if left:
                raise RuntimeError("left behind: " + "; ".join(left))
        finally:
            self.remove()

    def remove(self) -> None:
        """What ``down`` could not end is killed, then the folder goes."""
        self.admin.close()
        for process in self._find_processes():
            if _is_alive(process):
                os.kill(process.pid, signal.SIGKILL)
        for group in self._find_groups():
            kill = group / "cgroup.kill"
            if kill.exists():
                kill.write_text("1")
        wait_for_none(lambda: [group for group in self._find_groups() if not _remove_group(group)])
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *words: object, stdin: str | None = None, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
        """Run a ``bedsit`` command on this box and give what came of it, whatever that is."""
        return subprocess.run(
            [sys.executable, "-m", "bedsit.cli.main", *map(str, words)],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "BEDSIT_RUN_DIR": str(self.run_dir)},
        )

    def read(self, *words: object, stdin: str | None = None) -> str:
        """Run a ``bedsit`` command on this box; gives its stdout. Raises RuntimeError when it fails."""
        done = self.run(*words, stdin=stdin)
        if done.returncode != 0:
            said = done.stderr.strip() or done.stdout.strip()
            raise RuntimeError(f"bedsit {' '.join(map(str, words))}: exit code {done.returncode}\n{said}{self._why()}")
        return done.stdout

    def json(self, *words: object) -> Any:
        """Run a ``bedsit`` command for JSON; gives its item, its list of items, or None. Raises RuntimeError."""
        said = self.read(*words, "-o", "json")
        answer = json.loads(said) if said.strip() else {"item": None}
        return answer["items"] if "items" in answer else answer["item"]

    def items(self, *words: object) -> list[dict[str, Any]]:
        """Run a ``bedsit`` command for a list; gives its rows. Raises RuntimeError."""
        return [json.loads(line) for line in self.read(*words, "-o", "jsonl").splitlines()]

    def daemon_pid(self) -> int | None:
        """The daemon's pid, None while there is none."""
        try:
            return int(self.admin.call("ping")["pid"])
        except BedsitError:
            return None

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        status: dict[str, Any] = self.admin.call("status")
        return status

    def tenant(self, name: str) -> dict[str, Any]:
        """What the daemon says of one tenant."""
        tenant: dict[str, Any] = self.admin.call("tenant.show", name=name)
        return tenant

    def await_pool(self, timeout_s: float = 30) -> None:
        """Block until the pool is full of blank slots."""
        wait_until(lambda: _is_full(self.status()["pool"]), timeout_s, "the pool is full")

    def look(self) -> None:
        """Remember which processes and cgroups there are, so that ``find_leftovers`` knows what should be gone."""
        places = self.run_dir / "places.json"
        if places.exists():
            self._groups |= {Path(place) for place in json.loads(places.read_text())["places"].values()}
        self._seen |= {(process.pid, process.started) for process in self._find_processes()}

    def marks(self) -> list[str]:
        """Words that whatever belongs to this box carries in its name: folder, cgroup, pid."""
        self.look()
        pids = [f"{process.pid} (" for process in self._find_processes()]
        return [str(self.folder), *(group.name for group in self._groups), *pids]

    def find_leftovers(self) -> list[str]:
        """Processes, cgroups, mounts and sockets of this box that are still there, in words."""
        left = [f"process {p.pid} ({p.words})" for p in self._find_processes() if _is_alive(p)]
        left += [f"cgroup {group}" for group in self._find_groups()]
        here = f" {self.folder}/"
        left += [f"mount {line.split()[4]}" for line in _read_lines("/proc/self/mountinfo") if here in line]
        left += [f"socket {line.split()[-1]}" for line in _read_lines("/proc/net/unix") if here in line]
        left += [f"socket {path}" for path in self.run_dir.rglob("*.sock")]
        return left

    def __enter__(self) -> Self:
        try:
            return self.up()
        except BaseException:
            self.remove()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.down()
            return
        try:
            self.down()
        except Exception as e:  # noqa: BLE001 - the first failure is the one to hear of
            value.add_note(f"and taking the box down: {e}") if value else None

    def _find_processes(self) -> Iterator[Process]:
        """Those that name the folder or have a file in it open, those in our cgroups, and those seen earlier.

        Daemon, router and zygote give themselves names of their own, and are known by their locks and logs.
        """
        mine = str(self.folder)
        for pid in (entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            found = _read_process(int(pid))
            if found is None or found.pid == os.getpid():
                continue
            groups = "".join(_read_lines(f"/proc/{pid}/cgroup"))
            in_group = any(f"/{group.name}/" in groups or f"/{group.name}\n" in groups for group in self._groups)
            if mine in found.words or in_group or (found.pid, found.started) in self._seen or _has_open(pid, mine):
                yield found

    def _find_groups(self) -> list[Path]:
        """The roots that are still there, each after what is below it."""
        return [Path(path) for top in self._groups for path, _, _ in os.walk(top, topdown=False)]

    def _why(self) -> str:
        """The last words of the daemon, for whoever reads the failure."""
        logs = sorted((self.run_dir / "logs").glob("*")) if self.run_dir.exists() else []
        logs += sorted(self.run_dir.glob("zygotes/*.log"))
        tails = [(log.name, log.read_text(errors="replace").splitlines()[-15:]) for log in logs if log.is_file()]
        return "".join(f"\n--- {name}\n" + "\n".join(tail) for name, tail in tails if tail)


def wait_until(ask: Callable[[], T], timeout_s: float = 30, what: str = "the condition holds") -> T:
    """Ask again and again until the answer is true; gives it. Raises TimeoutError naming *what*."""
    deadline = time.monotonic() + timeout_s
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.005)
    return answer


def wait_for_none(find: Callable[[], list[T]], timeout_s: float = 10) -> list[T]:
    """Look again until nothing is found; gives what still is at the deadline."""
    deadline = time.monotonic() + timeout_s
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _is_full(pool: Mapping[str, int]) -> bool:
    return pool["blank"] >= pool["target"]


def _read_process(pid: int) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    name, _, fields = stat.rpartition(") ")
    return Process(pid, fields.split()[19], words or name.partition("(")[2])


def _has_open(pid: str, folder: str) -> bool:
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if fd.readlink().is_relative_to(folder):
                return True
        except OSError:  # it was closed meanwhile
            continue
    return False


def _is_alive(process: Process) -> bool:
    """Whether it still runs; what only waits to be reaped does not."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX" and fields[19] == process.started


def _remove_group(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines(keepends=True)
    except OSError:
        return []


def _as_toml(settings: Mapping[str, Any], table: str = "") -> str:
    # Numbers, texts and lists are written the same in TOML and JSON; tables come last.
    plain = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, Mapping)]
    tables = [
        f"[{table}{key}]\n{_as_toml(value, f'{table}{key}.')}"
        for key, value in settings.items()
        if isinstance(value, Mapping)
    ]
    return "\n".join(plain + tables) + "\n"
