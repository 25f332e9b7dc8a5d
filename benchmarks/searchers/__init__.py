"""Searchers beside each other, on learning curves that were recorded once."""
