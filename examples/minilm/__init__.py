"""Sentence embeddings: all-MiniLM-L6-v2, a transformer of 6 layers and 22.7 million weights."""
