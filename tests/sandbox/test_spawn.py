"""A birth that fails leaves nothing; a slot that nobody committed dies with whoever ordered it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bedsit.sandbox.jail.steps import STEPS
from tests_support.marks import ADOPTION, HALF_BUILT


@pytest.fixture(scope="module")
def saboteur(house: Any) -> Any:
    """A zygote whose steps fail on demand."""
    return house.start_zygote("--sabotage")


def order(house: Any, zygote: Any, sabotage: str) -> dict[str, Any]:
    """Order a slot that must fail, and check that its group is empty at once: the answer comes after the end."""
    answer, slot, build, *_ = house.order(zygote, sabotage=sabotage)
    os.close(build)
    if answer["ok"]:
        house.backend.kill(slot)
        wait_for(os.pidfd_open(answer["pid"]))
    assert not house.backend.populated(slot)
    house.backend.remove(slot)
    assert isinstance(answer, dict)
    return answer


@pytest.mark.parametrize(("step", "required"), [(step.name, step.required) for step in STEPS])
def test_a_step_that_fails(house: Any, saboteur: Any, step: str, *, required: bool) -> None:
    """At whichever step: the answer names it, no process is left, and the zygote goes on."""
    answer = order(house, saboteur, step)
    if not required:  # one that a slot can do without
        assert answer["ok"]
        assert "sabotage" in answer["missing"][step]
    else:
        assert (answer["ok"], answer["step"], answer["errno"]) == (False, step, 1)
        assert "sabotage" in answer["message"]
    assert saboteur.ask({"op": "hello"})["ok"]


@pytest.mark.parametrize("step", ["make_root", "map_ids", "own_ids", "self_check"])
def test_a_process_that_dies_in_a_step(house: Any, saboteur: Any, step: str) -> None:
    """Killed in the middle: the zygote notices and clears up."""
    answer = order(house, saboteur, f"die in {step}")
    assert not answer["ok"]


@pytest.mark.slow
def test_a_step_that_hangs(house: Any, saboteur: Any) -> None:
    """After ten seconds the zygote gives up, kills the slot and says so."""
    saboteur.sock.settimeout(30)
    answer = order(house, saboteur, "hang in own_ids")
    assert (answer["ok"], answer["step"]) == (False, "deadline")


def test_a_zygote_still_counts_and_closes(house: Any, saboteur: Any) -> None:
    """After all these failures it holds no more descriptors than before."""
    folder = Path(f"/proc/{saboteur.process.pid}/fd")
    before = len(list(folder.iterdir()))
    order(house, saboteur, "pivot")
    order(house, saboteur, "reseed")
    assert len(list(folder.iterdir())) == before


@ADOPTION(part="removed", outcome="without its commit a slot ends")
def test_half_built_slots_die_with_the_daemon(box: Any) -> None:
    """End of file on the build pipe, before the commit, is the end of the slot."""
    answer, slot, build, *_ = box.order(box.start_zygote())
    assert answer["ok"]
    pidfd = os.pidfd_open(answer["pid"])
    os.close(build)
    wait_for(pidfd)
    assert not box.backend.populated(slot)


def test_sigterm_ends_a_slot_that_nobody_committed(box: Any) -> None:
    """Whoever switches the box off need not wait for a slot that is not anybody's yet."""
    answer, slot, build, *_ = box.order(box.start_zygote())
    pidfd = os.pidfd_open(answer["pid"])
    os.kill(answer["pid"], signal.SIGTERM)
    wait_for(pidfd)
    os.close(build)
    assert not box.backend.populated(slot)


@HALF_BUILT(part="twin", outcome="a committed slot lives on")
def test_committed_slots_outlive_daemon_and_zygote(box: Any) -> None:
    """After the commit neither the pipe's end nor the zygote's death matters: init still answers."""
    from bedsit.ipc import seqpacket

    zygote = box.start_zygote()
    slot = box.spawn(zygote)
    slot.commit()
    with slot.connect() as sock:
        seqpacket.send_packet(sock, {"op": "hello"})
        assert seqpacket.recv_packet(sock)[0]["op"] == "hello"  # so the commit, which came first, was read
    os.close(slot.build)
    slot.build = os.open("/dev/null", os.O_RDONLY)
    zygote.process.kill()
    zygote.process.wait()
    assert slot.run("result = 'alive'") == "alive"


def test_bad_requests_close_the_connection_only(box: Any) -> None:
    """Nonsense costs the one who sent it the connection; the next one is served."""
    import socket

    from bedsit.ipc import seqpacket

    zygote = box.start_zygote()
    for message in ({"op": "explode"}, {"op": "spawn"}, {}, {"op": "spawn", "fds": ["listener"]}):
        seqpacket.send_packet(zygote.sock, message)
        assert seqpacket.recv_packet(zygote.sock) == (None, [])
        zygote.sock.close()
        zygote.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        zygote.sock.settimeout(20)
        zygote.sock.connect(str(zygote.path))
    assert zygote.ask({"op": "hello"})["generation"] == 7


def test_root_is_never_a_slots_user(box: Any) -> None:
    """An order for uid 0 is no order."""
    from bedsit.ipc.errors import BedsitError
    from bedsit.sandbox.spawn import read_order

    fields = {
        "slot": "s1",
        "run_dir": "/",
        "tmp_bytes": 1,
        "bundle_bytes": 1,
        "fds": ["listener", "build", "group"],
    }
    for uids in ({"init_uid": 0, "worker_uid": 5}, {"init_uid": 5, "worker_uid": 0}, {"init_uid": 5, "worker_uid": 5}):
        with pytest.raises(BedsitError, match="neither may be root"):
            read_order(fields | uids, [3, 4, 5])


def test_stop(box: Any) -> None:
    """The zygote answers, takes its socket away and ends; its slots live on."""
    zygote = box.start_zygote()
    slot = box.spawn(zygote)
    assert zygote.ask({"op": "stop"}) == {"ok": True}
    assert zygote.process.wait(20) == 0
    assert not zygote.path.exists()
    assert slot.run("result = 1") == 1


def wait_for(pidfd: int) -> None:
    """Until the process has ended."""
    import select

    assert select.select([pidfd], [], [], 20)[0], "the process is still there"
    os.close(pidfd)
