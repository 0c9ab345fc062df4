"""Bundles: tar archives of whoever deploys, unpacked in the slot."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bedsit.sandbox.worker.bundle import unpack_bundle
from tests.fuzz.draw import Draw
from tests.fuzz.oracle import attempt

_TOML: Final = b"""name = "g"
runner = "python"
entry = "m:b"
weights = ["w.safetensors"]
inputs = [{name = "x", dtype = "int8", shape = []}]
outputs = [{name = "y", dtype = "int8", shape = []}]
"""
_WEIGHTS: Final = b"\x02\0\0\0\0\0\0\0{}"
_NAMES: Final = (
    *(b"bedsit.toml", b"w.safetensors", b"m.py", b"a", b"a/b", b"a/b/c", b"../x", b"/etc/x", b"./m.py", b"a//b"),
    *(b"\xff\xfe", b"a" * 100, b"\xe2\x80\xae", b"a/../b", b"", b"bedsit.toml/x"),
)
_TYPES: Final = b"0\x007512346LKxgSVMAND"
_SIZES: Final = (0, 1, 2, 10, 511, 512, 513, 1 << 20, 8**11 - 1, 1 << 62)
_CONTENTS: Final = (_TOML, _WEIGHTS, b"", b"a" * 600, b"27 path=a/b/c/d/e/f/g/h/i\n", b"22 GNU.sparse.size=1e9\n")


def _head(name: bytes, kind: int, size: int, *, prefix: bytes = b"", negative: bool = False) -> bytes:
    """A header block whose checksum is right."""
    if negative or size >= 8**11:
        field = ((1 << 96) - max(1, size) if negative else size | 1 << 95).to_bytes(12, "big")
    else:
        field = b"%011o\0" % size
    block = name[:100].ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + field + b"0" * 11 + b"\0" + b" " * 8
    block += bytes([kind]) + b"a".ljust(100, b"\0") + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + prefix[:155]
    block = block.ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _entry(name: bytes, content: bytes, kind: int = 48) -> bytes:
    return _head(name, kind, len(content)) + content + bytes(-len(content) % 512)


def seeds() -> Iterator[bytes]:
    """A whole bundle, and choices that give others."""
    good = _entry(b"bedsit.toml", _TOML) + _entry(b"w.safetensors", _WEIGHTS) + _entry(b"m.py", b"pass\n") + bytes(1024)
    yield b"\x00" + good
    for kind in range(len(_TYPES)):
        yield bytes([1, 1, 3, kind, 0, 0, 4, 1, kind, 0, 0, 3, 0])
    for name in range(len(_NAMES)):
        yield bytes([1, 1, name, 0, 0, 0, 1, 0, 1, 2, 0])
    yield bytes([1, 1, 3, _TYPES.index(b"L"), 0, 0, 3, 3])
    yield bytes([1, 1, 3, _TYPES.index(b"x"), 0, 0, 4, 3])


def _make(draw: Draw) -> bytes:
    """Members in front of, or instead of, those of a good bundle."""
    made = b""
    if draw.byte() % 2 == 0:
        made += _entry(b"bedsit.toml", _TOML) + _entry(b"w.safetensors", _WEIGHTS)
    while draw.left and len(made) < 2 << 20:
        name, kind = draw.pick(_NAMES), draw.pick(_TYPES)
        content = draw.pick(_CONTENTS) if draw.byte() % 8 else draw.piece()
        lie = draw.byte() % 8
        size = draw.pick(_SIZES) if lie == 1 else len(content)
        one = _head(name, kind, size, negative=lie == 2, prefix=b"p" if lie == 3 else b"")
        made += (one + content + bytes(-len(content) % 512)) * draw.pick((1, 1, 1, 1, 2, 3, 1200, 40))
    if not made.startswith(b"bedsit.toml"):
        made += _entry(b"bedsit.toml", _TOML) + _entry(b"w.safetensors", _WEIGHTS)
    return made + bytes(1024)


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """Regular files below the folder and nothing else, no more of it than the archive has; or a refusal."""
    draw = Draw(data)
    archive = draw.rest() if draw.byte() % 2 == 0 else _make(draw)
    fd = os.memfd_create("bundle")
    folder = Path(tempfile.mkdtemp(prefix="bedsit-fuzz-"))
    try:
        os.write(fd, archive)
        bundle = attempt(lambda: unpack_bundle(fd, folder / "in" / "it"), "bundle.invalid", size=len(archive))
        unpacked = [path for path in folder.rglob("*") if not path.is_dir()]
        assert all(path.is_file() and not path.is_symlink() for path in unpacked)
        assert all(path.is_relative_to(folder / "in" / "it") for path in unpacked)
        assert sum(path.stat().st_size for path in unpacked) <= len(archive)
        if bundle is not None:
            assert set(bundle._weights) == set(bundle.manifest.weights)
            for name in bundle.manifest.weights:
                attempt(lambda name=name: bundle.load_weights(name), "bundle.invalid")  # type: ignore[misc]
    finally:
        os.close(fd)
        shutil.rmtree(folder)


# At the first use, and not in an input's time.
tarfile.TarInfo()
