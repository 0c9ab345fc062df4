"""Keeping the ledger: what is asked of whom, and what follows when one of them does not answer or cannot be written."""

import asyncio
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox.cgroup import Stats
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.admin.schema import UsageList, read_request
from bedsit.supervisor.admin.usage import list_all
from bedsit.supervisor.books import Books
from bedsit.supervisor.control import UsageReport
from bedsit.supervisor.evasion import Evasion
from bedsit.supervisor.holdings import Holding
from bedsit.supervisor.ledger import Ledger, Passed, Taken
from bedsit.supervisor.registry import Registry

RUN = "0" * 16


class Registered:
    """One tenant, which takes turns on a core, as long as it is there."""

    def __init__(self) -> None:
        seat = SimpleNamespace(cores=(3,), is_shared=True, devices=("core",))
        self.rows = {1: SimpleNamespace(number=1, name="acme", seat=seat)}

    def seated(self) -> list[Any]:
        return list(self.rows.values())

    def tenant(self, name: str) -> Any:
        for row in self.rows.values():
            if row.name == name:
                return row
        raise error("tenant.not_found", name)

    def find_tenant(self, number: int) -> Any:
        return self.rows.get(number)

    def models(self, _number: int) -> list[Any]:
        return [SimpleNamespace(number=1, name="echo")]


class Office:
    """Books of a house with one slot, whose router answers or not."""

    def __init__(self, folder: Path) -> None:
        Registry(folder / "bedsit.db").close()
        self.ledger = Ledger(folder / "bedsit.db", lambda: "2026-11-27T06")
        self.registry = Registered()
        self.fed: list[on.Stimulus] = []
        self.report: UsageReport | None = None
        self.cpu_s = 0.0
        record = SimpleNamespace(slot="s1", tenant="acme", phase="serving")
        self.live = SimpleNamespace(record=record, assigned_s=0.0)
        slots = SimpleNamespace(live={"s1": self.live}, stats=lambda _slot: self.stats())
        parts: Any = (self.registry, slots, self, self.ledger, self._list_holdings, self.fed.append)
        self.books = Books(*parts)

    def stats(self) -> Stats:
        """What the kernel counts of the slot."""
        made: Any = SimpleNamespace(cpu_usage_s=self.cpu_s, memory_bytes=1 << 20)
        return made  # type: ignore[no-any-return]

    def _list_holdings(self) -> Iterable[Holding]:
        return [Holding("GPU-1", "acme", 0)]

    def look(self) -> None:
        """Some seconds are over."""
        asyncio.run(self.books.bring_up_to_date())

    async def ask_usage(self, _timeout_s: float) -> bool:
        """As the link to the router does."""
        if self.report is not None:
            self.books.hear(self.report)
        return self.report is not None

    def lock(self) -> sqlite3.Connection:
        """Keep the database to oneself."""
        self.ledger._db.execute("PRAGMA busy_timeout = 0")
        other = sqlite3.connect(self.ledger._db.execute("PRAGMA database_list").fetchone()[2], isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        return other


class Hurried(Evasion):
    """Finds whoever it is asked of."""

    def judge(self, now_us: int, counts: Any) -> dict[str, float]:
        del now_us
        return dict.fromkeys(counts, 1.0)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """New books."""
    made = Office(tmp_path)
    yield made
    made.ledger.close()


def report(*rows: Taken, run: str = RUN) -> UsageReport:
    """What a router says."""
    return UsageReport(run, list(rows), [Passed("core", 1, 1, 0)])


def test_a_router_that_does_not_answer_makes_nobody_a_suspect(office: Office) -> None:
    """What its tenants had of turns since then is not known, and what they computed is."""
    office.books._evasion = Hurried()
    office.look()
    assert office.fed == []
    office.report = report(Taken(1, 1, 1, 1, 1, 1))
    office.look()
    (fed,) = office.fed
    assert isinstance(fed, on.SlotHung)
    assert fed.slot == "s1"
    assert "without having a turn" in fed.text


def test_a_ledger_that_cannot_be_written_is_told_later(office: Office) -> None:
    """Rows are told by the router when they change, and only then: those that were not written are kept until they are.

    What tenants had alone is counted from when it was written last.
    """
    office.report = report(Taken(1, 1, 1, 2, 7_000_000, 0))
    held_at_us = office.books._held_at_us
    other = office.lock()
    office.look()
    assert office.books._held_at_us == held_at_us
    other.execute("ROLLBACK")
    other.close()
    office.report = report(Taken(1, 1, 2, 1, 1_000_000, 0))
    office.look()
    (row,) = office.ledger.read("tenant", "")
    assert (row["requests"], row["worker_s"]) == (3, 8.0)
    assert office.books._held_at_us > held_at_us
    assert office.books._unwritten == {}


def test_who_was_deleted_pays_for_its_last_seconds(office: Office) -> None:
    """By the name that it had: of its models what the router says last, of its slot what the kernel does."""
    office.books.part_with(office.registry.tenant("acme"))
    office.registry.rows.clear()
    office.books.hear(report(Taken(1, 1, 1, 2, 7_000_000, 0)))
    office.cpu_s = 1.5
    office.books.slot_ended(office.live, office.stats())  # type: ignore[arg-type]
    (row,) = office.ledger.read("tenant", "")
    assert (row["tenant"], row["requests"], row["cpu_s"]) == ("acme", 2, 1.5)
    assert office.ledger._db.execute("SELECT count(*) FROM usage_seen WHERE source = 'slot'").fetchone() == (0,)


@pytest.mark.parametrize(
    "fields",
    [{"hours": -1}, {"hours": float("nan")}, {"hours": 1e9}, {"by": "moon"}, {"tenant": "../x"}, {"hours": "1"}],
)
def test_what_makes_no_sense_is_no_request(fields: dict[str, Any]) -> None:
    """It is refused before anybody is asked."""
    with pytest.raises(BedsitError, match=r"request\.invalid"):
        read_request({"op": "usage.list", **fields})


def test_memory_of_a_device_that_is_shared_is_paid_for_and_its_time_is_the_routers_to_tell(office: Office) -> None:
    """Time by turns and memory by bytes: nobody's seat on it is a second of it, and none of its seconds is idle."""
    office.books.holdings = lambda: [Holding("GPU-1", "acme", 1 << 30, takes_turns=True)]
    office.look()
    (row,) = office.ledger.read("tenant", "2026-11-27T06")
    assert (row["device_s"], row["vram_gib_s"] > 0) == (0.0, True)
    assert office.ledger.read("device", "2026-11-27T06") == []


def test_a_device_is_nobodys_alone(office: Office) -> None:
    """What a tenant had of it is asked for by tenant or model."""
    desk: Any = SimpleNamespace(books=office.books)
    with pytest.raises(BedsitError, match=r"request\.invalid"):
        asyncio.run(list_all(desk, UsageList(by="device", tenant="acme"), SimpleNamespace()))  # type: ignore[arg-type]
    for by in ("tenant", "model", "device"):
        answer = asyncio.run(list_all(desk, UsageList(by=by, hours=0.0), SimpleNamespace()))  # type: ignore[arg-type]
        assert answer["since"].endswith(":00:00Z")
