"""Steps of live abuse: what clients and workers without manners do to a router, each bounded in what it sends."""
