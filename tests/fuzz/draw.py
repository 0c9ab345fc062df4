"""Choices out of a fuzzer's bytes: numbers near edges, pieces, values that msgpack can hold, and twists of good ones.

Why not atheris.FuzzedDataProvider: what is in the corpus is replayed where atheris is not installed, and has to mean
the same there. Like there, bytes that are used up read as zeros, so that every input means something.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgpack

T = TypeVar("T")

#: Where arithmetic goes wrong: at the width of a field, at a page, at a limit of ours.
_EDGES: Final = (0, 6, 7, 8, 12, 13, 15, 16, 31, 32, 40, 41, 52, 53, 62, 63, 64)
_TEXTS: Final = ("", "x", "name", "\N{BULLET}\u202e\x00\n", "a" * 300, "op", "-1", "nan", "../x", "é" * 40)
_DEPTH: Final = 6
_HEADS: Final = bytes.fromhex("9181dcdddedfd9dadbc4c6c7c9d4d8c1")


class Nest(NamedTuple):
    """A list in a list in a list: deeper than msgpack would pack, not deeper than it unpacks."""

    depth: int
    leaf: int


class Draw:
    """Reads *data* from its front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes are not used up."""
        return max(0, len(self._data) - self._at)

    def byte(self) -> int:
        """0 to 255."""
        value = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return value

    def below(self, end: int) -> int:
        """0 to *end* - 1, of one byte or, for more than 256 choices, of four."""
        return (self.byte() if end <= 256 else int.from_bytes(self.take(4), "little")) % end

    def flag(self) -> bool:
        """One of two; false when the bytes are used up."""
        return bool(self.byte() & 1)

    def pick(self, choices: Sequence[T]) -> T:
        """One of *choices*."""
        return choices[self.below(len(choices))]

    def number(self, bits: int = 64) -> int:
        """An unsigned number of that many bits: small, beside a power of two, or any."""
        kind = self.byte()
        if kind < 96:
            return kind % 17
        if kind < 192:
            return max(0, (1 << _EDGES[kind % len(_EDGES)]) + self.pick((0, -1, 1, -4, 4, -64, 64))) % (1 << bits)
        return int.from_bytes(self.take(bits // 8), "little") % (1 << bits)

    def take(self, count: int) -> bytes:
        """The next *count* bytes, zeros where there are none."""
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece.ljust(count, b"\0")

    def piece(self) -> bytes:
        """Up to 255 bytes that are there."""
        count = min(self.byte(), self.left)
        return self.take(count)

    def rest(self) -> bytes:
        """All that is left."""
        piece = self._data[self._at :]
        self._at = len(self._data)
        return piece

    def text(self) -> str:
        """Text, some of it unpleasant."""
        return self.pick(_TEXTS) if self.flag() else self.piece().decode(errors="replace")

    def value(self, depth: int = 0) -> Any:
        """Anything that msgpack can hold."""
        makers: list[Callable[[], Any]] = [
            lambda: None,
            self.flag,
            lambda: self.number(64),
            lambda: -self.number(63),
            lambda: self.pick((0.5, -0.0, float("nan"), float("inf"), -1e308)),
            self.text,
            self.piece,
            lambda: Nest(self.pick((1, 60, 400, 1000, 1020)), self.number(8)),
        ]
        if depth < _DEPTH:
            makers.append(lambda: [self.value(depth + 1) for _ in range(self.below(5))])
            makers.append(lambda: {self.text(): self.value(depth + 1) for _ in range(self.below(5))})
        return self.pick(makers)()

    def twist(self, value: Any, depth: int = 0) -> Any:
        """A copy of a good *value* with one part of it exchanged, left out, doubled or added."""
        if depth < _DEPTH and self.byte() % 4:
            if isinstance(value, dict) and value:
                return self._twist_map(value, depth)
            if isinstance(value, (list, tuple)) and value:
                index = self.below(len(value))
                twisted = list(value)
                match self.below(8):
                    case 0:
                        del twisted[index]
                    case 1:
                        twisted.append(self.value())
                    case 2:
                        twisted *= 1 + self.below(40)
                    case _:
                        twisted[index] = self.twist(value[index], depth + 1)
                return twisted
        return self.value()

    def _twist_map(self, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
        twisted = dict(value)
        key = self.pick(list(value))
        match self.below(8):
            case 0:
                del twisted[key]
            case 1:
                twisted[self.text()] = self.value()
            case 2:
                twisted[key.encode() if isinstance(key, str) else "k"] = twisted.pop(key)
            case _:
                twisted[key] = self.twist(value[key], depth + 1)
        return twisted


def pack(value: Any) -> bytes:
    """A value that was drawn as msgpack."""
    if isinstance(value, Nest):
        return b"\x91" * value.depth + msgpack.packb(value.leaf)
    if isinstance(value, (list, tuple)):
        return b"\xdc" + len(value).to_bytes(2, "big") + b"".join(map(pack, value))
    if isinstance(value, dict):
        pairs = b"".join(pack(key) + pack(item) for key, item in value.items())
        return b"\xde" + len(value).to_bytes(2, "big") + pairs
    packed: bytes = msgpack.packb(value)
    return packed


def tell_lies(draw: Draw) -> bytes:
    """Bytes that claim to be msgpack: heads of every type with lengths that are not there, one in the other."""
    told = b""
    while draw.left and len(told) < 1 << 16:
        head = draw.pick(_HEADS)
        length = draw.number(32).to_bytes(4, "big")
        one = bytes([head]) + length[-{0xDC: 2, 0xDE: 2, 0xDA: 2, 0xD9: 1, 0xC4: 1, 0xC7: 1}.get(head, 4) :]
        if head in (0x91, 0x81, 0xC1):
            one = one[:1]
        told += one * draw.pick((1, 1, 1, 2, 40, 1000)) + draw.piece()
    return told
