"""``bedsit up``: a box in the foreground, or behind it."""

import contextlib
import fcntl
import os
import resource
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

from bedsit.cli.box import DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, Box
from bedsit.cli.command import make_app, verb
from bedsit.cli.down import LOCK_NAME
from bedsit.cli.keeper import Keeper
from bedsit.cli.listener import find_daemon
from bedsit.cli.logfile import LogFile
from bedsit.cli.process import find_module, start_process
from bedsit.cli.report import PipeReport, ScreenReport, hear_report
from bedsit.cli.text import parse_duration
from bedsit.ipc.admin import SOCKET_NAME, AdminClient
from bedsit.ipc.errors import BedsitError, error

app = make_app()

_CONFIG: Final = Path("/etc/bedsit/bedsit.toml")
#: As LimitNOFILE= of the units: a thousand tenants, each with a listener and dozens of sessions of a few descriptors.
_DESCRIPTORS: Final = 1 << 20


class Folders(NamedTuple):
    """Where a box lives."""

    run_dir: Path
    state_dir: Path
    config: Path | None

    def config_option(self) -> list[str]:
        """The daemon's option for the configuration, if one was named."""
        return [] if self.config is None else ["--config", str(self.config)]


@verb(
    app,
    "up",
    examples="""
    sudo bedsit up
    sudo bedsit up --detach
    sudo bedsit up --run-dir /tmp/box/run --state-dir /tmp/box/state
    """,
)
def start_box(
    box: Box,
    state_dir: Annotated[
        Path | None,
        typer.Option(readable=False, metavar="DIR", help=f"Where tenants, models and keys are; {DEFAULT_STATE_DIR}."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(readable=False, metavar="FILE", help=f"The daemon's configuration; {_CONFIG}.")
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="Give up when it is not up after this long.")] = "60s",
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once everything is up.")] = False,
    report_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start daemon and router here and keep them running; for a box without systemd. Needs root.

    Ctrl-C is `bedsit down`. Whatever else ends this process ends nothing: tenants go on being served, and the next
    `bedsit up` takes over. A daemon or router that dies is started again; slots do not notice.

    Everything is up when the daemon answers, the router is connected and the pool of blank slots is full.
    """
    within_s = parse_duration(timeout)
    folders = _find_folders(box, state_dir, config)
    _check_user()
    _make_run_dir(folders.run_dir)
    box.move_to(folders.run_dir)
    if detach:
        _detach(box, folders, timeout)
        return
    options = ["--run-dir", str(folders.run_dir), "--state-dir", str(folders.state_dir), *folders.config_option()]
    with box.screen.phases() as phases:
        report = ScreenReport(box.screen, phases) if report_fd is None else PipeReport(report_fd, box.screen)
        try:
            with _lock(folders.run_dir):
                _check_running_daemon(folders)
                os.chdir("/")
                os.umask(0o022)
                _raise_descriptor_limit()
                code = Keeper(box, options, report, within_s).run()
        except BedsitError as failure:
            code = int(failure.detail.get("exit_code", failure.exit_code))
            report.fail(failure, code)
    raise typer.Exit(code)


def _find_folders(box: Box, state_dir: Path | None, config: Path | None) -> Folders:
    """Flag or environment, else the configuration, else the default. All absolute: the keeper changes its folder."""
    configured = _read_config(config or _CONFIG)
    run_dir = box.run_dir if box.run_dir_given else Path(configured.get("run_dir", DEFAULT_RUN_DIR))
    state = state_dir or Path(configured.get("state_dir", DEFAULT_STATE_DIR))
    return Folders(run_dir.absolute(), state.absolute(), config.absolute() if config else None)


def _read_config(path: Path) -> dict[str, str]:
    """The texts in the daemon's configuration. What is wrong with it the daemon says better, and exits 78."""
    merged: dict[str, Any] = {}
    for file in [path, *sorted(path.with_name(path.name + ".d").glob("*.toml"))]:
        with contextlib.suppress(OSError, ValueError):
            merged.update(tomllib.loads(file.read_text(encoding="utf-8")))
    return {key: value for key, value in merged.items() if isinstance(value, str)}


def _check_user() -> None:
    if os.geteuid() != 0:
        raise error(
            "permission.denied",
            "bedsit up needs root: for every slot it makes a cgroup, namespaces and two users of its own",
            "run it with sudo; running without root is not in this version",
        )


def _make_run_dir(run_dir: Path) -> None:
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        (run_dir / "logs").mkdir(mode=0o700, exist_ok=True)
        if not os.access(run_dir, os.W_OK):
            raise PermissionError(0, "not writable")
    except OSError as e:
        raise error(
            "permission.denied",
            f"cannot write to the run directory {run_dir}: {e.strerror}",
            "choose one with --run-dir",
        ) from None


@contextlib.contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """Be the only keeper of this run directory. The kernel lets go of the lock when this process ends, however."""
    fd = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
            raise error(
                "daemon.already_running",
                f"another bedsit up (pid {pid}) keeps the box at {run_dir}",
                "look at it: bedsit status; end it: bedsit down",
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _check_running_daemon(folders: Folders) -> None:
    """Refuse to take over a daemon that somebody else keeps, or that has other folders."""
    with find_daemon(folders.run_dir) as daemon:
        if daemon is None:
            return
        if _runs_as_unit(daemon.pid):
            raise error(
                "daemon.already_running",
                f"systemd keeps the daemon at {folders.run_dir}",
                "look at it: systemctl status bedsitd; or name another --run-dir and --state-dir",
            )
    with contextlib.suppress(KeyError), AdminClient(folders.run_dir / SOCKET_NAME, timeout_s=5.0) as admin:
        state_dir = admin.call("status")["state_dir"]
        if Path(state_dir) != folders.state_dir:
            raise error(
                "daemon.already_running",
                f"a daemon runs at {folders.run_dir} with the state in {state_dir}, not {folders.state_dir}",
                "end it first: bedsit down",
            )


def _runs_as_unit(pid: int) -> bool:
    """Whether the process is systemd's ``bedsitd.service``."""
    try:
        return "/bedsitd.service" in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
    except OSError:
        return False


def _raise_descriptor_limit() -> None:
    """Daemon and router hold descriptors per slot and session: let them have what their units would, if we may.

    A shell often comes with a hard limit of 4096; root may raise it up to fs.nr_open (getrlimit(2)).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < _DESCRIPTORS:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
            return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _detach(box: Box, folders: Folders, timeout: str) -> None:
    """Start the keeper in a session of its own and wait until it says that everything is up."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    log = LogFile(folders.run_dir / "logs" / "up.log")
    log.rotate()
    options = ["--run-dir", str(folders.run_dir), "--state-dir", str(folders.state_dir), *folders.config_option()]
    options += ["--timeout", timeout, "--report-fd", str(write_fd)]
    keeper = start_process([*find_module("bedsit.cli.main"), "up", *options], log.fd, keep_fds=[write_fd])
    os.close(write_fd)
    log.close()
    box.changing = "up"
    try:
        with box.screen.phases() as phases:
            text = hear_report(read_fd, phases)
    except BedsitError as failure:
        box.screen.fail(failure)
        raise typer.Exit(int(failure.detail.get("exit_code", failure.exit_code))) from None
    finally:
        keeper.close()
    box.changing = None
    box.screen.note(text)
    box.screen.next("bedsit tenant create NAME")
