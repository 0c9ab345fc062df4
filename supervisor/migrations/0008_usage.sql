-- What was used, by the hour. It outlives its tenants: names are as they were when it was written.

CREATE TABLE usage_models (
    hour TEXT NOT NULL,
    tenant INTEGER NOT NULL,
    tenant_name TEXT NOT NULL,
    model INTEGER NOT NULL,
    model_name TEXT NOT NULL,
    version INTEGER NOT NULL,
    requests INTEGER NOT NULL DEFAULT 0,
    worker_us INTEGER NOT NULL DEFAULT 0,
    turns_us INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (hour, tenant, model, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_tenants (
    hour TEXT NOT NULL,
    tenant INTEGER NOT NULL,
    tenant_name TEXT NOT NULL,
    cpu_us INTEGER NOT NULL DEFAULT 0,
    memory_mib_s REAL NOT NULL DEFAULT 0,
    device_us INTEGER NOT NULL DEFAULT 0,
    vram_mib_s REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (hour, tenant)
) STRICT, WITHOUT ROWID;

-- Idle is measured for itself; gaps are the part of it in which somebody waited.
CREATE TABLE usage_devices (
    hour TEXT NOT NULL,
    device TEXT NOT NULL,
    wall_us INTEGER NOT NULL DEFAULT 0,
    idle_us INTEGER NOT NULL DEFAULT 0,
    gaps_us INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (hour, device)
) STRICT, WITHOUT ROWID;

-- Counters that only grow, as they were when they were added last: what is heard twice is added once.
CREATE TABLE usage_seen (
    source TEXT NOT NULL,
    counter TEXT NOT NULL,
    first INTEGER NOT NULL,
    second INTEGER NOT NULL,
    third INTEGER NOT NULL,
    PRIMARY KEY (source, counter)
) STRICT, WITHOUT ROWID;
