"""Partitions as they are written in the configuration: what is refused when it is read, and whose GPU is meant."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.config import load_config
from bedsit.supervisor.devices.model import Box, Gpu, Trouble
from bedsit.supervisor.devices.partitions.declared import Part, find_gpus, pick, read_partitions

ONE = "GPU-8f3a0000-0000-0000-0000-000000000000"
TWO = "GPU-8f3b0000-0000-0000-0000-000000000000"
BOX = Box(gpus=(Gpu(ONE, 0), Gpu(TWO, 1)))


def load(tmp_path: Path, text: str) -> object:
    """The configuration with this in it."""
    file = tmp_path / "bedsit.toml"
    file.write_text(text)
    return load_config(file, {})


def test_a_declaration_is_read() -> None:
    """Profiles with and without a place, those with a plus or a minus too, and a GPU that is to be empty."""
    table = {ONE: ["3g.71gb@4", "1g.18gb+me", "1g.24gb-me", "2g.48gb+me.all@0"], "1": [], "GPU-8f3b": ["1g.18gb"]}
    read = {each.key: each.parts for each in read_partitions(table)}
    assert read[ONE] == (Part("3g.71gb", 4), Part("1g.18gb+me"), Part("1g.24gb-me"), Part("2g.48gb+me.all", 0))
    assert (read["1"], read["GPU-8f3b"]) == ((), (Part("1g.18gb"),))
    assert str(read[ONE][0]) == "3g.71gb@4"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[devices.partitions]\n"GPU-8F3A" = []', "'GPU-8F3A' is no GPU"),
        ("[devices.partitions]\nMIG-1 = []", "'MIG-1' is no GPU"),
        ('[devices.partitions]\n"100" = []', "'100' is no GPU"),
        ('[devices.partitions]\n"" = []', "'' is no GPU"),
        ('[devices.partitions]\n0 = ["3g"]', "devices.partitions.0: '3g' is no part of a GPU"),
        ('[devices.partitions]\n0 = ["MIG 3g.40GB"]', "did you mean '3g.40gb'?"),
        ('[devices.partitions]\n0 = ["1c.3g.40gb"]', "did you mean '3g.40gb'?"),
        ('[devices.partitions]\n0 = ["3g.40gb@"]', "'3g.40gb@' is no part of a GPU"),
        ('[devices.partitions]\n0 = ["3g.40gb@-1"]', "is no part of a GPU"),
        ('[devices.partitions]\n0 = ["3g.40gb@4", "1g.10gb@4"]', "3g.40gb@4 and 1g.10gb@4 overlap"),
        (('[devices.partitions]\n0 = ["1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb", '
         '"1g.10gb", "1g.10gb"]'), "9 parts, and no GPU has room for over 8"),
        ('[devices.partitions]\n0 = "1g.10gb"', "Expected `array`, got `str`"),
        ("[devices.partitions]\n0 = [1]", "Expected `str`, got `int`"),
        ("[devices]\npartitions = []", "Expected `object`, got `array`"),
        ('[devices]\ncreate_missing = "no"', "Expected `bool`, got `str`"),
        ("[devices]\npartition = {}", "did you mean 'partitions'?"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_when_it_is_read(tmp_path: Path, text: str, says: str) -> None:
    """By the key, with what is wrong, and what would be right."""
    with pytest.raises(BedsitError) as refused:
        load(tmp_path, text)
    assert refused.value.code == "config.invalid"
    assert says in str(refused.value)


def test_more_gpus_than_any_box_has_are_refused() -> None:
    """A bound, as for everything that is read."""
    with pytest.raises(BedsitError, match="65 GPUs, at most 64"):
        read_partitions({f"GPU-{number:08x}": [] for number in range(65)})


@given(st.dictionaries(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=4), max_size=3))
def test_any_table_is_a_declaration_or_an_error_of_ours(table: dict[str, list[str]]) -> None:
    """Whatever is written."""
    try:
        read = read_partitions(table)
    except BedsitError as refused:
        assert refused.code == "config.invalid"
    else:
        assert [each.key for each in read] == list(table)


@pytest.mark.parametrize("key", ["0", ONE, "GPU-8f3a"])
def test_a_gpu_is_found_by_uuid_its_beginning_or_index(key: str) -> None:
    """Each names it."""
    (found,) = find_gpus(read_partitions({key: []}), BOX)
    assert (found.gpu, found.trouble) == (BOX.gpus[0], None)


@pytest.mark.parametrize(
    ("keys", "box", "what", "mend"),
    [
        (["GPU-8f3"], BOX, f"'GPU-8f3' may be {ONE}, {TWO}", "write more of its UUID"),
        (["7"], BOX, "there is no GPU '7'", f"0 is {ONE}"),
        (["GPU-9"], Box(), "there is no GPU 'GPU-9'", "this box has no GPU"),
        (["0", "GPU-8f3a"], BOX, f"'0' and 'GPU-8f3a' are the same GPU, {ONE}", "keep one of them"),
        (["0"], Box(trouble=Trouble("no driver runs", "modprobe nvidia")), "was not found: no driver runs", "modprobe"),
    ],
)  # fmt: skip
def test_a_gpu_that_cannot_be_told_is_explained(keys: list[str], box: Box, what: str, mend: str) -> None:
    """Several, none, one that another key names as well, or a box whose GPUs nobody can see."""
    found = next(iter(find_gpus(read_partitions({key: [] for key in keys}), box)))
    assert found.gpu is None
    assert found.trouble is not None
    assert what in found.trouble.what
    assert mend in found.trouble.mend


def test_one_of_the_declared_gpus_is_picked_by_what_it_is_called() -> None:
    """By its key, by its UUID; not where nothing or too much is meant."""
    founds = tuple(find_gpus(read_partitions({"0": [], "GPU-8f3b": []}), BOX))
    assert pick(founds, "0") == (founds[0],)
    assert pick(founds, ONE) == (founds[0],)
    assert pick(founds, "GPU-8f3b") == (founds[1],)
    with pytest.raises(BedsitError, match="may be GPU-8f3a"):
        pick(founds, "GPU-8")
    with pytest.raises(BedsitError, match="declared are: 0, GPU-8f3b") as refused:
        pick(founds, "GPU-7")
    assert refused.value.code == "device.not_found"
    with pytest.raises(BedsitError, match="declare them in"):
        pick((), "GPU-7")
