-- How a tenant's slots come and go: after which deaths, how many of them, and until when.

ALTER TABLE tenants ADD COLUMN restart TEXT NOT NULL DEFAULT 'permanent'
    CHECK (restart IN ('permanent', 'transient', 'temporary'));
-- 0: never given up.
ALTER TABLE tenants ADD COLUMN restarts_max INTEGER NOT NULL DEFAULT 0 CHECK (restarts_max BETWEEN 0 AND 10000);
ALTER TABLE tenants ADD COLUMN restart_period_s REAL NOT NULL DEFAULT 600 CHECK (restart_period_s BETWEEN 1 AND 86400);
-- 0: never.
ALTER TABLE tenants ADD COLUMN quarantine_after INTEGER NOT NULL DEFAULT 3 CHECK (quarantine_after BETWEEN 0 AND 1000);
-- No more than max_slots, which no constraint of a column can say.
ALTER TABLE tenants ADD COLUMN min_slots INTEGER NOT NULL DEFAULT 1 CHECK (min_slots BETWEEN 0 AND 1024);
ALTER TABLE tenants ADD COLUMN max_slots INTEGER NOT NULL DEFAULT 1 CHECK (max_slots BETWEEN 1 AND 1024);
-- 0: not for being idle.
ALTER TABLE tenants ADD COLUMN idle_s REAL NOT NULL DEFAULT 0 CHECK (idle_s BETWEEN 0 AND 31536000);
-- 0: no limit.
ALTER TABLE tenants ADD COLUMN run_max_s REAL NOT NULL DEFAULT 300 CHECK (run_max_s BETWEEN 0 AND 86400);

ALTER TABLE versions ADD COLUMN quarantined_at TEXT;
