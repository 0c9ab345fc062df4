"""Weights: the header of a safetensors file inside an artifact."""

import json
import os
from collections.abc import Iterator
from math import prod
from typing import Any, Final

import torch

from bedsit.sandbox.worker.weights import map_safetensors
from tests.fuzz.draw import Draw
from tests.fuzz.oracle import attempt

_DTYPES: Final = ("F32", "BF16", "U8", "I64", "BOOL", "F8_E5M2", "C64", "f32", "")
_DATA: Final = bytes(range(256))
_GOOD: Final = b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"__metadata__":{"by":"me"}}'


def _file(header: bytes, data: bytes = _DATA) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def seeds() -> Iterator[bytes]:
    """A good file, a deep one, one in UTF-16, and drawn ones."""
    yield b"\x00\x00" + _file(_GOOD)
    yield b"\x00\x07" + _file(b"[" * 3000)
    yield b"\x00\x00" + _file(_GOOD.decode().encode("utf-16"))
    yield b"\x00\x00" + _file(b'{"a":{"dtype":"U8","shape":[' + b"9" * 3000 + b'],"data_offsets":[0,1]}}')
    for index in range(8):
        yield bytes([1, index, 1, index, 1, 4, 0, 0, 0, 16])
    yield bytes([1, 3, 1, 0, 64, *[1] * 64, 0, 0, 0, 4])


def _draw_row(draw: Draw) -> dict[str, Any]:
    shape: list[Any] = [draw.number() for _ in range(draw.below(4) if draw.byte() % 8 else draw.below(70))]
    begin = draw.number()
    end = begin + 4 * prod(shape) if draw.byte() % 4 else draw.number()
    row = {"dtype": draw.pick(_DTYPES), "shape": shape, "data_offsets": [begin, end]}
    if draw.byte() % 8 == 0:
        row[draw.pick(("dtype", "shape", "data_offsets", "x"))] = draw.pick((None, -1, True, 1.5, [], "0", [1, 2, 3]))
    return row


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """Tensors that lie in the file and nowhere else, or a refusal; the file is never changed."""
    draw = Draw(data)
    kind, offset = draw.byte() % 2, draw.byte()
    if kind == 0:
        body = draw.rest()
    else:
        header = json.dumps({draw.text(): _draw_row(draw) for _ in range(1 + draw.below(3))}).encode()
        body = _file(header, _DATA if draw.byte() % 4 else b"")
    size = len(body) if draw.byte() % 8 else draw.number()
    fd = os.memfd_create("weights")
    try:
        os.write(fd, b"\xee" * offset + body)
        tensors = attempt(lambda: map_safetensors(fd, offset, size, "w"), "bundle.invalid", size=len(body))
        if tensors is None:
            return
        for tensor in tensors.values():
            assert tensor.numel() * tensor.element_size() <= len(body)
            if tensor.numel():
                told = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                assert told in body
        for tensor in tensors.values():  # only now: they may lie one over the other
            if tensor.numel():
                tensor.view(torch.uint8 if tensor.dtype is torch.bool else tensor.dtype).zero_()
        assert os.pread(fd, offset + len(body) + 1, 0) == b"\xee" * offset + body
    finally:
        os.close(fd)
