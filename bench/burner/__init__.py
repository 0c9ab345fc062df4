"""A model whose cost is what its caller says."""
