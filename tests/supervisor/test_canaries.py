"""No secret in the zygote: what the daemon knows is not in its memory, nor in a fresh slot's, byte by byte."""

import json
import os
import secrets
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

pytestmark = pytest.mark.root

_CHUNK: Final = 16 << 20


def scan(pid: int, canaries: Mapping[str, bytes]) -> set[str]:
    """Which of *canaries* are in the process's memory, in anything that is mapped."""
    found = set()
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for area, rights, *_ in map(str.split, maps):
            if rights[0] == "r":
                start, end = (int(number, 16) for number in area.split("-"))
                found |= scan_area(memory, start, end, canaries)
    return found


def scan_area(memory: Any, start: int, end: int, canaries: Mapping[str, bytes]) -> set[str]:
    """The same for one mapping, in pieces that overlap by what a canary is long."""
    found = set()
    overlap = max(map(len, canaries.values()))
    for offset in range(start, end, _CHUNK):
        memory.seek(offset)
        try:
            piece = memory.read(min(_CHUNK + overlap, end - offset))
        except OSError:  # a hole: mapped, and nothing there
            continue
        found |= {name for name, canary in canaries.items() if canary in piece}
    return found


@pytest.fixture
def canaries(new_box: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, bytes]]:
    """A box with a tenant that serves a model, and what only daemon, client and that tenant may know of it."""
    variable, model = secrets.token_hex(16), f"m{secrets.token_hex(12)}"
    monkeypatch.setenv("BEDSIT_CANARY", variable)
    box = new_box().start()
    box.start_router()
    key = box.tenant("vision")["key"]["secret"]
    box.deploy("vision", model)
    box.wait(lambda: box.pool() >= 1)
    return box, {"variable": variable.encode(), "key": key.encode(), "manifest": model.encode()}


def renew_blank(box: Any) -> Any:
    """A blank slot that was forked after all this."""
    (old,) = box.ps(state="blank")
    os.kill(old["init_pid"], signal.SIGKILL)
    box.wait_event("slot.destroyed", slot=old["slot"])
    box.wait(lambda: box.pool() >= 1)
    (new,) = box.ps(state="blank")
    return new


def read_nonce(box: Any, slot: Any) -> bytes:
    """By what the next daemon will know the slot's init."""
    record = json.loads((box.run / "records" / f"{slot['slot']}.json").read_text())
    return str(record["nonce"]).encode()


def test_what_the_daemon_knows_is_not_in_the_zygote(canaries: Any) -> None:
    """An environment variable, a tenant's key, a manifest and what proves a slot: none in zygote, init or worker."""
    box, secret = canaries
    blank = renew_blank(box)
    (slot,) = box.ps(tenant="vision")
    secret |= {"nonce": read_nonce(box, slot), "own nonce": read_nonce(box, blank)}
    zygote = box.call("status")["zygote"]["pid"]

    assert scan(zygote, secret) == set()
    assert scan(blank["worker_pid"], secret) == set()
    assert scan(blank["init_pid"], secret) == {"own nonce"}


def test_the_scan_finds_what_is_there(canaries: Any) -> None:
    """The control: the same scan finds all three where they are known."""
    box, secret = canaries
    assert box.daemon is not None
    (slot,) = box.ps(tenant="vision")

    assert scan(os.getpid(), secret) == {"variable", "key", "manifest"}
    assert scan(box.daemon.pid, secret) >= {"variable", "manifest"}
    assert scan(slot["worker_pid"], secret) == {"manifest"}
