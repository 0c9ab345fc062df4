"""``bedsit device partition`` against a scripted daemon."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from bedsit.ipc.errors import error

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., Any]

GPU = "GPU-8f3a0000-0000-0000-0000-000000000000"
KEEP = {"gpu": GPU, "action": "keep", "profile": "3g.40gb", "placement": {"start": 4, "size": 4}, "device": "MIG-1"}
KEEP |= {"occupants": ["tenant vision"], "why": "declared, occupied by tenant vision", "mend": None}
GONE = KEEP | {"action": "destroy", "profile": "1g.10gb", "placement": {"start": 0, "size": 1}, "device": "MIG-2"}
MADE = KEEP | {"action": "create", "profile": "2g.20gb", "placement": {"start": 0, "size": 2}, "device": None}
OFF = KEEP | {"action": "impossible", "profile": None, "placement": None, "device": None, "why": "MIG is off"}
OFF |= {"mend": "nvidia-smi -mig 1"}
TOKEN = "0123456789abcdef"


def answer(*rows: dict[str, Any]) -> dict[str, Any]:
    """What the daemon plans."""
    return {"rows": list(rows), "changes": 0, "token": TOKEN}


def done(*rows: dict[str, Any], failed: int = 0) -> dict[str, Any]:
    """What the daemon did."""
    return {"rows": list(rows), "failed": failed}


def test_a_plan_is_a_table_a_document_and_an_exit_code(bedsit: Run, daemon: Any) -> None:
    """One line for each instance, with why; 1 where anything would change, 0 where not."""
    daemon.script["device.partition.plan"] = answer(GONE, MADE, KEEP)
    shown = bedsit("device", "partition", "plan")
    assert shown.returncode == 1
    head, *rows = [line.split("\t") for line in shown.stdout.splitlines()]
    assert head == ["GPU", "DO", "PROFILE", "PLACE", "DEVICE", "WHY"]
    assert rows[0][:5] == [GPU, "destroy", "1g.10gb", "memory slice 0", "MIG-2"]
    assert rows[2][3:] == ["memory slices 4 to 7", "MIG-1", KEEP["why"]]
    document = json.loads(bedsit("device", "partition", "plan", GPU, "-o", "json").stdout)
    assert (document["kind"], document["items"]) == ("partition", [GONE, MADE, KEEP])
    assert daemon.heard[-1] == ("device.partition.plan", {"gpu": GPU})
    daemon.script["device.partition.plan"] = answer(KEEP)
    assert bedsit("device", "partition", "plan").returncode == 0


def test_what_cannot_be_is_shown_with_what_to_do(bedsit: Run, daemon: Any) -> None:
    """On stderr, and the exit code is that of a change."""
    daemon.script["device.partition.plan"] = answer(OFF)
    shown = bedsit("device", "partition", "plan")
    assert shown.returncode == 1
    assert shown.stderr == f"{GPU}: nvidia-smi -mig 1\n"
    daemon.script["device.partition.plan"] = answer()
    assert "no partitions are declared" in bedsit("device", "partition", "plan").stderr


@pytest.mark.parametrize(("typed", "code", "is_done"), [("y", 0, True), ("n", 1, False), ("", 1, False)])
def test_apply_asks_and_names_what_is_destroyed(
    terminal: Start, daemon: Any, typed: str, code: int, *, is_done: bool
) -> None:
    """No is the answer of an empty line; the token is the one of the plan that was shown."""
    daemon.script["device.partition.plan"] = answer(GONE, MADE, KEEP)
    daemon.script["device.partition.apply"] = done(GONE | {"state": "done"}, MADE | {"state": "done"})
    asked = terminal("device", "partition", "apply")
    asked.read_until("[y/N] ")
    plain = " ".join(asked.text.split())
    assert f"Destroy 1g.10gb in memory slice 0 of {GPU} (MIG-2) and make 1 instance?" in plain
    asked.type(typed)
    assert asked.finish() == code
    assert (daemon.heard[-1] == ("device.partition.apply", {"token": TOKEN})) is is_done


def test_apply_without_a_terminal_wants_a_yes(bedsit: Run, daemon: Any) -> None:
    """And tells what became of each line; nothing to do needs none."""
    daemon.script["device.partition.plan"] = answer(MADE)
    daemon.script["device.partition.apply"] = done(MADE | {"state": "done", "why": None})
    assert bedsit("device", "partition", "apply").returncode == 2
    assert daemon.heard[-1][0] == "device.partition.plan"
    shown = bedsit("device", "partition", "apply", "--yes")
    assert shown.returncode == 0
    assert shown.stdout.splitlines()[1].split("\t")[-2:] == ["done", "-"]
    daemon.script["device.partition.plan"], daemon.script["device.partition.apply"] = answer(KEEP), done()
    assert bedsit("device", "partition", "apply").returncode == 0


def test_what_failed_ends_in_1(bedsit: Run, daemon: Any) -> None:
    """With why, and what to do."""
    daemon.script["device.partition.plan"] = answer(MADE)
    row = MADE | {"state": "failed", "why": "the GPU is lost", "mend": "reboot"}
    daemon.script["device.partition.apply"] = done(row, failed=1)
    shown = bedsit("device", "partition", "apply", "--yes")
    assert shown.returncode == 1
    assert "the GPU is lost" in shown.stdout
    assert shown.stderr.endswith(f"{GPU}: reboot\n")


@pytest.mark.parametrize(("code", "exit_code"), [("device.busy", 3), ("device.moved", 3), ("device.not_ready", 3)])
def test_what_is_refused_has_its_exit_code_and_a_hint(bedsit: Run, daemon: Any, code: str, exit_code: int) -> None:
    """The daemon decides; nobody is asked about what cannot be."""
    daemon.script["device.partition.plan"] = answer(OFF, MADE)
    daemon.script["device.partition.apply"] = error(code, "no")
    shown = bedsit("device", "partition", "apply")
    assert shown.returncode == exit_code
    assert "hint: " in shown.stderr
    assert "bedsit device partition plan" in shown.stderr


def test_gpus_are_completed_those_that_are_cut_too(bedsit: Run, daemon: Any) -> None:
    """By their UUIDs, and nothing that a shell would run."""
    rows = [{"id": "MIG-1", "gpu": GPU}, {"id": "MIG-2", "gpu": GPU}, {"id": "cpu0", "gpu": None}, {"gpu": "GPU-$(x)"}]
    daemon.script["device.list"] = {"devices": rows}

    def complete(words: str) -> list[str]:
        count = str(len(words.split(" ")) - 1)
        return bedsit(_BEDSIT_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count).stdout.split()

    assert complete("bedsit device partition apply ") == [GPU]
    assert complete("bedsit device partition plan GPU-8") == [GPU]
    assert complete("bedsit device part") == ["partition"]
    assert complete("bedsit device partition ") == ["plan", "apply"]


def test_bare_nouns_show_their_verbs(bedsit: Run, daemon: Any) -> None:
    """As every noun does."""
    shown = bedsit("device", "partition")
    assert shown.returncode == 2
    assert "plan" in shown.stderr
    assert "partition" in bedsit("device").stderr
