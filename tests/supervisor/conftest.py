"""A real daemon, zygote and router in folders and uids of their own, and a check that nothing of them is left."""

import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bedsit.cli.pack import open_bundle
from bedsit.ipc.admin import AdminClient, Body
from bedsit.ipc.errors import BedsitError
from tests_support.leaks import find_leaks, take_snapshot

DEADLINE_S = 30.0
TINY = """
    import torch

    def build(bundle):
        return torch.nn.Identity()
"""


class Box:
    """A box of its own: start, kill and question its processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run, self.state = root / "run", root / "state"
        self.uid_base = 1_200_000_000 + secrets.randbelow(60_000) * 10_000
        self.settings: dict[str, Any] = {"pool_size": 1, "drain_timeout_s": 5.0}
        #: What the daemon is started through, with which descriptors and which environment; nothing, none, this one's.
        self.starter: list[str] = []
        self.passed: list[int] = []
        self.environment: dict[str, str] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None
        self.router: subprocess.Popen[bytes] | None = None
        self.closed = False
        self.admin = AdminClient(self.run / "admin.sock", timeout_s=60.0)

    def write_config(self) -> Path:
        """Write the configuration as *settings* say."""
        path = self.root / "bedsit.toml"
        settings = {"uid_base": self.uid_base, **self.settings}
        path.write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()))
        return path

    def launch(self) -> subprocess.Popen[bytes]:
        """Start a daemon and do not wait for it."""
        argv = [*self.starter, sys.executable, "-I", "-m", "bedsit.supervisor", "--config", str(self.write_config())]
        argv += ["--run-dir", str(self.run), "--state-dir", str(self.state)]
        with (self.root / "daemon.log").open("ab") as log:
            return subprocess.Popen(
                argv,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                pass_fds=self.passed,
            )

    def start(self, *, blank: int = 1) -> "Box":
        """Start a daemon and wait until it answers and has *blank* slots."""
        self.daemon = self.launch()
        self.wait(lambda: self.daemon and self.daemon.poll() is None and self.pool() >= blank)
        return self

    def start_router(self) -> None:
        """Start the router and wait until it is connected."""
        argv = [sys.executable, "-I", "-m", "bedsit.supervisor.router", "--run-dir", str(self.run)]
        argv += ["--user", "1899999999:1899999999"]
        with (self.root / "router.log").open("ab") as log:
            self.router = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)
        self.wait(lambda: self.call("status")["router"]["connected"])

    def kill_daemon(self) -> None:
        """Kill -9, and wait until it is dead."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()
        self.admin.close()

    def stop_daemon(self) -> int:
        """SIGTERM; gives the exit status."""
        assert self.daemon is not None
        self.daemon.terminate()
        status = self.daemon.wait(DEADLINE_S)
        self.admin.close()
        return status

    def call(self, op: str, **args: Any) -> Any:
        """One admin operation."""
        return self.admin.call(op, **args)

    def pool(self) -> int:
        """How many blank slots there are; -1 when no daemon answers."""
        try:
            return int(self.call("status")["pool"]["blank"])
        except BedsitError:
            return -1

    def wait(self, done: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
        """Ask until *done* says something true; fail with the daemon's log after the deadline."""
        until = time.monotonic() + deadline_s
        while True:
            result = done()
            if result:
                return result
            if time.monotonic() > until:
                pytest.fail("not within the deadline; the daemon says:\n" + self.log())
            time.sleep(0.01)

    def wait_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Wait until such an event is in the ring."""

        def find() -> dict[str, Any] | None:
            for event in self.events(kind):
                if all(event[key] == value for key, value in fields.items()):
                    return event
            return None

        found: dict[str, Any] = self.wait(find)
        return found

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """All events, or those of one kind."""
        found = list(self.admin.stream("events", limit=1000))
        return [event for event in found if kind in (None, event["kind"])]

    def ps(self, **fields: Any) -> list[dict[str, Any]]:
        """The slots whose rows have these fields."""
        return [row for row in self.call("ps") if all(row[key] == value for key, value in fields.items())]

    def tenant(self, name: str = "vision", **limits: Any) -> dict[str, Any]:
        """Create a tenant."""
        answer: dict[str, Any] = self.call("tenant.create", name=name, **limits)
        return answer

    def bundle(self, name: str = "echo", source: str = TINY) -> Path:
        """A bundle folder whose model.py is *source*."""
        folder = self.root / "bundles" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.py").write_text(textwrap.dedent(source))
        tensor = 'name = "x"\ndtype = "float32"\nshape = [-1, 4]\n'
        (folder / "bedsit.toml").write_text(
            f'name = "{name}"\nrunner = "python"\nentry = "model:build"\n[[inputs]]\n{tensor}[[outputs]]\n{tensor}'
        )
        return folder

    def deploy(self, tenant: str = "vision", name: str = "echo", source: str = TINY, **args: Any) -> dict[str, Any]:
        """Pack a bundle with that source and deploy it."""
        bundle = open_bundle(self.bundle(name, source))
        with bundle.open() as archive:
            answer: dict[str, Any] = self.admin.call(
                "model.deploy",
                body=Body(archive, bundle.size),
                tenant=tenant,
                name=name,
                size=bundle.size,
                digest=bundle.digest(),
                **args,
            )
        return answer

    def log(self) -> str:
        """What daemon, router and zygotes said last."""
        parts = [self.root / "daemon.log", self.root / "router.log", *self.run.glob("zygotes/*.log")]
        return "\n".join(part.read_text(errors="replace")[-4000:] for part in parts if part.exists())

    def groups(self) -> list[Path]:
        """Every cgroup of this box, in every hierarchy."""
        name = f"bedsit-{self.instance()}"
        # Unlike rglob, walk takes it that other boxes' groups go while it looks.
        return [Path(folder) / name for folder, folders, _ in os.walk("/sys/fs/cgroup") if name in folders]

    def instance(self) -> str:
        """The name of this state folder."""
        db = sqlite3.connect(self.state / "bedsit.db")
        try:
            return str(db.execute("SELECT value FROM meta WHERE key = 'instance'").fetchone()[0])
        finally:
            db.close()

    def processes(self) -> list[int]:
        """Every process that runs under this box's uids or was started for its folders."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                uid = path.stat().st_uid
                command = (path / "cmdline").read_bytes()
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            ours = self.uid_base <= uid < self.uid_base + 10_000 or str(self.run).encode() in command
            if ours and state != "Z":
                found.append(int(path.name))
        return found

    def close(self) -> None:
        """Bring the box down, with a new daemon if the old one is gone, and check that nothing is left of it, once."""
        if self.closed:
            return
        self.closed = True
        try:
            if self.state.joinpath("bedsit.db").exists():
                if self.daemon is None or self.daemon.poll() is not None:
                    self.start(blank=0)
                assert self.daemon is not None
                self.call("down")
                assert self.daemon.wait(DEADLINE_S) == 0
                if self.router is not None:
                    self.router.wait(DEADLINE_S)
                assert self.groups() == []
                left = [path for path in self.run.rglob("*") if path.name not in ("lock", "router")]
                # Under systemd the router's folder is its unit's, and the next router has it already.
                assert [str(path) for path in left if not (self.starter and path.parent.name == "router")] == []
                self.wait(lambda: not self.processes())
        finally:
            self.admin.close()
            for process in (self.daemon, self.router):
                if process is not None and process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
            if not self.state.is_mount():
                shutil.rmtree(self.root, ignore_errors=True)


def make_box() -> Box:
    """A box in a folder of its own, not started."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    root = Path(tempfile.mkdtemp(prefix="bedsit-", dir="/tmp"))
    root.chmod(0o755)  # the router's user has to get to its sockets
    return Box(root)


@pytest.fixture
def new_box() -> Iterator[Callable[[], Box]]:
    """Makes boxes that are brought down and checked for leaks after the test."""
    boxes: list[Box] = []

    def make() -> Box:
        boxes.append(make_box())
        return boxes[-1]

    yield make
    for box in boxes:
        box.close()


@pytest.fixture
def box(new_box: Callable[[], Box]) -> Box:
    """A box of the test's own, with a running daemon and one blank slot."""
    return new_box().start()


@pytest.fixture
def routed_box(box: Box) -> Box:
    """A box of the test's own with a router."""
    box.start_router()
    return box


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """As everywhere; but a box that a file's tests share lives longer than a test, and is checked when it goes."""
    if "module_box" not in request.fixturenames:
        request.getfixturevalue("no_leaks")  # the one of all tests, which this one stands in front of
        yield
        return
    before = take_snapshot()
    yield
    leaks = find_leaks(before, ["bedsit: ", "bedsitd", "bedsit.supervisor", "/bedsit-"])
    if leaks:
        pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)


@pytest.fixture(scope="module")
def make_module_box() -> Iterator[Callable[..., Box]]:
    """Makes the box with a router for all tests of a file; brought down and checked for leaks at the end."""
    boxes: list[Box] = []

    def make(**settings: Any) -> Box:
        box = make_box()
        boxes.append(box)
        box.settings |= settings
        box.start()
        box.start_router()
        return box

    try:
        yield make
    finally:
        for box in boxes:
            box.close()


@pytest.fixture(scope="module")
def module_box(make_module_box: Callable[..., Box]) -> Box:
    """One box with a router for all tests of a file."""
    return make_module_box()


@pytest.fixture
def shared_box(module_box: Box) -> Iterator[Box]:
    """The file's box, as new: no tenants, one blank slot, nothing else."""
    yield module_box
    for tenant in module_box.call("tenant.list"):
        module_box.call("tenant.delete", name=tenant["name"])
    module_box.wait(lambda: [row["state"] for row in module_box.call("ps")] == ["blank"])
    assert list((module_box.state / "artifacts").iterdir()) == []
    assert list((module_box.state / "logs").iterdir()) == []
