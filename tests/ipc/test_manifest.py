"""What a bundle may declare, and how a mistake in it is explained."""

import copy
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.manifest import (
    DTYPES,
    ITEM_BYTES,
    MAX_DIM,
    MAX_DIMS,
    MAX_ENCODED,
    MAX_TENSORS,
    Batch,
    Manifest,
    TensorSpec,
    check_relative_path,
    decode_manifest,
    parse_manifest,
)

_GOOD: dict[str, Any] = {
    "name": "digits",
    "runner": "python",
    "entry": "model:build",
    "weights": ["model.safetensors"],
    "idempotent": True,
    "inputs": [{"name": "image", "dtype": "float32", "shape": [-1, 1, 8, 8]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, 10]}],
}


def _refusal(table: Any) -> BedsitError:
    with pytest.raises(BedsitError) as caught:
        parse_manifest(table)
    assert caught.value.code == "bundle.invalid"
    return caught.value


def _with(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    table = copy.deepcopy(_GOOD)
    place: Any = table
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return table


def _rows(shapes: list[list[int]]) -> list[dict[str, Any]]:
    return [{"name": f"t{i}", "dtype": "float32", "shape": shape} for i, shape in enumerate(shapes)]


def test_a_good_table_is_read_and_travels() -> None:
    """Everything declared is in the manifest, which comes back equal from its encoding."""
    manifest = parse_manifest(_GOOD)
    assert manifest == Manifest(
        name="digits",
        runner="python",
        entry="model:build",
        inputs=(TensorSpec("image", "float32", (-1, 1, 8, 8)),),
        outputs=(TensorSpec("logits", "float32", (-1, 10)),),
        weights=("model.safetensors",),
        idempotent=True,
    )
    assert decode_manifest(manifest.encode()) == manifest
    assert str(manifest.inputs[0]) == "image: float32[*, 1, 8, 8]"


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("nmae", "name"),
        ("runer", "runner"),
        ("entyr", "entry"),
        ("input", "inputs"),
        ("weight", "weights"),
        ("bach", "batch"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(wrong: str, meant: str) -> None:
    """A typing mistake at the top is answered with what was probably meant."""
    failure = _refusal(_GOOD | {wrong: 1})
    assert repr(wrong) in failure.message
    assert failure.hint == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("path", "value", "hint"),
    [
        (("inputs", 0, "dtyp"), "float32", "did you mean 'dtype'?"),
        (("outputs", 0, "dtype"), "flaot32", "did you mean 'float32'?"),
        (("outputs", 0, "dtype"), "complex46", "did you mean 'complex64'?"),
        (("outputs", 0, "dtype"), "float8_e4m3", "did you mean 'float8_e4m3fn'?"),
        (("batch",), {"max_row": 4}, "did you mean 'max_rows'?"),
        (("batch",), {"max_rows": 4, "delay_s": 1}, "did you mean 'delay_ms'?"),
        (("batch",), {"max_rows": 4, "padding": 0}, "did you mean 'pad'?"),
        (("runner",), "pyton", "did you mean 'python'?"),
        (("runner",), "torch_export", "did you mean 'torch-export'?"),
        (("zzz",), 1, "known keys"),
    ],
)
def test_a_misspelt_value_names_the_nearest_one(path: tuple[Any, ...], value: Any, hint: str) -> None:
    """Keys of tensors, dtypes and runners are helped with as well."""
    assert hint in _refusal(_with(path, value)).hint


def test_the_number_of_a_dtype_never_changes() -> None:
    """A dtype travels as its place in this list, between programs of different versions."""
    assert list(ITEM_BYTES.items()) == [
        *(("bool", 1), ("uint8", 1), ("int8", 1), ("int16", 2), ("int32", 4), ("int64", 8)),
        *(("float16", 2), ("bfloat16", 2), ("float32", 4), ("float64", 8)),
        *(("float8_e4m3fn", 1), ("float8_e5m2", 1), ("complex64", 8), ("complex128", 16)),
    ]
    assert tuple(ITEM_BYTES) == DTYPES


@pytest.mark.parametrize(
    ("table", "batch"),
    [
        ({"max_rows": 2}, Batch(2, 0.0, None)),
        ({"max_rows": 1024, "delay_ms": 1000, "pad": None}, Batch(1024, 1000.0, None)),
        ({"max_rows": 16, "delay_ms": 2.5, "pad": -1}, Batch(16, 2.5, -1.0)),
        ({"max_rows": 16, "delay_ms": 0, "pad": 2**53}, Batch(16, 0.0, 2.0**53)),
        (None, None),
    ],
)
def test_batching_is_declared_and_travels(table: Any, batch: Batch | None) -> None:
    """What [batch] says is in the manifest, numbers as floats, and comes back equal from its encoding."""
    manifest = parse_manifest(_GOOD | {"batch": table})
    assert manifest.batch == batch
    if manifest.batch is not None:
        assert (type(manifest.batch.delay_ms), type(manifest.batch.pad)) in ((float, float), (float, type(None)))
    assert decode_manifest(manifest.encode()) == manifest
    assert parse_manifest(_GOOD).batch is None


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({}, "'max_rows' is missing"),
        ([], "must be a table"),
        (16, "must be a table"),
        ("yes", "must be a table"),
        (True, "must be a table"),
        ({"max_rows": 1}, "2 to 1024"),
        ({"max_rows": 1025}, "2 to 1024"),
        ({"max_rows": True}, "2 to 1024"),
        ({"max_rows": 16.0}, "2 to 1024"),
        ({"max_rows": "16"}, "2 to 1024"),
        ({"max_rows": None}, "2 to 1024"),
        ({"max_rows": 2, "delay_ms": -0.1}, "0 to 1000"),
        ({"max_rows": 2, "delay_ms": 1000.1}, "0 to 1000"),
        ({"max_rows": 2, "delay_ms": True}, "finite number"),
        ({"max_rows": 2, "delay_ms": "1"}, "finite number"),
        ({"max_rows": 2, "delay_ms": None}, "finite number"),
        ({"max_rows": 2, "delay_ms": float("nan")}, "finite number"),
        ({"max_rows": 2, "delay_ms": float("inf")}, "finite number"),
        ({"max_rows": 2, "pad": False}, "finite number"),
        ({"max_rows": 2, "pad": "0"}, "finite number"),
        ({"max_rows": 2, "pad": float("-inf")}, "finite number"),
        ({"max_rows": 2, "pad": 2**53 + 1}, "too many digits"),
        ({"max_rows": 2, "pad": 10**400}, "too many digits"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(batch: Any, text: str) -> None:
    """Each wrong type and each number out of range is ``bundle.invalid`` and says what is allowed."""
    assert text in _refusal(_GOOD | {"batch": batch}).message


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        ([[8, 3]], [[-1]], "input t0: float32[8, 3] has none"),
        ([[-1, 3], []], [[-1]], "input t1: float32[] has none"),
        ([[-1, 3]], [[-1], [4]], "output t1: float32[4] has none"),
        ([[-1, 3]], [[]], "output t0: float32[] has none"),
        ([[-1], [-1, 3, -1]], [[-1]], "because of input t1: float32[*, 3, *]"),
    ],
)
def test_a_model_whose_requests_cannot_be_joined_declares_no_batch(inputs: Any, outputs: Any, text: str) -> None:
    """Every first dimension must be free; more than that only with something to fill up with. It says what to do."""
    table = _GOOD | {"inputs": _rows(inputs), "outputs": _rows(outputs)}
    assert parse_manifest(table).batch is None
    failure = _refusal(table | {"batch": {"max_rows": 8}})
    assert text in failure.message
    assert "leave [batch] out" in failure.hint


def test_ragged_requests_are_joined_with_something_to_fill_up_with() -> None:
    """With *pad* inputs may be free in any dimension; outputs may be in any case."""
    table = _GOOD | {"inputs": _rows([[-1, -1], [-1]]), "outputs": _rows([[-1, -1, 2]])}
    assert parse_manifest(table | {"batch": {"max_rows": 8, "pad": 0}}).batch == Batch(8, 0.0, 0.0)
    table = _GOOD | {"inputs": _rows([[-1, 4]]), "outputs": _rows([[-1, -1]])}
    assert parse_manifest(table | {"batch": {"max_rows": 8}}).batch == Batch(8)


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("bool", [0, 1], [2, -1, 0.5]),
        ("uint8", [0, 255], [-1, 256, 0.5]),
        ("int8", [-128, 127], [-129, 128]),
        ("int32", [-(2**31), 2**31 - 1], [2**31, 1.5]),
        ("int64", [-(2**63), 2**53], [2.0**63, 1e300]),
        ("float16", [65504, -65504, 0.1], [65505, 1e9]),
        ("float8_e4m3fn", [448, -448], [449]),
        ("float8_e5m2", [57344], [57345]),
        ("bfloat16", [3.3e38], [3.4e38]),
        ("float32", [3.4e38, 1e-300], [3.5e38]),
        ("complex64", [-3.4e38], [-1e39]),
        ("float64", [1e308], []),
        ("complex128", [1e308], []),
    ],
)
def test_what_is_filled_up_with_is_a_number_of_that_dtype(dtype: str, good: list[float], bad: list[float]) -> None:
    """A *pad* that a ragged input cannot hold is refused when the bundle is packed, not when requests meet."""
    ragged = [{"name": "x", "dtype": dtype, "shape": [-1, -1]}]
    regular = [{"name": "x", "dtype": dtype, "shape": [-1, 7]}]
    for pad in good:
        assert parse_manifest(_GOOD | {"inputs": ragged, "batch": {"max_rows": 2, "pad": pad}}).batch is not None
    for pad in bad:
        assert f"is no {dtype}" in _refusal(_GOOD | {"inputs": ragged, "batch": {"max_rows": 2, "pad": pad}}).message
        assert parse_manifest(_GOOD | {"inputs": regular, "batch": {"max_rows": 2, "pad": pad}}).batch is not None


@pytest.mark.parametrize("key", ["name", "runner", "entry", "inputs", "outputs"])
def test_a_missing_key_is_named(key: str) -> None:
    """What is required and not there is said."""
    assert repr(key) in _refusal({k: v for k, v in _GOOD.items() if k != key}).message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), ""),
        (("name",), "Digits"),
        (("name",), "digits\n"),
        (("name",), "../digits"),
        (("name",), "a" * 64),
        (("name",), 7),
        (("name",), "d\u00eegits"),
        (("entry",), "model"),
        (("entry",), "model:"),
        (("entry",), "model:build()"),
        (("entry",), "model:build\n"),
        (("entry",), "a b:c"),
        (("entry",), ["model:build"]),
        (("weights",), "model.safetensors"),
        (("weights",), [1]),
        (("weights",), ["model.bin"]),
        (("weights",), ["/etc/model.safetensors"]),
        (("weights",), ["../model.safetensors"]),
        (("weights",), ["a/../../model.safetensors"]),
        (("weights",), [".safetensors/"]),
        (("idempotent",), "yes"),
        (("idempotent",), 1),
        (("inputs",), []),
        (("inputs",), {}),
        (("inputs",), "x"),
        (("inputs",), _GOOD["inputs"] * (MAX_TENSORS + 1)),
        (("inputs",), _GOOD["inputs"] * 2),
        (("inputs", 0), "x"),
        (("inputs", 0, "name"), ""),
        (("inputs", 0, "name"), "a b"),
        (("inputs", 0, "name"), "x" * 64),
        (("inputs", 0, "shape"), "8"),
        (("inputs", 0, "shape"), 8),
        (("inputs", 0, "shape"), [1] * (MAX_DIMS + 1)),
        (("inputs", 0, "shape"), [-2]),
        (("inputs", 0, "shape"), [True]),
        (("inputs", 0, "shape"), [1.0]),
        (("inputs", 0, "shape"), [MAX_DIM + 1]),
        (("inputs", 0, "shape"), [None]),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(path: tuple[Any, ...], value: Any) -> None:
    """Each wrong type, form and size ends in ``bundle.invalid``."""
    _refusal(_with(path, value))


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/../b", "../a", "a/..", "a\0b", "//a"]
)
def test_a_path_that_is_not_plainly_inside_is_refused(path: str) -> None:
    """Absolute, empty, dotted and broken paths are no paths of a bundle, nor an exported program's entry."""
    with pytest.raises(BedsitError):
        check_relative_path(path, "archive")
    _refusal(_GOOD | {"runner": "torch-export", "entry": path})


@pytest.mark.parametrize("path", ["a", "a/b", "a.b", ".a", "..a", "a..b/c", "\u00e4/b c"])
def test_a_plain_path_inside_is_allowed(path: str) -> None:
    """Names with dots in them are names."""
    check_relative_path(path, "archive")


def test_limits_are_inclusive() -> None:
    """The greatest counts, dimensions and names that the documentation allows are allowed."""
    row = {"dtype": "bool", "shape": [MAX_DIM] * MAX_DIMS}
    rows = [row | {"name": f"n{i:02}" + "x" * 60} for i in range(MAX_TENSORS)]
    manifest = parse_manifest(_GOOD | {"name": "a" * 63, "inputs": rows, "outputs": rows})
    assert decode_manifest(manifest.encode()) == manifest


def test_a_manifest_that_is_too_long_to_travel_is_refused_at_both_ends() -> None:
    """Very many weights files do not fit; bytes over the limit are not read."""
    manifest = parse_manifest(_GOOD | {"weights": [f"{i}{'w' * 90}.safetensors" for i in range(700)]})
    with pytest.raises(BedsitError):
        manifest.encode()
    with pytest.raises(BedsitError):
        decode_manifest(msgpack.packb(_GOOD | {"entry": "m" * MAX_ENCODED + ":b"}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_spec_admits_what_it_declares_and_nothing_else(dtype: str) -> None:
    """Free dimensions admit any size, fixed ones their own, and the rank and the dtype must agree."""
    spec = TensorSpec("x", dtype, (-1, 3))
    other = "bool" if dtype != "bool" else "uint8"
    assert spec.admits(dtype, (0, 3))
    assert spec.admits(dtype, (7, 3))
    for kind, shape in ((dtype, (7, 4)), (dtype, (7,)), (dtype, (7, 3, 1)), (other, (7, 3))):
        assert not spec.admits(kind, shape)


_ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*_GOOD, "dtype", "shape", "max_rows", "delay_ms", "pad"]) | st.binary(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from([*_GOOD, "batch"]) | st.text(max_size=8) | st.binary(max_size=8), _ANY))
def test_no_table_raises_anything_but_our_error(changes: dict[Any, Any]) -> None:
    """Whatever a worker sends as a manifest, the reader gets a manifest or a BedsitError."""
    for table in (changes, _GOOD | changes):
        try:
            assert isinstance(decode_manifest(msgpack.packb(table)), Manifest)
        except BedsitError as e:
            assert e.code in ("bundle.invalid", "wire.malformed")


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_our_error(data: bytes) -> None:
    """The same for bytes that are no table at all."""
    with pytest.raises(BedsitError):
        decode_manifest(data)
