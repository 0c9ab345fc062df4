"""A bundle folder becomes the same archive everywhere, or is refused with a reason."""

import hashlib
import os
import tarfile
from pathlib import Path

import pytest

from bedsit.cli.pack import open_bundle
from bedsit.ipc.errors import BedsitError

MANIFEST = """
name = "digits"
runner = "python"
entry = "model:build"
weights = ["weights/model.safetensors"]
[[inputs]]
name = "image"
dtype = "float32"
shape = [-1, 64]
[[outputs]]
name = "logits"
dtype = "float32"
shape = [-1, 10]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good bundle."""
    bundle = tmp_path / "digits"
    (bundle / "weights").mkdir(parents=True)
    (bundle / "bedsit.toml").write_text(MANIFEST)
    (bundle / "model.py").write_text("def build(bundle): ...\n")
    (bundle / "weights" / "model.safetensors").write_bytes(os.urandom(3_000_001))
    (bundle / "empty").write_bytes(b"")
    (bundle / "__pycache__").mkdir()
    (bundle / "__pycache__" / "model.pyc").write_bytes(b"x")
    (bundle / ".git").mkdir()
    (bundle / ".git" / "HEAD").write_bytes(b"x")
    return bundle


def test_the_archive_holds_the_files_manifest_first(folder: Path, tmp_path: Path) -> None:
    """An uncompressed tar with what lies in the folder, hidden files and caches excepted, of the announced size."""
    bundle = open_bundle(folder)
    data = bundle.open().read()
    assert len(data) == bundle.size
    assert hashlib.sha256(data).hexdigest() == bundle.digest()
    path = tmp_path / "archive.tar"
    path.write_bytes(data)
    with tarfile.open(path, "r:") as archive:
        assert archive.getnames() == ["bedsit.toml", "empty", "model.py", "weights/model.safetensors"]
        for member in archive.getmembers():
            source = archive.extractfile(member)
            assert source is not None
            assert source.read() == (folder / member.name).read_bytes()
            assert (member.mtime, member.uid, member.uname, member.mode) == (0, 0, "", 0o644)


def test_the_same_files_make_the_same_digest(folder: Path) -> None:
    """Times, permission bits and the order of creation do not show."""
    before = open_bundle(folder).digest()
    content = (folder / "model.py").read_bytes()
    (folder / "model.py").unlink()
    (folder / "model.py").write_bytes(content)
    (folder / "model.py").chmod(0o600)
    os.utime(folder / "bedsit.toml", (1, 1))
    assert open_bundle(folder).digest() == before
    (folder / "model.py").write_bytes(content + b"\n")
    assert open_bundle(folder).digest() != before


def test_long_paths_survive(folder: Path) -> None:
    """Names over the 100 bytes of an old tar header come back whole."""
    deep = folder / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    (deep / "ümlaut.txt").write_text("x")
    bundle = open_bundle(folder)
    data = bundle.open().read()
    assert len(data) == bundle.size
    with tarfile.open(fileobj=bundle.open(), mode="r|") as archive:
        assert f"{'d' * 90}/{'e' * 90}/ümlaut.txt" in archive.getnames()


def _link(folder: Path) -> None:
    (folder / "secret").symlink_to("/etc/passwd")


def _linked_folder(folder: Path) -> None:
    (folder / "more").symlink_to("/etc")


def _linked_manifest(folder: Path) -> None:
    (folder / "bedsit.toml").rename(folder.parent / "elsewhere.toml")
    (folder / "bedsit.toml").symlink_to(folder.parent / "elsewhere.toml")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _no_manifest(folder: Path) -> None:
    (folder / "bedsit.toml").unlink()


def _broken_manifest(folder: Path) -> None:
    (folder / "bedsit.toml").write_text("name = ")


def _misspelt(folder: Path) -> None:
    (folder / "bedsit.toml").write_text(MANIFEST.replace("runner =", "runer ="))


def _no_weights(folder: Path) -> None:
    (folder / "weights" / "model.safetensors").unlink()


def _no_entry(folder: Path) -> None:
    (folder / "model.py").unlink()


def _outside(folder: Path) -> None:
    (folder / "bedsit.toml").write_text(MANIFEST.replace("weights/model", "../weights/model"))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_link, "'secret' is a symbolic link"),
        (_linked_folder, "'more' is a symbolic link"),
        (_linked_manifest, "cannot be read"),
        (_pipe, "'pipe' is not a regular file"),
        (_no_manifest, "bedsit.toml is missing"),
        (_broken_manifest, "Invalid value"),
        (_misspelt, "unknown key 'runer'"),
        (_no_weights, "weights file 'weights/model.safetensors' is not in the folder"),
        (_no_entry, "needs model.py or model/__init__.py"),
        (_outside, "is not a path inside the bundle"),
    ],
)
def test_what_cannot_be_packed_is_refused(folder: Path, spoil: object, why: str) -> None:
    """Each with the file and the reason; nothing is followed out of the folder."""
    assert open_bundle(folder).members
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(BedsitError) as caught:
        open_bundle(folder)
    assert caught.value.code == "bundle.invalid"
    assert why in caught.value.message


def test_a_file_that_changes_meanwhile_is_noticed(folder: Path) -> None:
    """An archive of another size than announced is never sent as if it were whole."""
    for content in (b"longer than before, by far", b""):
        bundle = open_bundle(folder)
        (folder / "model.py").write_bytes(content)
        with pytest.raises(BedsitError, match="changes while it is being packed"):
            bundle.open().read()


def test_a_file_that_becomes_a_link_meanwhile_is_not_followed(folder: Path) -> None:
    """The window between looking and reading leads nowhere."""
    bundle = open_bundle(folder)
    target = folder.parent / "target"
    target.write_bytes((folder / "model.py").read_bytes())
    (folder / "model.py").unlink()
    (folder / "model.py").symlink_to(target)
    with pytest.raises(BedsitError, match=r"model\.py cannot be read"):
        bundle.open().read()
