"""Tensors in words: what ``bedsit infer`` reads and prints."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from bedsit.cli.tensors import describe_outputs, preview, read_inputs, save_outputs
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.manifest import Manifest, TensorSpec


def make_manifest(*dtypes: str) -> Manifest:
    """A model with inputs a, b, ... of these dtypes, and the same outputs."""
    specs = tuple(TensorSpec(name, dtype, (-1,)) for name, dtype in zip("abcdef", dtypes, strict=False))
    return Manifest("m", "python", "model:build", specs, specs)


def test_json_takes_the_declared_dtype(tmp_path: Path) -> None:
    """From the command line, from a file, from stdin."""
    (tmp_path / "b.json").write_text("[1, 2]")
    manifest = make_manifest("float32", "int64", "bool")
    given = read_inputs(["a=[1, 2.5]", f"b={tmp_path}/b.json", "c=-"], manifest, io.StringIO("[true, false]"))
    assert {name: (a.dtype.name, a.tolist()) for name, a in given.items()} == {
        "a": ("float32", [1.0, 2.5]),
        "b": ("int64", [1, 2]),
        "c": ("bool", [True, False]),
    }


def test_the_only_input_needs_no_name() -> None:
    """One input: its value is enough."""
    assert read_inputs(["[1]"], make_manifest("uint8"), io.StringIO())["a"].tolist() == [1]


def test_npy_files_are_read_as_they_are(tmp_path: Path) -> None:
    """Their dtype is theirs; the client compares it with the model's."""
    np.save(tmp_path / "x.npy", np.arange(3, dtype="int16"))
    assert read_inputs([f"a={tmp_path}/x.npy"], make_manifest("float32"), io.StringIO())["a"].dtype == np.int16


def test_a_pickled_npy_file_is_refused(tmp_path: Path) -> None:
    """Reading somebody's file runs nothing."""
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BedsitError, match="allow_pickle"):
        read_inputs([f"a={tmp_path}/x.npy"], make_manifest("float32"), io.StringIO())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["b=[1]"], "takes no input 'b'"),
        (["a=[1]", "a=[2]"], "given twice"),
        ([], "also takes a: float32"),
        (["a=nonsense"], "not JSON"),
        (["a=[[1], [2, 3]]"], "not a tensor of float32"),
        (['a=["x"]'], "not a tensor of float32"),
        (["a=missing.npy"], "cannot read missing.npy"),
        (["a=missing.json"], "cannot read missing.json"),
    ],
)
def test_bad_inputs_say_what_is_wrong(words: list[str], why: str) -> None:
    """One line per mistake, before anything is sent."""
    with pytest.raises(BedsitError) as caught:
        read_inputs(words, make_manifest("float32"), io.StringIO())
    assert caught.value.code == "input.invalid"
    assert why in caught.value.message


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint8", "[300]"), ("int8", "[-129]"), ("int64", "[1.5]"), ("bool", "[0.5]")]
)
def test_numbers_that_do_not_fit_are_refused(dtype: str, value: str) -> None:
    """Nothing wraps around or loses its fraction silently."""
    with pytest.raises(BedsitError):
        read_inputs([value], make_manifest(dtype), io.StringIO())


def test_not_a_number_goes_both_ways() -> None:
    """JSON has no word for them; we use strings, in and out."""
    manifest = make_manifest("float32")
    array = read_inputs(['["NaN", "Infinity", "-Infinity", 1]'], manifest, io.StringIO())["a"]
    (row,) = describe_outputs({"a": array}, manifest)
    assert json.loads(json.dumps(row, allow_nan=False))["data"] == ["NaN", "Infinity", "-Infinity", 1.0]


def test_bfloat16_is_rounded_as_torch_does_and_printed_as_numbers() -> None:
    """There is no such dtype in numpy: it travels as its bits."""
    torch = pytest.importorskip("torch")
    values = [1.0, 3.14159, -2.7e20, 1e-3, 65504.1]
    manifest = make_manifest("bfloat16")
    array = read_inputs([json.dumps(values)], manifest, io.StringIO())["a"]
    expected = torch.tensor(values).to(torch.bfloat16)
    assert array.tolist() == expected.view(torch.int16).numpy().view(np.uint16).tolist()
    (row,) = describe_outputs({"a": array}, manifest)
    assert row["dtype"] == "bfloat16"
    assert row["data"] == expected.float().tolist()


def test_previews_are_short() -> None:
    """The first eight values, however deep they lie."""
    manifest = make_manifest("float32")
    (row,) = describe_outputs({"a": np.arange(20, dtype="float32").reshape(2, 10)}, manifest)
    assert preview(row) == "0 1 2 3 4 5 6 7 ..."
    assert row["shape"] == [2, 10]


def test_outputs_are_saved(tmp_path: Path) -> None:
    """One file per output, the folder is made."""
    (path,) = save_outputs({"a": np.ones(3, "float32")}, tmp_path / "new" / "out")
    assert path == tmp_path / "new" / "out" / "a.npy"
    assert np.load(path).tolist() == [1, 1, 1]
