"""Tenants whose slots come and go, on the command line: what is sent, what is shown, what it ends in."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bedsit.cli.main import main
from bedsit.cli.presence import describe_crew, describe_range, describe_restart, describe_run, describe_slots
from bedsit.ipc.errors import error

Run = Callable[..., Any]

MODEL = {
    "tenant": "vision",
    "name": "digits",
    "default": 1,
    "versions": [
        {"version": 1, "digest": "ab" * 32, "size": 1 << 20, "deployed_at": "t1", "quarantined_at": None},
        {"version": 2, "digest": "cd" * 32, "size": 1 << 20, "deployed_at": "t2", "quarantined_at": "t3"},
        {"version": 3, "digest": "ef" * 32, "size": 1 << 20, "deployed_at": "t4", "quarantined_at": "t5"},
    ],
}


def rows(answer: Any) -> list[list[str]]:
    """A table for programs, as cells."""
    return [line.split("\t") for line in answer.stdout.splitlines()]


def table(answer: Any) -> dict[str, str]:
    """A table of one row, by its header."""
    head, row = rows(answer)
    return dict(zip(head, row, strict=True))


@pytest.mark.parametrize(
    ("words", "op", "args", "says"),
    [
        (("restart", "vision"), "tenant.restart", {}, "tenant vision restarted"),
        (("restart", "vision", "--timeout", "2m"), "tenant.restart", {"timeout_s": 120.0}, "tenant vision restarted"),
        (("drain", "vision"), "tenant.drain", {}, "tenant vision drained and stopped"),
        (("drain", "vision", "--timeout", "500ms"), "tenant.drain", {"timeout_s": 0.5}, "tenant vision drained"),
        (("park", "vision"), "tenant.park", {}, "tenant vision parked"),
    ],
)
def test_verbs_say_what_was_done(
    bedsit: Run, daemon: Any, words: tuple[str, ...], op: str, args: dict[str, Any], says: str
) -> None:
    """On stderr; stdout is for answers, and there is none."""
    daemon.script[op] = {}
    done = bedsit("tenant", *words)

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(says)
    assert daemon.heard == [(op, {"name": "vision", **args})]


@pytest.mark.parametrize("verb", ["restart", "drain"])
@pytest.mark.parametrize("text", ["", "2", "0s", "-1s", "nan", "2 weeks", "1e400s"])
def test_a_time_that_is_none_is_refused_before_anything_is_asked(
    run_dir: Any, daemon: Any, verb: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, with the option's name. In this process: many."""
    with pytest.raises(SystemExit) as caught:
        main(["tenant", verb, "vision", f"--timeout={text}", "--run-dir", str(run_dir)])

    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: input.invalid: --timeout: ")
    assert daemon.heard == []


@pytest.mark.parametrize(
    ("words", "code", "exit_code", "hint"),
    [
        (("tenant", "park", "vision"), "tenant.busy", 3, "see: bedsit tenant show"),
        (("tenant", "restart", "vision"), "tenant.stopped", 3, "start it: bedsit tenant start TENANT"),
        (("tenant", "drain", "vision"), "deadline.exceeded", 8, "what goes on: bedsit events --follow"),
        (("tenant", "restart", "none"), "tenant.not_found", 4, "the tenants there are: bedsit tenant list"),
        (("model", "release", "vision/none"), "model.not_found", 4, "the models there are: bedsit model list TENANT"),
        (("infer", "x"), "", 2, "write TENANT/MODEL"),
    ],
)
def test_what_fails_ends_in_its_exit_code(
    bedsit: Run, daemon: Any, words: tuple[str, ...], code: str, exit_code: int, hint: str
) -> None:
    """And says what to do."""
    if code:
        own = hint if code == "tenant.busy" else ""
        daemon.script[f"{words[0]}.{words[1]}"] = error(code, "no", own)
    done = bedsit(*words)

    assert (done.returncode, done.stdout) == (exit_code, "")
    assert done.stderr.splitlines()[1] == f"hint: {hint}"


def test_slots_are_listed_as_serving_of_wanted(bedsit: Run, daemon: Any) -> None:
    """Of a parked one none; of an older daemon nobody knows."""
    parked = {"name": "seldom", "state": "parked", "slots": [], "slots_serving": 0, "slots_wanted": 0}
    coming = {"name": "vision", "state": "running", "slots": ["s1", "s2"], "slots_serving": 1, "slots_wanted": 2}
    daemon.script["tenant.list"] = [parked, coming, {"name": "old", "state": "running", "slot": "s3"}]
    head, *listed = rows(bedsit("tenant", "list"))
    column = head.index("SLOTS")

    assert [row[column] for row in listed] == ["0/0", "1/2", "-"]
    item = json.loads(bedsit("tenant", "list", "-o", "jsonl").stdout.splitlines()[1])
    assert (item["slots"], item["slots_serving"], item["slots_wanted"]) == (["s1", "s2"], 1, 2)


def test_versions_in_quarantine_are_shown(bedsit: Run, daemon: Any) -> None:
    """In the list by number, for one model with since when; programs read when, or null."""
    sound = {**MODEL, "versions": MODEL["versions"][:1]}  # type: ignore[index]
    daemon.script |= {"model.list": [MODEL], "model.show": MODEL}
    listed = table(bedsit("model", "list", "vision"))
    assert (listed["VERSIONS"], listed["DEFAULT"], listed["QUARANTINE"]) == ("1,2,3", "1", "2,3")
    text = dict(rows(bedsit("model", "show", "vision/digits")))
    assert [text[f"version {number}"].rpartition(", ")[2] for number in (2, 3)] == [
        "in quarantine since t3", "in quarantine since t5",
    ]  # fmt: skip
    assert "quarantine" not in text["version 1"]
    item = json.loads(bedsit("model", "show", "vision/digits", "-o", "json").stdout)["item"]
    assert [row["quarantined_at"] for row in item["versions"]] == [None, "t3", "t5"]

    daemon.script["model.list"] = [sound]
    assert table(bedsit("model", "list", "vision"))["QUARANTINE"] == "-"


def test_a_model_is_released_and_shown(bedsit: Run, daemon: Any) -> None:
    """By either way to name it."""
    daemon.script["model.release"] = {**MODEL, "default": 3, "versions": MODEL["versions"][:1]}  # type: ignore[index]
    for words in (("vision/digits",), ("vision", "digits")):
        done = bedsit("model", "release", *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert dict(rows(done))["default"] == "3"
    assert daemon.heard == [("model.release", {"tenant": "vision", "name": "digits"})] * 2
    assert bedsit("model", "release", "vision").returncode == 2


def test_a_daemon_that_leaves_during_a_drain_is_told(bedsit: Run, daemon: Any) -> None:
    """Nobody knows whether it was done."""

    def hang_up(_args: Any, connection: Any) -> Iterator[dict[str, Any]]:
        yield {"progress": {"phase": "drain", "ms": None}}
        raise OSError

    daemon.script["tenant.drain"] = hang_up
    done = bedsit("tenant", "drain", "vision")

    assert done.returncode == 69
    assert "the daemon closed the connection before it answered" in done.stderr


@pytest.mark.parametrize(
    ("limits", "kept", "restart", "run"),
    [
        ({}, None, None, None),
        ({"min_slots": 1, "max_slots": 1}, "1 to 1", None, None),
        ({"min_slots": 1, "max_slots": 3, "idle_s": 0.5}, "1 to 3, no more than 1 when idle for 500 ms", None, None),
        ({"restart": "permanent", "restarts_max": 0}, None, "permanent", None),
        (
            {"restart": "permanent", "restarts_max": 2, "restart_period_s": 60},
            None, "permanent, given up after more than 2 in 1 m 0 s", None,
        ),
        ({"run_max_s": 0.0}, None, None, "max"),
        ({"run_max_s": 86400}, None, None, "1 d 0 h"),
    ],
)  # fmt: skip
def test_words_for_what_comes_and_goes(
    limits: dict[str, Any], kept: str | None, restart: str | None, run: str | None
) -> None:
    """None where the daemon did not say."""
    assert (describe_range(limits), describe_restart(limits), describe_run(limits)) == (kept, restart, run)


@pytest.mark.parametrize(
    "tenant",
    [{}, {"slots": 7}, {"slots_serving": 1}, {"slots_wanted": 1, "slots": ["s1"]}, {"slots": [None], "limits": []}],
)
def test_nonsense_of_a_daemon_is_a_dash(tenant: dict[str, Any]) -> None:
    """Not a traceback."""
    assert describe_slots(tenant) is None
    assert describe_crew(tenant) is None
