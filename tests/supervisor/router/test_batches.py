"""Requests that go out together: in the router by hand, and with a real worker that runs them in one call."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from bedsit import AsyncClient, BedsitError, Client
from bedsit.ipc import wire
from bedsit.ipc.slot import Word
from bedsit.ipc.wire import Kind

both_lanes = pytest.mark.parametrize("lane", ["fast", "zmq"])

# Writes down the shape of each call; 1 in its input waits for a file, 2 raises.
MODEL = """
import time
import torch

def build(bundle):
    here = bundle.path
    torch.manual_seed(1)
    weights = torch.randn(4, 4)
    def call(x):
        with (here / "calls").open("a") as calls:
            calls.write(f"{list(x.shape)}\\n")
        if (x == 1).any():
            (here / "entered").touch()
            while not (here / "go").exists():
                time.sleep(0.002)
        if (x == 2).any():
            raise RuntimeError("told to")
        return {what}
    return call
"""
TOML = """
name = "gate"
runner = "python"
entry = "model:build"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1, {width}]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1, {width}]
[batch]
max_rows = 16
{more}
"""


def _bundle(what: str = "x @ weights", width: int = 4, more: str = "") -> dict[str, str]:
    return {"bedsit.toml": TOML.format(width=width, more=more), "model.py": MODEL.replace("{what}", what)}


def _calls(plane: Any, slot: str) -> list[list[int]]:
    """The shapes of the calls that the model had."""
    text = (plane.folder_of(slot) / "calls").read_text()
    return [[int(dim) for dim in line.strip("[]").split(",")] for line in text.splitlines()]


def _hold_then_ask(plane: Any, slot: str, lane: Any, inputs: list[Any]) -> tuple[list[Any], Any]:
    """Outcomes of calls that all wait while the model is held in another one, and that one's."""
    plane.change("acme", max_inflight=1)
    folder = plane.folder_of(slot)

    async def run() -> tuple[list[Any], Any]:
        async with AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            holder = asyncio.create_task(client.infer("gate", {"x": np.ones((1, 4), np.float32)}, timeout_s=60))
            await asyncio.to_thread(plane.wait_until, (folder / "entered").exists)
            calls = [asyncio.create_task(client.infer("gate", {"x": x}, timeout_s=60)) for x in inputs]
            await asyncio.to_thread(plane.wait_until, lambda: plane.counts("acme")["queued"] == len(inputs))
            (folder / "go").touch()
            return await asyncio.gather(*calls, return_exceptions=True), await holder

    return asyncio.run(run())


@pytest.fixture
def batched(plane: Any) -> Any:
    """A worker whose model takes eight rows at once, busy with a request of one row, and the session that sent it."""
    plane.set_models("acme", [plane.manifest(batch="max_rows = 8")])
    plane.change("acme", max_inflight=1)
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    session.lane.send(session.request(1000, rows=1))
    worker.take_arena()
    return worker, session


def _finish(worker: Any, batch: list[Any]) -> None:
    for envelope in batch:
        worker.respond(envelope.id)


def test_what_waits_while_the_worker_is_busy_goes_out_as_one_batch(plane: Any, batched: Any) -> None:
    """Each packet says how many of its batch follow, none is mixed in, and the answers count one by one."""
    worker, session = batched
    busy = worker.next_batch()
    assert [envelope.left for envelope in busy] == [0]
    for ident in range(5):
        session.lane.send(session.request(ident, rows=1))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 5)
    assert worker.is_idle()
    _finish(worker, busy)
    assert session.answer() == (1000, Kind.RESPONSE, "")
    batch = worker.next_batch()
    assert [envelope.left for envelope in batch] == [4, 3, 2, 1, 0]
    session.lane.send(session.request(5, rows=1))
    for done, envelope in enumerate(batch):
        assert plane.counts("acme")["in_flight"] == 5 - done
        assert worker.is_idle()
        worker.respond(envelope.id)
        assert session.answer() == (done, Kind.RESPONSE, "")
    assert [envelope.left for envelope in worker.next_batch()] == [0]


def test_a_batch_grows_until_its_worker_is_free_or_it_is_full(plane: Any, batched: Any) -> None:
    """With room for more at the worker: what is not full waits, what is full goes ahead, and one is ahead at most."""
    worker, session = batched
    plane.change("acme", max_inflight=4)
    busy = worker.next_batch()
    for ident in range(7):
        session.lane.send(session.request(ident, rows=1))
    session.settle()
    assert plane.counts("acme")["queued"] == 7
    assert worker.is_idle()
    for ident in range(7, 20):
        session.lane.send(session.request(ident, rows=1))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 12)
    full = worker.next_batch()
    assert len(full) == 8
    assert worker.is_idle()
    _finish(worker, busy)
    _finish(worker, full)
    served = 9
    while served < 21:
        batch = worker.next_batch()
        _finish(worker, batch)
        served += len(batch)
    assert [session.answer()[0] for _ in range(21)] == [1000, *range(20)]


def test_answers_of_a_batch_may_come_in_any_order(plane: Any, batched: Any) -> None:
    """And each is its own request's; the worker is busy until the last of them."""
    worker, session = batched
    for ident in range(4):
        session.lane.send(session.request(ident, rows=1))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 4)
    _finish(worker, worker.next_batch())
    assert session.answer()[0] == 1000
    batch = worker.next_batch()
    for ident in (2, 0, 3, 1):
        worker.respond(batch[ident].id)
        assert session.answer()[0] == ident


def test_a_batch_has_no_more_rows_than_the_model_takes(plane: Any, batched: Any) -> None:
    """Requests go out in their order, as many as fit; one that is larger than a batch goes alone."""
    worker, session = batched
    rows = [3, 3, 3, 5, 8, 20, 0, 0, 7, 1]
    for ident, count in enumerate(rows):
        session.lane.send(session.request(ident, rows=count))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == len(rows))
    _finish(worker, worker.next_batch())
    batches = []
    while sum(map(len, batches)) < len(rows):
        batch = worker.next_batch()
        _finish(worker, batch)
        batches.append([envelope.rows for envelope in batch])
    assert batches == [[3, 3], [3, 5], [8], [20], [0, 0, 7, 1]]
    assert [session.answer()[0] for _ in range(11)] == [1000, *range(10)]


def test_a_batch_travels_on_one_lane(plane: Any) -> None:
    """Requests of sessions with another lane are a batch of their own, in the order in which they came."""
    plane.set_models("acme", [plane.manifest(batch="max_rows = 8")])
    worker, zmq = plane.add_pair("acme", "zmq")
    fast = plane.knock("acme")
    plane.change("acme", max_inflight=1)
    fast.lane.send(fast.request(1000, rows=1))
    worker.take_arena()
    busy = wire.read_envelope(worker.fast.recv())
    for ident, session in enumerate((fast, fast, zmq, zmq, zmq, fast)):
        session.lane.send(session.request(ident, rows=1))
        plane.wait_until(lambda count=ident + 1: plane.counts("acme")["queued"] == count)
    worker.respond(busy.id)
    legs = {"fast": worker.fast, "zmq": worker.lane}
    for name, count in (("fast", 2), ("zmq", 3), ("fast", 1)):
        worker.lane = legs[name]
        batch = worker.next_batch()
        assert len(batch) == count
        _finish(worker, batch)
    assert [fast.answer()[0] for _ in range(4)] == [1000, 0, 1, 5]
    assert [zmq.answer()[0] for _ in range(3)] == [2, 3, 4]


def test_a_batch_of_zeromq_sessions_may_be_larger_than_a_lane_holds(plane: Any) -> None:
    """A thousand requests at once do not cost the slot its lane."""
    plane.set_models("acme", [plane.manifest(batch="max_rows = 1000")])
    worker, session = plane.add_pair("acme", "zmq")
    plane.change("acme", max_inflight=1, queue_max=2000)
    session.lane.send(session.request(5000, rows=1))
    busy = worker.next_request()
    body = bytes(8 << 10)
    for ident in range(1000):
        session.lane.send(session.request(ident, rows=1) + body)
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 1000)
    worker.respond(busy.id)
    assert session.answer()[0] == 5000
    plane.wait_until(lambda: plane.counts("acme")["in_flight"] == 1000)
    plane.stats("acme")
    assert not [message for message in plane.heard if message["op"] == "lost"]
    if worker.fast.poll(0):
        worker.lane = worker.fast
    batch = worker.next_batch()
    assert [envelope.left for envelope in batch] == list(range(999, -1, -1))
    for ident, envelope in enumerate(batch):
        worker.respond(envelope.id)
        assert session.answer()[0] == ident


def test_an_idle_worker_gets_a_lone_request_at_once(plane: Any) -> None:
    """After a batch of one, with the longest delay there is: a closed loop of one caller is not slowed down."""
    plane.set_models("acme", [plane.manifest(batch="max_rows = 8\ndelay_ms = 1000")])
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    start = time.monotonic()
    for ident in range(100):
        session.lane.send(session.request(ident, rows=1))
        if not ident:
            worker.take_arena()
        _finish(worker, worker.next_batch())
        assert session.answer()[0] == ident
    assert time.monotonic() - start < 50  # and not a hundred seconds


@pytest.fixture
def patient(plane: Any) -> Any:
    """A worker whose model waits for company for a second, idle after a batch of three rows, and a session."""
    plane.set_models("acme", [plane.manifest(batch="max_rows = 8\ndelay_ms = 1000")])
    plane.change("acme", max_inflight=1)
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    session.lane.send(session.request(1000, rows=1))
    worker.take_arena()
    batch = worker.next_batch()
    for ident in (1001, 1002, 1003):
        session.lane.send(session.request(ident, rows=1))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 3)
    _finish(worker, batch)
    _finish(worker, worker.next_batch())
    assert [session.answer()[0] for _ in range(4)] == [1000, 1001, 1002, 1003]
    return worker, session


def test_the_line_waits_for_as_many_rows_as_came_before(plane: Any, patient: Any) -> None:
    """Three rows came together: two that come wait, and go out with the third."""
    worker, session = patient
    start = time.monotonic()
    for ident in (1, 2, 3):
        session.lane.send(session.request(ident, rows=1))
        if ident < 3:
            plane.wait_until(lambda count=ident: plane.counts("acme")["queued"] == count or worker.fast.poll(0))
            if time.monotonic() - start < 0.9:
                assert worker.is_idle()
    sizes = []
    while sum(sizes) < 3:
        batch = worker.next_batch()
        _finish(worker, batch)
        sizes.append(len(batch))
    assert sizes == [3] or time.monotonic() - start > 0.9  # a machine that stood still for a second


def test_the_line_waits_no_longer_than_the_model_declares(plane: Any, patient: Any) -> None:
    """Nobody comes: the request goes out alone, after the delay."""
    worker, session = patient
    start = time.monotonic()
    session.lane.send(session.request(1, rows=1))
    assert len(worker.next_batch()) == 1
    assert time.monotonic() - start >= 1.0


def test_a_deadline_is_not_waited_over(plane: Any, patient: Any) -> None:
    """A request whose time is up before the delay is reaches the worker before it."""
    worker, session = patient
    deadline_ns = time.monotonic_ns() + 600_000_000
    session.lane.send(session.request(1, rows=1))
    session.lane.send(session.request(2, rows=1, deadline_ns=deadline_ns))
    assert [envelope.deadline_ns for envelope in worker.next_batch()] == [0, deadline_ns]
    assert not session.lane.poll(0)


def test_withdrawn_and_late_requests_are_in_no_batch(plane: Any, batched: Any) -> None:
    """What was withdrawn or ran out of time while it waited is not counted among those that follow."""
    worker, session = batched
    soon = time.monotonic_ns() + 300_000_000
    for ident in range(6):
        session.lane.send(session.request(ident, rows=1, deadline_ns=soon if ident in (0, 5) else 0))
    session.lane.send(session.cancel(3))
    assert {session.answer() for _ in range(3)} == {
        (3, Kind.ERROR, "request.cancelled"),
        (0, Kind.ERROR, "deadline.exceeded"),
        (5, Kind.ERROR, "deadline.exceeded"),
    }
    _finish(worker, worker.next_batch())
    assert session.answer()[0] == 1000
    assert [envelope.left for envelope in worker.next_batch()] == [2, 1, 0]


def test_a_batch_of_several_sessions_survives_the_end_of_one(plane: Any, batched: Any) -> None:
    """Its requests are withdrawn at the worker, the others get their answers, and its memory comes back at the end."""
    worker, session = batched
    other = plane.knock("acme")
    number = other.arena.number
    for ident in range(2):
        for each in (session, other):
            each.lane.send(each.request(ident, rows=1))
            each.settle()
    _finish(worker, worker.next_batch())
    assert session.answer()[0] == 1000
    batch = _next_mixed_batch(worker)
    other.close()
    assert {worker.next_request().id for _ in range(2)} == {batch[1].id, batch[3].id}
    for envelope in batch:
        assert plane.counts("acme")["in_flight"] > 0
        worker.respond(envelope.id)
    assert [session.answer()[0] for _ in range(2)] == [0, 1]
    note = worker.next_note()
    assert (note.word, note.number) == (Word.FORGET, number)


def _next_mixed_batch(worker: Any) -> list[Any]:
    """The next batch, with arenas between its packets."""
    batch: list[Any] = []
    while not batch or batch[-1].left:
        packet = worker.fast.recv()
        if len(packet) >= wire.ENVELOPE_BYTES:
            batch.append(wire.read_envelope(packet))
    return batch


def test_what_a_dead_worker_had_not_answered_of_a_batch_goes_out_again(plane: Any, batched: Any) -> None:
    """And only that, as a batch of its own, to the next worker."""
    worker, session = batched
    for ident in range(4):
        session.lane.send(session.request(ident, rows=1))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 4)
    _finish(worker, worker.next_batch())
    assert session.answer()[0] == 1000
    batch = worker.next_batch()
    worker.respond(batch[1].id)
    assert session.answer()[0] == 1
    worker.link.close()
    plane.hear("lost")
    plane.remove_slot(worker.slot)
    second = plane.add_hostile("acme")
    second.take_arena()
    batch = second.next_batch()
    assert [envelope.left for envelope in batch] == [2, 1, 0]
    _finish(second, batch)
    assert [session.answer()[0] for _ in range(3)] == [0, 2, 3]


@both_lanes
def test_batched_answers_are_those_of_single_calls(plane: Any, lane: Any) -> None:
    """Twelve requests of one to three rows, small and not, run in as few calls as they fit in."""
    slot = plane.add_slot("acme", [_bundle()])
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((rows, 4)).astype(np.float32) for rows in (1, 2, 3, 1, 1, 2, 3, 3, 1, 1, 2, 0)]
    answers, _ = _hold_then_ask(plane, slot, lane, inputs)
    shapes = _calls(plane, slot)
    assert shapes == [[1, 4], [16, 4], [4, 4]]
    with Client("acme", run_dir=str(plane.run_dir)) as client:
        for x, answer in zip(inputs, answers, strict=True):
            alone = client.infer("gate", {"x": x})["y"]
            assert answer["y"].shape == x.shape
            np.testing.assert_allclose(answer["y"], alone, rtol=1e-5, atol=1e-6)
    assert len(_calls(plane, slot)) == 3 + len(inputs)


@both_lanes
def test_a_request_that_makes_the_model_raise_fails_alone(plane: Any, lane: Any) -> None:
    """The others of its batch are answered as if it had not been there."""
    slot = plane.add_slot("acme", [_bundle("x * 3")])
    inputs = [np.full((1, 4), value, np.float32) for value in (5, 2, 7, 2, 9)]
    answers, _ = _hold_then_ask(plane, slot, lane, inputs)
    for x, answer in zip(inputs, answers, strict=True):
        if x[0, 0] == 2:
            assert isinstance(answer, BedsitError)
            assert answer.code == "model.failed"
            assert "told to" in answer.message
        else:
            assert (answer["y"] == x * 3).all()
    assert _calls(plane, slot) == [[1, 4], [5, 4]] + [[1, 4]] * 5


@both_lanes
def test_outputs_that_cannot_be_told_apart_are_asked_for_one_by_one(plane: Any, lane: Any) -> None:
    """A model that gives one row for the whole batch is called once for each request."""
    slot = plane.add_slot("acme", [_bundle("x.sum(0, keepdim=True)")])
    inputs = [np.full((rows, 4), rows + 2.0, np.float32) for rows in (1, 2, 3)]
    answers, _ = _hold_then_ask(plane, slot, lane, inputs)
    for x, answer in zip(inputs, answers, strict=True):
        assert answer["y"].tolist() == x.sum(0, keepdims=True).tolist()


@both_lanes
def test_ragged_inputs_are_padded_and_their_outputs_cut(plane: Any, lane: Any) -> None:
    """Requests of other widths run together; nobody sees what was filled up."""
    slot = plane.add_slot("acme", [_bundle("x * 3", width=-1, more="pad = 9")])
    rng = np.random.default_rng(2)
    inputs = [rng.standard_normal((rows, width)).astype(np.float32) for rows, width in ((1, 3), (2, 5), (1, 1), (2, 4))]
    answers, _ = _hold_then_ask(plane, slot, lane, inputs)
    assert _calls(plane, slot) == [[1, 4], [6, 5]]
    for x, answer in zip(inputs, answers, strict=True):
        assert answer["y"].shape == x.shape
        assert (answer["y"] == x * 3).all()


@both_lanes
def test_large_tensors_of_a_batch_lie_where_their_callers_have_them(plane: Any, lane: Any) -> None:
    """Inputs and outputs in shared memory: neighbours, scattered ones, and small ones in between."""
    slot = plane.add_slot("acme", [_bundle("x + 10", width=-1, more="pad = 0")])
    plane.change("acme", max_inflight=1)
    folder = plane.folder_of(slot)

    async def run(scattered: list[int]) -> None:
        async with AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            block = await client.empty((8, 5000), "float32")
            block[...] = np.arange(8, dtype=np.float32)[:, None] + 20
            inputs = [block[index : index + 1] for index in scattered]
            (folder / "go").unlink(missing_ok=True)
            (folder / "entered").unlink(missing_ok=True)
            holder = asyncio.create_task(client.infer("gate", {"x": np.ones((1, 4), np.float32)}, timeout_s=60))
            await asyncio.to_thread(plane.wait_until, (folder / "entered").exists)
            calls = [asyncio.create_task(client.infer("gate", {"x": x}, timeout_s=60)) for x in inputs]
            await asyncio.to_thread(plane.wait_until, lambda: plane.counts("acme")["queued"] == len(inputs))
            (folder / "go").touch()
            for x, answer in zip(inputs, await asyncio.gather(*calls), strict=True):
                assert (answer["y"] == x + 10).all()
            assert (block == np.arange(8, dtype=np.float32)[:, None] + 20).all()
            await holder

    asyncio.run(run([0, 1, 2, 3]))
    asyncio.run(run([5, 2, 7, 0]))
    assert _calls(plane, slot) == [[1, 4], [4, 5000]] * 2


@both_lanes
def test_requests_that_are_withdrawn_inside_a_batch_do_not_run(plane: Any, lane: Any) -> None:
    """The worker has the batch already and is busy: it runs what is left of it, and answers for the rest."""
    bundle = _bundle("x * 3")
    bundle["bedsit.toml"] = bundle["bedsit.toml"].replace("max_rows = 16", "max_rows = 3")  # what is full is sent ahead
    slot = plane.add_slot("acme", [bundle])
    plane.change("acme", max_inflight=1)
    folder = plane.folder_of(slot)

    async def run() -> list[Any]:
        async with AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            holder = asyncio.create_task(client.infer("gate", {"x": np.ones((1, 4), np.float32)}, timeout_s=60))
            await asyncio.to_thread(plane.wait_until, (folder / "entered").exists)
            inputs = [np.full((1, 4), value, np.float32) for value in (5, 6, 7)]
            calls = [asyncio.create_task(client.infer("gate", {"x": x}, timeout_s=60)) for x in inputs]
            await asyncio.to_thread(plane.wait_until, lambda: plane.counts("acme")["queued"] == 3)
            plane.change("acme", max_inflight=2)
            assert plane.counts("acme")["in_flight"] == 4
            calls[1].cancel()
            await asyncio.wait([calls[1]])
            await client.models()  # behind the withdrawal
            (folder / "go").touch()
            await holder
            return await asyncio.gather(*calls, return_exceptions=True)

    first, second, third = asyncio.run(run())
    assert (first["y"][0, 0], third["y"][0, 0]) == (15, 21)
    assert isinstance(second, asyncio.CancelledError)
    assert _calls(plane, slot) == [[1, 4], [2, 4]]
    plane.wait_until(lambda: plane.counts("acme")["in_flight"] == 0)
    assert plane.counts("acme") | {"sessions": 0} == {
        "requests": 4,
        "errors": 1,
        "queued": 0,
        "in_flight": 0,
        "sessions": 0,
    }
