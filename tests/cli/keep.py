"""``bedsit up`` without its checks, keeping the two stand-ins instead of the real daemon and router."""

import sys
from pathlib import Path

from bedsit.cli.box import Box
from bedsit.cli.keeper import Keeper, Programs
from bedsit.cli.render import Screen
from bedsit.cli.report import ScreenReport
from bedsit.ipc.errors import BedsitError

HERE = Path(__file__).parent


def main() -> int:
    """Keep; arguments: run directory, state directory, seconds to wait, options for the daemon."""
    run, state, within, *options = sys.argv[1:]
    programs = Programs((sys.executable, str(HERE / "fake_daemon.py")), (sys.executable, str(HERE / "fake_router.py")))
    screen = Screen()
    with Box(Path(run), screen) as box, screen.phases() as phases:
        report = ScreenReport(screen, phases)
        daemon_options = ["--run-dir", run, "--state-dir", state, *options]
        try:
            return Keeper(box, daemon_options, report, float(within), programs).run()
        except BedsitError as failure:
            screen.fail(failure)
            return int(failure.detail.get("exit_code", failure.exit_code))


if __name__ == "__main__":
    sys.exit(main())
