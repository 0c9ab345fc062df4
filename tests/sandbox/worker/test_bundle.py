"""Hostile archives: nothing but plain files with clean names ever comes out of one."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.worker.bundle import Bundle, unpack_bundle

TOML = b"""
name = "m"
runner = "python"
entry = "model:build"
weights = ["w.safetensors"]
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1]
"""
PLAIN = TOML.replace(b'weights = ["w.safetensors"]\n', b"")
EXPORTED = PLAIN.replace(b'"python"', b'"torch-export"').replace(b"model:build", b"model.pt2")
Add = Callable[..., None]
Unpack = Callable[[bytes], Bundle]


def archive(*members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of files, given as (name, content), and of members of any other kind."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is no file."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


@pytest.fixture
def unpack(tmp_path: Path) -> Iterator[Unpack]:
    """Unpack bytes as a worker does: from a descriptor, into a folder that is not there yet."""
    fds = []

    def unpack(data: bytes) -> Bundle:
        fd = os.memfd_create("artifact", os.MFD_CLOEXEC)
        fds.append(fd)
        os.write(fd, data)
        return unpack_bundle(fd, tmp_path / "made" / "m-1")

    yield unpack
    for fd in fds:
        os.close(fd)


def refusal(unpack: Unpack, data: bytes) -> BedsitError:
    """How the archive is refused."""
    with pytest.raises(BedsitError) as caught:
        unpack(data)
    assert caught.value.code == "bundle.invalid"
    return caught.value


def test_files_come_out_and_weights_stay_in(unpack: Unpack) -> None:
    """Files lie in their folders with their content; weights files are only found, not unpacked."""
    folder = special("sub", tarfile.DIRTYPE)
    bundle = unpack(
        archive(
            ("bedsit.toml", TOML), folder, ("sub/deep/model.py", b"code"), ("w.safetensors", b"1234"), ("empty", b"")
        )
    )
    found = {str(p.relative_to(bundle.path)): p.read_bytes() for p in bundle.path.rglob("*") if p.is_file()}
    assert found == {"bedsit.toml": TOML, "sub/deep/model.py": b"code", "empty": b""}
    assert bundle.manifest.weights == ("w.safetensors",)


@pytest.mark.parametrize("missing", ["bedsit.toml", "w.safetensors"])
def test_a_declared_file_that_is_missing_is_named(unpack: Unpack, missing: str) -> None:
    """The manifest itself, and weights that it declares."""
    members = [m for m in (("bedsit.toml", TOML), ("w.safetensors", b"")) if m[0] != missing]
    assert missing in refusal(unpack, archive(*members)).message


def test_an_exported_program_that_is_missing_is_named(unpack: Unpack) -> None:
    """The entry of a torch-export bundle is a file, too."""
    assert "model.pt2" in refusal(unpack, archive(("bedsit.toml", EXPORTED))).message


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside", "a/../../outside", "./a", "a//b", "a/./b", "..", ".", "//a", "a/..", "\u00e4/../b"],
)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_name_that_leaves_the_folder_is_refused(unpack: Unpack, tmp_path: Path, name: str, form: int) -> None:
    """Absolute, dotted and empty parts, in every tar format: nothing is written, inside or outside."""
    refusal(unpack, archive(("bedsit.toml", PLAIN), (name, b"evil"), form=form))
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.SYMTYPE, "bedsit.toml"),
        special("link", tarfile.LNKTYPE, "bedsit.toml"),
        special("link", tarfile.LNKTYPE, "/etc/passwd"),
        special("dev", tarfile.CHRTYPE),
        special("dev", tarfile.BLKTYPE),
        special("pipe", tarfile.FIFOTYPE),
        special("sparse", tarfile.GNUTYPE_SPARSE),
        special("cont", b"Z"),
    ],
    ids=lambda m: f"{m.name}-{m.type!r}",
)
def test_what_is_no_file_is_refused(unpack: Unpack, tmp_path: Path, member: tarfile.TarInfo) -> None:
    """Links of both kinds, devices, pipes, sparse files and unknown types."""
    refusal(unpack, archive(("bedsit.toml", PLAIN), member))
    assert list(tmp_path.rglob("*")) == []


def test_a_folder_reached_through_a_link_cannot_be_made(unpack: Unpack, tmp_path: Path) -> None:
    """A link first and a file below it: the link is refused before anything is written."""
    (tmp_path / "outside").mkdir()
    link = special("sub", tarfile.SYMTYPE, str(tmp_path / "outside"))
    refusal(unpack, archive(("bedsit.toml", PLAIN), link, ("sub/evil", b"x")))
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_name_that_is_there_twice_is_refused(unpack: Unpack) -> None:
    """The second of two equal names, also of the manifest and of a weights file, is not taken for the first."""
    for name in ("bedsit.toml", "w.safetensors", "model.py"):
        members = [("bedsit.toml", TOML), ("w.safetensors", b""), ("model.py", b"")]
        assert "twice" in refusal(unpack, archive(*members, (name, b"other"))).message


def test_a_file_that_is_also_a_folder_is_refused(unpack: Unpack) -> None:
    """``a`` and ``a/b`` cannot both be files."""
    refusal(unpack, archive(("bedsit.toml", PLAIN), ("a", b""), ("a/b", b"")))


def test_too_many_files_are_refused(unpack: Unpack) -> None:
    """A bundle of tiny files without end stops at the limit."""
    assert "4096" in refusal(unpack, archive(("bedsit.toml", PLAIN), *((f"f{i}", b"") for i in range(4096)))).message


@pytest.mark.parametrize(
    "toml",
    [
        b"",
        b"\xff\xfe",
        b"name = ",
        b"name = 'x'\nname = 'y'",
        b"a = " + b"[" * 5000,
        b"a = " + b"9" * 5000,
        b"a = 1e99999",
        b"#" * (257 << 10),
        PLAIN.replace(b"python", b"pyhton"),
        PLAIN.replace(b"entry", b"enrty"),
    ],
    ids=range(10),
)
def test_a_manifest_that_cannot_be_read_is_refused(unpack: Unpack, toml: bytes) -> None:
    """Empty, not text, not TOML, bombs, too long, and mistakes in what it says."""
    refusal(unpack, archive(("bedsit.toml", toml)))


@pytest.mark.parametrize("length", [0, 1, 511, 512, 700, 1600, 6535])
def test_an_archive_that_is_cut_off_is_refused(unpack: Unpack, length: int) -> None:
    """Cut inside of a file's header or content. Cut between two files, it is the digest that tells."""
    refusal(unpack, archive(("bedsit.toml", PLAIN), ("model.py", bytes(5000)))[:length])


def test_a_compressed_archive_is_not_expanded(unpack: Unpack) -> None:
    """Bundles are plain tars: a bomb in gzip is no archive."""
    import gzip

    refusal(unpack, gzip.compress(archive(("bedsit.toml", PLAIN), ("zeros", bytes(1 << 20)))))


def test_a_size_that_lies_is_refused(unpack: Unpack) -> None:
    """A header may claim more than the archive has, or less than nothing."""
    for size in (b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7, b"\xff" * 12):
        data = bytearray(archive(("bedsit.toml", PLAIN), ("model.py", b"x" * 600)))
        start = data.index(b"model.py")
        data[start + 124 : start + 136] = size
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        refusal(unpack, bytes(data))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_archive_raises_nothing_but_our_error(unpack: Unpack, data: Any) -> None:
    """Bytes changed anywhere: the archive unpacks, or is refused, and nothing else happens."""
    whole = bytearray(archive(("bedsit.toml", PLAIN), ("model.py", b"x" * 600)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, 2600))] = data.draw(st.integers(0, 255))
    try:
        unpack(bytes(whole))
    except BedsitError as e:
        assert e.code == "bundle.invalid"


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """What does not fit into the slot's bundle space is ``disk.full``, with what to do about it."""
    if os.geteuid() != 0:
        pytest.skip("not root: a file system of its own is needed")
    import subprocess

    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], check=True)
    fd = os.memfd_create("artifact", os.MFD_CLOEXEC)
    try:
        os.write(fd, archive(("bedsit.toml", PLAIN), ("big", bytes(1 << 20))))
        with pytest.raises(BedsitError) as caught:
            unpack_bundle(fd, mount / "m-1")
        assert caught.value.code == "disk.full"
        assert "weights" in caught.value.hint
    finally:
        os.close(fd)
        subprocess.run(["umount", str(mount)], check=True)
