"""Make every check, and print what came of it."""

import argparse
import dataclasses
import json
import os
import sys

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.probe.checks import CHECKS
from bedsit.sandbox.probe.finding import Check, Finding, Missing


def probe() -> list[Finding]:
    """All findings, the most important first."""
    return [_find(check) for check in CHECKS]


def main() -> None:
    """Print the findings."""
    parser = argparse.ArgumentParser(prog="bedsit.sandbox.probe")
    parser.add_argument("--json", action="store_true")
    findings = probe()
    if parser.parse_args().json:
        sys.stdout.write(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2) + "\n")
        return
    for finding in findings:
        state = {True: "ok     ", False: "missing", None: "unknown"}[finding.ok]
        sys.stdout.write(f"{state} {finding.name}: {finding.found}; without it: {finding.exposes}\n")


def _find(check: Check) -> Finding:
    ok: bool | None = False
    mend = check.mend
    try:
        ok, found, mend = True, check.look(), ""
    except Missing as e:
        found, mend = str(e), e.mend or check.mend
    except (OSError, ValueError, BedsitError) as e:
        found = e.strerror or str(e) if isinstance(e, OSError) else str(e)
        if isinstance(e, PermissionError) and os.geteuid() != 0:
            ok, mend = None, "look again as root"
    return Finding(check.name, ok, found, check.exposes, mend, check.walls, check.required)
