"""bedsitd: parse the command line, run the daemon, say by the exit status what systemd should do.

0 told to leave; 78 the configuration has to be changed first; 75 try again later; 1 a bug.
"""

import argparse
import asyncio
import json
import os
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import setproctitle

import bedsit
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.heldlistener import check_place, take_held_listener, turn_away
from bedsit.ipc.notify import Notifier
from bedsit.supervisor.config import load_config
from bedsit.supervisor.daemon import Daemon
from bedsit.supervisor.folders import Folders
from bedsit.supervisor.log import configure_log, get_log
from bedsit.supervisor.protocols import PROTOCOLS

EX_TEMPFAIL: Final = 75
EX_CONFIG: Final = 78
#: Errors that only a person can mend.
_CONFIG_CODES: Final = frozenset({"config.invalid", "folder.unusable", "permission.denied", "state.foreign"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to leave; gives the exit status."""
    parser = argparse.ArgumentParser(prog="bedsitd", description="The control plane of a bedsit box.")
    parser.add_argument("--config", type=Path, help="default: /etc/bedsit/bedsit.toml, if it is there")
    parser.add_argument("--run-dir", help="instead of the configured run_dir")
    parser.add_argument("--state-dir", help="instead of the configured state_dir")
    parser.add_argument("--version", action="version", version=f"bedsitd {bedsit.__version__}")
    parser.add_argument("--protocols", action="store_true", help="print which ones this bedsit speaks, as JSON")
    options = parser.parse_args(argv)
    if options.protocols:
        sys.stdout.write(json.dumps({"version": bedsit.__version__, "protocols": dict(PROTOCOLS)}) + "\n")
        return 0
    os.umask(0o077)
    configure_log("info")
    held: socket.socket | None = None
    try:
        held = take_held_listener(os.environ, "admin", socket.SOCK_STREAM)
        config = load_config(options.config, {"run_dir": options.run_dir, "state_dir": options.state_dir})
        configure_log(config.log_level)
        if os.geteuid() != 0:
            raise error("permission.denied", "bedsitd has to run as root", "use sudo, or the bedsitd.service unit")
        setproctitle.setproctitle("bedsitd")
        _raise_descriptor_limit()
        if held is not None:
            check_place(held, Folders(config.run, config.state).admin_socket)
        notifier = Notifier(os.environ)
        try:
            asyncio.run(Daemon(config, held).run(notifier))
        finally:
            notifier.close()
    except BedsitError as e:
        get_log().error("daemon.refused", code=e.code, message=e.message, hint=e.hint)
        if e.code not in _CONFIG_CODES:
            return EX_TEMPFAIL
        if held is not None:
            turn_away(held)
        return EX_CONFIG
    return 0


def _raise_descriptor_limit() -> None:
    """A slot costs a few descriptors; the soft limit of 1024 is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
