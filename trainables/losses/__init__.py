"""The objective of a step, and the schedules of what changes during a run."""
