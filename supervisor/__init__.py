"""The trusted side: the daemon that owns slots, limits, keys and artifacts, and (in router/) the data plane.

    __main__ → daemon ─┬→ lifecycle (pure) → instructions → effects ─┬→ slots → zygotes, sandbox.cgroup, .inspect
                       │        ▲                                    ├→ registry, events      (desired state, history)
                       │        └── stimuli ← slots, zygotes,        ├→ publisher → control   (towards the router)
                       │                      control, timers        └→ timers, cores → shares
                       ├→ recovery (once, at start)
                       ├→ devices/ (what there is to compute on; NVML in a process of its own)
                       └→ admin/ (the operator's API)

No tenant byte is parsed in this process: archives, manifests and messages of workers pass through it unread.
"""
