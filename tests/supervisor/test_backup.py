"""A backup of a real box, and a box out of it."""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import bedsit
from bedsit.ipc import wire
from bedsit.ipc.admin import AdminClient
from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.protocols import PROTOCOLS
from bedsit.supervisor.registry import Registry, copy_database, read_digests

pytestmark = pytest.mark.root
X = np.arange(4, dtype=np.float32).reshape(1, 4)
LARGE = "# " + "x" * (6 << 20) + "\nimport torch\n\ndef build(bundle):\n    return torch.nn.Identity()\n"


def command(box: Any, *words: object) -> subprocess.CompletedProcess[str]:
    """The command line, on that box."""
    return subprocess.run(
        [sys.executable, "-m", "bedsit.cli.main", *map(str, words), "--run-dir", str(box.run)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def names(items: Iterator[dict[str, Any]]) -> list[str]:
    """The files that come, read to the end."""
    return [item["file"]["name"] for item in items if "file" in item]


def hidden(box: Any) -> list[str]:
    """What lies around in the state folder."""
    return [name for name in os.listdir(box.state) if name.startswith(".")]


def test_a_box_out_of_a_backup_is_the_same(new_box: Callable[[], Any], tmp_path: Path) -> None:
    """Its tenants, limits, keys and models are there, and it answers; the database is for root alone."""
    first = new_box().start()
    first.start_router()
    made = first.tenant("vision", memory_bytes=768 << 20, min_slots=0, idle_s=300.0)
    first.deploy()
    done = command(first, "backup", tmp_path / "box.tar")
    assert (done.returncode, done.stderr) == (0, "")
    assert hidden(first) == []
    assert stat.S_IMODE((tmp_path / "box.tar").stat().st_mode) == 0o600

    second = new_box()
    done = command(second, "restore", tmp_path / "box.tar", "--state-dir", second.state)
    assert (done.returncode, done.stderr) == (0, "")
    assert stat.S_IMODE((second.state / "bedsit.db").stat().st_mode) == 0o600
    before = {key: first.call("tenant.show", name="vision")[key] for key in ("limits", "created_at", "number")}
    models = first.call("model.list", tenant="vision")
    first.close()  # two boxes of one name must not be on one machine
    second.start()
    second.start_router()
    shown = second.call("tenant.show", name="vision")

    assert {key: shown[key] for key in before} == before
    assert second.call("model.list", tenant="vision") == models
    assert second.events("daemon.started")[0]["at"] < second.events("daemon.started")[-1]["at"], "events are in it"
    with bedsit.Client(tenant="vision", key=made["key"]["secret"], run_dir=second.run) as client:
        assert np.array_equal(client.infer("echo", {"x": X}, timeout_s=30.0)["x"], X)


def test_a_folder_in_use_is_not_restored_to(shared_box: Any, tmp_path: Path) -> None:
    """The daemon's lock is there."""
    assert command(shared_box, "backup", tmp_path / "box.tar").returncode == 0
    done = command(shared_box, "restore", tmp_path / "box.tar", "--state-dir", shared_box.state)

    assert done.returncode == 6
    assert "daemon.already_running" in done.stderr


def test_artifacts_stay_for_as_long_as_a_backup_takes(shared_box: Any) -> None:
    """A model that is deleted meanwhile is whole in it, and gone when it is over."""
    shared_box.tenant()
    shared_box.deploy(source=LARGE)
    (artifact,) = (shared_box.state / "artifacts").iterdir()
    with AdminClient(shared_box.run / "admin.sock", timeout_s=60) as other:
        items = other.stream("backup")
        assert next(items)["backup"]["bedsit"] == bedsit.__version__
        shared_box.call("model.delete", tenant="vision", name="echo")
        assert artifact.exists()
        assert names(items) == ["bedsit.db", f"artifacts/{artifact.name}"]
    shared_box.wait_event("backup.taken")
    shared_box.wait(lambda: not artifact.exists())
    assert hidden(shared_box) == []


def test_a_caller_that_leaves_keeps_nothing(shared_box: Any) -> None:
    """Its copy of the database goes with it, and what was kept for it."""
    shared_box.tenant()
    shared_box.deploy(source=LARGE)
    with AdminClient(shared_box.run / "admin.sock", timeout_s=60) as other:
        next(other.stream("backup"))
        shared_box.call("model.delete", tenant="vision", name="echo")
        other.close()
    shared_box.wait(lambda: hidden(shared_box) == [] and not list((shared_box.state / "artifacts").iterdir()))


def test_two_backups_at_once_are_both_whole(shared_box: Any) -> None:
    """What is kept for the one is kept until the other is done, too."""
    shared_box.tenant()
    shared_box.deploy(source=LARGE)
    with (
        AdminClient(shared_box.run / "admin.sock", timeout_s=60) as one,
        AdminClient(shared_box.run / "admin.sock", timeout_s=60) as two,
    ):
        first, second = one.stream("backup"), two.stream("backup")
        next(first), next(second)
        shared_box.call("model.delete", tenant="vision", name="echo")
        assert len(names(first)) == len(names(second)) == 2


def test_a_copy_is_as_the_database_was_and_for_its_owner_alone(tmp_path: Path) -> None:
    """Also while somebody has it open; what a crash left of one is removed by the next daemon."""
    registry = Registry(tmp_path / "bedsit.db")
    registry._db.execute("INSERT INTO meta VALUES ('here', 'yes')")
    copy = copy_database(tmp_path / "bedsit.db")
    registry._db.execute("INSERT INTO meta VALUES ('after', 'it')")

    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert copy.parent == tmp_path
    assert read_digests(copy) == set()
    db = sqlite3.connect(copy)
    assert dict(db.execute("SELECT * FROM meta")) == {"instance": registry.instance, "here": "yes"}
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    registry.close()

    Registry(tmp_path / "bedsit.db").close()

    assert not copy.exists()


def test_a_copy_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    """disk.full, and the database is as it was."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", tmp_path], check=True)
    registry = Registry(tmp_path / "bedsit.db")
    try:
        for number in range(5):
            registry._db.execute("INSERT INTO meta VALUES (?, ?)", (f"k{number}", "x" * 100_000))
        registry._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        disk = os.statvfs(tmp_path)
        (tmp_path / "fill").write_bytes(bytes(disk.f_bavail * disk.f_frsize - 200_000))
        with pytest.raises(BedsitError, match=r"disk\.full"):
            copy_database(tmp_path / "bedsit.db")
        assert sorted(os.listdir(tmp_path)) == ["bedsit.db", "bedsit.db-shm", "bedsit.db-wal", "fill"]
        assert registry._db.execute("SELECT count(*) FROM meta").fetchone() == (6,)
    finally:
        registry.close()
        subprocess.run(["umount", tmp_path], check=True)


# -- upgrade ----------------------------------------------------------------------------------------------------------


def test_who_runs_says_of_which_version(shared_box: Any) -> None:
    """Daemon, router, every slot; and that nothing would be drained, because all is of this one."""
    shared_box.tenant()
    shared_box.deploy()

    assert shared_box.call("ping")["protocols"] == dict(PROTOCOLS)
    assert shared_box.call("status")["router"]["version"] == bedsit.__version__
    shared_box.wait(lambda: not shared_box.ps(state="building"))
    assert {(row["bedsit"], row["wire"]) for row in shared_box.ps()} == {(bedsit.__version__, wire.VERSION)}
    done = command(shared_box, "upgrade", "check", "-o", "jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert {row["verdict"] for row in rows} == {"stays"}
    assert [row["part"] for row in rows[:2]] == ["daemon", "router"]


def test_a_slot_that_speaks_another_wire_is_drained(routed_box: Any) -> None:
    """As the check says before: by the next daemon, and its tenant gets a fresh one."""
    routed_box.tenant("vision")
    routed_box.deploy()
    (before,) = routed_box.ps(tenant="vision")
    record = routed_box.run / "records" / f"{before['slot']}.json"
    routed_box.kill_daemon()
    fields = msgspec.json.decode(record.read_bytes())
    assert fields["wire"] == wire.VERSION
    record.write_bytes(msgspec.json.encode(fields | {"wire": wire.VERSION - 1}))
    routed_box.start(blank=0)
    (after,) = routed_box.wait(lambda: routed_box.ps(tenant="vision", state="serving"))

    assert after["slot"] != before["slot"]
    adopted = {event["slot"]: event["text"] for event in routed_box.events("slot.adopted")}
    assert adopted[before["slot"]] == "draining"
    routed_box.wait(lambda: not routed_box.ps(slot=before["slot"]))
    with bedsit.Client(tenant="vision", run_dir=routed_box.run) as client:
        assert np.array_equal(client.infer("echo", {"x": X}, timeout_s=30.0)["x"], X)
