"""Files of ours that may be torn: records of slots, where the cgroups are, what a generation left, log lines."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bedsit.cli.logfile import LogFile, describe_line
from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.generations import Generations
from bedsit.supervisor.records import Places, Record, Records, Unreadable, load_places
from tests.fuzz.draw import Draw

_RECORD = Record(
    slot="s1",
    phase="serving",
    generation=1,
    init_uid=100000,
    worker_uid=100001,
    nonce="ab",
    init_pid=12,
    init_start=1,
    worker_pid=13,
    started_at="2026-01-01T00:00:00Z",
    walls={"seccomp": "on"},
    tenant="acme",
    models=((1, 1),),
)
_REFUSED = b'{"event": "daemon.refused", "code": "config.invalid", "level": "error", "timestamp": "2026-01-01T"}'


def seeds() -> Iterator[bytes]:
    """One of each, and deep ones."""
    yield msgspec.json.encode(_RECORD)
    yield msgspec.json.encode(Places("i", {"memory": "/sys/fs/cgroup/memory/x"}))
    yield b"123 456789"
    yield b"\n" + _REFUSED + b"\nTraceback\n"
    yield b'{"version": 2, "x": ' + b"[" * 2000
    yield b'{"event": {"a": ' * 500


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """What is read is as it was written; what is torn says so, or is nothing."""
    folder = Path(tempfile.mkdtemp(prefix="bedsit-fuzz-"))
    try:
        _read_state(folder, data)
        _read_log(folder / "up.log", data)
    finally:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink()
        folder.rmdir()


def _read_state(folder: Path, data: bytes) -> None:
    for name in ("s1.json", "1.pid", "1.group"):
        (folder / name).write_bytes(data)
    records = Records(folder)
    try:
        record = records.load("s1")
    except Unreadable:
        pass
    else:
        assert record.slot == "s1"
        records.save(record)
        assert records.load("s1") == record
    places = load_places(folder / "1.group")
    assert places is None or isinstance(places.instance, str)
    found: Any = Generations(folder).load_process(1)
    assert found is None or all(isinstance(number, int) for number in found)


def _read_log(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    log = LogFile(path)
    try:
        failure = log.find_refusal(0)
        assert failure is None or isinstance(failure, BedsitError)
        assert len(log.last_lines(0, 10)) <= 10
        os.write(log.fd, data + b"\n")
        assert all(isinstance(line, str) for line in log.read_new())
    finally:
        log.close()
    text = describe_line(Draw(data).rest().decode(errors="replace"))
    assert len(text) <= 10 * len(data) + 100
