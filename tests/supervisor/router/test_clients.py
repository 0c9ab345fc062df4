"""The two clients against a live router: threads, forks, many at once, timeouts, and the end."""

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bedsit import AsyncClient, BedsitError, Client

WAIT = {"x": np.array([1.0], np.float32)}


@pytest.fixture(params=["fast", "zmq"])
def lane(request: pytest.FixtureRequest) -> Any:
    """How requests travel: every test is made on both lanes."""
    return request.param


def _x(value: float, elements: int = 4) -> dict[str, Any]:
    return {"x": np.full(elements, -value, np.float32)}


def test_threads_share_a_client_and_each_gets_its_own_answers(plane: Any, lane: Any) -> None:
    """Eight threads with fifty calls each, small and large ones mixed: every answer belongs to its call."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client, ThreadPoolExecutor(8) as pool:

        def work(number: int) -> bool:
            for call in range(50):
                value = number * 100 + call + 5
                elements = 4 if call % 2 else 4000
                y = client.infer("gate", _x(value, elements), timeout_s=60)["y"]
                if y.shape != (elements,) or not (y == 1 - value).all():
                    return False
            return True

        assert all(pool.map(work, range(8)))
        assert client._link is not None
        assert client._link.session.arena.free_bytes() == client._link.session.arena.size


def test_a_call_waits_for_its_turn_no_longer_than_its_timeout(plane: Any, lane: Any) -> None:
    """While another thread's call takes its time, a call with a short timeout ends at its deadline."""
    slot = plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.infer, "gate", WAIT, timeout_s=60)
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        with pytest.raises(BedsitError) as caught:
            client.infer("gate", _x(5), timeout_s=0.2)
        assert caught.value.code == "deadline.exceeded"
        assert not slow.done()
        (plane.folder_of(slot) / "go").touch()
        assert slow.result(60)["y"][0] == 2.0


def _in_child(action: Any) -> str:
    """What *action* gives in a forked child; ``hung`` when it gives nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            text = str(action())
        except BedsitError as e:
            text = e.code
        except BaseException as e:  # noqa: BLE001 - a child of pytest must not come back from here
            text = repr(e)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text or "hung"


def test_a_forked_child_gets_a_clear_error_and_the_parent_goes_on(plane: Any, lane: Any) -> None:
    """The child may not use its parent's session; closing the client there, or its end, does the parent no harm."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        assert client.infer("gate", _x(5))["y"][0] == -4.0
        link = client._link
        for action in (
            lambda: client.infer("gate", _x(5)),
            lambda: client.empty(4),
            lambda: (client.close(), client.infer("gate", _x(5))),
        ):
            assert _in_child(action) == "request.invalid"
            assert client.infer("gate", _x(5))["y"][0] == -4.0
        assert client._link is link


def test_a_child_forked_in_the_middle_of_a_call_does_not_hang(plane: Any, lane: Any) -> None:
    """The lock of a thread that only the parent has is no reason to wait for ever."""
    slot = plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.infer, "gate", WAIT, timeout_s=60)
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        assert _in_child(lambda: client.infer("gate", _x(5), timeout_s=None)) == "request.invalid"
        (plane.folder_of(slot) / "go").touch()
        assert slow.result(60)["y"][0] == 2.0


def test_a_child_makes_its_own_client(plane: Any, lane: Any) -> None:
    """A new client in a forked child has a session of its own."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        client.infer("gate", _x(5))

        def call() -> float:
            with Client("acme", run_dir=str(plane.run_dir), lane=lane) as own:
                return float(own.infer("gate", _x(7))["y"][0])

        assert _in_child(call) == "-6.0"
        assert client.infer("gate", _x(5))["y"][0] == -4.0


def test_arrays_outlive_their_client(plane: Any, lane: Any) -> None:
    """Results and arrays from ``empty`` stay valid after the session's end; the client itself does not."""
    plane.add_slot("acme")
    client = Client("acme", run_dir=str(plane.run_dir), lane=lane)
    array = client.empty((10_000,), "float32")
    array[...] = -3.0
    y = client.infer("gate", {"x": array})["y"]
    client.close()
    client.close()
    assert (array == -3.0).all()
    assert (y == -2.0).all()
    for use in (lambda: client.empty(1), client.models, lambda: client.infer("gate", _x(5))):
        with pytest.raises(BedsitError) as caught:
            use()
        assert caught.value.code == "request.invalid"


def test_outputs_larger_than_guessed_are_fetched_by_themselves(plane: Any, lane: Any) -> None:
    """The client learns from the first refusal how much room an output takes; the caller notices nothing."""
    wide = {
        "bedsit.toml": plane.bundle["bedsit.toml"],
        "model.py": "def build(bundle):\n    return lambda x: x.repeat(1000)\n",
    }
    plane.add_slot("acme", [wide])
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        for _ in range(2):
            y = client.infer("gate", _x(5, 10))["y"]
            assert y.shape == (10_000,)
            assert (y == -5).all()
    assert plane.stats("acme")["requests"] == 3


def test_a_hundred_calls_at_once_on_one_loop(plane: Any, lane: Any) -> None:
    """An asyncio client keeps them apart, whatever the order of the answers."""
    plane.change("acme", queue_max=128)
    plane.add_slot("acme")

    async def run() -> list[Any]:
        async with AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            calls = [client.infer("gate", _x(n + 5, 4 + n * 50), timeout_s=60) for n in range(100)]
            return await asyncio.gather(*calls)

    for n, answer in enumerate(asyncio.run(run())):
        assert answer["y"].shape == (4 + n * 50,)
        assert (answer["y"] == 1 - (n + 5)).all()


def test_a_cancelled_and_a_late_call_end_at_once_and_hold_their_memory_until_the_answer(plane: Any, lane: Any) -> None:
    """Cancelling raises CancelledError, the timeout ``deadline.exceeded``; the regions come back with the answers."""
    slot = plane.add_slot("acme")
    big = {"x": np.full(10_000, 1.0, np.float32)}

    async def run() -> None:
        async with AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            task = asyncio.create_task(client.infer("gate", big, timeout_s=None))
            await asyncio.to_thread(plane.wait_until, (plane.folder_of(slot) / "entered").exists)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(BedsitError) as caught:
                await client.infer("gate", big, timeout_s=0.2)
            assert caught.value.code == "deadline.exceeded"
            del caught, task
            assert client._link is not None
            session = client._link.session
            assert session.in_flight() == 2
            assert session.arena.free_bytes() < session.arena.size
            (plane.folder_of(slot) / "go").touch()
            while session.in_flight():  # the answers of the two come some time before or after this one's
                assert (await client.infer("gate", _x(5)))["y"][0] == -4.0
            assert session.arena.free_bytes() == session.arena.size

    asyncio.run(run())


def test_closing_ends_every_call(plane: Any, lane: Any) -> None:
    """Calls in flight end in ``request.cancelled`` when the client is closed under them."""
    slot = plane.add_slot("acme")

    async def run() -> list[Any]:
        client = AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane)
        calls = [asyncio.create_task(client.infer("gate", WAIT, timeout_s=60)) for _ in range(4)]
        await asyncio.to_thread(plane.wait_until, (plane.folder_of(slot) / "entered").exists)
        await client.aclose()
        outcome = await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(BedsitError) as caught:
            await client.models()
        assert caught.value.code == "request.invalid"
        return outcome

    assert [e.code for e in asyncio.run(run())] == ["request.cancelled"] * 4
    (plane.folder_of(slot) / "go").touch()


def test_the_asyncio_client_survives_a_killed_router(plane: Any, lane: Any) -> None:
    """Calls in flight are sent again to the new router, each once, and answered."""
    slot = plane.add_slot("acme")

    async def run() -> list[float]:
        async with AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            calls = [asyncio.create_task(client.infer("gate", WAIT, timeout_s=60)) for _ in range(5)]
            await asyncio.to_thread(plane.wait_until, (plane.folder_of(slot) / "entered").exists)
            await asyncio.to_thread(plane.stop_router, signal.SIGKILL)
            await asyncio.to_thread(plane.start_router)
            (plane.folder_of(slot) / "go").touch()
            return [float(answer["y"][0]) for answer in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == [2.0] * 5


def test_a_question_to_a_router_that_has_just_gone_is_put_to_the_next(plane: Any, lane: Any) -> None:
    """The router is replaced behind the loop's back: the call that finds out by asking about a model goes through."""
    plane.add_slot("acme")

    async def run() -> float:
        async with AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            await client.models()
            plane.stop_router(signal.SIGKILL)
            plane.start_router()
            return float((await client.infer("gate", _x(5), timeout_s=60))["y"][0])

    assert asyncio.run(run()) == -4.0


def test_a_router_that_hangs_keeps_nobody_beyond_the_timeout(plane: Any, lane: Any) -> None:
    """With the router stopped in the middle of everything, a call that is under way ends at its deadline."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        client.infer("gate", _x(5))
        plane.router.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(BedsitError) as caught:
                client.infer("gate", _x(5), timeout_s=0.2)
            assert caught.value.code == "deadline.exceeded"
        finally:
            plane.router.send_signal(signal.SIGCONT)
        assert client.infer("gate", _x(5), timeout_s=60)["y"][0] == -4.0


def test_a_router_that_hangs_keeps_no_newcomer_beyond_the_timeout(plane: Any, lane: Any) -> None:
    """Connecting and asking about a model count towards the timeout as well; nothing is left of the attempt."""
    plane.add_slot("acme")
    run_dir = str(plane.run_dir)
    plane.router.send_signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(BedsitError) as caught, Client("acme", run_dir=run_dir, lane=lane) as client:
            client.infer("gate", _x(5), timeout_s=0.2)
        assert caught.value.code in ("deadline.exceeded", "router.unavailable")
        assert time.monotonic() - start < 8

        async def run() -> None:
            async with AsyncClient("acme", run_dir=run_dir, lane=lane) as client:
                with pytest.raises(BedsitError) as late:
                    await client.infer("gate", _x(5), timeout_s=0.2)
                assert late.value.code == "deadline.exceeded"
                plane.router.send_signal(signal.SIGCONT)
                assert (await client.infer("gate", _x(5), timeout_s=60))["y"][0] == -4.0

        asyncio.run(run())
    finally:
        plane.router.send_signal(signal.SIGCONT)
    plane.wait_until(lambda: plane.stats("acme")["sessions"] == 0)


def test_nobody_at_the_door_is_said_at_once(plane: Any) -> None:
    """A client without a router, from the start, gets ``router.unavailable`` and a hint."""
    run_dir = str(plane.run_dir / "nothing")
    with pytest.raises(BedsitError) as caught:
        Client("acme", run_dir=run_dir).infer("gate", _x(5))
    assert (caught.value.code, caught.value.hint) == ("router.unavailable", "is bedsit up?")
    with pytest.raises(BedsitError) as caught:
        asyncio.run(AsyncClient("acme", run_dir=run_dir).models())
    assert caught.value.code == "router.unavailable"


def test_sessions_in_many_threads_at_once(plane: Any, lane: Any) -> None:
    """One client per thread: sessions come and go side by side, and the router counts none when all have ended."""
    plane.add_slot("acme")
    start = threading.Barrier(8)

    def work(number: int) -> float:
        start.wait(30)
        with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            return float(client.infer("gate", _x(number + 5), timeout_s=60)["y"][0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [1.0 - (n + 5) for n in range(8)]
    plane.wait_until(lambda: plane.stats("acme")["sessions"] == 0)


def test_a_call_that_hangs_holds_up_no_other_thread(plane: Any, lane: Any) -> None:
    """Sixteen threads call over the session of a call that does not end, on another worker: all are answered."""
    plane.change("acme", max_inflight=1)
    held = plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client, ThreadPoolExecutor(17) as pool:
        slow = pool.submit(client.infer, "gate", WAIT, timeout_s=60)
        plane.wait_until((plane.folder_of(held) / "entered").exists)
        plane.add_slot("acme")

        def work(number: int) -> bool:
            values = [number * 100 + call + 5 for call in range(20)]
            return all(client.infer("gate", _x(v), timeout_s=60)["y"][0] == 1 - v for v in values)

        assert all(pool.map(work, range(16)))
        assert not slow.done()
        (plane.folder_of(held) / "go").touch()
        assert slow.result(60)["y"][0] == 2.0


def test_threads_that_wait_in_one_session_are_woken_one_by_one(plane: Any, lane: Any) -> None:
    """Answers in the reverse order of the calls: each thread gets its own as soon as it is there."""
    worker, _ = plane.add_pair("acme", "fast")
    plane.change("acme", max_inflight=100)
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client, ThreadPoolExecutor(8) as pool:
        client.describe("gate")
        if lane == "zmq":
            worker.next_note()
        calls, rids = [], []
        for number in range(8):
            calls.append(pool.submit(client.infer, "gate", _x(5, 1), timeout_s=60))
            if not number:
                worker.take_arena(acknowledge=False)
            rids.append(worker.next_request().id)
        for index in (7, 3, 0, 6, 1, 5, 2, 4):
            worker.respond(rids[index])
            assert calls[index].result(60)["y"].tolist() == [5.0]
            assert sum(call.done() for call in calls) == 1 + (7, 3, 0, 6, 1, 5, 2, 4).index(index)


def test_closing_ends_the_calls_of_other_threads(plane: Any, lane: Any) -> None:
    """Who reads and who waits for its turn to read: all of them get ``request.cancelled``, and nothing hangs."""
    slot = plane.add_slot("acme")
    client = Client("acme", run_dir=str(plane.run_dir), lane=lane)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(client.infer, "gate", WAIT, timeout_s=60) for _ in range(8)]
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        plane.wait_until(lambda: sum(plane.counts("acme")[key] for key in ("queued", "in_flight")) == 8)
        client.close()
        assert [call.exception(60).code for call in calls] == ["request.cancelled"] * 8
    (plane.folder_of(slot) / "go").touch()


def test_a_call_without_time_waits_for_nobody(plane: Any, lane: Any) -> None:
    """Also not for another thread that is trying to reach a router that is away."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client, ThreadPoolExecutor(2) as pool:
        client.infer("gate", _x(5))
        plane.stop_router(signal.SIGKILL)
        patient = pool.submit(client.infer, "gate", _x(5), timeout_s=60)
        plane.wait_until(client._connecting.locked)
        hasty = pool.submit(client.infer, "gate", _x(5), timeout_s=0)
        assert hasty.exception(60).code in ("deadline.exceeded", "router.unavailable")
        assert not patient.done()
        plane.start_router()
        assert patient.result(60)["y"][0] == -4.0


def _non_idempotent(plane: Any) -> str:
    bundle = {**plane.bundle, "bedsit.toml": "idempotent = false\n" + plane.bundle["bedsit.toml"]}
    slot: str = plane.add_slot("acme", [bundle], idempotent=False)
    return slot


def test_a_request_that_never_left_is_sent_to_the_next_router(plane: Any, lane: Any) -> None:
    """The router is replaced between two calls of a model that must not run twice: the second one is answered."""
    _non_idempotent(plane)
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        for value in (5, 6, 7):
            assert client.infer("gate", _x(value), timeout_s=60)["y"][0] == 1 - value
            plane.stop_router(signal.SIGKILL)
            plane.start_router()
        assert client.infer_many("gate", [_x(8), _x(9)], timeout_s=60)[1]["y"][0] == -8.0


def test_a_request_that_never_left_a_loop_is_sent_to_the_next_router(plane: Any, lane: Any) -> None:
    """As above, for the asyncio client, whose loop was not looking."""
    _non_idempotent(plane)

    async def run() -> None:
        async with AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            for value in (5, 6, 7):
                assert (await client.infer("gate", _x(value), timeout_s=60))["y"][0] == 1 - value
                plane.stop_router(signal.SIGKILL)
                plane.start_router()

    asyncio.run(run())


def test_a_request_that_may_have_run_is_not_sent_again(plane: Any, lane: Any) -> None:
    """It lay in the router's socket when that died: nobody can tell, so the caller is told; later calls go through."""
    _non_idempotent(plane)
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client, ThreadPoolExecutor(1) as pool:
        client.infer("gate", _x(5))
        plane.router.send_signal(signal.SIGSTOP)
        call = pool.submit(client.infer, "gate", _x(6), timeout_s=60)
        assert client._link is not None
        plane.wait_until(lambda: client._link.session.in_flight() == 1)
        with client._link._state:
            pass  # it is under way: whoever begins a request sends it before letting go
        plane.stop_router(signal.SIGKILL)
        plane.start_router()
        assert call.exception(60).code == "router.restarted"
        assert client.infer("gate", _x(7), timeout_s=60)["y"][0] == -6.0
    assert plane.counts("acme")["requests"] == 1


def test_releasing_a_result_gives_its_memory_back_now(plane: Any, lane: Any) -> None:
    """Not before the last view of it is gone: until then it says so, and the result stays as it is."""
    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        result = client.infer("gate", _x(5, 50_000))
        assert client._link is not None
        arena = client._link.session.arena
        assert arena.free_bytes() < arena.size
        part = result["y"][10:20]
        with pytest.raises(BedsitError) as caught:
            result.release()
        assert caught.value.code == "arena.in_use"
        assert (result["y"] == -4.0).all()
        assert (part == -4.0).all()
        del part, caught
        result.release()
        assert result == {}
        assert arena.free_bytes() == arena.size
        with client.infer("gate", _x(6, 50_000)) as again:
            assert (again["y"] == -5.0).all()
        assert arena.free_bytes() == arena.size
        small = client.infer("gate", _x(7))
        kept = small["y"]
        small.release()  # a copy of its own: there is nothing to give back
        assert kept[0] == -6.0


def test_results_may_be_tensors(plane: Any, lane: Any) -> None:
    """Of torch, with the declared dtype, small and large; large ones lie in shared memory, and inputs may be, too."""
    import torch

    plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane, tensors="torch") as client:
        for elements in (4, 50_000):
            y = client.infer("gate", {"x": torch.full((elements,), -5.0)})["y"]
            assert isinstance(y, torch.Tensor)
            assert (y.dtype, tuple(y.shape)) == (torch.float32, (elements,))
            assert bool((y == -4.0).all())
        assert client._link is not None
        arena = client._link.session.arena
        assert arena.address <= y.data_ptr() < arena.address + arena.size
        del y
        assert arena.free_bytes() == arena.size
        x = torch.from_numpy(client.empty((50_000,)))
        x.fill_(-6.0)
        assert bool((client.infer("gate", {"x": x})["y"] == -5.0).all())

    async def run() -> Any:
        async with AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane, tensors="torch") as other:
            return (await other.infer("gate", _x(7)))["y"]

    assert isinstance(asyncio.run(run()), torch.Tensor)


def test_a_client_that_spins_gets_the_same_answers(plane: Any, lane: Any) -> None:
    """Looking for an answer before sleeping changes nothing else: threads, and the end of the router."""
    slot = plane.add_slot("acme")
    with Client("acme", run_dir=str(plane.run_dir), lane=lane, spin_us=200) as client, ThreadPoolExecutor(4) as pool:
        assert [r["y"][0] for r in pool.map(lambda n: client.infer("gate", _x(n)), range(5, 105))] == [
            1.0 - n for n in range(5, 105)
        ]
        call = pool.submit(client.infer, "gate", WAIT, timeout_s=60)
        plane.wait_until((plane.folder_of(slot) / "entered").exists)
        plane.stop_router(signal.SIGKILL)
        plane.start_router()
        (plane.folder_of(slot) / "go").touch()
        assert call.result(60)["y"][0] == 2.0
