"""What a program that only calls models has to load, and to have installed."""

import json
import subprocess
import sys

_LOADED = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

REFUSED = {"torch", "safetensors", "msgspec", "psutil", "cgroupspy", "typer", "rich", "structlog", "setproctitle"}
sys.meta_path.insert(0, Absent())
import bedsit
before = sorted(sys.modules)
names = [getattr(bedsit, name) for name in bedsit.__all__]
import bedsit.ipc.admin
try:
    bedsit.Client("nobody", run_dir="/nonexistent").infer("m", {})
except bedsit.BedsitError as e:
    code = e.code
print(json.dumps([before, sorted(sys.modules), code]))
"""


def test_the_client_needs_only_the_base_install() -> None:
    """With the server's packages not installed, both clients import, and fail to connect with our own error."""
    output = subprocess.run([sys.executable, "-I", "-c", _LOADED], capture_output=True, text=True, check=True).stdout
    before, after, code = json.loads(output)
    assert code == "router.unavailable"
    assert not {"zmq", "numpy", "msgpack"} & set(before)
    assert not {"torch", "msgspec", "typer", "structlog"} & {name.partition(".")[0] for name in after}
    assert not [name for name in after if name.startswith(("bedsit.supervisor", "bedsit.sandbox", "bedsit.cli"))]


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The lazy package has what it says and nothing else."""
    import bedsit

    assert not hasattr(bedsit, "Clint")
    assert {"Client", "AsyncClient", "BedsitError"} <= set(bedsit.__all__)
