"""The ledger: the sum of what was used, whatever is heard twice, never, late, or from another router."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bedsit.supervisor.ledger import Ledger, Passed, Sample, Taken
from bedsit.supervisor.registry import Registry

GIB = 1 << 30
ONE, TWO = "0" * 16, "1" * 16


class Desk:
    """A ledger in a new database, at an hour that the test says."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bedsit.db"
        Registry(self.path).close()
        self.hour = "2026-11-27T06"
        self.names: dict[tuple[int, int], tuple[str, str]] = {(1, 1): ("acme", "echo"), (2, 1): ("beta", "echo")}
        self.ledger = self._open()

    def _open(self) -> Ledger:
        return Ledger(self.path, lambda: self.hour)

    def restart(self) -> None:
        """Another daemon."""
        self.ledger.close()
        self.ledger = self._open()

    def hear(self, run: str, *rows: Taken, devices: tuple[Passed, ...] = ()) -> None:
        """What a router says."""
        self.ledger.hear(run, rows, devices, lambda tenant, model: self.names.get((tenant, model)))

    def read(self, by: Any = "tenant", since: str = "", tenant: str | None = None) -> list[dict[str, Any]]:
        """The rows."""
        return self.ledger.read(by, since, tenant)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """An empty ledger."""
    made = Desk(tmp_path)
    yield made
    made.ledger.close()


def test_what_is_heard_twice_is_added_once(desk: Desk) -> None:
    """Also by another daemon, and though some of it was never heard."""
    desk.hear(ONE, Taken(1, 1, 1, 2, 3_000_000, 1_000_000))
    desk.hear(ONE, Taken(1, 1, 1, 2, 3_000_000, 1_000_000))
    desk.restart()
    desk.hear(ONE, Taken(1, 1, 1, 2, 3_000_000, 1_000_000))
    desk.hear(ONE, Taken(1, 1, 1, 9, 5_000_000, 2_000_000))
    (row,) = desk.read("model")
    assert row == {"tenant": "acme", "model": "echo", "version": 1, "requests": 9, "worker_s": 5.0, "device_s": 2.0}


def test_the_next_router_counts_from_nothing(desk: Desk) -> None:
    """What the one before had counted stays; it is not heard of again, and nothing of it is kept."""
    desk.hear(ONE, Taken(1, 1, 1, 5, 5_000_000, 0))
    desk.hear(TWO, Taken(1, 1, 1, 2, 1_000_000, 0))
    assert [(row["requests"], row["worker_s"]) for row in desk.read()] == [(7, 6.0)]
    assert desk.ledger._db.execute("SELECT DISTINCT source FROM usage_seen").fetchall() == [(f"router/{TWO}",)]


def test_a_counter_that_goes_back_is_not_believed(desk: Desk) -> None:
    """None of the row's is: and what it had is not added once more when it is there again."""
    desk.hear(ONE, Taken(1, 1, 1, 5, 5_000_000, 0))
    desk.hear(ONE, Taken(1, 1, 1, 6, 1_000_000, 0))
    desk.hear(ONE, Taken(1, 1, 1, 7, 6_000_000, 0))
    assert [(row["requests"], row["worker_s"]) for row in desk.read()] == [(7, 6.0)]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lost_or_repeated_the_sum_is_right(desk: Desk, seed: int) -> None:
    """Of routers that come and go, each heard a last time; late reports that are overtaken; hours set back."""
    rng = Random(seed)
    wanted = dict.fromkeys(desk.names, 0)
    for run in range(4):
        name = f"{run:016x}"
        counts = dict.fromkeys(desk.names, 0)
        said: list[list[Taken]] = []
        for _ in range(20):
            for place in counts:
                counts[place] += rng.choice((0, 1, 1000))
            said.append([Taken(*place, 1, counts[place], counts[place], counts[place]) for place in counts])
            if rng.random() < 0.6:
                desk.hear(name, *rng.sample(said[-1], rng.randint(0, 2)))
            if rng.random() < 0.3:
                desk.hear(name, *rng.choice(said))
            if rng.random() < 0.2:
                desk.restart()
            desk.hour = rng.choice(("2026-11-27T06", "2026-11-27T05", "2026-11-28T00"))
        desk.hear(name, *said[-1])
        wanted = {place: wanted[place] + counts[place] for place in wanted}
    assert {row["tenant"]: row["requests"] for row in desk.read()} == {"acme": wanted[1, 1], "beta": wanted[2, 1]}


def test_names_outlive_their_tenant(desk: Desk) -> None:
    """Who is deleted keeps the name under which it was written; one that was never known has its number."""
    desk.hear(ONE, Taken(1, 1, 1, 1, 0, 0))
    desk.names.clear()
    desk.hear(ONE, Taken(1, 1, 1, 2, 0, 0), Taken(1, 2, 1, 1, 0, 0), Taken(9, 4, 1, 1, 0, 0))
    rows = [(row["tenant"], row["model"], row["requests"]) for row in desk.read("model")]
    assert rows == [("#9", "#4", 1), ("acme", "#2", 1), ("acme", "echo", 2)]


def test_what_fails_in_the_middle_is_not_half_added(desk: Desk) -> None:
    """A report is one transaction: heard again, all of it counts, once."""

    def names(tenant: int, _model: int) -> tuple[str, str]:
        if tenant == 2:
            raise RuntimeError
        return "acme", "echo"

    rows = Taken(1, 1, 1, 1, 0, 0), Taken(2, 1, 1, 1, 0, 0)
    with pytest.raises(RuntimeError):
        desk.ledger.hear(ONE, rows, (), names)
    assert desk.read() == []
    desk.hear(ONE, *rows)
    assert [row["requests"] for row in desk.read()] == [1, 1]


def test_absurd_numbers_spoil_nobodys_rows(desk: Desk) -> None:
    """However often a router begins anew with the largest that there are: all is read yet, and others are added up."""
    most = 1 << 53
    desk.hear(ONE, Taken(2, 1, 1, 3, 1_000_000, 0))
    for run in range(1100):
        desk.hear(f"{run:016x}", Taken(1, 1, 1, most, most, most), devices=(Passed("core", most, most, 0),))
    desk.hear(TWO, *(Taken(1, 1, version, most, most, most) for version in range(2, 1200)), Taken(2, 1, 1, 1, 0, 0))
    beta = desk.read(tenant="beta")
    assert [(row["requests"], row["worker_s"]) for row in beta] == [(4, 1.0)]
    for by in ("tenant", "model", "device"):
        assert desk.read(by)


def test_devices_are_added_up(desk: Desk) -> None:
    """What is used is all but what was idle; a device that somebody has alone, too."""
    desk.hear(ONE, devices=(Passed("core", 10_000_000, 4_000_000, 1_000_000),))
    desk.hear(ONE, devices=(Passed("core", 20_000_000, 5_000_000, 2_000_000),))
    desk.ledger.reside([(1, "acme", 2_000_000, 512.0)], [("GPU-1", 2_000_000, 0), ("GPU-2", 2_000_000, 2_000_000)])
    assert [tuple(row.values()) for row in desk.read("device")] == [
        ("GPU-1", 2.0, 2.0, 0.0, 0.0),
        ("GPU-2", 2.0, 0.0, 2.0, 0.0),
        ("core", 20.0, 15.0, 5.0, 2.0),
    ]
    (row,) = desk.read()
    assert (row["device_s"], row["vram_gib_s"]) == (2.0, 0.5)


def test_a_slot_is_sampled_from_when_it_was_its_tenants(desk: Desk) -> None:
    """Processor time as it grows, memory as the mean of two looks; a look that comes too late is none."""
    for at_us, cpu_us, memory in (
        (2_000_000, 500_000, GIB),
        (4_000_000, 900_000, 3 * GIB),
        (9_999_000_000, 900_001, GIB),
    ):
        desk.ledger.sample([Sample("s1", 1, "acme", cpu_us, memory, at_us, 1_000_000)])
        desk.restart()
    (row,) = desk.read()
    assert (row["cpu_s"], row["memory_gib_s"]) == (0.900001, 1.0 + 2 * 2.0)


def test_a_slot_that_is_sampled_anew_after_its_end_adds_nothing_twice(desk: Desk) -> None:
    """Its counters are forgotten with it, and a clock that went back adds no time."""
    sample = Sample("s1", 1, "acme", 700_000, GIB, 5_000_000, 1_000_000)
    desk.ledger.sample([sample])
    desk.ledger.sample([sample])
    desk.ledger.sample([sample._replace(at_us=4_000_000, cpu_us=600_000)])
    (row,) = desk.read()
    assert (row["cpu_s"], row["memory_gib_s"]) == (0.7, 4.0)
    desk.ledger.forget_slot("s1")
    assert desk.ledger._db.execute("SELECT count(*) FROM usage_seen").fetchone() == (0,)


def test_hours_begin_where_they_are_asked_from(desk: Desk) -> None:
    """What is older is not in the sum, and is forgotten in the end."""
    desk.hear(ONE, Taken(1, 1, 1, 1, 0, 0))
    desk.hour = "2026-11-27T07"
    desk.hear(ONE, Taken(1, 1, 1, 3, 0, 0))
    assert [row["requests"] for row in desk.read(since="2026-11-27T07")] == [2]
    desk.ledger.prune("2026-11-27T07")
    assert [row["requests"] for row in desk.read()] == [2]
    assert desk.read(tenant="nobody") == []
