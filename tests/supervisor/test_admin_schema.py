"""Requests of the admin API: strict, and helpful about what is wrong."""

from typing import get_args

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.admin import schema, server


def ask(op: str, **args: object) -> object:
    """Read a request."""
    return schema.read_request({"v": 1, "op": op, "args": args})


def test_reads_requests_with_defaults() -> None:
    """What is left out has its default."""
    assert ask("tenant.create", name="vision") == schema.TenantCreate("vision")
    assert ask("model.deploy", tenant="a", name="m.1", size=1, digest="0" * 64, timeout_s=2) == schema.ModelDeploy(
        tenant="a", name="m.1", size=1, digest="0" * 64, timeout_s=2.0
    )
    assert schema.read_request({"v": 1, "op": "ping"}) == schema.Ping()


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("text", "not a request"),
        ({"op": "ping"}, "missing required field `v`"),
        ({"v": 2, "op": "ping"}, "version 2"),
        ({"v": 1, "op": "ping", "more": 1}, "unknown field"),
        ({"v": 1, "op": "pong"}, "did you mean 'ping'?"),
        ({"v": 1, "op": "tenant.show", "args": {"nam": "a"}}, "did you mean 'name'?"),
        ({"v": 1, "op": "tenant.show", "args": {}}, "missing required field `name`"),
        ({"v": 1, "op": "tenant.show", "args": {"name": "A"}}, "matching regex"),
        ({"v": 1, "op": "tenant.show", "args": {"name": "a\n"}}, "matching regex"),
        ({"v": 1, "op": "tenant.show", "args": {"op": "down", "name": "a"}}, "takes no 'op'"),
        ({"v": 1, "op": "tenant.set", "args": {"name": "a", "cpus": float("nan")}}, "cpus"),
        ({"v": 1, "op": "tenant.set", "args": {"name": "a", "memory_bytes": -1}}, "memory_bytes"),
        ({"v": 1, "op": "tenant.set", "args": {"name": "a", "cpu_weight": 0}}, "set: cpu_weight takes 1 to 10000"),
        (
            {"v": 1, "op": "tenant.set", "args": {"name": "a", "cores": "x"}},
            "set: cores takes a list like 0-3,6, or all",
        ),
        ({"v": 1, "op": "events", "args": {"limit": 0}}, "limit"),
    ],
)
def test_names_what_is_wrong(message: object, says: str) -> None:
    """Every mistake is request.invalid."""
    with pytest.raises(BedsitError) as refused:
        schema.read_request(message)

    assert refused.value.code == "request.invalid"
    assert says in str(refused.value)


def test_every_request_has_a_handler() -> None:
    """Nothing can be asked that nobody answers."""
    assert set(server._HANDLERS) == set(get_args(schema.Request))
