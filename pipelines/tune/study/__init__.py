"""The study's memory: its journal, its best trials, its budget, and which trial is the answer."""
