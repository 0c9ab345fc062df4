"""Kill -9 of the daemon right before each of its steps: the next one finds, keeps or clears up whatever is there then.

Each operation is done once alive, which says what steps it has, and then again for every step, by a daemon that kills
itself there. What a caller was told is so afterwards, and what it was not told is wholly there or not at all.
"""

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bedsit import Client
from bedsit.ipc.errors import BedsitError
from tests_support.agreement import find_differences, read_wishes

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).parents[1] / "support" / "tests_support" / "dying_daemon.py"
#: How long a box may take until it is what it should be, and a daemon until it comes to a step.
SETTLED_S = 15.0
STEP_S = 6.0
#: What happens at the same time has no order, and the router may be told of two changes at once: not every step comes.
TRIES = 3
NAME = "vision"


class Mortal:
    """A box whose daemons can be told to kill themselves right before a step."""

    def __init__(self, box: Any) -> None:
        self.box = box
        self.plan = box.root / "plan"
        self.steps = self.plan.with_suffix(".steps")
        box.starter = [sys.executable, "-I", str(PROGRAM), str(self.plan)]

    def start_anew(self) -> None:
        """Kill the daemon, and wait until what the next one makes of that is what should be."""
        self.box.kill_daemon()
        self.box.start()
        self.settle()

    def settle(self) -> None:
        """Wait until the box is what it should be."""
        until = time.monotonic() + SETTLED_S
        while found := find_differences(self.box, [NAME, "archive", "gone"]):
            if time.monotonic() > until:
                pytest.fail("\n".join([self.box.log(), "the box is not what it should be:", *found]))
            time.sleep(0.01)

    def learn(self, act: Callable[[], Any]) -> list[str]:
        """The steps of *act*, until all that comes of it is done. A daemon that dies after the last one dies here."""
        self.steps.unlink(missing_ok=True)
        self.plan.write_text("")
        answers = ["send ok #1"] if act() is not None else []  # all others are for those who look whether it settles
        self.settle()
        self.plan.unlink()
        self.start_anew()
        steps = self.steps.read_text().splitlines()
        return [step for step in steps if not step.startswith("send ok") or step in answers]

    def die(self, step: str, act: Callable[[], Any]) -> tuple[bool, Any]:
        """Whether the daemon came to that step in *act*, and what it had answered; None if nothing."""
        answer = None
        self.plan.write_text(step)
        try:
            answer = act()
        except BedsitError as e:
            assert (e.code, bool(e.hint)) == ("daemon.unavailable", True), e
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.box.daemon.wait(STEP_S)
        came = self.box.daemon.poll() is not None
        self.plan.unlink()
        self.box.kill_daemon()
        assert self.box.daemon.returncode == -9, self.box.log()
        return came, answer

    def die_at_each(
        self,
        prepare: Callable[[], Any],
        act: Callable[[], Any],
        check: Callable[[Any], None],
        meanwhile: Callable[[], None] = lambda: None,
        only: str = "",
    ) -> None:
        """Die at every step of *act*; *check* sees what was answered. *meanwhile* is done while no daemon runs.

        *only* is a pattern of those steps that other tests do not have.
        """
        prepare()
        steps = [step for step in self.learn(act) if re.search(only, step)]
        assert steps
        for step in steps:
            try:
                came, tries = False, 0
                while not came:
                    assert tries < TRIES, "no daemon came to that step again"
                    prepare()
                    came, answer = self.die(step, act)
                    meanwhile()
                    self.box.start()
                    self.settle()
                    check(answer)
                    tries += 1
            except BaseException as e:
                e.add_note(f"killed before: {step}")
                raise

    # -- what tests begin with ----------------------------------------------------------------------------------------

    def forget(self, name: str = NAME) -> None:
        """No such tenant."""
        if name in read_wishes(self.box):
            self.box.call("tenant.delete", name=name)
        self.settle()

    def renew(self, name: str = NAME, slots: int = 1) -> None:
        """A tenant without models, which keeps so many slots once it has some."""
        wish = read_wishes(self.box).get(name)
        if wish is None or wish.versions:
            self.forget(name)
            self.box.tenant(name, min_slots=slots, max_slots=slots)
        self.settle()

    def deploy(self, name: str = NAME) -> Any:
        """One more version of the tenant's model: version N multiplies by N + 1."""
        factor = len(read_wishes(self.box)[name].versions) + 2
        source = f"def build(bundle):\n    return lambda x: {factor} * x\n"
        return self.box.deploy(name, source=source, replace=True)

    def serve(self, name: str = NAME) -> None:
        """A tenant that serves the first version of its model."""
        wish = read_wishes(self.box).get(name)
        if wish is None or len(wish.versions) != 1:
            self.renew(name)
            self.deploy(name)
        self.box.call("tenant.start", name=name)
        self.settle()


@pytest.fixture(scope="module")
def module_box(make_module_box: Callable[..., Any]) -> Any:
    """The box of this file's tests; its router and its zygote live as long as they.

    Whoever waits for a slot to drain that the router does not know of waits longer than these tests do.
    """
    return make_module_box(pool_size=2, drain_timeout_s=60.0)


@pytest.fixture(scope="module")
def mortals(module_box: Any) -> Iterator[Mortal]:
    """That box with daemons that die."""
    yield Mortal(module_box)
    module_box.starter = []


@pytest.fixture
def mortal(mortals: Mortal) -> Mortal:
    """The same with a daemon that is young, and without the tenant of these tests."""
    mortals.plan.unlink(missing_ok=True)
    mortals.start_anew()
    mortals.forget()
    return mortals


def test_tenant_create(mortal: Mortal) -> None:
    """The tenant is there with its key, or not at all; whoever got the key has a tenant."""

    def check(answer: Any) -> None:
        if answer is not None:
            assert read_wishes(mortal.box)[NAME].keys == {answer["key"]["id"]}

    mortal.die_at_each(mortal.forget, lambda: mortal.box.tenant(NAME), check)


def test_model_deploy(mortal: Mortal) -> None:
    """The model is there and answers in two slots, or nothing is left of it; if that was said, it is there."""

    def check(answer: Any) -> None:
        assert read_wishes(mortal.box)[NAME].versions in ([[(1, 1)]] if answer else [[], [(1, 1)]])

    mortal.die_at_each(lambda: mortal.renew(slots=2), mortal.deploy, check)


def test_model_deploy_of_a_second_version(mortal: Mortal) -> None:
    """One of both versions answers all the time, and afterwards that which should; if that was said, the new one."""

    def check(answer: Any) -> None:
        assert read_wishes(mortal.box)[NAME].defaults["echo"] in ([2] if answer else [1, 2])

    def ask() -> None:
        with Client(NAME, run_dir=str(mortal.box.run)) as client:
            assert client.infer("echo", {"x": np.ones((1, 4), np.float32)})["x"][0, 0] in (2, 3)

    mortal.die_at_each(mortal.serve, mortal.deploy, check, ask)


def test_tenant_stop(mortal: Mortal) -> None:
    """It serves, or it is stopped and has no slot; if that was said, it is stopped."""

    def check(answer: Any) -> None:
        assert read_wishes(mortal.box)[NAME].wanted in (["stopped"] if answer else ["running", "stopped"])

    mortal.die_at_each(mortal.serve, lambda: mortal.box.call("tenant.stop", name=NAME), check)


def test_tenant_delete(mortal: Mortal) -> None:
    """It serves, or nothing is left of it: no key, model, artifact, output or slot; if that was said, nothing is."""

    def check(answer: Any) -> None:
        assert answer is None or NAME not in read_wishes(mortal.box)

    mortal.die_at_each(mortal.serve, lambda: mortal.box.call("tenant.delete", name=NAME), check)


def test_recovery(mortal: Mortal) -> None:
    """A daemon that is killed while it adopts, ends and clears up what the one before it left leaves that to the next.

    It finds a tenant that serves, one that is stopped, one that was deleted and serves, a blank slot, one that was
    killed before its commit, and one of which only groups, a folder, a socket, half a record and a process are there.
    """
    box = mortal.box
    mortal.serve("archive")
    box.call("tenant.stop", name="archive")
    mortal.serve()
    worker = box.call("tenant.show", name=NAME)["worker_pid"]
    strangers: list[subprocess.Popen[bytes]] = []

    def prepare() -> None:
        mortal.renew("gone")
        came, _ = mortal.die("write to a pipe #1", lambda: mortal.deploy("gone"))
        assert came
        with contextlib.closing(sqlite3.connect(box.state / "bedsit.db", isolation_level=None)) as db:
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("DELETE FROM tenants WHERE name = 'gone'")
        strangers.append(subprocess.Popen(["sleep", "600"]))
        for group in (root / "sdeadbeef" for root in box.groups()):
            group.mkdir()
            if (group / "cgroup.kill").exists():
                (group / "cgroup.procs").write_text(str(strangers[-1].pid))
        (box.run / "slots" / "sdeadbeef").mkdir()
        (box.run / "inits" / "sdeadbeef.sock").touch()
        (box.run / "records" / ".sdeadbeef.json.new").write_text("{")

    def launch() -> None:
        box.daemon = box.launch()

    def check(_answer: Any) -> None:
        assert strangers.pop().wait(10) == -9
        assert box.call("tenant.show", name=NAME)["worker_pid"] == worker

    try:
        mortal.die_at_each(prepare, launch, check)
    finally:
        for stranger in strangers:
            stranger.kill()
            stranger.wait()


def test_start_of_a_zygote(mortal: Mortal) -> None:
    """One zygote is left, whatever became of the one that a killed daemon was starting."""
    box = mortal.box

    def prepare() -> None:
        mortal.settle()
        box.wait(lambda: box.call("status")["zygote"])  # one that starts counts as one, too
        zygote = box.call("status")["zygote"]["pid"]
        box.kill_daemon()
        os.kill(zygote, signal.SIGKILL)

    def launch() -> None:
        box.daemon = box.launch()

    mortal.die_at_each(prepare, launch, lambda _: None, only="zygote|posix_spawn")
