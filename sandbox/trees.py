"""Which folders of the box a worker must be able to read: the interpreter's, its packages', the system's libraries."""

import os
import stat
import sys
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import error

_OPEN: Final = stat.S_IROTH | stat.S_IXOTH
# A tree that is one of these, or holds one, would show a slot the box.
_NEVER: Final = ("/proc", "/sys", "/dev", "/run", "/tmp", "/etc", "/bundle")


def find_trees() -> tuple[str, ...]:
    """Real paths of the folders to bind, none inside another.

    Those that import knows (`sys.path` and the two prefixes), and those that loaded modules turned out to lie in:
    an editable install links to its source. Raises ``jail.refused`` when one of them is a folder of the system.
    """
    found = {os.path.realpath(path) for path in ("/usr", sys.prefix, sys.base_prefix, *sys.path) if os.path.isdir(path)}
    modules = sorted({os.path.realpath(file) for file in _module_files()})
    for file in modules:
        if not any(_lies_in(file, tree) for tree in found):
            found.add(os.path.dirname(file))
    for tree in found:
        for folder in _NEVER:
            if _lies_in(folder, tree):
                raise error("jail.refused", f"{tree} is on Python's path and holds {folder}", "take it off sys.path")
    return tuple(sorted(tree for tree in found if not any(_lies_in(tree, other) for other in found - {tree})))


def find_samples() -> tuple[str, ...]:
    """One file of each tree that a worker must be able to read: by these it notices a tree that is closed to it."""
    trees = find_trees()
    seen: dict[str, str] = {}
    for file in sorted(_module_files()):
        real = os.path.realpath(file)
        seen.setdefault(next(tree for tree in trees if _lies_in(real, tree)), file)
    return tuple(seen.values())


def _module_files() -> list[str]:
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return [file for file in files if isinstance(file, str) and os.path.isabs(file) and os.path.isfile(file)]


def _lies_in(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


def find_closed_folder(tree: str) -> str | None:
    """*tree* or a folder directly in it that users other than its owner cannot enter; None when they can enter all."""
    for folder in (tree, *(entry.path for entry in os.scandir(tree) if entry.is_dir(follow_symlinks=False))):
        if os.stat(folder).st_mode & _OPEN != _OPEN:
            return folder
    return None
