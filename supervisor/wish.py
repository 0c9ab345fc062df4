"""What a tenant's operator wrote about devices, as placement reads it. Pure."""

from collections.abc import Collection
from typing import Final

from bedsit.ipc.errors import InvalidRequest
from bedsit.supervisor.placement.request import Request, parse_request
from bedsit.supervisor.registry import NewTenant, TenantRow

#: What means nothing without a device; whether a tenant is trusted does.
_NEEDS_DEVICE: Final = {
    "gpu_memory_bytes": "--gpu-memory",
    "gpu_type": "--gpu-type",
    "near": "--near",
    "apart": "--apart",
}


def read_wish(row: TenantRow | NewTenant, profiles: Collection[str] = ()) -> Request | None:
    """The tenant's request; None of one that asks for no device. *profiles*: the MIG profiles of this box, if known.

    Raises ``device.invalid`` for whatever makes no sense on any box, and for wishes without a device.
    """
    if not row.device:
        said = [option for name, option in _NEEDS_DEVICE.items() if getattr(row, name)]
        if said:
            what = f"{', '.join(said)} without a device"
            raise InvalidRequest("device.invalid", what, f"say which with --device, or leave out {said[0]}")
        return None
    if row.cores != NewTenant.cores and row.device.startswith(("cpu:", "core:")):
        what = f"--cores {row.cores} and --device {row.device} contradict each other: the device says which cores"
        raise InvalidRequest("device.invalid", what, "leave --cores at all, or ask for no device")
    return parse_request(
        row.device,
        memory_bytes=row.gpu_memory_bytes,
        model=row.gpu_type,
        near=split_names(row.near),
        apart=split_names(row.apart),
        min_share=row.min_share,
        service_class=row.service_class,
        trusted=row.trusted,
        slots=row.max_slots,
        profiles=profiles,
    )


def split_names(text: str) -> list[str]:
    """The names in a column of names."""
    return text.split(",") if text else []
