"""What callers pass in and get back: numpy arrays, and torch tensors where the caller has torch.

A tensor travels as the bytes of a numpy array. numpy has neither bfloat16 nor float8: of these it holds the bits, as
uint16 and uint8. torch is never loaded here on the way in: a caller who has tensors has it loaded.
"""

import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc.arena import NUMPY_DTYPES
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.manifest import TensorSpec

if TYPE_CHECKING:
    import torch

#: What travels as bits of something else, by name, with the name of that.
_AS_BITS: Final = {name: kind.name for name, kind in NUMPY_DTYPES.items() if kind.name != name}


def as_array(value: Any, spec: TensorSpec) -> NDArray[Any]:
    """What *value* holds, as the numpy array that travels for *spec*: its dtype is ``NUMPY_DTYPES[spec.dtype]``.

    Takes numpy arrays of any memory layout, and dense torch tensors on the CPU, with or without a gradient. bfloat16
    and float8 are taken as such (torch, ml_dtypes) or as their bits in uint16 and uint8. Copies nothing but a tensor
    that is conjugated or negated lazily; so the array may have gaps, run backwards or be read-only.

    Raises ``input.invalid`` for everything else, and for another dtype or shape than *spec* admits.
    """
    kind = NUMPY_DTYPES[spec.dtype]
    if type(value) is np.ndarray:
        array = value
    elif isinstance(value, np.ndarray):
        array = _plain(value, spec)
    else:
        # Not simply torch.Tensor: another thread may be in the middle of loading it.
        tensor: Any = getattr(sys.modules.get("torch"), "Tensor", None)
        if tensor is None or not isinstance(value, tensor):
            raise error(
                "input.invalid",
                f"input {spec.name!r} is a {type(value).__name__}",
                f"pass a numpy array or a torch tensor; the model takes {spec}",
            )
        return _from_torch(value, spec)
    if array.dtype != kind:
        if not array.dtype.isnative:
            raise error(
                "input.invalid",
                f"input {spec.name!r} is not in native byte order",
                'convert it first: array.astype(array.dtype.newbyteorder("="))',
            )
        if spec.dtype not in _AS_BITS or array.dtype.name != spec.dtype or array.itemsize != kind.itemsize:
            raise _mismatch(array.dtype.name, array.shape, spec)
        array = array.view(kind)
    if not spec.admits(spec.dtype, array.shape):
        raise _mismatch(spec.dtype, array.shape, spec)
    return array


def as_torch(array: NDArray[Any], dtype: str) -> "torch.Tensor":
    """A tensor of the true *dtype* in the memory of *array*, which it keeps alive; loads torch.

    A view wherever torch can have one: a read-only array is copied, since every tensor can be written, and so is one
    that runs backwards. Raises ``request.invalid`` when *array* is not what travels for *dtype*.
    """
    import torch  # noqa: PLC0415 - most callers live without it

    if dtype not in NUMPY_DTYPES or array.dtype != NUMPY_DTYPES[dtype]:
        raise error("request.invalid", f"an array of {array.dtype.name} does not hold {dtype}")
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    tensor = torch.from_numpy(array)
    return tensor.view(getattr(torch, dtype)) if dtype in _AS_BITS else tensor


def _plain(value: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """The array in an array of a subclass, such as a memory-mapped file."""
    if isinstance(value, np.ma.MaskedArray):
        raise error(
            "input.invalid", f"input {spec.name!r} is a masked array", "a mask cannot travel: pass value.filled(...)"
        )
    return np.asarray(value)


def _from_torch(value: "torch.Tensor", spec: TensorSpec) -> NDArray[Any]:
    name = str(value.dtype).removeprefix("torch.")
    if name not in (spec.dtype, _AS_BITS.get(spec.dtype)):
        _refuse_unusual(value, spec)
        raise _mismatch(name, tuple(value.shape), spec)
    as_bits = getattr(sys.modules["torch"], _AS_BITS[name]) if name in _AS_BITS else None
    if value.requires_grad:
        value = value.detach()
    array: NDArray[Any]
    try:
        array = (value if as_bits is None else value.view(as_bits)).numpy()
    except (RuntimeError, TypeError):  # it is lazy, or cannot be taken
        _refuse_unusual(value, spec)
        try:
            value = value.resolve_conj().resolve_neg()
            array = (value if as_bits is None else value.view(as_bits)).numpy()
        except (RuntimeError, TypeError) as e:
            reason = str(e).partition("\n")[0][:200]
            raise error(
                "input.invalid",
                f"input {spec.name!r} is a {type(value).__name__} that has no array: {reason}",
                "pass a plain tensor on the CPU",
            ) from None
    if not spec.admits(spec.dtype, array.shape):
        raise _mismatch(spec.dtype, array.shape, spec)
    return array


def _refuse_unusual(value: "torch.Tensor", spec: TensorSpec) -> None:
    """Raises ``input.invalid`` for a tensor that is not simply numbers in this process's memory."""
    if value.device.type == "meta":
        what, hint = "a meta tensor, which holds no numbers", "make it on the CPU"
    elif value.is_nested:
        what, hint = "a nested tensor", "pad it first: torch.nested.to_padded_tensor(...)"
    elif value.layout is not sys.modules["torch"].strided:
        what, hint = str(value.layout).removeprefix("torch."), "make it dense first: tensor.to_dense()"
    elif value.is_quantized:
        what, hint = "quantised", "dequantise it first: tensor.dequantize()"
    elif value.device.type != "cpu":
        what, hint = f"on {value.device}", "move it to the CPU first: tensor.cpu()"
    else:
        return
    raise error("input.invalid", f"input {spec.name!r} is {what}", hint)


def _mismatch(dtype: str, shape: tuple[int, ...], spec: TensorSpec) -> BedsitError:
    hint = f"the model takes {spec}"
    if dtype not in NUMPY_DTYPES:
        hint += f"; {dtype} cannot travel"
    return error("input.invalid", f"input {spec.name!r} is {dtype}{list(shape)}", hint)
