"""Every verb as a process against a scripted daemon: what is sent, what is printed, where, and the exit code."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bedsit.cli.main import main
from bedsit.ipc.errors import CODES, error
from bedsit.ipc.manifest import Manifest, TensorSpec

TENANT = {
    "name": "vision",
    "number": 1,
    "state": "running",
    "limits": {
        "memory_bytes": 512 << 20,
        "cpus": 1.5,
        "pids": 64,
        "cpu_weight": 100,
        "cpu_idle": False,
        "cores": "0-3",
        "io_bps": 20 << 20,
        "weight": 300,
        "service_class": "realtime",
        "min_share": 0.25,
        "rate_per_s": 10.0,
        "burst": 20,
        "concurrency_max": 0,
        "queue_max": 512,
        "queue_bytes_max": 16 << 20,
        "sessions_max": 64,
        "restart": "transient",
        "restarts_max": 5,
        "restart_period_s": 600.0,
        "quarantine_after": 3,
        "min_slots": 0,
        "max_slots": 2,
        "idle_s": 300.0,
        "run_max_s": 30.0,
    },
    "isolation": "strict",
    "profile": "subprocess",
    "slot": "s1a2b3c4d",
    "slots": ["s1a2b3c4d", "s5e6f7a8b"],
    "slots_serving": 1,
    "slots_wanted": 2,
    "worker_pid": 4242,
    "slot_started_at": "2026-01-02T03:04:05Z",
    "assigned_at": "2026-01-02T03:04:05Z",
    "models": 2,
    "restarts": 3,
    "last_cause": "out of memory: limit 256 MiB",
    "created_at": "2026-01-02T03:04:05Z",
    "walls": {"network_namespace": "on", "landlock": "off: not in this version"},
}
SECRET = "bedsit_0a1b2c3d_" + "x" * 43
KEY = {"id": "0a1b2c3d", "secret": SECRET}
SPEC = TensorSpec("image", "float32", (-1, 64))
MODEL = {
    "tenant": "vision",
    "name": "digits",
    "number": 1,
    "default": 2,
    "idempotent": True,
    "rate_per_s": 0.5,
    "burst": 2,
    "concurrency_max": 4,
    "queue_max": 0,
    "priority": 2,
    "versions": [
        {
            "version": 1,
            "digest": "ab" * 32,
            "size": 1 << 20,
            "deployed_at": "2026-01-02T03:04:05Z",
            "manifest": b"\xc1",
        },
        {
            "version": 2,
            "digest": "cd" * 32,
            "size": 3 << 20,
            "deployed_at": "2026-01-03T03:04:05Z",
            "manifest": Manifest("digits", "python", "model:build", (SPEC,), (SPEC,)).encode(),
        },
    ],
}
SLOT = {
    "slot": "s1a2b3c4d",
    "tenant": None,
    "state": "blank",
    "init_pid": 41,
    "worker_pid": 42,
    "memory_bytes": 100 << 20,
    "memory_limit_bytes": 512 << 20,
    "cpu_seconds": 1.25,
    "pids": 2,
    "started_at": "2026-01-02T03:04:05Z",
    "generation": 1,
    "requests": None,
    "errors": None,
    "queued": None,
    "in_flight": None,
}
EVENT = {
    "id": 7,
    "at": "2026-01-02T03:04:05Z",
    "kind": "slot.died",
    "tenant": "vision",
    "slot": "s1",
    "cause": "oom",
    "text": "evil \x1b[2J text",
}
LINE = {"at": "2026-01-02T03:04:05.123Z", "stream": "err", "slot": "s1", "text": "evil\x1b]0;owned\x07\ttab"}
STATUS = {
    "version": "0.1.0",
    "pid": 1,
    "uptime_s": 3725.0,
    "run_dir": "/r",
    "state_dir": "/s",
    "cgroup": {"limits": "v1", "lifecycle": "v2"},
    "pool": {"target": 2, "blank": 1, "building": 1},
    "zygote": {"generation": 1, "pid": 5, "forks": 9},
    "router": {"connected": False, "pid": None},
    "walls": {"network_namespace": "on", "landlock": "off: not in this version"},
    "tenants": [TENANT],
}
Run = Callable[..., Any]


def rows(answer: Any) -> list[list[str]]:
    """A table for programs, as cells."""
    return [line.split("\t") for line in answer.stdout.splitlines()]


def test_tenant_create_sends_bytes_and_shows_the_key_once(bedsit: Run, daemon: Any) -> None:
    """Sizes go out in bytes; the secret is part of the answer, on stdout."""
    daemon.script["tenant.create"] = {"tenant": TENANT, "key": KEY}
    done = bedsit("tenant", "create", "vision", "--memory", "512MiB", "--cpus", "1.5", "--isolation", "best-effort")
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.heard == [
        ("tenant.create", {"name": "vision", "memory_bytes": 512 << 20, "cpus": 1.5, "isolation": "best-effort"})
    ]
    assert ["secret", SECRET] in rows(done)
    assert ["memory", "512 MiB"] in rows(done)


def test_the_profile_of_a_tenant(bedsit: Run, daemon: Any) -> None:
    """Said when it is made or changed, shown among its fields; a word that is none is refused at once."""
    daemon.script["tenant.create"] = {"tenant": TENANT, "key": KEY}
    daemon.script["tenant.set"] = TENANT
    shown = ["profile", "subprocess (weaker wall: it may fork and run the box's programs)"]
    assert shown in rows(bedsit("tenant", "create", "vision", "--profile", "subprocess"))
    assert shown in rows(bedsit("tenant", "set", "vision", "--profile", "subprocess"))
    assert daemon.heard == [
        ("tenant.create", {"name": "vision", "profile": "subprocess"}),
        ("tenant.set", {"name": "vision", "profile": "subprocess"}),
    ]
    assert bedsit("tenant", "set", "vision", "--profile", "none").returncode == 2


def test_tenant_create_keeps_the_key_in_a_file(bedsit: Run, daemon: Any, tmp_path: Path) -> None:
    """With --key-file nothing printed holds the secret, and only the caller can read the file."""
    daemon.script["tenant.create"] = {"tenant": TENANT, "key": KEY}
    path = tmp_path / "vision.key"
    for form in ("table", "json"):
        done = bedsit("tenant", "create", "vision", "--key-file", str(path), "-o", form)
        assert done.returncode == 0
        assert SECRET not in done.stdout + done.stderr
        assert path.read_text() == SECRET + "\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.unlink()


def test_a_key_file_that_exists_is_not_overwritten_and_no_key_is_made(bedsit: Run, daemon: Any, tmp_path: Path) -> None:
    """The file is made before the key, because the key is shown only once."""
    path = tmp_path / "vision.key"
    path.write_text("precious")
    done = bedsit("tenant", "create", "vision", "--key-file", str(path))
    assert done.returncode == 2
    assert "cannot make key file" in done.stderr
    assert daemon.heard == []
    assert path.read_text() == "precious"


def test_a_key_that_cannot_be_made_leaves_no_file(bedsit: Run, daemon: Any, tmp_path: Path) -> None:
    """No empty key file is left to be taken for a key."""
    daemon.script["key.create"] = error("tenant.not_found", "no tenant 'x'")
    assert bedsit("key", "create", "x", "--key-file", str(tmp_path / "k")).returncode == 4
    assert not (tmp_path / "k").exists()


def test_only_the_name_is_printed_for_xargs_and_the_key_is_not_lost(bedsit: Run, daemon: Any) -> None:
    """-o name writes the name to stdout; the key, which is shown this once, goes to stderr."""
    daemon.script["tenant.create"] = {"tenant": TENANT, "key": KEY}
    done = bedsit("-o", "name", "tenant", "create", "vision")
    assert done.stdout == "vision\n"
    assert SECRET in done.stderr


LISTS = [
    (("tenant", "list"), "tenant.list", [TENANT], "tenant", "vision"),
    (("tenant", "ls"), "tenant.list", [TENANT], "tenant", "vision"),
    (
        ("key", "list", "vision"),
        "key.list",
        [{"id": "0a1b2c3d", "label": "web", "created_at": "t", "revoked_at": None}],
        "key",
        "0a1b2c3d",
    ),
    (("model", "list", "vision"), "model.list", [MODEL], "model", "vision/digits"),
    (("ps",), "ps", [SLOT], "slot", "s1a2b3c4d"),
    (("events",), "events", [{"item": EVENT}, {"ok": True, "result": None}], "event", "7"),
]


@pytest.mark.parametrize(("words", "op", "answer", "kind", "name"), LISTS)
def test_lists_come_in_every_form(
    bedsit: Run, daemon: Any, words: tuple[str, ...], op: str, answer: Any, kind: str, name: str
) -> None:
    """A table with a header, one JSON document, one JSON line per row, one name per line."""
    daemon.script[op] = answer
    table = rows(bedsit(*words))
    assert len(table) == 2
    assert len(table[0]) == len(table[1])
    assert all(cell for line in table for cell in line)
    document = json.loads(bedsit(*words, "-o", "json").stdout)
    assert (document["api_version"], document["kind"], len(document["items"])) == ("v1", kind, 1)
    assert json.loads(bedsit(*words, "--output", "jsonl").stdout) == document["items"][0]
    assert bedsit(*words, "-o", "name").stdout == f"{name}\n"


RECORDS = [
    (("tenant", "show", "vision"), "tenant.show", TENANT, "tenant", "vision"),
    (("model", "show", "vision/digits"), "model.show", MODEL, "model", "vision/digits"),
    (("model", "show", "vision", "digits"), "model.show", MODEL, "model", "vision/digits"),
    (("status",), "status", STATUS, "status", "0.1.0"),
]


@pytest.mark.parametrize(("words", "op", "answer", "kind", "name"), RECORDS)
def test_records_come_in_every_form(
    bedsit: Run, daemon: Any, words: tuple[str, ...], op: str, answer: Any, kind: str, name: str
) -> None:
    """A line per field, one JSON document with the item, one JSON line, the name."""
    daemon.script[op] = answer
    assert all(len(line) == 2 for line in rows(bedsit(*words)))
    document = json.loads(bedsit(*words, "-o", "json").stdout)
    assert (document["api_version"], document["kind"]) == ("v1", kind)
    assert json.loads(bedsit(*words, "-o", "jsonl").stdout) == document["item"]
    assert bedsit(*words, "-o", "name").stdout == f"{name}\n"


def test_empty_lists_are_answers(bedsit: Run, daemon: Any) -> None:
    """Nothing there is not an error: a header, an empty document, no line."""
    daemon.script["tenant.list"] = []
    assert rows(bedsit("tenant", "list"))[0][0] == "NAME"
    assert json.loads(bedsit("tenant", "list", "-o", "json").stdout)["items"] == []
    assert bedsit("tenant", "list", "-o", "name").stdout == ""


def test_status_says_what_is_down_and_which_walls_are_missing(bedsit: Run, daemon: Any) -> None:
    """The words an operator looks for."""
    daemon.script["status"] = STATUS
    text = dict(rows(bedsit("status")))
    assert text["router"] == "missing"
    assert text["pool"] == "1 of 2 blank, 1 building"
    assert text["walls"] == "1 of 2 up; off: landlock (not in this version)"
    assert text["daemon"].endswith("up 1 h 2 m")


def test_status_shows_each_tenants_walls_and_says_when_they_were_seen(bedsit: Run, daemon: Any) -> None:
    """A look is asked for; where what comes is an earlier one, its age is there. Without a slot there are no walls."""
    old = TENANT | {"name": "old", "walls_age_s": 123.0}
    daemon.script["status"] = STATUS | {"tenants": [TENANT, old, TENANT | {"name": "none", "walls": None}]}
    text = dict(rows(bedsit("status")))

    assert daemon.heard == [("status", {"inspect": True})]
    assert text["tenant vision"].endswith(", walls 1 of 2 up; off: landlock (not in this version)")
    assert text["tenant old"].endswith("; seen 2 m 3 s ago")
    assert "walls" not in text["tenant none"]


def test_tenant_show_names_every_wall(bedsit: Run, daemon: Any) -> None:
    """One line each, beside the summary."""
    daemon.script["tenant.show"] = TENANT
    text = dict(rows(bedsit("tenant", "show", "vision")))

    assert text["wall network_namespace"] == "on"
    assert text["wall landlock"] == "off: not in this version"


def test_models_of_all_tenants_are_listed(bedsit: Run, daemon: Any) -> None:
    """Without a tenant, each is asked for."""
    daemon.script |= {"tenant.list": [TENANT, {**TENANT, "name": "audio"}], "model.list": [MODEL]}
    assert bedsit("model", "list", "-o", "name").stdout == "vision/digits\nvision/digits\n"
    assert daemon.heard[1:] == [("model.list", {"tenant": "vision"}), ("model.list", {"tenant": "audio"})]


def test_a_manifest_is_shown_as_a_table_and_an_unreadable_one_as_null(bedsit: Run, daemon: Any) -> None:
    """The daemon passes manifests on unread; the one from a broken worker harms nobody."""
    daemon.script["model.show"] = MODEL
    first, second = json.loads(bedsit("model", "show", "vision/digits", "-o", "json").stdout)["item"]["versions"]
    assert first["manifest"] is None
    assert second["manifest"]["inputs"] == [{"name": "image", "dtype": "float32", "shape": [-1, 64]}]


def test_limits_are_set_live(bedsit: Run, daemon: Any) -> None:
    """Only what was named is sent; nothing named is a mistake."""
    daemon.script["tenant.set"] = TENANT
    assert bedsit("tenant", "set", "vision", "--pids", "9").returncode == 0
    assert daemon.heard == [("tenant.set", {"name": "vision", "pids": 9})]
    assert bedsit("tenant", "set", "vision").returncode == 2


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (("--cpu-weight", "300", "--cores", "0-3,6"), {"cpu_weight": 300, "cores": "0-3,6"}),
        (("--cpu-idle", "--io", "20MiB"), {"cpu_idle": True, "io_bps": 20 << 20}),
        (("--no-cpu-idle", "--io", "max", "--cores", "all"), {"cpu_idle": False, "io_bps": 0, "cores": "all"}),
        (("--class", "batch", "--weight", "50"), {"service_class": "batch", "weight": 50}),
        (("--min-share", "25%"), {"min_share": 0.25}),
        (("--min-share", "0"), {"min_share": 0.0}),
        (("--rate", "600/m", "--burst", "20"), {"rate_per_s": 10.0, "burst": 20}),
        (("--rate", "max", "--concurrency", "max"), {"rate_per_s": 0.0, "concurrency_max": 0}),
        (("--concurrency", "8", "--sessions", "12"), {"concurrency_max": 8, "sessions_max": 12}),
        (("--queue", "100", "--queue-bytes", "64MiB"), {"queue_max": 100, "queue_bytes_max": 64 << 20}),
        (("--memory", "2GiB", "--rate", "5"), {"memory_bytes": 2 << 30, "rate_per_s": 5.0}),
        (("--restart", "transient", "--max-restarts", "5"), {"restart": "transient", "restarts_max": 5}),
        (("--max-restarts", "max", "--restart-period", "10m"), {"restarts_max": 0, "restart_period_s": 600.0}),
        (("--quarantine-after", "2"), {"quarantine_after": 2}),
        (("--quarantine-after", "never"), {"quarantine_after": 0}),
        (("--min-slots", "0", "--max-slots", "4"), {"min_slots": 0, "max_slots": 4}),
        (("--idle", "5m", "--run-limit", "1.5s"), {"idle_s": 300.0, "run_max_s": 1.5}),
        (("--idle", "never", "--run-limit", "max"), {"idle_s": 0.0, "run_max_s": 0.0}),
    ],
)
def test_limits_have_their_words(bedsit: Run, daemon: Any, words: tuple[str, ...], args: dict[str, Any]) -> None:
    """The same for a new tenant and for one that is there; what takes a limit away is a word too."""
    daemon.script |= {"tenant.set": TENANT, "tenant.create": {"tenant": TENANT, "key": KEY}}
    assert bedsit("tenant", "set", "vision", *words).returncode == 0
    assert bedsit("tenant", "create", "vision", *words).returncode == 0
    assert [said for _, said in daemon.heard] == [{"name": "vision", **args}] * 2


def test_a_tenant_is_shown_with_its_limits(bedsit: Run, daemon: Any) -> None:
    """One line each, with units."""
    daemon.script["tenant.show"] = TENANT
    shown = bedsit("tenant", "show", "vision").stdout
    for words in ("weight 100", "0-3", "20 MiB a second"):
        assert words in shown
    text = dict(rows(bedsit("tenant", "show", "vision")))
    assert (text["class"], text["share"]) == ("realtime", "weight 300, at least 25%")
    assert (text["rate"], text["concurrency"]) == ("10/s, bursts of 20", "max")
    assert (text["queue"], text["sessions"]) == ("512 requests, 16 MiB", "64")
    assert text["slots"] == "1/2: s1a2b3c4d, s5e6f7a8b"
    assert text["slots kept"] == "0 to 2, no more than 0 when idle for 5 m 0 s"
    assert text["restart"] == "transient, given up after more than 5 in 10 m 0 s"
    assert (text["quarantine"], text["run limit"]) == ("after 3 deaths in a row", "30 s")


def test_what_an_older_daemon_does_not_say_is_a_dash(bedsit: Run, daemon: Any) -> None:
    """Not a limit that nobody set."""
    limits = {"memory_bytes": 1 << 30, "cpus": 1.0, "pids": 64}
    older = {key: value for key, value in TENANT.items() if not key.startswith("slots")} | {"limits": limits}
    daemon.script |= {"tenant.show": older, "model.show": {"tenant": "vision", "name": "digits"}}
    text = dict(rows(bedsit("tenant", "show", "vision")))
    assert {text[key] for key in ("class", "share", "rate", "concurrency", "queue", "sessions")} == {"-"}
    assert {text[key] for key in ("slots", "slots kept", "restart", "quarantine", "run limit")} == {"-"}
    text = dict(rows(bedsit("model", "show", "vision/digits")))
    assert {text[key] for key in ("priority", "rate", "concurrency", "queue")} == {"-"}


def test_a_models_limits_are_set_and_shown(bedsit: Run, daemon: Any) -> None:
    """Only what was named is sent; a priority is a word here and a number there; nothing named is a mistake."""
    daemon.script["model.set"] = MODEL
    done = bedsit("model", "set", "vision/digits", "--rate", "30/m", "--burst", "2", "--priority", "high")
    text = dict(rows(done))
    assert (done.returncode, done.stderr) == (0, "")
    assert (text["priority"], text["rate"]) == ("high", "30/m, bursts of 2")
    assert (text["concurrency"], text["queue"]) == ("4", "its tenant's")
    words = ("--priority", "low", "--concurrency", "max", "--queue", "max", "--rate", "max")
    assert bedsit("model", "set", "vision", "digits", *words).returncode == 0
    assert bedsit("model", "set", "vision/digits", "--queue", "7", "-o", "name").stdout == "vision/digits\n"
    where = {"tenant": "vision", "name": "digits"}
    assert daemon.heard == [
        ("model.set", {**where, "rate_per_s": 0.5, "burst": 2, "priority": 2}),
        ("model.set", {**where, "rate_per_s": 0.0, "concurrency_max": 0, "queue_max": 0, "priority": 0}),
        ("model.set", {**where, "queue_max": 7}),
    ]
    assert bedsit("model", "set", "vision/digits").returncode == 2
    assert len(daemon.heard) == 3


def test_programs_read_limits_as_numbers(bedsit: Run, daemon: Any) -> None:
    """As the daemon said them."""
    daemon.script |= {"tenant.show": TENANT, "model.show": MODEL}
    item = json.loads(bedsit("tenant", "show", "vision", "-o", "json").stdout)["item"]
    assert item["limits"] == TENANT["limits"]
    item = json.loads(bedsit("model", "show", "vision/digits", "-o", "json").stdout)["item"]
    assert (item["rate_per_s"], item["priority"], item["queue_max"]) == (0.5, 2, 0)


WRONG = [
    ("tenant", "--rate", "a rate", "write a number above 0: 100/s, 600/m, or max"),
    ("tenant", "--concurrency", "a count", "write a whole number from 1, or max"),
    ("tenant", "--weight", "a count", "write a whole number from 1"),
    ("tenant", "--burst", "a count", "write a whole number from 1"),
    ("tenant", "--queue", "a count", "write a whole number from 1"),
    ("tenant", "--sessions", "a count", "write a whole number from 1"),
    ("tenant", "--min-share", "a part of the whole", "write 0 to 1, or 0% to 100%: 0.25, 25%"),
    ("tenant", "--queue-bytes", "a size", "write a number and a unit: 512MiB, 2GiB"),
    ("tenant", "--max-restarts", "a count", "write a whole number from 1, or max"),
    ("tenant", "--restart-period", "a duration", "write a number and a unit: 500ms, 30s, 2m"),
    ("tenant", "--quarantine-after", "a count", "write a whole number from 1, or never"),
    ("tenant", "--min-slots", "a whole number", "write a whole number from 0"),
    ("tenant", "--max-slots", "a count", "write a whole number from 1"),
    ("tenant", "--idle", "a duration", "write a number and a unit: 500ms, 30s, 2m, or never"),
    ("tenant", "--run-limit", "a duration", "write a number and a unit: 500ms, 30s, 2m, or max"),
    ("model", "--rate", "a rate", "write a number above 0: 100/s, 600/m, or max"),
    ("model", "--burst", "a count", "write a whole number from 1"),
    ("model", "--concurrency", "a count", "write a whole number from 1, or max"),
    ("model", "--queue", "a count", "write a whole number from 1, or max"),
]


@pytest.mark.parametrize(("noun", "option", "what", "hint"), WRONG)
def test_garbage_in_a_limit_is_named_with_its_option(
    run_dir: Path, daemon: Any, noun: str, option: str, what: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers to Python, or to nobody: exit 2, what and what to do, and nothing is sent. In this process: many."""
    at = "vision" if noun == "tenant" else "vision/digits"
    for text in ("nan", "inf", "-1", "1e400", "", "٣", "１２", "Max", "9" * 400):  # noqa: RUF001
        with pytest.raises(SystemExit) as caught:
            main([noun, "set", at, option, text, "--run-dir", str(run_dir)])
        assert caught.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == f"error: input.invalid: {option}: {text!r} is not {what}\nhint: {hint}\n"
    assert daemon.heard == []


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (("tenant", "set", "vision", "--class", "fast"), "'realtime', 'interactive', 'batch'"),
        (("tenant", "set", "vision", "--class", ""), "'realtime', 'interactive', 'batch'"),
        (("tenant", "create", "vision", "--restart", "always"), "'permanent', 'transient', 'temporary'"),
        (("model", "set", "vision/digits", "--priority", "2"), "'low', 'normal', 'high'"),
    ],
)
def test_a_word_that_is_none_is_answered_with_those_that_are(bedsit: Run, words: tuple[str, ...], known: str) -> None:
    """Two lines, and a daemon is not needed for them."""
    done = bedsit(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert known in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_weight_is_kept_beside_idle(bedsit: Run, daemon: Any) -> None:
    """It counts again without --cpu-idle; programs read the profile as the word that it is."""
    daemon.script["tenant.show"] = TENANT | {"limits": TENANT["limits"] | {"cpu_idle": True, "cpu_weight": 300}}  # type: ignore[operator]
    assert ["cpu share", "idle (weight 300 when not)"] in rows(bedsit("tenant", "show", "vision"))
    assert json.loads(bedsit("tenant", "show", "vision", "-o", "json").stdout)["item"]["profile"] == "subprocess"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--memory", ""), "write a number and a unit: 512MiB, 2GiB"),
        (("--io", ""), "write a number and a unit: 512MiB, 2GiB, or max"),
        (("--io", "0"), "write a number and a unit: 512MiB, 2GiB, or max"),
    ],
)
def test_a_size_that_is_none_is_named_with_its_option(
    bedsit: Run, daemon: Any, words: tuple[str, str], hint: str
) -> None:
    """Also an empty one, which a script passes for a variable that it forgot; nothing is sent."""
    for verb in ("create", "set"):
        done = bedsit("tenant", verb, "vision", *words)
        assert (done.returncode, daemon.heard) == (2, [])
        assert done.stderr == f"error: input.invalid: {words[0]}: {words[1]!r} is not a size\nhint: {hint}\n"


@pytest.mark.parametrize(
    ("words", "op", "args"),
    [
        (("tenant", "delete", "vision"), "tenant.delete", {"name": "vision"}),
        (("key", "revoke", "vision", "0a1b2c3d"), "key.revoke", {"tenant": "vision", "id": "0a1b2c3d"}),
        (
            ("model", "delete", "vision/digits", "--version", "1"),
            "model.delete",
            {"tenant": "vision", "name": "digits", "version": 1},
        ),
    ],
)
def test_without_a_terminal_nobody_is_asked_and_nothing_is_deleted(
    bedsit: Run, daemon: Any, words: tuple[str, ...], op: str, args: dict[str, Any]
) -> None:
    """Exit 2 and the flag to pass; with the flag it is done."""
    daemon.script[op] = {}
    refused = bedsit(*words, stdin="y\nvision\n")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert daemon.heard == []
    assert bedsit(*words, "--yes").returncode == 0
    assert daemon.heard == [(op, args)]


def test_errors_are_one_line_and_a_hint(bedsit: Run, daemon: Any) -> None:
    """What, and what to do; nothing on stdout."""
    daemon.script["tenant.show"] = error("tenant.not_found", "no tenant 'x\x1b[2J'")
    done = bedsit("tenant", "show", "x")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        "error: tenant.not_found: no tenant 'x\\x1b[2J'\nhint: the tenants there are: bedsit tenant list\n"
    )


def test_errors_are_json_where_answers_are(bedsit: Run, daemon: Any) -> None:
    """A program reads the code from one line on stderr."""
    daemon.script["tenant.show"] = error("tenant.not_found", "no tenant", "look")
    done = bedsit("tenant", "show", "x", "-o", "json")
    assert json.loads(done.stderr) == {
        "error": {"code": "tenant.not_found", "message": "no tenant", "hint": "look", "exit_code": 4}
    }


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_error_code_ends_in_its_exit_code(
    run_dir: Path, daemon: Any, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table in ipc.errors is the only one. In this process: there are many."""
    daemon.script["status"] = error(code, "message")
    with pytest.raises(SystemExit) as caught:
        main(["status", "--run-dir", str(run_dir)])
    assert caught.value.code == CODES[code].exit_code
    assert capsys.readouterr().err.startswith(f"error: {code}: message\nhint: ")


def test_a_message_of_many_lines_stays_readable(bedsit: Run, daemon: Any) -> None:
    """A tenant's traceback is indented below the error, each line harmless."""
    daemon.script["tenant.start"] = error("model.load_failed", "digits:\nTraceback\x07\n  File x")
    done = bedsit("tenant", "start", "vision")
    assert done.stderr.splitlines()[:3] == ["error: model.load_failed: digits:", "  Traceback\\x07", "    File x"]


def test_no_daemon_is_exit_69(bedsit: Run) -> None:
    """And says how to start one."""
    done = bedsit("ps")
    assert done.returncode == 69
    assert done.stderr.splitlines()[1] == "hint: start it: bedsit up"


@pytest.mark.parametrize(
    "words",
    [
        ("tennant",),
        ("tenant", "crate", "x"),
        ("tenant", "create"),
        ("ps", "--bogus"),
        ("ps", "-o", "xml"),
        ("tenant", "create", "x", "--memory", "12"),
        ("tenant", "create", "Bad_"),
        ("events", "--limit", "0"),
        ("model", "show", "vision"),
        ("model", "show", "a/b", "c"),
        ("infer", "vision/digits", "-i", "x=-", "--key-file", "-"),
        ("help", "nothing"),
    ],
)
def test_wrong_usage_is_exit_2_with_a_hint(bedsit: Run, words: tuple[str, ...]) -> None:
    """Two lines, no usage dump, no traceback."""
    done = bedsit(*words)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")


@pytest.mark.parametrize("words", [("events",), ("logs", "vision")])
def test_one_json_document_that_never_ends_is_refused(bedsit: Run, words: tuple[str, ...]) -> None:
    """--follow is for -o jsonl."""
    done = bedsit(*words, "--follow", "-o", "json")
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["hint"] == "use -o jsonl"


@pytest.mark.parametrize("words", [(), ("tenant",), ("key",), ("model",)])
def test_no_verb_is_help_on_stderr_and_exit_2(bedsit: Run, words: tuple[str, ...]) -> None:
    """A script that forgets the verb does not take help for an answer."""
    done = bedsit(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


def test_options_of_every_command_are_taken_before_and_after_the_verb(bedsit: Run, daemon: Any) -> None:
    """``bedsit -o json ps`` and ``bedsit ps -o json`` are the same; the later one wins."""
    daemon.script["ps"] = [SLOT]
    assert bedsit("-o", "json", "ps").stdout == bedsit("ps", "-o", "json").stdout
    assert bedsit("-o", "json", "ps", "-o", "name").stdout == "s1a2b3c4d\n"
    assert bedsit("--run-dir", "/nonexistent", "ps").returncode == 69


def test_what_a_tenant_wrote_cannot_steer_the_terminal(bedsit: Run, daemon: Any) -> None:
    """Logs and events in every form, followed or not: no escape sequence gets through; a tab in a log line may."""
    daemon.script |= {
        "logs": [{"item": LINE}, {"ok": True, "result": None}],
        "events": [{"item": EVENT}, {"ok": True, "result": None}],
    }
    for words in (("logs", "vision"), ("logs", "vision", "-f"), ("events",), ("events", "-f")):
        for form in ("table", "jsonl"):
            done = bedsit(*words, "-o", form)
            assert done.returncode == 0
            assert "evil" in done.stdout
            assert not set(map(chr, range(32))) - set("\n\t") & set(done.stdout)
    assert bedsit("logs", "vision").stdout.endswith("err  evil\\x1b]0;owned\\x07\ttab\n")


def test_deploy_uploads_what_was_packed(bedsit: Run, daemon: Any, tmp_path: Path) -> None:
    """Name from the manifest, size and digest of the archive, the archive itself."""
    import hashlib

    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.py").write_text("def build(bundle): ...\n")
    (folder / "bedsit.toml").write_text(
        'name = "digits"\nrunner = "python"\nentry = "model:build"\nidempotent = false\n'
        '[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [1]\n'
        '[[outputs]]\nname = "y"\ndtype = "float32"\nshape = [1]\n'
    )

    def deploy(args: dict[str, Any], connection: Any) -> Iterator[dict[str, Any]]:
        yield {"continue": True}
        daemon.take_body(args["size"], connection)
        yield {"ok": True, "result": MODEL}

    daemon.script["model.deploy"] = deploy
    done = bedsit("model", "deploy", "vision", str(folder), "--timeout", "2m")
    assert (done.returncode, done.stderr) == (0, "")
    (op, args), (body,) = daemon.heard[0], daemon.bodies
    assert op == "model.deploy"
    assert args == {
        "tenant": "vision",
        "name": "digits",
        "size": len(body),
        "digest": hashlib.sha256(body).hexdigest(),
        "idempotent": False,
        "replace": False,
        "timeout_s": 120.0,
    }


def test_phases_are_told_when_it_takes_longer_than_a_second(bedsit: Run, daemon: Any) -> None:
    """On stderr, with their times; the fast ones before are told then too."""
    import time

    def slow(_args: Any, _connection: Any) -> Iterator[dict[str, Any]]:
        yield {"progress": {"phase": "take a slot", "ms": 4.0}}
        yield {"progress": {"phase": "load", "ms": None}}
        time.sleep(1.3)  # what is under test is the passing of a second
        yield {"progress": {"phase": "load", "ms": 1300.0}}
        yield {"ok": True, "result": {}}

    daemon.script["tenant.start"] = slow
    done = bedsit("tenant", "start", "vision")
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["  ✓ take a slot  4 ms", "  … load", "  ✓ load  1.3 s", "tenant vision started"]


def test_a_closed_pipe_is_no_traceback(run_dir: Path, daemon: Any) -> None:
    """``bedsit events -f | head -1`` ends quietly."""
    import subprocess
    import sys

    daemon.script["events"] = [*({"item": EVENT} for _ in range(5000)), {"ok": True, "result": None}]
    with subprocess.Popen(
        [sys.executable, "-m", "bedsit.cli.main", "events", "-f", "--run-dir", str(run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_down_without_anything_running_says_so(bedsit: Run) -> None:
    """It is down: exit 0."""
    done = bedsit("down")
    assert done.returncode == 0
    assert "nothing runs" in done.stderr


def test_down_with_slots_but_no_daemon_says_what_to_do(bedsit: Run, run_dir: Path) -> None:
    """Only a daemon can end slots; their records show that there are some."""
    (run_dir / "records").mkdir()
    (run_dir / "records" / "s1.json").write_text("{}")
    done = bedsit("down")
    assert done.returncode == 69
    assert "bedsit up" in done.stderr


def test_version(bedsit: Run) -> None:
    """One line."""
    import bedsit as package

    assert bedsit("--version").stdout == f"bedsit {package.__version__}\n"
