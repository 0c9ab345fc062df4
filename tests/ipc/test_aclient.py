"""The asyncio client against a router that the test plays: many requests at once, cancelling, ends."""

import asyncio
import gc
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bedsit.ipc import wire
from bedsit.ipc.aclient import AsyncClient
from bedsit.ipc.errors import BedsitError, error
from tests_support.packets import make_info
from tests_support.routers import DEADLINE_S, Far, PlayedRouter, echo_in_any_order, played

_INFO = make_info()
_ONCE = make_info(idempotent=False)


def _x(value: float, elements: int = 4) -> dict[str, Any]:
    return {"x": np.full(elements, value, np.float32)}


@pytest.fixture(params=["fast", "zmq"])
def lane(request: Any) -> Any:
    """The name of a lane."""
    return request.param


@pytest.fixture
def router(tmp_path: Path) -> Iterator[PlayedRouter]:
    """A router with one model, which is not called again after it may have run."""
    with played(tmp_path, _ONCE) as router:
        yield router


async def _run(what: Callable[..., Any], *arguments: Any) -> Any:
    """The router's part, in a thread, so that the client's loop goes on meanwhile."""
    return await asyncio.wait_for(asyncio.to_thread(what, *arguments), DEADLINE_S)


async def _code(call: Awaitable[Any]) -> str:
    """The code with which it fails."""
    with pytest.raises(BedsitError) as caught:
        await asyncio.wait_for(call, DEADLINE_S)
    caught.value.__traceback__ = None
    return caught.value.code


async def _open(client: AsyncClient, router: PlayedRouter) -> Far:
    """Open the session; gives its far end."""
    opening = asyncio.create_task(client.empty(1))
    far: Far = await _run(router.next_session)
    await opening
    return far


def test_many_requests_of_one_loop(tmp_path: Path, lane: Any) -> None:
    """Five hundred at once, answered in random order: each gets its own answer, nothing stays reserved."""

    async def main() -> None:
        async with AsyncClient("acme", run_dir=router.run_dir, lane=lane) as client:
            results = await asyncio.gather(*(client.infer("m", _x(n, n % 50)) for n in range(500)))
            for number, result in enumerate(results):
                assert result["y"].tolist() == [number] * (number % 50)
            assert client._link is not None
            assert client._link.session.in_flight() == 0

    with played(tmp_path, _INFO, play=echo_in_any_order(seed=9)) as router:
        asyncio.run(main())


def test_a_cancelled_call_is_withdrawn_and_holds_its_memory_until_the_answer(router: PlayedRouter, lane: Any) -> None:
    """The task ends at once; the router hears of it; the late answer frees what the request held."""

    async def main() -> None:
        async with AsyncClient("acme", run_dir=router.run_dir, lane=lane) as client:
            far = await _open(client, router)
            calling = asyncio.create_task(client.infer("m", _x(1, 5000)))
            packet = await _run(far.next_request)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            del calling
            assert await _run(far.next_cancel) == wire.read_route(packet)[1]
            assert client._link is not None
            session = client._link.session
            assert session.in_flight() == 1
            other = asyncio.create_task(client.infer("m", _x(2)))
            far.send(wire.pack_error(wire.read_route(packet)[1], error("request.cancelled", "as you wish")))
            far.echo(await _run(far.next_request))
            assert (await other)["y"][0] == 2
            gc.collect()
            assert session.in_flight() == 0
            assert session.arena.free_bytes() >= session.arena.size - 2 * 4096

    asyncio.run(main())


def test_a_deadline_withdraws_too(router: PlayedRouter, lane: Any) -> None:
    """``deadline.exceeded``, and a CANCEL for the router."""

    async def main() -> None:
        async with AsyncClient("acme", run_dir=router.run_dir, lane=lane) as client:
            far = await _open(client, router)
            calling = asyncio.create_task(client.infer("m", _x(1), timeout_s=0.15))
            packet = await _run(far.next_request)
            assert await _code(calling) == "deadline.exceeded"
            assert await _run(far.next_cancel) == wire.read_route(packet)[1]

    asyncio.run(main())


def test_closing_ends_every_call(router: PlayedRouter, lane: Any) -> None:
    """``request.cancelled`` for those under way, ``request.invalid`` for whoever calls afterwards."""

    async def main() -> None:
        client = AsyncClient("acme", run_dir=router.run_dir, lane=lane)
        far = await _open(client, router)
        calls = [asyncio.create_task(client.infer("m", _x(n), timeout_s=None)) for n in range(6)]
        for _ in calls:
            await _run(far.next_request)
        await client.aclose()
        assert [await _code(call) for call in calls] == ["request.cancelled"] * 6
        assert await _code(client.infer("m", _x(1))) == "request.invalid"
        await client.aclose()

    asyncio.run(main())


def test_closing_while_the_session_opens_leaves_none_behind(tmp_path: Path) -> None:
    """Whoever waits for it is told; the session is hung up on as soon as it is there."""

    async def main() -> None:
        client = AsyncClient("acme", run_dir=str(tmp_path))
        calls = [asyncio.create_task(client.infer("m", _x(1))) for _ in range(3)]
        knocking, _ = await _run(listener.accept)
        await client.aclose()
        with knocking:
            await _run(knocking.recv, 1 << 16)
            fd = os.memfd_create("test-arena", os.MFD_CLOEXEC)
            os.ftruncate(fd, 1 << 16)
            opened = {"tenant": "acme", "token": b"t", "endpoint": "", "arena": 7, "arena_bytes": 1 << 16}
            from bedsit.ipc.seqpacket import send_packet

            send_packet(knocking, opened, [fd])
            os.close(fd)
            assert {await _code(call) for call in calls} <= {"request.cancelled", "request.invalid"}
            assert await _run(knocking.recv, 1) == b""
        assert client._link is None

    (tmp_path / "router").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "router" / "door.sock"))
        listener.listen(4)
        listener.settimeout(DEADLINE_S)
        asyncio.run(main())


def test_the_end_of_the_router_ends_every_call(router: PlayedRouter, lane: Any) -> None:
    """Requests that may have run end in ``router.restarted``."""

    async def main() -> None:
        async with AsyncClient("acme", run_dir=router.run_dir, lane=lane) as client:
            far = await _open(client, router)
            calls = [asyncio.create_task(client.infer("m", _x(n))) for n in range(6)]
            for _ in calls:
                await _run(far.next_request)
            await _run(router.close)
            assert [await _code(call) for call in calls] == ["router.restarted"] * 6

    asyncio.run(main())


def test_calls_of_an_idempotent_model_survive_the_router(tmp_path: Path, lane: Any) -> None:
    """They are sent again, to the next router, over one new session."""

    async def main() -> None:
        async with AsyncClient("acme", run_dir=router.run_dir, lane=lane) as client:
            far = await _open(client, router)
            calls = [asyncio.create_task(client.infer("m", _x(n))) for n in range(4)]
            for _ in calls:
                await _run(far.next_request)
            await _run(router.restart)
            far = await _run(router.next_session)
            for _ in calls:
                far.echo(await _run(far.next_request))
            assert [(await call)["y"][0] for call in calls] == [0, 1, 2, 3]

    with played(tmp_path, _INFO) as router:
        asyncio.run(main())


def test_many_calls_keep_a_window_full_and_fail_together(router: PlayedRouter, lane: Any) -> None:
    """Never more than *window* are under way; the first failure is raised and the rest is withdrawn."""

    async def main() -> None:
        async with AsyncClient("acme", run_dir=router.run_dir, lane=lane) as client:
            far = await _open(client, router)
            asking = asyncio.create_task(client.infer_many("m", [_x(n) for n in range(12)], window=3))
            held = [await _run(far.next_request) for _ in range(3)]
            for _ in range(9):
                assert client._link is not None
                assert client._link.session.in_flight() <= 3
                far.echo(held.pop(0))
                held.append(await _run(far.next_request))
            for packet in held:
                far.echo(packet)
            assert [result["y"][0] for result in await asking] == list(range(12))
            asking = asyncio.create_task(client.infer_many("m", [_x(n) for n in range(12)], window=3))
            held = [await _run(far.next_request) for _ in range(3)]
            idents = [wire.read_route(packet)[1] for packet in held]
            far.send(wire.pack_error(idents[1], error("model.failed", "no")))
            assert await _code(asking) == "model.failed"
            assert sorted([await _run(far.next_cancel) for _ in range(2)]) == [idents[0], idents[2]]
            assert await _code(client.infer_many("m", [], window=0)) == "request.invalid"
            assert await client.infer_many("m", []) == []

    asyncio.run(main())


def test_a_full_lane_holds_off_and_goes_on(router: PlayedRouter) -> None:
    """A router that takes nothing makes calls wait; once it reads again they get through; a deadline bounds it."""

    async def main() -> None:
        async with AsyncClient("acme", run_dir=router.run_dir) as client:
            far = await _open(client, router)
            calling = asyncio.create_task(client.infer("m", _x(0)))
            far.echo(await _run(far.next_request))
            await calling
            link = client._link
            assert link is not None
            stuffed = 0
            while link._lane.send(wire.pack_packet(wire.Kind.CANCEL, 1 << 50, bytes(4000))):
                stuffed += 1
            assert await _code(client.infer("m", _x(1, 5000), timeout_s=0.15)) == "deadline.exceeded"
            assert link.session.in_flight() == 0
            calls = [asyncio.create_task(client.infer("m", _x(n))) for n in range(5)]
            for _ in range(stuffed):
                await _run(far.receive)
            for _ in calls:
                far.echo(await _run(far.next_request))
            assert [(await call)["y"][0] for call in calls] == [0, 1, 2, 3, 4]

    asyncio.run(main())


def test_questions_and_tensors(router: PlayedRouter, lane: Any) -> None:
    """``models``, ``describe``, ``empty``; results as tensors where they were asked for."""

    async def main() -> None:
        async with AsyncClient("acme", run_dir=router.run_dir, lane=lane, tensors="torch") as client:
            far = await _open(client, router)
            asking = asyncio.create_task(client.models())
            far.tell(await _run(far.receive))
            assert await asking == {"m": [2]}
            asking = asyncio.create_task(client.describe("m"))
            far.tell(await _run(far.receive))
            assert await asking == _ONCE.manifest
            array = await client.empty((2, 3), "int8")
            assert (array.shape, array.dtype) == ((2, 3), np.int8)
            calling = asyncio.create_task(client.infer("m", {"x": torch.ones(3)}))
            far.echo(await _run(far.next_request))
            assert (await calling)["y"].equal(torch.ones(3))

    asyncio.run(main())


def test_nobody_at_the_door_is_said_at_once(tmp_path: Path) -> None:
    """A client that was never connected does not wait for a router that may never come."""

    async def main() -> None:
        async with AsyncClient("acme", run_dir=str(tmp_path)) as client:
            assert await _code(client.infer("m", _x(1))) == "router.unavailable"

    asyncio.run(main())
