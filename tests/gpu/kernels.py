"""The programs that run on the GPU, in PTX: the driver itself compiles them, so that no toolkit is needed.

Work is counted in rounds of arithmetic and not in time: a kernel that waited for a clock would also wait while the
GPU runs somebody else's work, and then hide exactly that.
"""

import ctypes
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.gpu.cuda import Cuda, CudaError

#: Bytes of shared memory that `shared_fill` and `shared_scan` look at: what a block gets without asking for more.
SHARED_BYTES: Final = 49152
PTX: Final = """
.version 7.0
.target sm_70
.address_size 64

// Each thread does *rounds* times 16 multiplications that wait for each other.
.visible .entry work(.param .u64 rounds, .param .u64 out)
{
    .reg .pred %p;
    .reg .b32 %x, %y;
    .reg .b64 %n, %o;
    ld.param.u64 %n, [rounds];
    ld.param.u64 %o, [out];
    mov.u32 %x, %tid.x;
    mov.u32 %y, %ctaid.x;
    mad.lo.u32 %x, %y, 1664525, %x;
again:
    UNROLLED
    sub.u64 %n, %n, 1;
    setp.ne.u64 %p, %n, 0;
    @%p bra again;
    setp.eq.u32 %p, %x, 0x12345678;
    @%p st.global.u32 [%o], %x;
    ret;
}

// One thread looks at the clock for *length* ns. out[0]: gaps longer than *gap* ns; out[1]: looks;
// then pairs, *room* at most: the last look before a gap, the first one after it.
.visible .entry trace(.param .u64 out, .param .u64 room, .param .u64 length, .param .u64 gap)
{
    .reg .pred %p;
    .reg .b64 %o, %r, %l, %g, %first, %last, %now, %d, %count, %looks, %a;
    ld.param.u64 %o, [out];
    ld.param.u64 %r, [room];
    ld.param.u64 %l, [length];
    ld.param.u64 %g, [gap];
    mov.u64 %first, %globaltimer;
    mov.u64 %last, %first;
    mov.u64 %count, 0;
    mov.u64 %looks, 0;
again:
    mov.u64 %now, %globaltimer;
    add.u64 %looks, %looks, 1;
    sub.u64 %d, %now, %last;
    setp.le.u64 %p, %d, %g;
    @%p bra next;
    setp.ge.u64 %p, %count, %r;
    @%p bra full;
    shl.b64 %a, %count, 4;
    add.u64 %a, %a, %o;
    st.global.u64 [%a+16], %last;
    st.global.u64 [%a+24], %now;
full:
    add.u64 %count, %count, 1;
next:
    mov.u64 %last, %now;
    sub.u64 %d, %now, %first;
    setp.lt.u64 %p, %d, %l;
    @%p bra again;
    st.global.u64 [%o], %count;
    st.global.u64 [%o+8], %looks;
    ret;
}

// out[0] += words that are not zero, out[1] += words that are *pattern*, of *vectors* times four words.
.visible .entry scan(.param .u64 from, .param .u64 vectors, .param .u64 out, .param .u32 pattern)
{
    .reg .pred %p;
    .reg .b32 %a, %b, %c, %d, %w, %t, %u;
    .reg .b64 %f, %n, %o, %i, %step, %at, %some, %same, %e;
    ld.param.u64 %f, [from];
    ld.param.u64 %n, [vectors];
    ld.param.u64 %o, [out];
    ld.param.u32 %w, [pattern];
    STRIDE
    mov.u64 %some, 0;
    mov.u64 %same, 0;
    setp.ge.u64 %p, %i, %n;
    @%p bra done;
again:
    shl.b64 %at, %i, 4;
    add.u64 %at, %at, %f;
    ld.global.v4.u32 {%a, %b, %c, %d}, [%at];
    COUNTED
    add.u64 %i, %i, %step;
    setp.lt.u64 %p, %i, %n;
    @%p bra again;
done:
    red.global.add.u64 [%o], %some;
    red.global.add.u64 [%o+8], %same;
    ret;
}

// out[0] += the sum of all words, of *vectors* times four.
.visible .entry sum(.param .u64 from, .param .u64 vectors, .param .u64 out)
{
    .reg .pred %p;
    .reg .b32 %a, %b, %c, %d, %t, %u;
    .reg .b64 %f, %n, %o, %i, %step, %at, %all, %e;
    ld.param.u64 %f, [from];
    ld.param.u64 %n, [vectors];
    ld.param.u64 %o, [out];
    STRIDE
    mov.u64 %all, 0;
    setp.ge.u64 %p, %i, %n;
    @%p bra done;
again:
    shl.b64 %at, %i, 4;
    add.u64 %at, %at, %f;
    ld.global.v4.u32 {%a, %b, %c, %d}, [%at];
    SUMMED
    add.u64 %i, %i, %step;
    setp.lt.u64 %p, %i, %n;
    @%p bra again;
done:
    red.global.add.u64 [%o], %all;
    ret;
}

// One store, wherever it goes.
.visible .entry poke(.param .u64 to, .param .u32 word)
{
    .reg .b32 %w;
    .reg .b64 %t;
    ld.param.u64 %t, [to];
    ld.param.u32 %w, [word];
    st.global.u32 [%t], %w;
    ret;
}

.visible .entry fall()
{
    trap;
    ret;
}

// Shared memory of one block, filled, or searched for what an earlier block left there.
.visible .entry shared_fill(.param .u32 pattern, .param .u64 out)
{
    .shared .align 16 .b8 room[ROOM];
    .reg .pred %p;
    .reg .b32 %w, %i, %step, %at, %x, %r;
    .reg .b64 %o;
    ld.param.u32 %w, [pattern];
    ld.param.u64 %o, [out];
    mov.u32 %i, %tid.x;
    mov.u32 %step, %ntid.x;
    mov.u32 %r, room;
    mov.u32 %x, 0;
again:
    shl.b32 %at, %i, 2;
    add.u32 %at, %at, %r;
    st.volatile.shared.u32 [%at], %w;
    ld.volatile.shared.u32 %x, [%at];
    add.u32 %i, %i, %step;
    setp.lt.u32 %p, %i, WORDS;
    @%p bra again;
    setp.ne.u32 %p, %x, %w;
    @%p st.global.u32 [%o], %x;
    ret;
}

.visible .entry shared_scan(.param .u32 pattern, .param .u64 out)
{
    .shared .align 16 .b8 room[ROOM];
    .reg .pred %p;
    .reg .b32 %w, %i, %step, %at, %a, %t, %u, %r;
    .reg .b64 %o, %some, %same, %e;
    ld.param.u32 %w, [pattern];
    ld.param.u64 %o, [out];
    mov.u32 %i, %tid.x;
    mov.u32 %step, %ntid.x;
    mov.u32 %r, room;
    mov.u64 %some, 0;
    mov.u64 %same, 0;
again:
    shl.b32 %at, %i, 2;
    add.u32 %at, %at, %r;
    ld.volatile.shared.u32 %a, [%at];
    COUNT_A
    add.u32 %i, %i, %step;
    setp.lt.u32 %p, %i, WORDS;
    @%p bra again;
    red.global.add.u64 [%o], %some;
    red.global.add.u64 [%o+8], %same;
    ret;
}
"""
_STRIDE: Final = """
    mov.u32 %t, %ctaid.x;
    mov.u32 %u, %ntid.x;
    mul.wide.u32 %i, %t, %u;
    mov.u32 %t, %tid.x;
    cvt.u64.u32 %e, %t;
    add.u64 %i, %i, %e;
    mov.u32 %t, %nctaid.x;
    mul.wide.u32 %step, %t, %u;
"""
_COUNT: Final = """
    setp.ne.u32 %p, %REG, 0;
    selp.u32 %t, 1, 0, %p;
    cvt.u64.u32 %e, %t;
    add.u64 %some, %some, %e;
    setp.eq.u32 %p, %REG, %w;
    selp.u32 %u, 1, 0, %p;
    cvt.u64.u32 %e, %u;
    add.u64 %same, %same, %e;
"""
_SUM: Final = """
    cvt.u64.u32 %e, %REG;
    add.u64 %all, %all, %e;
"""


def write_ptx() -> str:
    """The whole module as text."""
    parts = {
        "UNROLLED": "mad.lo.u32 %x, %x, 1664525, 1013904223;\n    " * 16,
        "STRIDE": _STRIDE,
        "COUNTED": "".join(_COUNT.replace("%REG", f"%{name}") for name in "abcd"),
        "COUNT_A": _COUNT.replace("%REG", "%a"),
        "SUMMED": "".join(_SUM.replace("%REG", f"%{name}") for name in "abcd"),
        "ROOM": str(SHARED_BYTES),
        "WORDS": str(SHARED_BYTES // 4),
    }
    text = PTX
    for word, part in parts.items():
        text = text.replace(word, part)
    return text


class Kernels:
    """The module, loaded into the context of *cuda*; raises CudaError where neither driver nor ptxas compile it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.compiled_by = "the driver"
        module = ctypes.c_void_p()
        text = write_ptx()
        try:
            cuda.call("cuModuleLoadData", ctypes.byref(module), text.encode() + b"\0")
        except CudaError as refused:
            self.compiled_by = f"ptxas, as the driver said {refused.name}"
            cuda.call("cuModuleLoadData", ctypes.byref(module), _assemble(text, cuda.capability(), refused))
        self._module = module
        self._functions: dict[str, ctypes.c_void_p] = {}

    def launch(
        self, name: str, grid: int, block: int, *arguments: ctypes.c_uint64 | ctypes.c_uint32, stream: int | None = None
    ) -> None:
        """Put the kernel in the stream's queue; does not wait for it."""
        if name not in self._functions:
            function = ctypes.c_void_p()
            self._cuda.call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode() + b"\0")
            self._functions[name] = function
        pointers = (ctypes.c_void_p * max(len(arguments), 1))(*(ctypes.addressof(argument) for argument in arguments))
        shape = (grid, 1, 1, block, 1, 1, 0)
        self._cuda.call("cuLaunchKernel", self._functions[name], *shape, stream, pointers, None)


def _assemble(text: str, capability: str, refused: CudaError) -> bytes:
    """What ptxas makes of it, where a driver comes without its compiler."""
    for program in _find_ptxas():
        command = [program, f"-arch=sm_{capability}", "-o", "/dev/stdout", "-"]
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=20, check=False)
        if done.returncode == 0:
            return done.stdout
    raise refused


def _find_ptxas() -> Iterator[str]:
    yield from filter(None, (shutil.which("ptxas"), shutil.which("/usr/local/cuda/bin/ptxas")))
    if (triton := importlib.util.find_spec("triton")) and triton.origin:
        yield from map(str, (Path(triton.origin).parent / "backends/nvidia/bin").glob("ptxas*"))
