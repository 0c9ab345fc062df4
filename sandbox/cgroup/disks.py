"""The box's disks, for limits of bandwidth: whole ones, because the kernel takes no partitions there."""

from pathlib import Path
from typing import Final

_BLOCK: Final = Path("/sys/block")
#: Not disks: memory, loops over files, compressed memory, optical drives.
_NO_DISKS: Final = ("ram", "loop", "zram", "sr", "fd", "nbd")


def list_disks(block: Path = _BLOCK) -> tuple[str, ...]:
    """Every disk as "major:minor", also those that are made of others (dm, md): each level is limited."""
    found = []
    for folder in sorted(block.iterdir()) if block.is_dir() else []:
        if (
            folder.name.rstrip("0123456789") in _NO_DISKS
            or (folder / "size").read_text(encoding="ascii").strip() == "0"
        ):
            continue
        found.append((folder / "dev").read_text(encoding="ascii").strip())
    return tuple(found)
