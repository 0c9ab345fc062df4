"""What a tenant's code may do beyond answering: nothing, or, where its operator says so, children and programs."""

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bedsit import Client
from tests_support.box import Box, wait_until
from tests_support.bundles import BREEDER, DOUBLE, NOVEL, PARENT, write_bundle

PIDFD_OPEN = 434  # one number on every architecture


@pytest.fixture
def tenant(shared_box: Box) -> Iterator[Box]:
    """A box; tenant ``p`` of the test is deleted afterwards."""
    yield shared_box
    shared_box.run("tenant", "delete", "p", "--yes")


def deploy(box: Box, folder: Path, name: str, code: str) -> None:
    """One more model of tenant ``p``."""
    box.json("model", "deploy", "p", str(write_bundle(folder, name, code, idempotent=False)))


def ask(box: Box, model: str, *values: float) -> list[float]:
    """One request of tenant ``p``."""
    with Client("p", run_dir=str(box.run_dir)) as client:
        return [float(v) for v in client.infer(model, {"x": np.array(values, np.float32)}, timeout_s=60)["y"]]


def test_by_default_there_are_no_children_and_no_programs(tenant: Box, tmp_path: Path) -> None:
    """Neither a program of the box nor a fork: EPERM, and the worker goes on."""
    tenant.json("tenant", "create", "p", "--pids", "48")
    deploy(tenant, tmp_path, "parent", PARENT)
    deploy(tenant, tmp_path, "breeder", BREEDER)

    assert ask(tenant, "parent", 1) == [errno.EPERM, errno.EPERM]
    assert ask(tenant, "breeder", 1) == [0]


def test_subprocess_runs_the_programs_of_the_box_and_no_others(tenant: Box, tmp_path: Path) -> None:
    """`/usr/bin/true` runs, a file of the model's own does not, and every wall is still up."""
    tenant.json("tenant", "create", "p", "--profile", "subprocess")
    deploy(tenant, tmp_path, "parent", PARENT)

    assert ask(tenant, "parent", 1) == [0, errno.EACCES]
    shown = tenant.json("tenant", "show", "p")
    assert shown["profile"] == "subprocess"
    assert {layer: state for layer, state in shown["walls"].items() if state != "on"} == {}


def test_fork_without_end_stops_at_the_limit(tenant: Box, tmp_path: Path) -> None:
    """A model that forks until it cannot is stopped below its 48 processes; another model of it still answers."""
    tenant.json("tenant", "create", "p", "--profile", "subprocess", "--pids", "48", "--memory", "512MiB")
    deploy(tenant, tmp_path, "breeder", BREEDER)
    deploy(tenant, tmp_path, "double", DOUBLE)

    (born,) = ask(tenant, "breeder", 1)

    assert 10 < born < 48
    assert ask(tenant, "double", 2) == [4]


def test_the_profile_is_changed_while_the_tenant_serves(tenant: Box, tmp_path: Path) -> None:
    """A fresh slot with the new profile takes the old one's place, and no request is lost meanwhile."""
    tenant.json("tenant", "create", "p")
    deploy(tenant, tmp_path, "parent", PARENT)
    assert ask(tenant, "parent", 1) == [errno.EPERM, errno.EPERM]

    assert tenant.json("tenant", "set", "p", "--profile", "subprocess")["profile"] == "subprocess"
    found = {(errno.EPERM, errno.EPERM)}
    wait_until(lambda: found.add(tuple(ask(tenant, "parent", 1))) or (0, errno.EACCES) in found, 60)
    assert found == {(errno.EPERM, errno.EPERM), (0, errno.EACCES)}


def test_an_unlisted_call_is_an_event_with_its_name(tenant: Box, tmp_path: Path) -> None:
    """However often it is made: ENOSYS for the model, one event for the operator."""
    tenant.json("tenant", "create", "p")
    deploy(tenant, tmp_path, "novel", NOVEL)

    assert [ask(tenant, "novel", PIDFD_OPEN) for _ in range(3)] == [[errno.ENOSYS]] * 3
    told = [e["text"] for e in tenant.items("events", "--tenant", "p") if e["kind"] == "slot.call_refused"]
    assert told == ["pidfd_open: not on the list of system calls, answered with ENOSYS"]
