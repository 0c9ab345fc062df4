"""Stands in for the router under ``bedsit up``: listens at the door until it is told to end."""

import argparse
import os
import signal
import socket
import sys
from pathlib import Path


def main() -> int:
    """Listen until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--user", required=True)
    options = parser.parse_args()
    door = options.run_dir / "router" / "door.sock"
    door.unlink(missing_ok=True)
    with (options.run_dir / "starts").open("a") as starts:
        starts.write(f"router {os.getpid()} {options.user}\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(door))
        listener.listen(16)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        while True:
            listener.accept()[0].close()


if __name__ == "__main__":
    sys.exit(main())
