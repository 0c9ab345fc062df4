"""The link to the router: what it gets where it reads slowly, and how long a snapshot may be."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc import snapshot as view
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.frames import FrameReader, encode_frame
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.control import Activity, Control
from bedsit.supervisor.events import Events
from bedsit.supervisor.folders import Folders
from bedsit.supervisor.registry import Registry

pytestmark = pytest.mark.root  # the socket is given away, to ourselves
DEADLINE_S = 20.0


class Router:
    """The other end: reads when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: list[on.Stimulus]) -> None:
        self.heard = heard
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader(2 * view.MAX_BYTES)
        self._inbox: list[Any] = []

    async def next(self) -> Any:
        """The daemon's next message."""
        while not self._inbox:
            data = await asyncio.wait_for(self._reader.read(1 << 20), DEADLINE_S)
            assert data, "the daemon hung up"
            self._inbox += self._frames.feed(data)
        return self._inbox.pop(0)

    async def snapshot(self) -> bytes:
        """The next snapshot, acknowledged by the number that it begins with."""
        message = await self.next()
        assert message["op"] == "snapshot"
        data: bytes = message["snapshot"]
        self.say(op="ack", serial=int(data[:4]))
        return data

    def say(self, **message: Any) -> None:
        """Tell the daemon something."""
        self._writer.write(encode_frame(message))

    async def is_hung_up_on(self) -> bool:
        """Whether the daemon ended the connection."""
        return await asyncio.wait_for(self._reader.read(1), DEADLINE_S) == b""

    async def leave(self) -> None:
        """Hang up."""
        self._writer.close()
        await self._writer.wait_closed()


@asynccontextmanager
async def linked(folder: Path) -> AsyncIterator[tuple[Control, Router]]:
    """A control socket with one router, which has only said who it is."""
    Registry(folder / "bedsit.db").close()
    events = Events(folder / "bedsit.db", 100, lambda: "t")
    heard: list[on.Stimulus] = []
    control = Control(Folders(folder, folder), os.getuid(), heard.append, events)
    await control.open()
    # A small buffer of its own: what is unread stays with the daemon.
    router = Router(*await asyncio.open_unix_connection(control._path, limit=1 << 12), heard)
    router.say(op="hello", pid=1)
    assert await control._wait(lambda: control.router_pid is not None, DEADLINE_S)
    try:
        yield control, router
    finally:
        await router.leave()
        assert await control.wait_gone(DEADLINE_S)
        await control.close()
        events.close()


def snapshot(serial: int, size: int = 4 << 20) -> bytes:
    """Bytes that stand for a snapshot."""
    return f"{serial:04}".encode() + bytes(size - 4)


def test_a_router_that_reads_slowly_gets_the_newest_and_is_kept(tmp_path: Path) -> None:
    """A hundred snapshots of 4 MiB that nobody reads: one is on its way, the last one follows it."""

    async def watch() -> None:
        async with linked(tmp_path) as (control, router):
            control.send_snapshot(0, snapshot(0, 16))
            assert await router.snapshot() == snapshot(0, 16)
            assert await control.wait_acked(0, DEADLINE_S)
            for serial in range(1, 101):
                control.send_snapshot(serial, snapshot(serial))

            assert [(await router.snapshot())[:4] for _ in range(2)] == [b"0001", b"0100"]
            assert await control.wait_acked(100, DEADLINE_S)

    asyncio.run(watch())


def test_what_waits_behind_a_question_is_sent_after_its_answer(tmp_path: Path) -> None:
    """Nothing is forgotten where the last thing that was sent is not a snapshot."""

    async def watch() -> None:
        async with linked(tmp_path) as (control, router):
            control.send_snapshot(0, snapshot(0, 16))
            await router.snapshot()
            assert await control.wait_acked(0, DEADLINE_S)
            control.send_snapshot(1, snapshot(1))
            question = asyncio.ensure_future(control.stats(DEADLINE_S))
            await asyncio.sleep(0)  # it is asked
            control.send_snapshot(2, snapshot(2))
            assert (await router.snapshot())[:4] == b"0001"
            assert await router.next() == {"op": "stats"}
            router.say(op="stats", tenants={})
            assert await question == {}
            assert (await router.snapshot())[:4] == b"0002"

    asyncio.run(watch())


def test_a_snapshot_may_have_64_mib_and_no_more(tmp_path: Path) -> None:
    """The longest one arrives whole; the one that is too long is refused, and the one before still holds."""

    async def watch() -> None:
        async with linked(tmp_path) as (control, router):
            with pytest.raises(BedsitError, match=r"wire\.malformed.*over the limit"):
                control.send_snapshot(1, snapshot(1, view.MAX_BYTES))
            control.send_snapshot(2, snapshot(2, view.MAX_BYTES - 64))

            assert await router.snapshot() == snapshot(2, view.MAX_BYTES - 64)
            assert await control.wait_acked(2, DEADLINE_S)

    asyncio.run(watch())


SAID: list[tuple[dict[str, Any], on.Stimulus]] = [
    ({"op": "drained", "slot": "s1"}, on.SlotDrained("s1")),
    ({"op": "lost", "slot": "s1", "ran": [3, 2]}, on.SlotLost("s1", (3, 2))),
    ({"op": "lost", "slot": "s1", "ran": None}, on.SlotLost("s1", None)),
    ({"op": "lost", "slot": "s1"}, on.SlotLost("s1", None)),
    ({"op": "wanted", "tenant": "a"}, on.TenantWanted("a")),
    (
        {"op": "hung", "slot": "s1", "ran": [3, 2], "after_s": 300.04},
        on.SlotHung("s1", (3, 2), "a call of its model has not ended after 300.0 s"),
    ),
]


def test_what_the_router_says_is_what_the_lifecycle_hears(tmp_path: Path) -> None:
    """Facts and wishes, each as what it is, in order."""

    async def watch() -> None:
        async with linked(tmp_path) as (control, router):
            for message, _ in SAID:
                router.say(**message)
            question = asyncio.ensure_future(control.stats(DEADLINE_S))
            assert await router.next() == {"op": "stats"}
            router.say(op="stats", tenants={})
            await question
            assert router.heard == [stimulus for _, stimulus in SAID]

    asyncio.run(watch())


@pytest.mark.parametrize(
    "message",
    [
        {"op": "shutdown"},
        {"op": "hung", "slot": "s1", "ran": [1, 1]},
        {"op": "hung", "slot": "s1", "ran": [1], "after_s": 1.0},
        {"op": "hung", "slot": "s1", "ran": [1, "1"], "after_s": 1.0},
        {"op": "hung", "slot": "s1", "ran": None, "after_s": "long"},
        {"op": "lost", "slot": 7},
        {"op": "lost", "slot": "s1", "ran": {"model": 1}},
        {"op": "wanted"},
        {"op": "wanted", "tenant": ["a"]},
        {"op": "activity", "tenants": {"a": [1, 0]}},
        {"op": "activity", "tenants": {"a": [1.5, 0, False]}},
        {"op": "activity", "tenants": [["a", 1, 2, True]]},
    ],
    ids=str,
)
def test_a_router_that_speaks_nonsense_is_hung_up_on(tmp_path: Path, message: dict[str, Any]) -> None:
    """The daemon hears nothing of it, and waits for the next router."""

    async def watch() -> None:
        async with linked(tmp_path) as (control, router):
            router.say(**message)
            assert await router.is_hung_up_on()
            assert await control.wait_gone(DEADLINE_S)
            assert router.heard == []

    asyncio.run(watch())


def test_activity_is_what_the_router_says_when_it_is_asked(tmp_path: Path) -> None:
    """Not what it said before; and None, where nobody answers in time or at all."""

    async def watch() -> None:
        async with linked(tmp_path) as (control, router):
            for busy_us in (1, 2):
                question = asyncio.ensure_future(control.activity(DEADLINE_S))
                assert await router.next() == {"op": "activity"}
                router.say(op="activity", tenants={"a": [busy_us, 7, True]})
                assert await question == {"a": Activity(busy_us, 7, crowded=True)}

            assert await control.activity(0.01) is None
            assert await router.next() == {"op": "activity"}
            question = asyncio.ensure_future(control.activity(DEADLINE_S))
            assert await router.next() == {"op": "activity"}
            await router.leave()
            assert await question is None
            assert await control.activity(DEADLINE_S) is None

    asyncio.run(watch())
