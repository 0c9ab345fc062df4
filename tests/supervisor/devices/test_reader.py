"""What the helper asks NVML, and what it does with odd questions."""

import re
from pathlib import Path

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.devices.nodes import name_cap_nodes, name_nodes, read_cap_minors
from bedsit.supervisor.devices.reports import DriverReport, Happening, read_report

HELPER = Path(__file__).parents[3] / "supervisor/devices/nvml"
#: Functions of NVML that only look, or only wait.
READS = re.compile(
    r"nvml(Init|SystemGet\w+|DeviceGet\w+|GpuInstanceGet\w+|GpmQuery\w+|EventSet(Create|Wait)|DeviceRegisterEvents)$"
)
NO_FUNCTION = re.compile(r"nvmlEvent(Type\w+|MigConfigChange)$")
#: All that change something, by the one file that calls them.
CUTS = {
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlComputeInstanceDestroy",
    "nvmlGpuInstanceDestroy",
}
CHANGES = {"cutter.py": CUTS, "limiter.py": {"nvmlDeviceSetMemoryLimits_v1"}}


def test_only_functions_that_read_are_called_but_for_those_that_cut_and_limit() -> None:
    """Every name of NVML in the helper's source reads or is a constant, or is in the one file that may change that."""
    found = {file.name: set(re.findall(r"\bnvml[A-Z]\w+", file.read_text())) for file in HELPER.glob("*.py")}
    assert sum(map(len, found.values())) > 30
    for file, names in found.items():
        other = {name for name in names if not READS.match(name) and not NO_FUNCTION.match(name)}
        assert other == CHANGES.get(file, set()), file
    assert not READS.match("nvmlDeviceSetMigMode")


def test_nobody_else_speaks_to_nvml() -> None:
    """The binding is imported in the helper and nowhere else."""
    root = HELPER.parents[2]
    files = [file for folder in ("supervisor", "sandbox", "ipc", "cli") for file in (root / folder).rglob("*.py")]
    users = {file.parent for file in files if re.search(r"^\s*(import|from) pynvml", file.read_text(), re.MULTILINE)}
    assert users == {HELPER}


@pytest.mark.parametrize(
    "body", [None, [], {"version": 1, "gpus": 1}, {"version": "1", "gpus": -1}, {"version": "x" * 999}]
)
def test_an_answer_that_is_none_is_refused(body: object) -> None:
    """By its type, before anybody believes it."""
    with pytest.raises(BedsitError) as refused:
        read_report(body, DriverReport)
    assert refused.value.code == "wire.malformed"


def test_what_is_left_out_has_its_default() -> None:
    """An event need not be about a MIG instance."""
    assert read_report({"uuid": "GPU-1", "type": 8, "datum": 31}, Happening) == Happening("GPU-1", 8, 31)


def test_device_files_are_named_as_the_driver_lists_them(tmp_path: Path) -> None:
    """As measured on an H100; what is not listed has none."""
    file = tmp_path / "driver/nvidia-caps/mig-minors"
    file.parent.mkdir(parents=True)
    file.write_text(
        "config 1\nmonitor 2\ngpu0/gi0/access 3\ngpu0/gi0/ci0/access 4\ngpu0/gi1/access 12\nodd line here\n"
    )
    minors = read_cap_minors(tmp_path)
    assert name_cap_nodes(minors, 0, 0, 0) == ("/dev/nvidia-caps/nvidia-cap3", "/dev/nvidia-caps/nvidia-cap4")
    assert name_cap_nodes(minors, 0, 1, 0) is None
    assert name_nodes(7) == ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia7")
    assert read_cap_minors(tmp_path / "nowhere") == {}
