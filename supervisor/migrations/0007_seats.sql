-- Which device a tenant asks for, and where it sits: what was found once is kept, whoever starts the daemon again.

-- As it was asked for: mig:PROFILE, gpu, gpu:SHARE, cpu:CORES, core:SHARE. '': the cores that nobody has for himself.
ALTER TABLE tenants ADD COLUMN device TEXT NOT NULL DEFAULT '';
-- 0: as much as the device gives.
ALTER TABLE tenants ADD COLUMN gpu_memory_bytes INTEGER NOT NULL DEFAULT 0
    CHECK (gpu_memory_bytes BETWEEN 0 AND 17592186044416);
-- Words of the name of the GPU; '': any.
ALTER TABLE tenants ADD COLUMN gpu_type TEXT NOT NULL DEFAULT '';
-- Names of tenants, with commas between them.
ALTER TABLE tenants ADD COLUMN near TEXT NOT NULL DEFAULT '';
ALTER TABLE tenants ADD COLUMN apart TEXT NOT NULL DEFAULT '';
ALTER TABLE tenants ADD COLUMN trusted INTEGER NOT NULL DEFAULT 0 CHECK (trusted IN (0, 1));
-- JSON: names of devices that last as long as they do, a MIG place, cores, memory. '': none.
ALTER TABLE tenants ADD COLUMN seat TEXT NOT NULL DEFAULT '';
