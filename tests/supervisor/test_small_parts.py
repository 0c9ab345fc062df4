"""Causes, keys, uids, notify, records, reports, logs of tenants, the journal: small parts, each with its promise."""

import hashlib
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest
import structlog

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.notify import Notifier
from bedsit.supervisor.atomic import write_atomically
from bedsit.supervisor.causes import Cause, classify
from bedsit.supervisor.events import Events
from bedsit.supervisor.folders import Folders, lock_run, lock_uids
from bedsit.supervisor.keys import make_key
from bedsit.supervisor.log import Journal
from bedsit.supervisor.records import Places, Record, Records, Unreadable, load_places, save_places
from bedsit.supervisor.refusedcalls import RefusedCalls
from bedsit.supervisor.registry import Registry
from bedsit.supervisor.reports import clean_text, read_failure
from bedsit.supervisor.tenantlogs import KEPT, LogFollower, last_lines, open_logs
from bedsit.supervisor.uids import UidPairs

MIB = 1 << 20


@pytest.mark.parametrize(
    ("status", "oom", "denied", "cause"),
    [
        (0, 0, 0, Cause("exit", "exit status 0")),
        (3 << 8, 0, 0, Cause("exit", "exit status 3")),
        (signal.SIGKILL, 0, 0, Cause("signal", "signal 9 (SIGKILL)")),
        (40, 0, 0, Cause("signal", "signal 40 (real-time)")),
        (signal.SIGSYS, 0, 0, Cause("seccomp", "a system call that the jail kills for (SIGSYS)")),
        (signal.SIGSYS | 0x80, 0, 5, Cause("seccomp", "a system call that the jail kills for (SIGSYS)")),
        (signal.SIGKILL, 1, 0, Cause("oom", "out of memory: limit 256 MiB")),
        (None, 2, 0, Cause("oom", "out of memory: limit 256 MiB")),
        (1 << 8, 0, 5, Cause("pids", "out of processes: limit 64")),
        (signal.SIGABRT, 0, 5, Cause("pids", "out of processes: limit 64")),
        (signal.SIGSEGV, 0, 5, Cause("signal", "signal 11 (SIGSEGV)")),
        (None, 0, 0, Cause("unknown", "gone without a status")),
    ],
)
def test_causes(status: int | None, oom: int, denied: int, cause: Cause) -> None:
    """A wait status and two counters make one cause."""
    assert classify(status, oom, denied, 256 * MIB, 64) == cause


def test_keys_are_random_and_hashed() -> None:
    """The documented form; the digest is of the whole secret; the secret is not in the key's repr."""
    key = make_key()

    assert re.fullmatch(r"bedsit_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", key.secret)
    assert key.digest == hashlib.sha256(key.secret.encode()).digest()
    assert key.secret not in repr(key)
    assert make_key().secret != key.secret


def test_uid_pairs_go_round() -> None:
    """A pair given back is the last to be handed out again; an unknown one cannot be claimed."""
    pairs = UidPairs(1000, 7)

    assert pairs.claim(1002)
    assert not pairs.claim(1002)
    assert not pairs.claim(1003)
    assert [pairs.take(), pairs.take()] == [1000, 1004]
    with pytest.raises(BedsitError, match=r"pool\.empty"):
        pairs.take()

    pairs.give_back(1004)

    assert pairs.take() == 1004


def test_notifies_systemd(tmp_path: Path) -> None:
    """One datagram per message; the watchdog interval is a third of what systemd allows."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())})
        notifier.tell("READY=1", "STATUS=up")
        notifier.close()

        assert manager.recv(100) == b"READY=1\nSTATUS=up"
    assert notifier.watchdog_interval_s == 10.0
    notifier.tell("WATCHDOG=1")


def test_without_systemd_nothing_is_notified() -> None:
    """No socket, another process's watchdog: silence."""
    notifier = Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"})
    notifier.tell("READY=1")
    notifier.close()

    assert notifier.watchdog_interval_s is None


def test_the_journal_gets_fields(tmp_path: Path) -> None:
    """The native protocol: one field per line, lengths before values."""
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        sender = Journal(path)
        with pytest.raises(structlog.DropEvent):
            sender(None, "info", {"event": "slot.died", "level": "warning", "tenant": "vision"})
        entry = journal.recv(1000)
        sender.close()

    assert b"PRIORITY\n\x01\0\0\0\0\0\0\x004\n" in entry
    assert b"BEDSIT_TENANT\n\x06\0\0\0\0\0\0\0vision\n" in entry


def make_record(slot: str = "s1") -> Record:
    """A record."""
    return Record(
        slot=slot, phase="blank", generation=1, init_uid=10, worker_uid=11, nonce="ab", init_pid=2, init_start=3,
        worker_pid=4, started_at="t", walls={"landlock": "off: not in this version"},
    )  # fmt: skip


def test_records_come_back(tmp_path: Path) -> None:
    """What was saved is loaded; a torn, foreign or missing one says what is wrong."""
    records = Records(tmp_path)
    records.save(make_record())

    assert records.load("s1") == make_record()
    assert records.list() == ["s1"]

    (tmp_path / "s2.json").write_text('{"version": 2, "slot"')
    (tmp_path / "s3.json").write_text('{"version": 1}')
    (tmp_path / "s4.json").write_text('{"version": 2}')
    for slot, says in (("s2", "torn"), ("s3", "foreign version 1"), ("s4", "torn"), ("s5", "torn")):
        with pytest.raises(Unreadable, match=says):
            records.load(slot)

    records.remove("s1")
    records.remove("s1")

    assert "s1" not in records.list()


def test_places_come_back(tmp_path: Path) -> None:
    """An unreadable file of places is no places."""
    path = tmp_path / "places.json"

    assert load_places(path) is None

    save_places(path, Places("abc", {"unified": "/x"}))

    assert load_places(path) == Places("abc", {"unified": "/x"})

    path.write_text("{")

    assert load_places(path) is None


@pytest.mark.root
def test_a_file_is_there_in_full_or_not_at_all(tmp_path: Path) -> None:
    """On a full disk the old content stays and nothing is left beside it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", tmp_path], check=True)
    try:
        write_atomically(tmp_path / "file", b"old", 0o640)
        with pytest.raises(BedsitError, match=r"disk\.full"):
            write_atomically(tmp_path / "file", b"\0" * (1 << 20))

        assert (tmp_path / "file").read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_locks_are_exclusive(tmp_path: Path) -> None:
    """Run folder and uid range: the second is refused until the first lets go."""
    folders = Folders(tmp_path, tmp_path)
    fds = [lock_run(folders), lock_uids(70_000, tmp_path)]
    with pytest.raises(BedsitError, match=r"daemon\.already_running"):
        lock_run(folders)
    with pytest.raises(BedsitError, match=r"daemon\.already_running"):
        lock_uids(70_000, tmp_path)
    for fd in fds:
        os.close(fd)

    os.close(lock_run(folders))


def test_a_workers_text_is_cleaned_and_cut() -> None:
    """No control characters, one line, at most two KiB; codes of ours cannot be forged."""
    assert clean_text(b"a\x1b[31m\nb\xff") == "a [31m b\N{REPLACEMENT CHARACTER}"
    assert len(clean_text(b"x" * 10_000)) == 2048
    assert read_failure(b"bundle.invalid\nno bedsit.toml").code == "bundle.invalid"
    assert read_failure(b"permission.denied\nhaha").code == "model.load_failed"
    assert read_failure(b"").message == "the model does not load"


def test_tenant_logs_are_read_merged_and_pruned(tmp_path: Path) -> None:
    """Lines of all slots in order of time; only the newest few slots keep theirs."""
    folder = tmp_path / "vision"
    follower = LogFollower(folder)
    for number in range(KEPT + 3):
        fds = open_logs(folder, f"s{number}")
        os.write(fds[number % 2], f"2026-11-23T22:01:{number:02}.000Z out line {number}\nno line of ours\n".encode())
        for fd in fds:
            os.close(fd)
        os.utime(folder / f"s{number}.0.log", (number, number))
        os.utime(folder / f"s{number}.1.log", (number, number))

    assert [line.text for line in last_lines(folder, 2)] == [f"line {KEPT + 1}", f"line {KEPT + 2}"]
    assert last_lines(folder, 1)[0].to_wire() == {
        "at": "2026-11-23T22:01:10.000Z", "stream": "out", "slot": "s10", "text": "line 10",
    }  # fmt: skip
    assert len(last_lines(folder, 100)) == KEPT
    assert len(follower.poll()) == KEPT

    with (folder / "s10.0.log").open("ab") as file:
        file.write(b"2026-11-23T22:02:00.000Z err half")
        file.flush()

        assert follower.poll() == []

        file.write(b" a line\n")
        file.flush()

        assert [(line.stream, line.text) for line in follower.poll()] == [("err", "half a line")]

    (folder / "s10.0.log").write_bytes(b"2026-11-23T22:03:00.000Z out anew\n")

    assert [line.text for line in follower.poll()] == ["anew"]


def test_refused_calls_are_told_at_a_bounded_rate(tmp_path: Path) -> None:
    """The count of a tenant that was deleted goes with it: the next one of that name has a new one."""
    Registry(tmp_path / "bedsit.db").close()
    events = Events(tmp_path / "bedsit.db", 1000, lambda: "t")
    tenants = {"a", "b"}
    calls = RefusedCalls(events, tenants)
    of = {name: msgspec.structs.replace(make_record(), tenant=name) for name in tenants}
    for _ in range(50):
        calls.hear(of["a"], 1)
    told = len(events.last(1000))

    assert 16 <= told < 20

    tenants.remove("a")
    calls.hear(of["b"], 1)
    tenants.add("a")
    calls.hear(of["a"], 1)

    assert len(events.last(1000)) == told + 2
    events.close()
