"""Which failures are worth another try, and how many."""

from typing import Any

import pytest

from bedsit.ipc.errors import CODES, error
from bedsit.ipc.trial import Trial
from tests_support.packets import make_info

_KEY = ("m", 0)
_SAME = make_info()
_ONCE = make_info(idempotent=False)
_TOLD = ("model.moved", "output.too_small")
_GONE = ("router.unavailable", "router.restarted")


def _tries(code: str, info: Any = _SAME, *, learns: bool = True, most: int = 50) -> int:
    """How often one call may try again when every try fails with *code*."""
    trial = Trial()
    for count in range(most):
        models = {} if info is None else {_KEY: info}
        if not trial.may_try_again(error(code, "no"), models, _KEY, lambda _info, _failure: learns):
            return count
    return most


@pytest.mark.parametrize("code", sorted(set(CODES) - {*_TOLD, *_GONE}))
def test_other_failures_are_final(code: str) -> None:
    """Nothing is repeated that would fail again, or that the caller has to decide."""
    assert _tries(code) == 0


def test_a_request_that_may_have_run_runs_once_more_only_where_that_is_harmless() -> None:
    """After a restart: once for an idempotent model, or where the model was not even known; never for another one."""
    assert _tries("router.restarted") == 1
    assert _tries("router.restarted", None) == 1
    assert _tries("router.restarted", _ONCE) == 0


def test_a_request_that_never_left_is_sent_again_whatever_its_model_is() -> None:
    """The router was gone before: twice, so that a call survives a restart between two of its packets."""
    assert _tries("router.unavailable") == _tries("router.unavailable", _ONCE) == 2
    assert _tries("router.unavailable", None) == 2


def test_a_moved_default_is_asked_for_anew() -> None:
    """All that was believed about models is forgotten first."""
    models = {_KEY: _SAME, ("other", 3): _ONCE}
    assert Trial().may_try_again(error("model.moved", ""), models, _KEY, lambda *_: False)
    assert models == {}


def test_outputs_that_were_too_large_are_tried_with_what_they_need() -> None:
    """If that is news: it goes with the model that was called; a model that is not known cannot have sizes."""
    learnt: list[Any] = []
    failure = error("output.too_small", "", needed=[9])

    def learn(*what: Any) -> bool:
        learnt.append(what)
        return len(learnt) == 1

    trial = Trial()
    assert trial.may_try_again(failure, {_KEY: _SAME}, _KEY, learn)
    assert not trial.may_try_again(failure, {_KEY: _SAME}, _KEY, learn)
    assert learnt == [(_SAME, failure)] * 2
    assert not Trial().may_try_again(failure, {}, _KEY, learn)
    assert len(learnt) == 2


@pytest.mark.parametrize("code", _TOLD)
def test_a_worker_cannot_make_a_client_try_for_ever(code: str) -> None:
    """A model may raise any error of ours, again and again, with ever larger sizes: some tries, and that was it."""
    assert 2 <= _tries(code, most=1000) < 20


def test_kinds_of_failures_are_counted_apart() -> None:
    """A call that had to learn sizes still survives a restart, and the other way round."""
    trial = Trial()
    models = {_KEY: _SAME}
    for code, expected in (
        ("output.too_small", True),
        ("router.unavailable", True),
        ("router.restarted", True),
        ("router.unavailable", True),
        ("output.too_small", True),
        ("router.restarted", False),
        ("router.unavailable", False),
    ):
        assert trial.may_try_again(error(code, ""), models, _KEY, lambda *_: True) is expected
