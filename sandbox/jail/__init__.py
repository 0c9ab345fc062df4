"""The jail: one ordered table (`steps`) of small verbs, each in the file of its noun."""
