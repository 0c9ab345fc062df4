"""A model's manifest: what ``bedsit.toml`` in a bundle declares, and what travels on the wire about a model.

The packer reads it under the caller's uid, a blank slot reads it again and answers with it, the client builds requests
from it. The daemon stores it unread.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgpack

from bedsit.ipc.errors import error
from bedsit.ipc.frames import decode_body
from bedsit.ipc.spelling import nearest

FILE_NAME: Final = "bedsit.toml"
MAX_ENCODED: Final = 60 << 10
MAX_TENSORS: Final = 32
MAX_DIMS: Final = 8
MAX_DIM: Final = 1 << 40
RUNNERS: Final = ("python", "torch-export")
# The order is the wire's: a dtype travels as its index. Only append.
ITEM_BYTES: Final[Mapping[str, int]] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "complex64": 8,
    "complex128": 16,
}
DTYPES: Final = tuple(ITEM_BYTES)

MIN_ROWS: Final = 2
MAX_ROWS: Final = 1024
MAX_DELAY_MS: Final = 1000
# The largest finite number of those floating-point dtypes that are narrower than a manifest's own numbers.
_LARGEST: Final[Mapping[str, float]] = {
    "float8_e4m3fn": 448.0,
    "float8_e5m2": 57344.0,
    "float16": 65504.0,
    "bfloat16": (2 - 2**-7) * 2.0**127,
    "float32": (2 - 2**-23) * 2.0**127,
    "complex64": (2 - 2**-23) * 2.0**127,
}

_MODEL_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_TENSOR_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_PYTHON_ENTRY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: *shape* in elements, -1 where a dimension is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def admits(self, dtype: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of that dtype and shape may stand here."""
        if dtype != self.dtype or len(shape) != len(self.shape):
            return False
        for want, have in zip(self.shape, shape, strict=True):  # noqa: SIM110 - a generator costs as much as the rest
            if want not in (-1, have):
                return False
        return True

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('*' if d < 0 else str(d) for d in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests of the model may be run together, concatenated along their first dimension.

    One call gets at most *max_rows* rows. A request may wait *delay_ms* for others. The other dimensions of a ragged
    input are filled up with *pad*. Answers are as if each request had come alone.
    """

    max_rows: int
    delay_ms: float = 0.0
    pad: float | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model is called, how it is loaded, what it takes and what it gives. *batch*: how requests are batched."""

    name: str
    runner: str
    entry: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[str, ...] = ()
    idempotent: bool = True
    batch: Batch | None = None

    def encode(self) -> bytes:
        """As msgpack, at most MAX_ENCODED bytes; ``decode_manifest`` reads it back."""
        data: bytes = msgpack.packb(asdict(self))
        if len(data) > MAX_ENCODED:
            raise error("bundle.invalid", "the manifest is too long", "shorten the names of inputs and outputs")
        return data


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest off the wire. Raises ``bundle.invalid`` or ``wire.malformed``."""
    table = decode_body(data)
    if len(data) > MAX_ENCODED or not isinstance(table, dict):
        raise error("wire.malformed", "not a manifest")
    return parse_manifest(table)


def parse_manifest(table: Mapping[str, Any]) -> Manifest:
    """Check a parsed ``bedsit.toml``. Raises ``bundle.invalid`` that names the key and the nearest known one."""
    _check_keys(table, ("name", "runner", "entry", "inputs", "outputs"), ("weights", "idempotent", "batch"), FILE_NAME)
    name = check_model_name(_text(table, "name"))
    runner, entry = _text(table, "runner"), _text(table, "entry")
    if runner not in RUNNERS:
        raise _invalid(f"runner {runner!r} is not known", nearest(runner, RUNNERS) or f"one of {', '.join(RUNNERS)}")
    if runner == "python" and not _PYTHON_ENTRY.fullmatch(entry):
        raise _invalid(f"entry {entry!r} is not of the form module:function", 'for example entry = "model:build"')
    if runner == "torch-export":
        check_relative_path(entry, "entry")
    weights = table.get("weights", [])
    if not isinstance(weights, (list, tuple)) or not all(isinstance(w, str) for w in weights):
        raise _invalid("weights must be a list of file names", 'for example weights = ["model.safetensors"]')
    for path in weights:
        check_relative_path(path, "weights")
        if not path.endswith(".safetensors"):
            raise _invalid(f"weights file {path!r} is not a .safetensors file", "convert it, or load it in your code")
    idempotent = table.get("idempotent", True)
    if not isinstance(idempotent, bool):
        raise _invalid("idempotent must be true or false")
    inputs, outputs = _tensors(table, "inputs"), _tensors(table, "outputs")
    return Manifest(
        name=name,
        runner=runner,
        entry=entry,
        inputs=inputs,
        outputs=outputs,
        weights=tuple(weights),
        idempotent=idempotent,
        batch=_batch(table.get("batch"), inputs, outputs),
    )


def check_model_name(name: str) -> str:
    """The name itself when it is one; else ``bundle.invalid``."""
    if not _MODEL_NAME.fullmatch(name):
        raise _invalid(f"model name {name!r} is not allowed", "a-z first, then a-z 0-9 _ . - , at most 63 characters")
    return name


def check_relative_path(path: str, key: str) -> None:
    """Refuse a path that is empty, absolute, or leaves the bundle. Raises ``bundle.invalid``."""
    parts = path.split("/")
    if not path or path.startswith("/") or "\0" in path or any(p in ("", ".", "..") for p in parts):
        raise _invalid(f"{key}: {path!r} is not a path inside the bundle")


def _tensors(table: Mapping[str, Any], key: str) -> tuple[TensorSpec, ...]:
    rows = table.get(key)
    if not isinstance(rows, (list, tuple)) or not 1 <= len(rows) <= MAX_TENSORS:
        raise _invalid(f"[[{key}]] must be declared 1 to {MAX_TENSORS} times")
    specs = tuple(_tensor(row, key) for row in rows)
    if len({s.name for s in specs}) != len(specs):
        raise _invalid(f"[[{key}]] declares a name twice")
    return specs


def _tensor(row: Any, key: str) -> TensorSpec:
    if not isinstance(row, Mapping):
        raise _invalid(f"[[{key}]] must be tables with name, dtype and shape")
    _check_keys(row, ("name", "dtype", "shape"), (), f"[[{key}]]")
    name, dtype, shape = _text(row, "name"), _text(row, "dtype"), row["shape"]
    if not _TENSOR_NAME.fullmatch(name):
        raise _invalid(f"[[{key}]] name {name!r} is not allowed", "letters, digits, _ . - , at most 63 characters")
    if dtype not in ITEM_BYTES:
        raise _invalid(f"{name}: dtype {dtype!r} is not known", nearest(dtype, DTYPES) or f"one of {', '.join(DTYPES)}")
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_DIMS:
        raise _invalid(f"{name}: shape must be a list of at most {MAX_DIMS} integers")
    if not all(type(d) is int and -1 <= d <= MAX_DIM for d in shape):
        raise _invalid(f"{name}: a dimension must be an integer, -1 where it is free")
    return TensorSpec(name, dtype, tuple(shape))


def _batch(row: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Batch | None:
    if row is None:  # on the wire: declared nothing
        return None
    if not isinstance(row, Mapping):
        raise _invalid("[batch] must be a table with max_rows", "for example [batch] and max_rows = 16 below it")
    _check_keys(row, ("max_rows",), ("delay_ms", "pad"), "[batch]")
    max_rows, pad = row["max_rows"], row.get("pad")
    if type(max_rows) is not int or not MIN_ROWS <= max_rows <= MAX_ROWS:
        raise _invalid(
            f"[batch] max_rows must be an integer, {MIN_ROWS} to {MAX_ROWS}",
            "leave [batch] out where requests are to run one by one",
        )
    delay_ms = _number(row.get("delay_ms", 0.0), "[batch] delay_ms")
    if not 0 <= delay_ms <= MAX_DELAY_MS:
        raise _invalid(f"[batch] delay_ms must be 0 to {MAX_DELAY_MS}")
    for key, specs in (("inputs", inputs), ("outputs", outputs)):
        for spec in specs:
            if spec.shape[:1] != (-1,):
                raise _invalid(
                    f"[batch] needs a free first dimension, and {key[:-1]} {spec} has none",
                    f"declare shape = [-1, ...] for every one of [[{key}]], or leave [batch] out",
                )
    ragged = [spec for spec in inputs if -1 in spec.shape[1:]]
    if ragged and pad is None:
        raise _invalid(
            f"[batch]: requests can differ in more than their first dimension, because of input {ragged[0]}",
            "declare in [batch] what to fill up with, for example pad = 0, or fix that dimension, or leave [batch] out",
        )
    if pad is not None:
        pad = _number(pad, "[batch] pad")
        for spec in ragged:
            if not _can_hold(spec.dtype, pad):
                raise _invalid(f"[batch] pad = {pad:g} is no {spec.dtype}, and has to fill up input {spec}")
    return Batch(max_rows, delay_ms, pad)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
        raise _invalid(f"{name} must be a finite number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if number != value:
        # Not the number itself: Python writes no integer of more than 4300 digits, and TOML has such in hexadecimal.
        raise _invalid(f"{name} has too many digits", "up to 2**53 every integer can be had")
    return number


def _can_hold(dtype: str, number: float) -> bool:
    if dtype == "bool":
        return number in (0, 1)
    if "int" not in dtype:
        return abs(number) <= _LARGEST.get(dtype, math.inf)
    bits = 8 * ITEM_BYTES[dtype]
    least, end = (0, 1 << bits) if dtype.startswith("u") else (-1 << bits - 1, 1 << bits - 1)
    return number.is_integer() and least <= number < end


def _check_keys(table: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...], where: str) -> None:
    known = required + optional
    for key in table:
        if key not in known:
            raise _invalid(f"{where}: unknown key {key!r}", nearest(key, known) or f"known keys: {', '.join(known)}")
    for key in required:
        if key not in table:
            raise _invalid(f"{where}: key {key!r} is missing")


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table[key]
    if not isinstance(value, str):
        raise _invalid(f"{key} must be a string")
    return value


def _invalid(message: str, hint: str = "") -> Exception:
    return error("bundle.invalid", message, hint)
