"""Numbered steps of the database's shape, append-only: ``PRAGMA user_version`` says how many were taken."""

import sqlite3
from importlib.resources import files
from typing import Final

from bedsit.ipc.errors import error

NAMES: Final = (
    "0001_desired_state.sql",
    "0002_events.sql",
    "0003_profile.sql",
    "0004_limits.sql",
    "0005_admission.sql",
    "0006_coming_and_going.sql",
    "0007_seats.sql",
    "0008_usage.sql",
)


def migrate(db: sqlite3.Connection) -> None:
    """Take the steps that *db* lacks, each in its own transaction.

    Raises ``state.foreign`` for a database of a newer bedsit: going back is not possible.
    """
    (taken,) = db.execute("PRAGMA user_version").fetchone()
    if taken > len(NAMES):
        raise error(
            "state.foreign",
            f"the database has shape {taken}; this bedsit knows {len(NAMES)}",
            "install the newer bedsit again, or give this one another state folder",
        )
    for number, name in enumerate(NAMES[taken:], taken + 1):
        step = files("bedsit.supervisor.migrations").joinpath(name).read_text("utf-8")
        db.executescript(f"BEGIN IMMEDIATE;\n{step}\nPRAGMA user_version = {number};\nCOMMIT;")
