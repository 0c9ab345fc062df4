"""The CUDA driver's own interface, one process and one GPU. Names, constants and layouts are those of cuda.h (13.0)."""

import ctypes
import os
from pathlib import Path
from typing import Any, Final

#: The arguments of each call: p pointer or handle, q 64 bits, i and u 32 bits, b one byte, h 64 bytes by value.
_CALLS: Final = {
    "cuInit": "u",
    "cuDriverGetVersion": "p",
    "cuGetErrorName": "ip",
    "cuDeviceGet": "pi",
    "cuDeviceGetName": "pii",
    "cuDeviceGetAttribute": "pii",
    "cuDevicePrimaryCtxRetain": "pi",
    "cuCtxSetCurrent": "p",
    "cuCtxGetStreamPriorityRange": "pp",
    "cuCtxSynchronize": "",
    "cuMemGetInfo_v2": "pp",
    "cuMemAlloc_v2": "pq",
    "cuMemFree_v2": "q",
    "cuMemsetD8Async": "qbqp",
    "cuMemsetD32Async": "quqp",
    "cuMemcpyHtoDAsync_v2": "qpqp",
    "cuMemcpyDtoHAsync_v2": "pqqp",
    "cuMemcpyDtoDAsync_v2": "qqqp",
    "cuMemcpyDtoH_v2": "pqq",
    "cuMemHostAlloc": "pqu",
    "cuMemFreeHost": "p",
    "cuMemHostRegister_v2": "pqu",
    "cuMemHostUnregister": "p",
    "cuMemHostGetDevicePointer_v2": "ppu",
    "cuStreamCreateWithPriority": "pui",
    "cuStreamSynchronize": "p",
    "cuEventCreate": "pu",
    "cuEventRecord": "pp",
    "cuEventSynchronize": "p",
    "cuEventElapsedTime": "ppp",
    "cuModuleLoadData": "pp",
    "cuModuleGetFunction": "ppp",
    "cuLaunchKernel": "puuuuuuuppp",
    "cuStreamBeginCapture_v2": "pi",
    "cuStreamEndCapture": "pp",
    "cuGraphInstantiateWithFlags": "ppq",
    "cuGraphLaunch": "pp",
    "cuIpcGetMemHandle": "pq",
    "cuIpcOpenMemHandle_v2": "phu",
    "cuMemGetAllocationGranularity": "ppi",
    "cuMemCreate": "pqpq",
    "cuMemRelease": "q",
    "cuMemAddressReserve": "pqqqq",
    "cuMemMap": "qqqqq",
    "cuMemUnmap": "qq",
    "cuMemSetAccess": "qqpq",
    "cuMemExportToShareableHandle": "pqiq",
    "cuMemImportFromShareableHandle": "ppi",
    "cuCheckpointProcessGetState": "ip",
    "cuCheckpointProcessLock": "ip",
    "cuCheckpointProcessCheckpoint": "ip",
    "cuCheckpointProcessRestore": "ip",
    "cuCheckpointProcessUnlock": "ip",
}
#: Device attributes that a design may depend on.
ATTRIBUTES: Final = {
    "multiprocessors": 16,
    "copy engines": 40,
    "L2 bytes": 38,
    "compute mode": 20,
    "stream priorities": 78,
    "managed memory": 83,
    "pageable memory access": 88,
    "pageable access through the host's page tables": 100,
    "compute preemption": 90,
    "host pointer of registered memory": 91,
    "host register": 99,
    "read-only host register": 113,
    "virtual memory management": 102,
    "handles as descriptors": 103,
    "memory pools": 115,
    "IPC events": 125,
    "GPU direct RDMA": 116,
    "dma-buf": 124,
    "MPS": 133,
}


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle."""

    _fields_ = (("reserved", ctypes.c_char * 64),)


_TYPES: Final = {
    "p": ctypes.c_void_p,
    "q": ctypes.c_uint64,
    "i": ctypes.c_int,
    "u": ctypes.c_uint,
    "b": ctypes.c_ubyte,
    "h": IpcHandle,
}


class CudaError(Exception):
    """A call that failed: *code* and *name* as cuda.h has them."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call}: {code} {name}")
        self.code = code
        self.name = name


class Cuda:
    """libcuda in this process. Raises OSError where there is none. Touches no GPU before `open`."""

    def __init__(self) -> None:
        # JUSTIFICATION: neither torch nor nvidia-ml-py reaches these calls, and torch has a start-up of its own.
        # SAFETY: each call has its argument types below, and every code is looked at.
        self._lib = ctypes.CDLL("libcuda.so.1")
        self._calls: dict[str, Any] = {}
        self.device = 0

    def ask(self, name: str, *arguments: Any) -> int:
        """Make the call; gives its code. Raises AttributeError where this driver has no such call."""
        if name not in self._calls:
            call = getattr(self._lib, name)
            call.argtypes = [_TYPES[letter] for letter in _CALLS[name]]
            call.restype = ctypes.c_int
            self._calls[name] = call
        return int(self._calls[name](*arguments))

    def call(self, name: str, *arguments: Any) -> None:
        """Make the call; raises CudaError unless it gives 0."""
        if code := self.ask(name, *arguments):
            raise CudaError(name, code, self.name(code))

    def name(self, code: int) -> str:
        """What cuda.h calls the code, without its prefix."""
        text = ctypes.c_char_p()
        if self.ask("cuGetErrorName", code, ctypes.byref(text)) or not text.value:
            return f"error {code}"
        return text.value.decode().removeprefix("CUDA_ERROR_").removeprefix("CUDA_")

    def init(self) -> None:
        """The first of `open`'s two steps: the driver, and the GPU where nobody else has it open."""
        self.call("cuInit", 0)

    def retain(self) -> None:
        """The second one: this process' context on GPU 0, the one that torch uses too."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.device = device.value
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        self.call("cuCtxSetCurrent", context)

    def open(self) -> None:
        """Both steps."""
        self.init()
        self.retain()

    def attribute(self, number: int) -> int:
        """One of cuda.h's CU_DEVICE_ATTRIBUTE_*."""
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, self.device)
        return value.value

    def capability(self) -> str:
        """As ptxas writes it: 90."""
        return f"{self.attribute(75)}{self.attribute(76)}"

    def allocate(self, size: int) -> int:
        """Device memory; its address."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), size)
        return address.value

    def fill(self, address: int, size: int, byte: int) -> None:
        """Set each byte, and wait."""
        self.call("cuMemsetD8Async", address, byte, size, None)
        self.call("cuCtxSynchronize")

    def read(self, address: int, words: int) -> list[int]:
        """Copy that many 64-bit words here, after all that was asked before."""
        room = (ctypes.c_uint64 * words)()
        self.call("cuMemcpyDtoH_v2", room, address, ctypes.sizeof(room))
        return list(room)

    def synchronize(self) -> None:
        """Wait for everything that this process asked for."""
        self.call("cuCtxSynchronize")

    def stream(self, priority: int = 0) -> int | None:
        """A new queue, independent of the default one."""
        stream = ctypes.c_void_p()
        self.call("cuStreamCreateWithPriority", ctypes.byref(stream), 1, priority)
        return stream.value

    def priorities(self) -> tuple[int, int]:
        """The lowest and the highest; smaller numbers are higher."""
        lowest, highest = ctypes.c_int(), ctypes.c_int()
        self.call("cuCtxGetStreamPriorityRange", ctypes.byref(lowest), ctypes.byref(highest))
        return lowest.value, highest.value

    def event(self) -> int | None:
        """A point in a stream that can be waited for and timed."""
        event = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(event), 0)
        return event.value

    def elapsed_ms(self, first: int | None, last: int | None) -> float:
        """Between two events that have passed."""
        value = ctypes.c_float()
        self.call("cuEventElapsedTime", ctypes.byref(value), first, last)
        return value.value


def find_nodes() -> list[str]:
    """The driver's device nodes on this machine."""
    found = [str(path) for path in Path("/dev").glob("nvidia*") if not path.is_dir()]
    return sorted(found + [str(path) for path in Path("/dev/nvidia-caps").glob("*")])


def is_here() -> bool:
    """Whether this machine has a NVIDIA driver at all."""
    return os.path.exists("/proc/driver/nvidia/version") or os.path.exists("/dev/nvidiactl")
