"""The error tree: stable codes, exit codes, and reading errors that a peer made up."""

from copy import copy
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.ipc.errors import CODES, BedsitError, Internal, NotFound, WorkerFailed, error, error_from_wire
from bedsit.ipc.frames import decode_body

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_every_code_has_a_class_of_the_tree_and_a_documented_exit_code() -> None:
    """The table is the contract: each code is lower case with dots, and each class says how a program ends."""
    for code, kind in CODES.items():
        assert issubclass(kind, BedsitError)
        assert all(part.replace("_", "").isalpha() and part.islower() for part in code.split("."))
        assert kind.exit_code in {1, 2, 3, 4, 5, 6, 7, 8, 69, 130}
    assert CODES["tenant.not_found"].exit_code == 4
    assert CODES["key.invalid"].exit_code == 5
    assert CODES["deadline.exceeded"].exit_code == 8
    assert CODES["router.unavailable"].exit_code == 69


def test_an_unknown_code_cannot_be_raised_by_us() -> None:
    """A typing mistake in a code is found at once."""
    with pytest.raises(KeyError):
        error("tenant.not_fuond", "no")


@pytest.mark.parametrize("code", CODES)
def test_an_error_survives_the_wire(code: str) -> None:
    """Class, code, message, hint and detail come back from msgpack as they went in."""
    sent = error(code, "what", "do this", needed={"y": 8})
    got = error_from_wire(decode_body(msgpack.packb(sent.to_wire())))
    assert type(got) is CODES[code]
    assert (got.code, got.message, got.hint, got.detail) == (code, "what", "do this", {"needed": {"y": 8}})
    assert str(got) == f"{code}: what (do this)"


@pytest.mark.parametrize("code", CODES)
def test_a_copy_is_the_same_error_without_its_traceback(code: str) -> None:
    """Many callers that fail for one reason each raise one of their own."""
    try:
        raise error(code, "what", "do this", needed=[8])
    except BedsitError as e:
        made = copy(e)
        assert (type(made), made.args, str(made), made.detail) == (type(e), e.args, str(e), e.detail)
        assert made.__traceback__ is None


def test_a_code_of_a_newer_version_is_kept() -> None:
    """A code that this version does not know is an error of the plain class, with its code."""
    got = error_from_wire({"code": "quota.new", "message": "later"})
    assert type(got) is BedsitError
    assert (got.code, got.message, got.hint, got.exit_code) == ("quota.new", "later", "", 1)


@pytest.mark.parametrize("fields", [None, 7, b"", [], {}, {"code": 7}, {"code": None, "message": "x"}])
def test_what_is_no_error_is_internal(fields: Any) -> None:
    """An unreadable error is an error too."""
    assert type(error_from_wire(fields)) is Internal


def test_long_texts_are_cut() -> None:
    """A peer cannot make us print a megabyte."""
    got = error_from_wire({"code": "model.failed", "message": "m" * 10**6, "hint": "h" * 10**6})
    assert type(got) is WorkerFailed
    assert len(got.message) == len(got.hint) == 4096


@given(_VALUES)
def test_reading_an_error_never_raises(fields: Any) -> None:
    """Whatever value a peer sends as an error, reading it gives one."""
    assert isinstance(error_from_wire(fields), BedsitError)


@given(_VALUES, _VALUES, _VALUES)
def test_reading_odd_fields_never_raises(message: Any, hint: Any, detail: Any) -> None:
    """Fields of any type do: those that are no text are left out."""
    got = error_from_wire({"code": "model.not_found", "message": message, "hint": hint, "detail": detail})
    assert type(got) is NotFound
    assert isinstance(got.message + got.hint, str)


def test_a_text_that_is_a_deeply_nested_list_does_no_harm() -> None:
    """A thousand lists in each other as the message: no recursion, no text."""
    body = b"\x82\xa4code\xa8internal\xa7message" + b"\x91" * 1000 + b"\x01"
    got = error_from_wire(decode_body(body))
    assert (got.code, got.message) == ("internal", "")
