"""What a backup is: one tar, in which a file of our own says what has to be in it, and every digest.

    bedsit.db             the desired state, as SQLite wrote it
    artifacts/DIGEST      what versions of models are loaded from, named by the SHA-256 of its bytes
    contents.json         the last: who wrote it when, and size and SHA-256 of everything before it

Whoever reads one believes nothing in it: other names, other kinds of entries, wrong sizes and digests are refused.
"""

import hashlib
import json
import os
import re
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from bedsit.ipc.errors import BedsitError, error

FORMAT: Final = 1
DATABASE: Final = "bedsit.db"
ARTIFACTS: Final = "artifacts"
CONTENTS: Final = "contents.json"
_NAME: Final = re.compile(rf"{re.escape(DATABASE)}|{ARTIFACTS}/[0-9a-f]{{64}}")
_PIECE: Final = 1 << 20
_MAX_CONTENTS: Final = 256 << 20
_MAX_PATH: Final = 64


class About(NamedTuple):
    """Where a backup is from, and what there is in it."""

    bedsit: str
    instance: str
    created_at: str
    files: int
    size_bytes: int


# -- writing ----------------------------------------------------------------------------------------------------------


def write_archive(items: Iterator[dict[str, Any]], out: BinaryIO) -> About:
    """Write what the daemon sends as a tar. Raises ``wire.malformed`` where that is no backup, and OSError.

    Raises ``artifact.missing`` for an artifact that is not what its name says: the box's own copy is damaged.
    """
    first = next(items, {}).get("backup")
    if not isinstance(first, dict) or first.get("format") != FORMAT:
        raise error("wire.malformed", "the daemon sent no backup that this bedsit knows", "use the bedsit that it runs")
    about = {key: str(first.get(key)) for key in ("bedsit", "instance", "created_at")}
    files: dict[str, dict[str, object]] = {}
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for item in items:
            name, size = _read_head(item)
            if name in files or (name == DATABASE) != (not files):
                raise error("wire.malformed", f"the daemon sent {name} out of its order")
            pieces = _Pieces(items, size)
            archive.addfile(_entry(name, size), pieces)
            digest = pieces.finish()
            if name != DATABASE and digest != Path(name).name:
                raise error(
                    "artifact.missing", f"the bytes of artifact {Path(name).name} are damaged", "deploy it anew"
                )
            files[name] = {"size": size, "sha256": digest}
        if not files:
            raise error("wire.malformed", "the daemon sent a backup without a database")
        text = json.dumps({"format": FORMAT, **about, "files": files}).encode()
        archive.addfile(_entry(CONTENTS, len(text)), BytesIO(text))
    return About(**about, files=len(files), size_bytes=sum(int(str(file["size"])) for file in files.values()))


class _Pieces:
    """The bytes of one file out of the items that follow it, to be read like a file."""

    def __init__(self, items: Iterator[dict[str, Any]], size: int) -> None:
        self._items = items
        self._left = size
        self._hash = hashlib.sha256()
        self._piece = BytesIO()

    def read(self, count: int = _PIECE, /) -> bytes:
        """The next bytes, as many as are asked for."""
        taken = self._piece.read(count)
        while len(taken) < count and self._left:
            piece = next(self._items, {}).get("data")
            if not isinstance(piece, bytes) or not piece or len(piece) > self._left:
                raise error("wire.malformed", "a file of the backup did not come as promised")
            self._left -= len(piece)
            self._hash.update(piece)
            self._piece = BytesIO(piece)
            taken += self._piece.read(count - len(taken))
        return taken

    def finish(self) -> str:
        """The digest of all of it."""
        return self._hash.hexdigest()


def _read_head(item: dict[str, Any]) -> tuple[str, int]:
    head = item.get("file")
    name, size = (head.get("name"), head.get("size")) if isinstance(head, dict) else (None, None)
    is_size = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    if not isinstance(name, str) or not is_size or not _NAME.fullmatch(name):
        raise error("wire.malformed", "the daemon sent something that is no file of a backup")
    return name, int(str(size))


def _entry(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info


# -- reading ----------------------------------------------------------------------------------------------------------


def read_archive(file: BinaryIO, folder: Path) -> About:
    """Unpack a backup into *folder*, which is empty, and check everything. Raises ``input.invalid``, and OSError.

    Files of it may be there whatever is raised: the folder is the caller's to throw away.
    """
    (folder / ARTIFACTS).mkdir(mode=0o700)
    found: dict[str, dict[str, object]] = {}
    contents: dict[str, Any] | None = None
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for entry in archive:
                name = entry.name
                if contents is not None:
                    raise _refuse(f"{name[:_MAX_PATH]!r} comes after its contents")
                if not entry.isreg() or entry.issparse() or entry.size < 0:
                    raise _refuse(f"{name[:_MAX_PATH]!r} is not a plain file")
                if name == CONTENTS:
                    contents = _parse_contents(archive, entry)
                    continue
                if not _NAME.fullmatch(name) or name in found:
                    raise _refuse(f"{name[:_MAX_PATH]!r} does not belong into one, or is there twice")
                found[name] = {"size": entry.size, "sha256": _unpack(archive, entry, folder / name)}
    except (tarfile.TarError, EOFError, UnicodeError, ValueError, RecursionError, MemoryError, OverflowError) as e:
        raise _refuse(f"{type(e).__name__}: {e}"[:200]) from None
    if contents is None:
        raise _refuse("its end is missing")
    for name in contents["files"].keys() ^ found.keys():
        raise _refuse(f"{name[:_MAX_PATH]!r} is missing, or is not in its contents")
    for name, file_found in found.items():
        is_named_right = name == DATABASE or Path(name).name == file_found["sha256"]
        if contents["files"][name] != file_found or not is_named_right:
            raise _refuse(f"{name} is damaged: its size or digest is not what it was")
    bedsit, instance, created_at = (str(contents.get(key)) for key in ("bedsit", "instance", "created_at"))
    about = About(bedsit, instance, created_at, len(found), sum(int(str(each["size"])) for each in found.values()))
    _check_database(folder / DATABASE, about.instance, {Path(name).name for name in found if name != DATABASE})
    return about


def _parse_contents(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> dict[str, Any]:
    if entry.size > _MAX_CONTENTS:
        raise _refuse("its contents are too long")
    source = archive.extractfile(entry)
    contents = json.loads(source.read()) if source else None
    if not isinstance(contents, dict) or not isinstance(contents.get("files"), dict):
        raise _refuse("its contents cannot be read")
    if contents.get("format") != FORMAT:
        raise _refuse(f"it has format {str(contents.get('format'))[:20]}, and this bedsit reads {FORMAT}")
    if DATABASE not in contents["files"]:
        raise _refuse("it has no database")
    return contents


def _unpack(archive: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> str:
    """Write one file, through to the disk; gives its digest."""
    source = archive.extractfile(entry)
    digest, left = hashlib.sha256(), entry.size
    mode = 0o600 if path.name == DATABASE else 0o400
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "wb") as target:
        while left:
            piece = source.read(min(_PIECE, left)) if source else b""
            if not piece:
                raise _refuse(f"{entry.name} is cut short")
            left -= len(piece)
            digest.update(piece)
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest()


def _check_database(path: Path, instance: str, artifacts: set[str]) -> None:
    """Whether it is one of ours, whole, and needs no artifact that is not there."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            (known,) = db.execute("SELECT value FROM meta WHERE key = 'instance'").fetchone()
            needed = {str(digest) for (digest,) in db.execute("SELECT DISTINCT digest FROM versions")}
    except (sqlite3.Error, TypeError, ValueError, UnicodeError) as e:
        raise _refuse(f"its database cannot be read: {e}"[:200]) from None
    if verdict != "ok" or known != instance:
        raise _refuse("its database is damaged, or another box's")
    for digest in needed - artifacts:
        raise _refuse(f"artifact {digest[:_MAX_PATH]} is missing")


def _refuse(why: str) -> BedsitError:
    return error("input.invalid", f"this is no whole backup of bedsit: {why}", "take another one; nothing was changed")
