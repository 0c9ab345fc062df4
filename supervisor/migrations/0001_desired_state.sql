-- What the operator wants. Nothing observed lives here: slots are found again from the run folder.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Names this state folder for life: snapshots of two boxes, or of a box set up anew, never mix.
INSERT INTO meta VALUES ('instance', lower(hex(randomblob(4))));

-- AUTOINCREMENT: a number is never given to a second tenant, because sockets and spools are named by it.
CREATE TABLE tenants (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT NOT NULL UNIQUE,
    wanted       TEXT NOT NULL DEFAULT 'running' CHECK (wanted IN ('running', 'stopped')),
    isolation    TEXT NOT NULL CHECK (isolation IN ('strict', 'best-effort')),
    memory_bytes INTEGER NOT NULL,
    cpus         REAL NOT NULL,
    pids         INTEGER NOT NULL,
    arena_bytes  INTEGER NOT NULL,
    queue_max    INTEGER NOT NULL,
    max_inflight INTEGER NOT NULL,
    sessions_max INTEGER NOT NULL,
    next_model   INTEGER NOT NULL DEFAULT 1,
    created_at   TEXT NOT NULL
) STRICT;

CREATE TABLE keys (
    id         TEXT PRIMARY KEY,
    tenant     INTEGER NOT NULL REFERENCES tenants ON DELETE CASCADE,
    label      TEXT NOT NULL,
    digest     BLOB NOT NULL CHECK (length(digest) = 32),
    created_at TEXT NOT NULL,
    revoked_at TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_by_tenant ON keys (tenant);

CREATE TABLE models (
    tenant          INTEGER NOT NULL REFERENCES tenants ON DELETE CASCADE,
    number          INTEGER NOT NULL,
    name            TEXT NOT NULL,
    default_version INTEGER NOT NULL,
    idempotent      INTEGER NOT NULL CHECK (idempotent IN (0, 1)),
    next_version    INTEGER NOT NULL,
    PRIMARY KEY (tenant, number),
    UNIQUE (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE versions (
    tenant      INTEGER NOT NULL,
    model       INTEGER NOT NULL,
    version     INTEGER NOT NULL,
    digest      TEXT NOT NULL,
    size        INTEGER NOT NULL,
    manifest    BLOB NOT NULL,
    deployed_at TEXT NOT NULL,
    PRIMARY KEY (tenant, model, version),
    FOREIGN KEY (tenant, model) REFERENCES models ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
