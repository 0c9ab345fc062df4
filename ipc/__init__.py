"""The wire both sides share: messages, lanes, arenas, and the client. Imports nothing else of bedsit."""
