"""All checks in the order in which they run: what only reads first, what may leave the GPU unwell last."""

from typing import Final, NamedTuple


class Check(NamedTuple):
    """*program* is ``module:function`` in checks/; killed after *within_s*. *held*: the GPU is kept open meanwhile."""

    title: str
    program: str
    within_s: int
    held: bool = True


CHECKS: Final = {
    "env": Check("this machine", "environment:check", 45, held=False),
    "nvml": Check("what NVML answers", "answers:check", 30, held=False),
    "T16": Check("MIG profiles and placements", "mig:check_tables", 20, held=False),
    "T15": Check("memory limits of cgroups", "mig:check_limits", 15, held=False),
    "T1": Check("what a context costs", "contexts:check", 100, held=False),
    "fork": Check("CUDA after a fork", "forks:check", 60),
    "nodes": Check("device nodes that CUDA needs", "nodes:check", 40),
    "T9": Check("torch's memory fraction", "quota:check", 40),
    "T14": Check("copies from host memory", "copies:check", 50),
    "T17": Check("reading GPU memory", "digest:check", 20),
    "mlp": Check("launching a tiny model", "mlp:check", 40),
    "T13": Check("NVML's utilisation", "utilisation:check", 25),
    "slices": Check("slices, and a victim", "slices:check", 40),
    "T2": Check("1 to 8 equal processes", "sharing:check", 50),
    "T3": Check("arbiter and driver", "leases:check", 60),
    "T12": Check("what memory remembers", "residue:check", 40),
    "T11": Check("kill -9", "kills:check", 45),
    "T8": Check("torch's shared tensors", "ipc:check", 40),
    "T7": Check("shared memory handles", "vmm:check", 50),
    "T4": Check("a neighbour's faults", "faults:check", 50),
    "T5": Check("locking a process", "locks:check", 55),
    "T6": Check("suspend and restore", "suspends:check", 90),
    "idle": Check("a model that leaves while it is idle", "idle:check", 60),
    "T10": Check("a stopped process", "stops:check", 50),
    "tenants": Check("bedsit on the card", "tenants:check", 150),
    "log": Check("what the driver logged", "environment:check_log", 10),
}
