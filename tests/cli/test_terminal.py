"""What differs on a terminal: colour, questions, suggestions, Ctrl-C. A real pseudo-terminal, a real process."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bedsit.cli.render import Phases
from bedsit.ipc.admin import Phase

_DEADLINE_S = 30
TENANT = {"name": "vision", "state": "failed", "limits": {}, "models": 0, "restarts": 0, "last_cause": "x" * 300}


Start = Callable[..., Any]


def test_tables_are_aligned_coloured_and_cut(terminal: Start, daemon: Any) -> None:
    """A state word in colour, no line wider than the terminal."""
    daemon.script["tenant.list"] = [TENANT]
    shown = terminal("tenant", "list")
    assert shown.finish() == 0
    head, row = shown.text.splitlines()
    assert head.startswith("NAME    STATE")
    assert "\x1b[31mfailed\x1b[0m" in row
    assert len(row.replace("\x1b[31m", "").replace("\x1b[0m", "")) <= 100
    assert row.endswith("…")


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colour_can_be_refused(terminal: Start, daemon: Any, env: dict[str, str]) -> None:
    """By the environment; and by --no-color, before or after the verb."""
    daemon.script["tenant.list"] = [TENANT]
    for words, more in (
        (("tenant", "list"), env),
        (("--no-color", "tenant", "list"), {}),
        (("tenant", "list", "--no-color"), {}),
    ):
        shown = terminal(*words, **more)
        assert shown.finish() == 0
        assert "\x1b" not in shown.text


def test_colour_can_be_forced(bedsit: Any, daemon: Any) -> None:
    """Into a pipe, for pagers."""
    daemon.script["tenant.list"] = [TENANT]
    assert "\x1b[31m" not in bedsit("tenant", "list").stdout
    assert "\x1b[31m" in bedsit("tenant", "show", "vision", FORCE_COLOR="1").stderr


@pytest.mark.parametrize(("answer", "code", "done"), [("vision", 0, True), ("y", 1, False), ("", 1, False)])
def test_deleting_a_tenant_asks_for_its_name(
    terminal: Start, daemon: Any, answer: str, code: int, *, done: bool
) -> None:
    """What cannot be undone is not one key press away."""
    daemon.script["tenant.delete"] = {}
    asked = terminal("tenant", "delete", "vision")
    asked.read_until("type vision to confirm] ")
    asked.type(answer)
    assert asked.finish() == code
    assert bool(daemon.heard) is done
    assert ("tenant vision deleted" if done else "nothing was changed") in asked.text


@pytest.mark.parametrize(
    ("answer", "code", "done"), [("y", 0, True), ("YES", 0, True), ("n", 1, False), ("", 1, False)]
)
def test_revoking_a_key_asks_yes_or_no(terminal: Start, daemon: Any, answer: str, code: int, *, done: bool) -> None:
    """No is the answer of an empty line."""
    daemon.script["key.revoke"] = {}
    asked = terminal("key", "revoke", "vision", "0a1b2c3d")
    asked.read_until("[y/N] ")
    asked.type(answer)
    assert asked.finish() == code
    assert bool(daemon.heard) is done


def test_the_next_command_is_suggested_to_people_only(terminal: Start, bedsit: Any, daemon: Any) -> None:
    """On a terminal; a script gets nothing but what it asked for."""
    daemon.script["tenant.stop"] = {}
    shown = terminal("tenant", "stop", "vision")
    assert shown.finish() == 0
    assert "next: bedsit tenant start vision" in shown.text
    assert "next:" not in bedsit("tenant", "stop", "vision").stderr


def test_ctrl_c_ends_the_wait_and_says_what_goes_on(terminal: Start, daemon: Any) -> None:
    """The daemon finishes what it began; the operator learns how to follow it. Exit 130."""

    def hang(_args: Any, connection: Any) -> Iterator[dict[str, Any]]:
        yield {"progress": {"phase": "load", "ms": None}}
        connection.recv(1)

    daemon.script["tenant.start"] = hang
    waiting = terminal("tenant", "start", "vision")
    waiting.read_until("… load")
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.finish() == 130
    assert "tenant.start goes on without us; follow it: bedsit events --follow" in waiting.text
    assert "Traceback" not in waiting.text


def test_ctrl_c_ends_following(terminal: Start, daemon: Any) -> None:
    """Nothing was being changed: nothing goes on. Exit 130, no traceback."""

    def follow(_args: Any, connection: Any) -> Iterator[dict[str, Any]]:
        yield {"item": {"id": 1, "at": "now", "kind": "slot.ready", "text": "first"}}
        connection.recv(1)

    daemon.script["events"] = follow
    following = terminal("events", "-f")
    following.read_until("first")
    following.process.send_signal(signal.SIGINT)
    assert following.finish() == 130
    assert "goes on" not in following.text
    assert "Traceback" not in following.text


def test_fast_calls_tell_no_phases() -> None:
    """Before the second is over, nothing is said."""
    said: list[str] = []
    with Phases(said.append, lambda name, ms: f"{name} {ms}", patience_s=1000) as phases:
        phases(Phase("a", None))
        phases(Phase("a", 1.0))
    assert said == []


def test_slow_calls_tell_all_phases_in_order() -> None:
    """What ended before the patience did, then what runs, then what comes."""
    said: list[str] = []
    with Phases(said.append, lambda name, ms: f"{name} {ms}", patience_s=0) as phases:
        deadline = time.monotonic() + _DEADLINE_S
        while phases._kept is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        phases(Phase("a", None))
        phases(Phase("a", 1.0))
    assert said == ["a None", "a 1.0"]
