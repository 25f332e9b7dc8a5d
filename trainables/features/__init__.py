"""Features once: what the frozen towers make of a data set, kept and shared by all trials."""
