"""The daemon as its operator meets it: pool, tenants, keys, restarts, the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc.admin import AdminClient
from bedsit.ipc.errors import BedsitError, NotFound
from bedsit.sandbox.inspect import LAYERS
from tests_support.marks import ADOPTION

pytestmark = pytest.mark.root

#: The limits of a tenant whose creator named none.
USUAL = {
    "memory_bytes": 2 << 30,
    "cpus": 1.0,
    "pids": 256,
    "cpu_weight": 100,
    "cpu_idle": False,
    "cores": "all",
    "io_bps": 0,
    "weight": 100,
    "service_class": "interactive",
    "min_share": 0.0,
    "rate_per_s": 0.0,
    "burst": 1,
    "concurrency_max": 0,
    "queue_max": 1024,
    "queue_bytes_max": 16 << 20,
    "sessions_max": 64,
    "restart": "permanent",
    "restarts_max": 0,
    "restart_period_s": 600.0,
    "quarantine_after": 3,
    "min_slots": 1,
    "max_slots": 1,
    "idle_s": 0.0,
    "run_max_s": 300.0,
}


def test_fills_the_pool_with_inspected_slots(shared_box: Any) -> None:
    """A fresh daemon has its pool of blank slots, each with every wall."""
    status = shared_box.call("status")

    assert status["pool"] == {"target": 1, "blank": 1, "building": 0}
    assert status["walls"] == dict.fromkeys(LAYERS, "on")


def test_creates_lists_and_deletes_a_tenant(shared_box: Any) -> None:
    """A tenant without models is empty and has no slot; after its deletion it is unknown."""
    made = shared_box.tenant("vision", memory_bytes=256 << 20, cpus=0.5)

    assert made["key"]["secret"].startswith(f"bedsit_{made['key']['id']}_")
    assert made["tenant"]["limits"] == USUAL | {"memory_bytes": 256 << 20, "cpus": 0.5}
    assert [tenant["state"] for tenant in shared_box.call("tenant.list")] == ["empty"]

    shared_box.call("tenant.delete", name="vision")

    with pytest.raises(NotFound, match=r"tenant\.not_found"):
        shared_box.call("tenant.show", name="vision")


def test_refuses_a_second_tenant_of_the_same_name(shared_box: Any) -> None:
    """Names are unique."""
    shared_box.tenant("vision")

    with pytest.raises(BedsitError, match=r"tenant\.exists"):
        shared_box.tenant("vision")


def test_refuses_a_memory_limit_below_what_python_needs(shared_box: Any) -> None:
    """A limit with which no worker could ever start is refused before anything is written down."""
    with pytest.raises(BedsitError, match=r"tenant\.limit_too_low") as refused:
        shared_box.tenant("vision", memory_bytes=16 << 20)

    assert "give at least" in refused.value.hint
    assert shared_box.call("tenant.list") == []


def test_keys_are_shown_once_and_revoked_for_good(shared_box: Any) -> None:
    """A key's secret is in the answer that makes it; a list shows when it was revoked."""
    shared_box.tenant("vision")
    made = shared_box.call("key.create", tenant="vision", label="ci")
    shared_box.call("key.revoke", tenant="vision", id=made["id"])
    listed = {key["id"]: key for key in shared_box.call("key.list", tenant="vision")}

    assert listed[made["id"]]["label"] == "ci"
    assert listed[made["id"]]["revoked_at"] is not None
    assert "secret" not in listed[made["id"]]
    with pytest.raises(BedsitError, match=r"key\.not_found"):
        shared_box.call("key.revoke", tenant="vision", id="00000000")


@ADOPTION(part="attack", outcome="adopted")
def test_adopts_blank_slots_and_zygote_after_kill_9(shared_box: Any) -> None:
    """A killed daemon's successor finds the same slots and the same zygote."""
    before, zygote = shared_box.ps(state="blank"), shared_box.call("status")["zygote"]
    shared_box.kill_daemon()
    shared_box.start()

    assert [row["init_pid"] for row in shared_box.ps(state="blank")] == [row["init_pid"] for row in before]
    assert shared_box.call("status")["zygote"] == zygote


@ADOPTION(part="twin", outcome="adopted")
def test_leaves_everything_when_told_to_stop(shared_box: Any) -> None:
    """SIGTERM is the same as a crash for slots, and a clean end for the daemon."""
    before = shared_box.ps(state="blank")

    assert shared_box.stop_daemon() == 0

    shared_box.start()

    assert [row["slot"] for row in shared_box.ps(state="blank")] == [row["slot"] for row in before]
    assert [event["text"] for event in shared_box.events("daemon.stopped")] == ["slots live on"]


def test_replaces_a_dead_blank_slot(shared_box: Any) -> None:
    """The pool is refilled when a blank slot dies."""
    (row,) = shared_box.ps(state="blank")
    os.kill(row["init_pid"], signal.SIGKILL)
    shared_box.wait_event("slot.died", slot=row["slot"])

    shared_box.wait(lambda: [new["slot"] for new in shared_box.ps(state="blank") if new["slot"] != row["slot"]])


def test_starts_the_next_generation_when_the_zygote_dies(box: Any) -> None:
    """A dead zygote is not restarted but followed; its slots live on."""
    before = box.ps(state="blank")
    os.kill(box.call("status")["zygote"]["pid"], signal.SIGKILL)
    box.wait(lambda: box.call("status")["zygote"]["generation"] == 2)

    assert [row["slot"] for row in box.ps(state="blank")] == [row["slot"] for row in before]
    assert box.ps(state="blank")[0]["generation"] == 1


def test_a_second_daemon_on_the_same_state_is_refused(shared_box: Any, new_box: Callable[[], Any]) -> None:
    """One daemon per state folder: the second leaves with a status that says try later, and changes nothing."""
    other = new_box()
    other.state = shared_box.state
    second = other.launch()

    assert second.wait(20) == 75
    assert "daemon.already_running" in (other.root / "daemon.log").read_text()
    assert shared_box.pool() == 1
    other.state = other.root / "none"


def test_a_second_daemon_on_the_same_uids_is_refused(shared_box: Any, new_box: Callable[[], Any]) -> None:
    """One daemon per uid range: tenants of two daemons must never share a uid."""
    other = new_box()
    other.uid_base = shared_box.uid_base
    second = other.launch()

    assert second.wait(20) == 75
    assert "hands out the uids" in (other.root / "daemon.log").read_text()
    other.state = other.root / "none"


def test_a_run_folder_that_cannot_be_made_is_a_configuration_error(new_box: Callable[[], Any]) -> None:
    """A file where the run folder should be: status 78, so that systemd does not try again."""
    other = new_box()
    other.run.write_text("in the way")

    assert other.launch().wait(20) == 78
    assert "folder.unusable" in (other.root / "daemon.log").read_text()
    assert not other.state.exists()


def test_an_unknown_configuration_key_is_refused_with_the_nearest_one(new_box: Callable[[], Any]) -> None:
    """A misspelt key is status 78, and the log says what was probably meant."""
    other = new_box()
    other.settings["pool_sise"] = 3

    assert other.launch().wait(20) == 78
    assert "did you mean 'pool_size'?" in (other.root / "daemon.log").read_text()
    assert not other.state.exists()


def test_says_what_it_does_not_understand(shared_box: Any) -> None:
    """A misspelt operation or argument is named, with the nearest known one."""
    with pytest.raises(BedsitError, match=r"did you mean 'tenant\.list'"):
        shared_box.call("tenant.lists")
    with pytest.raises(BedsitError, match="did you mean 'memory_bytes'"):
        shared_box.call("tenant.create", name="vision", memory_byte=1)
    with pytest.raises(BedsitError, match=r"request\.invalid"):
        shared_box.call("tenant.create", name="../etc")


def test_changes_limits_of_a_tenant(shared_box: Any) -> None:
    """tenant.set keeps what is not named."""
    shared_box.tenant("vision", memory_bytes=512 << 20)
    changed = shared_box.call("tenant.set", name="vision", cpus=2.0)

    assert changed["limits"] == USUAL | {"memory_bytes": 512 << 20, "cpus": 2.0}


def test_follows_events(shared_box: Any) -> None:
    """A follower gets what happened, then what happens."""
    with AdminClient(shared_box.run / "admin.sock", timeout_s=20) as other:
        feed = other.stream("events", follow=True, tenant="followed")
        shared_box.tenant("followed")

        assert next(feed)["kind"] == "tenant.created"

        shared_box.call("key.create", tenant="followed")

        assert next(feed)["kind"] == "key.created"


def test_the_admin_socket_is_for_root(shared_box: Any) -> None:
    """Somebody else cannot connect; one of root's group who is not root is told so."""
    path = str(shared_box.run / "admin.sock")
    leave = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    stay = "import os; os.setgroups([]); os.setuid(65534)"
    call = f"from bedsit.ipc.admin import AdminClient; AdminClient({path!r}).call('ping')"
    said = [
        subprocess.run(
            [sys.executable, "-c", f"import bedsit.ipc.admin; {become}; {call}"], capture_output=True, check=False
        )
        for become in (leave, stay)
    ]

    assert all(b"permission.denied" in one.stderr for one in said)
    assert b"the admin API is for root" in said[1].stderr
    assert Path(path).stat().st_mode & 0o777 == 0o660
