"""The study's memory: its journal, its best trials, its budget, and the choice among them."""
