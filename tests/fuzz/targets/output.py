"""A worker's output, as lines in two bounded files."""

import os
import re
from collections.abc import Iterator
from typing import Final

from bedsit.sandbox.output import MAX_LINE, Output
from tests.fuzz.draw import Draw

_LIMIT: Final = 1 << 14
_LINE: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (out|err) .*")


def seeds() -> Iterator[bytes]:
    """Lines, control characters, half of a character, one without an end."""
    yield b"\x07hello\nworld\r\n\x1b[31mred\x1b[0m\n"
    yield b"\x01" + "\N{BULLET}\u202e\u2028\x85".encode() * 9 + b"\n\xff\xfe\xc3\n"
    yield b"\xff" + b"x" * 300


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """However it comes, whole lines of printable text are written, no more than allowed, and the rest is counted."""
    draw = Draw(data)
    step, times = 1 + draw.byte(), draw.pick((1, 1, 1, 30))
    said = draw.rest()
    fds = [os.memfd_create("log"), os.memfd_create("log")]
    output = Output()
    try:
        output.open(fds, _LIMIT)
        for turn in range(times):
            stream = ("out", "err")[turn % 2]
            for at in range(0, len(said), step):
                output.feed(stream, said[at : at + step])
                assert max(map(len, output._partial.values())) <= MAX_LINE
        output.finish()
        for fd in fds:
            written = os.pread(fd, 2 * _LIMIT, 0)
            assert len(written) <= _LIMIT + MAX_LINE
            assert not written or written.endswith(b"\n")
            for line in written.decode().split("\n")[:-1]:
                assert _LINE.fullmatch(line)
                assert line.isprintable()
                assert len(line.encode()) < MAX_LINE
        assert 0 <= output.dropped_bytes <= 2 * times * (len(said) + 1)
    finally:
        for fd in fds:
            os.close(fd)
