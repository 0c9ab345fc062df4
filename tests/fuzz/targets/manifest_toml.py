"""Manifests as people write them: ``bedsit.toml`` is parsed under the packer's uid, and again in the slot."""

import tomllib
from collections.abc import Iterator

from bedsit.ipc.manifest import parse_manifest
from tests.fuzz.draw import Draw
from tests.fuzz.oracle import attempt
from tests.fuzz.targets import manifest_wire

_GOOD = """name = "gate"
runner = "python"
entry = "model:build"
weights = ["w.safetensors"]
idempotent = true
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1, 3]
[[outputs]]
name = "y"
dtype = "int8"
shape = [-1]
[batch]
max_rows = 16
delay_ms = 0.5
pad = 0
"""
_WORDS = (
    *("true", "-1", "0", "1e400", "nan", "inf", "2**53", "1979-05-27", "07:32:00", "{}", "[]", "[[]]", "[-1, -1]"),
    *("0x" + "f" * 5000, "0o" + "7" * 6000, "9" * 4000, f'"{"x" * 3000}"', '"\\u202e\\u0000"', '"a/../b.safetensors"'),
)


def seeds() -> Iterator[bytes]:
    """A good one, and each line with another value."""
    yield b"\x00" + _GOOD.encode()
    for line in range(17):
        yield bytes([1, line, line % len(_WORDS)])
    yield bytes([1, 15, _WORDS.index("0x" + "f" * 5000), 0])
    yield bytes([1, 16, _WORDS.index("0x" + "f" * 5000), 0])


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """Whatever TOML gives, the manifest is one or is refused by name."""
    draw = Draw(data)
    if draw.byte() % 2:
        lines = _GOOD.splitlines()
        for _ in range(1 + draw.below(3)):
            at = draw.below(len(lines))
            key = lines[at].partition("=")[0] if draw.byte() % 4 else draw.piece().decode(errors="replace")
            lines[at] = f"{key}= {draw.pick(_WORDS)}"
        text = "\n".join(lines)
    else:
        text = draw.rest().decode(errors="replace")
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError):
        return
    manifest = attempt(lambda: parse_manifest(table), "bundle.invalid", size=len(text))
    if manifest is not None:
        manifest_wire.check(manifest)
