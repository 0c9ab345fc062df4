"""What a program that only calls models has to load, and to have installed."""

import json
import subprocess
import sys
from typing import Any

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

_WITHOUT_TORCH = """
import json, os, sys
sys.modules["torch"] = None
import numpy as np
from bedsit.ipc import wire
from bedsit.ipc.arena import Arena
from bedsit.ipc.door import ModelInfo
from bedsit.ipc.manifest import parse_manifest
from bedsit.ipc.session import Session

ROW = {"name": "x", "dtype": "float32", "shape": [-1]}
INFO = ModelInfo(
    1, 1, parse_manifest({"name": "m", "runner": "python", "entry": "m:b", "inputs": [ROW], "outputs": [ROW]})
)

def call(tensors):
    fd = os.memfd_create("arena")
    os.ftruncate(fd, 1 << 16)
    session = Session(Arena(fd, 1 << 16, 1), tensors)
    pending, packet = session.begin(INFO, None, {"x": np.ones(1, np.float32)}, 0)
    assert session.accept(wire.readdress(packet, wire.Kind.RESPONSE, pending.id)) is pending
    return pending

told, fine = call("torch"), call("numpy")
print(json.dumps([told.failure.code, fine.failure or "", float(fine.take()["x"][0]), "torch.nn" in sys.modules]))
"""


def _run(program: str) -> Any:
    output = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True).stdout
    return json.loads(output)


def test_the_client_needs_only_the_base_install() -> None:
    """With the server's packages not installed, both clients import, and fail to connect with our own error."""
    before, after, code = _run(_LOADED)
    assert code == "router.unavailable"
    assert not {"zmq", "numpy", "msgpack"} & set(before)
    assert not {"torch", "msgspec", "typer", "structlog"} & {name.partition(".")[0] for name in after}
    assert not [name for name in after if name.startswith(("bedsit.supervisor", "bedsit.sandbox", "bedsit.cli"))]


def test_a_client_of_the_fast_lane_never_loads_zeromq() -> None:
    """libzmq starts threads: neither the clients' modules nor a client that does not ask for that lane load it."""
    _, after, _ = _run(_LOADED)
    assert {"bedsit.ipc.client", "bedsit.ipc.aclient", "bedsit.ipc.fastlane"} <= set(after)
    assert not {"zmq", "bedsit.ipc.zmqlane"} & set(after)


def test_without_torch_only_whoever_asked_for_tensors_is_told() -> None:
    """An answer that cannot become tensors ends its own call; arrays need no torch, in or out."""
    assert _run(_WITHOUT_TORCH) == ["internal", "", 1.0, False]


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The lazy package has what it says and nothing else."""
    import bedsit

    assert not hasattr(bedsit, "Clint")
    assert {"Client", "AsyncClient", "BedsitError"} <= set(bedsit.__all__)
