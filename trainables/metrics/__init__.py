"""Metrics: embeddings in, exact numbers and their uncertainty out."""
