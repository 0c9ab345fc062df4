"""How the operator wants GPUs cut: ``[devices.partitions]`` of the configuration, and what is done about it.

declared (text of the configuration) ─┐
model: Gpu (what is there) ───────────┼→ plan (pure: what stays, is made, goes, or cannot be) → keeper (has it done)
who is where (processes, seats) ──────┘
"""
