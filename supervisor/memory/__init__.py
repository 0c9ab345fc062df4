"""Memory of GPUs that several tenants take turns on: who holds a slot to its quota, and what is done about one over it.

holder ── at a slot's birth: the driver's limit on its group, where there is such a thing (ADR 26)
watcher ─┬→ devices (who uses how much), groups (whose process that is)
         └→ ladder (pure: told once, ended when it is far above twice in a row)
kinds, uses ── what is said of it: hardware, driver or soft
"""
