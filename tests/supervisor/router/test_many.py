"""Many calls as one: in order, so many at a time, all in the time of one, and none left behind by the first failure."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bedsit import AsyncClient, BedsitError, Client
from bedsit.ipc import wire
from bedsit.ipc.wire import Kind

ONE = {"x": np.zeros(1, np.float32)}


@pytest.fixture(params=["fast", "zmq"])
def lane(request: pytest.FixtureRequest) -> Any:
    """How requests travel."""
    return request.param


@pytest.fixture(params=["sync", "asyncio"])
def infer_many(request: pytest.FixtureRequest, plane: Any, lane: Any) -> Any:
    """``infer_many`` of a new client of either kind, as a function that blocks."""

    def sync(model: str, requests: Any, **options: Any) -> Any:
        with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            return client.infer_many(model, requests, **options)

    async def run(model: str, requests: Any, options: Any) -> Any:
        async with AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            return await client.infer_many(model, requests, **options)

    def asynchronous(model: str, requests: Any, **options: Any) -> Any:
        return asyncio.run(run(model, requests, options))

    return sync if request.param == "sync" else asynchronous


def _numbered(count: int, pulled: list[int]) -> Iterator[dict[str, Any]]:
    """Requests that tell that they were asked for."""
    for number in range(count):
        pulled.append(number)
        yield ONE


@pytest.fixture
def worker(plane: Any, lane: Any) -> Any:
    """A worker of ``acme`` that takes any number of requests and answers none; arenas are not acknowledged."""
    plane.change("acme", max_inflight=1000)
    return plane.add_hostile("acme")


def _next(worker: Any) -> Any:
    """The next request or withdrawal, after whatever notes."""
    while len(packet := worker.fast.recv()) < wire.ENVELOPE_BYTES:
        pass
    return wire.read_envelope(packet)


def test_results_come_in_the_order_of_the_requests(plane: Any, infer_many: Any) -> None:
    """Two hundred, small and large, whatever the window."""
    plane.change("acme", queue_max=500)
    plane.add_slot("acme")
    requests = [{"x": np.full(4 + 3000 * (n % 3), n + 5, np.float32)} for n in range(200)]
    for window in (1, 7, 500):
        results = infer_many("gate", requests, window=window, timeout_s=60)
        for n, result in enumerate(results):
            assert result["y"].shape == requests[n]["x"].shape
            assert (result["y"] == n + 6).all()
        assert len(results) == 200


def test_no_requests_give_no_results(plane: Any, infer_many: Any) -> None:
    """And a window that lets nothing through is refused."""
    plane.add_hostile("acme")
    assert infer_many("gate", []) == []
    with pytest.raises(BedsitError) as caught:
        infer_many("gate", [ONE], window=0)
    assert caught.value.code == "request.invalid"


def test_no_more_than_the_window_are_under_way(plane: Any, infer_many: Any, worker: Any) -> None:
    """Nor is the iterator asked for more than one beyond; each answer makes room for the next."""
    pulled: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(infer_many, "gate", _numbered(12, pulled), window=4, timeout_s=60)
        rids = [_next(worker).id for _ in range(4)]
        for served in range(12):
            plane.wait_until(lambda: plane.counts("acme")["in_flight"] == len(rids))
            assert len(rids) <= 4
            assert len(pulled) <= served + 5
            worker.respond(rids.pop(0))
            if served < 8:
                rids.append(_next(worker).id)
        assert [result["y"].tolist() for result in results.result(60)] == [[5.0]] * 12


def test_the_first_failure_withdraws_the_rest(plane: Any, infer_many: Any, worker: Any) -> None:
    """It is raised, everything under way is withdrawn, and nothing more is asked for."""
    pulled: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(infer_many, "gate", _numbered(100, pulled), window=4, timeout_s=60)
        rids = [_next(worker).id for _ in range(4)]
        failure = wire.pack_error(rids[0], BedsitError("model.failed", "no"))
        worker.lane.send(failure)
        error = results.exception(60)
        assert isinstance(error, BedsitError)
        assert error.code == "model.failed"
        cancelled = [_next(worker) for _ in range(3)]
        assert {envelope.kind for envelope in cancelled} == {Kind.CANCEL}
        assert {envelope.id for envelope in cancelled} == set(rids[1:])
        assert len(pulled) <= 5
        for rid in rids[1:]:
            worker.respond(rid)
    plane.wait_until(lambda: plane.counts("acme")["in_flight"] == 0)


@pytest.mark.parametrize("fault", ["input", "iterator"])
def test_what_is_wrong_on_this_side_withdraws_the_rest_as_well(
    plane: Any, infer_many: Any, worker: Any, fault: str
) -> None:
    """An input that the model does not take, or an iterator that raises."""

    def ask() -> Iterator[Any]:
        yield ONE
        yield ONE
        if fault == "iterator":
            raise KeyError("mine")
        yield {"z": np.zeros(1)}

    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(infer_many, "gate", ask(), timeout_s=60)
        error = results.exception(60)
        assert isinstance(error, KeyError) if fault == "iterator" else error.code == "input.invalid"
    plane.wait_until(lambda: plane.counts("acme")["sessions"] == 0)
    seen = []
    while worker.fast.poll(0):
        packet = worker.fast.recv()
        if len(packet) >= wire.ENVELOPE_BYTES:
            seen.append(wire.read_envelope(packet))
    requests = {envelope.id for envelope in seen if envelope.kind == Kind.REQUEST}
    assert {envelope.id for envelope in seen if envelope.kind == Kind.CANCEL} == requests


def test_the_timeout_bounds_all_of_them_together(plane: Any, infer_many: Any, worker: Any) -> None:
    """However long each waited: a worker that answers all but the last one gets its withdrawal."""
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(infer_many, "gate", [ONE] * 5, window=2, timeout_s=1.0)
        for _ in range(4):
            worker.respond(_next(worker).id)
        held = _next(worker)
        error = results.exception(60)
        assert isinstance(error, BedsitError)
        assert error.code == "deadline.exceeded"
        cancel = _next(worker)
        assert (cancel.kind, cancel.id) == (Kind.CANCEL, held.id)
        worker.respond(held.id)


def test_a_series_goes_on_over_a_router_that_is_killed(plane: Any, infer_many: Any) -> None:
    """Each result is its own request's, whichever router it was asked of."""
    slot = plane.add_slot("acme")
    requests = [{"x": np.array([1.0 if n == 20 else n + 5], np.float32)} for n in range(60)]
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(infer_many, "gate", requests, window=8, timeout_s=60)
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        plane.stop_router(signal.SIGKILL)
        plane.start_router()
        (plane.folder_of(slot) / "go").touch()
        values = [float(result["y"][0]) for result in results.result(60)]
    assert values == [2.0 if n == 20 else n + 6.0 for n in range(60)]


def test_series_of_several_threads_share_a_client(plane: Any, lane: Any) -> None:
    """Four at once over one session: each gets its own results."""
    plane.add_slot("acme")
    start = threading.Barrier(4)
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client, ThreadPoolExecutor(4) as pool:

        def work(number: int) -> list[float]:
            start.wait(30)
            requests = [{"x": np.full(2, 1000 * number + n + 5, np.float32)} for n in range(50)]
            return [float(result["y"][0]) for result in client.infer_many("gate", requests, window=5, timeout_s=60)]

        for number, values in enumerate(pool.map(work, range(4))):
            assert values == [1000.0 * number + n + 6 for n in range(50)]
