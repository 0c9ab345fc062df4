"""Several requests as one: stacked, and taken apart as if each had come alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.manifest import DTYPES, TensorSpec
from bedsit.sandbox.worker.stack import Stack
from bedsit.sandbox.worker.tensors import TORCH_DTYPES

_ROWS = st.integers(0, 5)


def _spec(*shape: int) -> TensorSpec:
    return TensorSpec("y", "float32", shape)


def _numbered(*shape: int, start: int = 0) -> torch.Tensor:
    return (torch.arange(torch.Size(shape).numel(), dtype=torch.float32) + start).reshape(shape)


def _refusal(make: Any) -> str:
    with pytest.raises(BedsitError) as caught:
        make()
    return caught.value.code


@settings(deadline=None)
@given(st.lists(_ROWS, min_size=1, max_size=6), st.lists(st.integers(0, 3), max_size=3))
def test_requests_of_one_shape_lie_on_top_of_each_other(rows: list[int], rest: list[int]) -> None:
    """In their order, along the first dimension; each gets its own rows back, as views."""
    requests = [[_numbered(count, *rest, start=100 * index)] for index, count in enumerate(rows)]
    stack = Stack(requests, None)
    (joined,) = stack.inputs
    assert list(joined.shape) == [sum(rows), *rest]
    shares = stack.split(
        [joined * 2, joined.sum()[None].expand(sum(rows))], [_spec(-1, *rest), _spec(-1)], [_spec(-1, *rest)]
    )
    for request, (double, total) in zip(requests, shares, strict=True):
        assert double.equal(request[0] * 2)
        assert total.shape == request[0].shape[:1]
        assert not double.numel() or double._base is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pad", [None, 0.0, 1.0])
def test_every_dtype_can_be_stacked_and_padded(dtype: str, pad: float | None) -> None:
    """Also those that numpy does not know."""
    kind = TORCH_DTYPES[dtype]
    shapes = [(1, 2), (2, 2)] if pad is None else [(1, 2), (2, 3)]
    requests = [[torch.ones(shape).to(kind)] for shape in shapes]
    stack = Stack(requests, pad)
    assert (stack.inputs[0].dtype, stack.inputs[0].shape[0]) == (kind, 3)
    if pad is not None:
        assert stack.inputs[0].to(torch.complex64)[0, 2] == pad
    for request, (share,) in zip(
        requests, stack.split(stack.inputs, *[[TensorSpec("y", dtype, (-1, -1))]] * 2), strict=True
    ):
        assert share.to(torch.complex64).equal(request[0].to(torch.complex64))


_SHAPES = st.lists(st.tuples(_ROWS, st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5)


@settings(deadline=None)
@given(_SHAPES, st.sampled_from([0.0, -1.0, 7.5]))
def test_ragged_requests_are_padded_and_cut_again(shapes: list[tuple[int, int, int]], pad: float) -> None:
    """Every place that no request fills has the declared value; an elementwise model gives what it gives alone."""
    requests = [[_numbered(*shape, start=1)] for shape in shapes]
    stack = Stack(requests, pad)
    (joined,) = stack.inputs
    widest = [max(shape[axis] for shape in shapes) for axis in (1, 2)]
    assert list(joined.shape) == [sum(shape[0] for shape in shapes), *widest]
    at = 0
    for (rows, a, b), request in zip(shapes, requests, strict=True):
        part = joined[at : at + rows].clone()
        assert part[:, :a, :b].equal(request[0])
        part[:, :a, :b] = pad
        assert (part == pad).all()
        at += rows
    shares = stack.split([joined * 3], [_spec(-1, -1, -1)], [_spec(-1, -1, -1)])
    for request, (share,) in zip(requests, shares, strict=True):
        assert share.equal(request[0] * 3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=4))
def test_each_input_is_as_wide_as_its_own_widest(shapes: list[tuple[int, int, int]]) -> None:
    """Two inputs that differ in length, and an output for each: both are cut to their own request's lengths."""
    requests = [[_numbered(rows, a), _numbered(rows, 2, b, start=50)] for rows, a, b in shapes]
    stack = Stack(requests, 0.0)
    assert stack.inputs[0].shape[1] == max(a for _, a, _ in shapes)
    assert stack.inputs[1].shape[2] == max(b for _, _, b in shapes)
    shares = stack.split(
        [stack.inputs[0] + 1, stack.inputs[1].sum(dim=(1, 2))],
        [_spec(-1, -1), _spec(-1)],
        [_spec(-1, -1), _spec(-1, 2, -1)],
    )
    for (x, w), (y, z) in zip(requests, shares, strict=True):
        assert y.equal(x + 1)
        assert z.equal(w.sum(dim=(1, 2)))


def test_a_fixed_dimension_is_not_cut() -> None:
    """An output's dimension that is declared is as long as declared, though an input was padded to the same length."""
    requests = [[torch.ones(1, 3)], [torch.ones(1, 4)]]
    stack = Stack(requests, 0.0)
    shares = stack.split([torch.ones(2, 4), torch.ones(2, 4)], [_spec(-1, 4), _spec(-1, -1)], [_spec(-1, -1)])
    assert [[tuple(part.shape) for part in share] for share in shares] == [[(1, 4), (1, 3)], [(1, 4), (1, 4)]]


def test_an_output_of_another_length_than_the_padding_is_not_cut() -> None:
    """A free dimension that no input has is the model's own."""
    stack = Stack([[torch.ones(1, 3)], [torch.ones(2, 5)]], 0.0)
    shares = stack.split([torch.ones(3, 7), torch.ones(3, 5, 2)], [_spec(-1, -1), _spec(-1, -1, -1)], [_spec(-1, -1)])
    assert [[tuple(part.shape) for part in share] for share in shares] == [[(1, 7), (1, 3, 2)], [(2, 7), (2, 5, 2)]]


def test_padding_that_two_inputs_share_cannot_be_taken_off() -> None:
    """Requests short in the first input, or in the second, all padded to four: nobody can say what an output follows.

    So this is no batch. Where both were as long as each other, or one is declared that long, there is no question.
    """
    lengths = [(2, 4), (4, 2)]
    stack = Stack([[torch.ones(1, a), torch.ones(1, b)] for a, b in lengths], 0.0)
    y, both = torch.ones(2, 4), [_spec(-1, -1)] * 2
    assert _refusal(lambda: stack.split([y], [_spec(-1, -1)], both)) == "output.invalid"
    assert [share[0].shape for share in stack.split([y], [_spec(-1, 4)], both)] == [(1, 4)] * 2
    stack = Stack([[torch.ones(1, a), torch.ones(1, a)] for a in (2, 4)], 0.0)
    assert [share[0].shape for share in stack.split([y], [_spec(-1, -1)], both)] == [(1, 2), (1, 4)]
    stack = Stack([[torch.ones(1, a), torch.ones(1, 4)] for a in (2, 4)], 0.0)
    assert _refusal(lambda: stack.split([y], [_spec(-1, -1)], both)) == "output.invalid"
    takes = [_spec(-1, -1), _spec(-1, 4)]
    assert [share[0].shape for share in stack.split([y], [_spec(-1, -1)], takes)] == [(1, 2), (1, 4)]


@pytest.mark.parametrize("shapes", [[(1, 2), (1, 3)], [(1, 2), (1, 2, 1)], [(2,), (2, 1)]])
def test_requests_of_different_shapes_need_a_pad(shapes: Sequence[tuple[int, ...]]) -> None:
    """Without one they are no batch; nor are requests of different rank, with or without."""
    requests = [[torch.ones(shape)] for shape in shapes]
    with pytest.raises((BedsitError, ValueError)):
        Stack(requests, None)
    if len({len(shape) for shape in shapes}) > 1:
        with pytest.raises((BedsitError, ValueError, RuntimeError)):
            Stack(requests, 0.0)


@pytest.mark.parametrize("shapes", [[(2,), (3,)], [(2,), ()], [()], [(), ()], [(2, 1), (1, 2)]])
def test_the_inputs_of_a_request_have_the_same_rows(shapes: Sequence[tuple[int, ...]]) -> None:
    """And each has some dimension to be stacked along."""
    request = [torch.ones(shape) for shape in shapes]
    assert _refusal(lambda: Stack([request, request], 0.0)) == "input.invalid"


@pytest.mark.parametrize("shape", [(), (0,), (4,), (6,), (1,), (4, 5)])
def test_an_output_has_as_many_rows_as_went_in(shape: tuple[int, ...]) -> None:
    """Else nobody can say whose rows they are: ``output.invalid``."""
    stack = Stack([[torch.ones(2)], [torch.ones(3)]], None)
    assert (
        _refusal(lambda: stack.split([torch.ones(5), torch.ones(shape)], [_spec(-1)] * 2, [_spec(-1)]))
        == "output.invalid"
    )


def test_what_is_one_view_already_is_taken_as_it_is() -> None:
    """The column's view is the input itself; the other columns are concatenated, or padded where they are ragged."""
    whole = _numbered(3, 2)
    requests = [[whole[:1], torch.ones(1, 2)], [whole[1:], torch.ones(2, 3)]]
    stack = Stack(requests, 9.0, [whole, None])
    assert stack.inputs[0].data_ptr() == whole.data_ptr()
    assert stack.inputs[1].tolist() == [[1, 1, 9], [1, 1, 1], [1, 1, 1]]
    shares = stack.split(stack.inputs, [_spec(-1, 2), _spec(-1, -1)], [_spec(-1, 2), _spec(-1, -1)])
    for request, share in zip(requests, shares, strict=True):
        assert all(a.equal(b) for a, b in zip(request, share, strict=True))


def test_one_request_is_a_batch_too() -> None:
    """Nothing is padded and nothing cut."""
    x = _numbered(2, 3)
    stack = Stack([[x]], None)
    assert stack.inputs[0].equal(x)
    ((share,),) = stack.split([x + 1], [_spec(-1, -1)], [_spec(-1, -1)])
    assert share.equal(x + 1)
