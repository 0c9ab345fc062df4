"""What the box computes with: GPUs, parts of GPUs and cores, as one kind of thing that can be handed out.

    watch ─┬→ helper ──packets──▶ nvml/ (a process of its own: the only one that loads NVML)
           ├→ inventory (pure: reports in, changes out) → faults, xids (words)
           └→ cores, nodes (read from /sys and /proc)
                     └──────────▶ model: Box → Gpu → Slice

Nothing here changes a card: no mode, clock, limit or reset.
"""
