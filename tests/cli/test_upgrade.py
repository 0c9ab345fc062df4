"""``bedsit upgrade check``: what a restart with the installed version would do to what runs."""

import json
from collections.abc import Callable
from typing import Any

import pytest

import bedsit as package
from bedsit.cli.upgrade import Version, compare, read_installed, read_version

Run = Callable[..., Any]

SPOKEN = {"admin": 1, "door": 2, "record": 2, "slot": 3, "snapshot": 3, "wire": 2, "zygote": 3}
OLD = Version("1.0", SPOKEN)
ROUTER = {"connected": True, "version": "1.0"}


def slot(name: str, tenant: str | None, bedsit: object = "1.0", wire: object = 2) -> dict[str, Any]:
    """A slot as ps has it."""
    return {"slot": name, "tenant": tenant, "bedsit": bedsit, "wire": wire}


SLOTS = [slot("s1", "vision"), slot("s2", None), slot("s3", "audio", "0.9")]


def verdicts(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What happens to each part."""
    return {row["part"]: row["verdict"] for row in rows}


def test_the_same_version_changes_nothing() -> None:
    """Not even for a slot that an earlier one made: it was taken over before."""
    assert verdicts(compare(OLD, ROUTER, [*SLOTS[:2]], OLD)) == dict.fromkeys(["daemon", "router", "s1", "s2"], "stays")
    assert verdicts(compare(OLD, ROUTER, SLOTS, OLD))["s3"] == "stays"


def test_a_slot_that_is_being_built_is_none_yet() -> None:
    """It ends with the daemon that builds it, and nobody misses it."""
    building = slot("s9", None, None, None) | {"state": "building"}

    assert "s9" not in verdicts(compare(OLD, ROUTER, [building], Version("2.0", {})))


def test_another_version_with_the_same_protocols_takes_slots_over() -> None:
    """Those of tenants; the pool is made anew."""
    rows = compare(OLD, ROUTER, SLOTS, Version("1.1", SPOKEN))

    assert verdicts(rows) == {
        "daemon": "restarts",
        "router": "restarts",
        "s1": "stays",
        "s2": "replaced",
        "s3": "stays",
    }
    assert [row["installed"] for row in rows] == ["1.1"] * 5
    assert rows[2]["why"] == "taken over; bedsit tenant restart brings a new one"


@pytest.mark.parametrize("protocol", ["record", "slot"])
def test_a_daemon_that_does_not_know_its_slots_ends_them(protocol: str) -> None:
    """All of them, and says why."""
    rows = compare(OLD, ROUTER, SLOTS, Version("2.0", SPOKEN | {protocol: 9}))

    assert {name: verdicts(rows)[name] for name in ("s1", "s2", "s3")} == {
        "s1": "ended",
        "s2": "replaced",
        "s3": "ended",
    }
    assert rows[2]["why"] == f"another version of protocol {protocol}"
    assert verdicts(rows)[f"protocol {protocol}"] == "changes"
    assert (rows[-1]["runs"], rows[-1]["installed"]) == (str(SPOKEN[protocol]), "9")


def test_slots_that_speak_another_wire_are_drained() -> None:
    """Each by what it speaks itself; where that is not said, by what its daemon does."""
    slots = [slot("s1", "a"), slot("s2", "b", wire=3), slot("s3", None), slot("s4", "c", wire=None)]
    rows = compare(OLD, ROUTER, slots, Version("2.0", SPOKEN | {"wire": 3}))

    assert {part: verdict for part, verdict in verdicts(rows).items() if part[0] == "s"} == {
        "s1": "drained", "s2": "stays", "s3": "replaced", "s4": "drained",
    }  # fmt: skip
    assert "programs need the new bedsit too" in rows[-1]["why"]


@pytest.mark.parametrize("protocol", ["admin", "door", "snapshot", "zygote"])
def test_other_protocols_change_and_no_slot_goes(protocol: str) -> None:
    """Who has to be restarted together is said."""
    rows = compare(OLD, {}, SLOTS[:1], Version("2.0", SPOKEN | {protocol: 9}))

    assert verdicts(rows) == {"daemon": "restarts", "s1": "stays", f"protocol {protocol}": "changes"}
    assert rows[-1]["why"]


def test_a_daemon_that_says_nothing_is_of_another_kind() -> None:
    """One of before this could be asked: what it left is not known to the next one, as far as anybody can say."""
    rows = compare(read_version({"version": "0.1"}), {"connected": True}, [{"slot": "s1", "tenant": "a"}, 7, None], OLD)

    assert verdicts(rows)["s1"] == "ended"
    assert (rows[1]["part"], rows[1]["runs"], rows[1]["verdict"]) == ("router", "unknown", "restarts")
    assert rows[2]["runs"] == "unknown"


@pytest.mark.parametrize(
    "answer",
    [None, 7, [], "x", {}, {"protocols": []}, {"protocols": {"wire": "2", "slot": True, "door": None}}],
)
def test_nonsense_is_no_version(answer: object) -> None:
    """Nor a traceback."""
    version = read_version(answer)

    assert dict(version.protocols) == {}
    assert verdicts(compare(version, {"connected": "x", "version": []}, [{}], OLD))["daemon"] == "restarts"


def test_the_installed_daemon_says_what_it_speaks() -> None:
    """The very one of these tests."""
    installed = read_installed()

    assert installed.name == package.__version__
    assert set(installed.protocols) == set(SPOKEN)


def script(daemon: Any, version: str, protocols: dict[str, int], slots: list[dict[str, Any]]) -> None:
    """A daemon that runs as this version."""
    daemon.script |= {
        "ping": {"version": version, "protocols": protocols, "pid": 1},
        "status": {"version": version, "router": {"connected": True, "version": version}},
        "ps": slots,
    }


def test_nothing_to_drain_is_exit_0(bedsit: Run, daemon: Any) -> None:
    """In every form; nothing is asked that changes anything."""
    installed = read_installed()
    spoken = dict(installed.protocols)
    script(daemon, installed.name, spoken, [slot("s1", "vision", installed.name, spoken["wire"])])
    done = bedsit("upgrade", "check")

    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["PART", "daemon", "router", "s1"]
    assert {op for op, _ in daemon.heard} == {"ping", "status", "ps"}
    document = json.loads(bedsit("upgrade", "check", "-o", "json").stdout)
    assert (document["kind"], [item["verdict"] for item in document["items"]]) == ("change", ["stays"] * 3)
    assert bedsit("upgrade", "check", "-o", "name").stdout == "daemon\nrouter\ns1\n"


def test_something_to_drain_is_exit_1(bedsit: Run, daemon: Any) -> None:
    """With how many, on stderr; of which tenants is in the table."""
    installed = read_installed()
    wire = installed.protocols["wire"]
    script(
        daemon, "0.0.1", {**installed.protocols, "wire": wire - 1},
        [slot("s1", "vision", "0.0.1", wire - 1), slot("s2", None, "0.0.1", wire - 1)],
    )  # fmt: skip
    done = bedsit("upgrade", "check")
    table = [line.split("\t") for line in done.stdout.splitlines()]

    assert (done.returncode, done.stderr) == (1, "1 slots of tenants would be drained or ended\n")
    assert [(row[0], row[1], row[4]) for row in table[1:]] == [
        ("daemon", "-", "restarts"), ("router", "-", "restarts"), ("s1", "vision", "drained"),
        ("s2", "-", "replaced"), ("protocol wire", "-", "changes"),
    ]  # fmt: skip


@pytest.mark.parametrize("answer", [None, 7, [], {"router": 7}])
def test_an_answer_that_is_none_is_no_traceback(bedsit: Run, daemon: Any, answer: Any) -> None:
    """Nobody knows what runs: that is a reason to look."""
    daemon.script |= {"ping": answer, "status": answer, "ps": answer}
    done = bedsit("upgrade", "check")

    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[1].startswith("daemon\t-\tunknown")


def test_without_a_daemon_there_is_nothing_to_compare(bedsit: Run) -> None:
    """Exit 69, as everywhere."""
    assert bedsit("upgrade", "check").returncode == 69
    assert bedsit("upgrade").returncode == 2
