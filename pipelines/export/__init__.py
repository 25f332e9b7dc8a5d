"""The work behind `cliptune export`."""
