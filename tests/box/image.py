"""The box's disk: Debian 12 out of Debian's packages, and a Python environment out of wheels; made once, then kept.

It has all that bedsit needs and nothing of bedsit: what is tested travels in a parcel of its own (`parcel.py`), so that
a change of the checkout never asks for a new disk. Debian's kernel is installed into the disk, not on this machine.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
_SUITE: Final = "bookworm"
_MIRROR: Final = "http://deb.debian.org/debian"
_PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "linux-image-cloud-amd64"),
    *("iproute2", "procps", "util-linux", "strace"),
    *("python3", "python3-venv", "libseccomp2"),
)
#: Debian 12's; the wheels are fetched for it, whichever Python runs this.
_PYTHON: Final = "3.11"
#: Beside what bedsit[server] asks for: what its tests ask for.
_TEST_WHEELS: Final = ("pytest", "pytest-randomly", "pytest-timeout", "hypothesis")
#: Published as source only, and pure Python: a wheel of it is made here.
_SOURCES: Final = ("cgroupspy",)
_CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"
_DISK_SIZE: Final = "3G"  # sparse
_NEEDS: Final = {"debootstrap": "debootstrap", "mkfs.ext4": "e2fsprogs", "chroot": "coreutils"}

#: All the disk knows of its task: unpack the parcel and run what it brings.
_UNIT: Final = """[Unit]
Description=unpack the parcel and run its checks
After=multi-user.target dbus.service systemd-tmpfiles-setup.service
FailureAction=poweroff

[Service]
Type=exec
StandardError=journal+console
ExecStartPre=/bin/tar --no-same-owner -xf /dev/vdb -C /opt/parcel
WorkingDirectory=/opt/parcel
Environment=PYTHONDONTWRITEBYTECODE=1
ExecStart=/opt/bedsit/bin/python -m tests.box.guest.main

[Install]
WantedBy=graphical.target
"""
_FILES: Final = {
    "etc/hostname": "box\n",
    "etc/hosts": "127.0.0.1 localhost box\n",
    "etc/fstab": "/dev/vda / ext4 defaults,noatime 0 0\n",
    "etc/systemd/system/box.service": _UNIT,
    # What went wrong is read from the journal: it may not leave anything out.
    "etc/systemd/journald.conf.d/box.conf": "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n",
    # One disk, one kernel: an initial file system with everything in it takes an emulated processor seconds to unpack.
    "etc/initramfs-tools/conf.d/box": "MODULES=list\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
}
#: agetty hangs up the serial lines under whoever writes there; the others would only take an emulated processor's time.
_MASKED: Final = (
    *("getty@.service", "serial-getty@.service", "getty.target"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("e2scrub_reap.service", "systemd-networkd.service", "systemd-resolved.service"),
)


class Image(NamedTuple):
    """What qemu boots."""

    disk: Path
    kernel: Path
    initrd: Path


def find_image(cache: Path, tell: Callable[[str], None]) -> Image:
    """The image out of *cache*, made first when it is not there. Raises RuntimeError with what kept it from being made.

    A folder is named by what it was made from, and older ones are removed.
    """
    folder = cache / _key()
    image = Image(folder / "disk.img", folder / "vmlinuz", folder / "initrd.img")
    if not folder.exists():
        lacking = [package for program, package in _NEEDS.items() if not shutil.which(program)]
        if lacking:
            raise RuntimeError(f"missing: apt-get install {' '.join(lacking)}")
        for old in cache.glob("*"):
            if old.is_dir():
                shutil.rmtree(old)
        new = folder.with_suffix(".new")
        new.mkdir()
        _build(new, tell)
        new.rename(folder)
    return image


def _key() -> str:
    """A name for all that the disk is made from: this file, the versions, and what bedsit asks for."""
    parts = (Path(__file__).read_text(), (ROOT / "constraints.txt").read_text(), repr(_requirements()))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["server"], *_TEST_WHEELS]


def _build(folder: Path, tell: Callable[[str], None]) -> None:
    root, wheels = folder / "root", folder / "root" / "wheels"
    tell(f"debootstrap of {_SUITE}: {len(_PACKAGES)} packages and what they need")
    packages = f"--include={','.join(_PACKAGES)}"
    _run("debootstrap", "--variant=minbase", packages, _SUITE, root, _MIRROR, log=folder / "log")
    _configure(root, folder / "log")
    tell("wheels of the Python environment")
    wheels.mkdir()
    _fetch(wheels, folder / "log")
    tell("Python environment")
    _chroot(root, folder / "log", "/usr/bin/python3", "-m", "venv", "/opt/bedsit")
    install = ("/opt/bedsit/bin/pip", "install", "--quiet", "--no-index", "--find-links", "/wheels")
    _chroot(root, folder / "log", *install, *_requirements())
    for waste in (wheels, root / "var/cache/apt/archives", root / "var/lib/apt/lists"):
        shutil.rmtree(waste)
    tell("disk")
    for name in ("vmlinuz", "initrd.img"):
        (found,) = (root / "boot").glob(f"{name}-*")
        shutil.copyfile(found, folder / name)
    _run("mkfs.ext4", "-q", "-F", "-d", root, folder / "disk.img", _DISK_SIZE, log=folder / "log")
    shutil.rmtree(root)


def _configure(root: Path, log: Path) -> None:
    for name, text in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "opt/parcel").mkdir()
    units = root / "etc/systemd/system"
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    _chroot(root, log, "systemctl", "enable", "--quiet", "box.service")
    _chroot(root, log, "systemctl", "set-default", "--quiet", "graphical.target")
    _chroot(root, log, "update-initramfs", "-u")


def _fetch(wheels: Path, log: Path) -> None:
    """Wheels for the disk's Python. As in the Makefile: torch first, and wherever possible the build for CPUs."""
    pip, constraints = (sys.executable, "-m", "pip"), ("-c", ROOT / "constraints.txt")
    download = (
        *(*pip, "download", "--quiet", "--dest", wheels, "--find-links", wheels, *constraints),
        *("--only-binary=:all:", f"--python-version={_PYTHON}"),
    )
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    for words in (
        (f"{torch}+cpu",),
        (f"{torch}+cpu", "--retries=1", "--timeout=20", f"--extra-index-url={_CPU_INDEX}"),
        (torch,),
    ):
        try:
            _run(*download, "--no-deps", *words, log=log)
            break
        except RuntimeError:
            continue
    _run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, *constraints, *_SOURCES, log=log)
    _run(*download, *_requirements(), log=log)


def _chroot(root: Path, log: Path, *command: str) -> None:
    """Run a program of the disk, as on the disk: nothing of our environment is its business."""
    _run("chroot", root, *command, log=log, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"})


def _run(*command: str | Path, log: Path, env: dict[str, str] | None = None) -> None:
    with log.open("ab") as out:
        done = subprocess.run(
            [*map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            check=False,
            env=env or {**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{tail}")
