"""The benchmark of what bytes cost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMMON = {"name", "version", "commit", "machine", "when", "quick", "walls"}
SIZES = ["1024", "65536", "1048576", "16777216", "67108864"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_report_has_its_keys(tmp_path: Path) -> None:
    """A quick run exits 0 with a figure for each size; answers that are wrong, or copies, would have ended it."""
    file = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.transport", "--quick", "--json", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())

    assert set(report) == COMMON | {"echo", "negate", "memcpy", "ratio_64m_to_1k", "negate_64m_to_floor"}
    assert [list(report[name]) for name in ("echo", "negate", "memcpy")] == [SIZES] * 3
    assert all(set(figures) == {"p50_us", "p99_us"} for figures in report["echo"].values())
    assert all(set(figures) == {"p50_us", "inprocess_p50_us"} for figures in report["negate"].values())
    assert min(report["memcpy"].values()) > 0
    assert report["walls"]["pid_namespace"] == "on"
