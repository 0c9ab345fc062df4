-- Who is let in, how fast, and whose turn it is where the box is short: what the router holds tenants and models to.

ALTER TABLE tenants ADD COLUMN weight INTEGER NOT NULL DEFAULT 100 CHECK (weight BETWEEN 1 AND 10000);
ALTER TABLE tenants ADD COLUMN service_class TEXT NOT NULL DEFAULT 'interactive'
    CHECK (service_class IN ('realtime', 'interactive', 'batch'));
-- All of them together are at most 1, which no constraint of a row can say.
ALTER TABLE tenants ADD COLUMN min_share REAL NOT NULL DEFAULT 0 CHECK (min_share BETWEEN 0 AND 1);
-- 0 is no limit, here and below.
ALTER TABLE tenants ADD COLUMN rate_per_s REAL NOT NULL DEFAULT 0 CHECK (rate_per_s BETWEEN 0 AND 1000000);
ALTER TABLE tenants ADD COLUMN burst INTEGER NOT NULL DEFAULT 1 CHECK (burst BETWEEN 1 AND 100000);
ALTER TABLE tenants ADD COLUMN concurrency_max INTEGER NOT NULL DEFAULT 0 CHECK (concurrency_max BETWEEN 0 AND 10000);
ALTER TABLE tenants ADD COLUMN queue_bytes_max INTEGER NOT NULL DEFAULT 16777216
    CHECK (queue_bytes_max BETWEEN 65536 AND 17179869184);

ALTER TABLE models ADD COLUMN rate_per_s REAL NOT NULL DEFAULT 0 CHECK (rate_per_s BETWEEN 0 AND 1000000);
ALTER TABLE models ADD COLUMN burst INTEGER NOT NULL DEFAULT 1 CHECK (burst BETWEEN 1 AND 100000);
ALTER TABLE models ADD COLUMN concurrency_max INTEGER NOT NULL DEFAULT 0 CHECK (concurrency_max BETWEEN 0 AND 10000);
-- 0: only its tenant's.
ALTER TABLE models ADD COLUMN queue_max INTEGER NOT NULL DEFAULT 0 CHECK (queue_max BETWEEN 0 AND 100000);
-- Of requests that do not say theirs: low, normal, high.
ALTER TABLE models ADD COLUMN priority INTEGER NOT NULL DEFAULT 1 CHECK (priority BETWEEN 0 AND 2);
