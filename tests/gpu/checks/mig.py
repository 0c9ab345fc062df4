"""What NVML tells of MIG and of cgroup limits with MIG off, and with whatever driver there is."""

import ctypes
from typing import Any, Final

from tests.gpu.nvml import Nvml
from tests.gpu.report import Report

#: More places than a GPU has.
_MOST: Final = 32
#: NVML_GPU_INSTANCE_PROFILE_COUNT of the newest header, and a few that may come.
_PROFILES: Final = 0x18
_FIELDS: Final = (
    *("id", "isP2pSupported", "sliceCount", "instanceCount", "multiprocessorCount", "copyEngineCount"),
    *("decoderCount", "encoderCount", "jpegCount", "ofaCount", "memorySizeMB"),
)
#: 80 GiB H100, profile id by slices: where an instance may begin and how many memory slices it takes.
_EXPECTED: Final = {
    19: ([0, 1, 2, 3, 4, 5, 6], 1),
    15: ([0, 2, 4, 6], 2),
    14: ([0, 2, 4], 2),
    9: ([0, 4], 4),
    5: ([0], 4),
    0: ([0], 8),
}


def check_tables(report: Report) -> None:
    """Each profile of the card: what it has, where it may be placed, how many of it are left."""
    with Nvml() as nvml:
        lib, gpu = nvml.lib, nvml.gpu
        table = [entry for number in range(_PROFILES) if (entry := _read_profile(lib, gpu, number))]
        report.data(profiles=table)
        if not table:
            report.row("profiles with MIG off", "none is told", "a full table, or NotSupported", ok=True)
        for entry in table:
            placements = entry.get("placements")
            starts = [place[0] for place in placements] if isinstance(placements, list) else placements
            sizes = sorted({place[1] for place in placements}) if isinstance(placements, list) else []
            expected = _EXPECTED.get(entry["id"])
            is_known = isinstance(placements, list) and expected is not None
            report.row(
                f"{entry['name']} (enum {entry['enum']}, id {entry['id']})",
                f"{entry['multiprocessorCount']} SMs, {entry['memorySizeMB']} MB, starts {starts} size {sizes}, "
                f"left {entry['left']}",
                f"starts {expected[0]} size [{expected[1]}]" if expected else "",
                (starts, sizes) == (expected[0], [expected[1]]) if is_known and expected else None,
            )


def _read_profile(lib: Any, gpu: Any, number: int) -> dict[str, Any] | None:
    """None where the card has no such profile."""
    try:
        info = _ask_profile(lib, gpu, number)
    except lib.NVMLError as e:
        is_absent = e.value in (lib.NVML_ERROR_NOT_SUPPORTED, lib.NVML_ERROR_INVALID_ARGUMENT)
        return None if is_absent else _empty(number, str(e))
    name = getattr(info, "name", b"")
    entry = {field: getattr(info, field, None) for field in _FIELDS}
    entry |= {"enum": number, "name": name.decode() if isinstance(name, bytes) else str(name)}
    entry["left"] = _try(lib, lambda: lib.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu, info.id))
    entry["placements"] = _try(lib, lambda: _ask_placements(lib, gpu, info.id))
    return entry


def _ask_profile(lib: Any, gpu: Any, number: int) -> Any:
    """Version 2 has the name; drivers before it have version 1."""
    try:
        return lib.nvmlDeviceGetGpuInstanceProfileInfo(gpu, number, version=2)
    except (lib.NVMLError_FunctionNotFound, TypeError):
        return lib.nvmlDeviceGetGpuInstanceProfileInfo(gpu, number)


def _empty(number: int, why: str) -> dict[str, Any]:
    return dict.fromkeys(_FIELDS) | {"enum": number, "name": why, "left": None, "placements": why}


def _ask_placements(lib: Any, gpu: Any, profile_id: int) -> list[list[int]]:
    # SAFETY: the binding hands both references on as they are; the count says how much room there is.
    room = (lib.c_nvmlGpuInstancePlacement_t * _MOST)()
    count = ctypes.c_uint(_MOST)
    lib.nvmlDeviceGetGpuInstancePossiblePlacements(gpu, profile_id, ctypes.byref(room), ctypes.byref(count))
    return [[room[place].start, room[place].size] for place in range(min(count.value, _MOST))]


def _try(lib: Any, call: Any) -> Any:
    try:
        return call()
    except lib.NVMLError as e:
        return str(e)


def check_limits(report: Report) -> None:
    """Whether the driver has memory limits of cgroups, by reading one."""
    with Nvml() as nvml, report.step("nvmlDeviceGetMemoryLimits_v1"):
        lib = nvml.lib
        expect = "FunctionNotFound or NotSupported before driver 615"
        # JUSTIFICATION: the binding may be older than the driver, or newer.
        # SAFETY: the symbol is looked up, not called.
        library = ctypes.CDLL("libnvidia-ml.so.1")
        has_symbol = hasattr(library, "nvmlDeviceGetMemoryLimits_v1")
        if not hasattr(lib, "nvmlDeviceGetMemoryLimits_v1"):
            report.row(
                "memory limits", f"binding has none, driver has the symbol: {has_symbol}", expect, not has_symbol
            )
            return
        limits = lib.c_nvmlGetMemoryLimits_v1_t()
        limits.nameSpace = b"/sys/fs/cgroup"
        try:
            lib.nvmlDeviceGetMemoryLimits_v1(nvml.gpu, limits)
        except lib.NVMLError as e:
            name = type(e).__name__.removeprefix("NVMLError_")
            is_expected = name in ("FunctionNotFound", "NotSupported")
            report.row("memory limits", f"{name}; symbol there: {has_symbol}", expect, is_expected)
        else:
            report.row("memory limits", f"answered: used {limits.currentUsed}", expect, ok=False)
