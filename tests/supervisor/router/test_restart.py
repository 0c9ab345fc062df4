"""The daemon goes, the router goes: what goes on meanwhile and what comes back."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bedsit import BedsitError, Client
from bedsit.ipc.frames import send_frame
from tests_support.holder import Holder, listener_pid

ONE = {"x": np.zeros(1, np.float32)}
BLOCK = {"x": np.array([1.0, 5.0], np.float32)}


def test_serving_goes_on_without_the_daemon(plane: Any) -> None:
    """With the daemon gone, old sessions and new ones are served; when it is back, it is heard again."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir)) as before:
        before.infer("gate", ONE)
        plane.leave(for_good=True)
        with Client("acme", run_dir=str(plane.run_dir)) as after:
            for client in (before, after) * 10:
                assert client.infer("gate", ONE)["y"][0] == 1.0
        plane.come_back()
        assert plane.stats("acme")["requests"] == 21
        plane.change("acme", state="stopped")
        with pytest.raises(BedsitError) as caught:
            before.infer("gate", ONE)
        assert caught.value.code == "tenant.stopped"


def test_a_worker_that_is_lost_while_the_daemon_is_away_is_reported_when_it_is_back(plane: Any) -> None:
    """Reports that nobody could hear are repeated to the daemon that comes."""
    slot = plane.add_slot("acme")
    plane.leave(for_good=True)
    plane.workers[slot].kill()
    plane.wait_until(lambda: '"slot lost"' in plane.router_log.read_text())
    plane.come_back()
    assert plane.hear("lost")["slot"] == slot


def test_a_killed_router_starts_from_the_snapshot_on_disk(plane: Any) -> None:
    """With no daemon at all: the new router reads the file, workers reconnect, the client's next call is answered."""
    plane.add_slot("acme")
    plane.add_slot("beta")
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        assert client.infer("gate", ONE)["y"][0] == 1.0
        held = client.infer("gate", {"x": np.zeros(100_000, np.float32)})["y"]
        plane.leave(for_good=True)
        plane.stop_router(signal.SIGKILL)
        plane.start_router(meet=False)
        assert client.infer("gate", ONE, timeout_s=60)["y"][0] == 1.0
        assert (held == 1.0).all()
    with Client("beta", run_dir=str(plane.run_dir)) as other:
        assert other.infer("gate", ONE, timeout_s=60)["y"][0] == 1.0
    plane.come_back()


def _restart_in_flight(plane: Any, *, idempotent: bool) -> list[float]:
    slot = plane.add_slot("acme", idempotent=idempotent)
    # What the bundle says counts for the client, what the snapshot says for the router.
    with Client("acme", run_dir=str(plane.run_dir)) as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.infer, "gate", BLOCK, timeout_s=60)
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        plane.stop_router(signal.SIGKILL)
        plane.start_router()
        (plane.folder_of(slot) / "go").touch()
        values: list[float] = answer.result(60)["y"].tolist()
        return values


def test_a_request_in_flight_at_a_killed_router_is_sent_again(plane: Any) -> None:
    """The client itself repeats an idempotent request at the new router, and gets one right answer."""
    assert _restart_in_flight(plane, idempotent=True) == [2.0, 6.0]
    # The worker's answer to the old router's request arrived here and counted for nothing.
    assert plane.stats("acme")["requests"] == 1


def test_a_request_that_must_not_run_twice_ends_when_the_router_is_killed(plane: Any) -> None:
    """A model that is not idempotent gives ``router.restarted``."""
    plane.bundle = {**plane.bundle, "bedsit.toml": "idempotent = false\n" + plane.bundle["bedsit.toml"]}
    slot = plane.add_slot("acme", [plane.bundle], idempotent=False)
    with Client("acme", run_dir=str(plane.run_dir)) as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.infer, "gate", BLOCK, timeout_s=60)
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        plane.stop_router(signal.SIGKILL)
        with pytest.raises(BedsitError) as caught:
            answer.result(60)
        assert caught.value.code == "router.restarted"
        plane.start_router()
        (plane.folder_of(slot) / "go").touch()
        assert client.infer("gate", ONE, timeout_s=60)["y"][0] == 1.0


def test_a_slot_that_was_draining_before_the_router_started_is_reported(plane: Any) -> None:
    """A router that restarts in the middle of a replacement still says that the old slot is empty."""
    slot = plane.add_slot("acme")
    plane.stop_router(signal.SIGKILL)
    plane.slots[slot] = msgspec.structs.replace(plane.slots[slot], state="draining")
    plane.start_router()
    assert plane.hear("drained")["slot"] == slot


def test_the_router_ends_in_order_when_told_to(plane: Any) -> None:
    """On SIGTERM the router ends with status 0. Clients find its door, wait, and are told in the end."""
    plane.add_slot("acme")
    router = plane.router
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        client.infer("gate", ONE)
        plane.stop_router()
        assert router.returncode == 0
        assert list((plane.run_dir / "router" / "lanes").iterdir()) == []
        with Client("acme", run_dir=str(plane.run_dir)) as newcomer:
            for each in (client, newcomer):
                began = time.monotonic()
                with pytest.raises(BedsitError) as caught:
                    each.infer("gate", ONE, timeout_s=0.3)
                assert caught.value.code == "router.unavailable"
                assert time.monotonic() - began > 0.25
        plane.start_router()


def test_a_newcomer_waits_for_a_router_that_restarts(plane: Any) -> None:
    """A client that was never connected finds the door of a router that was killed, and is let in by the next one."""
    plane.add_slot("acme")
    plane.stop_router(signal.SIGKILL)
    with ThreadPoolExecutor(1) as pool, Client("acme", run_dir=str(plane.run_dir)) as client:
        answer = pool.submit(client.infer, "gate", ONE)
        time.sleep(0.2)
        assert not answer.done()
        plane.start_router()
        assert answer.result()["y"].tolist() == [1.0]


def test_a_door_that_is_held_outlives_every_router(plane: Any) -> None:
    """Killed, ended, told to end: a newcomer waits and is let in by the next one, which the kernel names."""
    plane.add_slot("acme")
    plane.stop_router(signal.SIGKILL)
    door = plane.run_dir / "router" / "door.sock"
    door.unlink()
    with Holder("door", door, socket.SOCK_SEQPACKET) as holder:
        door.chmod(0o666)
        for end in (signal.SIGKILL, signal.SIGTERM):
            with ThreadPoolExecutor(1) as pool, Client("acme", run_dir=str(plane.run_dir)) as client:
                answer = pool.submit(client.infer, "gate", ONE)
                time.sleep(0.2)
                assert not answer.done()
                plane.start_router(holder=holder)
                assert answer.result()["y"].tolist() == [1.0]
            assert listener_pid(door, socket.SOCK_SEQPACKET) == plane.router.pid
            plane.stop_router(end)
        plane.start_router(holder=holder)
        send_frame(plane.daemon, {"op": "shutdown"})
        assert plane.router.wait(30) == 0
        assert door.exists()
        plane.leave()
    plane.start_router()


def test_nobody_is_let_in_before_anybody_is_known(plane: Any) -> None:
    """A router without a snapshot does not say that there is no such tenant: clients wait for the daemon too."""
    plane.add_slot("acme")
    plane.stop_router(signal.SIGKILL)
    (plane.run_dir / "snapshot.msgpack").unlink()
    with ThreadPoolExecutor(1) as pool, Client("acme", run_dir=str(plane.run_dir)) as client:
        answer = pool.submit(client.infer, "gate", ONE)
        plane.start_router(meet=False)
        time.sleep(0.5)
        assert not answer.done()
        plane.meet()
        assert answer.result()["y"].tolist() == [1.0]


def test_a_daemon_that_counts_from_below_is_heard(plane: Any) -> None:
    """It has lost its last snapshot, and the clock that it counts from was set back: what it says is right anyway."""
    plane.add_slot("acme")
    plane.leave(for_good=True)
    plane.restart_counting(plane.instance)
    plane.come_back()
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        client.infer("gate", ONE)
        plane.change("acme", state="stopped")
        with pytest.raises(BedsitError) as caught:
            client.infer("gate", ONE)
        assert caught.value.code == "tenant.stopped"


def test_a_door_at_another_place_is_a_mistake(plane: Any) -> None:
    """Said by exit status 78, after which systemd does not try again; who waits is turned away."""
    with Holder("door", plane.run_dir / "elsewhere", socket.SOCK_SEQPACKET) as holder:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(holder.path))
            first = plane.router
            plane.start_router(meet=False, holder=holder)
            assert plane.router.wait(30) == 78
            assert client.recv(1) == b""
        plane.router = first
    assert "and not at" in plane.router_log.read_text()


def test_nobody_waits_where_no_router_ever_was(tmp_path: Path) -> None:
    """Without a door there is nothing to wait for."""
    began = time.monotonic()
    with Client("acme", run_dir=str(tmp_path)) as client, pytest.raises(BedsitError) as caught:
        client.infer("gate", ONE)
    assert caught.value.code == "router.unavailable"
    assert time.monotonic() - began < 5


def test_a_router_that_was_told_to_end_takes_its_door_along(plane: Any) -> None:
    """When the whole box goes down, nobody has to wait."""
    router = plane.router
    send_frame(plane.daemon, {"op": "shutdown"})
    assert router.wait(30) == 0
    assert not (plane.run_dir / "router" / "door.sock").exists()
    plane.leave()
    plane.router = None
