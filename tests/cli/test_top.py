"""``bedsit top``: rates out of two looks, and how it draws, ends and survives its daemon. On a terminal and off."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bedsit.cli.top import Look, measure
from bedsit.ipc.errors import error

Run = Callable[..., Any]
Start = Callable[..., Any]
MIB = 1 << 20


def tenant(name: str, state: str = "running", **changes: Any) -> dict[str, Any]:
    """A tenant as status has it."""
    usual = {
        "name": name, "state": state, "slots_serving": 1, "slots_wanted": 1, "limits": {"pids": 64},
        "restarts": 0, "last_cause": None,
    }  # fmt: skip
    return usual | changes


def slot(name: str, whose: str | None, **changes: Any) -> dict[str, Any]:
    """A slot as ps has it."""
    usual = {
        "slot": name, "tenant": whose, "state": "serving" if whose else "blank", "memory_bytes": 100 * MIB,
        "memory_limit_bytes": 512 * MIB, "cpu_seconds": 10.0, "pids": 4, "requests": 100, "errors": 1,
        "queued": 2, "in_flight": 1,
    }  # fmt: skip
    return usual | changes


def look(at_s: float, tenants: list[Any], slots: list[Any]) -> Look:
    """What the daemon said then."""
    return Look(at_s, {"version": "0.1.0", "tenants": tenants, "uptime_s": 65.0}, slots)


# -- measuring --------------------------------------------------------------------------------------------------------


def test_rates_are_what_happened_between_two_looks() -> None:
    """For each second; processor time in hundredths of a core."""
    before = look(100.0, [tenant("a")], [slot("s1", "a")])
    after = look(100.5, [tenant("a")], [slot("s1", "a", cpu_seconds=10.4, requests=150, errors=2)])
    (row,) = measure(before, after)

    assert row["cpu_percent"] == pytest.approx(80.0)
    assert (row["requests_per_s"], row["errors_per_s"]) == (100.0, 2.0)
    assert (row["requests"], row["errors"], row["queued"], row["in_flight"]) == (150, 2, 2, 1)
    assert (row["memory_bytes"], row["memory_limit_bytes"], row["pids_free"]) == (100 * MIB, 512 * MIB, 60)


def test_a_tenants_slots_are_taken_together() -> None:
    """Memory and time are added; its requests, which each of its slots' rows has, are counted once."""
    first = [slot("s1", "a"), slot("s2", "a", pids=60), slot("s3", None)]
    second = [slot("s1", "a", cpu_seconds=10.5), slot("s2", "a", cpu_seconds=10.25, pids=60), slot("s3", None)]
    (row,) = measure(look(0.0, [tenant("a")], first), look(1.0, [tenant("a")], second))

    assert (row["memory_bytes"], row["memory_limit_bytes"]) == (200 * MIB, 1024 * MIB)
    assert row["cpu_percent"] == pytest.approx(75.0)
    assert (row["requests"], row["queued"]) == (100, 2)
    assert row["pids_free"] == 4, "of the slot that has the fewest left"


def test_without_a_look_before_there_are_no_rates() -> None:
    """Nor for a slot that has just come."""
    now = look(1.0, [tenant("a")], [slot("s1", "a")])
    for before in (None, look(0.0, [], []), look(0.0, [tenant("a")], [slot("s0", "b")])):
        (row,) = measure(before, now)
        assert (row["cpu_percent"], row["requests_per_s"], row["errors_per_s"]) == (None, None, None)
        assert row["memory_bytes"] == 100 * MIB


def test_a_replaced_slot_leaves_the_tenants_rates() -> None:
    """Its requests are its tenant's, and go on; its time was its own."""
    before = look(0.0, [tenant("a")], [slot("s1", "a", cpu_seconds=99.0)])
    after = look(1.0, [tenant("a")], [slot("s2", "a", cpu_seconds=0.5, requests=110)])
    (row,) = measure(before, after)

    assert (row["cpu_percent"], row["requests_per_s"]) == (None, 10.0)


def test_a_router_that_begins_anew_counts_from_nothing() -> None:
    """No rate is below 0."""
    before = look(0.0, [tenant("a")], [slot("s1", "a", requests=1000, errors=5)])
    after = look(1.0, [tenant("a")], [slot("s1", "a", requests=3, errors=0)])
    (row,) = measure(before, after)

    assert (row["requests_per_s"], row["errors_per_s"]) == (3.0, 0.0)


def test_who_has_no_slot_is_there_without_numbers() -> None:
    """Parked, stopped, empty: what it is asked nobody says."""
    (row,) = measure(None, look(1.0, [tenant("a", "parked", slots_serving=0, slots_wanted=0)], [slot("s1", None)]))

    assert (row["name"], row["state"], row["slots_wanted"]) == ("a", "parked", 0)
    assert {row[key] for key in ("cpu_percent", "memory_bytes", "queued", "requests", "pids_free")} == {None}


def test_the_busiest_comes_first() -> None:
    """By processor time, then by requests, then by name."""
    names = "dcba"
    before = look(0.0, [tenant(n) for n in names], [slot(f"s{n}", n) for n in names])
    slots = [
        slot("sd", "d"), slot("sc", "c", cpu_seconds=10.9), slot("sb", "b", requests=200), slot("sa", "a"),
    ]  # fmt: skip
    after = look(1.0, [tenant(n) for n in names], slots)

    assert [row["name"] for row in measure(before, after)] == ["c", "b", "a", "d"]


NONSENSE = [None, "x", "", True, [], {}, math.nan, math.inf, -math.inf, b"\xff", "1e9"]


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
def test_nonsense_for_numbers_is_no_number(value: Any) -> None:
    """Whatever the daemon says; what is left can be written as JSON."""
    keys = ("memory_bytes", "memory_limit_bytes", "cpu_seconds", "pids", "requests", "errors", "queued", "in_flight")
    slots = [slot("s1", "a", **dict.fromkeys(keys, value))]
    tenants = [tenant("a", limits={"pids": value}), tenant("b", limits=value)]
    for before in (None, look(0.0, tenants, slots)):
        rows = measure(before, look(1.0, tenants, slots))
        assert [row["name"] for row in rows] == ["a", "b"]
        assert {rows[0][key] for key in ("cpu_percent", *keys[:2], *keys[4:], "pids_free")} == {None}
        json.dumps(rows, allow_nan=False)


def test_nonsense_for_rows_is_no_row() -> None:
    """A tenant that is none, a slot without a name, a status without tenants."""
    assert measure(None, Look(1.0, {"tenants": [None, 7, "a", []]}, [])) == []
    assert measure(None, Look(1.0, {"tenants": {"a": 1}}, [{}])) == []
    assert measure(None, Look(1.0, {}, [{"slot": None, "tenant": None}])) == []
    (row,) = measure(None, look(1.0, [{}], [{}, {"slot": 7, "tenant": {}}]))
    assert row["state"] is None


def test_time_that_stands_still_gives_no_rate() -> None:
    """Nor does a clock that goes back."""
    now = look(1.0, [tenant("a")], [slot("s1", "a")])
    for before_s in (1.0, 2.0):
        (row,) = measure(look(before_s, [tenant("a")], [slot("s1", "a")]), now)
        assert (row["cpu_percent"], row["requests_per_s"]) == (None, None)


# -- as a process -----------------------------------------------------------------------------------------------------


def serve(daemon: Any, *more: dict[str, Any], **changes: Any) -> None:
    """A daemon with the tenant vision, busier at every look, and *more* tenants."""
    looks = iter(range(1 << 30))

    def ps(_args: Any, _connection: Any) -> Iterator[dict[str, Any]]:
        number = next(looks)
        yield {"ok": True, "result": [slot("s1", "vision", cpu_seconds=number * 0.25, requests=number * 50)]}

    status = {
        "version": "0.1.0", "uptime_s": 3725.0, "router": {"connected": True},
        "tenants": [tenant("vision", **changes), *more],
    }  # fmt: skip
    daemon.script |= {"status": status, "ps": ps}


def test_once_is_two_looks_and_an_answer_in_every_form(bedsit: Run, daemon: Any) -> None:
    """A table with a header, one document, a line, a name."""
    serve(daemon)
    done = bedsit("top", "--once")
    head, row = (line.split("\t") for line in done.stdout.splitlines())
    cells = dict(zip(head, row, strict=True))

    assert (done.returncode, done.stderr) == (0, "")
    assert (cells["NAME"], cells["STATE"], cells["SLOTS"]) == ("vision", "running", "1/1")
    assert 0 < float(cells["CPU %"]) <= 50.0
    assert 0 < float(cells["REQ/s"]) <= 100.0
    assert (cells["MEMORY MiB"], cells["PIDS FREE"]) == ("100/512", "60")
    assert (cells["QUEUE"], cells["RESTARTS"], cells["LAST CAUSE"]) == ("2", "0", "-")
    assert [op for op, _ in daemon.heard] == ["status", "ps"] * 2
    document = json.loads(bedsit("top", "--once", "-o", "json").stdout)
    assert (document["api_version"], document["kind"], document["items"][0]["name"]) == ("v1", "usage", "vision")
    assert json.loads(bedsit("top", "--once", "-o", "jsonl").stdout)["name"] == "vision"
    assert bedsit("top", "-o", "name").stdout == "vision\n"


def test_one_json_document_that_never_ends_is_refused(bedsit: Run, daemon: Any) -> None:
    """Before anything is asked."""
    done = bedsit("top", "-o", "json")

    assert (done.returncode, daemon.heard) == (2, [])
    assert json.loads(done.stderr)["error"]["hint"] == "use --once, or -o jsonl"


@pytest.mark.parametrize("form", ["table", "jsonl"])
def test_without_a_terminal_it_goes_on_until_nobody_reads(run_dir: Path, daemon: Any, form: str) -> None:
    """Plain tables, or a line with its time for each tenant; each look is there when it is over."""
    serve(daemon, last_cause="evil \x1b[2J")
    with subprocess.Popen(
        [sys.executable, "-m", "bedsit.cli.main", "top", "-o", form, "--run-dir", str(run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(6)]
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 141
    assert "\x1b" not in "".join(lines)
    if form == "table":
        assert [line.split("\t")[0] for line in lines] == ["NAME", "vision", "\n"] * 2
    else:
        rows = [json.loads(line) for line in lines]
        assert all(row["at"].endswith("Z") and row["name"] == "vision" for row in rows)
        assert all(row["requests_per_s"] > 0 for row in rows)


def test_no_daemon_is_exit_69(bedsit: Run) -> None:
    """As everywhere."""
    for words in (("top",), ("top", "--once")):
        done = bedsit(*words)
        assert (done.returncode, done.stdout) == (69, "")


@pytest.mark.parametrize("answer", [None, 7, "x", [], {"tenants": 7}])
def test_an_answer_that_is_none_is_no_traceback(bedsit: Run, daemon: Any, answer: Any) -> None:
    """A daemon of another kind."""
    daemon.script |= {"status": answer, "ps": answer if not isinstance(answer, dict) else [None, 7]}
    done = bedsit("top", "--once")

    assert done.returncode == (0 if isinstance(answer, dict) else 2)
    assert "Traceback" not in done.stderr


def test_a_daemon_that_refuses_is_told(bedsit: Run, daemon: Any) -> None:
    """With its own words and exit code."""
    daemon.script["status"] = error("permission.denied", "not you")
    done = bedsit("top")

    assert (done.returncode, done.stderr.splitlines()[0]) == (5, "error: permission.denied: not you")


# -- on a terminal ----------------------------------------------------------------------------------------------------

_ALTERNATE, _BACK = "\x1b[?1049h", "\x1b[?1049l"


@pytest.mark.parametrize("key", ["q", "Q", "\x04"])
def test_a_key_leaves_it(terminal: Start, daemon: Any, key: str) -> None:
    """It was drawn again and again on a screen of its own; the terminal is as it was. Another key does nothing."""
    serve(daemon)
    shown = terminal("top")
    before = termios.tcgetattr(shown.fd)
    shown.read_until("q leaves")
    shown.press("xyz\n")
    shown.read_until(" 0.0 ")  # no errors a second: two looks were taken
    shown.press(key)

    assert shown.finish() == 0
    assert shown.text.count(_ALTERNATE) == shown.text.count(_BACK) == 1
    assert not re.search(r" \d{4,}\.\d ", shown.text), "a key makes no look shorter"
    assert "bedsit 0.1.0; up 1 h 2 m; 1 tenants; 1 slots, 0 blank; q leaves" in shown.text
    assert shown.text.index(_ALTERNATE) < shown.text.index("vision") < shown.text.rindex(_BACK)
    assert termios.tcgetattr(shown.fd) == before


def test_ctrl_c_leaves_it(terminal: Start, daemon: Any) -> None:
    """That is how one leaves: exit 0, and the terminal shows what one types again."""
    serve(daemon)
    shown = terminal("top")
    before = termios.tcgetattr(shown.fd)
    shown.read_until("vision")
    shown.process.send_signal(signal.SIGINT)

    assert shown.finish() == 0
    assert shown.text.endswith(("\x1b[?25h", _BACK))
    assert "Traceback" not in shown.text
    assert "interrupted" not in shown.text
    assert termios.tcgetattr(shown.fd) == before


def test_a_daemon_that_goes_away_is_waited_for(terminal: Start, daemon: Any, run_dir: Path) -> None:
    """What it said last stays on the screen, with a word about that; another one is asked when it is there."""
    serve(daemon)
    shown = terminal("top")
    shown.read_until("vision")
    (run_dir / "admin.sock").rename(run_dir / "away.sock")
    daemon.script["status"] = lambda _args, connection: (_ for _ in ()).throw(OSError)
    shown.read_until("no daemon answers at")
    serve(daemon, tenant("audio"))
    (run_dir / "away.sock").rename(run_dir / "admin.sock")
    shown.read_until("audio")
    shown.press("q")

    assert shown.finish() == 0


def test_an_error_that_does_not_pass_ends_it(terminal: Start, daemon: Any) -> None:
    """On the ordinary screen, where it can be read."""
    serve(daemon)
    shown = terminal("top")
    shown.read_until("vision")
    daemon.script["status"] = error("permission.denied", "not any more")

    assert shown.finish() == 5
    assert shown.text.rindex(_BACK) < shown.text.rindex("permission.denied: not any more")


def test_more_tenants_than_lines_are_counted(terminal: Start, daemon: Any) -> None:
    """The screen is never longer than the terminal; the busiest are on it."""
    serve(daemon, *[tenant(f"t{number:03}") for number in range(100)])
    shown = terminal("top", LINES="12")
    shown.read_until(" more")
    shown.press("q")

    assert shown.finish() == 0
    assert "… 93 more" in shown.text
    assert "t099" not in shown.text


def test_what_a_tenant_did_cannot_steer_the_terminal(terminal: Start, daemon: Any) -> None:
    """Nor does a state in colour where colour is refused."""
    serve(daemon, last_cause="evil \x1b]0;owned\x07")
    shown = terminal("top", "--no-color", COLUMNS="150")
    shown.read_until("evil")
    shown.press("q")

    assert shown.finish() == 0
    assert "\x1b]0;" not in shown.text
    assert "evil \\x1b]0;owned\\x07" in shown.text
    assert "\x1b[32m" not in shown.text


def test_a_terminal_that_cannot_draw_gets_plain_tables(terminal: Start, daemon: Any) -> None:
    """TERM=dumb: one after the other, and Ctrl-C ends it as it ends everything."""
    serve(daemon)
    shown = terminal("top", TERM="dumb")
    shown.read_until("vision")
    shown.process.send_signal(signal.SIGINT)

    assert shown.finish() == 130
    assert "\x1b" not in shown.text
