"""``bedsit usage`` against a scripted daemon."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

SINCE = "2026-11-27T06:00:00Z"
ACME = {"tenant": "acme", "requests": 12, "worker_s": 3.456, "device_s": 1.2, "cpu_s": 1234.5}
ACME |= {"memory_gib_s": 0.125, "vram_gib_s": 0.0}
ECHO = {"tenant": "acme", "model": "echo", "version": 2, "requests": 12, "worker_s": 3.456, "device_s": 1.2}
CORE = {"device": "core", "wall_s": 10.0, "used_s": 7.5, "idle_s": 2.5, "gaps_s": 0.25}


def rows(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The table's cells."""
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("by", "row", "head", "cells", "name"),
    [
        (
            "tenant",
            ACME,
            ["TENANT", "REQUESTS", "WORKER s", "DEVICE s", "CPU s", "MEMORY GiB s", "VRAM GiB s"],
            ["acme", "12", "3.46", "1.20", "1,234.50", "0.12", "0.00"],
            "acme",
        ),
        (
            "model",
            ECHO,
            ["TENANT", "MODEL", "VERSION", "REQUESTS", "WORKER s", "DEVICE s"],
            ["acme", "echo", "2", "12", "3.46", "1.20"],
            "acme/echo/2",
        ),
        (
            "device",
            CORE,
            ["DEVICE", "WALL s", "USED s", "IDLE s", "IDLE, WAITED FOR s"],
            ["core", "10.00", "7.50", "2.50", "0.25"],
            "core",
        ),
    ],
)
def test_usage_comes_in_every_form(
    bedsit: Run, daemon: Any, by: str, row: dict[str, Any], head: list[str], cells: list[str], name: str
) -> None:
    """As a table, a document and names, for tenants, models and devices; since when is said beside it."""
    daemon.script["usage.list"] = {"usage": [row], "since": SINCE}
    done = bedsit("usage", "--by", by)
    assert rows(done) == [head, cells]
    assert f"since {SINCE}" in done.stderr
    document = json.loads(bedsit("usage", "--by", by, "-o", "json").stdout)
    assert (document["kind"], document["items"]) == ("usage", [row])
    assert bedsit("usage", "--by", by, "-o", "name").stdout.split() == [name]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ((), {"by": "tenant", "hours": 24}),
        (("vision", "--by", "model", "--since", "7d"), {"by": "model", "hours": 168, "tenant": "vision"}),
        (("--since", "90m"), {"by": "tenant", "hours": 1.5}),
    ],
)
def test_what_is_asked_for_is_what_is_meant(
    bedsit: Run, daemon: Any, words: tuple[str, ...], asked: dict[str, Any]
) -> None:
    """A day unless something else is said, and the units of its own examples."""
    daemon.script["usage.list"] = {"usage": [], "since": SINCE}
    assert bedsit("usage", *words).returncode == 0
    (heard,) = [arguments for op, arguments in daemon.heard if op == "usage.list"]
    assert {name: value for name, value in heard.items() if value is not None} == asked


@pytest.mark.parametrize("words", [("--since", "0s"), ("--since", "yesterday"), ("--since", "-1h"), ("--by", "moon")])
def test_what_makes_no_sense_is_not_asked(bedsit: Run, daemon: Any, words: tuple[str, ...]) -> None:
    """It is wrong usage, and the daemon does not hear of it."""
    assert bedsit("usage", *words).returncode == 2
    assert not [op for op, _ in daemon.heard if op == "usage.list"]
