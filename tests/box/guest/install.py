"""What systemd/README.md tells to do, done; and a wheel that has what it takes."""

from pathlib import Path

from tests.box.guest.check import BIN, PARCEL, check, run

_KINDS = ("service", "socket", "slice")
_UNITS = Path("/usr/lib/systemd/system")


@check()
def debian() -> str:
    """systemd 252 with cgroup v2 and nothing else, where no unit failed before ours came."""
    version = run("systemctl", "--version").splitlines()[0]
    assert version.startswith("systemd 252 "), version
    kind = run("stat", "-f", "-c", "%T", "/sys/fs/cgroup").strip()
    assert kind == "cgroup2fs", f"/sys/fs/cgroup is {kind}"
    failed = run("systemctl", "list-units", "--failed", "--plain", "--no-legend")
    assert not failed, failed
    return f"{version.split(' (')[0]}, kernel {run('uname', '-r').strip()}"


@check()
def wheel() -> str:
    """The wheel of this checkout installs beside its dependencies, misses none of them, and brings both commands."""
    (path,) = (PARCEL / "dist").glob("*.whl")
    run(BIN / "pip", "install", "--quiet", "--no-index", "--no-deps", path)
    run(BIN / "pip", "check")
    assert run(BIN / "bedsitd", "--version").startswith("bedsitd ")
    where = run(BIN / "python", "-I", "-c", "import bedsit.sandbox as s; print(s.__file__)").strip()
    assert where.startswith("/opt/bedsit/lib/"), f"bedsit is imported from {where}"
    return path.name


@check("wheel")
def units() -> None:
    """Units, users and folders, as systemd/README.md has it; systemd finds nothing to say about them."""
    files = PARCEL / "systemd"
    run("install", "-m", "0644", *(path for kind in _KINDS for path in files.glob(f"*.{kind}")), _UNITS)
    run("install", "-m", "0644", files / "sysusers.d/bedsit.conf", "/usr/lib/sysusers.d/")
    run("install", "-m", "0644", files / "tmpfiles.d/bedsit.conf", "/usr/lib/tmpfiles.d/")
    run("systemd-sysusers")
    run("systemd-tmpfiles", "--create")
    run("systemctl", "daemon-reload")
    said = run("systemd-analyze", "verify", "--man=no", *(_UNITS / name.name for name in files.glob("bedsit*.s*")))
    assert not said, said
    run("id", "bedsit-router")
    assert Path("/run/bedsit/router").owner() == "bedsit-router"
