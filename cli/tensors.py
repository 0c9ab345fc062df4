"""Tensors in words: what ``bedsit infer`` reads and prints. Imports numpy; nothing else of the command line does."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.manifest import Manifest, TensorSpec
from bedsit.ipc.spelling import nearest

_NAMED: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)
_PREVIEW: Final = 8


def read_inputs(words: Sequence[str], manifest: Manifest, stdin: TextIO) -> dict[str, NDArray[Any]]:
    """The model's inputs from ``NAME=FILE.npy``, ``NAME=FILE.json``, ``NAME=JSON`` or ``NAME=-``.

    The name may be left out where the model takes one input. Raises ``input.invalid``.
    """
    specs = {spec.name: spec for spec in manifest.inputs}
    inputs: dict[str, NDArray[Any]] = {}
    for word in words:
        name, text = _split(word, manifest)
        if name not in specs:
            known = ", ".join(map(str, manifest.inputs))
            raise _invalid(f"{manifest.name} takes no input {name!r}", nearest(name, specs) or f"it takes {known}")
        if name in inputs:
            raise _invalid(f"input {name} is given twice")
        inputs[name] = _read(text, specs[name], stdin)
    missing = [str(spec) for name, spec in specs.items() if name not in inputs]
    if missing:
        raise _invalid(f"{manifest.name} also takes {', '.join(missing)}", "give it with -i NAME=FILE.npy or NAME=JSON")
    return inputs


def describe_outputs(outputs: Mapping[str, NDArray[Any]], manifest: Manifest) -> list[dict[str, Any]]:
    """The outputs as JSON-able rows: name, dtype, shape, data (nested lists; NaN and infinities as words)."""
    dtypes = {spec.name: spec.dtype for spec in manifest.outputs}
    return [
        {
            "name": name,
            "dtype": dtypes.get(name, array.dtype.name),
            "shape": list(array.shape),
            "data": _plain(_widen(array, dtypes.get(name, "")).tolist()),
        }
        for name, array in outputs.items()
    ]


def preview(row: Mapping[str, Any]) -> str:
    """The first values of an output."""
    values: list[object] = []
    _flatten(row["data"], values)
    text = " ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values[:_PREVIEW])
    return text + (" ..." if len(values) > _PREVIEW else "")


def save_outputs(outputs: Mapping[str, NDArray[Any]], folder: Path) -> list[Path]:
    """Write each output to ``FOLDER/NAME.npy``; the folder is made. bfloat16 is written as its uint16 bits."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in outputs.items():
            path = folder / f"{name}.npy"
            np.save(path, array, allow_pickle=False)
            paths.append(path)
    except OSError as e:
        raise error("input.invalid", f"cannot write to {folder}: {e.strerror}", "name another folder") from None
    return paths


def _split(word: str, manifest: Manifest) -> tuple[str, str]:
    match = _NAMED.fullmatch(word)
    if match:
        return match[1], match[2]
    if len(manifest.inputs) == 1:
        return manifest.inputs[0].name, word
    names = ", ".join(spec.name for spec in manifest.inputs)
    raise _invalid(f"which input is {word[:40]!r}?", f"write NAME=VALUE with one of {names}")


def _read(text: str, spec: TensorSpec, stdin: TextIO) -> NDArray[Any]:
    if text.endswith(".npy"):
        try:
            # JUSTIFICATION: allow_pickle stays off; a .npy file may be anybody's.
            array: NDArray[Any] = np.load(text, allow_pickle=False)
        except (OSError, ValueError, EOFError) as e:
            raise _invalid(f"{spec.name}: cannot read {text}: {e}") from None
        return array
    try:
        source = stdin.read() if text == "-" else Path(text).read_text("utf-8") if text.endswith(".json") else text
        value = json.loads(source)
    except (OSError, UnicodeDecodeError) as e:
        raise _invalid(f"{spec.name}: cannot read {text}: {e}") from None
    except (json.JSONDecodeError, RecursionError) as e:
        raise _invalid(
            f"{spec.name}: not JSON: {e}", "give JSON, a .npy or .json file, or - for JSON on stdin"
        ) from None
    return _convert(value, spec)


def _convert(value: Any, spec: TensorSpec) -> NDArray[Any]:
    try:
        array = np.asarray(value)
        if spec.dtype == "bfloat16":
            return _to_bfloat16(array.astype(np.float32))
        target = np.dtype(spec.dtype)
        if array.dtype.kind == "f" and target.kind in "iub":
            raise _invalid(f"{spec.name}: {spec.dtype} holds no fractions", "give whole numbers")
        converted = array.astype(target)
        if target.kind in "iu" and array.dtype.kind in "iu" and not np.array_equal(converted, array):
            raise _invalid(f"{spec.name}: a number does not fit into {spec.dtype}")
    except (ValueError, TypeError, OverflowError) as e:
        raise _invalid(f"{spec.name}: not a tensor of {spec.dtype}: {e}", f"it takes {spec}") from None
    return converted


def _to_bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of the numbers, rounded to nearest even, as torch does."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded.astype(np.uint16))


def _widen(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "bfloat16" and array.dtype == np.uint16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _flatten(value: Any, into: list[object]) -> None:
    if len(into) > _PREVIEW:
        return
    if isinstance(value, list):
        for item in value:
            _flatten(item, into)
    else:
        into.append(value)


def _invalid(message: str, hint: str = "") -> BedsitError:
    return error("input.invalid", message, hint)
