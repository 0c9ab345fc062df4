"""The tests of the jail and of its limits, and the attacks, on cgroup v2: in a delegated unit, as an operator would."""

import contextlib
import re
import subprocess
from pathlib import Path

from tests.box.guest.check import BIN, PARCEL, check, main_pid, run, wait_until

_JAIL = ("birth", "cgroup", "devices", "filters", "jail", "walls_removed")
#: Not those on logs, terminals, answers and other trusted code of ours, nor on what came with Linux 6.16.
_ATTACKS = (
    *("calls", "devices", "files", "kernel_objects", "limits", "mappings", "names", "network", "prctl"),
    *("processes", "procfs", "programs", "shared_memory"),
)
_UNIT = "box-tests.service"
_SAID = Path("/run/box-tests.log")


@check("wheel", within_s=660)
def jail_and_limits() -> str:
    """What of tests/sandbox depends on cgroups, on the kernel, or on who started us."""
    return _run_tests(*(f"tests/sandbox/test_{name}.py" for name in _JAIL), "-k", "not torch")


@check("wheel", within_s=660)
def attacks() -> str:
    """For each wall a hostile attempt that fails, its harmless twin that works, and the attempt without that wall."""
    files = (f"tests/security/test_{name}.py" for name in _ATTACKS)
    return _run_tests(*files, "-m", "attack", "-p", "tests.box.guest.one_each")


def _run_tests(*words: str) -> str:
    """Run pytest; gives its counts. Raises RuntimeError with what it said when a test fails."""
    _SAID.unlink(missing_ok=True)
    try:
        run(
            *("systemd-run", "--quiet", "--wait", "--collect", f"--unit={_UNIT}", "--property=Delegate=yes"),
            # As the units have it: where a limit is the wall, what is without it must have more.
            "--property=LimitNOFILE=1048576",
            *(f"--property=StandardOutput=file:{_SAID}", f"--property=StandardError=file:{_SAID}"),
            # In CI a skip of what the machine could run is a failure, and so is everything that is left behind.
            *("--setenv=CI=true", "--setenv=PYTHONDONTWRITEBYTECODE=1", f"--working-directory={PARCEL}"),
            *(BIN / "python", "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short", "--durations=15", *words),
        )
    except (RuntimeError, TimeoutError) as e:
        # One that is late is asked to say what it knows.
        subprocess.run(["systemctl", "kill", "--signal=INT", _UNIT], capture_output=True, check=False)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not main_pid(_UNIT), "pytest ends", 20)
        said = _SAID.read_text(errors="replace").splitlines()
        raise RuntimeError("\n".join([f"{said[-1] if said else 'it said nothing'}", *said, str(e)])) from None
    finally:
        subprocess.run(["systemctl", "kill", "--signal=KILL", _UNIT], capture_output=True, check=False)
    found = re.search(r"(\d+ passed.*?) in [\d.]+s", _SAID.read_text().splitlines()[-1])
    assert found is not None, "no summary"
    return found[1]
