"""Who gets which GPU, part of one, or cores; why not, and what would help. Pure: boxes and requests in, seats out."""
