"""What a tenant asks of the box's devices, as text. Pure.

``mig:1g.18gb``: an instance of a GPU that its driver cuts. ``gpu``: a whole GPU, for nobody else. ``gpu:0.25``: a part
of a GPU's time. ``cpu:2``: so many processors, for nobody else. ``core:0.25``: a part of the time of cores that are
shared.
"""

import difflib
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeGuard, get_args

from bedsit.ipc.errors import InvalidRequest
from bedsit.ipc.snapshot import ServiceClass

Kind = Literal["mig", "exclusive", "timeslice", "cpu", "core"]

_FORMS: Final = "write mig:PROFILE, gpu, gpu:SHARE, cpu:CORES or core:SHARE"
_PROFILE: Final = re.compile(r"[1-9]g\.[1-9][0-9]{0,3}gb([+-][a-z]{1,8}(\.all)?)?")
_DECIMAL: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,3})?")
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_MOST_CORES: Final = 4096
_MOST_BYTES: Final = 1 << 44


@dataclass(frozen=True)
class Request:
    """One tenant's wish. Shares are in thousandths of the time of what is shared.

    *memory_bytes* of GPU memory for its own data: at most that on a time-sliced GPU, at least that elsewhere; 0 leaves
    it to the device. *near* and *apart*: with one of these tenants on a device, with none of these. *min_share_milli*
    is kept when everybody is busy. Who is not *trusted* shares no GPU that is cut by time only. *slots* of it compute
    at once, each with as much memory of a GPU that is shared.
    """

    kind: Kind
    profile: str = ""
    share_milli: int = 0
    cores: int = 0
    memory_bytes: int = 0
    model: str = ""
    near: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()
    min_share_milli: int = 0
    service_class: ServiceClass = "interactive"
    trusted: bool = False
    slots: int = 1

    def __str__(self) -> str:
        if self.kind == "mig":
            return f"mig:{self.profile}"
        if self.kind == "cpu":
            return f"cpu:{self.cores}"
        if self.kind == "core":
            return f"core:{self.share_milli / 1000:g}"
        return "gpu" if self.kind == "exclusive" else f"gpu:{self.share_milli / 1000:g}"

    @property
    def is_shared(self) -> bool:
        """Whether it is for a part of something's time."""
        return self.kind in ("timeslice", "core")

    @property
    def wants_gpu(self) -> bool:
        """Whether it is for a GPU, or a part of one."""
        return self.kind not in ("cpu", "core")

    @property
    def shape(self) -> "Request":
        """The same wish without whom it is about: what others may ask for as well."""
        return replace(self, near=frozenset(), apart=frozenset()) if self.near or self.apart else self


def parse_request(
    device: str,
    *,
    memory_bytes: int = 0,
    model: str = "",
    near: Iterable[str] = (),
    apart: Iterable[str] = (),
    min_share: float = 0.0,
    service_class: str = "interactive",
    trusted: bool = False,
    slots: int = 1,
    profiles: Collection[str] = (),
) -> Request:
    """The request; *profiles* are those that this box has, where that is known.

    Raises `InvalidRequest`, code ``device.invalid``, for whatever makes no sense on any box.
    """
    request = _parse_device(device, profiles)
    if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int) or not 0 <= memory_bytes <= _MOST_BYTES:
        raise _invalid(f"{_show(memory_bytes)} bytes of GPU memory", "write a whole number, 16 TiB at most")
    if memory_bytes and not request.wants_gpu:
        raise _invalid("GPU memory for a tenant without a GPU", "leave it out, or ask for a GPU")
    if model and (not request.wants_gpu or not isinstance(model, str) or not _MODEL.fullmatch(model)):
        raise _invalid(f"the GPU model {_show(model)}", "write words of its name, such as H200, and only with a GPU")
    near, apart = _read_names(near), _read_names(apart)
    if near & apart:
        raise _invalid(f"near and apart from {', '.join(sorted(near & apart))}", "decide for one of them")
    if not _is_class(service_class):
        raise _invalid(f"the class {_show(service_class)}", f"write one of {', '.join(get_args(ServiceClass))}")
    return replace(
        request,
        memory_bytes=memory_bytes,
        model=model,
        near=near,
        apart=apart,
        min_share_milli=_read_min_share(min_share, request),
        service_class=service_class,
        trusted=trusted,
        slots=slots if request.kind == "timeslice" else 1,
    )


def _parse_device(text: str, profiles: Collection[str]) -> Request:
    if not isinstance(text, str):
        raise _invalid(f"the device {_show(text)}", _FORMS)
    kind, colon, amount = text.partition(":")
    if kind == "mig" and amount:
        if not _PROFILE.fullmatch(amount) or (profiles and amount not in profiles):
            raise _invalid(f"the MIG profile {_show(amount)}", _suggest_profile(amount, profiles))
        return Request("mig", profile=amount)
    if kind == "gpu" and not colon:
        return Request("exclusive")
    if kind in ("gpu", "core") and _DECIMAL.fullmatch(amount):
        share_milli = round(float(amount) * 1000)
        if not 0 < share_milli < 1000:  # noqa: PLR2004 - all of it
            whole = "a whole GPU is gpu, and nobody has two" if kind == "gpu" else "a whole core is cpu:1"
            raise _invalid(f"a share of {amount}", f"write 0.001 to 0.999; {whole}")
        return Request("timeslice" if kind == "gpu" else "core", share_milli=share_milli)
    if kind == "cpu" and amount.isascii() and amount.isdecimal() and len(amount) <= len(str(_MOST_CORES)):
        if not 1 <= int(amount) <= _MOST_CORES:
            raise _invalid(f"{amount} cores", f"write 1 to {_MOST_CORES}")
        return Request("cpu", cores=int(amount))
    raise _invalid(f"the device {_show(text)}", _FORMS)


def _suggest_profile(name: str, profiles: Collection[str]) -> str:
    if not profiles:
        return "they look like 1g.10gb or 1g.10gb+me"
    nearest = difflib.get_close_matches(name, profiles, 1)
    return f"do you mean {nearest[0]}?" if nearest else f"this box has {', '.join(profiles)}"


def _read_names(names: Iterable[str]) -> frozenset[str]:
    read = frozenset(names)
    for name in read:
        if not isinstance(name, str) or not _TENANT.fullmatch(name):
            raise _invalid(f"the tenant {_show(name)}", "write names of tenants")
    return read


def _read_min_share(share: float, request: Request) -> int:
    if isinstance(share, bool) or not isinstance(share, int | float) or not math.isfinite(share) or share < 0:
        raise _invalid(f"a guaranteed share of {_show(share)}", "write 0 to 1")
    share_milli = round(share * 1000)
    if share_milli and not request.is_shared:
        raise _invalid("a guaranteed share", f"{request} is guaranteed anyhow; leave it out")
    if share_milli > request.share_milli:
        raise _invalid(
            f"a guaranteed share of {share:g} in a share of {request.share_milli / 1000:g}", "guarantee less"
        )
    return share_milli


def _is_class(word: str) -> TypeGuard[ServiceClass]:
    return word in get_args(ServiceClass)


def _show(value: object) -> str:
    return repr(value)[:80]


def _invalid(what: str, hint: str, **detail: Any) -> InvalidRequest:
    return InvalidRequest("device.invalid", f"no device can be had for {what}", hint, detail)
