"""The work behind `cliptune classify`."""
