"""What ``bedsit up`` does when something ends: real processes, with stand-ins for the daemon and the router."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_DEADLINE_S = 30.0
_HERE = Path(__file__).parent


class Keeping:
    """A keeper and what it says."""

    def __init__(self, run_dir: Path, *options: str, within_s: float = _DEADLINE_S) -> None:
        self.run_dir = run_dir
        words = [str(run_dir), str(run_dir.parent / "state"), str(within_s), *options]
        self.process = subprocess.Popen(
            [sys.executable, str(_HERE / "keep.py"), *words], stderr=subprocess.PIPE, start_new_session=True
        )
        self.text = ""

    def read_until(self, wanted: str | None) -> str:
        """Read what it says until *wanted* was said, or to its end; all so far."""
        assert self.process.stderr is not None
        fd = self.process.stderr.fileno()
        deadline = time.monotonic() + _DEADLINE_S
        while wanted is None or wanted not in self.text:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"waited for {wanted!r}, got {self.text!r}"
            data = os.read(fd, 65536)
            assert data or wanted is None, f"ended without {wanted!r}: {self.text!r}"
            if not data:
                break
            self.text += data.decode()
        return self.text

    def finish(self) -> int:
        """Read to its end; the exit code."""
        self.read_until(None)
        return self.process.wait(_DEADLINE_S)

    def starts(self, name: str) -> list[int]:
        """The pids of all daemons, or all routers, that were started in this run directory."""
        with contextlib.suppress(FileNotFoundError):
            lines = [line.split() for line in (self.run_dir / "starts").read_text().splitlines()]
            return [int(line[1]) for line in lines if line[0] == name]
        return []


def await_that(condition: Callable[[], object], what: str) -> None:
    """Look until it is so; fail at the deadline."""
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited for: {what}"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process runs: it is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def find_children(parent: int) -> set[int]:
    """The pids of all processes whose parent this is."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.add(int(folder.name))
    return found


Keep = Callable[..., Keeping]


@pytest.fixture
def keep(run_dir: Path) -> Iterator[Keep]:
    """Start keepers; whatever they started is gone at the end."""
    keepers: list[Keeping] = []

    def start(*options: str, within_s: float = _DEADLINE_S) -> Keeping:
        keepers.append(Keeping(run_dir, *options, within_s=within_s))
        return keepers[-1]

    yield start
    pids = {pid for name in ("daemon", "router") for one in keepers for pid in one.starts(name)}
    for one in keepers:
        if one.process.poll() is None:
            # Held first: what it has started a moment ago has not written down its pid yet.
            os.kill(one.process.pid, signal.SIGSTOP)
            pids |= find_children(one.process.pid)
            one.process.kill()
        one.process.wait()
        assert one.process.stderr is not None
        one.process.stderr.close()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await_that(lambda pid=pid: not is_alive(pid), f"the end of {pid}")


@pytest.fixture
def up(keep: Keep) -> Keeping:
    """A keeper whose box is up."""
    keeper = keep()
    keeper.read_until("up in ")
    return keeper


def test_it_starts_the_router_as_the_owner_of_its_folder(up: Keeping) -> None:
    """The daemon makes the folder, so the daemon's configuration decides who the router is."""
    owner = (up.run_dir / "router").stat()
    (line,) = [line for line in (up.run_dir / "starts").read_text().splitlines() if line.startswith("router")]
    assert line.endswith(f" {owner.st_uid}:{owner.st_gid}")


def test_what_it_starts_has_its_own_session_and_no_terminal(up: Keeping) -> None:
    """Ctrl-C reaches the keeper alone; output goes to files that outlive it."""
    for name in ("daemon", "router"):
        (pid,) = up.starts(name)
        assert os.getsid(pid) == pid
        assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
        assert Path(f"/proc/{pid}/fd/2").readlink().parent == up.run_dir / "logs"


def test_what_they_log_is_told(keep: Keep) -> None:
    """JSON lines of the daemon become words."""
    keeper = keep()
    keeper.read_until("daemon.started pid=")
    assert "info  daemon.started" in keeper.text


@pytest.mark.parametrize("name", ["daemon", "router"])
def test_what_is_killed_is_started_again_and_the_other_is_left_alone(up: Keeping, name: str) -> None:
    """One dies, one comes; the keeper says so."""
    (victim,), (other,) = up.starts(name), up.starts("router" if name == "daemon" else "daemon")
    os.kill(victim, signal.SIGKILL)
    up.read_until("is gone (signal 9 (SIGKILL)); starts again at once")
    await_that(lambda: len(up.starts(name)) == 2, "the second start")
    assert is_alive(other)
    assert up.process.poll() is None


def test_a_daemon_that_is_only_ended_is_started_again(up: Keeping) -> None:
    """SIGTERM leaves the slots and exits 0: an upgrade, not the end of the box."""
    os.kill(up.starts("daemon")[0], signal.SIGTERM)
    up.read_until("(exit status 0); starts again")
    await_that(lambda: len(up.starts("daemon")) == 2, "the second start")


def test_ctrl_c_ends_everything(up: Keeping) -> None:
    """Exit 0; daemon and router are gone before it is."""
    up.process.send_signal(signal.SIGINT)
    assert up.finish() == 0
    assert "everything is down" in up.text
    assert not any(is_alive(pid) for name in ("daemon", "router") for pid in up.starts(name))


def test_ctrl_c_brings_a_dead_daemon_back_to_end_everything(up: Keeping) -> None:
    """Only a daemon can end slots: without one they would be left behind."""
    os.kill(up.process.pid, signal.SIGSTOP)
    os.kill(up.starts("daemon")[0], signal.SIGKILL)
    up.process.send_signal(signal.SIGTERM)
    await_that(lambda: not is_alive(up.starts("daemon")[0]), "the daemon's end")
    os.kill(up.process.pid, signal.SIGCONT)
    assert up.finish() == 0, up.text
    assert len(up.starts("daemon")) == 2
    assert not any(is_alive(pid) for name in ("daemon", "router") for pid in up.starts(name))


def test_down_from_elsewhere_ends_it(up: Keeping, bedsit: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """``bedsit down`` is the end of ``bedsit up``, with exit 0; down returns when all is gone."""
    done = bedsit("down")
    assert done.returncode == 0
    assert not any(is_alive(pid) for name in ("daemon", "router") for pid in up.starts(name))
    assert up.finish() == 0
    assert len(up.starts("daemon")) == 1


def test_kill_9_ends_nothing_and_the_next_one_takes_over(up: Keeping, keep: Keep) -> None:
    """Daemon and router live on; the next keeper finds them by who listens, and keeps them as if they were its own."""
    (daemon,), (router,) = up.starts("daemon"), up.starts("router")
    up.process.kill()
    up.process.wait()
    assert is_alive(daemon)
    assert is_alive(router)
    second = keep()
    second.read_until("up in ")
    assert f"the daemon already runs, pid {daemon}" in second.text
    assert f"the router already runs, pid {router}" in second.text
    assert (second.starts("daemon"), second.starts("router")) == ([daemon], [router])
    os.kill(router, signal.SIGKILL)
    await_that(lambda: len(second.starts("router")) == 2, "another router")
    os.kill(daemon, signal.SIGKILL)
    await_that(lambda: len(second.starts("daemon")) == 2, "another daemon")


def test_down_ends_a_keeper_that_took_over(
    up: Keeping, keep: Keep, bedsit: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Nobody can tell it the exit status of a process that is not its child; what is left on disk does."""
    up.process.kill()
    up.process.wait()
    second = keep()
    second.read_until("up in ")
    assert bedsit("down").returncode == 0
    assert second.finish() == 0
    assert len(second.starts("daemon")) == 1


def test_a_wrong_configuration_ends_it_with_78(keep: Keep, tmp_path: Path) -> None:
    """Starting again would not help; the daemon's own words say what is wrong."""
    config = tmp_path / "bedsit.toml"
    config.write_text("wrong = 1")
    keeper = keep("--config", str(config))
    assert keeper.finish() == 78
    assert "error: config.invalid: unknown key 'wrong'\nhint: no\n" in keeper.text
    assert keeper.starts("daemon") == []


def test_a_state_directory_in_use_ends_it_at_once(keep: Keep, tmp_path: Path) -> None:
    """Another daemon has it: trying again would only repeat that."""
    config = tmp_path / "bedsit.toml"
    config.write_text("taken = 1")
    keeper = keep("--config", str(config))
    assert keeper.finish() == 6
    assert "error: daemon.already_running: another one" in keeper.text
    assert "starts again" not in keeper.text


def test_a_daemon_that_cannot_start_ends_it(keep: Keep) -> None:
    """A few tries, then its last words and where its log is."""
    keeper = keep("--no-such-option")
    assert keeper.finish() == 1
    assert "the daemon does not start: exit status 2" in keeper.text
    assert "unrecognized arguments: --no-such-option" in keeper.text
    assert "bedsitd.log" in keeper.text


def test_a_box_that_does_not_get_ready_is_not_left_half_way(keep: Keep, run_dir: Path) -> None:
    """It says what it waited for, and ends what it started."""
    (run_dir / "never-ready").touch()
    keeper = keep(within_s=1.0)
    assert keeper.finish() == 8
    assert "waits until the pool fills (0 of 2 slots)" in keeper.text
    assert not any(is_alive(pid) for name in ("daemon", "router") for pid in keeper.starts(name))


def test_orphans_are_collected(up: Keeping) -> None:
    """What a dead daemon leaves (a zygote) becomes the keeper's child, and no zombie when it ends."""
    (daemon,) = up.starts("daemon")
    (up.run_dir / "fork").touch()
    await_that((up.run_dir / "forked").exists, "the daemon's child")
    orphan = int((up.run_dir / "forked").read_text())
    os.kill(daemon, signal.SIGKILL)

    def parent() -> int:
        return int(Path(f"/proc/{orphan}/stat").read_text().rpartition(")")[2].split()[1])

    await_that(lambda: parent() == up.process.pid, "the keeper to become the parent")
    os.kill(orphan, signal.SIGKILL)
    await_that(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan to be collected")
