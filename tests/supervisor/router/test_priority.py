"""In which order requests of one tenant go out, with a worker that answers when the test says so."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest

from bedsit import BedsitError, Client
from bedsit.ipc.wire import MODELS_PRIORITY, Kind

LOW, NORMAL, HIGH = 0, 1, 2
ONE = {"x": np.zeros(1, np.float32)}


@pytest.fixture
def busy(plane: Any) -> Any:
    """A worker of ``acme`` with the models 1 and 2 that is busy with a request, and the session that sent it."""
    plane.set_models("acme", [plane.manifest(), plane.manifest("other")])
    plane.change("acme", max_inflight=1)
    worker = plane.add_hostile("acme", models=[(1, 1), (2, 1)])
    session = plane.knock("acme")
    session.lane.send(session.request(1000))
    worker.take_arena()
    return worker, session


def _serve(plane: Any, worker: Any, session: Any, count: int) -> list[int]:
    """Answer what the worker has and then whatever comes, once *count* requests wait; the ids in that order."""
    plane.wait_until(lambda: plane.counts("acme")["queued"] == count)
    served = []
    for _ in range(count + 1):
        worker.respond(worker.next_request().id)
        served.append(session.answer()[0])
    assert served[0] == 1000
    return served[1:]


def test_high_goes_before_normal_before_low_and_else_who_came_first(plane: Any, busy: Any) -> None:
    """Whatever the order of arrival; a request that leaves it to the model is as urgent as the model says."""
    worker, session = busy
    asked = [LOW, NORMAL, HIGH, MODELS_PRIORITY, HIGH, LOW, NORMAL, 255]
    for ident, priority in enumerate(asked):
        session.lane.send(session.request(ident, priority=priority))
    assert _serve(plane, worker, session, len(asked)) == [2, 4, 1, 3, 6, 7, 0, 5]


@pytest.mark.parametrize(("models", "order"), [(HIGH, [1, 2, 0, 3]), (LOW, [2, 0, 1, 3])])
def test_a_model_has_a_priority_of_its_own(plane: Any, busy: Any, models: int, order: list[int]) -> None:
    """It counts for requests that name none, and for no others."""
    worker, session = busy
    plane.change_model("acme", priority=models)
    for ident, priority in enumerate((NORMAL, MODELS_PRIORITY, HIGH, LOW)):
        session.lane.send(session.request(ident, priority=priority))
    assert _serve(plane, worker, session, 4) == order


def test_models_of_a_tenant_take_turns_by_priority_and_arrival(plane: Any, busy: Any) -> None:
    """Which model a request is for says nothing about its turn."""
    worker, session = busy
    for ident, (model, priority) in enumerate(
        ((1, NORMAL), (2, NORMAL), (1, NORMAL), (2, HIGH), (1, LOW), (2, LOW), (1, HIGH), (2, NORMAL))
    ):
        session.lane.send(session.request(ident, model=model, priority=priority))
    assert _serve(plane, worker, session, 8) == [3, 6, 0, 1, 2, 7, 4, 5]


def test_a_model_that_no_slot_has_holds_up_no_other(plane: Any, busy: Any) -> None:
    """Its requests wait for a slot, however urgent; those of the other model are served; then a slot comes."""
    worker, session = busy
    plane.slots[worker.slot] = msgspec.structs.replace(plane.slots[worker.slot], models=[(1, 1)])
    plane.publish()
    for ident, model in enumerate((2, 1, 2, 1)):
        session.lane.send(session.request(ident, model=model, priority=HIGH if model == 2 else LOW))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 4)
    for ident in (1000, 1, 3):
        worker.respond(worker.next_request().id)
        assert session.answer() == (ident, Kind.RESPONSE, "")
    assert plane.counts("acme")["queued"] == 2
    second = plane.add_hostile("acme", models=[(2, 1)])
    second.take_arena()
    for ident in (0, 2):
        envelope = second.next_request()
        assert envelope.model == 2
        second.respond(envelope.id)
        assert session.answer() == (ident, Kind.RESPONSE, "")
    assert worker.is_idle()


def test_what_a_dead_worker_had_goes_first_again(plane: Any) -> None:
    """Requests that were dispatched in vain are the first of their priority, in their own order."""
    plane.change("acme", max_inflight=3)
    first = plane.add_hostile("acme")
    session = plane.knock("acme")
    for ident in range(3):
        session.lane.send(session.request(ident, priority=NORMAL))
    first.take_arena()
    for _ in range(3):
        first.next_request()
    for ident, priority in ((3, NORMAL), (4, HIGH)):
        session.lane.send(session.request(ident, priority=priority))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 2)
    plane.remove_slot(first.slot)
    plane.change("acme", max_inflight=1)
    second = plane.add_hostile("acme")
    second.take_arena()
    served = []
    for _ in range(5):
        second.respond(second.next_request().id)
        served.append(session.answer()[0])
    assert served == [4, 0, 1, 2, 3]


@pytest.mark.parametrize("lane", ["fast", "zmq"])
def test_callers_say_how_urgent_a_call_is(plane: Any, lane: Any) -> None:
    """By name; a name that there is not is refused before anything is sent."""
    worker, _ = plane.add_pair("acme", "fast")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client, ThreadPoolExecutor(1) as pool:
        for number, name in enumerate(("low", "normal", "high", None)):
            answer = pool.submit(client.infer, "gate", ONE, priority=name)
            if number == 0:
                if lane == "zmq":
                    worker.next_note()
                worker.take_arena(acknowledge=False)
            envelope = worker.next_request()
            assert envelope.priority == number
            worker.respond(envelope.id)
            assert answer.result(60)["y"].tolist() == [5.0]
        with pytest.raises(BedsitError) as caught:
            client.infer("gate", ONE, priority="urgent")
        assert caught.value.code == "request.invalid"
