"""Which walls are up, as the operator is told: read from outside, when asked, for every tenant."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bedsit.sandbox.cgroup.detect import find_own_groups
from bedsit.sandbox.inspect import LAYERS

pytestmark = pytest.mark.root


@contextmanager
def without_a_limit(pid: int) -> Iterator[None]:
    """Take a running slot's limit of processes away, as nothing inside it could, and put it back."""
    groups = find_own_groups(str(pid))
    file = groups.get("pids", groups["unified"]) / "pids.max"
    before = file.read_text()
    file.write_text("max")
    try:
        yield
    finally:
        file.write_text(before)


def bedsit(box: Any, *words: str) -> dict[str, str]:
    """A command's table as name and value."""
    done = subprocess.run(
        [sys.executable, "-m", "bedsit.cli.main", *words],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "BEDSIT_RUN_DIR": str(box.run)},
    )
    return dict(line.split("\t", 1) for line in done.stdout.splitlines())


@pytest.fixture
def two(shared_box: Any) -> Any:
    """A box in which two tenants run."""
    for name in ("vision", "sound"):
        shared_box.tenant(name)
        shared_box.deploy(name)
    return shared_box


def test_every_tenant_shows_its_own_walls(two: Any) -> None:
    """All of them, for every tenant, with the age of the look; a tenant without a slot has none."""
    two.tenant("empty")
    tenants = {row["name"]: row for row in two.call("status", inspect=True)["tenants"]}

    for name in ("vision", "sound"):
        assert tenants[name]["walls"] == dict.fromkeys(LAYERS, "on")
        assert tenants[name]["walls_age_s"] >= 0
    assert tenants["empty"]["walls"] is None
    assert tenants["empty"]["walls_age_s"] is None


def test_a_wall_that_is_gone_is_seen_when_asked(two: Any) -> None:
    """One slot's limit is taken away from outside: its tenant says so, the box too, the neighbour does not."""
    with without_a_limit(two.call("tenant.show", name="vision")["worker_pid"]):
        told = two.call("status")
        looked = two.call("status", inspect=True)
        table = bedsit(two, "status")
    walls, before = ({row["name"]: row["walls"] for row in status["tenants"]} for status in (looked, told))

    assert before["vision"]["cgroup_limits"] == "on"
    assert walls["vision"]["cgroup_limits"].startswith("off: pids")
    assert walls["sound"]["cgroup_limits"] == "on"
    assert looked["walls"]["cgroup_limits"] == walls["vision"]["cgroup_limits"]
    assert f"walls {len(LAYERS) - 1} of {len(LAYERS)} up; off: cgroup_limits (pids" in table["tenant vision"]
    assert f"walls {len(LAYERS)} of {len(LAYERS)} up" in table["tenant sound"]


def test_the_last_look_is_told_with_its_age(two: Any) -> None:
    """Who does not ask for a look is told what was seen last, and how long ago that was."""

    def ask(*, inspect: bool) -> Any:
        return next(row for row in two.call("status", inspect=inspect)["tenants"] if row["name"] == "vision")

    looked = ask(inspect=True)
    told = two.wait(lambda: (row := ask(inspect=False))["walls_age_s"] > looked["walls_age_s"] + 0.05 and row)

    assert told["walls"] == looked["walls"]
    assert ask(inspect=True)["walls_age_s"] < told["walls_age_s"]


def test_tenant_show_names_every_wall(two: Any) -> None:
    """In full, as it is now; a wall that is gone says what is wrong."""
    with without_a_limit(two.call("tenant.show", name="vision")["worker_pid"]):
        shown = bedsit(two, "tenant", "show", "vision")

    assert shown["wall cgroup_limits"].startswith("off: pids")
    assert {layer: shown[f"wall {layer}"] for layer in LAYERS if layer != "cgroup_limits"} == {
        layer: "on" for layer in LAYERS if layer != "cgroup_limits"
    }
