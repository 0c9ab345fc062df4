"""A model that says when it ran, and when it yielded."""
