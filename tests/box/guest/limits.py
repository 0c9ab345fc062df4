"""Limits in the kernel's own files, changed while a tenant works, and what happens at them."""

import os
import subprocess
from pathlib import Path

import numpy as np

from bedsit import BedsitError, Client
from tests.box.guest.check import ask, bedsit, check, events, group_of
from tests.box.guest.load import TENANT, Load
from tests.support.tests_support.bundles import HUNGRY, write_bundle

#: Threads, for whoever may not fork.
CROWD = """
import threading, torch

def build(bundle):
    def call(x):
        born = 0
        leave = threading.Event()
        try:
            while born < 10_000:
                threading.Thread(target=leave.wait).start()
                born += 1
        except RuntimeError:
            pass
        leave.set()
        return torch.tensor([float(born)])
    return call
"""


def _group(tenant: str) -> Path:
    return group_of(ask("tenant.show", name=tenant)["worker_pid"])


def _move_in(tenant: str, model: str, code: str, *limits: str) -> None:
    bedsit("tenant", "create", tenant, *limits)
    bundle = write_bundle(Path("/run/bundles"), model, code, idempotent=False)
    bedsit("model", "deploy", tenant, str(bundle))


@check("tenant")
def limits_change_live() -> str:
    """bedsit tenant set is in the files of the running slot at once, and its tenant is served on."""
    group = _group(TENANT)
    with Load():
        bedsit("tenant", "set", TENANT, "--memory", "384MiB", "--cpus", "0.75", "--pids", "48")
        found = {name: (group / name).read_text().strip() for name in ("memory.max", "cpu.max", "pids.max")}
    assert found == {"memory.max": str(384 << 20), "cpu.max": "75000 100000", "pids.max": "48"}, found
    assert (group / "memory.swap.max").read_text().strip() == "0"
    assert (group / "memory.oom.group").read_text().strip() == "1"
    assert _group(TENANT) == group, "the slot is another one"
    return str(group).removeprefix("/sys/fs/cgroup/")


@check("tenant")
def memory_bomb() -> str:
    """Ends as one, with cause oom; its neighbour notices nothing."""
    _move_in("hungry", "hungry", HUNGRY, "--memory", "384MiB")
    with Load(), Client("hungry") as client:
        try:
            client.infer("hungry", {"x": np.zeros(1, np.float32)}, timeout_s=60)
        except BedsitError as e:
            assert e.code == "worker.crashed", e
        else:
            raise AssertionError("the bomb was answered")
    (died,) = [event for event in events("slot.died") if event["tenant"] == "hungry"]
    assert died["cause"] == "oom", died
    bedsit("tenant", "delete", "hungry", "--yes")
    return str(died["text"])


@check("tenant")
def pids_bomb() -> str:
    """Threads end at the limit, the kernel counts the refusals, the worker and its neighbour go on."""
    _move_in("crowd", "crowd", CROWD, "--pids", "32")
    with Load(), Client("crowd") as client:
        (born,) = client.infer("crowd", {"x": np.zeros(1, np.float32)}, timeout_s=60)["y"]
    group = _group("crowd")
    refused = dict(line.split() for line in (group / "pids.events").read_text().splitlines())
    assert 10 < born < 32, born
    assert int(refused["max"]) >= 1, refused
    bedsit("tenant", "delete", "crowd", "--yes")
    return f"{born:.0f} threads"


@check("tenant")
def devices_are_refused() -> None:
    """Root itself, put into the slot's group, can open no disk there; /dev/null it can. Outside it can open both."""
    group = _group(TENANT)
    assert _open("/dev/vda") == _open("/dev/null") == "ok"
    assert _open("/dev/null", group) == "ok"
    assert _open("/dev/vda", group) == "Operation not permitted"
    assert _open("/dev/kmsg", group) == "Operation not permitted"


def _open(device: str, group: Path | None = None) -> str:
    """What comes of opening *device* for reading, in *group*."""
    child = subprocess.Popen(
        ["/bin/sh", "-c", 'read go && exec < "$0" && echo ok', device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    if group is not None:
        (group / "cgroup.procs").write_text(str(child.pid))
    said, _ = child.communicate("go\n", timeout=30)
    return said.strip().rpartition(": ")[2]
