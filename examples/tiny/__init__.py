"""A net so small that calling it shows what everything around it costs: 64 -> 64 -> 8."""
