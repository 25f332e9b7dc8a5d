"""One run: the loop, its batches, its checkpoints, and what it reaches on val."""
