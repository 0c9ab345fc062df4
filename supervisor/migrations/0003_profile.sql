-- What a tenant's processes may do beyond serving; docs/adr/0008 says what `subprocess` weakens.

ALTER TABLE tenants ADD COLUMN profile TEXT NOT NULL DEFAULT 'standard'
    CHECK (profile IN ('standard', 'subprocess'));
