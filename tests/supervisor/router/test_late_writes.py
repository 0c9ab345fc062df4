"""The promise that matters most: a worker that writes late never writes into memory that is in new use."""

import time
from typing import Any

import numpy as np
import pytest

from bedsit import BedsitError, Client
from bedsit.ipc import wire
from bedsit.ipc.door import read_model_info
from bedsit.ipc.errors import error
from bedsit.ipc.link import Link
from bedsit.ipc.session import deadline_after
from tests_support.marks import PATIENCE, RACE

_MARK = 7.0
_ELEMENTS = 256 << 10  # 1 MiB in, 1 MiB out

both_lanes = pytest.mark.parametrize("lane", ["fast", "zmq"])


def _blocking_input() -> Any:
    x = np.full(_ELEMENTS, 3.0, np.float32)
    x[0] = 1.0
    return x


def _fill(arena: Any) -> list[Any]:
    """Take all that is left of the arena and mark every byte of it."""
    arrays = []
    for elements in (64 << 10, 1 << 10):
        while arena.free_bytes():
            try:
                array = arena.empty(elements, "float32")
            except BedsitError as e:
                assert e.code == "arena.full"
                break
            array[...] = _MARK
            arrays.append(array)
    return arrays


def _release(plane: Any, slot: str) -> None:
    """Let the model go on, and wait until the router has its answer: the write is then done."""
    (plane.folder_of(slot) / "go").touch()
    plane.wait_until(lambda: plane.stats("acme")["requests"] == 1)


@both_lanes
def test_a_late_write_never_reaches_memory_in_new_use(plane: Any, lane: Any) -> None:
    """A client that timed out fills its whole arena anew, the model writes late, and nothing of it changes."""
    slot = plane.add_slot("acme")
    with Client(tenant="acme", run_dir=str(plane.run_dir), lane=lane) as client:
        with pytest.raises(BedsitError) as caught:
            client.infer("gate", {"x": _blocking_input()}, timeout_s=0.5)
        assert caught.value.code == "deadline.exceeded"
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        assert client._link is not None
        arrays = _fill(client._link.session.arena)
        assert len(arrays) > 100
        _release(plane, slot)
        assert all((array == _MARK).all() for array in arrays)
        held = client._link.session.in_flight()
        del arrays
        # The final answer came: the next call collects it, and then all of the arena is free again.
        client.infer("gate", {"x": np.zeros(1, np.float32)})
        assert held == 1
        assert client._link.session.in_flight() == 0
        assert client._link.session.arena.free_bytes() == client._link.session.arena.size


def test_a_client_that_reuses_memory_at_once_would_be_caught(plane: Any) -> None:
    """The control run of the test above: forgetting the request at its timeout lets the late write through."""
    slot = plane.add_slot("acme")
    link = Link("acme", None, str(plane.run_dir), lane="fast", tensors="numpy", spin_us=0)
    try:
        info = read_model_info(link.ask({"op": "describe", "model": "gate", "version": 0}, 0))
        pending = link.begin(info, None, {"x": _blocking_input()}, deadline_after(30), wire.MODELS_PRIORITY)
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        link.session.forget(pending)
        del pending
        arrays = _fill(link.session.arena)
        _release(plane, slot)
        assert not all((array == _MARK).all() for array in arrays)
    finally:
        link.close(error("request.cancelled", "the test is over"))


@both_lanes
def test_memory_of_a_cancelled_request_stays_reserved_until_its_worker_is_confirmed_dead(plane: Any, lane: Any) -> None:
    """A withdrawn request's regions come back only when the daemon says that the slot is gone."""
    slot = plane.add_slot("acme")
    with Client(tenant="acme", run_dir=str(plane.run_dir), lane=lane) as client:
        with pytest.raises(BedsitError):
            client.infer("gate", {"x": _blocking_input()}, timeout_s=0.5)
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        assert client._link is not None
        session = client._link.session
        plane.workers[slot].kill()
        assert plane.hear("lost")["slot"] == slot
        assert client._link._lane.receive() is None
        assert session.in_flight() == 1
        assert session.arena.free_bytes() < session.arena.size
        plane.remove_slot(slot)
        finished = session.accept(plane.wait_until(client._link._lane.receive))
        assert finished is not None
        assert finished.failure is not None
        assert finished.failure.code == "request.cancelled"
        del finished
        assert session.arena.free_bytes() == session.arena.size


@PATIENCE(part="attack", outcome="deadline.exceeded")
def test_the_deadline_is_kept_while_the_worker_is_busy(plane: Any) -> None:
    """A call returns at its deadline although the worker that has it does not answer."""
    slot = plane.add_slot("acme")
    with Client(tenant="acme", run_dir=str(plane.run_dir)) as client:
        start = time.monotonic()
        with pytest.raises(BedsitError) as caught:
            client.infer("gate", {"x": np.ones(1, np.float32)}, timeout_s=0.2)
        assert caught.value.code == "deadline.exceeded"
        assert time.monotonic() - start >= 0.2
        (plane.folder_of(slot) / "go").touch()
        assert client.infer("gate", {"x": np.zeros(1, np.float32)})["y"][0] == 1.0


@RACE(part="twin", outcome="ok")
def test_a_worker_writes_its_answer_into_the_arena(plane: Any) -> None:
    """Payload does lie in shared pages: the client gets what the worker wrote there."""
    plane.add_slot("acme")
    x = np.arange(_ELEMENTS, dtype=np.float32)
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        assert (client.infer("gate", {"x": x})["y"] == x + 1).all()
