"""Small bundles for the end-to-end tests: each a folder on disk that the real packer packs."""

from pathlib import Path

_TOML = """name = "{name}"
runner = "python"
entry = "model:build"
idempotent = {idempotent}

[[inputs]]
name = "x"
dtype = "float32"
shape = [-1]

[[outputs]]
name = "y"
dtype = "float32"
shape = [-1]
"""


def write_bundle(folder: Path, name: str, code: str, *, idempotent: bool = True) -> Path:
    """A bundle whose ``model.py`` is *code* and must define ``build(bundle)``."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "bedsit.toml").write_text(_TOML.format(name=name, idempotent=str(idempotent).lower()))
    (place / "model.py").write_text(code)
    return place


DOUBLE = """
def build(bundle):
    return lambda x: x * 2
"""

# What a tenant's code can see and do from inside, answered as numbers. The input chooses the question.
NOSY = """
import ctypes, os, socket, torch

def visible_processes():
    return sum(name.isdigit() for name in os.listdir("/proc"))

def writable_folders():
    found = 0
    for top, folders, _files in os.walk("/"):
        if top in ("/proc", "/tmp", "/dev/shm", "/bundle") or top.startswith(("/proc/", "/bundle/")):
            folders.clear()
            continue
        try:
            with open(os.path.join(top, "bedsit-was-here"), "w"):
                found += 1
        except OSError:
            pass
        if top.count("/") > 3:
            folders.clear()
    return found

def networks():
    found = 0
    for family, address in ((socket.AF_INET, ("127.0.0.1", 9)), (socket.AF_INET, ("10.0.0.1", 53))):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as s:
                s.connect(address)
                found += 1
        except OSError:
            pass
    return found + os.path.exists("/proc/net")

def capabilities():
    rows = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return sum(int(rows[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))

def own_scratch():
    ok = 0
    for folder in ("/tmp", "/dev/shm", "/bundle"):
        with open(os.path.join(folder, "mine"), "w") as f:
            ok += f.write("x")
    return ok

QUESTIONS = [visible_processes, writable_folders, networks, capabilities, os.getuid, own_scratch]

def build(bundle):
    return lambda x: torch.tensor([float(QUESTIONS[int(q)]()) for q in x])
"""

HUNGRY = """
import torch

def build(bundle):
    def call(x):
        hoard = []
        while True:
            hoard.append(bytearray(b"x" * (8 << 20)))
    return call
"""

BREEDER = """
import os, time, torch

def build(bundle):
    def call(x):
        born = 0
        try:
            while born < 10_000:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                born += 1
        except OSError:
            pass
        return torch.tensor([float(born)])
    return call
"""

# A program of the box, then one that the model wrote itself, then a child that stays. The exit status, or the errno.
PARENT = """
import os, subprocess, torch

def run(path):
    try:
        return float(subprocess.run([path], timeout=30).returncode)
    except OSError as e:
        return float(e.errno)

def build(bundle):
    with open("/tmp/own", "w") as file:
        file.write("#!/usr/bin/true")
    os.chmod("/tmp/own", 0o700)
    return lambda x: torch.tensor([run("/usr/bin/true"), run("/tmp/own")])
"""

# A system call that no list names; its errno.
NOVEL = """
import ctypes, torch

def build(bundle):
    libc = ctypes.CDLL(None, use_errno=True)
    def call(x):
        libc.syscall(int(x[0]))
        return torch.tensor([float(ctypes.get_errno())])
    return call
"""

SPINNER = """
import time, torch

def build(bundle):
    def call(x):
        wall, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < float(x[0]):
            pass
        return torch.tensor([time.process_time() - cpu, time.perf_counter() - wall])
    return call
"""

QUITTER = """
import os, torch

def build(bundle):
    def call(x):
        if float(x[0]) < 0:
            os._exit(int(-x[0]))
        return x
    return call
"""

NOISY = """
def build(bundle):
    def call(x):
        print("hello from the model\\x1b[31m red")
        return x
    return call
"""
