"""The work behind `cliptune train`."""
