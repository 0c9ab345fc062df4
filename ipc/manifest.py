"""A model's manifest: what ``bedsit.toml`` in a bundle declares, and what travels on the wire about a model.

The packer reads it under the caller's uid, a blank slot reads it again and answers with it, the client builds requests
from it. The daemon stores it unread.
"""

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
}
DTYPES: Final = tuple(ITEM_BYTES)

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
        return (
            dtype == self.dtype
            and len(shape) == len(self.shape)
            and all(want in (-1, have) for want, have in zip(self.shape, shape, strict=True))
        )

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('*' if d < 0 else str(d) for d in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model is called, how it is loaded, what it takes and what it gives."""

    name: str
    runner: str
    entry: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[str, ...] = ()
    idempotent: bool = True

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
    _check_keys(table, ("name", "runner", "entry", "inputs", "outputs"), ("weights", "idempotent"), FILE_NAME)
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
    return Manifest(
        name=name,
        runner=runner,
        entry=entry,
        inputs=_tensors(table, "inputs"),
        outputs=_tensors(table, "outputs"),
        weights=tuple(weights),
        idempotent=idempotent,
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
