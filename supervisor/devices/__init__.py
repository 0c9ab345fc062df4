"""What the box computes with: GPUs, parts of GPUs and cores, as one kind of thing that can be handed out.

    watch ─┬→ helper ──packets──▶ nvml/ (a process of its own: the only one that loads NVML)
           ├→ inventory (pure: reports in, changes out) → faults, xids (words)
           └→ cores, nodes (read from /sys and /proc)
                     └──────────▶ model: Box → Gpu → Slice
                                         └→ partitions/ (what was declared) ──▶ watch, helper, nvml/: made, destroyed

Of a card nothing is changed but its MIG instances, as they were declared, and how much of its memory the groups of our
slots may have: no mode, clock or reset.
"""
