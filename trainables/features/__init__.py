"""Features once: the frozen towers' outputs for a data set, kept and shared by all trials."""
