"""What a call gives, and when the memory that it lies in is given back."""

import copy
import gc
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from bedsit.ipc.arena import PAGE
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.result import Result
from bedsit.ipc.session import Session
from tests_support.packets import answer, arena_ref, inline_ref, make_info, make_session, take_apart

_SIZE = 1 << 20
_ELEMENTS = 5000
_ROOM = 5 * PAGE
_INFO = make_info(outputs=[("y", "float32", (-1,)), ("z", "float32", (-1,))])


def _call(session: Session, *, z_inline: bool = False) -> Result:
    """A result of two outputs in the arena, or of one there and one of its own."""
    pending, packet = session.begin(_INFO, None, {"x": np.zeros(_ELEMENTS, np.float32)}, 0)
    y, z = take_apart(packet).regions
    session.arena._map[y.offset : y.offset + 8] = np.array([1, 2], np.float32).tobytes()
    second = inline_ref((2,)) if z_inline else arena_ref((_ELEMENTS,), z.offset)
    body = np.array([7, 8], np.float32).tobytes() if z_inline else b""
    session.accept(answer(pending.id, arena_ref((_ELEMENTS,), y.offset), second, body=body))
    result: Result = pending.take()
    return result


def _refusal(result: Result) -> BedsitError:
    with pytest.raises(BedsitError) as caught:
        result.release()
    assert caught.value.code == "arena.in_use"
    caught.value.__traceback__ = None
    return caught.value


@pytest.mark.parametrize("tensors", ["numpy", "torch"])
def test_release_gives_the_memory_back_at_once(tensors: Any) -> None:
    """No collector has to run; afterwards the result is empty, and releasing it again is nothing."""
    session = make_session(_SIZE, tensors)
    gc.disable()
    try:
        result = _call(session)
        assert session.arena.free_bytes() == _SIZE - 2 * _ROOM
        result.release()
        assert session.arena.free_bytes() == _SIZE
    finally:
        gc.enable()
    assert result == {}
    result.release()


@pytest.mark.parametrize("tensors", ["numpy", "torch"])
def test_dropping_a_result_gives_the_memory_back_too(tensors: Any) -> None:
    """Whoever knows nothing of ``release`` leaves nothing behind."""
    session = make_session(_SIZE, tensors)
    gc.disable()
    try:
        result = _call(session)
        del result
        assert session.arena.free_bytes() == _SIZE
    finally:
        gc.enable()


def test_a_with_block_releases_at_its_end() -> None:
    """The usual way: what was computed inside is kept, the memory is not."""
    session = make_session(_SIZE)
    with _call(session) as result:
        total = float(result["y"][:2].sum())
    assert total == 3.0
    assert result == {}
    assert session.arena.free_bytes() == _SIZE


def test_a_with_block_that_fails_says_why_it_failed() -> None:
    """An exception of the caller's own is not replaced by one about views, and the result lets go of its memory."""
    session = make_session(_SIZE)
    with pytest.raises(KeyError), _call(session) as result:
        view = result["y"][1:]
        raise KeyError("own")
    assert result == {}
    del view
    gc.collect()
    assert session.arena.free_bytes() == _SIZE


@pytest.mark.parametrize("tensors", ["numpy", "torch"])
@pytest.mark.parametrize("keep", [lambda y: y, lambda y: y[100:], lambda y: y.reshape(50, 100).T])
def test_a_view_that_is_held_is_said_and_stays_valid(tensors: Any, keep: Any) -> None:
    """``arena.in_use`` names the output; it stays in the result as what it was, and can be released later."""
    session = make_session(_SIZE, tensors)
    result = _call(session)
    view = keep(result["y"])
    kind = type(result["y"])
    failure = _refusal(result)
    assert "y" in failure.message
    assert "z" not in failure.message
    assert type(result["y"]) is kind
    assert result["y"][:2].tolist() == [1, 2]
    _refusal(result)
    del view
    result.release()
    assert session.arena.free_bytes() == _SIZE


def test_a_view_through_another_library_is_a_view() -> None:
    """A tensor made of an array, a memory view and a buffer hold the memory as well."""
    session = make_session(_SIZE)
    for make in (
        torch.from_numpy,
        memoryview,
        lambda y: np.frombuffer(memoryview(y), np.uint8),
        torch.utils.dlpack.from_dlpack,
    ):
        result = _call(session)
        view = make(result["y"])
        _refusal(result)
        del view
        result.release()
        assert session.arena.free_bytes() == _SIZE


def test_a_request_that_takes_an_output_as_its_input_holds_it() -> None:
    """Memory that is under way to a model is not given back under its feet."""
    session = make_session(_SIZE)
    result = _call(session)
    pending, _ = session.begin(_INFO, None, {"x": result["y"]}, 0)
    _refusal(result)
    session.accept(answer(pending.id, inline_ref((1,)), inline_ref((1,), 64), body=bytes(68)))
    result.release()
    del pending
    gc.collect()
    assert session.arena.free_bytes() == _SIZE


def test_outputs_of_their_own_may_be_kept() -> None:
    """What came in the packet belongs to nobody else: releasing asks nothing about it, and only drops it."""
    session = make_session(_SIZE)
    result = _call(session, z_inline=True)
    z = result["z"]
    result.release()
    assert z.tolist() == [7, 8]
    result = _call(session, z_inline=True)
    y = result["y"]
    _refusal(result)
    assert sorted(result) == ["y", "z"]
    assert result["z"].tolist() == [7, 8]
    del y
    result.release()
    assert session.arena.free_bytes() == _SIZE


def test_an_output_that_is_a_view_of_an_input_is_the_callers() -> None:
    """A model may give back what it was given: then the input's owner holds the memory, and releasing is no error."""
    session = make_session(_SIZE)
    x = session.arena.empty(_ELEMENTS, "float32")
    x[...] = 4.0
    pending, packet = session.begin(_INFO, None, {"x": x}, 0)
    sent = take_apart(packet)
    refs = arena_ref((10,), sent.refs[0].offset + 40), arena_ref((1,), sent.regions[1].offset)
    session.accept(answer(pending.id, *refs))
    result = pending.take()
    assert result["y"].tolist() == [4.0] * 10
    assert np.shares_memory(result["y"], x)
    result.release()
    assert x[0] == 4.0
    del x, pending
    gc.collect()
    assert session.arena.free_bytes() == _SIZE


def test_an_output_that_the_caller_replaced_is_not_asked_for() -> None:
    """Only the memory counts, not what stands in the result meanwhile."""
    session = make_session(_SIZE)
    result = _call(session)
    result["y"] = result["y"].copy()
    del result["z"]
    result.release()
    assert session.arena.free_bytes() == _SIZE


def test_copies_are_plain_dicts_that_give_nothing_back() -> None:
    """A result can be copied, pickled and sent to another process: arrays travel, the loan does not."""
    session = make_session(_SIZE)
    result = _call(session)
    for make in (lambda r: pickle.loads(pickle.dumps(r)), copy.deepcopy):
        made = make(result)
        assert type(made) is dict
        assert made["y"][:2].tolist() == [1, 2]
        assert not np.shares_memory(made["y"], result["y"])
    shallow = copy.copy(result)
    assert type(shallow) is dict
    assert shallow["y"] is result["y"]
    shallow.clear()
    del made
    result.release()
    assert session.arena.free_bytes() == _SIZE


def test_a_result_is_a_dict() -> None:
    """Everything that works on a mapping of arrays works."""
    result = _call(make_session(_SIZE))
    assert isinstance(result, dict)
    assert list(result) == ["y", "z"]
    assert {name: value.shape for name, value in result.items()} == {"y": (_ELEMENTS,), "z": (_ELEMENTS,)}
    assert {**result}.keys() == result.keys()
