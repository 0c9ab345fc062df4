"""Operators kill things while tenants work: what each of them notices."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bedsit import BedsitError, Client
from tests_support.box import Box, wait_until
from tests_support.bundles import DOUBLE, write_bundle
from tests_support.marks import ADOPTION

REQUESTS = 2000


@pytest.fixture
def tenants(box: Box, tmp_path: Path) -> Box:
    """Tenants ``a`` and ``b``, each with the model ``double``."""
    bundle = write_bundle(tmp_path, "double", DOUBLE)
    for name in ("a", "b"):
        box.json("tenant", "create", name)
        box.json("model", "deploy", name, str(bundle))
    return box


class Caller(threading.Thread):
    """Sends *count* requests one after the other and keeps what went wrong."""

    def __init__(self, box: Box, tenant: str, count: int, at: dict[int, Callable[[], None]] | None = None) -> None:
        super().__init__()
        self.box, self.tenant, self.count, self.at = box, tenant, count, at or {}
        self.failures: list[str] = []
        self.answered = 0

    def run(self) -> None:
        with Client(self.tenant, run_dir=str(self.box.run_dir)) as client:
            for number in range(self.count):
                if number in self.at:
                    self.at[number]()
                x = np.full(16, number, np.float32)
                try:
                    y = client.infer("double", {"x": x})["y"]
                except BedsitError as e:
                    self.failures.append(f"{number}: {e}")
                else:
                    if (y == 2 * x).all():
                        self.answered += 1
                    else:
                        self.failures.append(f"{number}: wrong answer")


def worker_pid(box: Box, tenant: str) -> int:
    """The pid of the tenant's worker."""
    pid = box.json("tenant", "show", tenant)["worker_pid"]
    assert isinstance(pid, int)
    return pid


def test_worker_killed_under_load(tenants: Box) -> None:
    """Tenant a's worker is killed amid 2,000 requests of b: b sees no error, a answers again, events say why."""
    before = worker_pid(tenants, "a")
    caller = Caller(tenants, "b", REQUESTS, {REQUESTS // 4: lambda: os.kill(before, signal.SIGKILL)})
    caller.start()
    caller.join()

    assert caller.failures == []
    assert caller.answered == REQUESTS
    with Client("a", run_dir=str(tenants.run_dir)) as client:
        assert (client.infer("double", {"x": np.ones(4, np.float32)})["y"] == 2).all()
    assert worker_pid(tenants, "a") != before
    died = [e for e in tenants.items("events", "--tenant", "a") if e["kind"] == "slot.died"]
    assert len(died) == 1
    assert died[0]["cause"] == "signal"
    assert "SIGKILL" in died[0]["text"]


def test_requests_in_flight_of_the_killed_worker_are_answered(tenants: Box) -> None:
    """The model is idempotent: even the caller whose worker is killed sees no error."""
    caller = Caller(tenants, "a", 300, {100: lambda: os.kill(worker_pid(tenants, "a"), signal.SIGKILL)})
    caller.start()
    caller.join()

    assert caller.failures == []
    assert caller.answered == 300


@ADOPTION(part="attack", outcome="adopted")
def test_daemon_killed_under_load(tenants: Box) -> None:
    """kill -9 of the daemon: no request fails, and the next daemon adopts both slots with the workers they had."""
    before = {name: worker_pid(tenants, name) for name in "ab"}
    daemon = tenants.daemon_pid()
    callers = [
        Caller(tenants, "a", REQUESTS),
        Caller(tenants, "b", REQUESTS, {REQUESTS // 4: lambda: os.kill(daemon, signal.SIGKILL)}),
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert [c.failures for c in callers] == [[], []]
    wait_until(lambda: tenants.daemon_pid() not in (None, daemon))
    wait_until(lambda: tenants.json("tenant", "show", "a")["state"] == "running")
    assert {name: worker_pid(tenants, name) for name in "ab"} == before
    adopted = [e for e in tenants.items("events") if e["kind"] == "slot.adopted"]
    assert {e["tenant"] for e in adopted} >= {"a", "b"}


def test_router_killed_under_load(tenants: Box) -> None:
    """kill -9 of the router: callers of idempotent models see a pause and no error; workers stay."""
    before = {name: worker_pid(tenants, name) for name in "ab"}
    router = tenants.json("status")["router"]["pid"]
    callers = [Caller(tenants, "a", 500), Caller(tenants, "b", 500, {100: lambda: os.kill(router, signal.SIGKILL)})]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert [c.failures for c in callers] == [[], []]
    assert {name: worker_pid(tenants, name) for name in "ab"} == before


def test_zygote_killed_under_load(tenants: Box) -> None:
    """kill -9 of the zygote: running tenants notice nothing, a next generation fills the pool."""
    before = tenants.json("status")["zygote"]
    caller = Caller(tenants, "a", 500, {100: lambda: os.kill(before["pid"], signal.SIGKILL)})
    caller.start()
    caller.join()

    assert caller.failures == []

    def renewed() -> bool:
        status = tenants.json("status")
        return (status["zygote"]["generation"] or 0) > before["generation"] and bool(status["pool"]["blank"] == 2)

    wait_until(renewed, 60)
