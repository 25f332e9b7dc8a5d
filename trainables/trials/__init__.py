"""Runs as trials of a search: alone or several in one process. Only `trial.py` imports Ray."""
