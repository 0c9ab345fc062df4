"""What is new on every run: the wheel of this checkout, its tests, its units, a fake NVML, and the tiny model's bundle.

A tar file that the box gets as its second disk: nobody has to make a file system, or to mount one.
"""

import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

from tests.box.image import ROOT

#: Of the checkout; the packages themselves are not here, so that nothing but the wheel can be what is tested.
_FOLDERS: Final = ("tests", "examples", "systemd")
_FILES: Final = ("pyproject.toml", "constraints.txt")
_NVML: Final = ROOT / "tests/support/tests_support/nvml/fake.c"
_WASTE: Final = ("__pycache__", ".hypothesis", ".pytest_cache")


def pack_parcel(folder: Path) -> Path:
    """Make the parcel in *folder*; gives the tar file. Raises CalledProcessError with what a program said."""
    parcel = folder / "parcel.tar"
    build = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "dist", ROOT)
    subprocess.run(build, check=True, capture_output=True)
    subprocess.run(
        [sys.executable, "-m", "examples.tiny.make", "--out", folder / "tiny"],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    (folder / "nvml").mkdir()
    library = folder / "nvml/libnvidia-ml.so.1"
    compiler = ("cc", "-shared", "-fPIC", "-pthread", _NVML, f"-Wl,-soname,{library.name}", "-o", library, "-ldl")
    subprocess.run(compiler, check=True, capture_output=True)
    with tarfile.open(parcel, "w") as tar:
        for name in (*_FOLDERS, *_FILES):
            tar.add(ROOT / name, name, filter=_leave_out)
        tar.add(folder / "dist", "dist")
        tar.add(folder / "tiny", "tiny")
        tar.add(folder / "nvml", "nvml")
    return parcel


def _leave_out(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if any(part in _WASTE for part in Path(member.name).parts) else member
