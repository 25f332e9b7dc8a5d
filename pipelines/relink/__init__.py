"""The work behind `cliptune relink`."""
