"""Benchmarks run from the repository's root and write what readers of their reports rely on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMMON = {"name", "version", "commit", "machine", "when", "quick", "walls"}
TARGETS = {"inprocess", "zmq_one_hop", "zmq_two_hop", "packet_two_hop", "bedsit_zmq", "bedsit_fast"}
KEYS = {
    "overhead": TARGETS
    | {"zmq_ratio_p50", "zmq_ratio_rps_16", "fast_ratio_p50", "fast_ratio_rps_16", "fast_over_packet_p50"}
    | {"router_cpu_us_per_request", "one_core"},
    "coldstart": {"steps_ms", "slot_ready_ms", "straight_line_ms", "ratio_to_straight_line", "activation_ms"}
    | {"fork_to_ready_ms", "clone_ms", "cgroup_step_ms", "fresh_interpreter_ms", "peers"},
    "density": {"tenants", "pss_mib", "mem_available_drop_mib", "per_tenant_mib", "fresh_process_mib"}
    | {"private_mib", "page_tables_mib"},
    "noisy": {"percentile", "attacks"},
    "classes": {"realtime", "batch"},
    "accounting": {"rounds"},
    "restarts": {"daemon_stopped", "daemon_killed", "router_stopped", "router_killed", "zygote_killed"}
    | {"requests", "errors"},
}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", KEYS)
def test_report_has_its_keys(name: str, tmp_path: Path) -> None:
    """A quick run exits 0, prints a table, and reports every key, with walls as read from outside."""
    file = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--quick", "--json", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())

    assert set(report) == COMMON | KEYS[name]
    assert report["name"] == name
    assert set(report["machine"]) == {"cpu", "cores", "kernel", "cgroup", "gpu"}
    assert report["walls"]["pid_namespace"] == "on"
    assert "walls:" in done.stdout


def test_every_attack_of_the_noisy_benchmark_is_a_harm_of_its_bundle() -> None:
    """Seven attacks, each known inside of the slot by the same name, each with something to see when it was there."""
    code = (
        "from bench.attackers.harm import ATTACKS; from bench.attackers.bundle.model import HARMS\n"
        "assert [attack.name for attack in ATTACKS] == list(HARMS)\n"
        "nothing = dict.fromkeys(('tried', 'refused', 'failed', 'ooms', 'cpu_share'), 0)\n"
        "assert not any(attack.happened(nothing) for attack in ATTACKS)\n"
        "print(len(ATTACKS))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"
