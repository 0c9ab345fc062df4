"""Backup and restore: what is written, what is refused, and that nothing is there by half."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import random
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bedsit.cli.archive import read_archive, write_archive
from bedsit.cli.main import main
from bedsit.ipc.errors import BedsitError, error

Run = Callable[..., Any]

ARTIFACTS = [b"first" * 1000, b"", os.urandom(3 << 20)]
ABOUT = {"format": 1, "bedsit": "0.1.0", "instance": "0a1b2c3d", "created_at": "2026-01-02T03:04:05.678Z"}


def digest(data: bytes) -> str:
    """What an artifact is named by."""
    return hashlib.sha256(data).hexdigest()


def make_database(path: Path, digests: Sequence[str], instance: str = "0a1b2c3d") -> bytes:
    """As much of a state's database as a restore looks at."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE meta (key TEXT, value TEXT)")
        db.execute("INSERT INTO meta VALUES ('instance', ?)", (instance,))
        db.execute("CREATE TABLE versions (digest TEXT)")
        db.executemany("INSERT INTO versions VALUES (?)", [(each,) for each in digests])
    return path.read_bytes()


@pytest.fixture
def database(tmp_path: Path) -> bytes:
    """One that needs all artifacts."""
    return make_database(tmp_path / "made.db", [digest(data) for data in ARTIFACTS])


def items(database: bytes, artifacts: Sequence[bytes] = ARTIFACTS, piece: int = 1 << 20) -> Iterator[dict[str, Any]]:
    """What a daemon sends."""
    yield {"backup": ABOUT}
    for name, data in [("bedsit.db", database), *((f"artifacts/{digest(data)}", data) for data in artifacts)]:
        yield {"file": {"name": name, "size": len(data)}}
        for start in range(0, len(data), piece):
            yield {"data": data[start : start + piece]}


def frames(what: Iterator[dict[str, Any]] | Sequence[dict[str, Any]]) -> Callable[..., Iterator[dict[str, Any]]]:
    """The same as a handler of the scripted daemon."""

    def answer(_args: Any, _connection: Any) -> Iterator[dict[str, Any]]:
        yield from ({"item": item} for item in what)
        yield {"ok": True, "result": {}}

    return answer


@pytest.fixture
def whole(database: bytes) -> bytes:
    """A whole backup."""
    out = io.BytesIO()
    write_archive(items(database), out)
    return out.getvalue()


def left_in(folder: Path) -> list[str]:
    """The names in a folder, hidden ones too."""
    return sorted(os.listdir(folder))


# -- backup -----------------------------------------------------------------------------------------------------------


def test_a_backup_is_one_tar_that_says_what_is_in_it(bedsit: Run, daemon: Any, database: bytes, tmp_path: Path) -> None:
    """Every tar reads it; only its owner may; its last file has every size and digest."""
    daemon.script["backup"] = frames(items(database, piece=1000))
    folder = tmp_path / "out"
    folder.mkdir()
    done = bedsit("backup", str(folder / "box.tar"), "-o", "json")

    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.heard == [("backup", {})]
    assert left_in(folder) == ["box.tar"]
    assert stat.S_IMODE((folder / "box.tar").stat().st_mode) == 0o600
    document = json.loads(done.stdout)
    assert document["kind"] == "backup"
    assert document["item"] == {
        "file": str(folder / "box.tar"), "bedsit": "0.1.0", "instance": "0a1b2c3d", "created_at": ABOUT["created_at"],
        "files": 4, "size_bytes": len(database) + sum(map(len, ARTIFACTS)),
    }  # fmt: skip
    listed = subprocess.run(["tar", "tf", folder / "box.tar"], capture_output=True, text=True, check=True).stdout
    assert listed.split() == ["bedsit.db", *(f"artifacts/{digest(data)}" for data in ARTIFACTS), "contents.json"]
    with tarfile.open(folder / "box.tar") as archive:
        contents = json.loads(archive.extractfile("contents.json").read())  # type: ignore[union-attr]
        assert archive.extractfile("bedsit.db").read() == database  # type: ignore[union-attr]
    assert {key: contents[key] for key in ABOUT} == ABOUT
    assert contents["files"]["bedsit.db"] == {"size": len(database), "sha256": digest(database)}


def test_a_backup_is_shown_to_a_person(bedsit: Run, daemon: Any, database: bytes, tmp_path: Path) -> None:
    """What it is, how large, from when."""
    daemon.script["backup"] = frames(items(database))
    done = bedsit("backup", str(tmp_path / "box.tar"))
    text = dict(line.split("\t") for line in done.stdout.splitlines())

    assert (text["file"], text["artifacts"], text["by"]) == (str(tmp_path / "box.tar"), "3", "bedsit 0.1.0")
    assert (text["box"], text["made"]) == ("0a1b2c3d", ABOUT["created_at"])


def test_a_file_that_is_there_is_replaced_only_when_told(
    bedsit: Run, daemon: Any, database: bytes, tmp_path: Path
) -> None:
    """Nothing is asked of the daemon before; a link is no new file either."""
    daemon.script["backup"] = frames(items(database))
    path = tmp_path / "box.tar"
    path.write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("box.tar", "link"):
        done = bedsit("backup", str(tmp_path / name))
        assert (done.returncode, daemon.heard) == (2, [])
        assert done.stderr.endswith("hint: name a new file, or pass --replace\n")
    assert path.read_text() == "precious"

    assert bedsit("backup", str(path), "--replace").returncode == 0
    assert tarfile.is_tarfile(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


GARBAGE: list[list[dict[str, Any]]] = [
    [],
    [{}],
    [{"backup": None}],
    [{"backup": {**ABOUT, "format": 2}}],
    [{"backup": ABOUT}],
    [{"backup": ABOUT}, {"data": b"x"}],
    [{"backup": ABOUT}, {"file": None}],
    [{"backup": ABOUT}, {"file": {"name": "bedsit.db", "size": -1}}],
    [{"backup": ABOUT}, {"file": {"name": "bedsit.db", "size": True}}],
    [{"backup": ABOUT}, {"file": {"name": "bedsit.db", "size": "9"}}],
    [{"backup": ABOUT}, {"file": {"name": "../bedsit.db", "size": 1}}, {"data": b"x"}],
    [{"backup": ABOUT}, {"file": {"name": "artifacts/../x", "size": 1}}, {"data": b"x"}],
    [{"backup": ABOUT}, {"file": {"name": f"artifacts/{'a' * 64}", "size": 1}}, {"data": b"x"}],
    [{"backup": ABOUT}, {"file": {"name": "bedsit.db", "size": 1}}],
    [{"backup": ABOUT}, {"file": {"name": "bedsit.db", "size": 2}}, {"data": b"x"}],
    [{"backup": ABOUT}, {"file": {"name": "bedsit.db", "size": 1}}, {"data": b"xx"}],
    [{"backup": ABOUT}, {"file": {"name": "bedsit.db", "size": 1}}, {"data": b""}],
    [{"backup": ABOUT}, {"file": {"name": "bedsit.db", "size": 1}}, {"data": "x"}],
    [{"backup": ABOUT}, {"file": {"name": "bedsit.db", "size": 1}}, {"data": b"x"}, {"data": b"x"}],
    [{"backup": ABOUT}, *[{"file": {"name": "bedsit.db", "size": 0}}] * 2],
]


@pytest.mark.parametrize("what", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_no_backup_leaves_no_file(
    run_dir: Path, daemon: Any, tmp_path: Path, what: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon of another kind, or one that stops half-way. In this process: many."""
    daemon.script["backup"] = frames(what)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(SystemExit) as caught:
        main(["backup", str(folder / "box.tar"), "--run-dir", str(run_dir)])

    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: wire.malformed: ")
    assert left_in(folder) == []


def test_a_damaged_artifact_is_no_part_of_a_backup(bedsit: Run, daemon: Any, database: bytes, tmp_path: Path) -> None:
    """Its name says what its bytes were; the operator learns it now, and not when it is needed."""
    sent = list(items(database))
    sent[-1] = {"data": bytes(len(sent[-1]["data"]))}
    daemon.script["backup"] = frames(sent)
    (tmp_path / "out").mkdir()
    done = bedsit("backup", str(tmp_path / "out/box.tar"))

    assert done.returncode == 1
    assert "are damaged" in done.stderr
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("failure", "code"), [(error("disk.full", "no room"), 7), (error("permission.denied", "no"), 5), (None, 69)]
)
def test_a_daemon_that_fails_leaves_the_old_backup(
    bedsit: Run, daemon: Any, database: bytes, tmp_path: Path, failure: BedsitError | None, code: int
) -> None:
    """Whether it says so, half-way, or is gone."""

    def fail(_args: Any, _connection: Any) -> Iterator[dict[str, Any]]:
        yield from ({"item": item} for item in list(items(database))[:4])
        if failure is None:
            raise OSError
        yield {"ok": False, "error": failure.to_wire()}

    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "box.tar").write_text("of yesterday")
    daemon.script["backup"] = fail
    done = bedsit("backup", str(folder / "box.tar"), "--replace")

    assert done.returncode == code
    assert left_in(folder) == ["box.tar"]
    assert (folder / "box.tar").read_text() == "of yesterday"


def test_a_full_disk_leaves_nothing(run_dir: Path, daemon: Any, database: bytes, tmp_path: Path) -> None:
    """What was written of it is gone again. A limit of the size of files stands in for the disk."""
    daemon.script["backup"] = frames(items(database))
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "bedsit.cli.main", "backup", tmp_path / "out/box.tar", "--run-dir", run_dir],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize("place", ["missing/box.tar", "file/box.tar"])
def test_a_place_that_is_none_is_named(bedsit: Run, daemon: Any, tmp_path: Path, place: str) -> None:
    """Before the daemon is asked."""
    (tmp_path / "file").write_text("")
    done = bedsit("backup", str(tmp_path / place))

    assert (done.returncode, daemon.heard) == (2, [])
    assert "folder.unusable" in done.stderr


# -- restore ----------------------------------------------------------------------------------------------------------


def restore(bedsit: Run, data: bytes, folder: Path, tmp_path: Path, *words: str) -> Any:
    """Restore a backup with these bytes."""
    (tmp_path / "given.tar").write_bytes(data)
    return bedsit("restore", str(tmp_path / "given.tar"), "--state-dir", str(folder), *words)


def check_restored(folder: Path, database: bytes) -> None:
    """Everything is there, and as a daemon makes it."""
    assert left_in(folder) == ["artifacts", "bedsit.db"]
    assert (folder / "bedsit.db").read_bytes() == database
    assert {path.name: path.read_bytes() for path in (folder / "artifacts").iterdir()} == {
        digest(data): data for data in ARTIFACTS
    }
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "bedsit.db", folder / "artifacts")]
    assert modes[1:] == [0o600, 0o700]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder / "artifacts").iterdir()} == {0o400}


@pytest.mark.parametrize("before", ["new", "empty", "a lock", "lost+found"])
def test_a_restored_folder_is_as_it_was(
    bedsit: Run, whole: bytes, database: bytes, tmp_path: Path, before: str
) -> None:
    """Made, or filled where there is nothing in it; no daemon is needed."""
    folder = tmp_path / "state"
    if before != "new":
        folder.mkdir()
    if before == "a lock":
        (folder / "lock").touch()
    if before == "lost+found":
        (folder / "lost+found").mkdir()
    done = restore(bedsit, whole, folder, tmp_path, "-o", "json")

    assert (done.returncode, done.stderr) == (0, "")
    item = json.loads(done.stdout)["item"]
    assert (item["state_dir"], item["files"], item["instance"]) == (str(folder), 4, "0a1b2c3d")
    for name in ("lock", "lost+found"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (folder / name).rmdir() if name != "lock" else (folder / name).unlink()
    check_restored(folder, database)


def test_what_was_written_can_be_read(database: bytes, tmp_path: Path) -> None:
    """Whatever the pieces, and with no artifact at all."""
    for number, (artifacts, piece) in enumerate([(ARTIFACTS, 7777), (ARTIFACTS, 1 << 20), ([], 1 << 20)]):
        needed = make_database(tmp_path / f"{number}.db", [digest(data) for data in artifacts])
        out = io.BytesIO()
        wrote = write_archive(items(needed, artifacts, piece), out)
        out.seek(0)
        folder = tmp_path / str(number)
        folder.mkdir()
        assert read_archive(out, folder) == wrote
        assert wrote.files == 1 + len(artifacts)


@pytest.mark.parametrize(("name", "is_folder"), [("bedsit.db", False), ("artifacts", True), (".hidden", False)])
def test_a_folder_with_something_in_it_is_left_alone(
    bedsit: Run, whole: bytes, tmp_path: Path, name: str, *, is_folder: bool
) -> None:
    """Whatever it is."""
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / name).mkdir() if is_folder else (folder / name).write_text("precious")
    done = restore(bedsit, whole, folder, tmp_path)

    assert done.returncode == 2
    assert f"is not empty: {name!r} is there" in done.stderr
    assert left_in(folder) == [name]


def test_a_folder_that_a_daemon_uses_is_left_alone(bedsit: Run, whole: bytes, tmp_path: Path) -> None:
    """Its lock says so, before anything is looked at."""
    folder = tmp_path / "state"
    folder.mkdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for more in ((), ("bedsit.db",)):
            for name in more:
                (folder / name).touch()
            done = restore(bedsit, whole, folder, tmp_path)
            assert done.returncode == 6
            assert done.stderr.startswith("error: daemon.already_running: a bedsitd uses")
            assert left_in(folder) == sorted(["lock", *more])


def test_a_place_that_is_no_folder_is_named(bedsit: Run, whole: bytes, tmp_path: Path) -> None:
    """A file, or below something that is not there."""
    (tmp_path / "file").write_text("precious")
    for place in ("file", "missing/state"):
        done = restore(bedsit, whole, tmp_path / place, tmp_path)
        assert done.returncode == 2
        assert "folder.unusable" in done.stderr
    assert (tmp_path / "file").read_text() == "precious"


def test_without_a_state_dir_nothing_is_restored(bedsit: Run, whole: bytes, tmp_path: Path) -> None:
    """Nobody meant the one that is in use."""
    (tmp_path / "given.tar").write_bytes(whole)
    done = bedsit("restore", str(tmp_path / "given.tar"))

    assert done.returncode == 2
    assert "--state-dir" in done.stderr


def test_a_file_that_cannot_be_read_is_named(bedsit: Run, tmp_path: Path) -> None:
    """And no folder is made."""
    for path in (tmp_path / "none.tar", tmp_path):
        done = bedsit("restore", str(path), "--state-dir", str(tmp_path / "state"))
        assert done.returncode == 2
        assert f"cannot read {path}" in done.stderr
    assert not (tmp_path / "state").exists()


def forge(entries: Sequence[tuple[str, bytes]], contents: Any = None, **changes: Any) -> bytes:
    """A tar with these files, and contents that fit them unless others are given."""
    out = io.BytesIO()
    files = {name: {"size": len(data), "sha256": digest(data)} for name, data in entries}
    usual = {**ABOUT, "files": files, **changes}
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in [*entries, ("contents.json", json.dumps(usual if contents is None else contents).encode())]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def add(whole: bytes, info: tarfile.TarInfo, data: bytes = b"", *, last: bool = False) -> bytes:
    """A backup with one more entry, before everything or at the end."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(whole)) as source, tarfile.open(fileobj=out, mode="w") as target:
        info.size = len(data)
        if not last:
            target.addfile(info, io.BytesIO(data))
        for entry in source:
            target.addfile(entry, source.extractfile(entry))
        if last:
            target.addfile(info, io.BytesIO(data))
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """An entry that is no plain file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def refuse(data: bytes, tmp_path: Path) -> str:
    """Why such a backup is not taken, having left nothing of it."""
    folder = tmp_path / "stage"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with pytest.raises(BedsitError) as refused:
        read_archive(io.BytesIO(data), folder)
    assert refused.value.code == "input.invalid"
    return refused.value.message


def test_what_is_no_tar_is_refused(bedsit: Run, whole: bytes, database: bytes, tmp_path: Path) -> None:
    """Nothing, text, a database, a compressed one, half of one: exit 2, and no folder is left."""
    import gzip

    for data in (b"", b"hello\n" * 500, bytes(10240), database, gzip.compress(whole), whole[: len(whole) // 2]):
        done = restore(bedsit, data, tmp_path / "state", tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("error: input.invalid: this is no whole backup of bedsit: ")
        assert len(done.stderr.splitlines()) == 2
        assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (special("../evil", tarfile.REGTYPE), "does not belong into one"),
        (special("/etc/passwd", tarfile.REGTYPE), "does not belong into one"),
        (special("artifacts/short", tarfile.REGTYPE), "does not belong into one"),
        (special(f"artifacts/{'A' * 64}", tarfile.REGTYPE), "does not belong into one"),
        (special("logs/x", tarfile.REGTYPE), "does not belong into one"),
        (special("bedsit.db", tarfile.SYMTYPE, "/etc/shadow"), "is not a plain file"),
        (special("bedsit.db", tarfile.LNKTYPE, "artifacts/x"), "is not a plain file"),
        (special("artifacts", tarfile.DIRTYPE), "is not a plain file"),
        (special(f"artifacts/{'a' * 64}", tarfile.FIFOTYPE), "is not a plain file"),
        (special("bedsit.db", tarfile.CHRTYPE), "is not a plain file"),
        (special("bedsit.db", tarfile.REGTYPE), "is there twice"),
        (special("evil\x1b[2J" + "x" * 90, tarfile.REGTYPE), "does not belong into one"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_an_entry_that_does_not_belong_there_is_refused(
    whole: bytes, tmp_path: Path, info: tarfile.TarInfo, says: str
) -> None:
    """Before anything of it is written, wherever it would have gone."""
    said = refuse(add(whole, info), tmp_path)

    assert says in said
    assert "\x1b" not in said
    assert not (tmp_path / "evil").exists()


def test_nothing_comes_after_the_contents(whole: bytes, tmp_path: Path) -> None:
    """Not even more of the same."""
    assert "comes after its contents" in refuse(add(whole, tarfile.TarInfo("contents.json"), last=True), tmp_path)


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        ("x", "cannot be read"),
        ([], "cannot be read"),
        ({"format": 1}, "cannot be read"),
        ({**ABOUT, "files": []}, "cannot be read"),
        ({**ABOUT, "format": 2, "files": {}}, "it has format 2, and this bedsit reads 1"),
        ({**ABOUT, "files": {}}, "it has no database"),
        ({**ABOUT, "files": {"bedsit.db": {}, "artifacts/x": {}}}, "is missing, or is not in its contents"),
        ({**ABOUT, "files": {"bedsit.db": None}}, "bedsit.db is damaged"),
        ({**ABOUT, "files": {"bedsit.db": {"size": 1, "sha256": "0" * 64}}}, "bedsit.db is damaged"),
    ],
)
def test_contents_that_say_something_else_are_refused(
    database: bytes, tmp_path: Path, contents: Any, says: str
) -> None:
    """They are what everything is checked against."""
    assert says in refuse(forge([("bedsit.db", database)], contents), tmp_path)


def test_contents_that_are_no_json_are_refused(database: bytes, tmp_path: Path) -> None:
    """Endless nesting and bad UTF-8 too."""
    for data in (b"", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN'):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, text in (("bedsit.db", database), ("contents.json", data)):
                info = tarfile.TarInfo(name)
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text))
        assert refuse(out.getvalue(), tmp_path)


def test_a_missing_end_is_noticed(database: bytes, tmp_path: Path) -> None:
    """A tar of only the files is none of ours."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("bedsit.db")
        info.size = len(database)
        archive.addfile(info, io.BytesIO(database))

    assert "its end is missing" in refuse(out.getvalue(), tmp_path)


def test_an_artifact_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    """Also where the contents agree with it: its name is its digest."""
    name = f"artifacts/{'a' * 64}"
    database = make_database(tmp_path / "x.db", ["a" * 64])

    assert "is damaged" in refuse(forge([("bedsit.db", database), (name, b"other bytes")]), tmp_path)


def test_a_database_that_needs_more_is_refused(database: bytes, tmp_path: Path) -> None:
    """Some version could not be loaded."""
    files = [("bedsit.db", database), *((f"artifacts/{digest(data)}", data) for data in ARTIFACTS[:2])]

    assert f"artifact {digest(ARTIFACTS[2])} is missing" in refuse(forge(files), tmp_path)


def test_what_is_no_database_of_ours_is_refused(database: bytes, tmp_path: Path) -> None:
    """Text, another program's, a damaged one, another box's, one that asks for nonsense."""
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as db, db:
        db.execute("CREATE TABLE places (url TEXT)")
    nonsense = make_database(tmp_path / "nonsense.db", ["../../etc/passwd"])
    for data in (b"", b"text", b"SQLite format 3\x00", (tmp_path / "other.db").read_bytes(), database[:4096], nonsense):
        assert refuse(forge([("bedsit.db", data)]), tmp_path)
    assert "another box's" in refuse(
        forge([("bedsit.db", make_database(tmp_path / "n.db", []))], instance="x"), tmp_path
    )


def test_any_damage_is_noticed(whole: bytes, database: bytes, tmp_path: Path) -> None:
    """A byte that is another, a piece that is gone, one that is there twice: refused, or what was restored is right.

    (There are bytes in a tar that mean nothing to us: times, owners, what fills blocks up.)
    """
    draw = random.Random(17)
    taken = 0
    for _ in range(150):
        data = bytearray(whole)
        # Two of three hit the heads and the contents, which are a small part of it.
        where = draw.randrange(len(data)) if draw.random() < 0.3 else 512 * draw.randrange(4) + draw.randrange(600)
        where = where if draw.random() < 0.7 else len(data) - 1 - draw.randrange(12_000)
        match draw.randrange(3):
            case 0:
                data[where] ^= 1 << draw.randrange(8)
            case 1:
                del data[where : where + draw.randrange(1, 2000)]
            case 2:
                data[where:where] = data[where : where + draw.randrange(1, 2000)]
        folder = tmp_path / "stage"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            read_archive(io.BytesIO(bytes(data)), folder)
        except BedsitError as e:
            assert e.code == "input.invalid"
        else:
            taken += 1
            assert (folder / "bedsit.db").read_bytes() == database
            assert sorted(os.listdir(folder / "artifacts")) == sorted(digest(data) for data in ARTIFACTS)
            for data in ARTIFACTS:
                assert (folder / "artifacts" / digest(data)).read_bytes() == data
    assert taken < 50


def test_noise_is_refused(tmp_path: Path) -> None:
    """Random bytes of any length, with and without the head of a tar before them."""
    draw = random.Random(18)
    head = forge([])[:512]
    for length in (1, 511, 512, 513, 1024, 10_240, 100_000):
        for start in (b"", head):
            assert refuse(start + draw.randbytes(length), tmp_path)


def test_a_full_disk_leaves_the_folder_as_it_was(whole: bytes, tmp_path: Path) -> None:
    """Whatever was unpacked is gone; a folder that was made for it too."""
    (tmp_path / "given.tar").write_bytes(whole)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "bedsit.cli.main", "restore", tmp_path / "given.tar"),
                *("--state-dir", tmp_path / name),
            ],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "File too large" in done.stderr
    assert left_in(tmp_path / "empty") == []
    assert not (tmp_path / "new").exists()


def test_a_restore_that_is_killed_leaves_no_database(whole: bytes, tmp_path: Path) -> None:
    """Stopped before the end of its input: what there is by then no daemon takes for a state."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = [sys.executable, "-m", "bedsit.cli.main", "restore", pipe, "--state-dir", tmp_path / "state"]
    with subprocess.Popen(words) as process, pipe.open("wb") as writer:
        writer.write(whole[: len(whole) - 20_000])
        writer.flush()
        process.kill()
        process.wait()
    assert not (tmp_path / "state/bedsit.db").exists()
    assert not (tmp_path / "state/artifacts").exists()
