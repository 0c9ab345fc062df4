"""Which version of a model answers, while defaults change under those who call it."""

import asyncio
import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest

from bedsit import AsyncClient, BedsitError, Client
from bedsit.ipc.manifest import TensorSpec, decode_manifest
from bedsit.ipc.snapshot import VersionView
from bedsit.ipc.wire import Flag, Kind

ONE = {"x": np.zeros(1, np.float32)}

both_lanes = pytest.mark.parametrize("lane", ["fast", "zmq"])


@pytest.fixture
def versions(plane: Any) -> Any:
    """A worker for each of two versions of a model, whose output has another name in the second; 1 is the default."""
    plane.set_models("acme", [plane.manifest()])
    (model,) = plane.tenants["acme"].models
    manifest = decode_manifest(plane.manifest())
    second = dataclasses.replace(manifest, outputs=(TensorSpec("z", "float32", (-1,)),))
    plane.change("acme", models=[_with_versions(model, VersionView(2, second.encode()))])
    return plane.add_hostile("acme"), plane.add_hostile("acme", models=[(1, 2)])


def _with_versions(model: Any, *more: VersionView) -> Any:
    return msgspec.structs.replace(model, versions=[*model.versions, *more])


@pytest.fixture
def caller() -> Iterator[ThreadPoolExecutor]:
    """A thread for a call that waits."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def _serve(worker: Any, answer: "Future[Any]", *, first: bool, lane: str = "fast") -> list[str]:
    """Answer the next request at a worker; the names in the result."""
    if first:
        if lane == "zmq":
            worker.next_note()
        worker.take_arena(acknowledge=False)
    envelope = worker.next_request()
    assert (envelope.model, envelope.model_version) == (1, 1 if worker.slot == "s00000000" else 2)
    worker.respond(envelope.id)
    return list(answer.result(60))


@both_lanes
def test_a_client_follows_a_default_that_has_changed(plane: Any, versions: Any, caller: Any, lane: Any) -> None:
    """Its next call is answered by the new version, as that one's manifest says; the caller notices nothing."""
    old, new = versions
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        assert _serve(old, caller.submit(client.infer, "gate", ONE), first=True, lane=lane) == ["y"]
        plane.change_model("acme", default=2)
        assert _serve(new, caller.submit(client.infer, "gate", ONE), first=True, lane=lane) == ["z"]
        assert _serve(new, caller.submit(client.infer, "gate", ONE), first=False) == ["z"]
        plane.change_model("acme", default=1)
        assert _serve(old, caller.submit(client.infer, "gate", ONE), first=False) == ["y"]
        assert plane.stats("acme")["refused"] == 0


@both_lanes
def test_an_asyncio_client_follows_as_well(plane: Any, versions: Any, lane: Any) -> None:
    """Many calls at once all find out, and each is answered once, by the new version."""
    _, new = versions
    plane.change("acme", max_inflight=100)

    async def run() -> None:
        async with AsyncClient("acme", run_dir=str(plane.run_dir), lane=lane) as client:
            await client.describe("gate")
            await asyncio.to_thread(plane.change_model, "acme", default=2)
            calls = [asyncio.create_task(client.infer("gate", ONE, timeout_s=60)) for _ in range(5)]
            if lane == "zmq":
                await asyncio.to_thread(new.next_note)
            await asyncio.to_thread(new.take_arena, acknowledge=False)
            for _ in range(5):
                new.respond((await asyncio.to_thread(new.next_request)).id)
            assert [list(answer) for answer in await asyncio.gather(*calls)] == [["z"]] * 5

    asyncio.run(run())


@both_lanes
def test_a_pinned_version_is_served_as_long_as_it_is_registered(
    plane: Any, versions: Any, caller: Any, lane: Any
) -> None:
    """Whatever the default is meanwhile; when it is deleted, its callers are told, and the others go on."""
    old, new = versions
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        assert _serve(old, caller.submit(client.infer, "gate", ONE, version=1), first=True, lane=lane) == ["y"]
        plane.change_model("acme", default=2)
        assert _serve(old, caller.submit(client.infer, "gate", ONE, version=1), first=False) == ["y"]
        assert _serve(new, caller.submit(client.infer, "gate", ONE, version=2), first=True, lane=lane) == ["z"]
        (model,) = plane.tenants["acme"].models
        plane.change("acme", models=[msgspec.structs.replace(model, versions=model.versions[1:])])
        with pytest.raises(BedsitError) as caught:
            client.infer("gate", ONE, version=1)
        assert caught.value.code == "model.not_found"
        assert _serve(new, caller.submit(client.infer, "gate", ONE), first=False) == ["z"]


@both_lanes
def test_many_calls_go_on_over_a_change(plane: Any, versions: Any, caller: Any, lane: Any) -> None:
    """Of a series those that left before the change are answered by the old version, all others by the new one."""
    old, new = versions
    with Client("acme", run_dir=str(plane.run_dir), lane=lane) as client:
        answer = caller.submit(client.infer_many, "gate", [ONE] * 6, window=2, timeout_s=60)
        if lane == "zmq":
            old.next_note(), new.next_note()
        old.take_arena(acknowledge=False)
        first = [old.next_request().id for _ in range(2)]
        plane.change_model("acme", default=2)
        for rid in first:
            old.respond(rid)
        new.take_arena(acknowledge=False)
        for _ in range(4):
            new.respond(new.next_request().id)
        assert [list(result) for result in answer.result(60)] == [["y"]] * 2 + [["z"]] * 4


def test_the_router_serves_the_default_or_what_is_pinned(plane: Any, versions: Any) -> None:
    """A request that believes in another default is told; one that means its version gets it."""
    old, new = versions
    session = plane.knock("acme")
    assert session.ask({"op": "describe", "model": "gate", "version": 0})["version"] == 1
    assert session.models() == {"gate": [1, 2]}
    plane.change_model("acme", default=2)
    assert session.ask({"op": "describe", "model": "gate", "version": 0})["version"] == 2
    assert session.ask({"op": "describe", "model": "gate", "version": 1})["version"] == 1
    assert session.models() == {"gate": [2, 1]}
    session.lane.send(session.request(1))
    assert session.answer() == (1, Kind.ERROR, "model.moved")
    session.lane.send(session.request(2, flags=Flag.PINNED))
    old.take_arena()
    old.respond(old.next_request().id)
    assert session.answer() == (2, Kind.RESPONSE, "")
    for ident, flags in ((3, 0), (4, Flag.PINNED)):
        session.lane.send(session.request(ident, model_version=2, flags=flags))
        if ident == 3:
            new.take_arena()
        new.respond(new.next_request().id)
        assert session.answer() == (ident, Kind.RESPONSE, "")
    assert plane.stats("acme")["errors"] == 1
