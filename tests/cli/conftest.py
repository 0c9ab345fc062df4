"""What the tests of the command line share: a scripted daemon, and the command itself as a process."""

import codecs
import importlib.util
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
_DEADLINE_S = 60


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, _HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory with nothing in it."""
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[Any]:
    """A scripted daemon at run_dir."""
    server = _load("fake_daemon").FakeDaemon(run_dir / "admin.sock")
    yield server
    server.close()


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bedsit(run_dir: Path) -> Run:
    """Run the command against run_dir, as a process with no terminal; keywords are environment variables."""

    def run(*words: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "BEDSIT_RUN_DIR": str(run_dir), "LANG": "C.UTF-8", **env}
        return subprocess.run(
            [sys.executable, "-m", "bedsit.cli.main", *words],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            env=environment,
            timeout=_DEADLINE_S,
            check=False,
        )

    return run


class Terminal:
    """A process on a pseudo-terminal of 100 columns."""

    def __init__(self, words: tuple[str, ...], env: dict[str, str]) -> None:
        self.fd, slave = pty.openpty()
        environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "100", **env}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bedsit.cli.main", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            # What starts this run in the background has told it to ignore Ctrl-C, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - this process has one thread
        )
        os.close(slave)
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def read_until(self, wanted: str | None) -> str:
        """Read until *wanted* was printed, or to the end; all text so far."""
        deadline = time.monotonic() + _DEADLINE_S
        while wanted is None or wanted not in self.text:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"waited for {wanted!r}, got {self.text!r}"
            try:
                data = os.read(self.fd, 4096)
            except OSError:  # EIO: the other side is closed
                assert wanted is None, f"ended without {wanted!r}: {self.text!r}"
                break
            self.text += self._decoder.decode(data)
        return self.text

    def type(self, text: str) -> None:
        """Type a line."""
        self.press(text + "\n")

    def press(self, keys: str) -> None:
        """Press keys, without a line's end."""
        os.write(self.fd, keys.encode())

    def finish(self) -> int:
        """Read to the end; the exit code."""
        self.read_until(None)
        return self.process.wait(_DEADLINE_S)


Start = Callable[..., Terminal]


@pytest.fixture
def terminal(run_dir: Path) -> Iterator[Start]:
    """Start commands on terminals; all are gone at the end."""
    started: list[Terminal] = []

    def start(*words: str, **env: str) -> Terminal:
        started.append(Terminal(words, {"BEDSIT_RUN_DIR": str(run_dir), **env}))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one.fd)
