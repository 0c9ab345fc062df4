"""What runs in the rivals' own processes, each in its own environment: nothing of bedsit is imported here."""
