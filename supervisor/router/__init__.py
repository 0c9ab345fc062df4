"""The data plane: doors, sessions, queues, dispatch, answers. Its own process, its own uid, no capabilities.

It never maps a payload and never reads a header: it knows envelopes. Everything that comes from a client or a worker is
hostile here; what the daemon says is believed.

    __main__ → router ─┬→ door ──→ sessions ─→ arenas
                       ├→ tenants (queue, ports)
                       ├→ slots (lane and descriptors towards one worker)
                       └→ control (the daemon)            all of them on one `loop`
"""
