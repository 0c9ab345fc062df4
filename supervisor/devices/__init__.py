"""What the box computes with: GPUs, parts of GPUs and cores, as one kind of thing that can be handed out.

    watch ─┬→ helper ──packets──▶ nvml/ (a process of its own: the only one that loads NVML)
           ├→ inventory (pure: reports in, changes out) → faults, xids (words)
           └→ cores, nodes (read from /sys and /proc)
                     └──────────▶ model: Box → Gpu → Slice
                                         └→ partitions/ (what was declared) ──▶ watch, helper, nvml/: made, destroyed

Of a card nothing is changed but its MIG instances, and those as they were declared: no mode, clock, limit or reset.
"""
