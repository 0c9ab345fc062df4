"""Which device a tenant asks for, and where it sits: the options, and how both are shown."""

from typing import Annotated, Final

import typer

from bedsit.cli.option import read_option
from bedsit.cli.table import Row
from bedsit.cli.text import format_size, parse_size

_NONE: Final = "none"

Device = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="mig:PROFILE, gpu, gpu:SHARE (0.25 of a GPU's time), cpu:CORES, core:SHARE of shared cores; or none.",
    ),
]
GpuMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="GPU memory for the data of each slot; or any: its part of the GPU.")
]
GpuType = Annotated[str | None, typer.Option(metavar="WORDS", help="Words of the GPU's name, as H200; or any.")]
Near = Annotated[
    str | None, typer.Option(metavar="TENANTS", help="On a device with one of these, for example a,b; or none.")
]
Apart = Annotated[str | None, typer.Option(metavar="TENANTS", help="On no device with one of these; or none.")]
Trusted = Annotated[
    bool | None,
    typer.Option("--trusted/--untrusted", help="May share a GPU in turn with others, which is no wall between them."),
]


def read_wish(
    *,
    device: str | None,
    gpu_memory: str | None,
    gpu_type: str | None,
    near: str | None,
    apart: str | None,
    trusted: bool | None,
) -> dict[str, object]:
    """What was said, as the daemon wants it. What makes sense is the daemon's to tell. Raises ``input.invalid``."""
    return {
        "device": _or_nothing(device, _NONE),
        "gpu_memory_bytes": read_option("--gpu-memory", gpu_memory, parse_size, 0, word="any"),
        "gpu_type": _or_nothing(gpu_type, "any"),
        "near": _join(near),
        "apart": _join(apart),
        "trusted": trusted,
    }


def describe_wish(tenant: Row) -> str | None:
    """``gpu:0.5 with 10 GiB of H200``, or ``none``; None where the daemon did not say."""
    wish = tenant.get("wish")
    if not isinstance(wish, dict):
        return None
    text = str(wish.get("device") or _NONE)
    text += f" with {format_size(wish['gpu_memory_bytes'])}" if wish.get("gpu_memory_bytes") else ""
    text += f" of {wish['gpu_type']}" if wish.get("gpu_type") else ""
    text += f", near {', '.join(wish['near'])}" if wish.get("near") else ""
    text += f", apart from {', '.join(wish['apart'])}" if wish.get("apart") else ""
    return text


def describe_device(tenant: Row) -> str | None:
    """What it asked for, in one word."""
    wish = tenant.get("wish")
    return (wish.get("device") or None) if isinstance(wish, dict) else None


def describe_seat(tenant: Row) -> str | None:
    """Where it sits, and what is wrong there."""
    seat = tenant.get("seat")
    if not isinstance(seat, dict):
        return None
    trouble = tenant.get("seat_trouble")
    return f"{seat.get('text')} ({trouble})" if trouble else str(seat.get("text"))


def describe_memory(part: object) -> str | None:
    """``soft, 1.2 of 4.5 GiB used``; of several slots what they use together, and what each may."""
    if not isinstance(part, dict):
        return None
    slots, limit = part.get("slots") or 1, format_size(part.get("limit_bytes"))
    each = f"{slots} x {limit}" if slots != 1 else limit
    return f"{part.get('held')}, {format_size(part.get('used_bytes'))} of {each} used"


def explain_memory(part: object) -> str | None:
    """What that kind of limit means."""
    return str(part.get("means")) if isinstance(part, dict) else None


def describe_trust(tenant: Row) -> str | None:
    """Whether it may share a GPU in turn; None where the daemon did not say."""
    wish = tenant.get("wish")
    return ("yes" if wish.get("trusted") else "no") if isinstance(wish, dict) else None


def list_explanation(answer: Row) -> list[tuple[str, object]]:
    """Why, in one sentence, and what would help."""
    seat, found = answer.get("seat"), answer.get("changes")
    changes = [str(each.get("words")) for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return [
        ("device", answer.get("device") or _NONE),
        ("seat", seat.get("text") if isinstance(seat, dict) else None),
        ("why", answer.get("sentence")),
        *((f"fits if {number}", words) for number, words in enumerate(changes, 1)),
    ]


def name_seat(answer: Row) -> str:
    """The device of the seat, or ``none``."""
    seat = answer.get("seat")
    return " ".join(map(str, seat.get("devices") or ())) if isinstance(seat, dict) else _NONE


def _or_nothing(text: str | None, word: str) -> str | None:
    return "" if text == word else text


def _join(names: str | None) -> str | None:
    """As the daemon wants names: sorted, without spaces."""
    if names in (None, _NONE):
        return None if names is None else ""
    return ",".join(sorted({name.strip() for name in str(names).split(",") if name.strip()}))
