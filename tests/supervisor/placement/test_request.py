"""What tenants may ask of devices, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.ipc.errors import InvalidRequest
from bedsit.supervisor.placement.profiles import TABLES
from bedsit.supervisor.placement.request import Request, parse_request


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("mig:1g.18gb", Request("mig", profile="1g.18gb")),
        ("mig:1g.10gb+me", Request("mig", profile="1g.10gb+me")),
        ("gpu", Request("exclusive")),
        ("gpu:0.25", Request("timeslice", share_milli=250)),
        ("gpu:0.001", Request("timeslice", share_milli=1)),
        ("gpu:0.999", Request("timeslice", share_milli=999)),
        ("cpu:2", Request("cpu", cores=2)),
    ],
)
def test_each_form_is_understood_and_written_back(text: str, request_: Request) -> None:
    """And means one thing only."""
    assert parse_request(text) == request_
    assert str(request_) == text


def test_constraints_are_taken_over() -> None:
    """All of them at once."""
    request = parse_request(
        "gpu:0.5",
        memory_bytes=8 << 30,
        model="H200",
        near=["a"],
        apart=["b", "c"],
        min_share=0.25,
        service_class="batch",
        trusted=True,
    )

    assert (request.memory_bytes, request.model, request.service_class, request.trusted) == (
        8 << 30,
        "H200",
        "batch",
        True,
    )
    assert (request.near, request.apart, request.min_share_milli) == ({"a"}, {"b", "c"}, 250)
    assert request.shape == parse_request(
        "gpu:0.5", memory_bytes=8 << 30, model="H200", min_share=0.25, service_class="batch", trusted=True
    )


@pytest.mark.parametrize(
    "text",
    [
        "mig",
        "mig:",
        "mig:1g",
        "mig:0g.5gb",
        "mig:1g.0gb",
        "mig:-1g.10gb",
        "mig:1g.10gb+",
        "mig:1g.10gb+me+me",
        "mig:1g.99999gb",
        "MIG:1g.10gb",
        "gpu:",
        "gpu:0",
        "gpu:0.0",
        "gpu:0.0001",
        "gpu:1",
        "gpu:1.0",
        "gpu:2",
        "gpu:-0.5",
        "gpu:+0.5",
        "gpu:nan",
        "gpu:inf",
        "gpu:1e-1",
        "gpu:0x1",
        "gpu:.5",
        "gpu:0.25.1",
        "gpu:½",
        "gpu:\u0660.\u0665",
        "gpu:99999999999999999999",
        "GPU",
        "gpus",
        "cpu",
        "cpu:",
        "cpu:0",
        "cpu:-1",
        "cpu:1.5",
        "cpu:nan",
        "cpu:4097",
        "cpu:99999999999999999999",
        "cpu:²",
        "cpu:\u0663",
        "tpu:1",
        ":",
        "0.25",
    ],
)
def test_garbage_is_refused_with_what_to_write(text: str) -> None:
    """Negative, zero, not a number, infinite, huge, other digits, unknown."""
    with pytest.raises(InvalidRequest) as caught:
        parse_request(text)

    assert caught.value.code == "device.invalid"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("device", "options"),
    [
        ("gpu:0.5", {"memory_bytes": -1}),
        ("gpu:0.5", {"memory_bytes": 1 << 45}),
        ("gpu:0.5", {"memory_bytes": 1.5}),
        ("gpu:0.5", {"memory_bytes": True}),
        ("cpu:1", {"memory_bytes": 1}),
        ("cpu:1", {"model": "H200"}),
        ("gpu", {"model": "*"}),
        ("gpu", {"model": "H" * 65}),
        ("gpu", {"near": ["a"], "apart": ["a"]}),
        ("gpu", {"near": ["../a"]}),
        ("gpu", {"apart": [""]}),
        ("gpu:0.5", {"min_share": 0.501}),
        ("gpu:0.5", {"min_share": -0.1}),
        ("gpu:0.5", {"min_share": math.nan}),
        ("gpu:0.5", {"min_share": math.inf}),
        ("gpu", {"min_share": 0.1}),
        ("mig:1g.10gb", {"min_share": 0.1}),
        ("gpu", {"service_class": "standard"}),
    ],
)
def test_constraints_that_make_no_sense_are_refused(device: str, options: dict[str, object]) -> None:
    """Each by itself, on a device that is there without it."""
    parse_request(device)
    with pytest.raises(InvalidRequest):
        parse_request(device, **options)  # type: ignore[arg-type]


def test_a_profile_that_this_box_does_not_have_names_the_nearest() -> None:
    """Where it is known what the box has; anywhere else it may be right."""
    assert parse_request("mig:1g.18gb").profile == "1g.18gb"
    with pytest.raises(InvalidRequest, match=r"do you mean 1g\.10gb") as caught:
        parse_request("mig:1g.18gb", profiles=TABLES["H100 80GB"].names)
    assert "1g.18gb" in caught.value.message
    with pytest.raises(InvalidRequest, match=r"this box has 1g\.6gb"):
        parse_request("mig:9g.999gb-x", profiles=("1g.6gb",))


@pytest.mark.parametrize("name", sorted({name for table in TABLES.values() for name in table.names}))
def test_every_profile_on_record_can_be_asked_for(name: str) -> None:
    """By its name as the driver writes it."""
    assert parse_request(f"mig:{name}").profile == name


@given(st.text(max_size=20) | st.from_regex(r"(mig|gpu|cpu):[0-9a-z.+-]{0,12}", fullmatch=True))
def test_any_text_is_a_request_or_an_error_of_ours(text: str) -> None:
    """A request means something: it can be written back and read again."""
    try:
        request = parse_request(text)
    except InvalidRequest as e:
        assert len(str(e)) < 500
        return
    assert parse_request(str(request)) == request
    assert request.kind != "timeslice" or 0 < request.share_milli < 1000
