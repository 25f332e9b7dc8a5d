"""Embeddings and prompt vectors made visible: maps, how far to believe them, and their charts."""
