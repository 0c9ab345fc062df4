-- What happened: a bounded ring that operators read.

CREATE TABLE events (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    at     TEXT NOT NULL,
    kind   TEXT NOT NULL,
    tenant TEXT,
    slot   TEXT,
    cause  TEXT,
    text   TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_tenant ON events (tenant, id);

-- The death tally of a tenant: how often it was restarted, and why last.
CREATE TABLE tallies (
    tenant   INTEGER PRIMARY KEY REFERENCES tenants ON DELETE CASCADE,
    restarts INTEGER NOT NULL,
    cause    TEXT NOT NULL
) STRICT;
