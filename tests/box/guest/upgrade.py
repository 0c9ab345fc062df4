"""Another version is installed and started while a client asks: no request fails, and it was said what would happen."""

import json
import re
import subprocess
import zipfile
from pathlib import Path

from tests.box.guest.check import BIN, PARCEL, ask, check, is_full, run, wait_until
from tests.box.guest.load import TENANT, Load

_SNAPSHOT = "bedsit/ipc/snapshot.py"
_RECORD = "bedsit/supervisor/records.py"


@check("tenant", within_s=150)
def upgrade_takes_over() -> str:
    """A router that cannot read the old snapshot, a daemon that knows the slots: the worker stays, blank ones go."""
    before = _worker()
    with Load() as load:
        _install("0.1.1", [_SNAPSHOT])
        code, verdicts = _ask_what_will_happen()
        assert code == 0, verdicts
        assert verdicts["daemon"] == verdicts["router"] == {"restarts"}, verdicts
        assert verdicts[TENANT] == {"stays"}, verdicts
        assert verdicts["blank"] == {"replaced"}, verdicts
        assert verdicts["protocol snapshot"] == {"changes"}, verdicts
        _restart()
        answered = load.answered
    assert _worker() == before, "the worker is another one"
    return f"{answered} requests"


@check("upgrade_takes_over", within_s=150)
def upgrade_replaces() -> str:
    """A new daemon that does not know the slots ends them: the tenant's requests wait for its new one."""
    before = _worker()
    # The next slot needs the next zygote, and that takes an emulated processor most of a minute.
    with Load(timeout_s=120) as load:
        _install("0.2.0", [_SNAPSHOT, _RECORD])
        code, verdicts = _ask_what_will_happen()
        assert (code, verdicts[TENANT]) == (1, {"ended"}), verdicts
        _restart()
        answered = load.answered
    assert _worker() != before, "the worker is the same"
    return f"{answered} requests"


def _worker() -> int:
    pid = ask("tenant.show", name=TENANT)["worker_pid"]
    assert isinstance(pid, int)
    return pid


def _restart() -> None:
    run("systemctl", "restart", "bedsitd", "bedsit-router")
    version = run(BIN / "bedsitd", "--version").split()[1]

    def is_new() -> bool:
        return is_full() and {row["bedsit"] for row in ask("ps") if row["tenant"] is None} == {version}

    wait_until(is_new, "the pool is full of new slots", 100)
    assert ask("status")["router"]["version"] == version


def _ask_what_will_happen() -> tuple[int, dict[str, set[str]]]:
    """The exit status of ``bedsit upgrade check``, and its verdicts by tenant, or by part where there is none."""
    command = [BIN / "bedsit", "upgrade", "check", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    verdicts: dict[str, set[str]] = {}
    for row in json.loads(done.stdout)["items"]:
        is_slot = not (row["part"] in ("daemon", "router") or row["part"].startswith("protocol "))
        name = row["tenant"] or ("blank" if is_slot else row["part"])
        verdicts.setdefault(name, set()).add(row["verdict"])
    return done.returncode, verdicts


def _install(version: str, raised: list[str]) -> None:
    """The parcel's wheel under another version, with the format that each of the files *raised* is about one higher."""
    (path,) = (PARCEL / "dist").glob("*.whl")
    old = path.name.split("-")[1]
    changed = Path("/run") / path.name.replace(f"-{old}-", f"-{version}-")
    folder = f"bedsit-{version}.dist-info"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
        for entry in source.namelist():
            name, text = entry.replace(f"bedsit-{old}.dist-info", folder), source.read(entry).decode()
            if name == f"{folder}/METADATA":
                text = text.replace(f"\nVersion: {old}\n", f"\nVersion: {version}\n")
            if name == f"{folder}/RECORD":
                text = re.sub(r",sha256=[^,]*,\d*", ",,", text.replace(f"bedsit-{old}.dist-info", folder))
            if name == "bedsit/__init__.py":
                text = text.replace(f'__version__ = "{old}"', f'__version__ = "{version}"')
            if name in raised:
                text = re.sub(
                    r"(?m)^VERSION: Final = (\d+)", lambda found: f"VERSION: Final = {int(found[1]) + 1}", text
                )
            target.writestr(name, text)
    run(BIN / "pip", "install", "--quiet", "--no-index", "--no-deps", changed)
