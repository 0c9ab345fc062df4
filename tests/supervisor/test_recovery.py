"""Every row of the table in recovery.py, with real slots of a daemon that was killed."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bedsit
from bedsit.cli.pack import open_bundle
from bedsit.ipc.admin import AdminClient, Body
from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.inspect import LAYERS
from tests_support.marks import ADOPTION, HALF_BUILT

pytestmark = pytest.mark.root


def edit_record(box: Any, slot: str, /, **fields: Any) -> None:
    """Change fields of a slot's record."""
    path = box.run / "records" / f"{slot}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def tear_record(box: Any, slot: str) -> None:
    """Leave half of a record."""
    path = box.run / "records" / f"{slot}.json"
    path.write_bytes(path.read_bytes()[:100])


def edit(**fields: Any) -> Callable[[Any, str], None]:
    """An edit of the record."""
    return lambda box, slot: edit_record(box, slot, **fields)


def is_alive(pid: int) -> bool:
    """Whether the process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@ADOPTION(part="attack", outcome="ended")
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (tear_record, "torn record"),
        (edit(version=99), "foreign version 99"),
        (edit(version=1), "foreign version 1"),
        (edit(slot="s00000000"), "record of slot s00000000"),
        (edit(nonce="00"), "another one than the record says"),
        (edit(init_start=1), "is not the init of the record"),
        (edit(init_pid=1), "is not in its group"),
        (edit(phase="assigning", tenant="vision", models=[[1, 1]]), "half-assigned"),
        (edit(phase="serving", tenant="vision", models=[[1, 1]]), "its record says serving, its init says blank"),
        (edit(phase="serving", tenant="nobody", models=[[1, 1]]), "its tenant 'nobody' was deleted"),
        (edit(bedsit="0.0.1"), "it is blank and of bedsit 0.0.1"),
        (edit(init_uid=5), "its uids from 5 are in use or not of this daemon's range"),
        (lambda box, slot: (box.run / "records" / f"{slot}.json").unlink(), "no record names it"),
        (lambda box, slot: (box.run / "inits" / f"{slot}.sock").unlink(), "No such file"),
    ],
)
def test_what_cannot_be_proven_is_ended(box: Any, harm: Callable[[Any, str], None], says: str) -> None:
    """A slot whose record is torn, foreign, forged, missing or half true is ended, and another is built."""
    box.tenant("vision")
    (old,) = box.ps(state="blank")
    box.kill_daemon()
    harm(box, old["slot"])
    box.start()
    event = box.wait_event("slot.destroyed", slot=old["slot"])

    assert says in event["text"]
    assert not is_alive(old["init_pid"])
    assert not is_alive(old["worker_pid"])
    assert [row["slot"] for row in box.ps()] != [old["slot"]]
    assert not (box.run / "records" / f"{old['slot']}.json").exists()
    assert not (box.run / "slots" / old["slot"]).exists()


def test_a_slot_that_died_meanwhile_is_cleared(box: Any) -> None:
    """Known and dead: nothing of it is left, and the pool is filled again."""
    (old,) = box.ps(state="blank")
    box.kill_daemon()
    os.kill(old["init_pid"], 9)
    box.start()

    assert "ended" in box.wait_event("slot.destroyed", slot=old["slot"])["text"]
    assert not (box.run / "slots" / old["slot"]).exists()


@HALF_BUILT(part="attack", outcome="killed at the next start")
def test_an_unknown_group_is_killed(box: Any) -> None:
    """Half-built: a process in a group of ours that no record names."""
    box.kill_daemon()
    (root,) = [path for path in box.groups() if (path / "cgroup.kill").exists() or "unified" in path.parts]
    (root / "sdeadbeef").mkdir()
    with subprocess.Popen(["sleep", "600"]) as stranger:
        (root / "sdeadbeef" / "cgroup.procs").write_text(str(stranger.pid))
        box.start()

        assert stranger.wait(10) == -9
    assert not (root / "sdeadbeef").exists()


def test_left_folders_are_removed(box: Any) -> None:
    """A folder and a socket without group and record."""
    box.kill_daemon()
    (box.run / "slots" / "sdeadbeef").mkdir()
    (box.run / "inits" / "sdeadbeef.sock").touch()
    box.start()

    assert not (box.run / "slots" / "sdeadbeef").exists()
    assert not (box.run / "inits" / "sdeadbeef.sock").exists()


@pytest.mark.parametrize("phase", ["assigning", "loading"])
def test_an_assignment_that_arrived_is_adopted_and_replayed(routed_box: Any, phase: str) -> None:
    """The daemon died between the assignment and its record: the init tells the rest."""
    routed_box.tenant("vision")
    routed_box.deploy()
    (before,) = routed_box.ps(tenant="vision")
    routed_box.kill_daemon()
    edit_record(routed_box, before["slot"], phase=phase)
    routed_box.start()
    routed_box.wait(lambda: routed_box.ps(state="serving"))
    (after,) = routed_box.ps(tenant="vision")

    assert after["worker_pid"] == before["worker_pid"]
    assert routed_box.wait_event("slot.adopted", slot=before["slot"])["text"] == "loading"


def test_a_draining_slot_goes_on_draining(routed_box: Any) -> None:
    """A slot that was on its way out goes its way under the next daemon."""
    routed_box.tenant("vision")
    routed_box.deploy()
    (before,) = routed_box.ps(tenant="vision")
    routed_box.kill_daemon()
    edit_record(routed_box, before["slot"], phase="draining")
    routed_box.start(blank=0)
    routed_box.wait(lambda: [row for row in routed_box.ps(state="serving") if row["slot"] != before["slot"]])
    routed_box.wait(lambda: not routed_box.ps(slot=before["slot"]))


def wait_replaced(box: Any, slot: str) -> None:
    """Wait until another slot serves in place of an adopted one, which goes after it and not before."""
    assert slot in [event["slot"] for event in box.events("slot.adopted")]
    (after,) = box.wait(lambda: [row for row in box.ps(state="serving") if row["slot"] != slot])
    box.wait(lambda: not box.ps(slot=slot))
    assert [row["slot"] for row in box.ps(state="serving")] == [after["slot"]]
    order = [(event["kind"], event["slot"]) for event in box.events()]
    assert order.index(("slot.assigned", after["slot"])) < order.index(("slot.destroyed", slot))


def test_a_slot_of_models_that_were_not_committed_is_replaced(routed_box: Any) -> None:
    """The registry decides: a slot with another set serves until one with the committed set does, then drains."""
    routed_box.tenant("vision")
    routed_box.deploy()
    (before,) = routed_box.ps(tenant="vision")
    routed_box.kill_daemon()
    edit_record(routed_box, before["slot"], models=[[1, 1], [2, 1]])
    routed_box.start(blank=0)

    wait_replaced(routed_box, before["slot"])


def test_a_slot_keeps_profile_and_proofs(routed_box: Any) -> None:
    """What a slot was born as is in its record: adopted with every wall on, and not replaced."""
    routed_box.tenant("vision", profile="subprocess")
    routed_box.deploy()
    (before,) = routed_box.ps(tenant="vision")
    routed_box.kill_daemon()
    routed_box.start()
    (after,) = routed_box.ps(tenant="vision")

    assert (after["worker_pid"], after["state"]) == (before["worker_pid"], "serving")
    assert routed_box.call("tenant.show", name="vision")["walls"] == dict.fromkeys(LAYERS, "on")


def test_a_slot_of_a_changed_profile_is_replaced(routed_box: Any) -> None:
    """The registry decides: a slot of another profile serves until one of the wanted profile does, then drains."""
    routed_box.tenant("vision", profile="subprocess")
    routed_box.deploy()
    (before,) = routed_box.ps(tenant="vision")
    routed_box.kill_daemon()
    edit_record(routed_box, before["slot"], profile="standard")
    routed_box.start()

    wait_replaced(routed_box, before["slot"])


def test_a_tenant_deleted_meanwhile_loses_its_slot(routed_box: Any) -> None:
    """The registry was written, the slot not yet ended."""
    routed_box.tenant("vision")
    routed_box.deploy()
    (before,) = routed_box.ps(tenant="vision")
    routed_box.kill_daemon()
    db = sqlite3.connect(routed_box.state / "bedsit.db")
    db.execute("DELETE FROM tenants")
    db.commit()
    db.close()
    routed_box.start()

    assert "was deleted" in routed_box.wait_event("slot.destroyed", slot=before["slot"])["text"]
    assert not is_alive(before["worker_pid"])


def test_a_run_folder_of_another_state_is_cleared(box: Any) -> None:
    """The state folder was lost: the old slots are nobody's and their groups would be found by nobody else."""
    (old,) = box.ps(state="blank")
    groups = box.groups()
    box.kill_daemon()
    shutil.rmtree(box.state)
    box.start()

    assert not is_alive(old["init_pid"])
    assert [path for path in groups if path.exists()] == []


def test_a_zygote_that_died_meanwhile_is_followed(box: Any) -> None:
    """Blank slots of the dead generation stay in the pool; the next generation starts."""
    before, slots = box.call("status")["zygote"], box.ps(state="blank")
    box.kill_daemon()
    os.kill(before["pid"], 9)
    box.start()
    box.wait(lambda: box.call("status")["zygote"]["generation"] == before["generation"] + 1)

    assert box.ps(state="blank")[0]["slot"] == slots[0]["slot"]


OTHER_ZYGOTE = """
import os, socket, sys
from bedsit.ipc.seqpacket import recv_packet, send_packet

with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("ready", flush=True)
    peer, _ = listener.accept()
    while (message := recv_packet(peer)[0]) is not None and message["op"] != "stop":
        print(message["op"], flush=True)
        hello = {"ok": True, "generation": 7, "pid": os.getpid(), "version": sys.argv[2], "forks": 0}
        send_packet(peer, hello | {"protocol": int(sys.argv[3])})
    print("stop" if message else "lost", flush=True)
"""


@pytest.mark.parametrize(("version", "protocol"), [("0.0.1", 2), (bedsit.__version__, 1)])
def test_a_zygote_of_another_version_is_told_to_leave(box: Any, version: str, protocol: int) -> None:
    """After an upgrade the old generation stops, however new its number is; the slots are none of its business."""
    box.kill_daemon()
    path = box.run / "zygotes" / "7.sock"
    argv = [sys.executable, "-c", OTHER_ZYGOTE, str(path), version, str(protocol)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as old:
        assert old.stdout is not None
        assert old.stdout.readline() == "ready\n"
        box.start()
        told = old.stdout.read().split()

    assert told == ["hello", "stop"]
    assert box.call("status")["zygote"]["generation"] == 1


def test_killed_at_any_moment_of_a_deployment(routed_box: Any) -> None:
    """Kill -9 of the daemon again and again while a tenant deploys: what is registered serves, nothing leaks."""
    routed_box.tenant("vision")
    for delay_ms in range(0, 400, 40):
        with AdminClient(routed_box.run / "admin.sock", timeout_s=30) as admin:
            other = threading.Thread(target=try_to_deploy, args=(routed_box, admin))
            other.start()
            time.sleep(delay_ms / 1000)  # the moment is the test's subject
            routed_box.kill_daemon()
            other.join()
        routed_box.start(blank=0)
        models = routed_box.call("model.list", tenant="vision")
        wanted = "running" if models else "empty"
        routed_box.wait(lambda wanted=wanted: routed_box.call("tenant.show", name="vision")["state"] == wanted)
        routed_box.wait(lambda models=models: len(routed_box.ps(tenant="vision")) == bool(models))
    routed_box.wait(lambda: routed_box.pool() == 1 and len(routed_box.processes()) <= 8)

    assert len(list((routed_box.run / "records").iterdir())) == len(routed_box.ps())
    assert len(list((routed_box.run / "slots").iterdir())) == len(routed_box.ps())


def try_to_deploy(box: Any, admin: AdminClient) -> None:
    """Deploy through a connection of its own, and expect to be cut off."""
    bundle = open_bundle(box.bundle())
    with bundle.open() as archive, contextlib.suppress(BedsitError):
        body = Body(archive, bundle.size)
        named = {"tenant": "vision", "name": "echo", "size": bundle.size, "digest": bundle.digest(), "replace": True}
        admin.call("model.deploy", body=body, **named)
