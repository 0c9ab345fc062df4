"""Requests of the admin API: strict, and helpful about what is wrong."""

import math
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
        ({"v": 1, "op": "tenant.set", "args": {"name": "a", "wieght": 1}}, "did you mean 'weight'?"),
        ({"v": 1, "op": "model.set", "args": {"tenant": "a", "name": "m", "weight": 1}}, "takes no 'weight'"),
        ({"v": 1, "op": "device.partition.plan", "args": {"gpu": "MIG-1"}}, "plan: gpu takes the beginning of a GPU's"),
        ({"v": 1, "op": "device.partition.plan", "args": {"gpus": "0"}}, "did you mean 'gpu'?"),
        ({"v": 1, "op": "device.partition.apply", "args": {"token": "no"}}, "apply: token takes the word that"),
        ({"v": 1, "op": "model.set", "args": {"tenant": "a"}}, "missing required field `name`"),
    ],
)
def test_names_what_is_wrong(message: object, says: str) -> None:
    """Every mistake is request.invalid."""
    with pytest.raises(BedsitError) as refused:
        schema.read_request(message)

    assert refused.value.code == "request.invalid"
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("weight", (0, 10_001, -1, 1.5, "100", True), "1 to 10000"),
        ("service_class", ("", "fast", "Batch", 1), "realtime, interactive or batch"),
        ("min_share", (-0.01, 1.01, math.nan, math.inf, "1"), "0 to 1"),
        ("rate_per_s", (-1, 1e6 + 1, math.nan, math.inf, -math.inf), "0 to 1000000 requests a second, 0 for no limit"),
        ("burst", (0, 100_001), "1 to 100000"),
        ("concurrency_max", (-1, 10_001), "0 to 10000, 0 for no limit"),
        ("queue_max", (0, 100_001), "1 to 100000"),
        ("queue_bytes_max", ((64 << 10) - 1, (16 << 30) + 1), "64 KiB to 16 GiB"),
        ("sessions_max", (0, 100_001), "1 to 100000"),
        ("restart", ("", "always", "Permanent", 1), "permanent, transient or temporary"),
        ("restarts_max", (-1, 10_001, 1.5, math.nan), "0 to 10000, 0 for no limit"),
        ("restart_period_s", (0, 0.999, 86_401, math.nan, math.inf), "1 to 86400 seconds"),
        ("quarantine_after", (-1, 1001), "0 to 1000, 0 for never"),
        ("min_slots", (-1, 1025), "0 to 1024"),
        ("max_slots", (0, 1025), "1 to 1024"),
        ("idle_s", (-1, 31_536_001, math.nan, math.inf, "5m"), "0 to 31536000 seconds, 0 for never"),
        ("run_max_s", (-0.1, 86_401, math.nan), "0 to 86400 seconds, 0 for no limit"),
    ],
)
@pytest.mark.parametrize("op", ["tenant.create", "tenant.set"])
def test_a_limit_out_of_its_range_is_told_the_range(op: str, name: str, values: tuple[object, ...], words: str) -> None:
    """In words, with the argument's name; the same for a new tenant and for one that is there."""
    for value in values:
        with pytest.raises(BedsitError) as refused:
            ask(op, name="vision", **{name: value})
        assert (refused.value.code, refused.value.message) == ("request.invalid", f"{op}: {name} takes {words}")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("rate_per_s", (-1, math.nan), "0 to 1000000 requests a second, 0 for no limit"),
        ("burst", (0,), "1 to 100000"),
        ("concurrency_max", (-1,), "0 to 10000, 0 for no limit"),
        ("queue_max", (-1, 100_001), "0 to 100000, 0 for no limit but the tenant's"),
        ("priority", (-1, 3, "high"), "0, 1 or 2"),
    ],
)
def test_a_models_limit_out_of_its_range_is_told_the_range(name: str, values: tuple[object, ...], words: str) -> None:
    """A model's queue may be 0 where a tenant's may not, and says so."""
    for value in values:
        with pytest.raises(BedsitError) as refused:
            ask("model.set", tenant="vision", name="echo", **{name: value})
        assert refused.value.message == f"model.set: {name} takes {words}"


def test_the_ends_of_the_ranges_are_taken() -> None:
    """As they are."""
    least = {"weight": 1, "min_share": 0, "rate_per_s": 0, "burst": 1, "concurrency_max": 0, "queue_max": 1}
    most = {"weight": 10_000, "min_share": 1, "rate_per_s": 1e6, "burst": 100_000, "queue_bytes_max": 16 << 30}
    fewest = {"restarts_max": 0, "restart_period_s": 1, "quarantine_after": 0, "min_slots": 0, "max_slots": 1}
    longest = {"restarts_max": 10_000, "restart_period_s": 86_400, "idle_s": 31_536_000, "run_max_s": 86_400}
    for said in (least, most, fewest, longest):
        assert ask("tenant.set", name="a", **said) == schema.TenantSet("a", **said)
    said = {"rate_per_s": 0.0, "burst": 1, "concurrency_max": 0, "queue_max": 0, "priority": 0}
    assert ask("model.set", tenant="a", name="m", **said) == schema.ModelSet("a", "m", **said)  # type: ignore[arg-type]


def test_every_request_has_a_handler() -> None:
    """Nothing can be asked that nobody answers."""
    assert set(server._HANDLERS) == set(get_args(schema.Request))
