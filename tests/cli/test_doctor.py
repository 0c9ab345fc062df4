"""``bedsit doctor`` on this machine, and where something of it is taken away."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedsit.cli.doctor import COLUMNS

FINDING = {"name": "landlock", "ok": True, "found": "ABI 7", "exposes": "files", "mend": "none", "required": True}


def examine(run_dir: Path, prepare: str) -> subprocess.CompletedProcess[str]:
    """Run doctor in a process that has run *prepare* before, which the probe inherits."""
    program = textwrap.dedent(prepare) + "\nfrom bedsit.cli.main import main\nmain(['doctor'])"
    environment = {"PATH": os.environ["PATH"], "BEDSIT_RUN_DIR": str(run_dir)}
    argv = [sys.executable, "-c", program]
    return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_it_examines_this_machine(bedsit: Callable[..., Any]) -> None:
    """Every finding as JSON, with what hangs on it; nothing that is needed is missing here; no daemon is no failure."""
    done = bedsit("doctor", "-o", "json")
    items = {item["name"]: item for item in json.loads(done.stdout)["items"]}

    assert done.returncode == 0, done.stdout
    assert items["landlock"]["walls"] == ["landlock"]
    assert items["nvidia driver"]["required"] is False
    assert "no daemon answers" in done.stderr


@pytest.mark.root
def test_what_is_missing_is_named_with_its_mend(run_dir: Path) -> None:
    """Where no network namespace is allowed: exit 1, what to do about it, and what is open until then."""
    done = examine(
        run_dir,
        """
        from bedsit.sandbox.jail import libc
        libc.unshare(libc.CLONE_NEWUSER)
        for name, text in (("self/uid_map", "0 0 1"), ("sys/user/max_net_namespaces", "0")):
            with open(f"/proc/{name}", "w") as file:
                file.write(text)
        """,
    )
    rows = {line.split("\t")[1]: line.split("\t") for line in done.stdout.splitlines()}

    assert done.returncode == 1
    assert rows["network namespace"][:4] == [
        "missing",
        "network namespace",
        "none allowed",
        "sysctl -w user.max_net_namespaces=10000",
    ]
    assert "services that listen on this box only" in rows["network namespace"][4]
    assert "checks found something missing" in done.stderr


@pytest.mark.parametrize(
    ("change", "state", "mend"),
    [
        ({}, "ok", None),
        ({"ok": False}, "missing", "none"),
        ({"ok": None}, "unknown", "none"),
        ({"ok": False, "required": False}, "optional", "none"),
    ],
)
def test_a_finding_has_one_of_four_states(change: dict[str, Any], state: str, mend: str | None) -> None:
    """What only root can see is not called missing, and what a box may lack is not either."""
    row = FINDING | change
    assert [column.cell(row) for column in COLUMNS] == [state, "landlock", "ABI 7", mend, "files"]


def test_a_probe_that_fails_is_said(run_dir: Path) -> None:
    """What came of it and how to run it by hand, instead of an empty table."""
    done = examine(run_dir, "import sys\nsys.executable = '/bin/false'")

    assert done.returncode == 1
    assert "the probe failed: exit status 1" in done.stderr
    assert "bedsit.sandbox.probe" in done.stderr
