"""Generations as units of systemd: where zygote and slots live, and what becomes of them when something ends."""

import asyncio
import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup import CgroupBackend, delegated
from bedsit.sandbox.cgroup.detect import UNIFIED, find_own_groups
from bedsit.sandbox.cgroup.v2 import find_top
from bedsit.supervisor.generations import Generations
from bedsit.supervisor.units import UnitStarter, call_systemctl, is_unit

pytestmark = pytest.mark.root

FAKE = Path(__file__).with_name("fake_systemctl.py")
SHIPPED = Path(__file__).parents[2] / "systemd"
UNIT = SHIPPED / "bedsit-zygote@.service"
#: The daemon as systemd starts it: a booted systemd in sight, its own pid in the environment, few capabilities.
AS_UNIT = """
mount -t tmpfs none /run/systemd && mkdir /run/systemd/system || exit 1
export SYSTEMD_EXEC_PID=$$
exec setpriv --no-new-privs --bounding-set "$@"
"""


class Units:
    """What systemd would keep for a box: a program that stands in for systemctl, and the groups of the units."""

    def __init__(self, box: Any) -> None:
        self.box = box
        self.bin = box.root / "bin"
        self.bin.mkdir()
        (self.bin / "systemctl").write_text(f"#!{sys.executable} -I\n{FAKE.read_text()}")
        (self.bin / "systemctl").chmod(0o755)
        self.slice = find_top(find_own_groups()[UNIFIED]) / f"bedsit-units-{box.root.name}"
        self.order()
        argv = [str(self.bin / "systemctl"), "serve"]
        self.manager = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
        assert self.manager.stdout is not None
        assert self.manager.stdout.readline() == b"ready\n"

    def order(self, **settings: Any) -> None:
        """Tell the program what to do."""
        settings |= {"run": str(self.box.run), "unit": str(UNIT), "slice": str(self.slice)}
        (self.bin / "settings.json").write_text(json.dumps(settings))

    def manage(self, *, on: bool) -> None:
        """Start later daemons as systemd does, or plainly."""
        self.box.starter = ["unshare", "--mount", "sh", "-c", AS_UNIT, "sh", read_capabilities()] if on else []
        self.box.environment = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}"} if on else None

    def group(self, generation: int) -> Path:
        """The group of a generation's unit."""
        return self.slice / f"bedsit-zygote@{generation}.service"

    def slots(self, generation: int) -> list[str]:
        """The slots that have a group there."""
        return sorted(path.name for path in (self.group(generation) / "slots").glob("s*"))

    def below(self, generation: int) -> list[str]:
        """The groups right below the unit's own."""
        return sorted(path.name for path in self.group(generation).iterdir() if path.is_dir())

    def kill_zygote(self) -> None:
        """Kill -9 of the zygote; waits until the next generation is up."""
        zygote = self.box.call("status")["zygote"]
        os.kill(zygote["pid"], signal.SIGKILL)
        self.box.wait(lambda: self.box.call("status")["zygote"]["generation"] == zygote["generation"] + 1)

    def down(self) -> None:
        """`bedsit down`, until the daemon has gone."""
        self.box.call("down")
        assert self.box.daemon.wait(30) == 0
        self.box.admin.close()

    def calls(self) -> list[str]:
        """What systemctl was called with."""
        return (self.bin / "calls.log").read_text().splitlines()

    def remove(self) -> None:
        """As systemd does when nothing is below its units any more; what is, is in the way."""
        self.manager.kill()
        self.manager.communicate()
        for group in self.slice.glob("bedsit-zygote@*"):
            group.rmdir()
        self.slice.rmdir()


def read_capabilities() -> str:
    """What the daemon's unit leaves it, as setpriv wants it."""
    text = (SHIPPED / "bedsitd.service").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("CapabilityBoundingSet=")]
    kept = line.removeprefix("CapabilityBoundingSet=").lower().replace("cap_", "+").split()
    return ",".join(["-all", *kept])


@pytest.fixture
def units(new_box: Callable[[], Any]) -> Iterator[Units]:
    """A box under a stand-in for systemd, with a running daemon and one blank slot."""
    made = Units(new_box())
    made.manage(on=True)
    try:
        made.box.start()
        yield made
    finally:
        try:
            made.box.close()
        finally:
            made.remove()


def test_a_generation_is_a_unit_with_the_zygote_in_a_leaf_and_slots_beside_it(units: Units) -> None:
    """The daemon asks systemd without waiting for the job, then lays out the group it finds the zygote in."""
    status, (row,) = units.box.call("status"), units.box.ps(state="blank")

    assert units.calls()[0] == "--no-ask-password --no-pager start --no-block bedsit-zygote@1.service"
    assert (units.group(1) / "zygote" / "cgroup.procs").read_text().split() == [str(status["zygote"]["pid"])]
    assert (units.group(1) / "cgroup.procs").read_text() == ""
    assert units.slots(1) == [row["slot"]]
    assert str(row["init_pid"]) in (units.group(1) / "slots" / row["slot"] / "cgroup.procs").read_text().split()
    assert status["walls"]["cgroup_limits"] == "on"


def test_a_killed_daemon_finds_the_unit_and_its_slots_again(units: Units) -> None:
    """The next daemon adopts the same slots from the same generation, and starts no other."""
    before, zygote = units.box.ps(state="blank"), units.box.call("status")["zygote"]
    units.box.kill_daemon()
    units.box.start()

    assert [row["init_pid"] for row in units.box.ps(state="blank")] == [row["init_pid"] for row in before]
    assert units.box.call("status")["zygote"] == zygote
    assert [call for call in units.calls() if " start " in call] == units.calls()[:1]


def test_slots_of_a_dead_generation_stay_where_they_are_until_they_end(units: Units) -> None:
    """A tenant lives on in its own tree, a later daemon finds it there, and the tree goes with the last slot."""
    box = units.box
    box.start_router()
    box.tenant()
    box.deploy()
    (old,) = box.ps(tenant="vision")
    units.kill_zygote()
    box.kill_daemon()
    box.start()
    box.wait(lambda: [row["generation"] for row in box.ps(state="blank")] == [2])
    box.wait(lambda: units.slots(1) == [old["slot"]])  # the blank one of generation 1 was replaced

    assert [row["init_pid"] for row in box.ps(tenant="vision")] == [old["init_pid"]]
    assert box.call("tenant.show", name="vision")["walls"]["cgroup_limits"] == "on"
    box.call("tenant.stop", name="vision")
    box.wait(lambda: units.below(1) == [])
    assert units.below(2) == ["slots", "zygote"]


def test_a_stranger_in_a_dead_generation_is_ended(units: Units) -> None:
    """A half-built slot, a group without a record, is removed by the next daemon, with its generation's tree."""
    units.kill_zygote()
    units.box.kill_daemon()
    for path in (units.box.run / "records").iterdir():
        path.unlink()
    (units.group(1) / "slots" / "s00000000").mkdir()
    units.box.start()

    units.box.wait(lambda: units.below(1) == [])
    (new,) = units.slots(2)
    assert [row["slot"] for row in units.box.ps()] == [new]


def test_down_ends_survivors_of_a_dead_generation(units: Units) -> None:
    """systemd does not reach them; the daemon does, and leaves no group below any unit."""
    units.kill_zygote()
    assert units.slots(1)
    units.down()

    assert [units.below(generation) for generation in (1, 2)] == [[], []]
    assert list(units.box.run.glob("zygotes/*")) == []


def test_a_zygote_that_is_no_unit_is_told_to_go(units: Units) -> None:
    """After a box was run by `bedsit up`, the unit's daemon adopts its slots but forks from a generation of its own."""
    units.down()
    units.manage(on=False)
    units.box.start()
    (old,) = units.box.ps(state="blank")
    units.box.kill_daemon()
    units.manage(on=True)
    units.box.start()

    units.box.wait(lambda: units.box.call("status")["zygote"]["generation"] == 2)
    assert [row["slot"] for row in units.box.ps(state="blank")] == [old["slot"]]
    os.kill(old["init_pid"], signal.SIGKILL)
    units.box.wait(lambda: len(units.slots(2)) == 1)


def test_a_unit_that_still_starts_when_its_daemon_dies_is_stopped(units: Units) -> None:
    """The next daemon does not know when it would listen, and starts another one."""
    os.kill(units.box.call("status")["zygote"]["pid"], signal.SIGKILL)
    units.box.wait((units.bin / "bedsit-zygote@2.service.pid").exists)
    units.box.kill_daemon()
    zygote = os.pidfd_open(int((units.bin / "bedsit-zygote@2.service.pid").read_text()))
    units.box.start()

    units.box.wait(lambda: units.box.call("status")["zygote"]["generation"] == 3)
    assert any(call.endswith("stop --no-block bedsit-zygote@2.service") for call in units.calls())
    assert select.select([zygote], [], [], 30)[0]
    os.close(zygote)


def test_what_systemctl_says_is_in_the_error(units: Units) -> None:
    """A refusal of systemd reaches the operator in its own words, and the next attempt goes on from there."""
    units.order(refuse="Failed to start: Transaction is destructive.")
    os.kill(units.box.call("status")["zygote"]["pid"], signal.SIGKILL)
    units.box.wait(lambda: any("Transaction is destructive" in e["text"] for e in units.box.events("zygote.died")))
    units.order()

    units.box.wait(lambda: (units.box.call("status")["zygote"]["generation"] or 0) > 1)


def test_a_unit_that_ends_while_starting_is_noticed(units: Units) -> None:
    """The daemon does not wait for a socket that will never come, and names where to look."""
    units.order(instead=["/bin/false"])
    os.kill(units.box.call("status")["zygote"]["pid"], signal.SIGKILL)
    event = units.box.wait(lambda: [e for e in units.box.events("zygote.died") if "its unit is failed" in e["text"]])

    assert "journalctl -u bedsit-zygote@2.service" in event[0]["text"]
    units.order()
    units.box.wait(lambda: (units.box.call("status")["zygote"]["generation"] or 0) > 2)


def test_a_hanging_systemctl_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call ends with an error that says what was asked, and its process is gone."""
    program = tmp_path / "systemctl"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with pytest.raises(BedsitError, match=r"systemctl start x: no answer within 0\.2 s"):
        asyncio.run(call_systemctl("start", "x", timeout_s=0.2))


def test_a_generation_that_cannot_be_removed_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tree is tried again by the next sweep; the others go now."""

    def remove(group: Path) -> None:
        if group.name == "1":
            raise OSError(errno.EBUSY, "in use")

    generations = Generations(tmp_path)
    for generation in (1, 2, 3):
        generations.save_group(generation, tmp_path / "groups" / str(generation))
    monkeypatch.setattr(delegated, "remove", remove)
    asyncio.run(UnitStarter(generations, create_autospec(CgroupBackend)).sweep({3}))

    assert sorted(generations.groups()) == [1, 3]


def test_only_systemd_itself_makes_a_unit() -> None:
    """A daemon that `bedsit up` started is none, though a unit's environment may have come down to it."""
    assert not is_unit({})
    assert not is_unit({"SYSTEMD_EXEC_PID": str(os.getppid())})


STUBBORN = """
    import signal
    import torch

    def build(bundle):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return torch.nn.Identity()
"""


def test_a_last_sigterm_to_everything_ends_everything(units: Units) -> None:
    """As at power-off: no process waits for a second signal, not even a worker that ignores the first."""
    box = units.box
    box.start_router()
    box.tenant()
    box.deploy(source=STUBBORN)
    box.wait(lambda: box.pool() == 1)
    slots = [pid for row in box.ps() for pid in (row["init_pid"], row["worker_pid"])]
    everybody = [box.daemon.pid, box.router.pid, box.call("status")["zygote"]["pid"], *slots]
    watches = [os.pidfd_open(pid) for pid in everybody]
    box.admin.close()
    for watch in watches:
        with contextlib.suppress(ProcessLookupError):  # the end of its init was its own
            signal.pidfd_send_signal(watch, signal.SIGTERM)
    for watch in watches:
        assert select.select([watch], [], [], 30)[0]
        os.close(watch)
    assert (box.daemon.wait(), box.router.wait()) == (0, 0)
