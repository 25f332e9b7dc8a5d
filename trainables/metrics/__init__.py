"""Metrics: embeddings, scores and captions in, exact numbers out."""
