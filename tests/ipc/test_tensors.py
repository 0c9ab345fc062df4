"""What callers pass in and get back: nothing is copied needlessly, nothing is taken for what it is not."""

import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from bedsit.ipc.arena import NUMPY_DTYPES, PAGE, Arena
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.manifest import DTYPES, ITEM_BYTES, TensorSpec
from bedsit.ipc.tensors import as_array, as_torch

_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def spec_of(dtype: str, *shape: int) -> TensorSpec:
    """An input x of that dtype and shape."""
    return TensorSpec("x", dtype, shape)


def refusal(value: Any, spec: TensorSpec) -> BedsitError:
    """Why *value* is not taken."""
    with pytest.raises(BedsitError) as caught:
        as_array(value, spec)
    assert caught.value.code == "input.invalid"
    assert "'x'" in caught.value.message
    assert caught.value.hint
    return caught.value


def some_bytes(dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of what travels for *dtype*, with different small values."""
    return np.arange(np.prod(shape)).reshape(shape).astype(NUMPY_DTYPES[dtype])


def same_memory(array: NDArray[Any], value: Any) -> bool:
    """Whether both begin at the same address with the same strides."""
    if isinstance(value, torch.Tensor):
        strides = tuple(step * value.element_size() for step in value.stride())
        return array.ctypes.data == value.data_ptr() and array.strides == strides
    return bool(
        array.__array_interface__["data"] == value.__array_interface__["data"] and array.strides == value.strides
    )


def test_torch_is_not_loaded_by_importing_this() -> None:
    """Nor by passing an array, or something that is none; only ``as_torch`` loads it."""
    code = """
import sys
import numpy as np
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.manifest import TensorSpec
from bedsit.ipc.tensors import as_array
spec = TensorSpec("x", "bfloat16", (-1,))
as_array(np.zeros(3, "uint16"), spec)
try:
    as_array([1.0], spec)
except BedsitError:
    sys.exit(["torch" in sys.modules, "ml_dtypes" in sys.modules] != [False, False])
sys.exit(2)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_dtype_has_a_numpy_type_of_its_size() -> None:
    """Those that numpy does not have travel as unsigned integers, the others as themselves."""
    assert tuple(NUMPY_DTYPES) == DTYPES
    for name, kind in NUMPY_DTYPES.items():
        assert kind.name == _BITS.get(name, name)
        assert kind.itemsize == ITEM_BYTES[name]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)])
def test_an_array_is_taken_as_it_is(dtype: str, shape: tuple[int, ...]) -> None:
    """Of each dtype and rank the very same object comes back."""
    value = some_bytes(dtype, shape)
    assert as_array(value, spec_of(dtype, *shape)) is value
    assert as_array(value, spec_of(dtype, *(-1 for _ in shape))) is value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)])
def test_a_tensor_is_taken_without_a_copy(dtype: str, shape: tuple[int, ...]) -> None:
    """Of each dtype and rank the array lies in the tensor's memory, has its bits, and keeps it alive."""
    bits = some_bytes(dtype, shape)
    value = torch.from_numpy(bits).view(getattr(torch, dtype))
    array = as_array(value, spec_of(dtype, *shape))
    assert array.dtype == NUMPY_DTYPES[dtype]
    assert array.shape == shape
    assert bits.size == 0 or same_memory(array, value)
    del value
    assert (array == bits).all()


LAYOUTS: list[Callable[[NDArray[Any]], NDArray[Any]]] = [
    lambda a: a[::2, 1:],
    lambda a: a.T,
    np.asfortranarray,
    lambda a: a[::-1, ::-2],
    lambda a: a[:, 2:2],
    lambda a: np.broadcast_to(a[:1], (7, a.shape[1])),
    lambda a: as_strided(a, (3, 3), a.strides, writeable=False),
    lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e5m2", "complex128", "bool"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_may_be_laid_out_as_it_likes(layout: Callable[[NDArray[Any]], NDArray[Any]], dtype: str) -> None:
    """With gaps, by columns, backwards, repeated, read-only, not aligned: each is taken as it is."""
    value = layout(some_bytes(dtype, (6, 8)))
    assert as_array(value, spec_of(dtype, -1, -1)) is value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t[::2, 1:],
        lambda t: t.T,
        lambda t: t[:1].expand(7, -1),
        lambda t: t[2:2],
        lambda t: t.unflatten(1, (2, 4))[:, 1],
    ],
)
def test_tensors_may_be_laid_out_as_they_like(layout: Callable[[torch.Tensor], torch.Tensor], dtype: str) -> None:
    """With gaps, transposed, repeated, empty: the array has the same strides in the same memory."""
    value = layout(torch.from_numpy(some_bytes(dtype, (6, 8))).view(getattr(torch, dtype)))
    array = as_array(value, spec_of(dtype, -1, -1))
    assert value.numel() == 0 or same_memory(array, value)
    assert (array == value.contiguous().view(getattr(torch, NUMPY_DTYPES[dtype].name)).numpy()).all()


def test_arrays_of_harmless_subclasses_are_plain_arrays(tmp_path: Path) -> None:
    """A memory-mapped file and a matrix are taken without a copy, as arrays of the base class."""
    file = np.memmap(tmp_path / "file", "float32", "w+", shape=(2, 3))
    array = as_array(file, spec_of("float32", 2, 3))
    assert type(array) is np.ndarray
    assert same_memory(array, file)

    class Tagged(np.ndarray[Any, Any]):
        pass

    tagged = np.zeros((2, 3), "float32").view(Tagged)
    array = as_array(tagged, spec_of("float32", 2, 3))
    assert type(array) is np.ndarray
    assert same_memory(array, tagged)


def test_a_dtype_of_another_package_is_known_by_its_name() -> None:
    """A numpy dtype named bfloat16, as ml_dtypes has one: its arrays are taken by their bits, without a copy."""
    dtype = np.dtype((type("bfloat", (np.void,), {}), 2))
    assert dtype.name == "bfloat16"
    value = np.arange(6, dtype="uint16")[::2].view(dtype)
    array = as_array(value, spec_of("bfloat16", 3))
    assert array.tolist() == [0, 2, 4]
    assert same_memory(array, value)
    assert "bfloat16[3]" in refusal(value, spec_of("float32", 3)).message


def test_a_gradient_stays_behind() -> None:
    """A parameter and a tensor in the middle of a graph are taken by their values."""
    value = torch.ones(3, requires_grad=True)
    assert same_memory(as_array(value, spec_of("float32", 3)), value.detach())
    assert as_array(value * 2, spec_of("float32", 3)).tolist() == [2, 2, 2]
    assert as_array(torch.nn.Parameter(value.detach()), spec_of("float32", 3)).tolist() == [1, 1, 1]
    half = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    assert as_array(half, spec_of("bfloat16", 3)).tolist() == [0x3F80] * 3
    with torch.inference_mode():
        value = torch.ones(3)
    assert as_array(value, spec_of("float32", 3)).tolist() == [1, 1, 1]


def test_lazy_conjugates_and_negatives_are_what_they_say() -> None:
    """Of a tensor whose memory holds something else than its values, the values travel."""
    value = torch.tensor([1 + 2j, 3 - 4j])
    assert value.conj().is_conj()
    assert as_array(value.conj(), spec_of("complex64", 2)).tolist() == [1 - 2j, 3 + 4j]
    assert value.conj().imag.is_neg()
    assert as_array(value.conj().imag, spec_of("float32", 2)).tolist() == [-2, 4]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1.0], "is a list"),
        ((1.0,), "is a tuple"),
        (1.0, "is a float"),
        (None, "is a NoneType"),
        ("abc", "is a str"),
        (b"abcd", "is a bytes"),
        (memoryview(b"abcd"), "is a memoryview"),
        (np.float32(1), "is a float32"),
        (np.zeros(2, np.float32).flat, "is a flatiter"),
        (torch.float32, "is a dtype"),
        (np.zeros(2), "is float64[2]"),
        (np.zeros(2, "int32"), "is int32[2]"),
        (np.zeros((2, 1), "float32"), "is float32[2, 1]"),
        (np.zeros((), "float32"), "is float32[]"),
        (np.zeros(2, "O"), "is object[2]"),
        (np.zeros(2, "U3"), "is str96[2]"),
        (np.zeros(2, "S3"), "is bytes24[2]"),
        (np.zeros(2, "V4"), "is void32[2]"),
        (np.zeros(2, "M8[s]"), "is datetime64[s][2]"),
        (np.zeros(2, "m8[us]"), "is timedelta64[us][2]"),
        (np.zeros(2, [("a", "f4")]), "is void32[2]"),
        (
            np.zeros(2, "longdouble"),
            "is longdouble[2]" if np.dtype("longdouble").name == "longdouble" else "is float128[2]",
        ),
        (np.zeros(2, ">f4"), "native byte order"),
        (np.zeros(2, ">f8"), "native byte order"),
        (np.zeros(2, np.dtype("f4").newbyteorder()), "native byte order"),
        (np.ma.masked_array(np.zeros(2, "float32"), mask=[False, True]), "masked array"),
        (np.ma.masked_array(np.zeros(2, "float32")), "masked array"),
        (torch.zeros(2, dtype=torch.float64), "is float64[2]"),
        (torch.zeros(2, 1), "is float32[2, 1]"),
        (torch.zeros(2, dtype=torch.bfloat16), "is bfloat16[2]"),
        (torch.zeros(2, device="meta"), "meta tensor"),
        (torch.zeros(2, dtype=torch.bfloat16, device="meta"), "meta tensor"),
        (torch.zeros(2).to_sparse(), "sparse_coo"),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged), "nested tensor"),
    ],
)
def test_what_is_no_array_of_numbers_here_is_refused(value: Any, text: str) -> None:
    """Each says what it is, and what to do about it."""
    assert text in refusal(value, spec_of("float32", -1)).message


def test_a_compressed_sparse_tensor_is_refused() -> None:
    """Like any other layout that is not dense."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        value = torch.eye(3).to_sparse_csr()
    assert refusal(value, spec_of("float32", -1, -1)).hint == "make it dense first: tensor.to_dense()"


def test_a_quantised_tensor_is_refused() -> None:
    """Its bytes are not its values."""
    with warnings.catch_warnings(action="ignore"):
        value = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)
    for dtype in ("uint8", "float32"):
        assert "quantised" in refusal(value, spec_of(dtype, -1)).message


def test_a_tensor_on_another_device_is_refused() -> None:
    """It is not fetched behind the caller's back. There is no such device here, but torch knows tensors on it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        value = torch.empty(3, device="cuda:0")
    failure = refusal(value, spec_of("float32", -1))
    assert "on cuda:0" in failure.message
    assert failure.hint == "move it to the CPU first: tensor.cpu()"


def test_a_tensor_that_will_not_be_an_array_is_refused() -> None:
    """Subclasses that only pretend to have memory, and tensors inside of a transformation, end in our own error."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.zeros(3)
        assert "no array" in refusal(fake, spec_of("float32", -1)).message
    seen: list[str] = []

    def look(row: torch.Tensor) -> torch.Tensor:
        seen.append(refusal(row, spec_of("float32", -1)).message)
        return row

    torch.vmap(look)(torch.zeros(2, 3))
    assert "no array" in seen[0]


def test_bits_are_taken_only_for_what_travels_as_bits() -> None:
    """uint16 is bfloat16 and uint8 is float8 where the model says so; never the other way round, nor each other."""
    for dtype, bits in _BITS.items():
        value = np.zeros(2, bits)
        assert as_array(value, spec_of(dtype, 2)) is value
        assert as_array(torch.from_numpy(value), spec_of(dtype, 2)).dtype == bits
        assert dtype in refusal(torch.zeros(2).to(getattr(torch, dtype)), spec_of("uint8", 2)).message
    assert "float8_e5m2" in refusal(torch.zeros(2).to(torch.float8_e5m2), spec_of("float8_e4m3fn", 2)).message
    assert "float8_e5m2fnuz" in refusal(torch.zeros(2).to(torch.float8_e5m2fnuz), spec_of("float8_e5m2", 2)).message
    assert "uint8[2]" in refusal(np.zeros(2, "uint8"), spec_of("bfloat16", 2)).message
    assert "int16[2]" in refusal(np.zeros(2, "int16"), spec_of("bfloat16", 2)).message
    assert "uint16[2]" in refusal(np.zeros(2, "uint16"), spec_of("float16", 2)).message


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (2, 3, 4)])
def test_a_result_becomes_a_tensor_in_its_memory(dtype: str, shape: tuple[int, ...]) -> None:
    """Of its true dtype, with the same shape, bits and strides; what is written to one is in the other."""
    array = some_bytes(dtype, shape)
    tensor = as_torch(array, dtype)
    assert tensor.dtype is getattr(torch, dtype)
    assert tuple(tensor.shape) == shape
    if array.size:
        assert same_memory(array, tensor)
        tensor.zero_()
        assert not array.any()
    assert as_array(tensor, spec_of(dtype, *shape)).tolist() == array.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_a_tensor_of_a_result_keeps_its_memory(dtype: str) -> None:
    """A view of the tensor is enough; with the last one the arena has it back."""
    fd = os.memfd_create("test-tensors", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4 * PAGE)
    arena = Arena(fd, 4 * PAGE, 1)
    array = arena.empty((3, 4), dtype)
    array[...] = 1
    tensor = as_torch(array, dtype)[1:]
    del array
    assert arena.free_bytes() == 3 * PAGE
    found = arena.find(as_array(tensor, spec_of(dtype, 2, 4)))
    assert found is not None
    assert found[1] == found[0].offset + 4 * ITEM_BYTES[dtype]
    del found
    assert as_array(tensor, spec_of(dtype, 2, 4)).tolist() == [[1] * 4] * 2
    del tensor
    assert arena.free_bytes() == 4 * PAGE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tensor_never_writes_to_what_is_read_only(dtype: str) -> None:
    """Every tensor can be written, so a read-only result is copied, without torch's warning; a backward one as well."""
    frozen = np.frombuffer(bytes(16), NUMPY_DTYPES[dtype])
    tensor = as_torch(frozen, dtype)
    tensor += 1
    assert not frozen.any()
    array = some_bytes(dtype, (2, 3))
    backward = as_torch(array[::-1, ::-1], dtype)
    assert as_array(backward, spec_of(dtype, 2, 3)).tolist() == array[::-1, ::-1].tolist()
    assert same_memory(array[:, 1:], as_torch(array[:, 1:], dtype))


def test_an_array_of_something_else_becomes_no_tensor() -> None:
    """A dtype that does not travel, and an array that does not hold what it is said to."""
    for array, dtype in ((np.zeros(2, "uint8"), "bfloat16"), (np.zeros(2), "float32"), (np.zeros(2), "float99")):
        with pytest.raises(BedsitError) as caught:
            as_torch(array, dtype)
        assert caught.value.code == "request.invalid"


def test_a_torch_that_is_being_loaded_is_no_torch_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may have put an empty module where torch will be: arrays are taken, the rest is refused."""
    monkeypatch.setitem(sys.modules, "torch", type(sys)("torch"))
    value = np.zeros(2, "float32")
    assert as_array(value, spec_of("float32", 2)) is value
    refusal([1.0], spec_of("float32", 2))


def test_threads_may_convert_at_the_same_time() -> None:
    """There is no state: each gets what it passed."""
    wrong: list[int] = []

    def work(mark: int) -> None:
        for _ in range(200):
            tensor = as_torch(np.full(9, mark, "uint8"), "float8_e5m2")
            if as_array(tensor, spec_of("float8_e5m2", 9)).tolist() != [mark] * 9:
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong


_KINDS = st.sampled_from([*DTYPES, "uint16", "uint32", "uint64", "complex256", "M8[s]", "U2", "S1", "O", "V2", ">i4"])


@given(
    _KINDS.map(lambda name: NUMPY_DTYPES.get(name, np.dtype(name) if name not in _BITS else np.dtype("uint8"))),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
    st.lists(st.integers(-1, 3), max_size=3),
)
def test_whatever_is_passed_the_array_is_what_travels_or_an_error_of_ours(
    kind: np.dtype[Any], dtype: str, shape: list[int], wanted: list[int]
) -> None:
    """What comes out has the dtype and a shape that the model takes, and every byte of what went in."""
    value = np.zeros(shape, kind)
    spec = spec_of(dtype, *wanted)
    fits = kind == NUMPY_DTYPES[dtype] and spec.admits(dtype, tuple(shape))
    try:
        array = as_array(value, spec)
    except BedsitError as e:
        assert e.code == "input.invalid"
        assert not fits
    else:
        assert fits
        assert array is value
