"""The NVML helper as a unit, over a library that says that there is a GPU. What needs a card is not shown here."""

from pathlib import Path

from tests.box.guest.check import PARCEL, ask, check, events, group_of, is_full, main_pid, run, wait_until

_LIBRARY = PARCEL / "nvml"
_DROP_IN = Path("/etc/systemd/system/bedsit-nvml@.service.d/library.conf")
_GPU = "GPU-00000000-0000-0000-0000-000000000000"
_CARD = f"driver 580\ngpu 0 0 85520809984 16896 9 0 0 0 0 1 0 {_GPU} NVIDIA H100\n"


@check("start", within_s=300)
def devices() -> str:
    """A GPU is seen through a unit without any capability, which goes when the driver hangs, and another one comes."""
    assert "bedsit-nvml.socket" in ask("device.list")["trouble"]["what"]
    _say(_CARD)
    _DROP_IN.parent.mkdir()
    _DROP_IN.write_text(f"[Service]\nEnvironment=LD_LIBRARY_PATH={_LIBRARY}\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "bedsit-nvml.socket")
    run("systemctl", "restart", "bedsitd")  # it would try again by itself, later
    try:
        wait_until(lambda: is_full() and _GPU in _list(), "the GPU is listed", 120)
        first, pid = _find_helper()
        assert "bedsit.slice" in group_of(pid).parts
        capabilities = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Cap")]
        assert {line.split()[1] for line in capabilities} == {"0" * 16}, capabilities
        _say(f"{_CARD}hang nvmlDeviceGetName 0\n")
        wait_until(lambda: events("device.degraded"), "the GPU is degraded", 90)
        assert "nvmlDeviceGetName did not return" in events("device.degraded")[-1]["text"]
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the helper is gone", 30)
        _say(_CARD)
        wait_until(lambda: events("device.recovered"), "the GPU is back", 90)
        return f"{first}, then {_find_helper()[0]}"
    finally:
        run("systemctl", "stop", "bedsit-nvml.socket")
        _DROP_IN.unlink()
        _DROP_IN.parent.rmdir()
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", "bedsitd")
        wait_until(is_full, "the pool is full", 60)


def _say(script: str) -> None:
    new = _LIBRARY / "script.new"
    new.write_text(script)
    new.rename(_LIBRARY / "script")


def _list() -> set[str]:
    return {row["id"] for row in ask("device.list")["devices"]}


def _find_helper() -> tuple[str, int]:
    lines = run("systemctl", "list-units", "--plain", "--no-legend", "bedsit-nvml@*").splitlines()
    assert len(lines) == 1, lines
    unit = lines[0].split()[0]
    return unit, main_pid(unit)
