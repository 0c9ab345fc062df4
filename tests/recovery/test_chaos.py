"""The benchmark of chaos, for half a minute: what it counts has to be nothing, however fast the machine is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_half_a_minute_of_chaos(tmp_path: Path) -> None:
    """Faults were seen, every answer is right, nobody who was not hit lost a request, and nothing is left behind."""
    file = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.chaos", "--quick", "--json", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())

    assert sum(report["faults"].values()) >= 5
    assert report["requests"] > 1000
    assert {name: report[name] for name in ("wrong", "lost_bystander", "lost_idempotent", "untyped_errors")} == {
        "wrong": 0,
        "lost_bystander": 0,
        "lost_idempotent": 0,
        "untyped_errors": 0,
    }, report["errors"]
    assert report["leftovers"] == []
