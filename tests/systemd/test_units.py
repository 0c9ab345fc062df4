"""The shipped units: understood by systemd, hardened as far as promised, with a reason for each thing left open."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
SERVICES = ("bedsitd.service", "bedsit-router.service", "bedsit-zygote@.service", "bedsit-nvml@.service")
SOCKETS = ("bedsitd.socket", "bedsit-router.socket")
# What is 0.0 to 10.0 on systemd's scale is 0 to 100 for its --threshold.
BOUNDS = {"bedsit-router.service": 20, "bedsitd.service": 35, "bedsit-zygote@.service": 60, "bedsit-nvml@.service": 30}
# Directives that leave open what a careful service closes, when they have these values or when they are not empty.
OPEN = {
    "CapabilityBoundingSet": r".+",
    "DeviceAllow": r".+",
    "MemoryDenyWriteExecute": "no",
    "PrivateDevices": "no",
    "PrivateUsers": "no",
    "ProcSubset": "all",
    "ProtectControlGroups": "no",
    "ProtectHostname": "no",
    "ProtectProc": "default",
    "ReadWritePaths": r".+",
    "RestrictNamespaces": "no",
}


def find_tool(name: str) -> str:
    """The path of a systemd tool; a machine without it cannot hold the promise, and says what to install."""
    path = shutil.which(name)
    assert path is not None, f"{name} is missing: install the Debian package 'systemd'"
    return path


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units in a folder of their own, with stand-ins for the programs they start."""
    folder = tmp_path / "units"
    programs = tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for path in [path for kind in ("service", "socket", "slice") for path in UNITS.glob(f"*.{kind}")]:
        text = path.read_text()
        for program in set(re.findall(r"/opt/bedsit/bin/([a-z-]+)", text)):
            (programs / program).write_text("#!/bin/sh\n")
            (programs / program).chmod(0o755)
        (folder / path.name).write_text(text.replace("/opt/bedsit/bin", str(programs)))
        if "@." in path.name:
            shutil.copy(folder / path.name, folder / path.name.replace("@.", "@1."))
    return folder


def analyze(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze on the units in *folder* and systemd's own."""
    return subprocess.run(
        [find_tool("systemd-analyze"), *words],
        env={"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin", "SYSTEMD_COLORS": "0", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )


def read_directives(name: str) -> list[tuple[int, str, str]]:
    """(line number, key, value) of every directive of a shipped unit."""
    lines = (UNITS / name).read_text().splitlines()
    pairs = [(number, *line.partition("=")[::2]) for number, line in enumerate(lines) if re.match(r"\w+=", line)]
    return [(number, key, value) for number, key, value in pairs]


def test_systemd_understands_every_line(installed: Path) -> None:
    """No unknown key, no missing program, no bad value."""
    units = [str(path) for path in sorted(installed.iterdir()) if "@." not in path.name]
    done = analyze("verify", "--man=no", *units, folder=installed)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_line_that_systemd_does_not_understand_is_noticed(installed: Path) -> None:
    """The check above can fail: a misspelt directive does."""
    path = installed / "bedsitd.service"
    path.write_text(path.read_text().replace("ProtectHome=", "ProtectHoem="))
    done = analyze("verify", "--man=no", str(path), folder=installed)
    assert "ProtectHoem" in done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_exposure_stays_within_its_bound(installed: Path, name: str) -> None:
    """The score that the README promises."""
    threshold = f"--threshold={BOUNDS[name]}"
    done = analyze("security", "--offline=true", threshold, str(installed / name), folder=installed)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout
    assert float(found[1]) * 10 <= BOUNDS[name]
    assert f"| `{name}` | {found[1]} | {BOUNDS[name] / 10:.1f} |" in (UNITS / "README.md").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_left_open_has_its_reason_beside_it(name: str) -> None:
    """Above such a line, or above the lines right before it, stands a comment; each capability is named there."""
    lines = (UNITS / name).read_text().splitlines()
    for number, key, value in read_directives(name):
        if key not in OPEN or not re.fullmatch(OPEN[key], value):
            continue
        above = number - 1
        while re.match(r"\w+=", lines[above]):
            above -= 1
        assert lines[above].startswith("#"), f"{name}:{number + 1}: {key}={value} without a reason"
        if key == "CapabilityBoundingSet":
            comment = "\n".join(line for line in lines[:number] if line.startswith("#"))
            for capability in value.split():
                short = capability.removeprefix("CAP_")
                assert re.search(rf"CAP_{short}\b|/{short}\b|CAP_SETUID/SET{short[3:]}", comment), capability


def test_what_the_readme_enables_can_be() -> None:
    """``systemctl enable`` of a unit without [Install] does nothing, and the box comes back without it."""
    words = re.search(r"^systemctl enable --now (.+)$", (UNITS / "README.md").read_text(), re.MULTILINE)
    assert words is not None
    for name in words[1].split():
        unit = name if "." in name else f"{name}.service"
        wanted = [value for _, key, value in read_directives(unit) if key == "WantedBy"]
        assert wanted == ["sockets.target" if unit.endswith(".socket") else "multi-user.target"], name


@pytest.mark.parametrize("name", SOCKETS)
def test_sockets_are_held_for_good(name: str) -> None:
    """Passed to the service of the same name, which asks for it; no crowd ends it; it goes with the slice."""
    directives = {key: value for _, key, value in read_directives(name)}
    (wants,) = [value for _, key, value in read_directives(name.replace(".socket", ".service")) if key == "Wants"]
    assert name in wants.split()
    assert (directives["TriggerLimitIntervalSec"], directives["Slice"]) == ("0", "bedsit.slice")
    assert directives["WantedBy"] == "sockets.target"
    # Who stops it alone would cut off the program that still listens.
    assert "RemoveOnStop" not in directives


def test_sockets_are_where_clients_look() -> None:
    """The path, the kind, the name under which it is passed, and who may connect before its program has come."""
    admin = {key: value for _, key, value in read_directives("bedsitd.socket")}
    assert (admin["ListenStream"], admin["FileDescriptorName"]) == ("/run/bedsit/admin.sock", "admin")
    assert admin["SocketMode"] == "0600"
    door = {key: value for _, key, value in read_directives("bedsit-router.socket")}
    assert (door["ListenSequentialPacket"], door["FileDescriptorName"]) == ("/run/bedsit/router/door.sock", "door")
    assert (door["SocketMode"], door["SocketUser"], door["SocketGroup"]) == ("0666", "bedsit-router", "bedsit-router")


def test_the_router_has_nothing_and_is_always_restarted() -> None:
    """Its own user, no capability, no delay, no limit of restarts."""
    directives = {key: value for _, key, value in read_directives("bedsit-router.service")}
    assert directives["User"] == "bedsit-router"
    assert directives["CapabilityBoundingSet"] == directives["AmbientCapabilities"] == ""
    assert (directives["Restart"], directives["RestartSec"], directives["StartLimitIntervalSec"]) == (
        "always",
        "0",
        "0",
    )
    assert (directives["Type"], directives["WatchdogSec"], directives["RestartPreventExitStatus"]) == (
        "notify",
        "15",
        "78",
    )


@pytest.mark.parametrize("name", SERVICES)
def test_a_thousand_tenants_have_their_descriptors(name: str) -> None:
    """A million of them: the kernel's own bound (fs.nr_open) as it comes, and none of systemd's."""
    directives = {key: value for _, key, value in read_directives(name)}
    assert int(directives["LimitNOFILE"]) == 1 << 20


def test_the_daemon_can_be_restarted_under_its_slots() -> None:
    """Ready means ready, a hang is noticed, live sockets outlive it, a wrong configuration does not loop."""
    directives = {key: value for _, key, value in read_directives("bedsitd.service")}
    assert directives["Type"] == "notify"
    assert directives["WatchdogSec"] == "30"
    assert directives["RuntimeDirectoryPreserve"] == "yes"
    assert (directives["RestartPreventExitStatus"], directives["RestartForceExitStatus"]) == ("78", "75")
    assert directives["OOMScoreAdjust"] == "-900"
    # With noroot root gets no capability at exec, and this unit would have none at all.
    assert "noroot" not in directives.get("SecureBits", "")


def test_a_zygote_is_never_restarted_and_its_slots_survive_it() -> None:
    """Delegated, killed alone, never started again, and a slot's memory limit is that slot's end only."""
    directives = {key: value for _, key, value in read_directives("bedsit-zygote@.service")}
    wanted = {"Delegate": "yes", "KillMode": "process", "Restart": "no", "OOMPolicy": "continue"}
    assert {key: directives[key] for key in wanted} == wanted


def test_nothing_of_systemds_environment_gets_into_the_zygote() -> None:
    """What is in its memory is in every slot's: it is started through `env -i`, and no line puts a word back."""
    directives = {key: value for _, key, value in read_directives("bedsit-zygote@.service")}
    assert directives["ExecStart"].startswith("/usr/bin/env -i OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 ")
    assert not {"Environment", "EnvironmentFile", "PassEnvironment"} & set(directives)


def test_the_daemon_has_gone_before_a_zygote_is_stopped() -> None:
    """At power-off nobody takes a zygote's end for a crash and orders the next one."""
    directives = {key: value for _, key, value in read_directives("bedsit-zygote@.service")}
    assert directives["Before"] == "bedsitd.service"


@pytest.mark.parametrize("name", SERVICES)
def test_stopping_never_takes_long(name: str) -> None:
    """Each ends on SIGTERM at once; the limit is for one that hangs, and stays within seconds."""
    directives = {key: value for _, key, value in read_directives(name)}
    assert int(directives["TimeoutStopSec"]) <= 10


@pytest.mark.parametrize("name", SERVICES)
def test_the_programs_are_those_of_the_package(name: str) -> None:
    """What ExecStart names exists: a console script of the package, or a module of it."""
    text = (UNITS / name).read_text().replace("\\\n", " ")
    (command,) = [line.removeprefix("ExecStart=") for line in text.splitlines() if line.startswith("ExecStart=")]
    program, *words = command.split()
    if program == "/usr/bin/env":
        program, *words = [word for word in words if word != "-i" and not re.match(r"[A-Z_]+=", word)]
    assert program.startswith("/opt/bedsit/bin/")
    if "-m" in words:
        module = words[words.index("-m") + 1].split(".")
        assert module[0] == "bedsit"
        path = UNITS.parent.joinpath(*module[1:])
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
    else:
        pyproject = (UNITS.parent / "pyproject.toml").read_text()
        assert f'\n{Path(program).name} = "bedsit.' in pyproject


def test_users_and_folders_are_made(tmp_path: Path) -> None:
    """The two other files do what they say, in a root of their own, as at boot."""
    for name in ("etc", "run", "var/lib"):
        (tmp_path / name).mkdir(parents=True)
    done = subprocess.run(
        [find_tool("systemd-sysusers"), f"--root={tmp_path}", str(UNITS / "sysusers.d" / "bedsit.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bedsit-router:" in (tmp_path / "etc" / "passwd").read_text()
    assert "bedsit-admin:" in (tmp_path / "etc" / "group").read_text()
    done = subprocess.run(
        [find_tool("systemd-tmpfiles"), f"--root={tmp_path}", "--create", str(UNITS / "tmpfiles.d" / "bedsit.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modes = {
        name: (tmp_path / name).stat().st_mode & 0o777 for name in ("run/bedsit", "run/bedsit/router", "var/lib/bedsit")
    }
    assert modes == {"run/bedsit": 0o755, "run/bedsit/router": 0o755, "var/lib/bedsit": 0o750}
