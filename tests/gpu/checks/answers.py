"""Which of NVML's functions answer on this card and driver, by asking each of them; none that sets anything."""

import ctypes
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any, Final

from tests.gpu.nvml import Nvml
from tests.gpu.report import Report, explain

#: Functions of NVML that take the GPU alone and change nothing.
_ASKED: Final = (
    *("Name", "MinorNumber", "Index", "Brand", "Architecture", "CudaComputeCapability", "PciInfo"),
    *("MemoryInfo", "BAR1MemoryInfo", "MigMode", "MaxMigDeviceCount", "PersistenceMode", "ComputeMode", "EccMode"),
    *("AccountingMode", "AccountingBufferSize", "AccountingPids", "PowerUsage", "PowerManagementLimit"),
    *("EnforcedPowerLimit", "PerformanceState", "UtilizationRates", "ComputeRunningProcesses"),
    *("MPSComputeRunningProcesses", "GraphicsRunningProcesses", "VirtualizationMode", "HostVgpuMode", "NumGpuCores"),
    *("MemoryBusWidth", "MaxPcieLinkGeneration", "CurrPcieLinkGeneration", "CurrPcieLinkWidth", "PcieSpeed"),
    *("SupportedEventTypes", "CurrentClocksEventReasons", "TotalEnergyConsumption", "GspFirmwareVersion"),
    *("GspFirmwareMode", "ConfComputeMemSizeInfo", "RemappedRows", "NumaNodeId", "VbiosVersion"),
    *("Attributes", "IsMigDeviceHandle", "BusType", "SramEccErrorStatus", "MemoryAffinity"),
    *("RunningProcessDetailList", "DramEncryptionMode", "CoolerInfo", "MarginTemperature", "Capabilities"),
)


def check(report: Report) -> None:
    """Each answer goes into the report as it comes: a structure that changed between versions may end this process."""
    began = time.monotonic()
    with Nvml() as nvml:
        opened_ms = (time.monotonic() - began) * 1e3
        lib, gpu = nvml.lib, nvml.gpu
        driver, cuda = lib.nvmlSystemGetDriverVersion(), lib.nvmlSystemGetCudaDriverVersion_v2()
        binding = importlib.metadata.version("nvidia-ml-py")
        report.data(driver=driver, nvml=lib.nvmlSystemGetNVMLVersion(), cuda=cuda, binding=binding)
        name = lib.nvmlDeviceGetName(gpu)
        report.row("GPU and driver", f"{name}, {driver}, CUDA {cuda}; NVML opened in {opened_ms:.0f} ms")
        report.data(missing=_find_missing())
        answers = {}
        for what, call in _list_calls(lib, gpu):
            answers[what] = _ask(lib, call)
            report.data(**{what: answers[what]})
        refused = sorted(what for what, answer in answers.items() if "error" in answer)
        report.row("calls that answer", f"{len(answers) - len(refused)} of {len(answers)}, not {', '.join(refused)}")
        modes = ("MigMode", "PersistenceMode", "ComputeMode", "AccountingMode", "EccMode")
        report.row("modes, none of them ours", ", ".join(f"{mode} {answers[mode].get('value', '?')}" for mode in modes))


def _list_calls(lib: Any, gpu: Any) -> list[tuple[str, Callable[[], Any]]]:
    def plain(name: str) -> Callable[[], Any]:
        return lambda: getattr(lib, name)(gpu)

    named = [(name, plain(f"nvmlDevice{'' if name.startswith('Is') else 'Get'}{name}")) for name in _ASKED]
    field_ids = {"total energy": 83, "memory temperature": 82, "MIG mode": 0}
    return [
        *named,
        ("MemoryInfo v2", lambda: lib.nvmlDeviceGetMemoryInfo(gpu, lib.nvmlMemory_v2)),
        ("ProcessUtilization", lambda: lib.nvmlDeviceGetProcessUtilization(gpu, 0)),
        ("ProcessesUtilizationInfo", lambda: lib.nvmlDeviceGetProcessesUtilizationInfo(gpu, 0)),
        ("Samples of utilisation", lambda: len(lib.nvmlDeviceGetSamples(gpu, lib.NVML_GPU_UTILIZATION_SAMPLES, 0)[1])),
        ("ClockInfo SM", lambda: lib.nvmlDeviceGetClockInfo(gpu, lib.NVML_CLOCK_SM)),
        ("MaxClockInfo SM", lambda: lib.nvmlDeviceGetMaxClockInfo(gpu, lib.NVML_CLOCK_SM)),
        ("Temperature", lambda: lib.nvmlDeviceGetTemperature(gpu, lib.NVML_TEMPERATURE_GPU)),
        ("PcieThroughput", lambda: lib.nvmlDeviceGetPcieThroughput(gpu, lib.NVML_PCIE_UTIL_RX_BYTES)),
        ("MigDeviceHandleByIndex 0", lambda: str(lib.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0))),
        ("FieldValues", lambda: len(lib.nvmlDeviceGetFieldValues(gpu, list(field_ids.values())))),
        ("ConfComputeState", lambda: str(lib.nvmlSystemGetConfComputeState())),
        ("TopologyCommonAncestor", lambda: lib.nvmlDeviceGetTopologyCommonAncestor(gpu, gpu)),
        ("EventSet", lambda: lib.nvmlEventSetFree(lib.nvmlEventSetCreate())),
        ("GPM support", lambda: lib.nvmlGpmQueryDeviceSupport(gpu)),
        ("GPM streaming", lambda: lib.nvmlGpmQueryIfStreamingEnabled(gpu)),
        ("GPM metrics", lambda: _measure_gpm(lib, gpu)),
    ]


def _measure_gpm(lib: Any, gpu: Any) -> dict[str, float]:
    """Two samples, 200 ms apart, and a few metrics made of them."""
    samples = [lib.nvmlGpmSampleAlloc() for _ in range(2)]
    lib.nvmlGpmSampleGet(gpu, samples[0])
    time.sleep(0.2)
    lib.nvmlGpmSampleGet(gpu, samples[1])
    wanted = {"graphics": 1, "SM": 2, "occupancy": 3, "DRAM": 10, "PCIe TX": 20, "PCIe RX": 21}
    asked = lib.c_nvmlGpmMetricsGet_t()
    asked.version, asked.numMetrics = lib.NVML_GPM_METRICS_GET_VERSION, len(wanted)
    asked.sample1, asked.sample2 = samples
    for place, number in enumerate(wanted.values()):
        asked.metrics[place].metricId = number
    lib.nvmlGpmMetricsGet(asked)
    for sample in samples:
        lib.nvmlGpmSampleFree(sample)
    return {name: asked.metrics[place].value for place, name in enumerate(wanted)}


def _find_missing() -> list[str]:
    """Symbols that newer drivers have and this one does not."""
    # JUSTIFICATION: the binding resolves a symbol when it is first called, and these must not be called.
    # SAFETY: symbols are looked up, nothing is called.
    library = ctypes.CDLL("libnvidia-ml.so.1")
    names = (
        *("nvmlDeviceSetMemoryLimits_v1", "nvmlDeviceGetMemoryLimits_v1", "nvmlDeviceGetRunningProcessDetailList"),
        *("nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlDeviceGetGpuInstanceProfileInfoV", "nvmlGpmMigSampleGet"),
        *("nvmlDeviceGetGpuInstanceProfileInfoByIdV", "nvmlDeviceGetGpuInstancePossiblePlacements_v2"),
        *("nvmlDeviceGetRemappedRows_v2", "nvmlDeviceGetProcessesUtilizationInfo", "nvmlSystemEventSetCreate"),
    )
    return [name for name in names if not hasattr(library, name)]


def _ask(lib: Any, call: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": _plain(call())}
    except lib.NVMLError as e:
        return {"error": str(e)}
    except Exception as e:  # noqa: BLE001 - an older binding may lack the function, a newer driver change a structure
        return {"error": explain(e)}


def _plain(value: Any, depth: int = 3) -> Any:
    """As JSON can have it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (str, int, float, type(None))):
        return value
    if depth and isinstance(value, (list, tuple)):
        return [_plain(each, depth - 1) for each in value[:40]]
    if depth and isinstance(value, dict):
        return {str(key): _plain(each, depth - 1) for key, each in value.items()}
    if depth and isinstance(value, ctypes.Structure):
        return {field[0]: _plain(getattr(value, field[0]), depth - 1) for field in value._fields_}
    if depth and hasattr(value, "__dict__") and vars(value):
        return {name: _plain(each, depth - 1) for name, each in vars(value).items()}
    return str(value)
