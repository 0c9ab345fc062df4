"""Manifests in msgpack: a worker answers with one; router and clients read it."""

from collections.abc import Iterator

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.manifest import MAX_ENCODED, Manifest, decode_manifest, parse_manifest
from tests.fuzz.draw import Draw, pack, tell_lies
from tests.fuzz.oracle import attempt

_GOOD = {
    "name": "gate",
    "runner": "python",
    "entry": "model:build",
    "inputs": [{"name": "x", "dtype": "float16", "shape": [-1, 3]}, {"name": "n", "dtype": "uint8", "shape": [-1, -1]}],
    "outputs": [{"name": "y", "dtype": "bfloat16", "shape": [-1]}],
    "weights": ["a.safetensors", "b/c.safetensors"],
    "idempotent": False,
    "batch": {"max_rows": 16, "delay_ms": 0.5, "pad": 255},
}
_EXPORTED = _GOOD | {"runner": "torch-export", "entry": "program.pt2", "batch": None, "weights": []}


def seeds() -> Iterator[bytes]:
    """Both runners, twists, lies."""
    for good in (_GOOD, _EXPORTED):
        yield b"\x00" + parse_manifest(good).encode()
    for index in range(8):
        yield bytes([1, 1, index, 3, 0, index, 5, 200, 3])
    yield b"\x02" + bytes(range(30))
    yield b"\x02" + bytes([3, 200, 5, 0, 0, 0, 5, 0])


def check(manifest: Manifest) -> None:
    """A manifest that was accepted is written and read as the same."""
    try:
        encoded = manifest.encode()
    except BedsitError as e:
        assert e.code == "bundle.invalid"
        return
    assert len(encoded) <= MAX_ENCODED
    assert decode_manifest(encoded) == manifest


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """A manifest, or a refusal."""
    draw = Draw(data)
    kind = draw.byte() % 3
    if kind == 0:
        body = draw.rest()
    else:
        body = pack(draw.twist(draw.pick((_GOOD, _EXPORTED)))) if kind == 1 else tell_lies(draw)
    manifest = attempt(lambda: decode_manifest(body), "bundle.invalid", "wire.malformed", size=len(body))
    if manifest is not None:
        check(manifest)
