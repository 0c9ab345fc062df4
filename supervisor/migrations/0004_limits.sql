-- Limits beside memory, processes and time: who goes first when processors are short, where it runs, what its disks give.

ALTER TABLE tenants ADD COLUMN cpu_weight INTEGER NOT NULL DEFAULT 100 CHECK (cpu_weight BETWEEN 1 AND 10000);
ALTER TABLE tenants ADD COLUMN cpu_idle INTEGER NOT NULL DEFAULT 0 CHECK (cpu_idle IN (0, 1));
ALTER TABLE tenants ADD COLUMN cores TEXT NOT NULL DEFAULT 'all';
ALTER TABLE tenants ADD COLUMN io_bps INTEGER NOT NULL DEFAULT 0 CHECK (io_bps >= 0);

-- Why a tenant was last restarted, in the one word that programs read.
ALTER TABLE tallies ADD COLUMN kind TEXT NOT NULL DEFAULT 'unknown';
