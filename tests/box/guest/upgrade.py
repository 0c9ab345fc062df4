"""Another version is installed and started while a client asks: no request fails, and it was said what would happen."""

import json
import re
import subprocess
import zipfile
from pathlib import Path

from tests.box.guest.check import BIN, PARCEL, ask, check, is_full, run, wait_until
from tests.box.guest.load import TENANT, Load

_SNAPSHOT = "bedsit/ipc/snapshot.py"


@check("tenant", within_s=180)
def upgrade() -> str:
    """A router that cannot read the old snapshot, a daemon that knows the slots: they stay until they are replaced."""
    before = _slot()
    with Load() as load:
        version = _install("0.1.1", _SNAPSHOT)
        code, verdicts = _ask_what_will_happen()
        assert code == 0, verdicts
        assert verdicts["daemon"] == verdicts["router"] == {"restarts"}, verdicts
        assert verdicts[TENANT] == {"stays"}, verdicts
        assert verdicts["blank"] == {"replaced"}, verdicts
        assert verdicts["protocol snapshot"] == {"changes"}, verdicts
        run("systemctl", "restart", "bedsitd", "bedsit-router")
        wait_until(lambda: is_full() and _versions(None) == {version}, "the pool is full of new slots", 120)
        assert ask("status")["router"]["version"] == version
        assert _slot() == before, "the slot is another one"
        ask("tenant.restart", name=TENANT)
        wait_until(lambda: _versions(TENANT) == {version}, "the slot of the old version has gone")
        answered = load.answered
    return f"{answered} requests"


def _slot() -> str:
    (slot,) = [row["slot"] for row in ask("ps") if row["tenant"] == TENANT]
    assert isinstance(slot, str)
    return slot


def _versions(tenant: str | None) -> set[str]:
    """Of bedsit, that the slots of one tenant are from; None: of the blank ones."""
    return {row["bedsit"] for row in ask("ps") if row["tenant"] == tenant}


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


def _install(version: str, raised: str) -> str:
    """The parcel's wheel under another version, with the format that the file *raised* is about one higher."""
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
            if name == raised:
                text = re.sub(r"(?<=\nVERSION: Final = )\d+", lambda found: str(int(found[0]) + 1), text)
            target.writestr(name, text)
    run(BIN / "pip", "install", "--quiet", "--no-index", "--no-deps", changed)
    return version
