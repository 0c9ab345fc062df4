"""What the box offers, and which folders a worker needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.inspect import find_worker, start_time
from bedsit.sandbox.probe import probe
from bedsit.sandbox.trees import find_closed_folder, find_trees


def test_this_box_can_build_slots() -> None:
    """Root, cgroups and namespaces are here, or none of these tests could run."""
    found = {finding.name: finding for finding in probe()}
    assert all(found[name].ok for name in ("root", "kernel", "namespaces", "cgroup2", "limits", "python"))
    assert all(finding.ok or finding.mend for finding in found.values())


def test_it_prints_json() -> None:
    """For scripts, and for `bedsit doctor`."""
    argv = [sys.executable, "-I", "-m", "bedsit.sandbox.probe", "--json"]
    findings = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert {"name", "ok", "exposes", "mend", "required"} == set(findings[0])


def test_trees_hold_python_and_never_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter and its packages are in; a path that would open /etc or /tmp to tenants is an error."""
    trees = find_trees()
    for file in (os.__file__, pytest.__file__, __file__):
        assert any(Path(os.path.realpath(file)).is_relative_to(tree) for tree in trees)
    for folder in ("/", "/tmp"):
        monkeypatch.setattr(sys, "path", [*sys.path, folder])
        with pytest.raises(BedsitError, match=r"jail\.refused"):
            find_trees()
        monkeypatch.undo()


def test_closed_folders_are_found(tmp_path: Path) -> None:
    """A tree that other users cannot enter is named."""
    (tmp_path / "lib").mkdir()
    tmp_path.chmod(0o755)
    assert find_closed_folder(str(tmp_path)) is None
    (tmp_path / "lib").chmod(0o700)
    assert find_closed_folder(str(tmp_path)) == str(tmp_path / "lib")


def test_a_process_has_a_start_time() -> None:
    """With the pid it is a name for good; nobody has none."""
    assert 0 < start_time(1) <= start_time(os.getpid())
    with pytest.raises(ProcessLookupError):
        start_time(2**22 + 1)


def test_no_worker_is_found_where_there_is_none() -> None:
    """An init without a child has no worker."""
    with pytest.raises(LookupError):
        find_worker(os.getpid(), [1])
