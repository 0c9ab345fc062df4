"""A rival's packages: a virtual environment per server, beside the one that runs, whose torch all of them use.

The folder of torch comes last on the environment's path, so a rival's own packages win over ours, and pip brings only
what is missing. What is measured behind every server, and behind ours, is the same build of torch.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from bench.rivals.rival import Rival

_DEADLINE_S: Final = 900
_READY: Final = "installed"
_NICE: Final = 15


def find_python(work: Path, rival: Rival) -> Path | None:
    """The interpreter of the rival's environment below *work*; None when it is not there as its pins ask for it."""
    folder = _find_folder(work, rival)
    ready = folder / _READY
    pins = ready.read_text() if ready.exists() else None
    return folder / "bin/python" if pins == _write_pins(rival) else None


def make_environment(work: Path, rival: Rival) -> Path:
    """Install the rival below *work*, for which packages are fetched; gives its interpreter. Raises RuntimeError."""
    folder = _find_folder(work, rival)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", "--without-pip", folder])
    packages = next((folder / "lib").glob("python3*/site-packages"))
    (packages / "zz-base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin/python"
    options = ["--quiet", "--disable-pip-version-check", *(["--no-deps"] if rival.without_dependencies else [])]
    _run([python, "-m", "pip", "install", *options, *rival.requirements])
    (folder / _READY).write_text(_write_pins(rival))
    return python


def find_missing(rival: Rival) -> str | None:
    """What the rival needs of the machine that is not there, in words."""
    missing = [program for program in rival.needs if shutil.which(program) is None]
    return f"{' and '.join(missing)} cannot be found on this machine" if missing else None


def _find_folder(work: Path, rival: Rival) -> Path:
    name = re.split(r"[\[=<>]", rival.requirements[0])[0]
    return work / name


def _write_pins(rival: Rival) -> str:
    """Whatever an environment depends on: when it changes, the environment is made again."""
    return "\n".join([*rival.requirements, sysconfig.get_path("purelib"), ""])


def _run(argv: list[object]) -> None:
    words = [str(word) for word in argv]
    try:
        subprocess.run(
            ["nice", "-n", str(_NICE), *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            env={**os.environ, "PYTHONPATH": ""},
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not installed within {_DEADLINE_S} s") from None
    except subprocess.CalledProcessError as e:
        lines = [line for line in e.stderr.splitlines() if line.strip()] or [f"exit code {e.returncode}"]
        raise RuntimeError(f"not installed: {lines[-1]}") from None
