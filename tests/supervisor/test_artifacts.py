"""Artifacts: a name always means its bytes."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.artifacts import Artifacts

DATA = b"weights" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


def put(artifacts: Artifacts, data: bytes = DATA, digest: str = DIGEST, size: int = len(DATA)) -> None:
    """Receive *data* in two pieces."""
    with artifacts.receive(digest, size) as upload:
        upload.write(data[:100])
        upload.write(data[100:])


def test_keeps_what_has_the_right_digest(tmp_path: Path) -> None:
    """Read-only, by digest."""
    artifacts = Artifacts(tmp_path)
    put(artifacts)
    fd = artifacts.open(DIGEST)

    assert os.read(fd, 1 << 20) == DATA
    assert (tmp_path / DIGEST).stat().st_mode & 0o777 == 0o400
    os.close(fd)


@pytest.mark.parametrize(
    ("data", "digest", "size"),
    [(DATA, "0" * 64, len(DATA)), (DATA, DIGEST, len(DATA) - 1), (DATA[:-1], DIGEST, len(DATA))],
)
def test_leaves_nothing_of_what_was_not_promised(tmp_path: Path, data: bytes, digest: str, size: int) -> None:
    """Wrong digest, too long, too short."""
    with pytest.raises(BedsitError, match=r"request\.invalid"):
        put(Artifacts(tmp_path), data, digest, size)

    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    """Neither when the caller goes nor when the daemon is killed."""
    artifacts = Artifacts(tmp_path)
    with pytest.raises(BedsitError), artifacts.receive(DIGEST, 10) as upload:
        upload.write(DATA[:11])

    (tmp_path / ".upload-dead").write_bytes(b"half")
    Artifacts(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_collects_what_nobody_needs(tmp_path: Path) -> None:
    """A digest that the registry does not know goes."""
    artifacts = Artifacts(tmp_path)
    put(artifacts)

    assert artifacts.collect({DIGEST}) == 0
    assert artifacts.collect(set()) == 1
    with pytest.raises(BedsitError, match=r"artifact\.missing"):
        artifacts.open(DIGEST)


@pytest.mark.root
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """disk.full, and the room is free again."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        data = os.urandom(1 << 20)
        with pytest.raises(BedsitError, match=r"disk\.full"):
            put(Artifacts(tmp_path), data, hashlib.sha256(data).hexdigest(), len(data))

        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
