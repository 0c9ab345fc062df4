"""A virtual machine without KVM, and what it says on its second serial line."""

import selectors
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.box.image import Image

PROGRAM: Final = "qemu-system-x86_64"
_MEMORY: Final = "3072"
_PROCESSORS: Final = "2"
_READ_BYTES: Final = 1 << 16


class Machine:
    """Boots *image* with *parcel* as the second disk; ``lines`` gives what it says until it is switched off.

    The first serial line is the kernel's, and goes to *console*. Disks are never written to: what the machine writes is
    gone with it. It ends with us, even where we are killed (``setpriv --pdeathsig``), and is nice to others.
    """

    def __init__(self, image: Image, parcel: Path, console: Path, words: str) -> None:
        self._console = console
        kernel = f"root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 mitigations=off audit=0 {words}"
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "nice", "-n", "5", PROGRAM),
                *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", _PROCESSORS, "-m", _MEMORY),
                *("-nodefaults", "-no-reboot", "-display", "none", "-net", "none", "-device", "virtio-rng-pci"),
                *("-serial", f"file:{console}"),
                *("-chardev", "stdio,id=said,signal=off", "-serial", "chardev:said"),
                *("-kernel", image.kernel, "-initrd", image.initrd),
                *("-append", kernel),
                *("-drive", f"file={image.disk},if=virtio,format=raw,cache=unsafe,snapshot=on"),
                *("-drive", f"file={parcel},if=virtio,format=raw,readonly=on"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def lines(self, deadline: float) -> Iterator[str]:
        """Each line as it comes; ends when the machine does. Raises TimeoutError at *deadline* (time.monotonic)."""
        assert self._process.stdout is not None
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError("the box did not end in time")
                data = self._process.stdout.read1(_READ_BYTES)  # type: ignore[attr-defined]  # a BufferedReader
                if not data:
                    break
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace").rstrip("\r")
        if rest:
            yield rest.decode(errors="replace")
        self._process.wait(5)

    def last_words(self, count: int = 40) -> list[str]:
        """The end of what the kernel said."""
        return self._console.read_text(errors="replace").splitlines()[-count:] if self._console.exists() else []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()
