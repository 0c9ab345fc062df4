"""Attempts on the box's files: read what is not the slot's, write what is shared, leave traps for others."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests_support.attempts import RIGHTS, Attempt, Props, Removal, make_tests
from tests_support.slots import House, Slot

#: Not in /tmp: what lies there is below the slot's own /tmp, where landlock lets it write.
PACKAGES = f"/var/tmp/bedsit-packages-{os.getpid()}"


@contextlib.contextmanager
def put_files(_: House) -> Iterator[Props]:
    """Files on the box that every user may read: somebody's home, another tenant's log."""
    folder = Path(tempfile.mkdtemp(prefix="bedsit-home-"))
    folder.chmod(0o755)
    for name in ("home", "other"):
        (folder / name).write_text("secret")
        (folder / name).chmod(0o644)
    try:
        yield Props({"paths": ["/etc/shadow", str(folder / "home"), str(folder / "other")]})
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def put_packages(_: House) -> Iterator[Props]:
    """A folder on the path of everybody, which everybody may write: what protects it is the mount alone."""
    folder = Path(PACKAGES)
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "harmless.py").write_text('word = "ok"\n')
    (folder / "harmless.py").chmod(0o666)
    try:
        yield Props({"packages": str(folder)})
    finally:
        shutil.rmtree(folder)


def check_packages(_: Slot, props: Props) -> None:
    """Nothing came, went or changed."""
    folder = Path(props.values["packages"])
    assert os.listdir(folder) == ["harmless.py"]
    assert (folder / "harmless.py").read_text() == 'word = "ok"\n'


def check_poison(_: Slot, props: Props) -> None:
    """It is there: siblings would import it."""
    assert (Path(props.values["packages"]) / "evil.py").exists()


ATTEMPTS = (
    Attempt(
        "1",
        "read the box's passwords, a home, another tenant's log",
        first="mount namespace",
        second="landlock",
        stage=put_files,
        source="""
import os
box = "/box" if os.path.isdir("/box") else ""
result = every([attempt(lambda path=path: open(box + path).read()) for path in paths])
""",
        refused="No such file or directory",
        twin="result = attempt(lambda: open('/etc/passwd').read())",
        removals=(
            Removal("Permission denied", bad="pivot:box_kept"),
            Removal(["Permission denied", "ok", "ok"], bad="pivot:box_kept", without="landlock"),
        ),
    ),
    Attempt(
        "2",
        "write to /, to /usr, into the packages",
        first="read-only mounts",
        second="landlock",
        options=("--packages", PACKAGES),
        stage=put_packages,
        source="""
result = every([attempt(lambda path=path: open(path + "/evil.py", "w")) for path in ("/", "/usr", packages)])
""",
        refused="Read-only file system",
        check=check_packages,
        twin="result = every([attempt(lambda path=path: open(path + '/x', 'w')) for path in ('/tmp', '/bundle')])",
        removals=(
            Removal("Permission denied", bad="trees:writable", without="seal_root", check=check_packages),
            Removal(
                ["Permission denied", "Permission denied", "ok"],
                bad="trees:writable",
                without="seal_root,landlock",
                check=check_poison,
            ),
        ),
    ),
    Attempt(
        "3",
        "change, cut or remove a module that all slots import",
        first="read-only mounts",
        second="landlock",
        options=("--packages", PACKAGES),
        stage=put_packages,
        source="""
import os
module = packages + "/harmless.py"
result = every([
    attempt(lambda: open(module, "r+").write("x")),
    attempt(lambda: os.truncate(module, 0)),
    attempt(lambda: os.rename(module, packages + "/gone.py")),
    attempt(lambda: os.mkdir(packages + "/__pycache__")),
    attempt(lambda: os.unlink(module)),
])
""",
        refused="Read-only file system",
        check=check_packages,
        twin="import harmless; result = harmless.word",
        removals=(
            Removal("Permission denied", bad="trees:writable", check=check_packages),
            Removal(["ok", "ok", "ok", "ok", "No such file or directory"], bad="trees:writable", without="landlock"),
        ),
    ),
    Attempt(
        "6",
        "plant a symbolic link for root to follow",
        first="seccomp",
        second="landlock; root walks no tenant's path",
        source="import os; result = attempt(lambda: os.symlink('/etc/shadow', '/bundle/weights'))",
        refused="Operation not permitted",
        twin="import os; open('/bundle/a', 'w').close(); result = attempt(lambda: os.rename('/bundle/a', '/bundle/b'))",
        removals=(Removal("Permission denied", without="seccomp"), Removal("ok", without="seccomp,landlock")),
    ),
    Attempt(
        "37",
        "replace or remove the router's socket of its own slot",
        first="read-only mounts",
        second="landlock, users",
        source="""
import os, socket
def bind():
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("/run/slot/router.sock")
result = every([
    attempt(bind), attempt(lambda: open("/run/slot/x", "w")), attempt(lambda: os.rename("/run/slot", "/run/gone")),
])
""",
        refused="Read-only file system",
        twin="import os; result = attempt(lambda: os.listdir('/run/slot'))",
        removals=(
            Removal(["Permission denied", "Permission denied", "Read-only file system"], bad="slot_folder:writable"),
            Removal(
                ["Permission denied", "Permission denied", "Read-only file system"],
                bad="slot_folder:writable",
                without="landlock",
            ),
            Removal(["ok", "ok", "Read-only file system"], bad="slot_folder:writable", without=f"landlock,{RIGHTS}"),
        ),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
