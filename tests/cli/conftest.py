"""What the tests of the command line share: a scripted daemon, and the command itself as a process."""

import importlib.util
import os
import subprocess
import sys
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
