"""The ring of events: bounded, fed, never a reason to fail."""

import asyncio
import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from bedsit.supervisor.events import Events
from bedsit.supervisor.registry import Registry


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Events]:
    """A ring that keeps 100 events."""
    Registry(tmp_path / "bedsit.db").close()
    ticks = itertools.count()
    events = Events(tmp_path / "bedsit.db", 100, lambda: f"t{next(ticks)}")
    yield events
    events.close()


def test_gives_the_newest_oldest_first(events: Events) -> None:
    """With and without a tenant."""
    events.add("tenant.created", "one", "a")
    events.add("slot.died", "two", "b", "s1", "oom")
    events.add("tenant.deleted", "three", "a")

    assert [e.text for e in events.last(2)] == ["two", "three"]
    assert [e.text for e in events.last(10, "a")] == ["one", "three"]
    assert events.last(10, "b")[0].to_wire() == {
        "id": 2, "at": "t1", "kind": "slot.died", "tenant": "b", "slot": "s1", "cause": "oom", "text": "two",
    }  # fmt: skip


def test_is_bounded(events: Events) -> None:
    """Old events go."""
    for number in range(500):
        events.add("slot.ready", str(number))

    assert 100 <= len(events.last(10_000)) < 200
    assert events.last(1)[0].text == "499"


def test_feeds_followers_and_loses_their_oldest(events: Events) -> None:
    """A slow follower costs neither memory nor time."""

    async def follow() -> tuple[int, str]:
        with events.feed() as feed:
            for number in range(1500):
                events.add("slot.ready", str(number))
            return feed.qsize(), feed.get_nowait().text

    assert asyncio.run(follow()) == (1000, "500")


def test_counts_what_it_cannot_write(events: Events, tmp_path: Path) -> None:
    """An event that is lost is counted and fed all the same."""
    db = sqlite3.connect(tmp_path / "bedsit.db")
    db.execute("DROP TABLE events")
    db.close()

    async def follow() -> str:
        with events.feed() as feed:
            events.add("slot.ready", "still told")
            return feed.get_nowait().text

    assert asyncio.run(follow()) == "still told"
    assert events.lost == 1
