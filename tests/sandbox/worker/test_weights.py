"""Weights: mapped from the artifact, private to the worker, and never outside of the file."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.worker.weights import map_safetensors
from tests_support.marks import PICKLE

Map = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def load() -> Iterator[Map]:
    """Map bytes that lie at *offset* in a file, between other bytes."""
    fds = []

    def load(data: bytes, offset: int = 512, size: int | None = None) -> dict[str, torch.Tensor]:
        fd = os.memfd_create("artifact", os.MFD_CLOEXEC)
        fds.append(fd)
        os.write(fd, b"\xaa" * offset + data + b"\xbb" * 100)
        return map_safetensors(fd, offset, len(data) if size is None else size, "w.safetensors")

    yield load
    for fd in fds:
        os.close(fd)


def crafted(header: Any, room: int = 64, claimed: int | None = None) -> bytes:
    """A safetensors file with any header and *room* bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + bytes(room)


def _row(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@PICKLE(part="twin", outcome="weights without pickle are read")
@pytest.mark.parametrize("offset", [0, 1, 512, 4095, 4096, 5000])
def test_what_safetensors_writes_is_read(load: Map, offset: int) -> None:
    """Every dtype, scalars and empty tensors, wherever the file lies in the artifact."""
    dtypes = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
    tensors = {d: torch.arange(6).reshape(2, 3).to(getattr(torch, d)) for d in dtypes}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "f8": torch.zeros(3).to(torch.float8_e5m2)}
    got = load(save(tensors, metadata={"format": "pt"}), offset)
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert got[name].to(torch.float64).equal(tensor.to(torch.float64))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        crafted({}, claimed=2**64 - 1),
        crafted({}, claimed=2**63),
        crafted({}, room=0, claimed=3),
        crafted({}, claimed=200 << 20),
        crafted(b""),
        crafted(b"{"),
        crafted(b"\xff\xff"),
        crafted(b"[]"),
        crafted(b"null"),
        crafted(b"[" * 100_000),
        crafted({"t": 1}),
        crafted({"t": {}}),
        crafted(_row("F31")),
        crafted(_row(7)),
        crafted(_row(None)),
        crafted(_row(shape="4")),
        crafted(_row(shape=[-4])),
        crafted(_row(shape=[4.0])),
        crafted(_row(shape=[True] * 2 + [4])),
        crafted(_row(shape=[None])),
        crafted(_row(shape=[2**70, 0], offsets=[0, 0])),
        crafted(_row(shape=[0, 2**40, 2**40], offsets=[0, 0])),
        crafted(_row(shape=[2**62, 4], offsets=[0, 0])),
        crafted(_row(shape=[0] * 100, offsets=[0, 0])),
        crafted(_row(offsets=[0])),
        crafted(_row(offsets=[0, 16, 16])),
        crafted(_row(offsets=["0", 16])),
        crafted(_row(offsets=[0, 15])),
        crafted(_row(offsets=[16, 0])),
        crafted(_row(offsets=[-16, 0])),
        crafted(_row(offsets=[56, 72])),
        crafted(_row(offsets=[2**63, 2**63 + 16])),
    ],
    ids=range(34),
)
def test_a_broken_file_is_refused(load: Map, data: bytes) -> None:
    """Headers that lie about their length, are no JSON, or describe tensors that are not in the file."""
    with pytest.raises(BedsitError) as caught:
        load(data)
    assert caught.value.code == "bundle.invalid"
    assert "w.safetensors" in caught.value.message


def test_the_last_bytes_of_the_file_are_in_and_the_next_are_out(load: Map) -> None:
    """A tensor may end where the file ends; the bytes behind it in the artifact cannot be reached."""
    assert load(crafted(_row(offsets=[48, 64])))["t"].tolist() == [0, 0, 0, 0]
    with pytest.raises(BedsitError):
        load(crafted(_row(offsets=[52, 68])))
    with pytest.raises(BedsitError):
        load(crafted({}), size=1 << 20)


def test_a_tensor_that_is_not_aligned_is_copied_and_right(load: Map) -> None:
    """A file that is packed without padding is read correctly."""
    header = json.dumps({"t": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}).encode()
    data = struct.pack("<Q", len(header)) + header + b"\0" + struct.pack("<2f", 1.5, -2.5)
    for offset in range(4):
        tensor = load(data, 512 + offset)["t"]
        assert tensor.tolist() == [1.5, -2.5]
        assert tensor.data_ptr() % 4 == 0


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["BOOL", "U8", "F16", "F32", "F64", "X", 1]),
    st.lists(st.integers(-1, 2**64) | st.just(0) | st.integers(0, 5), max_size=4),
    st.lists(st.integers(-3, 80) | st.integers(2**62, 2**65), min_size=1, max_size=3),
)
def test_any_row_is_a_tensor_inside_of_the_file_or_refused(load: Map, dtype: Any, shape: Any, offsets: Any) -> None:
    """Whatever numbers a header holds, the answer is a tensor of that size or ``bundle.invalid``."""
    try:
        tensor = load(crafted(_row(dtype, shape, offsets)))["t"]
    except BedsitError as e:
        assert e.code == "bundle.invalid"
    else:
        assert list(tensor.shape) == shape
        assert tensor.nbytes == offsets[1] - offsets[0] <= 64
        tensor.sum()


def test_writing_to_weights_changes_one_mapping_only(tmp_path: Path) -> None:
    """A worker that writes to its weights changes neither the artifact nor what another worker maps."""
    path = tmp_path / "artifact"
    path.write_bytes(save({"t": torch.arange(5000.0)}))
    before = path.read_bytes()
    fd = os.open(path, os.O_RDONLY)
    mine = map_safetensors(fd, 0, len(before), "w")["t"]
    theirs = map_safetensors(fd, 0, len(before), "w")["t"]
    os.close(fd)
    mine.mul_(-1)
    assert theirs.equal(torch.arange(5000.0))
    assert path.read_bytes() == before
    assert mine[4999] == -4999
