"""The objective of a step, and what of it changes during a run."""
