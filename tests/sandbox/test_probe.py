"""What the box offers and what it says when something is missing, and which folders a worker needs."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.inspect import LAYERS, find_worker, start_time
from bedsit.sandbox.probe.checks import CHECKS
from bedsit.sandbox.trees import find_closed_folder, find_trees

#: Nobody, who may still read: Python may live where only root comes.
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
NOBODY += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def look(prepare: str = "", through: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The probe's findings by name, after its process, started *through* a command, has run *prepare*."""
    program = "import os\nfrom bedsit.sandbox.probe import look\nfrom bedsit.sandbox.jail import libc\n"
    program += textwrap.dedent(prepare) + "\nlook.main()"
    argv = [*through, sys.executable, "-I", "-c", program, "--json"]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return {finding["name"]: finding for finding in json.loads(done.stdout)}


def test_this_box_can_build_slots() -> None:
    """All that strict tenants need is here, or none of these tests could run; what was found is said."""
    found = look()
    assert [name for name, finding in found.items() if finding["required"] and not finding["ok"]] == []
    assert all(finding["found"] and finding["exposes"] for finding in found.values())
    assert {"root", "kernel", "user namespace", "landlock", "libseccomp", "device program"} <= set(found)


def test_every_layer_hangs_on_something_that_is_looked_at() -> None:
    """No wall that is inspected can be missing without a finding that says what it lacks."""
    assert {wall for check in CHECKS for wall in check.walls} == set(LAYERS)
    assert {wall for check in CHECKS if check.required for wall in check.walls} == set(LAYERS)
    assert all(check.exposes and check.mend for check in CHECKS)
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_it_prints_json() -> None:
    """For scripts, and for `bedsit doctor`."""
    argv = [sys.executable, "-I", "-m", "bedsit.sandbox.probe", "--json"]
    findings = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert {"name", "ok", "found", "exposes", "mend", "walls", "required"} == set(findings[0])


def test_it_changes_nothing() -> None:
    """Same mounts, groups and namespaces before and after; what it tried is gone with its children."""
    look("""
        def state():
            namespaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in sorted(os.listdir("/proc/self/ns"))]
            return namespaces, *(open(f"/proc/self/{name}").read() for name in ("mountinfo", "cgroup"))

        before = state()
        look.probe()
        assert state() == before
        try:
            os.waitpid(-1, 0)
            raise AssertionError("a child is left")
        except ChildProcessError:
            pass
    """)


@pytest.mark.root
def test_without_root_it_does_not_guess() -> None:
    """What only root can see is unknown, not missing; namespaces are tried in a user namespace."""
    found = look(through=NOBODY)
    assert found["root"]["ok"] is False
    assert found["device program"]["ok"] is None
    assert found["device program"]["mend"] == "look again as root"
    assert found["network namespace"]["ok"] is True
    assert found["proc hidepid"]["ok"] is True


@pytest.mark.root
def test_a_namespace_that_is_not_allowed_is_missing_with_its_setting() -> None:
    """The limit of network namespaces is 0 for whoever is in this user namespace: the one finding that changes."""
    found = look("""
        libc.unshare(libc.CLONE_NEWUSER)
        for name, text in (("self/uid_map", "0 0 1"), ("sys/user/max_net_namespaces", "0")):
            with open(f"/proc/{name}", "w") as file:
                file.write(text)
    """)
    assert found["network namespace"]["ok"] is False
    assert found["network namespace"]["mend"] == "sysctl -w user.max_net_namespaces=10000"
    assert found["network namespace"]["walls"] == ["network_namespace"]
    assert found["uts namespace"]["ok"] is True


@pytest.mark.root
@pytest.mark.parametrize(
    ("call", "number", "missing"),
    [
        ("landlock_create_ruleset", "ENOSYS", {"landlock", "landlock network", "landlock ioctl", "landlock scopes"}),
        ("bpf", "ENOSYS", {"device program"}),
        ("clone3", "ENOSYS", {"birth in a group"}),
        ("seccomp", "EINVAL", {"seccomp"}),
        ("fsconfig", "EINVAL", {"proc hidepid"}),
    ],
)
def test_a_call_that_the_kernel_lacks_is_seen(call: str, number: str, missing: set[str]) -> None:
    """A filter plays the kernel that does not know the call: exactly what hangs on it is missing."""
    found = look(f"""
        import errno
        from bedsit.sandbox.seccomp.libseccomp import ALLOW, Filter, find_number, refuse_with
        with Filter(ALLOW) as program:
            program.add(refuse_with(errno.{number}), find_number("{call}"))
            libc.install_filter(program.export(), listen=False)
    """)
    assert {name for name, finding in found.items() if finding["ok"] is False} - _absent() == missing
    assert all(found[name]["mend"] for name in missing)


@pytest.mark.root
def test_a_box_without_cgroup2_and_with_little_shared_memory_is_seen() -> None:
    """In a mount namespace of its own, without the cgroup2 mount and with a small /dev/shm."""
    found = look("""
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
        libc.mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=1m")
        for line in open("/proc/self/mountinfo").read().splitlines():
            if " - cgroup2 " in line:
                libc.detach(line.split()[4])
    """)
    missing = {name for name, finding in found.items() if finding["ok"] is False} - _absent()
    assert {"cgroup2", "kill and freeze", "birth in a group", "shared memory"} <= missing
    assert found["shared memory"]["found"] == "1 MiB"


def _absent() -> set[str]:
    """What this box lacks anyway, and may."""
    return {name for name, finding in look().items() if finding["ok"] is False and not finding["required"]}


def test_trees_hold_python_and_never_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter and its packages are in; a path that would open /etc or /tmp to tenants is an error."""
    trees = find_trees()
    for file in (os.__file__, pytest.__file__, __file__):
        assert any(Path(os.path.realpath(file)).is_relative_to(tree) for tree in trees)
    for folder in ("/", "/tmp"):
        monkeypatch.setattr(sys, "path", [*sys.path, folder])
        with pytest.raises(BedsitError, match=r"jail\.refused"):
            find_trees()
        monkeypatch.undo()


def test_closed_folders_are_found(tmp_path: Path) -> None:
    """A tree that other users cannot enter is named."""
    (tmp_path / "lib").mkdir()
    tmp_path.chmod(0o755)
    assert find_closed_folder(str(tmp_path)) is None
    (tmp_path / "lib").chmod(0o700)
    assert find_closed_folder(str(tmp_path)) == str(tmp_path / "lib")


def test_a_process_has_a_start_time() -> None:
    """With the pid it is a name for good; nobody has none."""
    assert 0 < start_time(1) <= start_time(os.getpid())
    with pytest.raises(ProcessLookupError):
        start_time(2**22 + 1)


def test_no_worker_is_found_where_there_is_none() -> None:
    """An init without a child has no worker."""
    with pytest.raises(LookupError):
        find_worker(os.getpid(), [1])
